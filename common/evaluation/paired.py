"""Two models on the same records: how far apart they are, with an interval that knows that the records are the same.

The interval is the percentile bootstrap's (Efron & Tibshirani 1993, chapter 13) over patients, each drawn with all of
their records, and both models are measured on each draw. So what makes a record hard for both models does not widen it.
It says what other patients of the same hospital would have given, with the two models and their thresholds as they are:
another training would give another model, and that is not in it.

The counts are exact, and nothing here is private: for a hospital's own staff.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FIGURES = ("auc", "accuracy", "sensitivity", "specificity")
"""What two models are compared by."""

DRAWS = 2000
"""The bootstrap's draws: with so many the ends of an interval move by a few percent of its width between seeds."""

CONFIDENCE = 0.95

_SEED = 20_231
"""So that the same records give the same interval each time."""

_WEIGHTS_AT_ONCE = 1 << 22
"""Weights of records in memory at once, 32 MiB."""


@dataclass(frozen=True)
class Scored:
    """What a model of two classes says of records.

    Attributes:
        log_odds: (n,) float64, finite: of the second class against the first.
        threshold: the least probability of the second class that is called so, in [0, 1].
    """

    log_odds: Floats = field(repr=False)
    threshold: float

    @property
    def called(self) -> NDArray[np.bool_]:
        """Return which records are called of the second class, (n,)."""
        with np.errstate(divide="ignore"):  # A threshold of 0 calls everything so, one of 1 nothing.
            least = np.log(self.threshold) - np.log1p(-self.threshold)
        called: NDArray[np.bool_] = self.log_odds >= least
        return called


@dataclass(frozen=True)
class Difference:
    """One figure of a first model less that of a second, with the interval of :data:`CONFIDENCE`."""

    value: float
    low: float
    high: float

    @property
    def says(self) -> int:
        """Return 1 where the first is better, -1 where the second is, 0 where these records cannot tell."""
        return int(self.low > 0) - int(self.high < 0)


def figures(scored: Scored, truth: NDArray[np.bool_]) -> dict[str, float]:
    """Return :data:`FIGURES` of a model on records of both classes.

    Args:
        scored: of the model.
        truth: (n,), whether a record is of the second class.

    >>> truth = np.array([False, False, True, True])
    >>> figures(Scored(np.array([-1.0, 1.0, 0.5, 2.0]), 0.5), truth)
    {'auc': 0.75, 'accuracy': 0.75, 'sensitivity': 1.0, 'specificity': 0.5}
    """
    whole = _figures(scored, truth, np.ones((1, len(truth))))
    return {name: float(whole[name][0]) for name in FIGURES}


def differences(
    first: Scored, second: Scored, truth: NDArray[np.bool_], patients: Integers, draws: int = DRAWS
) -> dict[str, Difference]:
    """Return each of :data:`FIGURES` of the first model less that of the second, on the same records.

    Args:
        first: of one model.
        second: of the other.
        truth: (n,), whether a record is of the second class; there are records of both.
        patients: (n,), whose record it is; equal numbers are one patient.
        draws: of the bootstrap. A draw without a record of each class has no AUC, and is left out.
    """
    value = {name: figures(first, truth)[name] - figures(second, truth)[name] for name in FIGURES}
    _, of_record = np.unique(patients, return_inverse=True)
    number = int(of_record.max()) + 1
    generator, found = np.random.default_rng(_SEED), []
    at_once = max(1, _WEIGHTS_AT_ONCE // max(len(truth), number))
    for start in range(0, draws, at_once):
        some = min(at_once, draws - start)
        weights = generator.multinomial(number, np.full(number, 1 / number), size=some)[:, of_record].astype(float)
        sick = weights[:, truth].sum(axis=1)
        weights = weights[(sick > 0) & (sick < weights.sum(axis=1))]
        one, other = _figures(first, truth, weights), _figures(second, truth, weights)
        found.append(np.stack([one[name] - other[name] for name in FIGURES]))
    ends = np.quantile(np.concatenate(found, axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=1)
    return {name: Difference(value[name], *map(float, ends[:, place])) for place, name in enumerate(FIGURES)}


def _figures(scored: Scored, truth: NDArray[np.bool_], weights: Floats) -> dict[str, Floats]:
    """Return each figure for each row of weights of the records, (rows, n)."""
    called = scored.called
    all_sick, all_well = weights @ truth, weights @ ~truth
    found, cleared = weights @ (truth & called), weights @ ~(truth | called)
    return {
        "auc": _areas(scored.log_odds, truth, weights) / (all_sick * all_well),
        "accuracy": (found + cleared) / (all_sick + all_well),
        "sensitivity": found / all_sick,
        "specificity": cleared / all_well,
    }


def _areas(scores: Floats, truth: NDArray[np.bool_], weights: Floats) -> Floats:
    """Return how many pairs of a sick and a well record are in order, ties half, by weight; (rows,)."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # Of each score that occurs.
    by_score, sick = weights[:, order], truth[order]
    all_at, sick_at = np.add.reduceat(by_score, starts, axis=1), np.add.reduceat(by_score * sick, starts, axis=1)
    well_at = all_at - sick_at
    below = np.cumsum(well_at, axis=1) - well_at / 2
    pairs: Floats = (sick_at * below).sum(axis=1)
    return pairs
