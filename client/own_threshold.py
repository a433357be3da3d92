"""The threshold of a hospital's model of its own records, found on its training records under noise of its own.

A decision that is compared between hospitals must not show a validation record, whose budget pays for other questions.
So the threshold is sought where the model comes from, on training records, within what the model alone may spend: the
number of the second class is asked once, and then, :data:`~common.privacy.calibration.THRESHOLD_HALVINGS` times,
whether at the middle of what is left more sick are missed than healthy are alarmed, each as a share of its class.

**Sensitivity.** Every unit adds to an answer the mean over its records of numbers from -S to S, whatever the threshold
and the share of the second class, both of which come from earlier noisy answers. Each answer is therefore a Gaussian
release of sensitivity S, and they compose adaptively by adding their 1/z² (Dong, Roth and Su 2022).

Proof: ``docs/proofs/against-alone.md``.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from common.evaluation.exact import SCORE_TEMPER
from common.privacy.calibration import THRESHOLD_HALVINGS
from common.privacy.distributed import DistributedMechanism

Integers = npt.NDArray[np.int64]
Noise = Callable[[], int]
"""Returns one fresh whole number of noise."""

SCALE = 1024
"""S: the most that a unit adds to an answer."""

_LEAST_SHARE = 0.05
"""The least share of either class: where noise says less, so much is assumed."""


def noise_of(multiplier: float) -> DistributedMechanism:
    """Return what gives one hospital the noise of one answer, with ``multiplier`` times S as its deviation."""
    return DistributedMechanism(
        noise_multiplier=multiplier,
        max_grad_norm=1.0,
        norm_bound=SCALE,
        dimension=1,
        colluders=0,
        tolerated_dropouts=0,
    )


def threshold_of(
    log_odds: npt.NDArray[np.float64], labels: Integers, units: Integers, stated_units: int, noise: Noise
) -> float:
    """Return the log-odds from which on a record is called of the second class, so that both classes err equally often.

    Args:
        log_odds: (records,) of the second class against the first, finite.
        labels: (records,) 0 or 1; anything else counts nowhere.
        units: (records,) which unit each record is of.
        stated_units: how many units the hospital states, above 0: a public number.
        noise: of each answer; zeros where nothing is to be protected.
    """
    sick, healthy = labels == 1, labels == 0
    share = (_total(SCALE * sick, units) + noise()) / SCALE / stated_units
    share = min(max(share, _LEAST_SHARE), 1 - _LEAST_SHARE)
    of_sick, of_healthy = int(SCALE * (1 - share)), int(SCALE * share)
    low, high = 0.0, 1.0
    for _ in range(THRESHOLD_HALVINGS):
        middle = (low + high) / 2
        called = log_odds >= _log_odds_at(middle)
        missed = _total(of_sick * (sick & ~called) - of_healthy * (healthy & called), units) + noise()
        low, high = (low, middle) if missed > 0 else (middle, high)
    return _log_odds_at((low + high) / 2)


def _total(values: Integers, units: Integers) -> int:
    """Return the sum over units of the mean of their records' values, each cut to a whole number towards zero."""
    if not len(values):
        return 0
    _, place, sizes = np.unique(units, return_inverse=True, return_counts=True)
    return int(np.trunc(np.bincount(place, values) / sizes).sum())


def _log_odds_at(place: float) -> float:
    """Return the score at a place in (0, 1), on the scale by which scores are binned."""
    return SCORE_TEMPER * math.log(place / (1 - place))
