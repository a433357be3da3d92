"""What ties each key, signature and message to its place: version, run, round, configuration, parties, lists, model.

Nothing in the protocol is derived or signed without one of these, so nothing that was made in one place has a meaning
in another. Bonawitz et al. 2017 leave this to the implementation.

Proof: ``docs/proofs/bound-masks.md``.
"""

import hashlib
from collections.abc import Sequence
from functools import cache

from common.secagg.errors import (
    ImpersonationError,
    Place,
    ReplayedMessageError,
    UnknownHospitalError,
    WrongRoundError,
    WrongRunError,
)
from common.secagg.messages import KeyDirectory, Message, encode
from common.secagg.parameters import VERSION, RunParameters

_PROTOCOL = b"confide secagg"
_LENGTH_BYTES = 4


def bind(purpose: str, *parts: bytes) -> bytes:
    """Return one byte string for ``purpose`` and ``parts``, different whenever any of them differs.

    >>> bind("mask", b"ab", b"c") != bind("mask", b"a", b"bc")
    True
    """
    pieces = [_head(purpose)]
    for part in parts:
        pieces += (len(part).to_bytes(_LENGTH_BYTES, "big"), part)
    return b"".join(pieces)


def bound_hash(purpose: str, *parts: bytes | memoryview) -> bytes:
    """Return the SHA-256 of :func:`bind`, 32 bytes, without a copy of a secret among ``parts``."""
    digest = hashlib.sha256(_head(purpose))
    for part in parts:
        digest.update(len(part).to_bytes(_LENGTH_BYTES, "big"))
        digest.update(part)
    return digest.digest()


@cache
def _head(purpose: str) -> bytes:
    """Return what stands before the parts: protocol, version and purpose, each after its length, like every part."""
    head = (_PROTOCOL, bytes([VERSION]), purpose.encode())
    return b"".join(len(part).to_bytes(_LENGTH_BYTES, "big") + part for part in head)


def round_context(run: RunParameters, round_number: int) -> bytes:
    """Return what every derivation and signature of one round of one run starts with."""
    return bind("round", bytes.fromhex(run.run_id), run.config_hash, round_number.to_bytes(8, "big"))


def directory_hash(directory: KeyDirectory) -> bytes:
    """Return the hash of everyone's keys (the paper's U_1) and the threshold they share for."""
    return bound_hash("directory", encode(directory))


def cohort_hash(directory_hash: bytes, cohort: Sequence[str]) -> bytes:
    """Return the hash of those who mask for each other (the paper's U_2)."""
    return bound_hash("cohort", directory_hash, *(hospital.encode() for hospital in cohort))


def request_hash(terms: bytes) -> bytes:
    """Return the hash of what a round asks for; hospitals that were asked for different things share no mask."""
    return bound_hash("request", terms)


def survivors_hash(survivors: Sequence[str]) -> bytes:
    """Return the hash of those whose vectors are in the sum (the paper's U_3)."""
    return bound_hash("survivors", *(hospital.encode() for hospital in survivors))


def require_place(
    run: RunParameters, round_number: int, message: Message, place: Place, sender: str | None = None
) -> None:
    """Refuse a message of another run or round, or, when ``sender`` is given, one that names another sender.

    Raises:
        WrongRunError, ReplayedMessageError, WrongRoundError, ImpersonationError, UnknownHospitalError: as they say.
    """
    if message.run_id != run.run_id:
        raise WrongRunError(place, f"must be of run {run.run_id}, got one of run {message.run_id}", sender)
    if message.round_number < round_number:
        raise ReplayedMessageError(
            place, f"must be of round {round_number}, got one of the earlier round {message.round_number}", sender
        )
    if message.round_number > round_number:
        raise WrongRoundError(
            place, f"must be of round {round_number}, got one of round {message.round_number}", sender
        )
    if sender is None:
        return
    named = getattr(message, "hospital", sender)
    if named != sender:
        raise ImpersonationError(place, f"must name its sender {sender}, got {named}", sender)
    if sender not in run.roster:
        raise UnknownHospitalError(place, "must come from a hospital on the roster", sender)
