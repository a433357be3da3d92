"""Who cheated in a sum that honest vectors cannot have: a function of what was signed, the same for everybody.

What a vector must keep is linear, or bounded by the triangle inequality. So where every stripped vector keeps it, the
sum keeps it; and where the sum does not, somebody is named.

Proof: ``docs/proofs/disputes.md``.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from common.proved_sums.commitment import Centred, add, from_bytes, open_sum
from common.proved_sums.errors import CommitmentBytesError
from common.proved_sums.expansion import matrix_key
from common.proved_sums.parameters import ProofParameters
from common.secagg.binding import bound_hash
from common.secagg.disputes import ShownDispute, is_advertised, is_genuine, strip
from common.secagg.errors import SERVER, Place, UnfoundedDisputeError
from common.secagg.masks import MaskApplier, apply_masks
from common.secagg.messages import Dispute, OpenedChange, OpenedChanges, encode
from common.secagg.parameters import Vector
from common.secagg.phases import Phase


class Fault(StrEnum):
    """What a hospital is named for."""

    NO_COMMITMENT = "no_commitment"
    """Its commitment is not what it signed the hash of, or no commitment at all."""
    OTHER_KEY = "other_key"
    """It showed another key than it advertised."""
    ENTRY = "entry"
    """An entry of its vector is larger than any honest one."""
    OTHER_VECTOR = "other_vector"
    """Its vector is not what it committed to."""
    WEIGHT = "weight"
    """Its weight is none that a hospital of the run may have."""
    LENGTH = "length"
    """Its change is longer than the run allows."""
    NOT_OPENED = "not_opened"
    """It showed nothing, says the server, and nobody who did is at fault. Where that many showed nothing that it may be
    the network, nobody is named."""


_PARTS = 3
"""Fewer than a third of the survivors are named for silence, as many as may collude."""

_PIECE = 1 << 16
"""The elements of which squares are in memory at a time."""

_HALF = 16
"""Bits of a part of an entry."""

_DOUBLE = 1e-9
"""By how much more a single change must keep to the bound than its part of a sum: more than double precision rounds,
and much less than single precision may lengthen an honest change (``common/run/next_model.py``)."""


@dataclass(frozen=True)
class Rules:
    """What vectors of a round must keep, and their sums."""

    proof: ProofParameters
    parameters: int
    """d: the entries of a change; limbs of the weight stand behind it, then ρ."""
    longest: float | None
    """The length of a change at most, in units of the ring, with all that rounding adds; None where it is not bound."""
    weight_limb_bits: int
    most_weight: int
    longest_per_weight: float = 0.0
    """What is added to that for each unit of a hospital's weight."""

    @property
    def largest_entry(self) -> int:
        """Return the size of an honest vector's entry at most: n of them never pass the bound of a sum."""
        return self.proof.bound // self.proof.hospitals

    def weight(self, centred: Centred) -> int:
        """Return the weight in a vector, or the sum of weights in a sum."""
        limbs = centred[self.parameters : self.proof.entries].tolist()
        return sum(int(limb) << (position * self.weight_limb_bits) for position, limb in enumerate(limbs))


def vector_fault(rules: Rules, key: bytes, commitment: list[int], stripped: Vector) -> Fault | None:
    """Return what is wrong with one hospital's vector; None where it is as an honest one may be.

    Args:
        rules: of the round.
        key: of A's stream.
        commitment: C_u.
        stripped: z_u, of the ring.
    """
    centred = _centred(rules, stripped)
    longest = _longest(rules, 1, centred)
    strict = None if longest is None else longest * (1 - _DOUBLE)
    return _fault(rules, key, commitment, centred, rules.largest_entry, (1, rules.most_weight), strict)


def sum_fault(rules: Rules, key: bytes, commitments: Iterable[list[int]], total: Vector) -> Fault | None:
    """Return what is wrong with the sum of the vectors that are committed to; None where honest ones may have it."""
    several, centred = list(commitments), _centred(rules, total)
    number = len(several)
    weights = (number, number * rules.most_weight)
    committed = add(rules.proof, several)
    return _fault(rules, key, committed, centred, rules.proof.bound, weights, _longest(rules, number, centred))


def _longest(rules: Rules, number: int, centred: Centred) -> float | None:
    """Return how long the change of a vector, or of the sum of so many, may be with the weight that it states."""
    if rules.longest is None:
        return None
    return rules.longest * number + rules.longest_per_weight * rules.weight(centred)


def _centred(rules: Rules, vector: Vector) -> Centred:
    return vector.view(f"<i{rules.proof.modulus_bits // 8}")


def _fault(
    rules: Rules,
    key: bytes,
    committed: list[int],
    centred: Centred,
    largest: int,
    weights: tuple[int, int],
    longest: float | None,
) -> Fault | None:
    if int(centred.min()) < -largest or int(centred.max()) > largest:
        return Fault.ENTRY
    if open_sum(key, rules.proof, centred) != committed:
        return Fault.OTHER_VECTOR
    if not weights[0] <= rules.weight(centred) <= weights[1]:
        return Fault.WEIGHT
    if longest is not None and _square(centred[: rules.parameters]) > longest * longest:
        return Fault.LENGTH
    return None


def _square(entries: Centred) -> int:
    """Return the sum of squares exactly, for entries of up to 32 bits: none of the three products can overflow.

    >>> _square(np.array([3, -4, 2**31 - 1], np.int32)) == 25 + (2**31 - 1) ** 2
    True
    """
    square = 0
    for start in range(0, len(entries), _PIECE):
        piece = entries[start : start + _PIECE].astype(np.int64)
        high, low = piece >> _HALF, piece & ((1 << _HALF) - 1)
        square += int(high @ high) << 2 * _HALF
        square += int(high @ low) << _HALF + 1
        square += int(low @ low)
    return square


def early_faults(rules: Rules, shown: ShownDispute) -> dict[str, Fault]:
    """Return who is at fault before anybody has shown a key: then nobody needs to."""
    return {name: Fault.NO_COMMITMENT for name in shown.round.survivors if _commitment(rules, shown, name) is None}


def require_fault(rules: Rules, shown: ShownDispute, place: Place) -> None:
    """Refuse a dispute about a sum that holds; without this a server could have every change opened.

    Raises:
        UnfoundedDisputeError: the sum is as honest vectors may have it; the server lies.
    """
    values = (_commitment(rules, shown, name) for name in shown.round.survivors)
    commitments = [value for value in values if value is not None]
    if len(commitments) < len(shown.round.survivors):
        return
    if sum_fault(rules, matrix_key(shown.round.run, rules.proof), commitments, shown.total) is None:
        raise UnfoundedDisputeError(
            place, "a sum must fail at this hospital, too, before it shows anything; this one holds"
        )


def verdict(
    rules: Rules, shown: ShownDispute, opened: Iterable[OpenedChange], apply: MaskApplier = apply_masks
) -> Mapping[str, Fault]:
    """Return who has cheated in a round whose sum fails, and how.

    Args:
        rules: of the round.
        shown: what the server showed, checked.
        opened: what hospitals showed of their changes; what is not signed by its hospital counts as not there.
        apply: takes masks off.

    Returns:
        Somebody, whenever :func:`require_fault` lets the dispute pass and more than two thirds have shown something.
        Never a hospital that kept to the protocol, but for :attr:`Fault.NOT_OPENED`: what did not arrive, a server can
        have withheld.
    """
    early = early_faults(rules, shown)
    if early:
        return early
    key, of = matrix_key(shown.round.run, rules.proof), shown.round
    genuine = {each.hospital: each for each in opened if is_genuine(of, each)}
    faults: dict[str, Fault] = {}
    for name, each in sorted(genuine.items()):
        commitment = _commitment(rules, shown, name)
        if not is_advertised(of, each):
            faults[name] = Fault.OTHER_KEY
        elif commitment is not None:
            fault = vector_fault(rules, key, commitment, strip(shown, each, apply))
            if fault is not None:
                faults[name] = fault
    silent = [name for name in of.survivors if name not in genuine]
    few = _PARTS * len(silent) < len(of.survivors)
    return faults or (dict.fromkeys(silent, Fault.NOT_OPENED) if few else {})


def evidence_hash(shown: Dispute, opened: OpenedChanges) -> str:
    """Return the SHA-256, in hexadecimal, of what a verdict is a function of, beside the signed views of the round."""
    return bound_hash("verdict", encode(shown), encode(opened)).hex()


def _commitment(rules: Rules, shown: ShownDispute, hospital: str) -> list[int] | None:
    value = shown.commitments.get(hospital)
    if value is None:
        return None
    try:
        return from_bytes(rules.proof, value, Place(SERVER, shown.round.round_number, Phase.VERDICT), hospital)
    except CommitmentBytesError:
        return None


def longest_in_units(longest: float, unit: float, parameters: int, rounded: float) -> float:
    """Return how long an honest change is at most in units of the ring, rounded to whole ones.

    Args:
        longest: S, of the run.
        unit: what one unit stands for.
        parameters: d; each is moved by less than one unit.
        rounded: by how much single precision may lengthen it, as a part of it.
    """
    return longest / unit * (1 + rounded) + math.sqrt(parameters)
