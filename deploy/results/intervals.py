"""How sure a figure is.

Noisy counts come with the server's own intervals; over exact counts of test records they are bootstrapped here, and
over repeated runs they are t intervals.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from common.evaluation import METRICS
from common.telemetry.events import Evaluated, RoundDone

DRAWS = 2000
"""Resamples; the ends of a 95 % interval then move by less than a tenth of its width between two seeds."""

SEED = 20_170_817
"""The seed of the resampling alone: the same counts give the same interval."""

CONFIDENCE = 0.95
TWO_CLASSES = 2

NORMAL_95 = 1.96

COARSE = 0.01
"""The half-width of noise above which a figure's third decimal means nothing."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval; NaN ends where there is none.

    Attributes:
        noise: half the width that privacy noise alone gives it, NaN where that is unknown or there is no noise.
        decimals: that mean something.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    noise: float = math.nan
    decimals: int = 3

    def __str__(self) -> str:
        """Return the figure with its interval, for a sentence."""
        if math.isnan(self.low) or math.isnan(self.value):
            return self.figure
        return f"{self.figure} ({self.low:.{self.decimals}f} to {self.high:.{self.decimals}f})"

    @property
    def is_told(self) -> bool:
        """Whether there is a figure at all."""
        return not math.isnan(self.value)

    @property
    def figure(self) -> str:
        """The figure alone; a dash where it is undefined."""
        return "–" if math.isnan(self.value) else f"{self.value:.{self.decimals}f}"

    @property
    def short(self) -> str:
        """The figure and how far it may be off, for a narrow cell.

        >>> Interval(0.8934, 0.87, 0.9, decimals=2).short
        '0.89 ±0.02'
        """
        if math.isnan(self.low) or math.isnan(self.value):
            return self.figure
        # Score intervals are not symmetric near 0 and 1; the wider side is what a figure may be off.
        reach = max(self.value - self.low, self.high - self.value)
        return f"{self.figure} ±{reach:.{self.decimals}f}"


def of_test(tested: Evaluated) -> dict[str, Interval]:
    """Return each measure of the last model on the test parts.

    Noisy counts come with intervals for sampling and noise together; over exact ones they are bootstrapped here.
    """
    sure = {} if tested.intervals else over_test_records(tested)
    return {name: sure.get(name) or _told(tested, name, tested.noise.get(name, math.nan)) for name in METRICS}


def of_round(done: RoundDone) -> dict[str, Interval]:
    """Return each measure of a round's model, as sure as the server says.

    A round does not report how much of an interval is noise, so a wide one has two decimals whatever made it wide.
    """
    return {name: _told(done, name, math.nan) for name in METRICS}


def _told(measured: RoundDone | Evaluated, name: str, deviation: float) -> Interval:
    low, high = measured.intervals.get(name, (math.nan, math.nan))
    noise = NORMAL_95 * deviation
    blur = (high - low) / 2 if math.isnan(noise) else noise
    return Interval(getattr(measured, name), low, high, noise, 2 if blur > COARSE else 3)


def over_test_records(done: RoundDone | Evaluated) -> dict[str, Interval]:
    """Return each metric of exact counts with its percentile bootstrap interval (Efron 1979) over the test records.

    The records themselves never leave the hospitals. Resampling them and counting is the same as drawing the counts
    from a multinomial distribution, so the securely summed counts suffice: the confusion matrix, and for AUC the score
    histogram that the ROC points determine.

    What it says: how much the figure would move with another test set of this size from the same hospitals. Not: how
    it would move with another training run; and it is too narrow where a patient has several records.
    """
    if not done.confusion:
        return {}
    matrices = _resampled(np.array(done.confusion, np.float64))
    drawn = {name: metric.of_confusion(matrices) for name, metric in METRICS.items() if metric.of_confusion}
    if done.roc and len(done.confusion) == TWO_CLASSES:
        drawn["auc"] = _resampled_auc(done)
    return {name: _interval(getattr(done, name), draws) for name, draws in drawn.items()}


def over_runs(values: Sequence[float]) -> Interval:
    """Return the mean of a figure over independent runs with its t interval; no interval for a single run.

    >>> print(over_runs([0.93, 0.94, 0.95]))
    0.940 (0.915 to 0.965)
    """
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean)
    reach = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Interval(mean, mean - reach, mean + reach)


def _interval(value: float, draws: Floats) -> Interval:
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(draws, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def _resampled(counts: Floats) -> Floats:
    """Return counts, of any shape s, of resampled records: shape (DRAWS, *s)."""
    total = counts.sum()
    draws = np.random.default_rng(SEED).multinomial(int(total), counts.ravel() / total, size=DRAWS)
    return draws.reshape(DRAWS, *counts.shape).astype(np.float64)


def _resampled_auc(done: RoundDone | Evaluated) -> Floats:
    points = np.array(sorted({(0.0, 0.0), (1.0, 1.0), *(done.roc or ())}))
    sizes = np.array([sum(row) for row in done.confusion], np.float64)
    drawn = _resampled(np.rint(np.diff(points, axis=0) * sizes))
    negatives, positives = drawn[:, :, 0], drawn[:, :, 1]
    above = np.cumsum(positives, axis=1) - positives / 2  # half of a bin counts: within it the order is unknown
    return _share((negatives * above).sum(axis=1), negatives.sum(axis=1) * positives.sum(axis=1))


def _share(part: Floats, whole: Floats) -> Floats:
    shares: Floats = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
    return shares
