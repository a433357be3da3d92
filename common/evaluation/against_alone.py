"""Whether joining paid: where a run's last model is right and each hospital's own is wrong, and the other way round.

Every test unit is decided twice by its hospital: by the run's last model, and by the model that the hospital's own
training records give alone. It adds a vector of whole numbers: at the entry of its true class :data:`WEIGHT` where only
the run's model is right, -WEIGHT where only the hospital's own is, and in the last entry :data:`DISAGREE` in either
case. Where both are right, or both wrong, it adds nothing. The L2 norm is at most √(WEIGHT² + DISAGREE²) ≤ S for any
two models, the server's choice included.

Of several classes each model decides for the likeliest. Of two, the run's decides at the run's threshold, and the
hospital's own at one that its training records gave (``client/own_threshold.py``): a threshold from its validation
records would be a function of them, which these counts would give away beside test records.

The sum tells how much more often the run's models are right, over all hospitals and in each class, and how often two
models differ, without which the difference's sampling error cannot be told (McNemar 1947).
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.evaluation import intervals
from common.evaluation.layout import NORM_BOUND

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

WEIGHT = NORM_BOUND * 9 // 10
DISAGREE = math.isqrt(NORM_BOUND**2 - WEIGHT**2)
"""How often models differ is told half as exactly as which of them is right more often."""

_LEAST_UNITS = 20.0
"""A class with fewer has no figure of its own."""

_UNKNOWN = (math.nan, math.nan)


@dataclass(frozen=True)
class Gain:
    """By how much the run's last model is right more often than the hospitals' own, each on its hospital's records.

    Attributes:
        units: of the hospitals' test parts, as they state them.
        accuracy: of all units, from -1 to 1.
        recalls: of the units of each class; NaN where too few are known to be there.
        ends: of the 95 % interval of ``accuracy``, over the sampling of units and privacy noise.
        ends_of_recalls: likewise of each class.
        noise: standard deviation that privacy noise gives ``accuracy``.
        disagree: the share of units of which one of the two models is right and the other wrong.
    """

    units: int
    accuracy: float
    recalls: tuple[float, ...]
    ends: tuple[float, float]
    ends_of_recalls: tuple[tuple[float, float], ...] = field(repr=False)
    noise: float
    disagree: float


def length_of(classes: int) -> int:
    """Return how many entries the comparison has."""
    return classes + 1


def vectors_of(classes: int, labels: Integers, together: Integers, alone: Integers) -> Integers:
    """Return each record's vector, (records, length_of(classes)).

    Args:
        classes: of the task.
        labels: (records,) the true class; what is not in [0, classes) counts nowhere.
        together: (records,) the class that the run's model decides for.
        alone: (records,) likewise, of the hospital's own model.
    """
    known = (labels >= 0) & (labels < classes)
    ahead = ((together == labels).astype(np.int64) - (alone == labels)) * known
    vectors = np.zeros((len(labels), length_of(classes)), np.int64)
    vectors[np.arange(len(labels)), np.clip(labels, 0, classes - 1)] = WEIGHT * ahead
    vectors[:, classes] = DISAGREE * np.abs(ahead)
    return vectors


def read_gain(summed: Integers, units: int, variance: float, of_class: Floats) -> Gain:
    """Return what a noisy sum says.

    A class's units are counted under noise by the release that measured the last model. Models may differ in one class
    alone, so all disagreement is taken to be there: the interval of its recall is rather too wide than too narrow.

    Args:
        summed: (length_of(classes),) or longer.
        units: that the hospitals in the sum state, above 0.
        variance: of the noise in each entry.
        of_class: (classes,) how many units each class has; NaN where that is not known.
    """
    classes = len(of_class)
    ahead = summed[:classes].astype(np.float64) / WEIGHT
    deviation = math.sqrt(variance) / WEIGHT
    accuracy = float(np.clip(ahead.sum() / units, -1, 1))
    disagree = float(np.clip(summed[classes] / DISAGREE / units, abs(accuracy), 1))
    noise = deviation * math.sqrt(classes) / units
    recalls, ends_of_recalls = [], []
    for own, there in zip(ahead, of_class, strict=True):
        told = there >= _LEAST_UNITS
        recalls.append(float(np.clip(own / there, -1, 1)) if told else math.nan)
        differing = min(1.0, disagree * units / there) if told else 1.0
        ends_of_recalls.append(_ends(recalls[-1], differing, there, deviation / there) if told else _UNKNOWN)
    return Gain(
        units=units,
        accuracy=accuracy,
        recalls=tuple(recalls),
        ends=_ends(accuracy, disagree, units, noise),
        ends_of_recalls=tuple(ends_of_recalls),
        noise=noise,
        disagree=disagree,
    )


def _ends(gain: float, disagree: float, units: float, noise: float) -> tuple[float, float]:
    sampling = max(0.0, disagree - gain**2) / units
    reach = intervals.Z * math.sqrt(sampling + noise**2)
    return max(-1.0, gain - reach), min(1.0, gain + reach)
