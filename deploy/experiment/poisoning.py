"""``confide experiment poisoning``: what one hospital that flips its labels costs; no proof and no bound prevents it.

A sum that is proved is of what hospitals committed to, and a clipped change is within its bound, whatever labels it was
trained on. So this is what such a hospital can do at least. It flips labels of its training and validation records;
test records keep theirs, so that figures say what the model does. The hospitals are those of ``confide experiment
baselines``: deployed agents and server in one process.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console

from client import own_results
from client.data.hospital_data import HospitalData, HospitalRecords
from common.config import Config, load_config
from common.config import replace as with_settings
from common.errors import ConfigError
from common.provenance import ROOT
from deploy.command import command, config_options, out_option
from deploy.datasets.datasets import DataSet
from deploy.demo.dealer import split
from deploy.experiment.baselines import FAMILY
from deploy.experiment.methods import MECHANISM_OF, Method, train_together
from deploy.experiment.places import hospital_data, obtained
from deploy.experiment.runner import Measures, RunGroup, Trial, run_for_table

TABLE = "poisoning.md"

FLIPPED = (0.0, 0.1, 0.5, 1.0)
"""The share of its labels that the first hospital flips."""

METHODS = (Method.FEDAVG, Method.DISTRIBUTED_DP)

EPSILON = 8.0

_BINARY = 2


@dataclass(frozen=True)
class Poisoner:
    """Trains with one hospital whose labels are flipped.

    Attributes:
        data: the whole data set, of two classes.
        cache: for frozen features.
        method: who trains, and under which privacy.
        share: of the first hospital's training and validation records.
    """

    data: DataSet
    cache: Path
    method: Method
    share: float

    def __call__(self, config: Config) -> Measures:
        """Return the last model's figures on the whole test part, and what an honest hospital's own file says.

        Returns:
            ``auc`` and ``accuracy``; ``own_auc`` and ``own_accuracy``, the mean over the honest hospitals of what each
            measures on its own test part; ``flipper_own_accuracy``, what the one that flips measures.
        """
        config = with_settings(config, privacy={"mode": MECHANISM_OF[self.method].mode}, evaluation={"exact": True})
        hands = split(
            self.data, config.experiment.num_clients, config.data, config.experiment.seed, config.training.batch_size
        )
        held = [hospital_data(self.data, hand) for hand in hands]
        held[0] = flipped(held[0], self.share, config.experiment.seed)
        with tempfile.TemporaryDirectory(prefix="confide-") as scratch:
            rounds = train_together(config, self.data, held, self.cache, Path(scratch))
            own = [
                own_results.read(Path(scratch) / f"hospital-{number}" / own_results.OWN_RESULTS_FILE)[-1]
                for number in range(1, len(held) + 1)
            ]
        return {
            "auc": rounds[-1].auc,
            "accuracy": rounds[-1].accuracy,
            "own_auc": mean(result.auc for result in own[1:]),
            "own_accuracy": mean(result.accuracy for result in own[1:]),
            "flipper_own_accuracy": own[0].accuracy,
        }


def flipped(held: HospitalData, share: float, seed: int) -> HospitalData:
    """Return a hospital's data with this share of its training and validation labels flipped; test labels stay."""
    source = np.random.default_rng([seed, round(1000 * share)])

    def flip(records: HospitalRecords) -> HospitalRecords:
        chosen = source.permutation(len(records.labels))[: round(share * len(records.labels))]
        labels: npt.NDArray[np.int64] = records.labels.copy()
        labels[chosen] = 1 - labels[chosen]
        return replace(records, labels=labels)

    return replace(held, train=flip(held.train), validation=flip(held.validation))


@command(
    "poisoning",
    "Measure what one hospital that flips its labels costs everybody's model.",
    "./confide experiment poisoning --seeds 3",
)
@click.option("--seeds", type=int, default=3, metavar="N", help="Repeat everything with N seeds.")
@out_option(ROOT / "runs" / "experiment-poisoning", "runs/experiment-poisoning", "Resumed if begun.")
@config_options()
def main(seeds: int, out: Path, config_file: Path, overrides: tuple[str, ...]) -> int:
    """Run the trials, or what is left of them."""
    config = load_config(config_file, ("evaluation.score_bins=512", *FAMILY.settings, *overrides))
    console = Console()
    data, folder = obtained(config, console), out.resolve()
    if len(data.classes) != _BINARY:
        raise ConfigError(f"labels are flipped in tasks of two classes alone, got {len(data.classes)}")
    run_for_table(plan(data, folder / "cache", config, range(1, seeds + 1)), folder, console, table, TABLE)
    return 0


def plan(data: DataSet, cache: Path, config: Config, seeds: Sequence[int]) -> tuple[Trial, ...]:
    """Return every trial, one seed after the other."""
    trials = []
    for seed in seeds:
        seeded = with_settings(config, experiment={"seed": seed})
        for method in METHODS:
            terms = with_settings(seeded, **dict(FAMILY.aim(method, EPSILON).sections)) if method.is_private else seeded
            chosen = with_settings(terms, privacy={"target_epsilon": EPSILON}) if method.is_private else terms
            trials += [
                Trial(
                    {"method": str(method), "epsilon": EPSILON if method.is_private else "", "flipped": share},
                    chosen,
                    Poisoner(data, cache, method, share),
                )
                for share in FLIPPED
            ]
    return tuple(trials)


def table(groups: Sequence[RunGroup]) -> str:
    """Return the trials as a table in Markdown."""
    lines = [
        "| training | flipped at 1 of 4 | AUC | accuracy | accuracy at honest hospitals | at the one that flips |",
        "|---|---|---|---|---|---|",
    ]
    for group in groups:
        method, epsilon, share = (group.labels[name] for name in ("method", "epsilon", "flipped"))
        shown = [group.measures[name] for name in ("auc", "accuracy", "own_accuracy", "flipper_own_accuracy")]
        figures = " | ".join(f"{each.value:.3f} ± {each.high - each.value:.3f}" for each in shown)
        named = f"{method}, ε = {epsilon:g}" if isinstance(epsilon, float) else method
        lines.append(f"| {named} | {float(share):.0%} | {figures} |")
    return "\n".join(lines) + "\n"
