"""Which commitment a run uses, as a function of its vector's length, its ring and the number of its hospitals.

A is a matrix of ``rank`` rows of polynomials modulo X^N + 1 and a prime q: the module short integer solution problem
(Module-SIS), on which ML-DSA (FIPS 204) stands with the same N = 256. Nothing here is anyone's choice.

Proof: ``docs/proofs/proved-sums.md``.
"""

import math
from dataclasses import dataclass
from functools import cache

from common.proved_sums.errors import ProofParameterError
from common.proved_sums.estimate import (
    MOST_ROOT_HERMITE_FACTOR,
    block_size,
    classical_bits,
    randomness_length,
    root_hermite_factor,
)
from common.secagg.errors import SERVER, Place
from common.secagg.phases import Phase

MOST_ENTRIES_OF_A_SMALL_VECTOR = 1 << 17
"""Up to here commitments are short. Beyond, longer ones over larger polynomials take a quarter of the time, and ten
kilobytes more are nothing beside the vector."""

MOST_ENTRIES = 1 << 29
"""The length of any vector at most: half a billion parameters."""

FEWEST_HOSPITALS = 3

_SPLITTING = 5
"""q modulo 8, for which X^N + 1 has two irreducible factors modulo q, whatever the power of two N."""


@dataclass(frozen=True)
class Lattice:
    """A problem that must be hard."""

    degree: int
    """N, a power of two."""
    rank: int
    """The rows of A, whose entries are polynomials."""
    modulus: int
    """q, a prime that is 5 modulo 8."""

    @property
    def rows(self) -> int:
        """Return k, the rows of A over the integers modulo q: how many of these a commitment has."""
        return self.degree * self.rank

    @property
    def element_bytes(self) -> int:
        """Return how many bytes an integer modulo q takes."""
        return 4 if self.modulus < 1 << 32 else 8


_PRIMES = {16: (1 << 32) - 99, 32: (1 << 64) - 59}
"""The largest primes below 2^32 and 2^64 that are 5 modulo 8, by the width of a vector's ring."""

_SMALL = {bits: Lattice(256, rank, _PRIMES[bits]) for bits, rank in ((16, 4), (32, 5))}
_LARGE = {bits: Lattice(2048, 1, _PRIMES[bits]) for bits in (16, 32)}


@dataclass(frozen=True)
class ProofParameters:
    """One run's commitments; made by :func:`parameters_for`.

    Raises:
        ProofParameterError: a sum could wrap around, a false sum would be too easy to find, or a vector is not hidden.
    """

    entries: int
    """d, of a vector that is committed to."""
    modulus_bits: int
    """16 or 32: vectors are summed modulo R = 2^modulus_bits."""
    hospitals: int
    """n, the most vectors of a sum."""
    lattice: Lattice
    randomness: int
    """m, the entries of ρ, which stand behind the vector's own."""

    def __post_init__(self) -> None:
        """Refuse what is not safe."""
        self._require(1 <= self.entries <= MOST_ENTRIES, f"entries must be 1 to {MOST_ENTRIES}, got {self.entries}")
        self._require(
            self.hospitals >= FEWEST_HOSPITALS,
            f"hospitals must be at least {FEWEST_HOSPITALS}, got {self.hospitals}",
        )
        lattice, largest = self.lattice, self.largest_randomness
        self._require(largest >= 1, f"hospitals must leave room for ρ in the ring, got {self.hospitals}")
        self._require(lattice.modulus > 4 * self.bound, "q must be more than 4 times the largest entry of a sum")
        self._require(
            lattice.modulus % 8 == _SPLITTING and 2 * (2 * largest) ** 2 < lattice.modulus,
            "q must be 5 modulo 8, and so large that every difference of two ρ has an inverse",
        )
        self._require(
            self.randomness % lattice.degree == 0
            and self.randomness >= randomness_length(lattice.rows, lattice.modulus, largest),
            f"ρ must hide a vector and fill whole polynomials, got {self.randomness} entries",
        )
        self._require(
            self.root_hermite_factor <= MOST_ROOT_HERMITE_FACTOR,
            f"the root Hermite factor must be at most {MOST_ROOT_HERMITE_FACTOR}, got {self.root_hermite_factor:.5f}",
        )

    def _require(self, holds: bool, rule: str) -> None:
        if not holds:
            raise ProofParameterError(Place(SERVER, 0, Phase.ADVERTISE_KEYS), rule)

    @property
    def bound(self) -> int:
        """Return the largest size of an entry of a sum: R/2 - 1, so that a centred residue is the entry."""
        return largest_sum(self.modulus_bits)

    @property
    def largest_randomness(self) -> int:
        """Return c: an entry of ρ is uniform in [-c, c], and n of them never pass the bound."""
        return self.bound // self.hospitals

    @property
    def length(self) -> int:
        """Return how many entries a committed vector has: its own, then those of ρ."""
        return self.entries + self.randomness

    @property
    def commitment_bytes(self) -> int:
        """Return the size of a commitment."""
        return self.lattice.rows * self.lattice.element_bytes

    @property
    def upload_bytes(self) -> int:
        """Return how many bytes more a hospital sends: its commitment, and ρ under the masks."""
        return self.commitment_bytes + self.randomness * self.modulus_bits // 8

    @property
    def solution_norm(self) -> float:
        """Return β, the Euclidean length of a break: entries up to 4·bound, where a hospital colludes."""
        return 4 * self.bound * math.sqrt(self.length)

    @property
    def root_hermite_factor(self) -> float:
        """Return δ; infinite where β is too long for an estimate."""
        if self.solution_norm >= self.lattice.modulus:
            return math.inf
        return root_hermite_factor(self.lattice.rows, self.lattice.modulus, self.solution_norm, self.length)

    @property
    def security_bits(self) -> int:
        """Return log2 of what it costs to find a false sum, by core-SVP."""
        return classical_bits(block_size(self.root_hermite_factor))


def largest_sum(modulus_bits: int) -> int:
    """Return R/2 - 1."""
    return (1 << (modulus_bits - 1)) - 1


@cache
def parameters_for(entries: int, modulus_bits: int, hospitals: int) -> ProofParameters:
    """Return the commitments of a run.

    Args:
        entries: d, of the vector: the change of the model.
        modulus_bits: 16 or 32.
        hospitals: n, on the roster.

    Raises:
        ProofParameterError: there are none for these.
    """
    lattice = (_SMALL if entries <= MOST_ENTRIES_OF_A_SMALL_VECTOR else _LARGE).get(modulus_bits)
    if lattice is None:
        place = Place(SERVER, 0, Phase.ADVERTISE_KEYS)
        raise ProofParameterError(place, f"sums are proved in rings of 16 and 32 bits, got {modulus_bits}")
    largest = largest_sum(modulus_bits) // max(hospitals, 1)
    needed = randomness_length(lattice.rows, lattice.modulus, largest) if largest else 0
    return ProofParameters(entries, modulus_bits, hospitals, lattice, -(-needed // lattice.degree) * lattice.degree)
