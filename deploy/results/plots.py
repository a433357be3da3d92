"""The plots of a run: how it learnt, what privacy it cost, and where the model errs."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.errors import RunError
from common.events import RoundDone, RunStarted
from common.guarantee import Guarantee, caveats
from deploy.events import RunHistory

# Okabe and Ito's palette: told apart by readers with any colour vision.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK = "#CC79A7", "#56B4E9", "#000000"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY)  # vermilion is the budget's

styled = mpl.rc_context(fname=Path(__file__).with_name("plots.mplstyle"))
"""Decorates a function that draws."""

HOSPITALS_NAMED = len(SERIES)
"""More lines than this are drawn alike, and the legend speaks of them together."""

FEW_CLASSES = 5
"""So many cells a side have room for large figures."""

LEARNING_FILE = "learning.png"
PRIVACY_FILE = "privacy.png"
CONFUSION_FILE = "confusion.png"
ROC_FILE = "roc.png"
TIME_FILE = "time.png"


def plot_run(history: RunHistory, folder: Path, class_names: Sequence[str] = ()) -> tuple[Path, ...]:
    """Draw a run as PNG files in ``folder``; each names the data set and admits the run's caveats.

    Args:
        history: what happened; without a finished round nothing is drawn.
        folder: made when it does not exist.
        class_names: in the order of the labels; numbers where left out.

    Raises:
        RunError: the folder cannot be written.
    """
    if not history.rounds:
        return ()
    figures = figures_of_run(history, class_names)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(folder / name)
    except OSError as error:
        raise RunError(f"{folder} must be writable: {error.strerror}") from None
    return tuple(folder / name for name in figures)


def figures_of_run(history: RunHistory, class_names: Sequence[str] = ()) -> dict[str, Figure]:
    """Return the plots of a run with a finished round, by the name of their file."""
    figures = {LEARNING_FILE: learning(history), PRIVACY_FILE: privacy(history)}
    if history.rounds[-1].confusion:
        figures[CONFUSION_FILE] = confusion(history, class_names)
    if history.rounds[-1].roc:
        figures[ROC_FILE] = roc(history)
    figures[TIME_FILE] = time_by_part(history)
    return figures


@styled
def learning(history: RunHistory) -> Figure:
    """Draw accuracy, F1 and AUC of the global model by round."""
    figure, axes = _figure(history.started, "How good the model is, by round")
    steps = [done.step for done in history.rounds]
    for name, label, colour in (("auc", "AUC", BLUE), ("accuracy", "Accuracy", ORANGE), ("f1", "F1", GREEN)):
        values = [getattr(done, name) for done in history.rounds]
        axes.plot(steps, values, marker="o", markersize=4, color=colour, label=f"{label} {values[-1]:.3f}")
    axes.set(xlabel="round", ylabel="on the hospitals' pooled test parts", ylim=(_floor(history.rounds), 1.005))
    _by_round(axes, steps)
    axes.legend(loc="lower right", title=f"after round {steps[-1]}", title_fontproperties={"weight": "bold"})
    return figure


@styled
def privacy(history: RunHistory) -> Figure:
    """Draw what each hospital has spent by round, against its budget and the run's target."""
    guarantee = Guarantee.of(history.started.config)
    figure, axes = _figure(history.started, "Privacy spent, by round", guarantee.of_epsilon())
    steps = [done.step for done in history.rounds]
    hospitals = sorted({hospital for done in history.rounds for hospital in done.epsilon_spent})
    if guarantee.epsilon_target is None or not hospitals:
        axes.text(0.5, 0.5, "no differential privacy:\nε is not bounded", ha="center", va="center",
                  transform=axes.transAxes, fontsize=16, color=VERMILION)  # fmt: skip
        axes.set(xlabel="round", ylabel="ε", yticks=[])
        _by_round(axes, steps)
        return figure
    _spent_lines(axes, history.rounds, hospitals)
    axes.axhline(guarantee.epsilon_target, color=BLACK, linestyle=":", linewidth=1.5)
    axes.annotate(f"target of this run: ε = {guarantee.epsilon_target:g}", (steps[0], guarantee.epsilon_target),
                  textcoords="offset points", xytext=(2, 4), color=BLACK)  # fmt: skip
    axes.set(xlabel="round", ylabel="ε spent over all runs on the hospital's data")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.08)
    _by_round(axes, steps)
    axes.legend(loc="lower right")
    return figure


@styled
def confusion(history: RunHistory, class_names: Sequence[str] = ()) -> Figure:
    """Draw the confusion matrix of the last model: records, and their share of the true class as the shade."""
    matrix = history.rounds[-1].confusion
    names = list(class_names) or [str(label) for label in range(len(matrix))]
    figure, axes = _figure(history.started, f"True and predicted class, after round {history.rounds[-1].step}")
    shares = [[count / max(1, sum(row)) for count in row] for row in matrix]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for true, row in enumerate(matrix):
        for predicted, count in enumerate(row):
            share = shares[true][predicted]
            axes.text(predicted, true, f"{count}\n{share:.1%}", ha="center", va="center",
                      color="white" if share > 0.5 else BLACK, fontsize=13 if len(matrix) <= FEW_CLASSES else 8)  # noqa: PLR2004 # fmt: skip
    axes.set(xticks=range(len(names)), yticks=range(len(names)), xticklabels=names, yticklabels=names)
    axes.set(xlabel="predicted", ylabel="true")
    axes.grid(visible=False)
    return figure


@styled
def roc(history: RunHistory) -> Figure:
    """Draw how many of the sick the last model finds for how many false alarms, at every threshold."""
    last = history.rounds[-1]
    figure, axes = _figure(history.started, f"Receiver operating characteristic, after round {last.step}")
    points = sorted({(0.0, 0.0), (1.0, 1.0), *(last.roc or ())})
    axes.plot(*zip(*points, strict=True), color=BLUE, label=f"AUC {last.auc:.3f}")
    axes.plot((0, 1), (0, 1), color=BLACK, linestyle=":", linewidth=1, label="chance")
    axes.plot(1 - last.specificity, last.recall, "o", color=VERMILION, markersize=8, label="chosen threshold")
    axes.set(xlabel="false alarms among the healthy", ylabel="found among the sick", aspect="equal")
    axes.legend(loc="lower right")
    return figure


@styled
def auc_of_runs(histories: Sequence[RunHistory]) -> Figure:
    """Draw AUC by round of several runs in one picture; one colour for each task and data set."""
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.set_title("AUC by round, every run")
    kinds = list(dict.fromkeys(_source(history.started) for history in histories))
    for history in histories:
        colour = SERIES[kinds.index(_source(history.started)) % len(SERIES)]
        steps = [done.step for done in history.rounds]
        axes.plot(steps, [done.auc for done in history.rounds], color=colour, marker="o", markersize=3, alpha=0.7)
    for index, kind in enumerate(kinds):
        axes.plot([], [], color=SERIES[index % len(SERIES)], label=kind)
    axes.set(xlabel="round", ylabel="AUC on the hospitals' pooled test parts")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right")
    return figure


@styled
def time_by_part(history: RunHistory) -> Figure:
    """Draw where the time of each round went."""
    figure, axes = _figure(history.started, "Where the time of a round went")
    steps = [done.step for done in history.rounds]
    floor = [0.0] * len(steps)
    parts = (("training", BLUE), ("masking", GREEN), ("moving", ORANGE), ("waiting", "#bbbbbb"))
    for part, colour in parts:
        heights = [getattr(done.seconds_by_part, part) for done in history.rounds]
        axes.bar(steps, heights, bottom=floor, color=colour, label=f"{part} {sum(heights):.1f} s", width=0.8)
        floor = [low + height for low, height in zip(floor, heights, strict=True)]
    axes.set(xlabel="round", ylabel="seconds")
    _by_round(axes, steps)
    axes.legend(loc="upper center", ncols=len(parts), bbox_to_anchor=(0.5, 1.0))
    axes.set_ylim(0, max([1e-3, *floor]) * 1.25)  # room for the legend
    return figure


def _figure(started: RunStarted, title: str, note: str = "") -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    below = [
        f"{_source(started)}, {len(started.hospitals)} hospitals, run {started.run_id[:8]}",
        *([note] if note else []),
        *caveats(started.config, started.data_set),
    ]
    figure.supxlabel("\n".join(below), fontsize=7.5, color="#555555", x=0.01, ha="left")
    return figure, axes


def _source(started: RunStarted) -> str:
    return f"{started.task} on {started.data_set}"


def _spent_lines(axes: Axes, rounds: Sequence[RoundDone], hospitals: Sequence[str]) -> None:
    named = len(hospitals) <= HOSPITALS_NAMED
    for index, hospital in enumerate(hospitals):
        steps = [done.step for done in rounds if hospital in done.epsilon_spent]
        spent = [done.epsilon_spent[hospital] for done in rounds if hospital in done.epsilon_spent]
        colour = SERIES[index % len(SERIES)] if named else BLUE
        label = f"{hospital}: {spent[-1]:.2f}" if named else (f"{len(hospitals)} hospitals" if index == 0 else None)
        axes.plot(steps, spent, marker="o", markersize=3, color=colour, alpha=1 if named else 0.4, label=label)
    budgets = {value for done in rounds for value in done.epsilon_budget.values() if math.isfinite(value)}
    for budget in sorted(budgets):
        axes.axhline(budget, color=VERMILION, linewidth=1.5)
        axes.annotate(f"budget: ε = {budget:g}", (rounds[0].step, budget), textcoords="offset points",
                      xytext=(2, 4), color=VERMILION)  # fmt: skip


def _by_round(axes: Axes, steps: Sequence[int]) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(steps[0] - 0.5, steps[-1] + 0.5)


def _floor(rounds: Sequence[RoundDone]) -> float:
    """Return where the axis of a score begins: below the lowest one, at a multiple of 0.1."""
    scores = [value for done in rounds for value in (done.accuracy, done.f1, done.auc) if math.isfinite(value)]
    return math.floor(min(scores, default=0.0) * 10 - 0.5) / 10 if min(scores, default=0.0) > 0.1 else 0.0  # noqa: PLR2004
