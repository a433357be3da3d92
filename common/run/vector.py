"""What a hospital's masked vector holds: one flat array over Z_R, R = 2^16 or 2^32.

::

    [ tail: weight, validation units, test units, evaluation entries | weighted change of the model, d elements ]

In a run that proves its sums two more parts follow, which are committed to with the change: the weight once more, in
limbs, and ρ (:mod:`common.proved_sums`)::

    [ tail | change, d elements | weight, in limbs | ρ ]

The tail's entries are whole numbers modulo 2^32 with masks of their own, each in one or two elements
(:meth:`common.secagg.parameters.RunParameters.segments`); the change is fixed point modulo R. Weight and units are what
hospitals state about themselves, so their sums are public. Everything else is seen in sums alone.

**No overflow.** A sum is taken modulo R. It is the sum over the integers, and decodes to it, because with at most
n hospitals, ``n = hospitals``:

1. an element of the change is an integer in [-c, c] with ``c = (R/2 - 1) // n``, so |sum| ≤ n c < R/2, and the two's
   complement reading of the residue is the sum;
2. exact counts are cut into limbs, integers in [0, 2^k - 1] with the largest k for which ``n (2^k - 1) < 2^32``, so the
   sum of limbs is its residue;
3. entries under noise are whole, never in limbs: the high limbs of a noisy sum would carry one hospital's noise, not
   everyone's. They are read as signed. A unit moves an entry by at most the plan's norm bound S, so their sum is below
   2^31 while S times the units stated, and the noise, are (:meth:`VectorLayout.check_units`).

4. limbs of the proved weight are integers in [0, 2^k - 1] with the largest k for which ``n (2^k - 1)`` is below R/2. A
   weight is what a hospital states and carries no noise, so sums of its limbs show nothing about its records.

**Scale.** A change x in [-B, B] (B = ``update_bound``) of a hospital with weight w ≤ W (= ``max_weight``) becomes
x w c / (B W), at most c in size; beyond B it saturates, that is, it is clipped to the bound. It is rounded up with the
probability of its fraction, which is cut to multiples of 1/R; so the expectation of the decoded mean is the mean of the
clipped changes, to 1/R of a unit.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from common.config import AggregationConfig
from common.errors import ConfigError, RunError
from common.evaluation import EvaluationCounts, EvaluationShape
from common.keystream import SEED_BYTES, Keystream
from common.proved_sums.commitment import commit
from common.proved_sums.parameters import ProofParameters, largest_sum, parameters_for
from common.secagg.parameters import COUNT_BITS

_CHUNK = 1 << 16
"""The elements that are encoded at a time: the two temporaries, of 256 or 512 KiB, stay in the second-level cache."""

_FLOAT32_DIGITS = 24
"""The significant bits of integers that are exact in float32, the precision of the change itself."""


_DEVIATIONS = 10.0
"""How many deviations a sum of discrete Gaussian noise passes with probability 2^-70 at most."""


class WeightRangeError(RunError):
    """A weight that no hospital may have, or a sum of weights that no hospitals of this run can have."""


@dataclass(frozen=True)
class Tail:
    """What stands before the change in a hospital's vector, or in a sum of such.

    Attributes:
        weight: in the mean: the training units that the hospital states.
        validation_units: that its evaluation entries are over, as it states them; training units, where they count
            who is trained on.
        test_units: likewise.
        entries: (evaluation length,) int64: of the release that was asked for, with noise, or exact counts.
    """

    weight: int
    validation_units: int
    test_units: int
    entries: NDArray[np.int64] = field(repr=False)


@dataclass(frozen=True)
class DecodedSum:
    """What the sum over the surviving hospitals says; a view of the sum, so that nothing of its size is allocated.

    Attributes:
        residues: (d,) of the ring, read as signed: in mode ``distributed`` the sum itself, noise included.
        unit: the mean change that 1 stands for; without meaning in mode ``distributed``.
        tail: sums of the hospitals' tails.
    """

    residues: NDArray[Any] = field(repr=False)
    unit: np.float32
    tail: Tail

    def mean_of(self, stretch: slice) -> NDArray[np.float32]:
        """Return a stretch of the mean of the hospitals' changes weighted by their weights."""
        mean: NDArray[np.float32] = self.residues[stretch].astype(np.float32)
        mean *= self.unit
        return mean

    @property
    def mean_delta(self) -> NDArray[np.float32]:
        """Return the whole mean, (d,) float32."""
        return self.mean_of(slice(None))

    def total_of(self, stretch: slice) -> NDArray[np.int64]:
        """Return a stretch of the sum of the elements, int64."""
        total: NDArray[np.int64] = self.residues[stretch].astype(np.int64)
        return total


PUBLIC_ENTRIES = 3
"""How many entries stand first in a tail: weight, validation units and test units."""


@dataclass(frozen=True)
class VectorLayout:
    """Where everything stands in the vector, and how wide it is.

    Args:
        parameters: d, the number of elements of the change (in mode ``distributed``, of the gradient sum).
        hospitals: n, the most vectors that are ever added; the size of the roster.
        modulus_bits: 16 or 32.
        update_bound: B, the largest change of one parameter.
        max_weight: W, the largest weight of one hospital.
        evaluation: which counts there are where they are exact, or how many entries a release under noise has at most.
        proves_sums: the weight stands behind the change once more, and then ρ.

    Raises:
        ConfigError: n vectors cannot be added in this ring without overflow.
    """

    parameters: int
    hospitals: int
    modulus_bits: int
    update_bound: float
    max_weight: int
    evaluation: EvaluationShape | int
    proves_sums: bool = False

    def __post_init__(self) -> None:
        """Refuse a ring too small for the number of hospitals."""
        if self.modulus_bits not in (16, 32):
            raise ConfigError(f"aggregation.modulus_bits must be 16 or 32, got {self.modulus_bits}")
        if self.hospitals < 1 or self.parameters < 1:
            raise ConfigError(
                f"a vector needs at least 1 parameter and 1 hospital, got {self.parameters} and {self.hospitals}"
            )
        if self.element_bound < 1:
            raise ConfigError(
                f"aggregation.modulus_bits must be 32 to add {self.hospitals} hospitals without overflow, "
                f"got {self.modulus_bits}"
            )

    @classmethod
    def for_run(
        cls,
        aggregation: AggregationConfig,
        evaluation: EvaluationShape | int,
        *,
        parameters: int,
        hospitals: int,
    ) -> Self:
        """Return the layout of a run from the sections of its description.

        Args:
            aggregation: names the ring, the update's bound and the largest weight.
            evaluation: the exact counts, or the length of the longest release of the run's plan.
            parameters: d.
            hospitals: on the roster.
        """
        return cls(
            parameters=parameters,
            hospitals=hospitals,
            modulus_bits=aggregation.modulus_bits,
            update_bound=aggregation.update_bound,
            max_weight=aggregation.max_weight,
            evaluation=evaluation,
            proves_sums=aggregation.proved_sums,
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
        """Return k, the bits of an exact count that one entry of the tail carries: see the module's proof."""
        return (((1 << COUNT_BITS) - 1) // self.hospitals + 1).bit_length() - 1

    @property
    def step(self) -> float:
        """Return the change of one parameter, times its weight, that one unit of an element stands for: B W / c."""
        return self.update_bound * self.max_weight / self.element_bound

    @property
    def counts_length(self) -> int:
        """Return the number of entries in the tail."""
        return PUBLIC_ENTRIES + (
            self.evaluation if isinstance(self.evaluation, int) else int(self._limb_counts(self.evaluation).sum())
        )

    @property
    def length(self) -> int:
        """Return the number of elements of the vector, its tail included."""
        behind = self.proof.length if self.proves_sums else self.parameters
        return self.counts_length * (COUNT_BITS // self.modulus_bits) + behind

    @property
    def proof(self) -> ProofParameters:
        """Return what a hospital commits to its change and weight with, in a run that proves its sums.

        Raises:
            ProofParameterError: there are no such commitments for this length, ring and number of hospitals.
        """
        return parameters_for(self.parameters + self.weight_limbs, self.modulus_bits, self.hospitals)

    @property
    def weight_limb_bits(self) -> int:
        """Return k, the bits of a weight that one element carries: see the module's proof."""
        return (largest_sum(self.modulus_bits) // self.hospitals + 1).bit_length() - 1

    @property
    def weight_limbs(self) -> int:
        """Return how many elements a proved weight takes."""
        return -(-self.max_weight.bit_length() // self.weight_limb_bits) if self.proves_sums else 0

    @property
    def signed(self) -> np.dtype[Any]:
        """Return int16 or int32: the ring, read as signed."""
        return np.dtype(np.int16 if self.modulus_bits == 16 else np.int32)  # noqa: PLR2004 - two rings

    def commit(self, vector: NDArray[Any], key: bytes, random: Callable[[int], bytes]) -> bytes:
        """Put ρ into a vector that :meth:`encode` made, and return the commitment to its change and weight.

        Args:
            vector: changed in place.
            key: of the run's matrix, :func:`common.proved_sums.expansion.matrix_key`.
            random: source of fresh bytes, ``os.urandom``.
        """
        proved = vector[len(vector) - self.proof.length :].view(self.signed)
        made = commit(key, self.proof, proved[: self.proof.entries], random)
        proved[self.proof.entries :] = made.randomness
        return made.value

    def proved_part(self, summed: NDArray[Any]) -> NDArray[Any]:
        """Return what of a sum is proved: change, weight and ρ, as a view."""
        return summed[len(summed) - self.proof.length :]

    def encode(self, delta: NDArray[np.float32], tail: Tail, random: Callable[[int], bytes]) -> NDArray[Any]:
        """Return one hospital's vector, before masking.

        Besides the vector itself (half of ``delta`` at R = 2^16) nothing that grows with d is allocated. Nothing is
        refused for what ``delta`` holds: an element beyond ±B is clipped to it, one that is undefined counts as 0.

        Args:
            delta: (d,) float32, the change of the model.
            tail: the weight in [1, W], and the evaluation of the model that the round started from.
            random: source of fresh bytes, ``os.urandom``; 32 are drawn and expanded by AES-256-CTR.

        Raises:
            WeightRangeError: the weight is out of range.
            RunError: a shape is wrong, or a count does not fit.
        """
        self._check_shape(delta)
        vector, elements = self._with_tail(tail)
        Keystream(random(SEED_BYTES)).fill(elements)
        self._round_over_coins(elements, delta, tail.weight)
        return vector

    def encode_integers(self, integers: NDArray[np.int64], tail: Tail) -> NDArray[Any]:
        """Return one hospital's vector in mode ``distributed``: integers that already carry their noise, modulo R.

        The bound on their sum is that of the mechanism (``common/privacy/distributed.py``), not of this layout.

        Raises:
            WeightRangeError: the weight is out of range.
            RunError: a shape is wrong, or a count does not fit.
        """
        self._check_shape(integers)
        vector, elements = self._with_tail(tail)
        elements[:] = integers.astype(self.dtype, copy=False)  # C cast: the residue modulo R
        return vector

    def decode(self, summed: NDArray[Any], hospitals: int) -> DecodedSum:
        """Read the sum of the vectors of ``hospitals`` hospitals.

        No new array grows with d.

        Raises:
            WeightRangeError: no honest hospitals have such a total weight; nobody can say who caused it.
            RunError: the array is not one of this layout, or more vectors were added than it is proven for.
        """
        if summed.shape != (self.length,) or summed.dtype != self.dtype:
            raise RunError(
                f"a sum must be {self.length} elements of {self.dtype}, got {summed.shape} of {summed.dtype}"
            )
        if not 1 <= hospitals <= self.hospitals:
            raise RunError(f"a sum must be over 1 to {self.hospitals} hospitals, got {hospitals}")
        head = self._head
        counts, elements = summed[:head].view(np.uint32), summed[head:].view(self.signed)
        total_weight = self.proved_weight(elements) if self.proves_sums else int(counts[0])
        self._check_total_weight(total_weight, hospitals)
        tail = Tail(total_weight, int(counts[1]), int(counts[2]), self._entries(counts[PUBLIC_ENTRIES:]))
        return DecodedSum(elements[: self.parameters], np.float32(self.step / total_weight), tail)

    def decode_proved(self, proved: NDArray[Any], hospitals: int) -> DecodedSum:
        """Read a sum of changes and weights that was proved, without ρ; the tail has nothing but the weight.

        Raises:
            WeightRangeError: no honest hospitals have such a total weight.
        """
        total_weight = self.check_proved_weight(proved, hospitals)
        tail = Tail(total_weight, 0, 0, np.zeros(0, np.int64))
        return DecodedSum(proved[: self.parameters], np.float32(self.step / total_weight), tail)

    def check_proved_weight(self, proved: NDArray[Any], hospitals: int) -> int:
        """Return the total weight in a sum that was proved.

        Raises:
            WeightRangeError: no honest hospitals have it.
        """
        total_weight = self.proved_weight(proved)
        self._check_total_weight(total_weight, hospitals)
        return total_weight

    @property
    def _head(self) -> int:
        """Return how many elements the tail takes."""
        return self.counts_length * (COUNT_BITS // self.modulus_bits)

    def _check_total_weight(self, total_weight: int, hospitals: int) -> None:
        if not hospitals <= total_weight <= hospitals * self.max_weight:
            raise WeightRangeError(
                f"{hospitals} hospitals must have a total weight of {hospitals} to {hospitals * self.max_weight}, "
                f"got {total_weight}"
            )

    def proved_weight(self, elements: NDArray[Any]) -> int:
        """Return the weight in a sum that was proved, whatever it is; :meth:`check_proved_weight` refuses a bad one."""
        limbs = elements[self.parameters : self.parameters + self.weight_limbs].tolist()
        return sum(int(limb) << (position * self.weight_limb_bits) for position, limb in enumerate(limbs))

    def exact_counts(self, tail: Tail) -> EvaluationCounts:
        """Return the exact counts in a tail; for a layout of such.

        Raises:
            RunError: the layout is of entries under noise.
        """
        if isinstance(self.evaluation, int):
            raise RunError("a sum under noise holds no exact counts")
        return EvaluationCounts.from_flat(tail.entries, self.evaluation)

    def check_units(self, units: int, norm_bound: int, deviation: float) -> None:
        """Refuse a number of evaluation units whose noisy sum could leave the ring.

        Args:
            units: of all hospitals together.
            norm_bound: S.
            deviation: of the noise of all hospitals together.

        Raises:
            WeightRangeError: the sum could reach 2^31 by chance of some 2^-64.
        """
        if units * norm_bound + _DEVIATIONS * deviation >= 1 << (COUNT_BITS - 1):
            raise WeightRangeError(
                f"the consortium's evaluation units must be below {(1 << (COUNT_BITS - 1)) // norm_bound}, got {units}"
            )

    def check_weight(self, weight: int) -> None:
        """Raise :class:`WeightRangeError` unless ``weight`` is in [1, W]."""
        if not 1 <= weight <= self.max_weight:
            raise WeightRangeError(
                f"a hospital's weight (the training units it states) must be 1 to {self.max_weight}, got {weight}; "
                "raise aggregation.max_weight, or lower hospital.stated_training_units"
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
            with np.errstate(over="ignore"):  # Beyond float32 is beyond B as well.
                np.multiply(part, factor, out=x)
            np.nan_to_num(x, copy=False, nan=0.0, posinf=np.inf, neginf=-np.inf)
            np.clip(x, -reach, reach, out=x)
            np.copyto(y, x, casting="unsafe")
            y += coin
            y >>= self.modulus_bits
            np.copyto(coin, y, casting="unsafe")  # The residue modulo R.

    def _with_tail(self, tail: Tail) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return an unfinished vector whose tail is in place, and a view of the elements that are not."""
        self.check_weight(tail.weight)
        vector = np.empty(self.length, self.dtype)
        head = self._head
        counts = vector[:head].view(np.uint32)
        counts[:PUBLIC_ENTRIES] = (tail.weight, tail.validation_units, tail.test_units)
        counts[PUBLIC_ENTRIES:] = self._residues(tail.entries)
        behind = head + self.parameters
        for position in range(self.weight_limbs):
            vector[behind + position] = tail.weight >> (position * self.weight_limb_bits) & (
                (1 << self.weight_limb_bits) - 1
            )
        vector[behind + self.weight_limbs :] = 0
        return vector, vector[head:behind]

    def _residues(self, entries: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Return evaluation entries modulo 2^32: whole where they carry noise, in limbs where they are exact."""
        if isinstance(self.evaluation, int):
            if entries.shape != (self.evaluation,):
                raise RunError(f"the evaluation must have {self.evaluation} entries, got {entries.shape}")
            return entries.astype(np.uint32)
        bits = self.evaluation.bits()
        if entries.shape != bits.shape:
            raise RunError(f"the evaluation must have {len(bits)} counts, got {entries.shape}")
        if (entries < 0).any() or (entries >> bits).any():
            raise RunError("an evaluation count is negative or too large to be summed; see common/evaluation")
        repeated = np.repeat(entries, self._limb_counts(self.evaluation))
        limbs = (repeated >> self._limb_shifts(self.evaluation)) & ((1 << self.limb_bits) - 1)
        return limbs.astype(np.uint32)

    def _entries(self, residues: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return the inverse of :meth:`_residues` for a sum."""
        if isinstance(self.evaluation, int):
            return residues.view(np.int32).astype(np.int64)
        limbs = residues.astype(np.int64) << self._limb_shifts(self.evaluation)
        starts = np.concatenate([[0], np.cumsum(self._limb_counts(self.evaluation))[:-1]])
        whole: NDArray[np.int64] = np.add.reduceat(limbs, starts)
        return whole

    def _check_shape(self, elements: NDArray[Any]) -> None:
        if elements.shape != (self.parameters,):
            raise RunError(f"the model has {self.parameters} parameters, got an array of shape {elements.shape}")

    def _limb_counts(self, shape: EvaluationShape) -> NDArray[np.int64]:
        return -(-shape.bits() // self.limb_bits)

    def _limb_shifts(self, shape: EvaluationShape) -> NDArray[np.int64]:
        """Return for each limb how far it stands above its integer's lowest bit, lowest limb first."""
        return np.concatenate([np.arange(n, dtype=np.int64) * self.limb_bits for n in self._limb_counts(shape)])
