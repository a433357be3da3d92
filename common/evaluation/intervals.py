"""How sure a released figure is: over another sample of units from the same hospitals, and over privacy noise."""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Z = 1.959964
"""The normal quantile of a two-sided 95 % interval."""


def of_rate(rate: float, units: float, noise_variance: float) -> tuple[float, float]:
    """Return the score interval (Wilson 1927) of a rate with noise: all p with (p - rate)² ≤ Z²·(p(1-p)/units + noise).

    A clipped normal interval would cover rates near 1 in some 85 to 92 % of cases only.

    Args:
        rate: as released, unbiased; noise may have put it outside [0, 1].
        units: that it is a share of; at least 1 is taken.
        noise_variance: of the rate.

    >>> tuple(round(end, 3) for end in of_rate(0.9, 100, 0.0))
    (0.826, 0.945)
    """
    tail = Z**2 / max(units, 1.0)
    a, b, c = 1 + tail, rate + tail / 2, rate**2 - Z**2 * noise_variance
    root = math.sqrt(max(b**2 - a * c, 0.0))
    low, high = (min(max(float(b + sign * root) / a, 0.0), 1.0) for sign in (-1, 1))
    return low, high


def of_draws(value: float, sampled: Floats, low: float = 0.0, high: float = math.inf) -> tuple[float, float]:
    """Return ``value`` ± (Z deviations of bootstrap draws + the distance of their mean), cut to [low, high].

    The distance is the decoding's own bias, which shrinks towards the fit; corrected for it would be noisier.
    """
    seen = sampled[np.isfinite(sampled)]
    if len(seen) < 2 or not math.isfinite(value):  # noqa: PLR2004 - a deviation needs two
        return math.nan, math.nan
    reach = Z * float(seen.std(ddof=1)) + abs(float(seen.mean()) - value)
    return max(low, value - reach), min(high, value + reach)
