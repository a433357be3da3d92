"""From a noisy sum to what a person reads: metrics with intervals, and what the next release should ask.

Everything here is post-processing of sums that hospitals released: it costs no privacy, and whoever has the sums gets
the same figures, to the last digit.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from common.evaluation.exact import Metrics
from common.evaluation.plan import EvaluationPlan, Release
from common.evaluation.question import Question


@dataclass(frozen=True)
class Normal:
    """A normal distribution of scores on the scale of log-odds."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Reference:
    """How one score was last seen to be distributed: where to cut next, and where the next fit starts."""

    others: Normal
    own: Normal


@dataclass(frozen=True)
class EvaluationState:
    """What earlier releases of a run told; a function of public sums.

    Attributes:
        shares: of each class (of class 1 alone, or of each label, where those have two values); empty before the class
            count. As shares, so that they hold for whatever number of units answers.
        share_variance: of each of ``shares``, from noise.
        references: one for each score, empty before any was fitted.
    """

    shares: tuple[float, ...] = ()
    share_variance: float = 0.0
    references: tuple[Reference, ...] = ()

    def to_json(self) -> str:
        """Return the one JSON text of this state."""
        raise NotImplementedError

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a state.

        Raises:
            RunError: it is not one.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Measured:
    """What one release says.

    Attributes:
        metrics: as exact counts give them; NaN where the release does not say.
        intervals: name of a metric to the ends of its 95 % interval, over the sampling of units and privacy noise.
        noise: name of a metric to the standard deviation that noise alone gives it.
        each: of a multi-label task, the metrics of each label.
    """

    metrics: Metrics
    intervals: dict[str, tuple[float, float]]
    noise: dict[str, float]
    each: tuple[Metrics, ...] = ()


def next_question(plan: EvaluationPlan, release: Release, state: EvaluationState) -> Question:
    """Return what to ask in a release, given what earlier ones told."""
    raise NotImplementedError


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
        variance: of the noise in each entry: share_variance(cohort) × hospitals in the sum.
        state: before it.
        question: that was asked.

    Raises:
        RunError: the sum has another length, or there are no units.
    """
    raise NotImplementedError
