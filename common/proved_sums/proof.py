"""Who committed to what, and whether a sum is the sum of it: what hospitals and server do with commitments in a round.

1. A hospital commits to its vector, and signs the hash of its commitment (h_u) with its view of the round. The
   commitment itself travels sealed under a stream from b_u.
2. Before it reveals a share it sees everyone's hashes, signed: :func:`committed_group`. No commitment can be known to
   anybody else before that, so none can be chosen after the others.
3. With the next request comes the sum, and the commitments of all survivors: :func:`verify_sum`.

A commitment that is sealed opens by itself when b_u is rebuilt, so a hospital that vanishes before its last reply does
not spoil the proof; that of a hospital that dropped out never opens.

Proof: ``docs/proofs/proved-sums.md``.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from common.proved_sums.commitment import Centred, add, from_bytes, open_sum
from common.proved_sums.errors import (
    FalseSumError,
    MissingCommitmentError,
    SumBoundError,
    SumShapeError,
    UnexpectedCommitmentError,
    UnsignedCommitmentError,
)
from common.proved_sums.expansion import matrix_key
from common.proved_sums.parameters import ProofParameters
from common.secagg.binding import require_place
from common.secagg.errors import Place
from common.secagg.keys import is_signed
from common.secagg.masked_input import signed_part
from common.secagg.messages import MaskedInput, OpenedCommitment, SignedView, SumProof
from common.secagg.parameters import HASH_BYTES, RunParameters, Vector
from common.secagg.phases import Phase
from common.secagg.sealed_commitment import verify_commitment


@dataclass(frozen=True)
class CommittedGroup:
    """What a hospital remembers of a round whose sum it helped to open, or a late joiner is shown of it."""

    run: RunParameters
    view: MaskedInput
    """This hospital's own view of the round, or any signed one for who was not there."""
    hashes: Mapping[str, bytes]
    """The hash of the commitment of each hospital in the sum, as it signed it."""

    def __post_init__(self) -> None:
        """Make the hashes read-only."""
        object.__setattr__(self, "hashes", MappingProxyType(dict(self.hashes)))


@dataclass(frozen=True)
class ProvedSum:
    """A sum that the survivors' commitments add up to."""

    round_number: int
    survivors: tuple[str, ...]
    total: Centred = field(repr=False)
    """(d,), without ρ."""


def committed_group(
    run: RunParameters, view: MaskedInput, views: Iterable[SignedView], survivors: Collection[str], place: Place
) -> CommittedGroup:
    """Check what a hospital is shown of the survivors' views before it reveals a share, and keep their hashes.

    Args:
        run: of the round.
        view: this hospital's own.
        views: everyone's, as the server shows them.
        survivors: of whom the sum will be.
        place: of a refusal.

    Raises:
        UnsignedCommitmentError: a view has no hash of a commitment, or is not signed by its hospital as it is; or this
            hospital's own is not the one that it signed.
        MissingCommitmentError: a survivor's view is not there.
        UnexpectedCommitmentError: a view is of nobody in the sum, or a second one.
    """
    hashes: dict[str, bytes] = {}
    for signed in views:
        if signed.hospital not in survivors or signed.hospital not in run.roster or signed.hospital in hashes:
            raise UnexpectedCommitmentError(place, "there must be one view of each survivor", signed.hospital)
        _verify_signature(run, view, signed, place)
        hashes[signed.hospital] = signed.commitment
    for missing in sorted(set(survivors) - set(hashes)):
        raise MissingCommitmentError(place, "there must be a view of each survivor", missing)
    if hashes.get(view.hospital, view.commitment) != view.commitment:
        raise UnsignedCommitmentError(place, "this hospital's own view must be the one that it signed")
    return CommittedGroup(run, view, hashes)


def _verify_signature(run: RunParameters, view: MaskedInput, signed: SignedView, place: Place) -> None:
    if len(signed.commitment) != HASH_BYTES:
        raise UnsignedCommitmentError(place, "a view must have the hash of a commitment", signed.hospital)
    whole = signed.within(view)
    if not is_signed(run.roster[signed.hospital], signed.signature, signed_part(run, whole)):
        raise UnsignedCommitmentError(
            place, "a survivor must have signed the hash of its commitment in this view of the round", signed.hospital
        )


def prove(run: RunParameters, round_number: int, opened: Iterable[OpenedCommitment]) -> SumProof:
    """Return what proves a round's sum, from all survivors' commitments."""
    return SumProof(run.run_id, round_number, tuple(sorted(opened, key=lambda each: each.hospital)))


def verify_sum(group: CommittedGroup, parameters: ProofParameters, proof: SumProof, total: Vector) -> ProvedSum:
    """Refuse a sum that is not that of what the survivors committed to.

    Guaranteed, unless somebody solved a problem of :attr:`ProofParameters.security_bits`: over the integers the sum is
    that of the honest survivors' vectors, plus one vector of each colluding one that it had fixed before any share of
    the round was revealed.

    Args:
        group: what this hospital keeps of the round.
        parameters: of the run.
        proof: from the server.
        total: (d + m,), of the run's ring, as it came: the sum of vectors, then that of their ρ.

    Returns:
        The sum, centred, without ρ; a view of ``total``.

    Raises:
        ContextError: a proof of another run or round.
        CommitmentError, CommitmentHashError: names whose commitment it is.
        SumError: its kinds; the server lies, or a colluding survivor's vector is not what it committed to.
    """
    run, view = group.run, group.view
    place = Place(view.hospital, view.round_number, Phase.MASKED_INPUT)
    require_place(run, view.round_number, proof, place)
    values = _verify_commitments(group, parameters, proof, place)
    centred = _verify_shape(parameters, total, place)
    if int(centred.min()) < -parameters.bound:
        raise SumBoundError(place, f"an entry of a sum must be within ±{parameters.bound}, got a smaller one")
    if open_sum(matrix_key(run, parameters), parameters, centred) != add(parameters, values):
        raise FalseSumError(place, "the survivors' commitments must add up to that of the sum, and do not")
    return ProvedSum(view.round_number, tuple(sorted(group.hashes)), centred[: parameters.entries])


def _verify_commitments(
    group: CommittedGroup, parameters: ProofParameters, proof: SumProof, place: Place
) -> list[list[int]]:
    values: dict[str, list[int]] = {}
    for opened in proof.commitments:
        if opened.hospital not in group.hashes or opened.hospital in values:
            raise UnexpectedCommitmentError(place, "there must be one commitment of each survivor", opened.hospital)
        verify_commitment(group.run, group.view, opened, group.hashes[opened.hospital], place)
        values[opened.hospital] = from_bytes(parameters, opened.commitment, place, opened.hospital)
    for missing in sorted(set(group.hashes) - set(values)):
        raise MissingCommitmentError(place, "there must be a commitment of each survivor", missing)
    return list(values.values())


def _verify_shape(parameters: ProofParameters, total: Vector, place: Place) -> Centred:
    expected = np.dtype(f"<u{parameters.modulus_bits // 8}")
    if total.dtype != expected or total.shape != (parameters.length,):
        raise SumShapeError(
            place, f"a sum must be {parameters.length} of {expected}, got {total.shape} of {total.dtype}"
        )
    return total.view(f"<i{parameters.modulus_bits // 8}")
