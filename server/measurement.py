"""When a run measures its model, what it asks hospitals for that, and what their sum says.

Two ways, one interface: by the run's evaluation plan under noise, or in every round by exact counts.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from common.config import RunDescription
from common.errors import RunError
from common.evaluation import EvaluationShape, Metrics, metrics
from common.evaluation.against_alone import Gain, read_gain
from common.evaluation.decode import decode, next_question
from common.evaluation.labels import figures_of_labels, labels_from_flat
from common.evaluation.metrics import ClassFigures, areas_of, class_figures
from common.evaluation.plan import WITHOUT_TREES, EvaluationPlan, Part, Release, ReleaseKind
from common.evaluation.question import Question
from common.evaluation.site_spread import SiteSpread, read_spread
from common.evaluation.state import EvaluationState
from common.evaluation.statistics import LABELS_HELD, Statistics, read_tables
from common.privacy.gaussian import gaussian_epsilon
from common.run.terms import evaluation_plan_of, release_mechanism
from common.run.vector import Tail, VectorLayout
from common.task import TaskKind
from server.progress import EvaluationProgress

PartName = Literal["test", "validation", "none"]


@dataclass(frozen=True)
class Reading:
    """What one round says about the model it started from.

    Attributes:
        part: whose records it was measured on; ``none`` when the round measured nothing.
        measured: None when there is nothing to say.
        intervals: by measure, at 95 %.
        noise: by measure, the standard deviation that privacy noise gives it.
        epsilon: what this run's evaluations have cost each record of ``part`` so far; NaN where counts are exact.
        statistics: who the run trains on, where that was asked.
        each: the figures of each class of several, or of each label; empty where the part does not tell.
        gain: the last model against hospitals' own, where that was asked.
        spread: how far hospitals' own AUC of the last model lie apart, where that was asked.
        units: of the records that were asked, as hospitals state them.
    """

    part: PartName = "none"
    measured: Metrics | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    noise: Mapping[str, float] = field(default_factory=dict)
    epsilon: float = math.nan
    statistics: Statistics | None = None
    each: tuple[ClassFigures, ...] = ()
    gain: Gain | None = None
    spread: SiteSpread | None = None
    units: int = 0


class Measurements(Protocol):
    """What a run still measures, and how."""

    exact: bool

    def before_training(self) -> Question | None:
        """Return what to ask about who is trained on; None where nothing is asked, or it is told already."""

    def while_training(self, step: int) -> Question | None:
        """Return what to ask about the model of ``step`` in the training round that starts from it."""

    def of_last_model(self, part: Part) -> Question | None:
        """Return what to ask about the run's last model on one part; None where nothing can be asked any more."""

    def against_alone(self) -> Question | None:
        """Return what to ask about the last model against hospitals' own; None where the run does not, or cannot."""

    def spread(self) -> Question | None:
        """Return what to ask about the last model at each hospital; None where the run does not, or it is told."""

    def read(self, tail: Tail, cohort: int, survivors: int, question: Question | None) -> Reading:
        """Return what a sum says, and learn from it what to ask next.

        Raises:
            RunError: no hospitals can have such counts.
        """

    def spent(self) -> None:
        """Note that hospitals have refused to answer the last question again."""

    def progress(self) -> EvaluationProgress | None:
        """Return what a checkpoint keeps; None where no plan is followed."""


def measurements_of(
    description: RunDescription, layout: VectorLayout, progress: EvaluationProgress | None
) -> "ExactMeasurements | PlannedMeasurements":
    """Return how a run measures its models, continued from ``progress`` of its checkpoint.

    Raises:
        RunError: the record of its evaluations cannot be read.
    """
    plan = evaluation_plan_of(description)
    if plan is None:
        return ExactMeasurements(layout)
    return PlannedMeasurements(description, plan, layout, progress)


class ExactMeasurements:
    """Exact counts of both parts in every round."""

    exact = True

    def __init__(self, layout: VectorLayout) -> None:
        self._layout = layout

    def before_training(self) -> Question | None:
        """See :class:`Measurements`."""
        return None

    def while_training(self, step: int) -> Question | None:  # noqa: ARG002 - counts come unasked
        """See :class:`Measurements`."""
        return None

    def of_last_model(self, part: Part) -> Question | None:  # noqa: ARG002
        """See :class:`Measurements`."""
        return None

    def against_alone(self) -> Question | None:
        """See :class:`Measurements`."""
        return None

    def spread(self) -> Question | None:
        """See :class:`Measurements`."""
        return None

    def read(self, tail: Tail, cohort: int, survivors: int, question: Question | None) -> Reading:  # noqa: ARG002
        """See :class:`Measurements`."""
        shape = self._layout.evaluation
        if isinstance(shape, EvaluationShape) and shape.labels:
            labels = labels_from_flat(tail.entries, shape)
            for counts in labels:
                counts.check()
            measured, of_each = figures_of_labels(labels)
            return Reading("test", measured, each=of_each)
        counts = self._layout.exact_counts(tail)
        counts.check()
        several = len(counts.test.confusion) > 2  # noqa: PLR2004 - of two classes, the figures are those of the second
        each = class_figures(counts.test.confusion, areas_of(counts.test.histograms)) if several else ()
        return Reading("test", metrics(counts), each=each)

    def spent(self) -> None:
        """See :class:`Measurements`."""

    def progress(self) -> None:
        """See :class:`Measurements`."""


class PlannedMeasurements:
    """Releases under noise, each when the plan says, and at most as often as it allows."""

    exact = False

    def __init__(
        self,
        description: RunDescription,
        plan: EvaluationPlan,
        layout: VectorLayout,
        progress: EvaluationProgress | None,
    ) -> None:
        self._description = description
        self._plan = plan
        self._layout = layout
        self._asked = Counter({} if progress is None else progress.asked)
        """How often each release was asked for, by its number."""
        self._state = EvaluationState() if progress is None else _state_of(progress)
        self._last: int | None = None
        self._decided_at = None if progress is None else progress.decided_at
        """Where the last model decides between two classes; None before the test part was asked about it."""
        self._of_class = () if progress is None else progress.of_class
        """How many test units there are of each class, as far as that was counted."""
        self._compared = progress is not None and progress.compared
        self._spread = progress is not None and progress.spread
        """Whether it is known how far hospitals' own AUC lie apart."""
        self._told = progress is not None and progress.told
        """Whether it is known who is trained on."""

    def before_training(self) -> Question | None:
        """See :class:`Measurements`."""
        return self._ask(None if self._told else self._plan.statistics)

    def while_training(self, step: int) -> Question | None:
        """See :class:`Measurements`."""
        return self._ask(self._plan.release_at(step))

    def of_last_model(self, part: Part) -> Question | None:
        """See :class:`Measurements`."""
        return self._ask(self._plan.final_validation if part is Part.VALIDATION else self._plan.test)

    def against_alone(self) -> Question | None:
        """See :class:`Measurements`."""
        return self._ask(None if self._decided_at is None or self._compared else self._plan.comparison)

    def spread(self) -> Question | None:
        """See :class:`Measurements`."""
        return self._ask(None if self._decided_at is None or self._spread else self._plan.spread)

    def _ask(self, release: Release | None) -> Question | None:
        self._last = None
        if release is None or self._asked[release.number] > self._description.evaluation.repeats:
            return None
        self._asked[release.number] += 1
        self._last = release.number
        if release.kind in (ReleaseKind.STATISTICS, ReleaseKind.SPREAD):
            return Question(release.number, ())
        if release.kind is ReleaseKind.AGAINST_ALONE:
            return Question(release.number, tuple((edge,) for edge in self._decided_at or ()))
        question = next_question(self._plan, release, self._state)
        if release.part is Part.TEST:  # What comes back must not move the threshold that it was decided at.
            cut = question.edges if self._plan.kind is TaskKind.BINARY else ()
            self._decided_at = tuple(edges[len(edges) // 2] for edges in cut)
        return question

    def spent(self) -> None:
        """See :class:`Measurements`."""
        if self._last is not None:
            self._asked[self._last] = self._description.evaluation.repeats + 1

    def read(self, tail: Tail, cohort: int, survivors: int, question: Question | None) -> Reading:
        """See :class:`Measurements`."""
        if question is None:
            return Reading()
        release = self._plan.release(question.release)
        mechanism = release_mechanism(self._description, self._plan, release)
        variance = survivors * mechanism.share_variance(cohort)
        units = tail.test_units if release.part is Part.TEST else tail.validation_units
        self._layout.check_units(units, self._plan.norm_bound, math.sqrt(variance))
        if not units:  # Every hospital has spent its budget for evaluation.
            return Reading()
        if release.kind in WITHOUT_TREES:
            return self._read_without_trees(release, tail.entries, units, survivors, variance)
        measured, self._state = decode(self._plan, release, tail.entries, units, variance, self._state, question)
        epsilon = self._spent_on(release.part)
        if release.part is Part.TEST:
            self._of_class = tuple(float(sum(row)) for row in measured.metrics.confusion)
        if release.kind is ReleaseKind.CLASSES:  # It measures no model.
            return Reading(epsilon=epsilon)
        return Reading(
            "validation" if release.part is Part.VALIDATION else "test",
            measured.metrics,
            measured.intervals,
            measured.noise,
            epsilon,
            each=measured.each,
        )

    def _read_without_trees(
        self, release: Release, entries: NDArray[np.int64], units: int, survivors: int, variance: float
    ) -> Reading:
        """Return what a sum of a release says that no tree counts, which is not asked again."""
        epsilon = self._spent_on(release.part)
        if release.kind is ReleaseKind.STATISTICS:
            self._told = True
            names = LABELS_HELD if self._plan.kind is TaskKind.MULTILABEL else self._description.classes
            return Reading(epsilon=epsilon, statistics=read_tables(names, entries, units, variance))
        if release.kind is ReleaseKind.AGAINST_ALONE:
            self._compared = True
            return Reading(epsilon=epsilon, gain=read_gain(entries, units, variance, self._units_of_classes(units)))
        self._spread = True
        return Reading(epsilon=epsilon, spread=read_spread(entries, survivors, variance), units=units)

    def _units_of_classes(self, units: int) -> NDArray[np.float64]:
        """Return how many of ``units`` test units each class has, as the last model's release counted them."""
        counted: NDArray[np.float64] = np.array(self._of_class or (math.nan,) * self._plan.classes)
        shares: NDArray[np.float64] = counted / counted.sum()
        return shares * units

    def _spent_on(self, part: Part) -> float:
        """Return ε of all that was asked of a part: Gaussian releases compose by adding their 1 / z²."""
        squares = sum(
            self._asked[release.number] / self._plan.noise_multiplier(release) ** 2
            for release in self._plan.everything
            if release.part is part
        )
        return gaussian_epsilon(math.sqrt(squares), self._description.privacy.delta)

    def progress(self) -> EvaluationProgress:
        """See :class:`Measurements`."""
        return EvaluationProgress(
            asked=dict(sorted(self._asked.items())),
            state=self._state.to_json(),
            told=self._told,
            decided_at=self._decided_at,
            of_class=self._of_class,
            compared=self._compared,
            spread=self._spread,
        )


def _state_of(progress: EvaluationProgress) -> EvaluationState:
    try:
        return EvaluationState.from_json(progress.state)
    except RunError:
        raise RunError(
            "the newest checkpoint lacks the record of its evaluations; delete that file to resume from the previous "
            "one"
        ) from None
