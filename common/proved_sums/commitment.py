"""C = A z modulo q, with z the vector and ρ: what one hospital commits to, and how commitments are added.

A is the same for a whole run, so the sum of commitments is the commitment to the sum. ρ is fresh for each.

Proof: ``docs/proofs/proved-sums.md``.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.proved_sums import ring
from common.proved_sums.errors import CommitmentBytesError
from common.proved_sums.parameters import ProofParameters
from common.secagg.errors import Place

Centred = NDArray[np.signedinteger[Any]]
"""Entries in [-R/2, R/2): int16 or int32, little-endian."""


@dataclass(frozen=True)
class Commitment:
    """What one hospital commits to its vector with; ``value`` hides both until the sum is known, and then the sum."""

    value: bytes
    """C, :attr:`ProofParameters.commitment_bytes` long."""
    randomness: Centred = field(repr=False)
    """ρ, (m,): travels behind the vector, under the same masks."""


def commit(key: bytes, parameters: ProofParameters, vector: Centred, random: Callable[[int], bytes]) -> Commitment:
    """Commit to a vector.

    Given A, the sum of two honest hospitals' z, and everything of the other hospitals, ``value`` is within 2^-257 of
    uniform on average over A, in statistical distance.

    Args:
        key: of A's stream.
        parameters: of the run.
        vector: (d,), entries of at most R/2 - 1 in size.
        random: source of fresh bytes, ``os.urandom``; ρ is drawn from it directly.
    """
    randomness = draw(parameters, random)
    return Commitment(to_bytes(parameters, ring.multiply(key, parameters, (vector, randomness))), randomness)


def draw(parameters: ProofParameters, random: Callable[[int], bytes]) -> Centred:
    """Return a fresh ρ, (m,), exactly uniform in [-c, c].

    Words of the ring's width are cut to the bits of 2 c + 1 values, and those that are too large are skipped.
    """
    unsigned, signed = np.dtype(f"<u{parameters.modulus_bits // 8}"), np.dtype(f"<i{parameters.modulus_bits // 8}")
    values = 2 * parameters.largest_randomness + 1
    kept: NDArray[np.unsignedinteger[Any]] = np.empty(0, unsigned)
    while len(kept) < parameters.randomness:
        missing = parameters.randomness - len(kept)
        words = np.frombuffer(random(missing * unsigned.itemsize), unsigned) & ((1 << values.bit_length()) - 1)
        kept = np.concatenate([kept, words[words < values]])
    # Both fit the signed integer, because c is at most a third of R/2.
    randomness: Centred = kept.astype(signed)
    randomness -= signed.type(parameters.largest_randomness)
    return randomness


def open_sum(key: bytes, parameters: ProofParameters, total: Centred) -> list[int]:
    """Return the commitment that a sum would have, k integers modulo q.

    Args:
        key: of A's stream.
        parameters: of the run.
        total: (d + m,), the sum of vectors, then that of their ρ.
    """
    return ring.multiply(key, parameters, (total[: parameters.entries], total[parameters.entries :]))


def add(parameters: ProofParameters, commitments: Iterable[list[int]]) -> list[int]:
    """Return the sum of commitments modulo q: the commitment to the sum of what they commit to."""
    return [sum(column) % parameters.lattice.modulus for column in zip(*commitments, strict=True)]


def to_bytes(parameters: ProofParameters, values: list[int]) -> bytes:
    """Return integers modulo q in little-endian bytes, of 4 or 8 each."""
    return b"".join(value.to_bytes(parameters.lattice.element_bytes, "little") for value in values)


def from_bytes(parameters: ProofParameters, value: bytes, place: Place, hospital: str) -> list[int]:
    """Read a commitment.

    Raises:
        CommitmentBytesError: it is not as many integers modulo q as a commitment has, each below q.
    """
    lattice = parameters.lattice
    if len(value) != parameters.commitment_bytes:
        raise CommitmentBytesError(
            place, f"a commitment must have {parameters.commitment_bytes} bytes, got {len(value)}", hospital
        )
    values: list[int] = np.frombuffer(value, np.dtype(f"<u{lattice.element_bytes}")).tolist()
    if max(values) >= lattice.modulus:
        raise CommitmentBytesError(place, "a commitment must be of integers below q, got a larger one", hospital)
    return values
