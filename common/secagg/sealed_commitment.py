"""A commitment to what a vector hides: its hash is in the signed view, itself it travels under a stream from b_u.

What the commitment is made of is not known here: it is a byte string (:mod:`common.proved_sums` makes it). What is
arranged here is *when* it becomes known. Nobody can open it before b_u is rebuilt, and by then everybody's hash has
been signed; so nobody can choose a commitment after seeing the others'. It opens without its owner, who may have
vanished. That of a hospital that dropped out stays sealed, because its b_u is never rebuilt.

Proof: ``docs/proofs/proved-sums.md``.
"""

from dataclasses import replace

from common.secagg.binding import bind, bound_hash, require_place, round_context
from common.secagg.erasing import erase
from common.secagg.errors import SERVER, CommitmentHashError, Place
from common.secagg.keys import derive
from common.secagg.masks import stream
from common.secagg.messages import MaskedInput, OpenedCommitment, SealedCommitment, encode
from common.secagg.parameters import HASH_BYTES, RunParameters
from common.secagg.phases import Phase


def commitment_hash(run: RunParameters, view: MaskedInput, hospital: str, value: bytes) -> bytes:
    """Return h_u, 32 bytes: of a commitment, its owner's name, and all that views of the round have in common.

    Args:
        run: of the round.
        view: anybody's view of the round; what is a hospital's own in it is not used.
        hospital: whose commitment it is.
        value: C_u.
    """
    common = replace(view, hospital=hospital, vector_hash=bytes(HASH_BYTES), commitment=b"", signature=b"")
    return bound_hash("commitment hash", round_context(run, view.round_number), encode(common), value)


def seal(run: RunParameters, round_number: int, hospital: str, self_mask_seed: bytes, value: bytes) -> SealedCommitment:
    """Hide a commitment under a stream from b_u, which is used for nothing else; :func:`unseal` opens it."""
    sealed = _combine(run, round_number, hospital, self_mask_seed, value)
    return SealedCommitment(run.run_id, round_number, hospital, sealed)


def unseal(run: RunParameters, view: MaskedInput, self_mask_seed: bytes, sealed: SealedCommitment) -> OpenedCommitment:
    """Open a survivor's commitment when its b_u has been rebuilt.

    Args:
        run: of the round.
        view: the survivor's.
        self_mask_seed: b_u.
        sealed: what the survivor sent with its vector.

    Raises:
        ContextError: it is of another run, round or hospital.
        CommitmentHashError: it is not what the survivor signed the hash of; the survivor is named. It signed what it
            sent, so it cannot have been framed.
    """
    place = Place(SERVER, view.round_number, Phase.UNMASKING)
    require_place(run, view.round_number, sealed, place, view.hospital)
    value = _combine(run, view.round_number, view.hospital, self_mask_seed, sealed.ciphertext)
    verify_commitment(run, view, OpenedCommitment(view.hospital, value), view.commitment, place)
    return OpenedCommitment(view.hospital, value)


def open_sealed(
    run: RunParameters, round_number: int, hospital: str, self_mask_seed: bytes, ciphertext: bytes
) -> bytes:
    """Return what a ciphertext opens to under a b_u, whatever that is: the caller compares its hash."""
    return _combine(run, round_number, hospital, self_mask_seed, ciphertext)


def verify_commitment(
    run: RunParameters, view: MaskedInput, opened: OpenedCommitment, promised: bytes, place: Place
) -> None:
    """Refuse a commitment that is not the one its hospital promised.

    Args:
        run: of the round.
        view: anybody's view of it.
        opened: the commitment, with its owner's name.
        promised: the hash that the owner signed.
        place: of the refusal.

    Raises:
        CommitmentHashError: as it says.
    """
    if commitment_hash(run, view, opened.hospital, opened.commitment) != promised:
        raise CommitmentHashError(
            place, "a commitment must be the one that its hospital signed the hash of", opened.hospital
        )


def _combine(run: RunParameters, round_number: int, hospital: str, self_mask_seed: bytes, value: bytes) -> bytes:
    key = derive(self_mask_seed, bind("sealed commitment", round_context(run, round_number), hospital.encode()))
    try:
        return stream(key, 0).update(value)
    finally:
        erase(key)
