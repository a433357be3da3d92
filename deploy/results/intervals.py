"""How sure a figure is: bootstrap intervals over test records, and intervals over repeated runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from common.events import RoundDone

DRAWS = 2000
"""Resamples; the ends of a 95 % interval then move by less than a tenth of its width between two seeds."""

SEED = 20_170_817
"""Of the resampling alone: the same counts give the same interval."""

CONFIDENCE = 0.95
TWO_CLASSES = 2

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval; NaN ends where there is none."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return the figure with its interval, to three decimals."""
        if math.isnan(self.value):
            return "–"
        if math.isnan(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def over_test_records(done: RoundDone) -> dict[str, Interval]:
    """Return each metric of a round with its percentile bootstrap interval (Efron 1979) over the pooled test records.

    The records themselves never leave the hospitals. Resampling them and counting is the same as drawing the counts
    from a multinomial distribution, so the securely summed counts suffice: the confusion matrix, and for AUC the score
    histogram that the ROC points determine.

    What it tells: how much the figure would move with another test set of this size from the same hospitals. Not: how
    it would move with another training run; and it is too narrow where a patient has several records.
    """
    if not done.confusion:
        return {}
    drawn = _rates(_resampled(np.array(done.confusion, np.float64)))
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
        return Interval(mean, math.nan, math.nan)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
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


def _rates(confusion: Floats) -> dict[str, Floats]:
    """Return the metrics of confusion matrices, shape (draws, classes, classes), truth by row; each of shape (draws,).

    For two classes those of class 1, for more the mean over the classes, as ``common.evaluation`` has them.
    """
    right = np.diagonal(confusion, axis1=1, axis2=2)
    truly, called, total = confusion.sum(axis=2), confusion.sum(axis=1), confusion.sum(axis=(1, 2))
    of_interest = slice(1, 2) if confusion.shape[1] == TWO_CLASSES else slice(None)
    precision, recall = _share(right, called), _share(right, truly)
    false_alarms = called - right
    return {
        "accuracy": right.sum(axis=1) / total,
        "precision": precision[:, of_interest].mean(axis=1),
        "recall": recall[:, of_interest].mean(axis=1),
        "f1": _share(2 * right, truly + called)[:, of_interest].mean(axis=1),
        "specificity": (1 - _share(false_alarms, total[:, None] - truly))[:, of_interest].mean(axis=1),
        "kappa": _quadratic_kappa(confusion),
    }


def _quadratic_kappa(confusion: Floats) -> Floats:
    classes = confusion.shape[1]
    distance = np.square(np.subtract.outer(np.arange(classes), np.arange(classes)))
    total = confusion.sum(axis=(1, 2))
    by_chance = confusion.sum(axis=2)[:, :, None] * confusion.sum(axis=1)[:, None, :] / total[:, None, None]
    expected = (by_chance * distance).sum(axis=(1, 2))
    return _share(expected - (confusion * distance).sum(axis=(1, 2)), expected)


def _resampled_auc(done: RoundDone) -> Floats:
    points = np.array(sorted({(0.0, 0.0), (1.0, 1.0), *(done.roc or ())}))
    sizes = np.array([sum(row) for row in done.confusion], np.float64)
    drawn = _resampled(np.rint(np.diff(points, axis=0) * sizes))
    negatives, positives = drawn[:, :, 0], drawn[:, :, 1]
    above = np.cumsum(positives, axis=1) - positives / 2  # half of a bin counts: within it the order is unknown
    return _share((negatives * above).sum(axis=1), negatives.sum(axis=1) * positives.sum(axis=1))


def _share(part: Floats, whole: Floats) -> Floats:
    shares: Floats = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
    return shares
