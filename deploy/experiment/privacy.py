"""``confide experiment privacy``: what privacy costs, by where the noise is added: local, distributed, central.

Every trial of one ε takes the same number of steps at the same sample rate. So the modes differ in one thing: noise for
ε in each hospital's own steps (``local``), in the hospitals' sum (``distributed``), or on the union of their data at a
centre that all would have to trust (``central``).
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import click
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from common.config import Config, load_config, replace
from common.evaluation.metrics import HEADLINES
from common.files import replace_file
from common.privacy.mechanism import DistributedNoise, LocalNoise, mechanism_of
from deploy.command import CommaList, command, config_options, out_option
from deploy.experiment.places import obtained
from deploy.experiment.runner import RESULTS_FILE, TABLE_FILE, Labels, RunGroup, Trial, run_trials
from deploy.experiment.training import Laboratory
from deploy.results.intervals import Interval, over_runs
from deploy.results.plots import BLUE, GREEN, ORANGE, png, styled
from deploy.source_tree import ROOT

SETTING = (
    "model.name=scattering_linear",
    "experiment.rounds=100",
    "training.sample_rate=0.25",
    "training.learning_rate=2.0",
    "privacy.delta=1e-4",
)
"""The settings of all trials unless ``--set`` changes them: a linear model on fixed, public features. At ε = 1 on the
phantom, so that no private data was spent on choosing, 100 steps are better than 48 for two modes and as good for mode
``local``, and the learning rate is the best of 0.25, 0.5, 1, 2 and 4 for all three (for ``local`` no worse than 1)."""

CENTRAL = "central"
DISTRIBUTED = DistributedNoise.mode.value
LOCAL = LocalNoise.mode.value
MODES = (CENTRAL, DISTRIBUTED, LOCAL)
COLOURS = {CENTRAL: GREEN, DISTRIBUTED: BLUE, LOCAL: ORANGE}
AGAINST = (
    "ε holds: central, against whoever gets the model, but the centre sees every record; distributed, against the "
    "server too; local, against everyone outside the hospital."
)
SHOWN = (*HEADLINES, "spent")
RELEASED = ("released_auc", "released_accuracy", "accuracy_as_released")
"""What the run's own noisy counts say of the same models, and what the threshold from them is worth."""
PLOT_FILE = "auc-by-epsilon.png"
GAINS_FILE = "gains.csv"
APART = 1.03
"""The modes' points at one ε stand so much beside each other, so that no interval hides another."""


@command(
    "privacy",
    "Measure what privacy costs, by where the noise is added: in each hospital's own steps, in the hospitals' sum, or "
    "on the union of their data at a centre that all would have to trust.",
    "./confide experiment privacy --epsilons 1,3,8 --seeds 5",
)
@click.option("--epsilons", type=CommaList(float), default="1,3,8", metavar="E,...", help="What each may spend.")
@click.option("--seeds", type=int, default=5, metavar="N", help="Of the split, the sampling and the first model.")
@out_option(ROOT / "runs" / "experiment-privacy", "runs/experiment-privacy", "Resumed if begun.")
@config_options()
def main(epsilons: tuple[float, ...], seeds: int, out: Path, config_file: Path, overrides: tuple[str, ...]) -> int:
    """Run the experiment, or what is left of it, and show its table."""
    config = load_config(config_file, (*SETTING, *overrides))
    console = Console()
    data = obtained(config, console)
    laboratory = Laboratory(data, out.resolve())
    trials = plan(config, laboratory, epsilons, seeds)
    groups = run_trials(trials, laboratory.folder, lambda line: console.print(line, highlight=False, soft_wrap=True))
    meaning = epsilon_of(config)
    console.print(_table(groups, f"{data.name}, {config.experiment.num_clients} hospitals; {meaning}"))
    console.print(AGAINST, soft_wrap=True)
    replace_file(laboratory.folder / PLOT_FILE, png(draw(groups, data.name, meaning)))
    replace_file(laboratory.folder / GAINS_FILE, _gains(groups).encode())
    files = f"{TABLE_FILE}, {RESULTS_FILE}, {GAINS_FILE} and {PLOT_FILE}"
    console.print(f"{files} are in {laboratory.folder}", highlight=False, soft_wrap=True)
    return 0


def epsilon_of(config: Config) -> str:
    """Say what an ε of these trials is, without the adversary, which depends on the mode."""
    privacy = config.privacy
    return f"ε for each {privacy.unit} (zero-out) at δ={privacy.delta:g} ({privacy.accountant.upper()})"


def plan(config: Config, laboratory: Laboratory, epsilons: Sequence[float], seeds: int) -> list[Trial]:
    """Return the trials, all modes and ε of one seed before the next, so that an unfinished experiment compares too."""
    return [
        _trial(config, laboratory, mode, epsilon, seed)
        for seed in range(1, seeds + 1)
        for epsilon in epsilons
        for mode in MODES
    ]


def _trial(config: Config, laboratory: Laboratory, mode: str, epsilon: float, seed: int) -> Trial:
    seeded = replace(config, experiment={"seed": seed}, privacy={"target_epsilon": epsilon})
    labels: Labels = {"mode": mode, "epsilon": epsilon}
    if mode == CENTRAL:
        return Trial(labels, replace(seeded, privacy={"mode": DISTRIBUTED}), laboratory.train_centrally)
    moded = replace(seeded, privacy={"mode": mode})
    if not mechanism_of(moded).noise_in_sum:
        moded = _in_passes(moded)
    return Trial(labels, moded, laboratory.train_and_release)


def _in_passes(config: Config) -> Config:
    """Return the steps of mode ``distributed`` as rounds of one pass over a hospital's data each."""
    rounds = max(1, round(config.experiment.rounds * config.training.sample_rate))
    return replace(config, experiment={"rounds": rounds}, training={"local_epochs": 1})


def gain(groups: Sequence[RunGroup], mode: str, epsilon: float) -> Interval:
    """Return by how much mode ``distributed`` has a higher AUC than another mode at the same ε.

    Seed by seed, since trials of one seed have the split of the data in common; so the interval is one of paired
    differences, and narrower than the modes' own intervals suggest.
    """
    ours, theirs = (
        next(group for group in groups if group.labels == {"mode": each, "epsilon": epsilon})
        for each in (DISTRIBUTED, mode)
    )
    pairs = zip(ours.by_seed, theirs.by_seed, strict=True)
    return over_runs([one["auc"] - other["auc"] for one, other in pairs])


def _gains(groups: Sequence[RunGroup]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["over", "epsilon", "auc_gain", "auc_gain_low", "auc_gain_high"])
    for mode, epsilon in _others(groups):
        found = gain(groups, mode, epsilon)
        writer.writerow([mode, epsilon, *(f"{value:.5f}" for value in (found.value, found.low, found.high))])
    return text.getvalue()


def _others(groups: Sequence[RunGroup]) -> list[tuple[str, float]]:
    """Return mode and ε of every group but those of mode ``distributed``."""
    labels = [(str(group.labels["mode"]), float(group.labels["epsilon"])) for group in groups]
    return sorted(each for each in labels if each[0] != DISTRIBUTED)


@styled
def draw(groups: Sequence[RunGroup], data_set: str, meaning: str) -> Figure:
    """Draw AUC against ε, a line for each mode, with the intervals over the seeds.

    Args:
        groups: of all modes and ε.
        data_set: its name.
        meaning: what an ε is, for its axis.
    """
    figure = Figure()
    axes = figure.add_subplot()
    for mode in MODES:
        points = sorted(
            (
                (float(group.labels["epsilon"]), group.measures["auc"])
                for group in groups
                if group.labels["mode"] == mode
            ),
            key=lambda point: point[0],
        )
        values = [interval.value for _, interval in points]
        reach = [
            [max(0.0, interval.value - interval.low), max(0.0, interval.high - interval.value)]
            for _, interval in points
        ]
        axes.errorbar(
            [epsilon * APART ** MODES.index(mode) for epsilon, _ in points], values,
            yerr=list(zip(*reach, strict=True)), marker="o", capsize=4, color=COLOURS[mode], label=mode,
        )  # fmt: skip
    title = f"What privacy costs on {data_set}"
    axes.set(xscale="log", xlabel=meaning, ylabel="AUC on the pooled test parts", title=title)
    ticks = sorted({float(group.labels["epsilon"]) for group in groups})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.legend(title=f"noise; mean and 95 % interval of {groups[0].trials} seeds", loc="lower right")
    return figure


def _table(groups: Sequence[RunGroup], title: str) -> Table:
    table = Table(title=f"{title}: mean and 95 % interval over {groups[0].trials} seeds")
    for heading in ("mode", "ε", *SHOWN, *RELEASED, "distributed's AUC less this"):
        table.add_column(heading, justify="left" if heading == "mode" else "right")
    for group in sorted(
        groups, key=lambda group: (float(group.labels["epsilon"]), MODES.index(str(group.labels["mode"])))
    ):
        table.add_row(
            str(group.labels["mode"]),
            f"{group.labels['epsilon']:g}",
            *(str(group.measures[name]) for name in SHOWN),
            *(str(group.measures.get(name, "")) for name in RELEASED),
            _gain_shown(groups, str(group.labels["mode"]), float(group.labels["epsilon"])),
        )
    return table


def _gain_shown(groups: Sequence[RunGroup], mode: str, epsilon: float) -> str:
    return "" if mode == DISTRIBUTED else str(gain(groups, mode, epsilon))
