"""Metrics of a task with several classes: decided rightly, agreement of grades, the confusion matrix, macro AUC.

What is a mean over units (accuracy, loss, the moments behind kappa) has an entry of its own: read off a noisy confusion
matrix of C² cells, accuracy's noise would be √C times, and kappa's about four times as large.

Macro AUC weighs a class with twenty units like one with two hundred, so noise can drown it; it is NaN where noise alone
would move it by more than ``LARGEST_AUC_NOISE``. So is kappa beyond ``LARGEST_KAPPA_NOISE``.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.evaluation import intervals
from common.evaluation.density import auc_of, boundaries, cells_of, decode_group, halves_of
from common.evaluation.layout import Layout, Numbers
from common.evaluation.measure_scores import DRAWS, LEAST_SHARE, fitted_normal, priors_of, tree_halves, tree_noise
from common.evaluation.metrics import METRICS, UNDEFINED, ClassFigures, Metrics, by_class
from common.evaluation.state import Measured, Reference
from common.evaluation.tree import LARGEST_LOSS
from common.task import TaskKind

Floats = NDArray[np.float64]

LARGEST_AUC_NOISE = 0.015
"""The largest noise with which macro AUC is shown. Above it intervals were too narrow: on RetinaMNIST they covered in
77 to 83 of 100 cases."""

LARGEST_KAPPA_NOISE = 0.35
"""The largest noise with which kappa is shown. Above it intervals fell short: with .44 on 120 records of RetinaMNIST
they covered in 91 of 100 cases, with .31 and less in 95 to 100."""

LARGEST_CLASS_AUC_NOISE = 0.05
"""The largest noise with which one class's AUC is shown, beside its interval; above it there is no telling."""

TELLING_DEVIATIONS = 3.0
"""Deviations of the noise that a number of units must reach before rates over them are shown. Below it their intervals
do not cover: of two units that noise made up, any model finds all or none."""

LEAST_KNOWN = 0.05
"""The smallest share of units of which a label is taken to be known."""

_PROJECTIONS = 30


@dataclass(frozen=True)
class _Draws:
    """What B releases say, the first of them the real one: (B, …) each."""

    counts: Floats
    numbers: dict[Numbers, Floats]
    confusion: Floats | None


def class_shares(
    layout: Layout, entries: Floats, units: int, deviation: float, known: tuple[float, ...] = ()
) -> tuple[tuple[float, ...], float]:
    """Return the share of each class (or label, or of class 1) that a release counted, and its noise.

    ``known`` are the shares of units of which each label is known; a label's share is then of those, and the noise
    that of a label which is known of every unit.
    """
    block = entries[layout.classes_start : layout.classes_start + layout.class_entries]
    if layout.kind in (TaskKind.BINARY, TaskKind.MULTILABEL):
        noise = deviation / (2 * layout.class_weight * units)
        share = 0.5 + block / (2 * layout.class_weight * units * (np.array(known) if known else 1.0))
        return tuple(float(one) for one in np.clip(share, LEAST_SHARE, 1 - LEAST_SHARE)), noise
    scale = _scale(layout, layout.class_weight) * units
    shares = _onto_simplex((1 / layout.classes + block / scale)[None], np.ones(1))[0]
    return tuple(float(one) for one in shares), deviation / scale


def known_shares(layout: Layout, entries: Floats, units: int) -> tuple[float, ...]:
    """Return the share of units of which each label is known; empty where that is all."""
    if not layout.known_weight:
        return ()
    share = 0.5 + entries[layout.known_start : layout.length] / (2 * layout.known_weight * units)
    return tuple(float(one) for one in np.clip(share, LEAST_KNOWN, 1.0))


def of_classes(
    layout: Layout,
    entries: Floats,
    units: int,
    deviation: float,
    edges: tuple[tuple[float, ...], ...],
    shares: tuple[float, ...],
    share_noise: float,
    references: tuple[Reference, ...],
    *,
    generator: np.random.Generator,
) -> tuple[Measured, tuple[Reference, ...]]:
    """Decode a release of several classes; returns its figures, and what its trees say of each score.

    Args:
        layout: of the release.
        entries: the sum.
        units: in the sum.
        deviation: of the noise in each entry.
        edges: that were asked about.
        shares: of each class.
        share_noise: deviation of the noise in each.
        references: of the release before; empty before any.
        generator: for the bootstrap.
    """
    counts = np.array(shares) * units
    seen = _numbers(layout, entries[None], units)
    confusion = _confusion(layout, entries[None], counts[None], seen[Numbers.RIGHT], units)
    first = _Draws(counts[None], seen, confusion)
    bootstrap = _bootstrap(layout, first, units, deviation, share_noise, generator)
    draws = _figures(layout, first, units)
    drawn = {name: np.concatenate([draws[name], values]) for name, values in _figures(layout, bootstrap, units).items()}
    found: tuple[Reference, ...] = ()
    areas: list[Floats] = []
    if layout.depth:
        areas, found = _areas(layout, entries, units, deviation, edges, counts, references, generator)
        drawn["auc"] = np.mean(areas, axis=0)
    each = _each(layout, first, bootstrap, areas)
    noise = {
        name: float(np.std(values[1 + DRAWS :], ddof=1))
        for name, values in drawn.items()
        if np.isfinite(values[1 + DRAWS :]).all()
    }
    for name, largest in (("auc", LARGEST_AUC_NOISE), ("kappa", LARGEST_KAPPA_NOISE)):
        if name in drawn and noise.get(name, math.inf) > largest:
            drawn[name] = np.full(1 + 2 * DRAWS, math.nan)
    metrics = Metrics(
        **{name: float(values[0]) for name, values in drawn.items()},
        records=units,
        auc_error_bound=0.0,
        threshold=math.nan,
        confusion=() if confusion is None else _whole(confusion[0], counts, units),
        roc=(),
    )
    return Measured(metrics, _intervals(layout, drawn, units, deviation), noise, each), found


def _intervals(
    layout: Layout, drawn: dict[str, Floats], units: int, deviation: float
) -> dict[str, tuple[float, float]]:
    weights = dict(layout.numbers)
    raw = float(drawn["accuracy"][0])
    ends = {"accuracy": intervals.of_rate(raw, units, (deviation / (2 * weights[Numbers.RIGHT] * units)) ** 2)}
    for name, values in drawn.items():
        if name in ends or not math.isfinite(values[0]):
            continue
        metric = METRICS[name]
        high = metric.high if math.isfinite(metric.high) else LARGEST_LOSS  # Where a unit's loss is clipped.
        ends[name] = intervals.of_draws(float(values[0]), values[1 : 1 + DRAWS], metric.low, high)
    return ends


def _scale(layout: Layout, weight: int) -> float:
    """Return what one unit more in a cell adds to the cell's entry, its row's mean left aside."""
    return weight * math.sqrt(layout.classes / (layout.classes - 1))


def _numbers(layout: Layout, entries: Floats, units: int) -> dict[Numbers, Floats]:
    """Return the mean of each number over units, (B,)."""
    return {
        number: entries[:, place] / (weight * units)
        for place, (number, weight) in enumerate(layout.numbers, start=layout.numbers_start)
    }


def _confusion(layout: Layout, entries: Floats, counts: Floats, right: Floats, units: int) -> Floats | None:
    """Return confusion matrices (B, C, C) of counts from 0 whose rows and diagonals add up as counted elsewhere."""
    if not layout.confusion:
        return None
    block = entries[:, layout.confusion_start : layout.confusion_start + layout.classes**2]
    cells = block.reshape(-1, layout.classes, layout.classes) / _scale(layout, layout.confusion)
    return _consistent(cells + counts[:, :, None] / layout.classes, counts, np.clip((1 + right) / 2, 0, 1) * units)


def _consistent(cells: Floats, counts: Floats, right: Floats) -> Floats:
    """Project onto rows that add up to ``counts`` and diagonals that add up to ``right``, by turns."""
    classes = cells.shape[1]
    diagonal = np.arange(classes)
    rows = counts.reshape(-1)
    for _ in range(_PROJECTIONS):
        missing = right - cells[:, diagonal, diagonal].sum(axis=1)
        cells[:, diagonal, diagonal] += missing[:, None] / classes
        cells = _onto_simplex(cells.reshape(-1, classes), rows).reshape(cells.shape)
    return cells


def _onto_simplex(rows: Floats, totals: Floats) -> Floats:
    """Return the nearest rows that are not negative and add up to ``totals`` (Duchi et al. 2008)."""
    ordered = -np.sort(-rows, axis=1)
    excess = (np.cumsum(ordered, axis=1) - totals[:, None]) / np.arange(1, rows.shape[1] + 1)
    last = (ordered - excess > 0).sum(axis=1)
    level = np.take_along_axis(excess, np.maximum(last - 1, 0)[:, None], axis=1)
    return np.maximum(rows - level, 0.0)


def _bootstrap(
    layout: Layout, first: _Draws, units: int, deviation: float, share_noise: float, generator: np.random.Generator
) -> _Draws:
    """Return DRAWS releases of drawn units with fresh noise, then DRAWS of the same units with fresh noise alone."""
    classes, both = layout.classes, 2 * DRAWS
    if first.confusion is None:
        truth, cells, measured = np.tile(first.counts, (both, 1)), None, np.zeros(0)
    else:
        measured = first.confusion[0]
        matrix = measured / max(measured.sum(), 1.0)
        drawn = generator.multinomial(units, matrix.ravel() / matrix.sum(), DRAWS).reshape(DRAWS, classes, classes)
        cells = np.concatenate([drawn.astype(np.float64), np.tile(measured, (DRAWS, 1, 1))])
        truth = cells.sum(axis=2)
    counts = _onto_simplex(
        truth + generator.normal(size=truth.shape) * share_noise * units, np.full(both, float(units))
    )
    numbers = {}
    for number, weight in layout.numbers:
        spread = _deviation_of(number, first, units)
        value = np.full(both, first.numbers[number][0])
        if cells is not None and number is not Numbers.LOSS:
            # Of drawn matrices, around what was measured: the measured numbers are better than the matrix's own.
            value = value + (cells - measured).reshape(both, -1) @ _values(number, classes).ravel() / units
        else:
            value[:DRAWS] += generator.normal(size=DRAWS) * spread
        numbers[number] = value + generator.normal(size=both) * deviation / (weight * units)
    if cells is not None:
        cells = cells + generator.normal(size=cells.shape) * deviation / _scale(layout, layout.confusion)
        cells = _consistent(cells, counts, np.clip((1 + numbers[Numbers.RIGHT]) / 2, 0, 1) * units)
    return _Draws(counts, numbers, cells)


def _values(number: Numbers, classes: int) -> Floats:
    """Return what a unit of each cell, truth by row, adds to a number."""
    truth, decided = np.meshgrid(np.arange(classes), np.arange(classes), indexing="ij")
    grade = 2 * decided / (classes - 1) - 1
    of = {
        Numbers.RIGHT: np.where(truth == decided, 1.0, -1.0),
        Numbers.AGREEMENT: 1 - 2 * ((truth - decided) / (classes - 1)) ** 2,
        Numbers.GRADE: grade,
        Numbers.GRADE_SQUARED: 2 * grade**2 - 1,
    }
    return of[number]


def _deviation_of(number: Numbers, first: _Draws, units: int) -> float:
    """Return the sampling deviation of a number's mean where no matrix was counted to draw it from.

    A number of given mean varies most where it takes its two ends alone; a loss varies about as an exponential does.
    """
    mean = float(np.clip(first.numbers[number][0], -1, 1))
    spread = 1 + mean if number is Numbers.LOSS else math.sqrt(1 - mean**2)
    return spread / math.sqrt(units)


def _figures(layout: Layout, draws: _Draws, units: int) -> dict[str, Floats]:
    size = len(draws.counts)
    figures = {name: np.full(size, value) for name, value in UNDEFINED.items()}
    if draws.confusion is not None:
        figures.update({name: _of_matrix(name, draws.confusion) for name in METRICS})
    figures["accuracy"] = np.clip((1 + draws.numbers[Numbers.RIGHT]) / 2, 0, 1)
    if Numbers.LOSS in draws.numbers:
        figures["loss"] = np.clip((1 + draws.numbers[Numbers.LOSS]) / 2, 0, 1) * LARGEST_LOSS
    if layout.kind is TaskKind.ORDINAL:
        figures["kappa"] = _kappa(draws.counts / units, draws.numbers)
    return figures


def _of_matrix(name: str, confusion: Floats) -> Floats:
    """Return a metric of confusion matrices, (B,): NaN where a matrix does not give it."""
    metric = METRICS[name]
    if metric.of_confusion is None:
        return np.full(len(confusion), math.nan)
    return np.clip(metric.of_confusion(confusion), metric.low, metric.high)


def _kappa(shares: Floats, numbers: dict[Numbers, Floats]) -> Floats:
    """Return quadratic kappa from moments: 1 - E(y-d)² / (Ey² + Ed² - 2 Ey Ed), grades on a scale from -1 to 1."""
    grades = np.linspace(-1, 1, shares.shape[1])
    true_mean, true_square = shares @ grades, shares @ grades**2
    mean = np.clip(numbers[Numbers.GRADE], -1, 1)
    square = np.clip((1 + numbers[Numbers.GRADE_SQUARED]) / 2, mean**2, 1)
    apart = np.clip(2 * (1 - numbers[Numbers.AGREEMENT]), 0, 4)
    by_chance = true_square + square - 2 * true_mean * mean
    return np.clip(1 - apart / np.maximum(by_chance, 0.01), -1, 1)


def _each(layout: Layout, first: _Draws, bootstrap: _Draws, areas: list[Floats]) -> tuple[ClassFigures, ...]:
    """Return each class's figures; none where no confusion matrix was counted."""
    if first.confusion is None or bootstrap.confusion is None:
        return ()
    matrices = np.concatenate([first.confusion, bootstrap.confusion])
    right, called, true, total = by_class(matrices)
    draws = {
        "support": true,
        "called": called,
        "recall": _over(right, true),
        "specificity": _over(total - true - called + right, total - true),
        "precision": _over(right, called),
    }
    return tuple(
        _of_class({name: values[:, place] for name, values in draws.items()}, areas[place] if areas else None)
        for place in range(layout.classes)
    )


def _of_class(draws: dict[str, Floats], area: Floats | None) -> ClassFigures:
    noise = {name: float(np.std(values[1 + DRAWS :], ddof=1)) for name, values in draws.items()}
    if area is not None and (spread := float(np.std(area[1 + DRAWS :], ddof=1))) <= LARGEST_CLASS_AUC_NOISE:
        draws, noise = {**draws, "auc": area}, {**noise, "auc": spread}
    counts = ("support", "called")
    least = {name: TELLING_DEVIATIONS * noise[name] for name in counts}
    untold = {
        name
        for name, count in (("recall", "support"), ("auc", "support"), ("precision", "called"))
        if float(draws[count][0]) < max(least[count], 1.0)
    }
    draws = {name: values for name, values in draws.items() if name not in untold}
    noise = {name: spread for name, spread in noise.items() if name not in untold}
    return ClassFigures(
        **{
            **dict.fromkeys(("auc", "recall", "precision"), math.nan),
            **{name: float(values[0]) for name, values in draws.items()},
        },
        intervals={
            name: intervals.of_draws(float(values[0]), values[1 : 1 + DRAWS], 0.0, 1.0)
            for name, values in draws.items()
            if name not in counts
        },
        noise=noise,
    )


def _over(part: Floats, whole: Floats) -> Floats:
    return np.clip(np.divide(part, whole, out=np.zeros_like(part), where=whole > 0), 0, 1)


def _areas(
    layout: Layout,
    entries: Floats,
    units: int,
    deviation: float,
    edges: tuple[tuple[float, ...], ...],
    counts: Floats,
    references: tuple[Reference, ...],
    generator: np.random.Generator,
) -> tuple[list[Floats], tuple[Reference, ...]]:
    """Return each class's AUC against the rest, (1 + 2·DRAWS,), and what each score is distributed like."""
    draws = 1 + 2 * DRAWS
    areas, found = [], []
    noise = tree_noise(layout.others, deviation), tree_noise(layout.own, deviation)
    for tree in range(layout.trees):
        observed = tree_halves(layout, entries[tree * layout.tree_length : (tree + 1) * layout.tree_length])
        cuts = np.array(edges[tree])
        priors = priors_of(references[tree] if references else None)
        own_units = float(np.clip(counts[tree], LEAST_SHARE * units, (1 - LEAST_SHARE) * units))
        groups = []
        for halves, spread, prior, size in zip(observed, noise, priors, (units - own_units, own_units), strict=True):
            leaves = decode_group(halves[None], spread, np.array([size]), cuts, prior).leaves[0]
            drawn = generator.multinomial(round(size), leaves / leaves.sum(), DRAWS).astype(np.float64)
            again = halves_of(np.concatenate([drawn, np.tile(leaves, (DRAWS, 1))]))
            again += generator.normal(size=again.shape) * spread
            groups.append(
                decode_group(np.concatenate([halves[None], again]), spread, np.full(draws, size), cuts, prior)
            )
        others, own = groups
        ends = boundaries(cuts, others, own)
        areas.append(auc_of(cells_of(others, cuts, ends), cells_of(own, cuts, ends)))
        found.append(Reference(others=fitted_normal(others), own=fitted_normal(own)))
    return areas, tuple(found)


def _whole(confusion: Floats, counts: Floats, units: int) -> tuple[tuple[int, ...], ...]:
    """Return whole numbers near a matrix that add up to ``units``, row by row near ``counts``."""
    rows = _apportion(counts, units)
    return tuple(
        tuple(int(cell) for cell in _apportion(row, total)) for row, total in zip(confusion, rows, strict=True)
    )


def _apportion(parts: Floats, total: int) -> NDArray[np.int64]:
    """Return whole numbers proportional to ``parts`` that add up to ``total``, by largest remainders."""
    scale = parts.sum()
    exact = parts * (total / scale) if scale > 0 else np.full(len(parts), total / len(parts))
    whole: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    order = np.argsort(whole - exact, kind="stable")
    whole[order[: int(total - whole.sum())]] += 1
    return whole
