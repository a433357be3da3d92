"""``confide dev bench cheats``: what the bound on a change costs in AUC, and what a cheat that is found leaves behind.

Mode ``local`` at ε = 8 by the recipe of ``confide experiment baselines``, on real images: without a bound, with one,
with one hospital that sends forty times its change until it is named, and with the other hospitals alone. Hospitals are
the deployed agents and the server is the deployed one, in one process.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
from rich.console import Console

from client.contribution import Contribution, Contributor
from client.data.hospital_data import HospitalData
from common.config import Config, load_config, replace
from common.privacy.mechanism import LocalNoise
from common.provenance import ROOT
from deploy.command import command, config_options, out_option
from deploy.datasets.datasets import DataSet
from deploy.demo.dealer import split
from deploy.experiment.baselines import FAMILY, LOCAL_STEPS
from deploy.experiment.methods import train_together
from deploy.experiment.places import hospital_data, obtained
from deploy.experiment.runner import Measures, RunGroup, Trial, run_for_table
from deploy.results.intervals import over_runs
from tests.support.garbles import SCALED_BY, Garble, scale

TABLE = "cheats.md"
EPSILON = 8.0
BOUND = 2.0


class Setting(StrEnum):
    """What is compared."""

    PROVED = "four honest hospitals, no bound"
    BOUNDED = "four honest hospitals, bound 2"
    CHEATED = "three honest and one that sends forty times its change, bound 2"
    HONEST_ALONE = "the three honest alone, bound 2"


PAIRS = ((Setting.BOUNDED, Setting.PROVED), (Setting.CHEATED, Setting.HONEST_ALONE))
"""Whose AUC is compared, seed by seed: the second is taken from the first."""


@dataclass(frozen=True)
class Trainer:
    """Trains once under one setting."""

    data: DataSet
    cache: Path
    setting: Setting

    def __call__(self, config: Config) -> Measures:
        """Return the last model's AUC and accuracy on the whole test part, its step, and whose sum it came from."""
        hands = split(
            self.data, config.experiment.num_clients, config.data, config.experiment.seed, config.training.batch_size
        )
        held = [hospital_data(self.data, hand) for hand in hands]
        if self.setting is Setting.HONEST_ALONE:
            held = held[1:]
            config = replace(config, experiment={"num_clients": len(held)})
        bound = {} if self.setting is Setting.PROVED else {"norm_bound": BOUND, "disputes": True}
        config = replace(
            config,
            privacy={"mode": LocalNoise.mode.value},
            evaluation={"exact": True},
            aggregation={"proved_sums": True, **bound},
        )
        with tempfile.TemporaryDirectory(prefix="confide-") as scratch, _cheating(held[0], self.setting):
            # A round that the cheat voids has cost its ε, so the budget ends such a run a step early.
            rounds = train_together(config, self.data, held, self.cache, Path(scratch), may_end_early=True)
        last = rounds[-1]
        return {
            "auc": last.auc,
            "accuracy": last.accuracy,
            "steps": float(last.step),
            "hospitals_at_the_end": float(last.hospitals),
        }


@contextmanager
def _cheating(cheat: HospitalData, setting: Setting) -> Iterator[None]:
    """Let the hospital with these records scale its change before it commits to it."""
    if setting is not Setting.CHEATED:
        yield
        return
    with patch.object(Contributor, "contribute", _scaling(Contributor.contribute, cheat.fingerprint)):
        yield


def _scaling(contribute: Callable[..., Contribution], cheat: bytes) -> Callable[..., Contribution]:
    def scaled(self: Contributor, *arguments: Any, **named: Any) -> Contribution:  # noqa: ANN401 - as the real one
        made = contribute(self, *arguments, **named)
        if self._fingerprint == cheat:
            scale(made.vector, self.layout, SCALED_BY[Garble.SIGNED_SCALED])
        return made

    return scaled


@command(
    "cheats",
    "Measure what the bound on a change costs in AUC, and whether a cheat that was found has left anything behind.",
    "./confide dev bench cheats --seeds 5",
)
@click.option("--seeds", type=int, default=5, metavar="N", help="Repeat everything with N seeds.")
@out_option(ROOT / "runs" / "bench-cheats", "runs/bench-cheats", "Resumed if begun.")
@config_options()
def main(seeds: int, out: Path, config_file: Path, overrides: tuple[str, ...]) -> int:
    """Run the trials, or what is left of them."""
    config = load_config(config_file, ("evaluation.score_bins=512", *FAMILY.settings, *overrides))
    console = Console()
    data, folder = obtained(config, console), out.resolve()
    run_for_table(plan(data, folder / "cache", config, range(1, seeds + 1)), folder, console, table, TABLE)
    return 0


def plan(data: DataSet, cache: Path, config: Config, seeds: Sequence[int]) -> tuple[Trial, ...]:
    """Return every trial, one seed after the other."""
    terms = replace(replace(config, **LOCAL_STEPS[EPSILON]), privacy={"target_epsilon": EPSILON})
    return tuple(
        Trial(
            {"setting": str(setting)},
            replace(terms, experiment={"seed": seed}),
            Trainer(data, cache, setting),
        )
        for seed in seeds
        for setting in Setting
    )


def table(groups: Sequence[RunGroup]) -> str:
    """Return the trials as a table in Markdown, and the two differences, paired by seed."""
    lines = ["| mode `local`, ε = 8 | steps | hospitals at the end | AUC | accuracy |", "|---|---|---|---|---|"]
    by_setting = {str(group.labels["setting"]): group for group in groups}
    for setting, group in by_setting.items():
        auc, accuracy, steps, left = (
            group.measures[name] for name in ("auc", "accuracy", "steps", "hospitals_at_the_end")
        )
        lines.append(
            f"| {setting} | {steps.value:g} | {left.value:g} | {auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f}) "
            f"| {accuracy.value:.3f} ({accuracy.low:.3f} to {accuracy.high:.3f}) |"
        )
    lines.append("")
    for first, second in PAIRS:
        pairs = zip(by_setting[str(first)].by_seed, by_setting[str(second)].by_seed, strict=True)
        apart = over_runs([one["auc"] - other["auc"] for one, other in pairs])
        lines.append(f"AUC, {first}, less {second}: {apart.value:+.4f} ({apart.low:+.4f} to {apart.high:+.4f}).")
    return "\n".join(lines) + "\n"
