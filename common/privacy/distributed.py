"""The distributed discrete Gaussian mechanism: full noise in the secure sum alone, none of it trusted to the server.

Kairouz, Liu and Steinke 2021, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation" (arXiv:2102.06387). Each hospital clips the gradient of each unit (record or patient) to a vector of whole
numbers of L2 norm at most S (``norm_bound``), adds them up, adds a sample of N_Z(0, σ²)^d and masks the result. Of n
hospitals in a round's cohort X may drop out and k may collude with the server, who then knows, and can subtract, their
noise; so the noise of n - X - k hospitals remains, and σ² is chosen so that these are enough.

**Theorem.** Let m = n - X - k ≥ 1 hospitals have noise N_Z(0, σ²)^d with σ² ≥ 16, and let each unit of a hospital enter
its sum independently with probability q. Beside anything that depends on the unit through earlier sums alone, a round's
sum releases no more than the Poisson-subsampled Gaussian mechanism with sample rate q and noise multiplier

    z = √(mσ² - 4) / S,

up to a factor exp(±a) on the probability of each outcome, where with d the dimension

    a = d·(τ + 3η(2)),   τ = 10 Σ_{j=1}^{m-1} exp(-2π²σ²j/(j+1)),   η(t) = 2 Σ_{j≥1} exp(-2π²t²j²).

Over R rounds it is (ε + 2Ra, δ·exp(Ra))-differentially private for every (ε, δ) of R such Gaussian steps
(:func:`common.privacy.accounting.epsilon` adds these terms). At d = 10^7 and R = 10^5, Ra is below 10^-20.

Proof: ``docs/proofs/distributed-noise.md``.

Covered are the units of one hospital: those it trains on, and those it measures a model on where a release of the
evaluation plan asks for them (:mod:`common.evaluation.plan`), each with noise of its own. The relation is zero-out: a
unit against an empty one, with the number of units public. A patient with records in two hospitals is two patients.

**Modular arithmetic costs no privacy.** The sum modulo R is a function of the sum over the integers, so clipping
to the ring is post-processing. It can cost accuracy: Kairouz et al. bound that error and rotate the vector to reduce
it. Here :meth:`DistributedMechanism.fit` instead takes S so small that the sum leaves the ring with probability below
2^-63, which in a ring of 2^32 leaves 14 to 18 bits for one unit; it refuses a ring in which it can't.

**No floating-point attack.** What travels is whole numbers. That a unit's norm is at most S is checked in integer
arithmetic, on the very numbers that are added; noise is sampled exactly (:mod:`common.privacy.discrete_gaussian`).
Floating point only proposes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
import numpy.typing as npt

from common.config import PrivacyUnit
from common.errors import PrivacyError
from common.keystream import Keystream
from common.privacy import discrete_gaussian
from common.privacy.accounting import Accountant, Epsilon, EpsilonAdversary, MechanismEvent, MechanismKind, epsilon

SMOOTHING_VARIANCE = 4
"""t² of the theorem: what is given away of the sum's variance, of 10^6 and more, to be a function of a Gaussian."""

SMALLEST_SHARE_VARIANCE = 16
"""The smallest variance of a share of the noise; below it τ would not be negligible."""

MOST_HOSPITALS = 1024

LARGEST_NORM_BOUND = 2**18
"""Whole numbers up to it are exact in float32, and a unit's rounding is then below a thousandth at 10^6 parameters."""

LARGEST_DIMENSION = 2**26
"""Squares of at most 2^36 then add up to less than 2^63."""

_ELEMENTS_AT_ONCE = 1 << 16
"""The elements of gradients that are clipped together: 256 KiB, and twice that as whole numbers, fit a core's cache."""

_LARGEST_ROUNDING = 1 / 8
"""The largest share of the clipping norm that rounding may cost; beyond it the ring is too small for the model."""

_TAIL_NATS = 64 * math.log(2)
"""Each of two causes takes a sum out of the ring with probability at most 2^-64."""


@dataclass(frozen=True, slots=True)
class ClippedSum:
    """The sum of some units' clipped gradients, before noise; never leaves the hospital.

    Attributes:
        total: (d,) int64.
        units: how many were added, refused ones among them (they count as zero).
        refused: how many were not finite, or failed the exact check.
    """

    total: npt.NDArray[np.int64]
    units: int
    refused: int

    def __add__(self, other: Self) -> "ClippedSum":
        """Add the sums of two parts of one batch."""
        return ClippedSum(self.total + other.total, self.units + other.units, self.refused + other.refused)


@dataclass(frozen=True, slots=True)
class DistributedMechanism:
    """What all hospitals of a run do alike; see the module for the theorem it relies on.

    Args:
        noise_multiplier: z, what n - X - k hospitals' noise amounts to over S.
        max_grad_norm: C, the L2 norm a unit's gradient is clipped to, in the gradient's own unit.
        norm_bound: S, the same as a whole number.
        dimension: d.
        colluders: k, hospitals that may share what they know with the server.
        tolerated_dropouts: X, hospitals of a cohort that may vanish; a sum over fewer must not be revealed.

    Raises:
        PrivacyError: a value is out of range.
    """

    noise_multiplier: float
    max_grad_norm: float
    norm_bound: int
    dimension: int
    colluders: int
    tolerated_dropouts: int

    def __post_init__(self) -> None:
        """Refuse parameters outside the theorem."""
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise PrivacyError(f"the noise multiplier must be above 0 and finite, got {self.noise_multiplier!r}")
        if not (math.isfinite(self.max_grad_norm) and self.max_grad_norm > 0):
            raise PrivacyError(f"privacy.max_grad_norm must be above 0 and finite, got {self.max_grad_norm!r}")
        if not 1 <= self.dimension <= LARGEST_DIMENSION:
            raise PrivacyError(f"a gradient must have 1 to {LARGEST_DIMENSION} elements, got {self.dimension}")
        if not 1 <= self.norm_bound <= LARGEST_NORM_BOUND:
            raise PrivacyError(f"the integer clipping norm must be 1 to {LARGEST_NORM_BOUND}, got {self.norm_bound}")
        if self.rounding > _LARGEST_ROUNDING * self.norm_bound:
            raise PrivacyError(
                f"{self.dimension} parameters need an integer clipping norm of at least "
                f"{math.ceil(self.rounding / _LARGEST_ROUNDING)}, got {self.norm_bound}; "
                f"set aggregation.modulus_bits to 32, or lower aggregation.max_weight or the number of hospitals"
            )
        if min(self.colluders, self.tolerated_dropouts) < 0:
            raise PrivacyError("privacy.colluders and privacy.tolerated_dropouts must be 0 or more")

    @classmethod
    def fit(
        cls,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        dimension: int,
        hospitals: int,
        expected_units: float,
        colluders: int,
        tolerated_dropouts: int,
        modulus_bits: int,
    ) -> Self:
        """Return the mechanism with the finest rounding whose sums fit the ring.

        A coordinate of the sum is at most S for each unit in the batch, of which there are (Bernstein's inequality)
        at most μ + L/3 + √(L²/9 + 2Lμ) but with probability 2^-64, plus noise that is sub-Gaussian.

        Args:
            noise_multiplier: z.
            max_grad_norm: C.
            dimension: d.
            hospitals: the largest cohort.
            expected_units: μ, expected units of a round's batches over all hospitals together.
            colluders: k.
            tolerated_dropouts: X.
            modulus_bits: the ring is Z modulo 2^modulus_bits.

        Raises:
            PrivacyError: the ring is too small, too few hospitals' noise would remain, or a value is out of range.
        """
        remaining = _remaining(hospitals, colluders, tolerated_dropouts)
        units = expected_units + _TAIL_NATS / 3 + math.sqrt(_TAIL_NATS**2 / 9 + 2 * _TAIL_NATS * expected_units)
        deviations = math.sqrt(2 * (_TAIL_NATS + math.log(2 * dimension)))
        # All n shares may be in the sum, each as large as n - X - k of them need; doubled, it covers their rounding up.
        noise = noise_multiplier * math.sqrt(2 * hospitals / remaining)
        capacity = (2 ** (modulus_bits - 1) - 1) / (units + deviations * noise)
        sampler = math.isqrt(discrete_gaussian.LARGEST_VARIANCE // 2) / noise_multiplier
        return cls(
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            norm_bound=max(1, int(min(LARGEST_NORM_BOUND, capacity, sampler))),
            dimension=dimension,
            colluders=colluders,
            tolerated_dropouts=tolerated_dropouts,
        )

    @property
    def rounding(self) -> float:
        """Return the most that rounding to whole numbers can add to a norm: √d/2."""
        return math.sqrt(self.dimension) / 2

    @property
    def approximation(self) -> float:
        """Return a of the theorem for any number of hospitals."""
        return self.dimension * (_tau(MOST_HOSPITALS, SMALLEST_SHARE_VARIANCE) + 3 * _eta(SMOOTHING_VARIANCE))

    def fewest_survivors(self, cohort: int) -> int:
        """Return n - X: a hospital takes no part in unmasking a sum over fewer.

        Raises:
            PrivacyError: the noise of no honest hospital would be sure to remain.
        """
        _remaining(cohort, self.colluders, self.tolerated_dropouts)
        return cohort - self.tolerated_dropouts

    def share_variance(self, cohort: int) -> int:
        """Return σ², the variance of one hospital's noise in a round with such a cohort: ((zS)² + 4) / m, rounded up.

        Raises:
            PrivacyError: the noise of no honest hospital would be sure to remain, or σ² is out of range.
        """
        remaining = _remaining(cohort, self.colluders, self.tolerated_dropouts)
        # The float is a rational number, so the product is exact and the guarantee is for exactly this multiplier.
        numerator, denominator = self.noise_multiplier.as_integer_ratio()
        squared = (numerator * self.norm_bound) ** 2
        needed = squared + SMOOTHING_VARIANCE * denominator**2
        variance = max(SMALLEST_SHARE_VARIANCE, -(-needed // (remaining * denominator**2)))
        if variance > discrete_gaussian.LARGEST_VARIANCE:
            raise PrivacyError(
                f"the noise variance of one hospital must be at most {discrete_gaussian.LARGEST_VARIANCE}, "
                f"got {variance}; raise privacy.target_epsilon or privacy.delta"
            )
        return variance

    def clip(self, gradients: npt.NDArray[np.float32]) -> ClippedSum:
        """Clip each unit's gradient to whole numbers of norm at most S, and add them up.

        Replacing one unit by nothing changes the sum by at most S in L2 norm, whatever the gradients hold. A unit whose
        gradient isn't finite counts as zero: stopping for it would reveal that it is there.

        Args:
            gradients: (units, d) float32, one row for each *unit*: of a record, or the mean or sum over all records
                of a patient. Any number of rows, none among them; a batch may come in parts.

        Returns:
            The sum over the rows.

        Raises:
            PrivacyError: the shape is wrong.
        """
        if gradients.ndim != 2 or gradients.shape[1] != self.dimension:  # noqa: PLR2004 - units by dimension
            raise PrivacyError(f"gradients must have shape (units, {self.dimension}), got {gradients.shape}")
        total = np.zeros(self.dimension, np.int64)
        accepted = 0
        at_once = max(1, _ELEMENTS_AT_ONCE // self.dimension)
        for start in range(0, len(gradients), at_once):
            whole = self._whole_numbers(gradients[start : start + at_once])
            # The guarantee rests on these lines alone: int64, and no sum of squares can reach 2^63.
            squares = np.einsum("ij,ij->i", whole, whole)
            within = (np.abs(whole).max(axis=1) <= self.norm_bound) & (squares <= self.norm_bound**2)
            total += whole[within].sum(axis=0)
            accepted += int(np.count_nonzero(within))
        return ClippedSum(total, len(gradients), len(gradients) - accepted)

    def noise_share(self, cohort: int, keystream: Keystream) -> npt.NDArray[np.int64]:
        """Return this hospital's share of a round's noise, (d,) int64 from N_Z(0, σ²)^d, exact in law.

        Args:
            cohort: n, the hospitals in the cohort that this hospital masks for.
            keystream: fresh for the round.

        Raises:
            PrivacyError: as :meth:`share_variance`.
        """
        return discrete_gaussian.sample(self.share_variance(cohort), self.dimension, keystream)

    def decode(self, total: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the noisy sum of clipped gradients in the gradient's unit, (d,) float64.

        To make it a mean, divide by the *expected* number of units, which is public; the real one is not.
        """
        return np.multiply(total, self.max_grad_norm / self.norm_bound, dtype=np.float64)

    def event(self, sample_rate: float, rounds: int = 1) -> MechanismEvent:
        """Return what a round costs against the server and k colluding hospitals, to be booked before it starts."""
        return MechanismEvent(
            MechanismKind.DISTRIBUTED_DISCRETE_GAUSSIAN, self.noise_multiplier, sample_rate, rounds, self.approximation
        )

    def event_against(self, colluders: int, cohort: int, sample_rate: float, rounds: int = 1) -> MechanismEvent | None:
        """Return what a round costs against the server and ``colluders`` hospitals, however many k it was made for.

        Args:
            colluders: hospitals whose noise is known, and taken off.
            cohort: n, the hospitals of the round, of whom X may have dropped out.
            sample_rate: q.
            rounds: how many such rounds.

        Returns:
            The event; None where no honest hospital's noise is sure to remain, and nothing can be claimed.
        """
        remaining = self.fewest_survivors(cohort) - colluders
        variance = remaining * self.share_variance(cohort) - SMOOTHING_VARIANCE
        if remaining < 1 or variance <= 0:
            return None
        multiplier = math.nextafter(math.sqrt(variance), 0) / self.norm_bound
        return MechanismEvent(
            MechanismKind.DISTRIBUTED_DISCRETE_GAUSSIAN, multiplier, sample_rate, rounds, self.approximation
        )

    def epsilons(
        self,
        sample_rate: float,
        rounds: int,
        cohort: int,
        delta: float,
        unit: PrivacyUnit,
        accountant: Accountant,
        once_before: tuple["DistributedMechanism", ...] = (),
        beside: tuple[MechanismEvent, ...] = (),
    ) -> tuple[Epsilon, ...]:
        """Return what an outsider with every model, another hospital of the run and the server learn at most.

        An outsider and the server see sums with the noise of n - X hospitals. A hospital of the run sees the models,
        too, and knows its own noise: it learns what a server with one colluding hospital learns, which is more than the
        target ε where k is 0. The server with k hospitals is among the claims where k is above 0. A claim is infinite
        where nothing is promised. ``once_before`` are releases of the same records before the rounds, each made once of
        every unit. ``beside`` are events of the same records whose noise no adversary knows anything of.
        """

        def claim(adversary: EpsilonAdversary, events: Sequence[MechanismEvent | None], colluders: int = 0) -> Epsilon:
            known = [event for event in events if event is not None]
            value = epsilon(known, delta, accountant) if len(known) == len(events) else math.inf
            return Epsilon(value, delta, unit, adversary, accountant, colluders)

        def against(colluders: int) -> list[MechanismEvent | None]:
            before = [each.event_against(colluders, cohort, 1.0) for each in once_before]
            return [self.event_against(colluders, cohort, sample_rate, rounds), *before, *beside]

        claims = (
            claim(EpsilonAdversary.OUTSIDER, against(0)),
            claim(EpsilonAdversary.HOSPITAL, against(1)),
            claim(EpsilonAdversary.SERVER, against(0)),
        )
        if not self.colluders:
            return claims
        planned = [self.event(sample_rate, rounds), *(each.event(1.0) for each in once_before), *beside]
        return (*claims, claim(EpsilonAdversary.COLLUDING_SERVER, planned, self.colluders))

    def _whole_numbers(self, gradients: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Propose whole numbers, row by row; a gradient that isn't finite becomes one that :meth:`clip` refuses."""
        beyond = self.norm_bound + 1
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            norms = np.linalg.norm(gradients, axis=1).astype(np.float64)
            room = self.norm_bound - self.rounding
            factors = np.minimum(self.norm_bound / self.max_grad_norm, room / norms)
            scaled: npt.NDArray[np.float32] = gradients * factors.astype(np.float32)[:, None]
        scaled[~np.isfinite(scaled).all(axis=1)] = beyond
        np.rint(scaled, out=scaled)
        return scaled.clip(-beyond, beyond, out=scaled).astype(np.int64)


def _remaining(hospitals: int, colluders: int, tolerated_dropouts: int) -> int:
    remaining = hospitals - colluders - tolerated_dropouts
    if not 1 <= remaining <= hospitals <= MOST_HOSPITALS:
        raise PrivacyError(
            f"of {hospitals} hospitals at least one honest one's noise must remain, got {tolerated_dropouts} tolerated "
            f"dropouts and {colluders} colluders; lower privacy.tolerated_dropouts or privacy.colluders"
        )
    return remaining


@lru_cache
def _tau(shares: int, variance: int) -> float:
    """Return τ of Kairouz et al. 2021, theorem 1, for one coordinate."""
    return 10 * math.fsum(math.exp(-2 * math.pi**2 * variance * j / (j + 1)) for j in range(1, shares))


def _eta(variance: int) -> float:
    """Return η(t) of the theorem, t² = ``variance``; its second term is already below a double's precision."""
    return 2 * math.fsum(math.exp(-2 * math.pi**2 * variance * j**2) for j in (1, 2))
