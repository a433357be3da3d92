"""What a person reads of each class, or of each label: a table with support, and loud lines where a class is missed.

A column is shown with two decimals and its 95 % interval where there is noise. A figure that noise would drown is a
dash, never a number.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from common.evaluation.metrics import METRICS, OF_A_CLASS, ClassFigures, metrics_of_kind
from common.task import TaskConfig, TaskKind
from common.telemetry.events import Evaluated
from deploy.results.history import RunHistory
from deploy.results.intervals import Interval

DEVIATIONS = 3.0
"""Deviations of the noise below which a number of decisions does not stand out from none."""

_NO_WORD = "–"
_HALF_A_UNIT = 0.5


@dataclass(frozen=True)
class ByClass:
    """A table, ready to print.

    Attributes:
        heading: of the section.
        columns: names of the columns.
        rows: cells, the name of a class first.
        lines: what must not be missed, a sentence each.
        sums: what the positive classes together say, or of how many units labels are known, a sentence each.
    """

    heading: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[str, ...]
    sums: tuple[str, ...] = ()


def by_class(history: RunHistory) -> ByClass | None:
    """Return the table of a run's last model on the test parts; None where there is none."""
    tested, terms = history.tested, history.started.terms
    if tested is None or not tested.each:
        return None
    several = terms.kind is TaskKind.MULTILABEL
    what = "label" if several else "grade" if terms.kind is TaskKind.ORDINAL else "class"
    columns: tuple[str, ...] = (what, "units", "prevalence", *(METRICS[name].label for name in OF_A_CLASS))
    rows = tuple(_row(name, figures, tested, terms) for name, figures in tested.each.items())
    if several:
        columns = (*columns, "threshold")
        thresholds = (_plain(figures.threshold, 3) for figures in tested.each.values())
        rows = tuple((*row, threshold) for row, threshold in zip(rows, thresholds, strict=True))
    return ByClass(f"Each {what}", columns, rows, missed(tested, what), _sums(tested, terms))


def by_class_lines(history: RunHistory) -> list[str]:
    """Return the table in 80 columns, with what must not be missed, for the end of a run."""
    found = by_class(history)
    if found is None or history.tested is None:
        return []
    lines = [f"  {found.columns[0]:<24.24} {'units':>9}  {'AUC':<22} sensitivity"]
    for row, figures in zip(found.rows, history.tested.each.values(), strict=True):
        cells = row[0], row[1], _rate(figures, "auc"), _rate(figures, "recall")
        lines.append(f"  {cells[0]:<24.24} {cells[1]:>9}  {cells[2]:<22} {cells[3]}")
    return [*lines, *(f"NOTE: {line}" for line in found.lines)]


def missed(tested: Evaluated, what: str) -> tuple[str, ...]:
    """Return a line that names every class that is never decided for, or too seldom to tell from never."""
    noise = {name: figures.noise.get("called", 0.0) for name, figures in tested.each.items()}
    names = [
        name for name, figures in tested.each.items() if figures.called < max(_HALF_A_UNIT, DEVIATIONS * noise[name])
    ]
    if not names:
        return ()
    most = max(noise[name] for name in names)
    how = f"never, or too seldom to stand out from the noise (±{1.96 * most:.0f} units)" if most else "never"
    plural = {"class": "classes"}.get(what, f"{what}s")
    whose = f"The {what} {names[0]} is" if len(names) == 1 else f"These {len(names)} {plural} are"
    listed = "" if len(names) == 1 else f": {', '.join(names)}"
    return (f"{whose} predicted {how}{listed}.",)


def shown_metrics(terms: TaskConfig) -> frozenset[str]:
    """Return the metrics that say something of a task; of a preset in an old file, all."""
    if terms.is_preset:
        return frozenset({*metrics_of_kind(TaskKind.ORDINAL)})
    return frozenset(metrics_of_kind(TaskKind(terms.kind)))


def _row(name: str, figures: ClassFigures, tested: Evaluated, terms: TaskConfig) -> tuple[str, ...]:
    mark = " (positive)" if name in terms.positive and terms.kind is not TaskKind.MULTILABEL else ""
    noise = 1.96 * figures.noise.get("support", 0.0)
    units = f"{figures.support:.0f} ±{noise:.0f}" if noise else f"{figures.support:.0f}"
    of_whom = tested.records if math.isnan(figures.records) else figures.records
    share = figures.support / of_whom if of_whom else math.nan
    return (name + mark, units, f"{_plain(100 * share, 0)} %", *(_rate(figures, rate) for rate in OF_A_CLASS))


def _rate(figures: ClassFigures, name: str) -> str:
    value = getattr(figures, name)
    low, high = figures.intervals.get(name, (math.nan, math.nan))
    noisy = bool(figures.noise)
    if math.isnan(value) or (noisy and high - low >= 1.0):  # From 0 to 1: it says nothing.
        return _NO_WORD
    return str(Interval(value, low, high, decimals=2 if noisy else 3))


def _plain(value: float, decimals: int) -> str:
    return _NO_WORD if math.isnan(value) else f"{value:.{decimals}f}"


def _sums(tested: Evaluated, terms: TaskConfig) -> tuple[str, ...]:
    """Say how well the positive classes together are told from the others, or of how many units labels are known."""
    sick = terms.sick
    known = [figures.records for figures in tested.each.values() if not math.isnan(figures.records)]
    if terms.leaves_labels_out and known:
        fewest = f"{'' if tested.exact else 'about '}{min(known):.0f}"
        return (f"A label is counted where it is known: of {fewest} to {max(known):.0f} of {tested.records} units.",)
    if terms.is_preset or terms.kind is TaskKind.MULTILABEL or not sick or len(tested.confusion) <= max(sick):
        return ()
    rows = dict(enumerate(tested.confusion))
    found, ill = _decided(rows, sick, sick)
    false, well = _decided(rows, tuple(place for place in rows if place not in sick), sick)
    if not ill or not well:
        return ()
    names = " or ".join(terms.classes[place] for place in sick)
    about = "" if tested.exact else "about "
    told = (
        f"Of the units that are {names}, {about}{100 * found / ill:.0f} % are decided to be one of these; of the "
        f"others, {about}{100 * (1 - false / well):.0f} % are decided to be none of these."
    )
    return (told,)


def _decided(rows: Mapping[int, tuple[int, ...]], truly: tuple[int, ...], so: tuple[int, ...]) -> tuple[int, int]:
    return sum(rows[place][called] for place in truly for called in so), sum(sum(rows[place]) for place in truly)
