"""``confide dev bench alone``: what a run pays for saying whether joining paid, and how near the truth it says it.

The demo's recipe in mode ``local``, with noisy counts: without the comparison and with it, where hospitals' records are
alike and where they are not. Hospitals are the deployed agents and the server is the deployed one, in one process. What
a run tells is held against what its hospitals see at home, exactly and over all of them.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from client.own_results import OWN_RESULTS_FILE, AgainstAlone, read
from common.config import Config, load_config, replace
from common.privacy.mechanism import LocalNoise
from common.provenance import ROOT
from common.telemetry.events import Compared
from deploy.command import command, config_options, out_option
from deploy.datasets.datasets import DataSet
from deploy.demo.dealer import split
from deploy.demo.recipe import ALONE_SHARE, with_recipe
from deploy.experiment.methods import as_released, train_together
from deploy.experiment.places import hospital_data, obtained
from deploy.experiment.runner import Measures, RunGroup, Trial, run_for_table
from server.run import new_run_id

TABLE = "alone.md"
SPLITS: dict[str, dict[str, Any]] = {
    "IID": {"partition": "iid"},
    "Dirichlet 0.5": {"partition": "dirichlet", "dirichlet_alpha": 0.5},
}


@dataclass(frozen=True)
class Trainer:
    """Trains once, and measures what the run tells and what is true."""

    data: DataSet = field(repr=False)
    cache: Path

    def __call__(self, config: Config) -> Measures:
        """Return the last model's exact figures at the released threshold, and the gain as told and as it is."""
        hands = split(
            self.data, config.experiment.num_clients, config.data, config.experiment.seed, config.training.batch_size
        )
        held = [hospital_data(self.data, hand) for hand in hands]
        with tempfile.TemporaryDirectory(prefix="confide-") as scratch:
            folder, run_id, told = Path(scratch), new_run_id(), list[Compared]()
            rounds = train_together(config, self.data, held, self.cache, folder, run_id, compared=told.append)
            last = as_released(rounds[-1], config, self.data, self.cache, folder, run_id)
            own = [read(path)[-1].alone for path in sorted(folder.glob(f"*/{OWN_RESULTS_FILE}"))]
        found: dict[str, float] = {"auc": last.auc, "accuracy": last.accuracy, "epsilon_of_steps": last.epsilon}
        for compared in told:
            low, high = compared.interval
            there = gain_at_home([each for each in own if each is not None])
            found |= {"told": compared.accuracy, "low": low, "high": high, "true": there}
            found["covered"] = float(low <= there <= high)
        return found


def gain_at_home(own: Sequence[AgainstAlone]) -> float:
    """Return by how much the run's model is right more often, over all hospitals' test records, exactly."""
    records = sum(each.records for each in own)
    return sum(each.records * (each.together - each.alone) for each in own) / records


@command(
    "alone",
    "Measure what a run pays for saying whether joining paid, and how near the truth it says it.",
    "./confide dev bench alone --seeds 5",
)
@click.option("--seeds", type=click.IntRange(min=1), default=5, metavar="N", help="Repeat everything with N seeds.")
@out_option(ROOT / "runs" / "bench-alone", "runs/bench-alone", "Resumed if begun.")
@config_options()
def main(seeds: int, out: Path, config_file: Path, overrides: tuple[str, ...]) -> int:
    """Run the trials, or what is left of them."""
    config = with_recipe(load_config(config_file, overrides), overrides)
    console = Console()
    data, folder = obtained(config, console), out.resolve()
    run_for_table(plan(data, folder / "cache", config, range(1, seeds + 1)), folder, console, table, TABLE)
    return 0


def plan(data: DataSet, cache: Path, config: Config, seeds: Sequence[int]) -> tuple[Trial, ...]:
    """Return every trial, one seed after the other."""
    return tuple(
        Trial(
            {"split": name, "alone_share": share},
            replace(
                config, experiment={"seed": seed}, data=section,
                privacy={"mode": LocalNoise.mode.value, "alone_share": share},
            ),
            Trainer(data, cache),
        )
        for seed in seeds
        for name, section in SPLITS.items()
        for share in (0.0, ALONE_SHARE)
    )  # fmt: skip


def table(groups: Sequence[RunGroup]) -> str:
    """Return the trials as a table in Markdown: with the comparison each seed's gain, as it is and as it is told."""
    lines = [
        "| split | alone_share | ε of the run's steps | AUC | accuracy | gain at home → told, by seed | covered |",
        "|---|---|---|---|---|---|---|",
    ]
    for group in groups:
        told = [
            f"{seed['true']:+.3f} → {seed['told']:+.3f} ({seed['low']:+.3f} to {seed['high']:+.3f})"
            for seed in group.by_seed
            if "told" in seed
        ]
        covered = sum(seed.get("covered", 0.0) for seed in group.by_seed)
        named, of = group.labels, group.measures
        cells = [
            f"{named['split']} | {named['alone_share']:g} | {of['epsilon_of_steps'].value:.2f}",
            f"{of['auc']} | {of['accuracy']}",
            f"{'<br>'.join(told) or '–'} | {f'{covered:g} of {len(told)}' if told else '–'}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
