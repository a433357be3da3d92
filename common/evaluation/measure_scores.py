"""Metrics of one score with a threshold: of a binary task, or of one label among several.

The first draw is the release itself, the others are a parametric bootstrap: units drawn from the decoded leaves with
fresh noise on top, and, to separate the two, the decoded leaves themselves with fresh noise alone.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.evaluation import intervals
from common.evaluation.calibration import rows_of
from common.evaluation.density import (
    FIRST_LOG,
    FIRST_MEAN,
    FITTED_LOG,
    FITTED_MEAN,
    WIDEST_LOG,
    Group,
    Prior,
    auc_of,
    boundaries,
    cells_of,
    decode_group,
    halves_of,
)
from common.evaluation.exact import CALIBRATION_BINS, MAX_LOSS
from common.evaluation.layout import Layout, entry_of
from common.evaluation.metrics import METRICS, Metrics, calibration_of
from common.evaluation.state import FIRST, Normal, Reference

Floats = NDArray[np.float64]

DRAWS = 120
"""The number of draws of each of the two bootstraps, which gives a deviation to within 6.5 %."""

NO_INTERVAL = frozenset({"ece"})
"""Figures that are printed without an interval. That of the calibration error of a well calibrated model covered in
half of all cases (``docs/results/evaluation.md``): absolute gaps are biased, and the bootstrap repeats the bias."""

LEAST_SHARE = 0.02
"""The smallest share of all units that a class is taken to have."""


MOST_TOGETHER = 0.5
"""The largest share of pairs in one leaf. With more, the edges missed the scores, and a smooth density would be
invented. AUC, loss and ECE are NaN then, and the next release asks where the scores are."""

LARGEST_MEAN = 1e5
DEVIATIONS = 1e-3, 1e4
"""The range of a fitted normal's deviation; models may give scores that no fit follows."""


@dataclass(frozen=True)
class ScoreFigures:
    """One score's figures; ``draws`` hold the release, DRAWS of the first bootstrap, and DRAWS of the second."""

    draws: dict[str, Floats]
    metrics: Metrics
    intervals: dict[str, tuple[float, float]]
    noise: dict[str, float]
    reference: Reference
    at_bound: bool


@dataclass(frozen=True)
class ClassCount:
    """Units of the class, from this release or an earlier one: their share and the deviation of its noise."""

    share: float
    noise: float


def tree_halves(layout: Layout, entries: Floats) -> tuple[Floats, Floats]:
    """Return halves, each (K,), of one tree from its entries: other classes' units, then the class's own."""

    def side(weights: tuple[int, ...], own: bool) -> Floats:
        starts = [entry_of(level, 0, own=own) for level in range(layout.depth)]
        levels = zip(starts, weights, range(layout.depth), strict=True)
        return np.concatenate([entries[start : start + 2**level] / (2 * weight) for start, weight, level in levels])

    return side(layout.others, own=False), side(layout.own, own=True)


def tree_noise(weights: tuple[int, ...], deviation: float) -> Floats:
    """Return the deviation of the noise in each half, (K,)."""
    return np.concatenate([np.full(2**level, deviation / (2 * weight)) for level, weight in enumerate(weights)])


def priors_of(reference: Reference | None) -> tuple[Prior, Prior]:
    """Return where the two fits start."""

    def prior(normal: Normal) -> Prior:
        if reference is None:
            return Prior(normal.mean, normal.deviation, FIRST_MEAN, FIRST_LOG)
        return Prior(normal.mean, normal.deviation, FITTED_MEAN * normal.deviation, FITTED_LOG)

    known = reference or FIRST
    return prior(known.others), prior(known.own)


def of_score(
    layout: Layout,
    entries: Floats,
    units: int,
    deviation: float,
    edges: tuple[float, ...],
    classes: ClassCount,
    reference: Reference | None,
    generator: np.random.Generator,
) -> ScoreFigures:
    """Decode one tree with its threshold at the root.

    Args:
        layout: of the release.
        entries: (2K,) of the tree, with noise.
        units: in the sum.
        deviation: of the noise in each entry.
        edges: that were asked about, ascending.
        classes: how many units are of the class.
        reference: of the release before.
        generator: for the bootstrap.
    """
    cuts = np.array(edges)
    noise = tree_noise(layout.others, deviation), tree_noise(layout.own, deviation)
    priors = priors_of(reference)
    observed = tree_halves(layout, entries)
    positive = float(np.clip(classes.share, LEAST_SHARE, 1 - LEAST_SHARE)) * units
    central = _groups((observed[0][None], observed[1][None]), noise, np.array([positive]), units, cuts, priors)
    halves, positives = _bootstrap(central, units, noise, classes.noise * units, generator)
    halves = np.concatenate([observed[0][None], halves[0]]), np.concatenate([observed[1][None], halves[1]])
    positives = np.concatenate([[positive], positives])
    groups = _groups(halves, noise, positives, units, cuts, priors)
    ends = boundaries(cuts, *groups)
    cells = cells_of(groups[0], cuts, ends), cells_of(groups[1], cuts, ends)
    draws = {**_rates(halves, positives, units), **_smooth(cells, ends, units)}
    unseen = _pairs_together(groups) > MOST_TOGETHER
    if unseen:
        draws.update({name: np.full(1 + 2 * DRAWS, math.nan) for name in ("auc", "loss", "ece")})
    reached = tuple(fitted_normal(group) for group in groups)
    return ScoreFigures(
        draws=draws,
        metrics=_metrics(draws, units, cuts, cells, ends, is_seen=not unseen),
        intervals=_intervals(draws, observed, noise, positive, units, classes.noise * units),
        noise={
            name: float(np.std(values[1 + DRAWS :], ddof=1))
            for name, values in draws.items()
            if name[0] != "_" and math.isfinite(values[0])
        },
        reference=Reference(others=reached[0], own=reached[1]),
        at_bound=any(
            abs(math.log(normal.deviation / prior.deviation)) > WIDEST_LOG - 1e-6
            for normal, prior in zip(reached, priors, strict=True)
        ),
    )


def fitted_normal(group: Group) -> Normal:
    """Return the normal fitted to a release, within what edges can be computed from."""
    mean = float(np.clip(group.means[0], -LARGEST_MEAN, LARGEST_MEAN))
    return Normal(mean, float(np.clip(group.deviations[0], *DEVIATIONS)))


def _groups(
    halves: tuple[Floats, Floats],
    noise: tuple[Floats, Floats],
    positives: Floats,
    units: int,
    cuts: Floats,
    priors: tuple[Prior, Prior],
) -> tuple[Group, Group]:
    return (
        decode_group(halves[0], noise[0], units - positives, cuts, priors[0]),
        decode_group(halves[1], noise[1], positives, cuts, priors[1]),
    )


def _pairs_together(groups: tuple[Group, Group]) -> float:
    """Return the share of pairs, one unit of each group, that lie in one leaf: their order is the fit's guess."""
    shares = [group.leaves[0] / group.leaves[0].sum() for group in groups]
    return float(shares[0] @ shares[1])


def _bootstrap(
    central: tuple[Group, Group],
    units: int,
    noise: tuple[Floats, Floats],
    class_noise: float,
    generator: np.random.Generator,
) -> tuple[tuple[Floats, Floats], Floats]:
    """Return halves of (2·DRAWS) releases that could have been, and the class counts that would go with them."""
    decoded = np.concatenate([group.leaves[0] for group in central])
    drawn = generator.multinomial(units, decoded / decoded.sum(), DRAWS).astype(np.float64)
    leaves = np.concatenate([drawn, np.tile(decoded, (DRAWS, 1))])
    others, own = np.split(leaves, 2, axis=1)
    halves = _noisy(halves_of(others), noise[0], generator), _noisy(halves_of(own), noise[1], generator)
    positives = own.sum(axis=1) + generator.normal(size=2 * DRAWS) * class_noise
    return halves, np.clip(positives, LEAST_SHARE * units, (1 - LEAST_SHARE) * units)


def _noisy(halves: Floats, noise: Floats, generator: np.random.Generator) -> Floats:
    noisy: Floats = halves + generator.normal(size=halves.shape) * noise
    return noisy


def _rates(halves: tuple[Floats, Floats], positives: Floats, units: int) -> dict[str, Floats]:
    negatives = units - positives
    caught = np.clip(positives / 2 + halves[1][:, 0], 0, positives)
    alarms = np.clip(negatives / 2 + halves[0][:, 0], 0, negatives)
    missed, spared = positives - caught, negatives - alarms
    called = caught + alarms
    confusion = np.stack([spared, alarms, missed, caught], axis=1).reshape(-1, 2, 2)
    of_matrix = {name: metric.of_confusion(confusion) for name, metric in METRICS.items() if metric.of_confusion}
    return {
        **of_matrix,
        "accuracy": np.clip(0.5 + (halves[1][:, 0] - halves[0][:, 0]) / units, 0, 1),
        "precision": _over(caught, called),
        "recall": caught / positives,
        "f1": _over(2 * caught, called + positives),
        "specificity": spared / negatives,
        "_caught": caught,
        "_spared": spared,
        "_positives": positives,
    }


def _over(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _smooth(cells: tuple[Floats, Floats], ends: Floats, units: int) -> dict[str, Floats]:
    others, own = cells
    x = (ends[:-1] + ends[1:]) / 2
    positive_loss = np.minimum(np.logaddexp(0, -x), MAX_LOSS)
    negative_loss = np.minimum(np.logaddexp(0, x), MAX_LOSS)
    confidence = 1 / (1 + np.exp(-np.minimum(np.abs(x), 700)))
    right = np.where(x >= 0, own, others)
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    gap = (right - (own + others) * confidence) @ (bins[:, None] == np.arange(CALIBRATION_BINS))
    return {
        "auc": auc_of(others, own),
        "loss": (own @ positive_loss + others @ negative_loss) / units,
        "ece": np.abs(gap).sum(axis=1) / units,
    }


def _metrics(
    draws: dict[str, Floats],
    units: int,
    cuts: Floats,
    cells: tuple[Floats, Floats],
    ends: Floats,
    *,
    is_seen: bool,
) -> Metrics:
    # Where the edges missed the scores, their spread would be the fit's invention.
    spread = rows_of((ends[:-1] + ends[1:]) / 2, cells[0][0], cells[1][0]) if is_seen else ()
    positives = round(float(draws["_positives"][0]))
    caught = min(round(float(draws["_caught"][0])), positives)
    spared = min(round(float(draws["_spared"][0])), units - positives)
    threshold = float(cuts[len(cuts) // 2])
    alarms = np.concatenate([[0.0], np.cumsum(cells[0][0, ::-1]) / cells[0][0].sum()])
    hits = np.concatenate([[0.0], np.cumsum(cells[1][0, ::-1]) / cells[1][0].sum()])
    return Metrics(
        **{name: float(draws[name][0]) for name in METRICS},
        records=units,
        auc_error_bound=0.0,
        threshold=1 / (1 + math.exp(-threshold)) if threshold > -700 else 0.0,  # noqa: PLR2004 - exp's own range
        confusion=((spared, units - positives - spared), (positives - caught, caught)),
        roc=tuple((min(float(x), 1.0), min(float(y), 1.0)) for x, y in zip(alarms, hits, strict=True)),
        scores=spread,
        **calibration_of(spread),
    )


def _intervals(
    draws: dict[str, Floats],
    observed: tuple[Floats, Floats],
    noise: tuple[Floats, Floats],
    positive: float,
    units: int,
    class_noise: float,
) -> dict[str, tuple[float, float]]:
    negative = units - positive
    wrong, right = observed[0][0], observed[1][0]
    root = noise[0][0] ** 2, noise[1][0] ** 2
    recall, specificity = 0.5 + right / positive, 0.5 - wrong / negative

    def variance(own: float, rate: float, count: float) -> float:
        return float(own + (rate - 0.5) ** 2 * class_noise**2) / count**2

    counted = {
        "accuracy": intervals.of_rate(0.5 + (right - wrong) / units, units, (root[0] + root[1]) / units**2),
        "recall": intervals.of_rate(recall, positive, variance(root[1], recall, positive)),
        "specificity": intervals.of_rate(specificity, negative, variance(root[0], specificity, negative)),
    }
    sampled = {
        name: intervals.of_draws(float(draws[name][0]), draws[name][1 : 1 + DRAWS], metric.low, metric.high)
        for name, metric in METRICS.items()
        if name not in counted and name not in NO_INTERVAL
    }
    return {**counted, **sampled}
