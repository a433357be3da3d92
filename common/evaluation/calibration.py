"""Whether probabilities mean what they say: temperature, reliability and log loss of pooled counts over scores.

All of it is computed from what a release has told already, so it costs no privacy. A *spread* is how many units of each
of two classes have which score, the log-odds of the second class. Temperature scaling (Guo et al. 2017,
arXiv:1706.04599) divides all scores by one number; ranks, and so AUC and decisions, stay.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Row = tuple[float, float, float]
"""A score, units of the first class with about that score, and units of the second."""

ROWS = 64
"""The most rows of a spread: reliability needs ten, and an operating point two decimals."""

COLDEST, HOTTEST = 0.05, 20.0
_STEPS = 60
_GOLDEN = (math.sqrt(5) - 1) / 2

BINS = 10
"""The bins of a reliability diagram."""

LARGEST_SCORE = 700.0
"""Beyond it exp overflows."""


@dataclass(frozen=True)
class Bin:
    """One point of a reliability diagram.

    Attributes:
        said: mean probability of the second class.
        seen: share of the second class.
        share: of all units.
    """

    said: float
    seen: float
    share: float


@dataclass(frozen=True)
class Spread:
    """Units by score; noise in their counts has been brought to zero or more.

    Attributes:
        scores: ascending, shape (n,).
        others: units of the first class, shape (n,).
        own: units of the second class, shape (n,).
    """

    scores: Floats
    others: Floats
    own: Floats

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Spread | None":
        """Return the spread of rows; None where one class is absent, for which nothing can be calibrated."""
        if not rows:
            return None
        scores, others, own = np.array(rows, np.float64).T
        if not (others.sum() > 0 and own.sum() > 0):
            return None
        return cls(scores, others, own)

    def probabilities(self, temperature: float = 1.0) -> Floats:
        """Return each row's probability of the second class, shape (n,)."""
        return np.asarray(1 / (1 + np.exp(-np.clip(self.scores / temperature, -LARGEST_SCORE, LARGEST_SCORE))))

    def log_loss(self, temperature: float = 1.0) -> float:
        """Return the mean cross-entropy, in nats."""
        x = self.scores / temperature
        total = self.own @ np.logaddexp(0, -x) + self.others @ np.logaddexp(0, x)
        return float(total / (self.own.sum() + self.others.sum()))

    def prevalence(self) -> float:
        """Return the share of the second class."""
        return float(self.own.sum() / (self.own.sum() + self.others.sum()))

    def prevalence_loss(self) -> float:
        """Return the cross-entropy of whoever always says the prevalence: what a model must beat."""
        p = self.prevalence()
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    def reliability(self, temperature: float = 1.0) -> tuple[Bin, ...]:
        """Return what is said against what is seen, in equal bins of what is said; empty bins are left out."""
        said = self.probabilities(temperature)
        place = np.minimum((said * BINS).astype(np.int64), BINS - 1)
        whole = self.own + self.others
        bins = []
        for index in range(BINS):
            here = place == index
            units = float(whole[here].sum())
            if units > 0:
                bins.append(
                    Bin(
                        float((said[here] @ whole[here]) / units),
                        float(self.own[here].sum() / units),
                        units / float(whole.sum()),
                    )
                )
        return tuple(bins)

    def calibration_error(self, temperature: float = 1.0) -> float:
        """Return the mean distance between said and seen over the bins, weighted by their units."""
        return sum(one.share * abs(one.said - one.seen) for one in self.reliability(temperature))

    def best_temperature(self) -> float:
        """Return the temperature, COLDEST to HOTTEST, of the least log loss: golden section, for that is unimodal."""
        low, high = math.log(COLDEST), math.log(HOTTEST)
        for _ in range(_STEPS):
            first, second = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
            if self.log_loss(math.exp(first)) <= self.log_loss(math.exp(second)):
                high = second
            else:
                low = first
        return math.exp((low + high) / 2)


def rows_of(scores: Floats, others: Floats, own: Floats) -> tuple[Row, ...]:
    """Return at most ROWS rows of a spread: neighbours are put together until each has about as many units.

    Args:
        scores: ascending, shape (n,).
        others: units of the first class, shape (n,); those below 0 count as none.
        own: units of the second class, likewise.
    """
    others, own = np.maximum(others, 0.0), np.maximum(own, 0.0)
    whole = others + own
    if not (np.isfinite(whole).all() and np.isfinite(scores).all() and whole.sum() > 0):
        return ()
    middle = (np.cumsum(whole) - whole / 2) / whole.sum()
    group = np.minimum((middle * ROWS).astype(np.int64), ROWS - 1)
    rows = []
    for index in np.unique(group[whole > 0]):
        here = (group == index) & (whole > 0)
        shares = whole[here] / whole[here].max()  # Weights as small as floats can be would round the products to zero.
        score = float(np.average(scores[here], weights=shares))
        rows.append((score, float(others[here].sum()), float(own[here].sum())))
    return tuple(rows)


def tempered(probability: float, temperature: float) -> float:
    """Return the probability that a score has after division by a temperature, from the one that it has before.

    >>> round(tempered(0.8, 2.0), 4)
    0.6667
    """
    if probability in (0.0, 1.0):
        return probability
    return float(1 / (1 + ((1 - probability) / probability) ** (1 / temperature)))
