"""The plots of a run: how it learnt, what privacy it cost, and where the model errs."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.errors import RunError
from common.evaluation.metrics import HEADLINES, METRICS
from common.run.guarantee import Guarantee
from common.run.words import EXACT_COUNTS, RELATION, admitted
from common.telemetry.events import Evaluated, RoundDone, RunStarted
from deploy.results.calibration import Calibration
from deploy.results.history import RunHistory
from deploy.results.intervals import of_round, of_test

# Okabe and Ito's palette: readers with any colour vision can distinguish it.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK = "#CC79A7", "#56B4E9", "#000000"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY)  # vermilion is the budget's

styled = mpl.rc_context(fname=Path(__file__).with_name("plots.mplstyle"))
"""Decorates a function that draws."""

HOSPITALS_NAMED = len(SERIES)
"""The most lines with a colour each; more are drawn alike, with one entry in the legend."""

FEW_CLASSES = 5
"""The most cells a side that have room for large figures."""

_CURVES = tuple(
    (name, METRICS[name].heading, colour) for name, colour in zip(HEADLINES, (BLUE, ORANGE, GREEN), strict=True)
)

LEARNING_FILE = "learning.png"
PRIVACY_FILE = "privacy.png"
CONFUSION_FILE = "confusion.png"
ROC_FILE = "roc.png"
TIME_FILE = "time.png"
RELIABILITY_FILE = "reliability.png"


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
    tested = history.tested
    if tested is not None and tested.confusion:
        figures[CONFUSION_FILE] = confusion(history, tested, class_names)
    if tested is not None and tested.roc:
        figures[ROC_FILE] = roc(history, tested)
    figures[TIME_FILE] = time_by_part(history)
    return figures


@styled
def learning(history: RunHistory) -> Figure:
    """Draw accuracy, F1 and AUC of the global model by round, each with its interval; and the last on test records."""
    figure, axes = _figure(history.started, "How good the model is, by round", _about_figures(history.started))
    rounds = history.measured
    steps = [done.step for done in history.rounds]
    exact = history.started.config.evaluation.exact
    for index, (name, label, colour) in enumerate(_CURVES):
        values = [getattr(done, name) for done in rounds]
        if all(math.isnan(value) for value in values):
            continue
        # Side by side, or their intervals would cover each other.
        places = [done.step + 0.08 * (index - 1) for done in rounds]
        axes.errorbar(
            [done.step for done in rounds] if exact else places,
            values,
            yerr=_reach(rounds, name),
            marker="o",
            markersize=4,
            capsize=2,
            elinewidth=0.8,
            color=colour,
            label=f"{label} {of_round(rounds[-1])[name].short}",
        )
    if not exact and history.tested is not None:
        _draw_test(axes, history.tested, steps[-1] + 0.5)
    axes.set(xlabel="round", ylabel=_measured_on(history.started), ylim=(_floor(rounds), 1.01))
    _by_round(axes, steps, room=0.0 if exact or history.tested is None else 0.45)
    if rounds:
        title = f"after round {rounds[-1].step}"
        _legend(figure, axes, title)
    else:
        axes.text(0.5, 0.5, "no round's model was measured", ha="center", transform=axes.transAxes, color=VERMILION)
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
    axes.set(xlabel="round", ylabel="ε spent over all runs on the hospital's data, at its own δ")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.08)
    _by_round(axes, steps)
    _legend(figure, axes)
    return figure


@styled
def confusion(history: RunHistory, tested: Evaluated, class_names: Sequence[str] = ()) -> Figure:
    """Draw the confusion matrix of the last model: records, and their share of the true class as the shade."""
    matrix = tested.confusion
    names = list(class_names) or [str(label) for label in range(len(matrix))]
    figure, axes = _figure(history.started, f"True and predicted class, test, after round {tested.step}",
                           _about_counts(history.started))  # fmt: skip
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
def roc(history: RunHistory, tested: Evaluated) -> Figure:
    """Draw the share of the sick that the last model finds against the share of false alarms, at every threshold."""
    title = f"Receiver operating characteristic, test, after round {tested.step}"
    figure, axes = _figure(history.started, title, _about_counts(history.started))
    sure = of_test(tested)
    points = sorted({(0.0, 0.0), (1.0, 1.0), *(tested.roc or ())})
    axes.plot(*zip(*points, strict=True), color=BLUE, label=f"AUC {sure['auc']}")
    axes.plot((0, 1), (0, 1), color=BLACK, linestyle=":", linewidth=1, label="chance")
    found, spared = sure["recall"], sure["specificity"]
    axes.errorbar(
        1 - spared.value,
        found.value,
        xerr=None if math.isnan(spared.low) else [[spared.high - spared.value], [spared.value - spared.low]],
        yerr=None if math.isnan(found.low) else [[found.value - found.low], [found.high - found.value]],
        fmt="o",
        color=VERMILION,
        markersize=8,
        capsize=3,
        elinewidth=1,
        label="threshold, fixed on validation records",
    )
    axes.set(xlabel="false alarms among the healthy", ylabel="found among the sick", aspect="equal")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    _legend(figure, axes)
    return figure


@styled
def reliability(history: RunHistory, calibration: Calibration) -> Figure:
    """Draw what the last model says against what is seen on the test parts, without and with its temperature."""
    title = f"What a probability is worth, test, after round {history.rounds[-1].step}"
    figure, axes = _figure(history.started, title, _about_counts(history.started))
    axes.plot((0, 1), (0, 1), color=BLACK, linestyle=":", linewidth=1, label="as said")
    drawn = ((1.0, "as trained", calibration.before, ORANGE),
             (calibration.temperature, "with the temperature", calibration.after, BLUE))  # fmt: skip
    for temperature, label, error, colour in drawn:
        bins = calibration.spread.reliability(temperature)
        axes.plot([one.said for one in bins], [one.seen for one in bins], color=colour, linewidth=1.2,
                  label=f"{label}: ECE {error:.3f}")  # fmt: skip
        axes.scatter([one.said for one in bins], [one.seen for one in bins], color=colour,
                     s=[12 + 220 * one.share for one in bins])  # fmt: skip
    axes.set(xlabel="said: probability of the disease", ylabel="seen: share of the sick", aspect="equal")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    _legend(figure, axes, "size: how many")
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
        rounds = history.measured
        axes.plot([done.step for done in rounds], [done.auc for done in rounds],
                  color=colour, marker="o", markersize=3, alpha=0.7)  # fmt: skip
    for index, kind in enumerate(kinds):
        axes.plot([], [], color=SERIES[index % len(SERIES)], label=kind)
    parts = dict.fromkeys(_part(history.started) for history in histories)
    axes.set(xlabel="round", ylabel=f"AUC on the hospitals' pooled {' or '.join(parts)} parts")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _legend(figure, axes)
    return figure


@styled
def time_by_part(history: RunHistory) -> Figure:
    """Draw where the time of each round went."""
    figure, axes = _figure(history.started, "Where the time of a round went")
    steps = [done.step for done in history.rounds]
    floor = [0.0] * len(steps)
    parts = (("training", BLUE), ("moving", ORANGE), ("waiting", "#bbbbbb"))
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
        *admitted(started),
    ]
    figure.supxlabel("\n".join(below), fontsize=7.5, color="#555555", x=0.01, ha="left")
    return figure, axes


def _legend(figure: Figure, axes: Axes, title: str = "") -> None:
    """Put the legend beside the axes, where it hides no curve."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=8, title=title or None,
                  title_fontproperties={"weight": "bold", "size": 8})  # fmt: skip


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


def _part(started: RunStarted) -> str:
    return "test" if started.config.evaluation.exact else "validation"


def _measured_on(started: RunStarted) -> str:
    return f"{_part(started)}, after round r"


def _about_figures(started: RunStarted) -> str:
    """Say what stands behind the curve over the rounds."""
    if started.config.evaluation.exact:
        return EXACT_COUNTS
    return "bars: 95 %, sampling of records and privacy noise; diamonds: the last model on the test parts"


def _about_counts(started: RunStarted) -> str:
    """Say what stands behind counts of the test parts."""
    privacy = started.config.privacy
    if started.config.evaluation.exact:
        return EXACT_COUNTS
    return f"counts with privacy noise; ε for each test {privacy.unit.value} ({RELATION})"


def _reach(rounds: Sequence[RoundDone], name: str) -> list[list[float]]:
    """Return how far below and above its figure each interval reaches; nothing for a figure without interval."""
    sure = [of_round(done)[name] for done in rounds]
    told = [(one.value - one.low, one.high - one.value) for one in sure]
    return [[max(0.0, end) if math.isfinite(end) else 0.0 for end in ends] for ends in zip(*told, strict=True)]


def _draw_test(axes: Axes, tested: Evaluated, place: float) -> None:
    """Mark the last model's figures on the test parts beyond its round."""
    sure = of_test(tested)
    for index, (name, label, colour) in enumerate(_CURVES):
        if not sure[name].is_told:
            continue
        reach = [[max(0.0, sure[name].value - sure[name].low)], [max(0.0, sure[name].high - sure[name].value)]]
        has_ends = not math.isnan(sure[name].low)
        axes.errorbar(place + 0.08 * (index - 1), sure[name].value, yerr=reach if has_ends else None, fmt="D",
                      markersize=6, capsize=3, elinewidth=0.8, color=colour,
                      label=f"{label}, test {sure[name].short}")  # fmt: skip


def _by_round(axes: Axes, steps: Sequence[int], room: float = 0.0) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(steps[0] - 0.5, steps[-1] + 0.5 + room)


def _floor(rounds: Sequence[RoundDone]) -> float:
    """Return where the axis of a score begins: below the lowest one, at a multiple of 0.1."""
    scores = [
        end
        for done in rounds
        for name, _, _ in _CURVES
        for end in (getattr(done, name), done.intervals.get(name, (math.nan,))[0])
        if math.isfinite(end)
    ]
    return math.floor(min(scores, default=0.0) * 10 - 0.5) / 10 if min(scores, default=0.0) > 0.1 else 0.0  # noqa: PLR2004
