"""What a hospital's masked vector holds: one flat array over Z_R, R = 2^16 or 2^32 (DESIGN §2, "The vector").

::

    [ weighted change of the model, fixed point, d elements | weight, in limbs | evaluation counts, in limbs ]

Sums of these over hospitals are all the server ever sees, so even the number of records of one hospital stays unseen.

**No overflow.** The sum is taken modulo R. It is the sum over the integers, and decodes to it, because with at most
n hospitals, ``n = hospitals``:

1. an element of the change is an integer in [-c, c] with ``c = (R/2 - 1) // n``, so |sum| ≤ n c < R/2, and the two's
   complement reading of the residue is the sum;
2. a limb is an integer in [0, 2^k - 1] with the largest k for which ``n (2^k - 1) < R``, so its sum is its residue.

**Scale.** A change x in [-B, B] (B = ``update_bound``) of a hospital with weight w ≤ W (= ``max_weight``) becomes
x w c / (B W), at most c in size; beyond B it saturates, that is, it is clipped to the bound. It is rounded up with the
probability of its fraction, which is cut to multiples of 1/R; so the expectation of the decoded mean is the mean of the
clipped changes, to 1/R of a unit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from common.config import AggregationConfig, EvaluationConfig
from common.errors import ConfigError, RunError
from common.evaluation import EvaluationCounts, EvaluationShape
from common.keystream import SEED_BYTES, Keystream

_CHUNK = 1 << 16
"""Elements encoded at a time: the two temporaries, of 256 or 512 KiB, stay in the second-level cache."""

_FLOAT32_DIGITS = 24
"""Integers of so many significant bits are exact in float32, the precision of the change itself."""


class WeightRangeError(RunError):
    """A weight that no hospital may have, or a sum of weights that no hospitals of this run can have."""


@dataclass(frozen=True)
class DecodedSum:
    """What the sum over the surviving hospitals says; a view of the sum, so that nothing of its size is made anew.

    Attributes:
        residues: (d,) of the ring, read as signed.
        unit: the mean change that 1 stands for.
        total_weight: sum of the weights.
        counts: evaluation counts of the pooled validation and test parts.
    """

    residues: NDArray[Any]
    unit: np.float32
    total_weight: int
    counts: EvaluationCounts

    def mean_of(self, stretch: slice) -> NDArray[np.float32]:
        """Return a stretch of the mean of the hospitals' changes weighted by their weights."""
        mean: NDArray[np.float32] = self.residues[stretch].astype(np.float32)
        mean *= self.unit
        return mean

    @property
    def mean_delta(self) -> NDArray[np.float32]:
        """Return the whole mean, (d,) float32."""
        return self.mean_of(slice(None))


@dataclass(frozen=True)
class DecodedIntegers:
    """As :class:`DecodedSum` for mode ``distributed``: the integers themselves, noise included.

    Attributes:
        residues: (d,) of the ring, read as signed: the sum as residues in [-R/2, R/2).
        total_weight: sum of the weights.
        counts: evaluation counts of the pooled validation and test parts.
    """

    residues: NDArray[Any]
    total_weight: int
    counts: EvaluationCounts

    def total_of(self, stretch: slice) -> NDArray[np.int64]:
        """Return a stretch of the sum, int64."""
        total: NDArray[np.int64] = self.residues[stretch].astype(np.int64)
        return total


@dataclass(frozen=True)
class VectorLayout:
    """Where everything stands in the vector, and how wide it is.

    Args:
        parameters: d, the number of elements of the change (in mode ``distributed``, of the gradient sum).
        hospitals: n, the most vectors that are ever added; the size of the roster.
        modulus_bits: 16 or 32.
        update_bound: B, the largest change of one parameter.
        max_weight: W, the largest weight of one hospital.
        evaluation: which counts there are.

    Raises:
        ConfigError: n vectors cannot be added in this ring without overflow.
    """

    parameters: int
    hospitals: int
    modulus_bits: int
    update_bound: float
    max_weight: int
    evaluation: EvaluationShape

    def __post_init__(self) -> None:
        """Refuse a ring too small for the number of hospitals."""
        if self.modulus_bits not in (16, 32):
            raise ConfigError(f"aggregation.modulus_bits must be 16 or 32, got {self.modulus_bits}")
        if self.hospitals < 1 or self.parameters < 1:
            raise ConfigError(
                f"a vector needs at least 1 parameter and 1 hospital, got {self.parameters} and {self.hospitals}"
            )
        if self.element_bound < 1 or self.limb_bits < 1:
            raise ConfigError(
                f"aggregation.modulus_bits must be 32 to add {self.hospitals} hospitals without overflow, "
                f"got {self.modulus_bits}"
            )

    @classmethod
    def for_run(
        cls,
        aggregation: AggregationConfig,
        evaluation: EvaluationConfig,
        *,
        parameters: int,
        classes: int,
        hospitals: int,
    ) -> Self:
        """Return the layout of a run from the sections of its description.

        Args:
            aggregation: names the ring, the update's bound and the largest weight.
            evaluation: names the bins of the score histogram.
            parameters: d.
            classes: of the task.
            hospitals: on the roster.
        """
        return cls(
            parameters=parameters,
            hospitals=hospitals,
            modulus_bits=aggregation.modulus_bits,
            update_bound=aggregation.update_bound,
            max_weight=aggregation.max_weight,
            evaluation=EvaluationShape(classes=classes, bins=evaluation.score_bins),
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return uint16 or uint32: Z_R at its natural width."""
        return np.dtype(np.uint16 if self.modulus_bits == 16 else np.uint32)  # noqa: PLR2004 - two rings

    @property
    def element_bound(self) -> int:
        """Return c, the largest size of one element of the change at one hospital: see the module's proof.

        Above 2^24 it is cut to 24 significant bits, so that it is itself a float32.
        """
        bound = ((1 << (self.modulus_bits - 1)) - 1) // self.hospitals
        spare = max(0, bound.bit_length() - _FLOAT32_DIGITS)
        return (bound >> spare) << spare

    @property
    def limb_bits(self) -> int:
        """Return k, the bits of an exact count that one element carries: see the module's proof."""
        return (((1 << self.modulus_bits) - 1) // self.hospitals + 1).bit_length() - 1

    @property
    def step(self) -> float:
        """Return the change of one parameter, times its weight, that one unit of an element stands for: B W / c."""
        return self.update_bound * self.max_weight / self.element_bound

    @property
    def length(self) -> int:
        """Return the number of elements of the vector."""
        return self.parameters + int(self._limb_counts.sum())

    def encode(
        self,
        delta: NDArray[np.float32],
        weight: int,
        counts: EvaluationCounts,
        random: Callable[[int], bytes],
    ) -> NDArray[Any]:
        """Return one hospital's vector, before masking.

        Besides the vector itself (half of ``delta`` at R = 2^16) nothing that grows with d is allocated.

        Args:
            delta: (d,) float32, the change of the model; elements beyond ±B are clipped to ±B.
            weight: in [1, W]; the number of training records.
            counts: evaluation of the model the round started from.
            random: source of fresh bytes, ``os.urandom``; 32 are drawn and expanded by AES-256-CTR.

        Raises:
            WeightRangeError: the weight is out of range.
            RunError: the shape is wrong, a count does not fit, or the change is not finite.
        """
        self._check_shape(delta)
        self.check_weight(weight)
        vector = np.empty(self.length, self.dtype)
        elements = vector[: self.parameters]
        Keystream(random(SEED_BYTES)).fill(elements)
        self._round_over_coins(elements, delta, weight)
        vector[self.parameters :] = self._limbs(weight, counts)
        return vector

    def encode_integers(self, integers: NDArray[np.int64], weight: int, counts: EvaluationCounts) -> NDArray[Any]:
        """Return one hospital's vector in mode ``distributed``: integers that already carry their noise, modulo R.

        The bound on their sum is that of the mechanism (``common/privacy/distributed.py``), not of this layout.

        Raises:
            WeightRangeError: the weight is out of range.
            RunError: the shape is wrong or a count does not fit.
        """
        self._check_shape(integers)
        self.check_weight(weight)
        vector = np.empty(self.length, self.dtype)
        vector[: self.parameters] = integers.astype(self.dtype, copy=False)  # C cast: the residue modulo R
        vector[self.parameters :] = self._limbs(weight, counts)
        return vector

    def decode(self, summed: NDArray[Any], hospitals: int) -> DecodedSum:
        """Read the sum of the vectors of ``hospitals`` hospitals.

        No new array grows with d.

        Raises:
            WeightRangeError: no honest hospitals have such a total weight; whose fault it is, nobody can say.
            RunError: the array is not one of this layout, or more vectors were added than it is proven for.
        """
        residues, total_weight, counts = self._parts(summed, hospitals)
        return DecodedSum(residues, np.float32(self.step / total_weight), total_weight, counts)

    def decode_integers(self, summed: NDArray[Any], hospitals: int) -> DecodedIntegers:
        """As :meth:`decode`, for vectors of :meth:`encode_integers`."""
        residues, total_weight, counts = self._parts(summed, hospitals)
        return DecodedIntegers(residues, total_weight, counts)

    def check_weight(self, weight: int) -> None:
        """Raise :class:`WeightRangeError` unless ``weight`` is in [1, W]."""
        if not 1 <= weight <= self.max_weight:
            raise WeightRangeError(
                f"a hospital's weight (its training records) must be 1 to {self.max_weight}, got {weight}; "
                "raise aggregation.max_weight"
            )

    def _round_over_coins(self, coins: NDArray[Any], delta: NDArray[np.float32], weight: int) -> None:
        """Scale, clip and round ``delta``; each element takes the place of the coin, uniform in [0, R), that rounds it.

        With as many binary places as R has bits, floor(x + coin / R) is a sum and a shift of integers. It is at most c,
        because x is; and the sum, below c R + R, fits the signed integer of twice the ring's width.
        """
        factor = np.float32(weight / self.step * 2.0**self.modulus_bits)
        # The largest |x|, at most c, itself a float32; times R, a power of two, it still is one.
        reach = np.float32(self.element_bound * (weight / self.max_weight)) * np.float32(2.0**self.modulus_bits)
        scaled = np.empty(min(_CHUNK, self.parameters), np.float32)
        fixed: NDArray[Any] = np.empty(len(scaled), np.int32 if self.dtype == np.uint16 else np.int64)
        for start in range(0, self.parameters, _CHUNK):
            part, coin = delta[start : start + _CHUNK], coins[start : start + _CHUNK]
            x, y = scaled[: len(part)], fixed[: len(part)]
            if not np.isfinite(part, out=y.view(np.bool_)[: len(part)]).all():
                raise RunError("the model's change must be finite; training diverged: lower training.learning_rate")
            with np.errstate(over="ignore"):  # Beyond float32 is beyond B as well.
                np.multiply(part, factor, out=x)
            np.clip(x, -reach, reach, out=x)
            np.copyto(y, x, casting="unsafe")
            y += coin
            y >>= self.modulus_bits
            np.copyto(coin, y, casting="unsafe")  # The residue modulo R.

    def _limbs(self, weight: int, counts: EvaluationCounts) -> NDArray[Any]:
        integers = np.concatenate([np.array([weight], np.int64), counts.flat()])
        if integers.shape != self._integer_bits.shape:
            raise RunError(f"the evaluation must have {self.evaluation.length} counts, got {len(integers) - 1}")
        if (integers < 0).any() or (integers >> self._integer_bits).any():
            raise RunError("an evaluation count is negative or too large to be summed; see common/evaluation.py")
        limbs = (np.repeat(integers, self._limb_counts) >> self._limb_shifts) & ((1 << self.limb_bits) - 1)
        return limbs.astype(self.dtype)

    def _parts(self, summed: NDArray[Any], hospitals: int) -> tuple[NDArray[Any], int, EvaluationCounts]:
        if summed.shape != (self.length,) or summed.dtype != self.dtype:
            raise RunError(
                f"a sum must be {self.length} elements of {self.dtype}, got {summed.shape} of {summed.dtype}"
            )
        if not 1 <= hospitals <= self.hospitals:
            raise RunError(f"a sum must be over 1 to {self.hospitals} hospitals, got {hospitals}")
        limbs = summed[self.parameters :].astype(np.int64) << self._limb_shifts
        starts = np.concatenate([[0], np.cumsum(self._limb_counts)[:-1]])
        integers = np.add.reduceat(limbs, starts)
        total_weight = int(integers[0])
        if not hospitals <= total_weight <= hospitals * self.max_weight:
            raise WeightRangeError(
                f"{hospitals} hospitals must have a total weight of {hospitals} to {hospitals * self.max_weight}, "
                f"got {total_weight}"
            )
        counts = EvaluationCounts.from_flat(integers[1:], self.evaluation)
        signed = np.int16 if self.dtype == np.uint16 else np.int32
        return summed[: self.parameters].view(signed), total_weight, counts

    def _check_shape(self, elements: NDArray[Any]) -> None:
        if elements.shape != (self.parameters,):
            raise RunError(f"the model has {self.parameters} parameters, got an array of shape {elements.shape}")

    @cached_property
    def _integer_bits(self) -> NDArray[np.int64]:
        return np.concatenate([[self.max_weight.bit_length()], self.evaluation.bits()]).astype(np.int64)

    @cached_property
    def _limb_counts(self) -> NDArray[np.int64]:
        return -(-self._integer_bits // self.limb_bits)

    @cached_property
    def _limb_shifts(self) -> NDArray[np.int64]:
        """Return for each limb how far it stands above its integer's lowest bit, lowest limb first."""
        return np.concatenate([np.arange(n, dtype=np.int64) * self.limb_bits for n in self._limb_counts])
