"""What is known after a release, and what one release says."""

from dataclasses import dataclass
from typing import Annotated

import msgspec

from common.errors import RunError
from common.evaluation.layout import MOST_SCORES
from common.evaluation.metrics import ClassFigures, Metrics

Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Finite = Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)]
Positive = Annotated[float, msgspec.Meta(gt=0.0, le=1e30)]


class Normal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A normal distribution of scores on the scale of log-odds."""

    mean: Finite
    deviation: Positive


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one score was last seen to be distributed: where to cut next, and where the next fit starts.

    Attributes:
        others: of units of other classes.
        own: of the class's own units.
    """

    others: Normal
    own: Normal

    @property
    def threshold(self) -> float:
        """Return the score at which the two normals err equally often."""
        spread = self.others.deviation + self.own.deviation
        return (self.others.mean * self.own.deviation + self.own.mean * self.others.deviation) / spread


FIRST = Reference(Normal(-2.0, 2.0), Normal(2.0, 2.0))
"""What scores are taken to be like before any were counted."""


class EvaluationState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What earlier releases of a run showed; a function of public sums.

    Attributes:
        shares: of each class, or of each label, or of class 1 alone in a binary task; empty before the class count. As
            shares, so that they hold for whatever number of units answers.
        share_noise: standard deviation of the noise in each of ``shares``.
        references: one for each score; empty before any was fitted.
        known: of each label, the share of units of which it is known; empty where that is all.
    """

    shares: Annotated[tuple[Share, ...], msgspec.Meta(max_length=MOST_SCORES)] = ()
    share_noise: Annotated[float, msgspec.Meta(ge=0.0, le=1e30)] = 0.0
    references: Annotated[tuple[Reference, ...], msgspec.Meta(max_length=MOST_SCORES)] = ()
    known: Annotated[tuple[Share, ...], msgspec.Meta(max_length=MOST_SCORES)] = ()

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Return for each score, in log-odds, from where on the next release decides for the class."""
        return tuple(reference.threshold for reference in self.references)

    def to_json(self) -> str:
        """Return the one JSON text of this state."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> "EvaluationState":
        """Read what :meth:`to_json` wrote.

        Raises:
            RunError: it is not such a text, or a number is out of range.
        """
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise RunError(
                "the state of a run's evaluation must be as Confide wrote it; restore the file from a backup"
            ) from None


@dataclass(frozen=True)
class Measured:
    """What one release says.

    Attributes:
        metrics: as exact counts give them; NaN where the release does not say.
        intervals: name of a metric to the ends of its 95 % interval, over the sampling of units and privacy noise.
        noise: name of a metric to the standard deviation that noise alone gives it.
        each: of a task of several classes, and of several labels, the figures of each.
        warnings: sentences for whoever reads the figures; usually empty.
    """

    metrics: Metrics
    intervals: dict[str, tuple[float, float]]
    noise: dict[str, float]
    each: tuple[ClassFigures, ...] = ()
    warnings: tuple[str, ...] = ()
