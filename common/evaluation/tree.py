"""What a hospital adds to a release: for each unit a vector of whole numbers whose norm nothing can raise.

**Guarantee.** Whatever the question, the model's scores and the labels hold, :func:`answer` is the sum of exactly
``stated_units`` vectors of L2 norm at most S, one for each unit and zero for an empty one; so replacing a unit by an
empty one changes it by at most S. That is checked on the very whole numbers that are added. Nothing here raises an
error, or takes another form, for what data or scores hold; a wrong question is refused from public terms alone.
"""

import hashlib
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from common.errors import RunError
from common.evaluation.against_alone import length_of as length_against_alone
from common.evaluation.against_alone import vectors_of as vectors_against_alone
from common.evaluation.layout import NORM_BOUND, Layout, Numbers, entry_of
from common.evaluation.plan import EvaluationPlan, Release
from common.evaluation.question import Question
from common.evaluation.site_spread import length_of as length_of_spread
from common.evaluation.site_spread import vector_of as vector_of_spread
from common.evaluation.statistics import class_bins, length_of, vectors_of
from common.task import TaskKind

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

LARGEST_LOSS = 4.0
"""The largest cross-entropy of a record, in nats, where it is summed with noise."""

_AT_ONCE = 1 << 20
"""The entries of vectors that are held together, 8 MiB; it also bounds the memory of tasks with many classes."""


def answer(
    plan: EvaluationPlan,
    question: Question,
    logits: NDArray[np.float32],
    labels: Integers,
    units: Integers,
    stated_units: int,
    seed: bytes,
) -> Integers:
    """Return a hospital's answer to a question, before noise.

    Args:
        plan: of the run.
        question: which release, and where scores are cut.
        logits: (records, classes) of the model asked about, of any values; not read where classes alone are counted.
            A record's warped copies are records of their own here, of its unit.
        labels: (records,) int64 in [0, classes); of a multi-label task (records, labels) of 0 and 1, and less than 0
            where a label is not known of the record.
        units: (records,) int64, which unit each record is of: all different, or a number for each patient, or for each
            record and its copies. A unit's vector is the mean over what it has, so that it adds one vector of norm at
            most S however many copies there are.
        stated_units: how many units count. If there are more, a fixed random subset counts; fewer are filled up with
            empty ones.
        seed: decides the subset: a secret of the hospital, the same for all releases of a run.

    Returns:
        (plan.length,) int64; entries beyond those of the release are 0.

    Raises:
        RunError: the question is not of the plan, or has another number of edges than its release.
    """
    layout = asked(plan, question)

    def vectors(rows: Integers) -> Integers:
        return _vectors(layout, question, logits[rows] if layout.depth or layout.numbers else logits, labels[rows])

    return _summed(plan, layout.length, vectors, units, stated_units, seed)


def answer_statistics(
    plan: EvaluationPlan, labels: Integers, traits: NDArray[np.uint8], units: Integers, stated_units: int, seed: bytes
) -> Integers:
    """Return a hospital's answer to who it trains on, before noise; the same guarantee as :func:`answer`.

    Args:
        plan: of the run, with a release of statistics.
        labels: as for :func:`answer`.
        traits: (records, len(TRAITS)) bins of :data:`common.evaluation.statistics.TRAITS`.
        units: as for :func:`answer`.
        stated_units: likewise.
        seed: likewise.

    Returns:
        (plan.length,) int64; entries beyond the tables are 0.
    """
    bins = class_bins(plan.kind, plan.classes)
    held = labels if labels.ndim == 1 else np.minimum((labels == 1).sum(axis=1), bins - 1)

    def vectors(rows: Integers) -> Integers:
        return vectors_of(bins, held[rows], traits[rows])

    return _summed(plan, length_of(bins), vectors, units, stated_units, seed)


def answer_against_alone(
    plan: EvaluationPlan,
    decided: tuple[Integers, Integers],
    labels: Integers,
    units: Integers,
    stated_units: int,
    seed: bytes,
) -> Integers:
    """Return how often the run's model is right where a hospital's own is not, before noise; as :func:`answer`.

    Args:
        plan: of the run, with a comparison.
        decided: (records,) the class that the run's model decides for, and the hospital's own.
        labels: as for :func:`answer`.
        units: likewise.
        stated_units: likewise.
        seed: likewise.

    Returns:
        (plan.length,) int64; entries beyond those of the comparison are 0.
    """
    together, alone = decided

    def vectors(rows: Integers) -> Integers:
        return vectors_against_alone(plan.classes, labels[rows], together[rows], alone[rows])

    return _summed(plan, length_against_alone(plan.classes), vectors, units, stated_units, seed)


def answer_spread(
    plan: EvaluationPlan,
    logits: NDArray[np.float32],
    labels: Integers,
    units: Integers,
    stated_units: int,
    seed: bytes,
) -> Integers:
    """Return what a hospital adds to the spread of hospitals' own AUC, before noise.

    It is no sum over units. That one of them changes it by at most S all the same says ``docs/proofs/site-spread.md``.

    Args:
        plan: of the run, with a spread.
        logits: (records, 2) of the model asked about, of any values.
        labels: as for :func:`answer`.
        units: likewise.
        stated_units: likewise.
        seed: likewise.

    Returns:
        (plan.length,) int64; entries beyond those of the spread are 0.
    """
    counted = np.isin(units, _subset(np.unique(units), stated_units, seed))
    total = np.zeros(plan.length, np.int64)
    total[: length_of_spread()] = vector_of_spread(
        scores(plan.kind, logits[counted])[:, 0], labels[counted], units[counted]
    )
    return total


def _summed(
    plan: EvaluationPlan,
    length: int,
    vectors_of_rows: Callable[[Integers], Integers],
    units: Integers,
    stated_units: int,
    seed: bytes,
) -> Integers:
    """Return the sum over units of the mean of their records' vectors, (plan.length,), each of norm at most S."""
    everything = np.unique(units)
    chosen = _subset(everything, stated_units, seed)
    total = np.zeros(plan.length, np.int64)
    at_once = max(1, _AT_ONCE // length)
    order = np.argsort(units, kind="stable")
    ordered = units[order]
    starts = np.searchsorted(ordered, chosen, "left")
    ends = np.searchsorted(ordered, chosen, "right")
    for first in range(0, len(chosen), at_once):
        last = min(first + at_once, len(chosen))
        sizes = ends[first:last] - starts[first:last]
        spans = zip(starts[first:last], ends[first:last], strict=True)
        rows = np.concatenate([order[start:end] for start, end in spans])
        total[:length] += _within_norm(_means(vectors_of_rows(rows), sizes), plan.norm_bound).sum(axis=0)
    return total


def asked(plan: EvaluationPlan, question: Question) -> Layout:
    """Return the blocks that a question asks for.

    Raises:
        RunError: the question is not of the plan, or has another number of edges than its release.
    """
    if not 0 <= question.release < len(plan.releases):
        raise RunError(
            f"a question must be one of the plan's {len(plan.releases)} releases, got number {question.release}; "
            f"server and hospitals must run the same version"
        )
    release = plan.releases[question.release]
    require_edges(plan, release, question)
    return plan.layout(release)


def require_edges(plan: EvaluationPlan, release: Release, question: Question) -> None:
    """Refuse a question that cuts other scores than its release has, or in another number of pieces.

    Raises:
        RunError: says how many edges there must be.
    """
    due, got = plan.edges(release), tuple(len(edges) for edges in question.edges)
    if got != due:
        raise RunError(
            f"release {release.number} must have edges of {due} for its scores, got {got}; "
            f"server and hospitals must run the same version"
        )


def decisions(kind: TaskKind, logits: NDArray[np.float32], threshold: float | None) -> Integers:
    """Return the class that a model decides for, (records,).

    Of two classes a threshold in log-odds decides; the likeliest class where none is given, and where there are more.
    """
    if kind is not TaskKind.BINARY or threshold is None:
        return _decided(logits)
    with np.errstate(invalid="ignore"):
        called: Integers = (scores(kind, logits)[:, 0] >= threshold).astype(np.int64)
    return called


def scores(kind: TaskKind, logits: NDArray[np.float32]) -> Floats:
    """Return each score on the scale of log-odds, (records, scores) float64; any values, NaN included."""
    exact = np.asarray(logits, np.float64)
    with np.errstate(all="ignore"):
        if kind is TaskKind.MULTILABEL:
            return exact
        if kind is TaskKind.BINARY:
            return exact[:, 1:2] - exact[:, 0:1]
        columns = [exact[:, own] - _log_sum_exp(np.delete(exact, own, axis=1)) for own in range(exact.shape[1])]
        return np.stack(columns, axis=1)


def _subset(everything: Integers, stated_units: int, seed: bytes) -> Integers:
    if len(everything) <= stated_units:
        return everything
    generator = np.random.default_rng(np.frombuffer(hashlib.sha256(seed).digest(), np.uint32))
    return np.sort(generator.permutation(everything)[:stated_units])


def _vectors(layout: Layout, question: Question, logits: NDArray[np.float32], labels: Integers) -> Integers:
    """Return each record's vector, (records, layout.length)."""
    records = len(labels)
    vectors = np.zeros((records, layout.length), np.int64)
    row = np.arange(records)
    if layout.depth:
        for tree, score in enumerate(scores(layout.kind, logits).T):
            own = _is_own(layout, labels, tree)
            known = labels[:, tree] >= 0 if layout.kind is TaskKind.MULTILABEL else np.ones(records, np.bool_)
            # Edges may come in any order, and a score may be undefined: that is no number of edges passed, so leftmost.
            with np.errstate(invalid="ignore"):
                leaf = (score[:, None] >= np.asarray(question.edges[tree])).sum(axis=1)
            for level in range(layout.depth):
                place = leaf >> (layout.depth - level)
                right = (leaf >> (layout.depth - level - 1)) & 1
                weight = np.where(own, layout.own[level], layout.others[level])
                entry = np.where(own, entry_of(level, 0, own=True), entry_of(level, 0, own=False)) + place
                vectors[row, tree * layout.tree_length + entry] = (2 * right - 1) * weight * known
    if layout.numbers:
        _add_numbers(vectors, layout, logits, labels)
    if layout.confusion:
        decided = _decided(logits)
        known = (labels >= 0) & (labels < layout.classes)
        rows = _centred(layout.classes, layout.confusion)[decided]
        columns = layout.confusion_start + np.clip(labels, 0, layout.classes - 1)[:, None] * layout.classes
        vectors[row[:, None], columns + np.arange(layout.classes)] = rows * known[:, None]
    if layout.class_weight:
        vectors[:, layout.classes_start : layout.known_start] = _class_block(layout, labels)
    if layout.known_weight:
        vectors[:, layout.known_start :] = (2 * (labels >= 0).astype(np.int64) - 1) * layout.known_weight
    return vectors


def _is_own(layout: Layout, labels: Integers, tree: int) -> NDArray[np.bool_]:
    if layout.kind is TaskKind.MULTILABEL:
        own: NDArray[np.bool_] = labels[:, tree] == 1
    else:
        own = labels == (1 if layout.kind is TaskKind.BINARY else tree)
    return own


def _add_numbers(vectors: Integers, layout: Layout, logits: NDArray[np.float32], labels: Integers) -> None:
    decided = _decided(logits)
    top = layout.classes - 1
    grade = 2 * decided / top - 1
    with np.errstate(all="ignore"):
        exact = np.asarray(logits, np.float64)
        known = (labels >= 0) & (labels <= top)
        own = exact[np.arange(len(labels)), np.clip(labels, 0, top)]
        loss = np.nan_to_num(_log_sum_exp(exact) - own, nan=LARGEST_LOSS, posinf=LARGEST_LOSS, neginf=0.0)
    values = {
        Numbers.RIGHT: np.where(decided == labels, 1.0, -1.0),
        Numbers.LOSS: 2 * np.clip(loss, 0, LARGEST_LOSS) / LARGEST_LOSS - 1,
        Numbers.AGREEMENT: 1 - 2 * ((np.clip(labels, 0, top) - decided) / top) ** 2,
        Numbers.GRADE: grade,
        Numbers.GRADE_SQUARED: 2 * grade**2 - 1,
    }
    for place, (number, weight) in enumerate(layout.numbers, start=layout.numbers_start):
        vectors[:, place] = np.trunc(values[number] * weight).astype(np.int64) * known


def _decided(logits: NDArray[np.float32]) -> Integers:
    """Return the most probable class; a score that is undefined is never it, unless all are."""
    decided: Integers = np.argmax(np.where(np.isnan(logits), -np.inf, logits), axis=1)
    return decided


def _class_block(layout: Layout, labels: Integers) -> Integers:
    signs: Integers = 2 * (labels == 1).astype(np.int64) - 1
    if layout.kind is TaskKind.BINARY:
        return signs[:, None] * layout.class_weight
    if layout.kind is TaskKind.MULTILABEL:
        return signs * layout.class_weight * (labels >= 0)
    known = (labels >= 0) & (labels < layout.classes)
    block: Integers = _centred(layout.classes, layout.class_weight)[np.clip(labels, 0, layout.classes - 1)]
    return block * known[:, None]


def _centred(classes: int, weight: int) -> Integers:
    """Return for each class its unit vector less the mean, of norm ``weight`` before its numbers are cut to whole."""
    unit = np.eye(classes) - 1 / classes
    return np.trunc(unit * weight * math.sqrt(classes / (classes - 1))).astype(np.int64)


def _means(vectors: Integers, sizes: Integers) -> Integers:
    """Return the mean vector of each unit in whole numbers, rounded down in size where rounding would pass a norm."""
    sums = np.add.reduceat(vectors, np.concatenate([[0], np.cumsum(sizes)[:-1]]), axis=0)
    mean = sums / sizes[:, None]
    rounded = np.rint(mean)
    beyond = (rounded * rounded).sum(axis=1) > NORM_BOUND**2
    return np.where(beyond[:, None], np.trunc(mean), rounded).astype(np.int64)


def _within_norm(vectors: Integers, bound: int) -> Integers:
    """Return the vectors with every one whose norm passes ``bound`` made zero: the guarantee rests on this alone."""
    within = (np.abs(vectors).max(axis=1) <= bound) & ((vectors * vectors).sum(axis=1) <= bound**2)
    kept: Integers = vectors * within[:, None]
    return kept


def _log_sum_exp(exact: Floats) -> Floats:
    largest = np.nan_to_num(exact.max(axis=1, initial=-np.inf), nan=0.0, posinf=0.0, neginf=0.0)
    summed: Floats = largest + np.log(np.exp(exact - largest[:, None]).sum(axis=1))
    return summed
