"""``confide dev bench spread``: from how many hospitals on the quartiles of their own AUC can be told, and how well.

Made-up hospitals: each has 156 test records, 60 % of them sick, and a model whose true AUC there is drawn from a normal
distribution with mean 0.95 and deviation 0.02. What they add, the noise of the plan's release and what is read from the
sum are the product's; one dropout is tolerated and nobody drops out. The truth is the weighted quartile of the AUC that
the hospitals measured.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from scipy.stats import norm

from common.evaluation.plan import EvaluationPlan
from common.evaluation.site_spread import CASES, SHARES, length_of, read_spread, vector_of
from common.files import replace_file
from common.privacy.accounting import Accountant
from common.provenance import ROOT
from common.task import TaskKind
from deploy.command import command, out_option

TABLE = "spread.md"
RECORDS, SICK = 156, 0.6
MEAN, DEVIATION = 0.95, 0.02
DELTA = 1e-4
HOSPITALS = (4, 8, 16, 64)
SPREAD_SHARES = (0.3, 0.5)

Floats = NDArray[np.float64]


@command(
    "spread",
    "Measure from how many hospitals on the quartiles of their own AUC can be told, on made-up scores.",
    "./confide dev bench spread --draws 400 --epsilon 1",
)
@click.option("--draws", type=click.IntRange(min=1), default=400, metavar="N", help="Repeat everything so often.")
@click.option("--epsilon", type=float, default=1.0, metavar="E", help="Of evaluation, for each test record.")
@out_option(ROOT / "runs" / "bench-spread", "runs/bench-spread", "The table is written there.")
def main(draws: int, epsilon: float, out: Path) -> int:
    """Draw, and print the table."""
    console = Console()
    lines = [
        "| hospitals | share | told | median: error, width | lower quartile: error, width | counts needed | covered |",
        "|---|---|---|---|---|---|---|",
    ]
    for hospitals in HOSPITALS:
        for share in SPREAD_SHARES:
            lines.append(row(hospitals, share, epsilon, draws))
            console.print(lines[-1], highlight=False, soft_wrap=True)
    folder = out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / TABLE, ("\n".join(lines) + "\n").encode())
    console.print(f"{TABLE} is in {folder}", highlight=False)
    return 0


def row(hospitals: int, share: float, epsilon: float, draws: int, seed: int = 1) -> str:
    """Return one row: medians over the draws in which quartiles were told, widths over all, coverage over all."""
    plan = EvaluationPlan.of(
        rounds=10, classes=2, kind=TaskKind.BINARY, epsilon=epsilon, delta=DELTA, accountant=Accountant.PRV,
        interim_releases=9, repeats=1, spread_share=share,
    )  # fmt: skip
    release = plan.spread
    assert release is not None
    variance = hospitals * plan.mechanism(release, colluders=0, tolerated_dropouts=1).share_variance(hospitals)
    generator = np.random.default_rng([seed, hospitals, round(100 * share)])
    errors, widths, told, covered, needed = [], [], 0, 0, 0
    for _ in range(draws):
        vectors, truth = made_up(hospitals, generator)
        noise = np.rint(generator.normal(0, math.sqrt(variance), length_of())).astype(np.int64)
        found = read_spread(vectors + noise, hospitals, variance)
        needed = found.needed
        widths.append([high - low for low, high in found.ends])
        covered += sum(low <= value <= high for value, (low, high) in zip(truth, found.ends, strict=True))
        if not math.isnan(found.quartiles[1]):
            told += 1
            errors.append(np.abs(np.subtract(found.quartiles, truth)))
    lower, middle, _ = np.median(widths, axis=0)
    of_lower, of_middle = ("–", "–") if not errors else (f"{each:.4f}" for each in np.median(errors, axis=0)[:2])
    return (
        f"| {hospitals} | {share:g} | {told / draws:.0%} | {of_middle}, {middle:.3f} | {of_lower}, {lower:.3f} | "
        f"{needed} | {covered / draws / len(SHARES):.1%} |".replace("%", " %")
    )


def made_up(hospitals: int, generator: np.random.Generator) -> tuple[NDArray[np.int64], Floats]:
    """Return the sum that some hospitals make without noise, and the weighted quartiles of what they measured."""
    total, measured, weights = np.zeros(length_of(), np.int64), [], []
    for auc in np.clip(generator.normal(MEAN, DEVIATION, hospitals), 0.5, 0.999):
        labels = (generator.random(RECORDS) < SICK).astype(np.int64)
        scores = generator.normal(labels * math.sqrt(2) * norm.ppf(auc), 1.0)
        total += vector_of(scores, labels, np.arange(RECORDS))
        healthy, sick = scores[labels == 0], scores[labels == 1]
        measured.append(float((sick[:, None] > healthy).mean()))
        weights.append(CASES.weight(min(len(healthy), len(sick))))
    return total, weighted_quartiles(measured, weights)


def weighted_quartiles(values: Sequence[float], weights: Sequence[float]) -> Floats:
    """Return the least values below which, themselves included, lies each share of the weight."""
    order = np.argsort(values)
    reached = np.cumsum(np.asarray(weights)[order])
    places = np.searchsorted(reached, np.array(SHARES) * reached[-1])
    quartiles: Floats = np.asarray(values, np.float64)[order][np.minimum(places, len(order) - 1)]
    return quartiles
