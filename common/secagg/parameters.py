"""What a run fixes before its first round: who may take part, the ring, the thresholds and whom they withstand.

Proofs: ``docs/proofs/threshold.md`` (t counts on all members), ``docs/proofs/rings.md`` (two segments).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.secagg.errors import SERVER, ParameterError, Place
from common.secagg.phases import Phase

VERSION = 3
"""The protocol's version: bound into every derived key and signature, and the first byte after a message's mark."""

SECURE_MINIMUM = 3
"""The fewest hospitals: from a sum of two, each could compute what the other sent."""

MOST_HOSPITALS = 4096
"""An upper bound on any roster, so that no decoder can be made to allocate without end."""

HASH_BYTES = 32
PUBLIC_KEY_BYTES = 32

_HOSPITAL = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_RUN_ID = re.compile(r"[0-9a-f]{32}")

Vector = NDArray[np.unsignedinteger[Any]]
"""A flat array of integers modulo R = 2^16 or 2^32; the ring's addition is the machine's own."""

COUNT_BITS = 32
"""The width of a count at the head of a vector, for any R."""


class Segments(NamedTuple):
    """A vector's two parts."""

    counts: Vector
    change: Vector


class Segment(StrEnum):
    """Names a part of a vector in what its masks are derived from, in the order of :class:`Segments`."""

    COUNTS = "counts"
    CHANGE = "change"


class Adversary(StrEnum):
    """Which server the run withstands (Bonawitz et al. 2017, sections 6.1 and 6.2)."""

    ACTIVE = "active"
    """It may send anything to anybody; two exchanges a round, three where somebody is missing."""
    SEMI_HONEST = "semi-honest"
    """It follows the protocol and reads everything; two exchanges a round, always."""


@dataclass(frozen=True)
class GraphParameters:
    """What a round of many hospitals assumes and guarantees; see :mod:`common.secagg.neighbours`."""

    complete_up_to: int = 64
    """Hospitals. Up to here everyone masks with everyone, which needs no assumption but the threshold's."""
    colluding: float = 0.1
    """The part of the roster that may collude with the server; all of it may be in a smaller round."""
    dropping_out: float = 0.1
    """The part of the hospitals that may drop out of a round without ending it."""
    security_bits: int = 40
    """Minus log2 of the probability that the graph protects nobody; statistical, as in Bell et al. 2020."""
    grinding_bits: int = 64
    """Log2 of the graphs an active server can try within a round, each at the cost of some hashes."""
    correctness_bits: int = 30
    """Minus log2 of the probability that a round ends although no more than stated dropped out."""

    def colluders(self, roster: int) -> int:
        """Return how many hospitals of a roster of this size may collude with the server."""
        return int(self.colluding * roster)

    def dropouts(self, hospitals: int) -> int:
        """Return how many of ``hospitals`` may drop out."""
        return int(self.dropping_out * hospitals)


@dataclass(frozen=True)
class RunParameters:
    """One run of the protocol, as each party holds it: from its own configuration, never from a message.

    Raises:
        ParameterError: a value is out of its range; the message names it.
    """

    run_id: str
    """32 hexadecimal digits."""
    config_hash: bytes
    """SHA-256 of the run description, 32 bytes."""
    roster: Mapping[str, bytes] = field(repr=False)
    """Every hospital that may take part, and its Ed25519 identity public key, 32 bytes."""
    min_hospitals: int
    """A hospital puts the larger of the run's and its own here."""
    modulus_bits: int
    """16 or 32: R = 2^modulus_bits."""
    vector_length: int
    """Elements of the ring in the whole vector, its counts included."""
    counts_length: int = 0
    """Whole numbers modulo 2^32 at the head of the vector, each in 32 / modulus_bits of its elements; see
    :func:`segments`."""
    adversary: Adversary = Adversary.ACTIVE
    graph: GraphParameters = GraphParameters()
    proves_sums: bool = False
    """Whether each hospital commits to what its vector hides, so that the sum can be proved
    (:mod:`common.proved_sums`)."""
    disputes: bool = False
    """Whether change and counts have masking keys of their own, so that the change alone can be opened in a dispute
    (:mod:`common.secagg.disputes`)."""
    consortium: int | None = None
    """How many hospitals may collude with the server in the sense of ``threshold``: all members of the consortium, of
    whom the roster may name a part. None where the roster names them all."""

    def __post_init__(self) -> None:
        """Check every range, and make the roster read-only and sorted."""
        self._require(_RUN_ID.fullmatch(self.run_id) is not None, "run_id must be 32 hexadecimal digits")
        self._require(len(self.config_hash) == HASH_BYTES, f"config_hash must have {HASH_BYTES} bytes")
        self._require(self.modulus_bits in (16, 32), f"modulus_bits must be 16 or 32, got {self.modulus_bits}")
        self._require(self.vector_length >= 1, f"vector_length must be at least 1, got {self.vector_length}")
        self._require(
            0 <= self.counts_length * (COUNT_BITS // self.modulus_bits) <= self.vector_length,
            f"counts_length must fit into the vector of {self.vector_length} elements, got {self.counts_length}",
        )
        self._require(
            self.adversary is Adversary.ACTIVE or not self.proves_sums,
            "sums are proved in runs against an active server alone; others show no hospital what the others signed",
        )
        self._require(
            not self.disputes or (self.proves_sums and len(self.roster) <= self.graph.complete_up_to),
            f"disputes must be in runs that prove their sums, of at most {self.graph.complete_up_to} hospitals, who "
            f"all mask with each other; got {len(self.roster)} on the roster",
        )
        self._require(
            self.consortium is None or self.consortium >= len(self.roster),
            f"a consortium must have at least the roster's {len(self.roster)} hospitals, got {self.consortium}",
        )
        self._require(
            self.min_hospitals >= SECURE_MINIMUM,
            f"min_hospitals must be at least {SECURE_MINIMUM}, got {self.min_hospitals}",
        )
        self._require(
            self.min_hospitals <= len(self.roster) <= MOST_HOSPITALS,
            f"the roster must name min_hospitals ({self.min_hospitals}) to {MOST_HOSPITALS} hospitals, "
            f"got {len(self.roster)}",
        )
        for hospital, identity in self.roster.items():
            self._require(
                _HOSPITAL.fullmatch(hospital) is not None, f"a hospital's name must match {_HOSPITAL.pattern}"
            )
            self._require(
                len(identity) == PUBLIC_KEY_BYTES, f"{hospital}'s identity key must have {PUBLIC_KEY_BYTES} bytes"
            )
        object.__setattr__(self, "roster", MappingProxyType(dict(sorted(self.roster.items()))))

    def _require(self, holds: bool, rule: str) -> None:
        if not holds:
            raise ParameterError(Place(SERVER, 0, Phase.ADVERTISE_KEYS), rule)

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        """The unsigned integer whose wrap-around is the ring's addition, little-endian as on the wire."""
        return np.dtype(f"<u{self.modulus_bits // 8}")

    @property
    def members(self) -> int:
        """Return on how many hospitals the number of colluders counts: the roster's, or all of the consortium's."""
        return len(self.roster) if self.consortium is None else self.consortium

    def segments(self, vector: Vector) -> "Segments":
        """Return the two parts of a vector of this run as views: its counts modulo 2^32, and its change modulo R.

        Each is added, and masked, in a ring of its own. A carry from one element of a count into the next would be
        lost in a ring of 16 bits; and to cut a noisy count into limbs would hand out the high limbs of one hospital's
        noise, not of everyone's.
        """
        head = self.counts_length * (COUNT_BITS // self.modulus_bits)
        return Segments(vector[:head].view("<u4"), vector[head:])

    def add(self, total: Vector, vector: Vector) -> None:
        """Add ``vector`` to ``total`` in place, each segment in its ring."""
        for sum_of, part in zip(self.segments(total), self.segments(vector), strict=True):
            np.add(sum_of, part, out=sum_of)

    def threshold(self, hospitals: int) -> int:
        """Return t, how many of the ``hospitals`` that advertised keys must stay to the end.

        Bonawitz et al. 2017, against an active server: privacy holds against a server with n_C colluding hospitals
        whenever 2t > n + n_C. The consortium is fixed, but the server chooses who of it is in the directory, and could
        leave honest hospitals out; so n_C is any number below a third of the members, whatever n is. With everyone
        present that is the smallest t above 2n/3, and t is above 2n/3 always. Against a semi-honest one they ask for
        n_C < t; the smallest t above n/2 gives that for any minority.

        >>> roster = {f"hospital-{i}": bytes(32) for i in range(4)}
        >>> run = RunParameters("0" * 32, bytes(32), roster, 3, 16, 1)
        >>> [run.threshold(n) for n in (3, 4)]
        [3, 3]
        """
        if self.adversary is Adversary.SEMI_HONEST:
            return max(hospitals // 2 + 1, self.min_hospitals)
        colluders = (self.members - 1) // 3
        return max(2 * hospitals // 3 + 1, (hospitals + colluders) // 2 + 1, self.min_hospitals)
