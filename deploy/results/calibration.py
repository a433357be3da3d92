"""What a report says of a run's probabilities: how far they are from what happens, and what another threshold gives."""

import math
from dataclasses import dataclass

import numpy as np

from common.evaluation import intervals
from common.evaluation.calibration import Spread
from deploy.results.history import RunHistory

GOOD_CALIBRATION = 0.05
"""The largest calibration error that needs no warning."""

RATES = 0.90, 0.95
"""Specificities, and sensitivities, that an operating point is given for."""


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold that another use may choose.

    Attributes:
        wanted: what was fixed, in words.
        threshold: of the calibrated probability.
        sensitivity: with its 95 % interval over the sampling of records.
        specificity: likewise.
        positive_value: of an alarm, the probability that it is right, at the prevalence asked about.
        negative_value: of no alarm, likewise.
    """

    wanted: str
    threshold: float
    sensitivity: tuple[float, float, float]
    specificity: tuple[float, float, float]
    positive_value: float
    negative_value: float


@dataclass(frozen=True)
class Calibration:
    """Probabilities on the test parts, before and after the temperature that validation fixed.

    Attributes:
        spread: of the test parts' scores.
        temperature: 1 where none was fixed.
    """

    spread: Spread
    temperature: float

    @classmethod
    def of(cls, history: RunHistory, temperature: float) -> "Calibration | None":
        """Return what the last model's probabilities are worth; None where the run has not told the scores."""
        tested = history.tested
        spread = None if tested is None else Spread.of(tested.scores)
        return None if spread is None else cls(spread, temperature)

    @property
    def before(self) -> float:
        """The calibration error without a temperature."""
        return self.spread.calibration_error()

    @property
    def after(self) -> float:
        """The calibration error of the probabilities that ``predict`` gives."""
        return self.spread.calibration_error(self.temperature)

    @property
    def loss(self) -> float:
        """The log loss of the probabilities that ``predict`` gives."""
        return self.spread.log_loss(self.temperature)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must not overlook."""
        said = []
        if self.loss >= self.spread.prevalence_loss():
            said.append(
                "The probabilities say no more than the prevalence does: their log loss is "
                f"{self.loss:.3f}, and that of always saying the prevalence is {self.spread.prevalence_loss():.3f}"
            )
        if self.after > GOOD_CALIBRATION:
            said.append(
                f"The probabilities are off by {self.after:.2f} on average: do not read them as chances of a disease"
            )
        return tuple(said)

    def sentence(self) -> str:
        """Say in words what a stated probability is worth."""
        bins = [one for one in self.spread.reliability(self.temperature) if one.share]
        highest = bins[-1]
        return (
            f"of those to whom it gives about {100 * highest.said:.0f} %, {100 * highest.seen:.0f} % are sick; on "
            f"average a probability is {self.after:.2f} off"
        )

    def points(self, prevalence: float | None = None) -> tuple[OperatingPoint, ...]:
        """Return the operating points of RATES.

        Args:
            prevalence: of the disease where the model would be used; that of the test parts where left out.
        """
        share = self.spread.prevalence() if prevalence is None else prevalence
        # Row i: the rates of "sick from the i-th score on", the last row that of nobody.
        own, others = self.spread.own, self.spread.others
        found = np.concatenate([own[::-1].cumsum()[::-1], [0.0]]) / own.sum()
        spared = np.concatenate([[0.0], others.cumsum()]) / others.sum()
        said = self.spread.probabilities(self.temperature)
        edges = np.concatenate([[0.0], (said[1:] + said[:-1]) / 2, [1.0]])
        made = []
        for rate in RATES:
            place = int(np.argmax(spared >= rate - 1e-9))
            made.append((f"specificity at least {100 * rate:.0f} %", place))
        for rate in RATES:
            place = int(np.flatnonzero(found >= rate - 1e-9)[-1])
            made.append((f"sensitivity at least {100 * rate:.0f} %", place))
        points = []
        for wanted, place in made:
            sensitivity, specificity = float(found[place]), float(spared[place])
            points.append(
                OperatingPoint(
                    wanted,
                    float(edges[place]),
                    (sensitivity, *intervals.of_rate(sensitivity, float(own.sum()), 0.0)),
                    (specificity, *intervals.of_rate(specificity, float(others.sum()), 0.0)),
                    *predictive_values(sensitivity, specificity, share),
                )
            )
        return tuple(points)


def predictive_values(sensitivity: float, specificity: float, prevalence: float) -> tuple[float, float]:
    """Return how likely an alarm, and no alarm, is right: Bayes' rule; NaN where there would be none of them.

    >>> tuple(round(value, 3) for value in predictive_values(0.9, 0.9, 0.1))
    (0.5, 0.988)
    """
    right, false = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    spared, missed = specificity * (1 - prevalence), (1 - sensitivity) * prevalence
    positive = right / (right + false) if right + false > 0 else math.nan
    return positive, spared / (spared + missed) if spared + missed > 0 else math.nan


def attacker_gains(epsilon: float, prior: float) -> float:
    """Return the most that somebody who believed ``prior`` can believe of a record afterwards, but for probability δ.

    The odds that a record was used, or has a property, change by a factor of e^ε at most.

    >>> round(attacker_gains(1.0, 0.5), 3)
    0.731
    """
    odds = prior / (1 - prior) * math.exp(min(epsilon, 700.0))
    return odds / (1 + odds)
