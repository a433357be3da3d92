"""The plots of studies; each file is whole or not there."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from common.evaluation.metrics import HEADLINES, METRICS
from common.files import replace_file
from common.telemetry.events import RoundDone
from deploy.experiment.methods import Method
from deploy.experiment.study import Outcomes, Study
from deploy.experiment.tables import finals, is_of
from deploy.results.intervals import over_runs
from deploy.results.plots import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, png, styled

COLOURS = {
    Method.CENTRAL: BLACK,
    Method.CENTRAL_DP: SKY,
    Method.ALONE: PURPLE,
    Method.FEDAVG: BLUE,
    Method.LOCAL_DP: ORANGE,
    Method.DISTRIBUTED_DP: GREEN,
}
"""Vermilion marks zero."""

TOGETHER = (Method.FEDAVG, Method.LOCAL_DP, Method.DISTRIBUTED_DP)

_PANEL = (4.2, 3.0)
"""The size of a panel in inches."""

_BAR = 0.26
"""The width of a bar, as a share of the distance between two hospitals."""


@styled
def draw_learning(study: Study, outcomes: Outcomes, splits: Sequence[str], path: Path) -> None:
    """Draw AUC, accuracy and F1 against rounds, a column for each split: the mean and the range over seeds."""
    figure = Figure(figsize=(_PANEL[0] * len(splits), _PANEL[1] * len(HEADLINES)), layout="constrained")
    panels = figure.subplots(len(HEADLINES), len(splits), sharex=True, sharey="row", squeeze=False)
    for column, split in enumerate(splits):
        panels[0][column].set_title(split)
        for method in Method:
            runs = _runs(outcomes, method, split)
            for row, score in enumerate(HEADLINES):
                _draw_mean(panels[row][column], runs, score, method)
    for row, score in enumerate(HEADLINES):
        panels[row][0].set_ylabel(METRICS[score].heading)
    for panel in panels[-1]:
        panel.set(xscale="log", xlabel="round")
        panel.xaxis.set_major_formatter(ScalarFormatter())  # A round is a whole number, not a power of ten.
    for panel in panels.ravel():
        panel.set_ylim(bottom=max(panel.get_ylim()[0], 0.5))
    _legend_below(figure, panels[0][0])
    _title(figure, study, outcomes, f"Learning by round; DP at ε = {_largest(outcomes):g}")
    replace_file(path, png(figure))


@styled
def draw_auc_by_epsilon(study: Study, outcomes: Outcomes, split: str, path: Path) -> None:
    """Draw what ε buys: final AUC against ε with intervals over seeds; without DP as level lines."""
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    epsilons = sorted({training.epsilon for training in outcomes if training.epsilon is not None})
    for method in (Method.CENTRAL, Method.FEDAVG):
        found = finals(outcomes, method, None, split)
        if found:
            level = over_runs([done.auc for done in found]).value
            style = "--" if method is Method.CENTRAL else ":"
            axes.axhline(level, color=COLOURS[method], linestyle=style, label=f"{method}, no DP: {level:.3f}")
    for method in (method for method in Method if method.is_private):
        points = [(epsilon, finals(outcomes, method, epsilon, split)) for epsilon in epsilons]
        intervals = [(epsilon, over_runs([done.auc for done in found])) for epsilon, found in points if found]
        if not intervals:
            continue
        reach = [[each.value - each.low for _, each in intervals], [each.high - each.value for _, each in intervals]]
        axes.errorbar(
            [epsilon for epsilon, _ in intervals], [each.value for _, each in intervals], np.nan_to_num(reach),
            color=COLOURS[method], marker="o", capsize=3, label=method,
        )  # fmt: skip
    axes.set(xscale="log", xlabel=_of_epsilon(outcomes), ylabel="AUC on the official test part")
    axes.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
    axes.minorticks_off()
    axes.legend(loc="lower right")
    _title(figure, study, outcomes, f"What privacy costs; hospitals {split}")
    replace_file(path, png(figure))


@styled
def draw_gain(study: Study, outcomes: Outcomes, splits: Sequence[str], path: Path) -> None:
    """Draw what each hospital gains over training alone: AUC of the common model less that of its own."""
    figure = Figure(figsize=(_PANEL[0] * len(splits), _PANEL[1] + 0.8), layout="constrained")
    panels = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for panel, split in zip(panels, splits, strict=True):
        hospitals = sorted({training.hospital for training in outcomes if training.method is Method.ALONE})
        for index, method in enumerate(TOGETHER):
            gains = [_gains(outcomes, method, split, hospital) for hospital in hospitals]
            places = np.array(hospitals) + (index - 1) * _BAR
            heights = [float(np.mean(each)) if each else math.nan for each in gains]
            panel.bar(places, heights, width=_BAR, color=COLOURS[method], label=method)
            for place, each in zip(places, gains, strict=True):
                panel.plot([place] * len(each), each, ".", color=BLACK, markersize=4)
        panel.axhline(0, color=VERMILION, linewidth=1)
        panel.set(title=split, xlabel="hospital", xticks=hospitals)
    panels[0].set_ylabel("AUC gained over training alone")
    _legend_below(figure, panels[0])
    title = f"What a hospital gains, dots are seeds; DP at ε = {_largest(outcomes):g}, alone without DP"
    _title(figure, study, outcomes, title)
    replace_file(path, png(figure))


def _gains(outcomes: Outcomes, method: Method, split: str, hospital: int) -> list[float]:
    """Return for each seed how much better the common model is than the one this hospital trained alone."""
    common = {
        training.config.experiment.seed: rounds[-1].auc
        for training, rounds in outcomes.items()
        if training.method is method and is_of(training, split) and training.epsilon in (None, _largest(outcomes))
    }
    own = {
        training.config.experiment.seed: rounds[-1].auc
        for training, rounds in outcomes.items()
        if training.method is Method.ALONE and training.split == split and training.hospital == hospital
    }
    return [common[seed] - own[seed] for seed in own if seed in common]


def _runs(outcomes: Outcomes, method: Method, split: str) -> list[tuple[RoundDone, ...]]:
    """Return the rounds of a method over seeds, at the largest ε where it has several."""
    return [
        rounds
        for training, rounds in outcomes.items()
        if training.method is method and is_of(training, split) and training.epsilon in (None, _largest(outcomes))
    ]


def _largest(outcomes: Outcomes) -> float:
    return max((training.epsilon for training in outcomes if training.epsilon is not None), default=math.nan)


def _draw_mean(panel: Axes, runs: Sequence[tuple[RoundDone, ...]], score: str, method: Method) -> None:
    if not runs:
        return
    values = np.array([[float(getattr(done, score)) for done in rounds] for rounds in runs])
    steps = [done.step for done in runs[0]]
    panel.plot(steps, values.mean(axis=0), color=COLOURS[method], label=method, linewidth=1.5)
    panel.fill_between(steps, values.min(axis=0), values.max(axis=0), color=COLOURS[method], alpha=0.15, linewidth=0)


def _of_epsilon(outcomes: Outcomes) -> str:
    privacy = next(iter(outcomes)).config.privacy
    return f"ε for each {privacy.unit} (zero-out, δ = {privacy.delta:g})"


def _legend_below(figure: Figure, panel: Axes) -> None:
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def _title(figure: Figure, study: Study, outcomes: Outcomes, title: str) -> None:
    config = next(iter(outcomes)).config
    seeds = len({training.config.experiment.seed for training in outcomes})
    source = f"{study.data.name}, {config.model.name}, {config.experiment.num_clients} hospitals, seeds: {seeds}"
    figure.suptitle(f"{title}\n{source}", x=0.01, ha="left", fontsize=11)
