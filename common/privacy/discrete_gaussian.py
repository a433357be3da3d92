"""Exact samples of the discrete Gaussian from a cryptographic stream: no floating-point number reaches a sample.

The discrete Gaussian N_Z(0, σ²) has P(x) ∝ exp(-x²/2σ²) on the integers. The method is algorithms 1 to 3 of Canonne,
Kamath and Steinke 2020, "The Discrete Gaussian for Differential Privacy" (arXiv:2004.00010), for many samples at once:
propose X = U + tV with U uniform in {0, …, t-1}, V geometric with P(V ≥ j) = e^-j, and a sign; accept with probability

    exp(-U/t) · exp(-(X - σ²/t)² / 2σ²)

(their two successive rejections, here one; a negative zero is rejected). Any integer t ≥ 1 gives the same law; here it
is the power of two nearest σ, so that U is simply some bits of the stream.

**Exactness.** Every random decision is "is a uniform real u below e^-x?" with x rational, where the stream yields u bit
by bit. 53 bits and a floating-point exponential decide it whenever they are further apart than ``_MARGIN``, which is 64
times the largest error of that exponential; otherwise (once in about 2^43 decisions) ``_LazyUniform`` decides in
arithmetic of whatever precision it takes, drawing further bits. So each decision is the one that infinite precision
would make: the law is exact, not close.

The stream is AES-256 in counter mode, so all this holds up to the advantage of distinguishing it from random bits: the
differential privacy is computational. How many proposals were needed shows in the running time; it is independent of
the accepted values' signs but not constant-time.

Proof: ``docs/proofs/discrete-gaussian.md``.
"""

import decimal
import math

import numpy as np
import numpy.typing as npt

from common.errors import PrivacyError
from common.keystream import Keystream

LARGEST_VARIANCE = 2**46
"""σ ≤ 2^23 keeps X·t below 2^53, so that the difference that is squared is exact in floating point."""

_UNIFORM_BITS = 53
"""How many bits of a uniform number a float64 holds exactly."""

_WORD_BITS = 64

_MARGIN = 2.0**-44
"""The exponent is at most four roundings off (relative 2^-51) and exp at most one unit in the last place, so e^-x is
within 2^-50 of its computed value; x·e^-x is below 1."""

_PROPOSALS = 1 << 15
"""Proposals made at a time: six temporaries of 256 KiB stay in the second-level cache."""

_GUARD_DIGITS = 12


def sample(variance: int, count: int, keystream: Keystream) -> npt.NDArray[np.int64]:
    """Return independent samples of the discrete Gaussian N_Z(0, ``variance``), exact in law.

    Args:
        variance: σ², a whole number from 1 to ``LARGEST_VARIANCE``.
        count: how many, at least 0.
        keystream: used up in order; the same stream gives the same samples.

    Returns:
        int64, shape (count,).

    Raises:
        PrivacyError: the variance is out of range, or not whole.
    """
    if isinstance(variance, bool) or not isinstance(variance, int) or not 1 <= variance <= LARGEST_VARIANCE:
        raise PrivacyError(f"the noise variance must be a whole number from 1 to {LARGEST_VARIANCE}, got {variance!r}")
    samples = np.empty(count, np.int64)
    filled = 0
    while filled < count:
        accepted = _accepted(variance, keystream)[: count - filled]
        samples[filled : filled + len(accepted)] = accepted
        filled += len(accepted)
    return samples


def _accepted(variance: int, keystream: Keystream) -> npt.NDArray[np.int64]:
    """Return the accepted ones of a batch of proposals, in order."""
    shift = max(0, round(math.log2(variance) / 2))  # t = 2^shift
    bits = _words(keystream)
    negative = (bits >> (_WORD_BITS - 1)).astype(np.bool_)
    within = (bits & np.uint64((1 << shift) - 1)).astype(np.int64)
    magnitude = within + (_geometric(keystream) << shift)
    # (X - σ²/t)² / 2σ² is (X t - σ²)² / 2σ²t², in which X t - σ² is a whole number below 2^53.
    distance = (magnitude << shift) - variance
    exponent = np.square(distance.astype(np.float64))
    exponent /= 2.0 * variance * 4.0**shift
    exponent += within * 2.0**-shift
    words = _words(keystream)
    apart = (words >> (_WORD_BITS - _UNIFORM_BITS)).astype(np.float64)
    apart *= 2.0**-_UNIFORM_BITS
    apart -= np.exp(-exponent)
    accepted = apart < 0
    for place in np.flatnonzero(np.abs(apart) <= _MARGIN):
        numerator = int(distance[place]) ** 2 + 2 * variance * (int(within[place]) << shift)
        uniform = _LazyUniform(int(words[place]), keystream)
        accepted[place] = uniform.below_exp(numerator, 2 * variance << (2 * shift))
    accepted &= ~(negative & (magnitude == 0))
    return np.where(negative, -magnitude, magnitude)[accepted]


def _geometric(keystream: Keystream) -> npt.NDArray[np.int64]:
    """Return V with P(V ≥ j) = e^-j: how many of e^-1, e^-2, … a uniform number lies below."""
    words = _words(keystream)
    cells = words >> (_WORD_BITS - _UNIFORM_BITS)
    at_least = len(_POWERS) - np.searchsorted(_POWERS, cells, side="right")
    # A uniform number in the very cell of some e^-j, and one in the lowest cell, is not decided by its first 53 bits.
    for place in np.flatnonzero(_POWERS[len(_POWERS) - 1 - at_least] == cells):
        uniform = _LazyUniform(int(words[place]), keystream)
        while uniform.below_exp(int(at_least[place]) + 1, 1):
            at_least[place] += 1
    return at_least


def _words(keystream: Keystream) -> npt.NDArray[np.uint64]:
    words = np.empty(_PROPOSALS, np.uint64)
    keystream.fill(words)
    return words


class _LazyUniform:
    """A uniform real number in [0, 1), known to as many bits as its comparisons have needed."""

    def __init__(self, word: int, keystream: Keystream) -> None:
        self._value, self._bits, self._keystream = word, _WORD_BITS, keystream

    def below_exp(self, numerator: int, denominator: int) -> bool:
        """Return whether it is below exp(-numerator/denominator); they are never equal, as one is irrational."""
        while True:
            # Decimal's exp is correctly rounded. The quotient, and so exp's argument, is off by less than the numerator
            # in the last digit; the guard digits cover that and the rounding of the uniform number itself.
            digits = self._bits // 3 + len(str(numerator)) + _GUARD_DIGITS
            with decimal.localcontext(decimal.Context(prec=digits)) as context:
                power = context.exp(-(context.divide(decimal.Decimal(numerator), decimal.Decimal(denominator))))
                unit = decimal.Decimal(2) ** -self._bits
                lowest = decimal.Decimal(self._value) * unit
                slack = power.scaleb(_GUARD_DIGITS // 2 - digits + len(str(numerator)))
                if lowest + unit <= power - slack:
                    return True
                if lowest >= power + slack:
                    return False
            more = np.empty(1, np.uint64)
            self._keystream.fill(more)
            self._value = self._value << _WORD_BITS | int(more[0])
            self._bits += _WORD_BITS


def _powers() -> npt.NDArray[np.uint64]:
    """Return floor(2^53 e^-j) in ascending order, from the first j for which it is 0 down to 1."""
    with decimal.localcontext(decimal.Context(prec=60)):
        scale = decimal.Decimal(2) ** _UNIFORM_BITS
        cells = [int(scale * decimal.Decimal(-j).exp()) for j in range(1, _UNIFORM_BITS)]
    return np.array(sorted({cell for cell in cells if cell} | {0}), dtype=np.uint64)


_POWERS = _powers()
