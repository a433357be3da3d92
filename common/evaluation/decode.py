"""From a noisy sum to what a person reads: metrics with intervals, and what the next release should ask.

Everything here is post-processing of sums that hospitals released: it costs no privacy, and whoever has the sums gets
the same figures. Rates are read off the sum's own entries, unbiased and with known noise. AUC, log loss and calibration
come from one smooth density of the scores for each class (:mod:`common.evaluation.density`), and so do the threshold
and the edges that the next release asks about: where the two fitted normals err equally, and quantiles around it.
"""

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from common.errors import RunError
from common.evaluation import intervals
from common.evaluation.density import mixture_quantiles, mixture_share
from common.evaluation.layout import Layout
from common.evaluation.measure_classes import TELLING_DEVIATIONS, class_shares, known_shares, of_classes
from common.evaluation.measure_scores import DRAWS, LEAST_SHARE, NO_INTERVAL, ClassCount, ScoreFigures, of_score
from common.evaluation.metrics import METRICS, OF_A_CLASS, UNDEFINED, ClassFigures, Metrics
from common.evaluation.plan import EvaluationPlan, Release, ReleaseKind
from common.evaluation.question import Question
from common.evaluation.state import EvaluationState, Measured, Reference
from common.evaluation.tree import asked
from common.task import TaskKind

Floats = NDArray[np.float64]

LEVELS = {1: (0.5,), 2: (0.35, 0.5, 0.65), 3: (0.2, 0.35, 0.43, 0.5, 0.57, 0.65, 0.8)}
"""Depth to the positions of the edges around the threshold, as quantiles; the threshold is at one half."""

FIRST_EDGES = {2: (-4.0, 0.0, 4.0), 3: (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)}
"""Depth to the edges that are asked about before any score was counted."""

MIDDLE = 0.5
LARGEST_EDGE = 1e6
_CLOSEST = 1e-6

_KNOWN_NOISE = math.sqrt(1.25)
"""By how much a share of the units of which a label is known is noisier for not knowing their number exactly: both are
counted with one weight, and the share lies within 1/2 of the middle."""


def next_question(plan: EvaluationPlan, release: Release, state: EvaluationState) -> Question:
    """Return what to ask in a release, given what earlier ones showed.

    The root of each tree is the decision threshold. It is right to ask anything: the norm of what a unit adds is the
    same for all edges.
    """
    layout = plan.layout(release)
    edges = tuple(
        _edges(layout.depth, state.references[tree] if state.references else None)
        for tree in range(layout.trees if layout.depth else 0)
    )
    return Question(release.number, edges)


def decode(
    plan: EvaluationPlan,
    release: Release,
    summed: NDArray[np.int64],
    units: int,
    variance: float,
    state: EvaluationState,
    question: Question,
) -> tuple[Measured, EvaluationState]:
    """Return what a release says, and what is known after it.

    Args:
        plan: of the run.
        release: that was asked.
        summed: (plan.length,) int64, the sum over hospitals, noise included.
        units: stated by the hospitals in the sum, together.
        variance: of the noise in each entry: ``share_variance(cohort)`` × hospitals in the sum.
        state: before it.
        question: that was asked.

    Returns:
        The figures, and the state for the releases after it.

    Raises:
        RunError: sum, units or question are not of this release.
    """
    layout = asked(plan, question)
    if question.release != release.number or any(np.diff(edges).min() <= 0 for edges in question.edges):
        raise RunError(f"the question of release {release.number} must have ascending edges; ask with next_question")
    if summed.shape != (plan.length,) or units < 1 or not variance >= 0:
        raise RunError(
            f"a sum must have {plan.length} entries, of at least 1 unit, got shape {summed.shape} and {units} units"
        )
    entries = summed.astype(np.float64)
    deviation = max(math.sqrt(variance), 1.0)
    known = known_shares(layout, entries, units) or state.known
    counted = class_shares(layout, entries, units, deviation, known) if layout.class_weight else None
    if release.kind is ReleaseKind.CLASSES:
        shares, share_noise = counted or ((), 0.0)
        after = EvaluationState(shares, share_noise, state.references, known)
        return Measured(_unknown(units), {}, {}), after
    shares, share_noise = counted or ((state.shares, state.share_noise) if state.shares else _uniform(layout))
    generator = _generator(release, summed)
    if layout.kind in (TaskKind.MULTICLASS, TaskKind.ORDINAL):
        measured, references = of_classes(
            layout,
            entries,
            units,
            deviation,
            question.edges,
            shares,
            share_noise,
            state.references,
            generator=generator,
        )
        return measured, EvaluationState(state.shares, state.share_noise, references or state.references)
    counts = [
        ClassCount(share, share_noise * _KNOWN_NOISE / part if known else share_noise)
        for share, part in zip(shares, known or (1.0,) * len(shares), strict=True)
    ]
    figures = [
        of_score(
            layout,
            entries[tree * layout.tree_length : (tree + 1) * layout.tree_length],
            max(1, round(known[tree] * units)) if known else units,
            deviation,
            question.edges[tree],
            counts[tree],
            state.references[tree] if state.references else None,
            generator,
        )
        for tree in range(layout.trees)
    ]
    if layout.kind is TaskKind.BINARY:
        measured = _alone(figures[0])
    else:
        measured = _together(figures, [_sides_told(each.share, each.noise) for each in counts], units)
    references = tuple(figure.reference for figure in figures)
    return measured, EvaluationState(state.shares, state.share_noise, references, state.known)


def _edges(depth: int, reference: Reference | None) -> tuple[float, ...]:
    if reference is None:
        return FIRST_EDGES[depth]
    normals = tuple((normal.mean, normal.deviation) for normal in (reference.others, reference.own))
    threshold = reference.threshold
    centre = float(np.clip(mixture_share(np.array([threshold]), *normals)[0], 0.05, 0.95))
    levels = np.array(LEVELS[depth])
    edges = mixture_quantiles(
        np.where(levels <= MIDDLE, 2 * levels * centre, centre + (1 - centre) * (2 * levels - 1)), *normals
    )
    middle = len(edges) // 2
    # Where the centre was cut, its quantile is not the threshold; and no two edges may be one.
    spread = _CLOSEST * (reference.others.deviation + reference.own.deviation)
    away = spread * (np.arange(len(edges)) - middle)
    edges = np.where(away < 0, np.minimum(edges, threshold), np.maximum(edges, threshold))
    edges[middle] = threshold
    return tuple(float(edge) for edge in np.clip(edges + away, -LARGEST_EDGE, LARGEST_EDGE))


def _uniform(layout: Layout) -> tuple[tuple[float, ...], float]:
    """Return what is assumed where the class count's round failed, with a deviation that says how little it means."""
    several = layout.kind in (TaskKind.MULTICLASS, TaskKind.ORDINAL)
    return (1 / layout.classes if several else 0.5,) * layout.class_entries, 0.25


def _generator(release: Release, summed: NDArray[np.int64]) -> np.random.Generator:
    """Return the bootstrap's source of chance, a function of what is public: everyone prints the same interval."""
    digest = hashlib.sha256(release.number.to_bytes(8, "big") + summed.astype("<i8").tobytes()).digest()
    return np.random.default_rng(np.frombuffer(digest, "<u4"))


def _unknown(units: int) -> Metrics:
    return Metrics(**UNDEFINED, records=units, auc_error_bound=math.nan, threshold=math.nan, confusion=(), roc=())


def _alone(figure: ScoreFigures) -> Measured:
    return Measured(figure.metrics, figure.intervals, figure.noise, warnings=_bound_warning([figure]))


def _sides_told(share: float, share_noise: float) -> tuple[bool, bool]:
    """Return whether a label's units, and those without it, stand out from the noise in their number."""
    least = TELLING_DEVIATIONS * share_noise
    return share >= max(least, LEAST_SHARE * (1 + _CLOSEST)), 1 - share >= least


def _told(name: str, sides: tuple[bool, bool]) -> bool:
    """Return whether a figure of one label says anything: a rate over units that may not be there does not."""
    own, others = sides
    if name in ("recall", "precision", "f1"):
        return own
    return others if name == "specificity" else (own and others) or name not in ("auc", "kappa")


def _together(figures: list[ScoreFigures], sides: list[tuple[bool, bool]], units: int) -> Measured:
    """Return the means over the labels of which there are enough units to tell; NaN where there is none such.

    Labels of one unit go together, so their sampling errors are taken to be wholly correlated; their noise is not.
    """
    means: dict[str, float] = {}
    ends: dict[str, tuple[float, float]] = {}
    noise: dict[str, float] = {}
    for name, metric in METRICS.items():
        told = [figure for figure, side in zip(figures, sides, strict=True) if _told(name, side)]
        if not told:
            means[name] = math.nan
            continue
        draws = np.stack([figure.draws[name] for figure in told])
        value = means[name] = float(draws[:, 0].mean())
        if math.isnan(value):
            continue
        full, alone = draws[:, 1 : 1 + DRAWS], draws[:, 1 + DRAWS :]
        private = alone.var(axis=1, ddof=1)
        sampling = float(np.sqrt(np.maximum(full.var(axis=1, ddof=1) - private, 0)).mean())
        noise[name] = math.sqrt(float(private.sum())) / len(told)
        reach = intervals.Z * math.hypot(sampling, noise[name]) + abs(float(full.mean()) - value)
        if name not in NO_INTERVAL:
            ends[name] = max(metric.low, value - reach), min(metric.high, value + reach)
    each = tuple(_of_label(figure, side) for figure, side in zip(figures, sides, strict=True))
    overall = _unknown(units).model_copy(update={**means, "auc_error_bound": 0.0})
    return Measured(overall, ends, noise, each, _bound_warning(figures))


def _of_label(figure: ScoreFigures, sides: tuple[bool, bool]) -> ClassFigures:
    measured = figure.metrics
    shown = [name for name in OF_A_CLASS if _told(name, sides) and not math.isnan(getattr(measured, name))]
    (_spared, alarms), (missed, caught) = measured.confusion
    return ClassFigures(
        support=missed + caught,
        called=alarms + caught,
        **{name: getattr(measured, name) if name in shown else math.nan for name in OF_A_CLASS},
        threshold=measured.threshold,
        records=float(measured.records),
        intervals={name: figure.intervals[name] for name in shown},
        noise=_noise_of_counts(figure) | {name: figure.noise[name] for name in shown if name in figure.noise},
    )


def _noise_of_counts(figure: ScoreFigures) -> dict[str, float]:
    """Return the deviation that noise alone gives the numbers of units, from the second bootstrap."""
    positives, caught = figure.draws["_positives"], figure.draws["_caught"]
    called = caught + (figure.metrics.records - positives) - figure.draws["_spared"]
    return {
        "support": float(np.std(positives[1 + DRAWS :], ddof=1)),
        "called": float(np.std(called[1 + DRAWS :], ddof=1)),
    }


def _bound_warning(figures: list[ScoreFigures]) -> tuple[str, ...]:
    at_bound = [str(number) for number, figure in enumerate(figures) if figure.at_bound]
    if not at_bound:
        return ()
    warning = (
        f"scores {', '.join(at_bound)} spread far from what the release before saw, so AUC, loss and calibration are "
        f"uncertain; accuracy, sensitivity and specificity are not affected"
    )
    return (warning,)
