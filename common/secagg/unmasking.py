"""Phase 4, Unmasking: hospitals reveal one kind of share for each other; the server takes the masks off the sum.

Proof that the right party is named for a bad share: ``docs/proofs/commitments.md``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from common.secagg import shamir
from common.secagg.binding import require_place, round_context
from common.secagg.consistency_check import (
    SignedState,
    needs_agreement,
    verify_agreement,
    verify_survivors,
)
from common.secagg.erasing import erase
from common.secagg.errors import (
    SERVER,
    CorruptedShareError,
    InconsistentDealingError,
    MissingShareError,
    NotInCohortError,
    Place,
    SecAggError,
    TooFewSharesError,
    UnexpectedShareError,
    UnsignedSurvivorsError,
)
from common.secagg.keys import Agreements, Committed, commit, derive, pairwise_seed_info, self_mask_info
from common.secagg.masked_input import MaskedState, MaskedSum
from common.secagg.masking_keys import derived_key, is_behind, masking_key_info, public_by_hospital
from common.secagg.masks import Mask, MaskApplier, apply_masks
from common.secagg.messages import AdvertisedKeys, OpenedCommitment, RevealedShare, UnmaskingRequest, UnmaskingShares
from common.secagg.parameters import Segment, Vector
from common.secagg.phases import Phase
from common.secagg.sealed_commitment import unseal


@dataclass(frozen=True)
class Unmasked:
    """The end of a round: the sum modulo R of the survivors' vectors."""

    total: Vector = field(repr=False)
    survivors: tuple[str, ...]
    refusals: tuple[SecAggError, ...]
    commitments: tuple[OpenedCommitment, ...] = ()
    """What the survivors committed to, in a run that proves its sums; without those that do not open, which are among
    the refusals: then the sum cannot be proved."""
    self_mask_seeds: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """b_u of each survivor, in a run that has disputes: what everybody needs to compute the sum of changes again."""
    dropped_keys: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """The key of its change of each hospital that dropped out, likewise."""

    def erase(self) -> None:
        """Overwrite what was kept for a dispute, when the round has none any more."""
        erase(*self.self_mask_seeds.values(), *self.dropped_keys.values())


def reveal(state: SignedState | MaskedState, request: UnmaskingRequest) -> UnmaskingShares:
    """Reveal shares of b_u for survivors and of s_u for the dropped, never both for one (figure 4, round 4, user).

    Args:
        state: after the consistency check; a semi-honest run comes here straight from MaskedInputCollection.
        request: the survivors, and in an active run at least t signatures over them.

    Returns:
        The message for the server.

    Raises:
        UnsignedSurvivorsError: an active run, and this hospital has signed nothing.
        SecAggError: of the kinds of ``verify_survivors`` and ``verify_agreement``; nothing was revealed.
    """
    masked = state.masked if isinstance(state, SignedState) else state
    place = Place(masked.hospital, masked.round_number, Phase.UNMASKING)
    verify_survivors(masked, request, place)
    if isinstance(state, SignedState):
        verify_agreement(state, request, place)
    elif needs_agreement(masked.run):
        raise UnsignedSurvivorsError(place, "shares must be asked for after the consistency check, got none")
    return shares_for(masked, request)


def shares_for(masked: MaskedState, request: UnmaskingRequest) -> UnmaskingShares:
    """Do as :func:`reveal` with a request that is known to be good.

    For a benchmark that plays many hospitals and checks the request for one of them; a hospital calls :func:`reveal`.
    """
    survivors = set(request.survivors)
    owners = sorted(masked.shares)
    return UnmaskingShares(
        run_id=masked.run.run_id,
        round_number=masked.round_number,
        hospital=masked.hospital,
        self_mask_shares=tuple(
            RevealedShare(owner, masked.shares[owner].self_mask) for owner in owners if owner in survivors
        ),
        masking_key_shares=tuple(
            RevealedShare(owner, masked.shares[owner].masking_key) for owner in owners if owner not in survivors
        ),
    )


def unmask(
    masked_sum: MaskedSum, messages: Mapping[str, UnmaskingShares], apply: MaskApplier = apply_masks
) -> Unmasked:
    """Rebuild the survivors' b_u and the dropped hospitals' s_u, and take their masks off (figure 4, round 4, server).

    Args:
        masked_sum: closed; its total is unmasked in place.
        messages: authenticated sender to message, from survivors.
        apply: takes the masks off.

    Returns:
        The sum, bit-identical to the sum modulo R of the survivors' vectors, and an error for each refused message.

    Raises:
        TooFewSharesError: some secret has fewer good shares than its threshold; nothing was unmasked.
        InconsistentDealingError: a dealer's shares do not rebuild what it committed to; names the dealer.
    """
    place = Place(SERVER, masked_sum.routed.directory.round_number, Phase.UNMASKING)
    accepted, refusals = {}, []
    for sender, message in sorted(messages.items()):
        try:
            verify_shares(masked_sum, sender, message, place)
        except SecAggError as refusal:
            refusals.append(refusal)
        else:
            accepted[sender] = message
    secrets = _rebuild_all(masked_sum, accepted, place)
    masks = {segment: _leftover_masks(masked_sum, secrets, segment) for segment in Segment}
    commitments = []
    for survivor, sealed in sorted(masked_sum.sealed.items()):
        try:
            commitments.append(unseal(masked_sum.routed.run, masked_sum.views[survivor], secrets[survivor], sealed))
        except SecAggError as refusal:
            refusals.append(refusal)
    seeds, dropped_keys = _for_a_dispute(masked_sum, secrets)
    erase(*secrets.values())
    try:
        for segment, part in zip(Segment, masked_sum.routed.run.segments(masked_sum.total), strict=True):
            apply(part, masks[segment])
    finally:
        erase(*(mask.seed for some in masks.values() for mask in some))
    return Unmasked(masked_sum.total, masked_sum.survivors, tuple(refusals), tuple(commitments), seeds, dropped_keys)


def _for_a_dispute(
    masked_sum: MaskedSum, secrets: Mapping[str, bytes]
) -> tuple[Mapping[str, bytes], Mapping[str, bytes]]:
    """Return copies of what others may see of the rebuilt secrets in a dispute: nothing that opens counts."""
    run, round_number = masked_sum.routed.run, masked_sum.routed.directory.round_number
    if not run.disputes:
        return {}, {}
    seeds = {name: memoryview(secrets[name]).tobytes() for name in masked_sum.survivors}
    dropped = {
        name: derive(secret, masking_key_info(run, round_number, name, Segment.CHANGE))
        for name, secret in secrets.items()
        if name not in seeds
    }
    return seeds, dropped


def verify_shares(masked_sum: MaskedSum, sender: str, message: UnmaskingShares, place: Place) -> None:
    """Refuse revealed shares that are not exactly one of the right kind for each neighbour, as its dealer committed.

    Raises:
        ContextError, NotInCohortError, ShareError: one of their kinds.
    """
    routed = masked_sum.routed
    require_place(routed.run, routed.directory.round_number, message, place, sender)
    if sender not in masked_sum.survivors:
        raise NotInCohortError(place, "only a survivor may reveal shares", sender)
    held = {sender, *routed.graph.by_hospital[sender]}.intersection(routed.cohort)
    survivors = set(masked_sum.survivors)
    for revealed, owners in (
        (message.self_mask_shares, held & survivors),
        (message.masking_key_shares, held - survivors),
    ):
        named = {share.owner for share in revealed}
        if named - owners:
            raise UnexpectedShareError(
                place, "one kind of share must be revealed for each neighbour, got others", sender
            )
        if owners - named:
            raise MissingShareError(place, "a share must be revealed for each neighbour in the cohort", sender)
    _verify_commitments(masked_sum, sender, message, place)


def _verify_commitments(masked_sum: MaskedSum, sender: str, message: UnmaskingShares, place: Place) -> None:
    routed = masked_sum.routed
    context, dealt = round_context(routed.run, routed.directory.round_number), routed.inboxes[sender]
    for revealed, kind, commitment in (
        (message.self_mask_shares, Committed.SELF_MASK_SHARE, attrgetter("self_mask_commitment")),
        (message.masking_key_shares, Committed.MASKING_KEY_SHARE, attrgetter("masking_key_commitment")),
    ):
        for share in revealed:
            # A hospital commits to the shares it deals to others; a false one that it keeps harms nobody else's name.
            if share.owner != sender and commit(context, kind, share.owner, sender, share.share) != commitment(
                dealt[share.owner]
            ):
                raise CorruptedShareError(
                    place, f"a {kind} of {share.owner} must be the one that was dealt, got another", sender
                )


def _rebuild_all(masked_sum: MaskedSum, messages: Mapping[str, UnmaskingShares], place: Place) -> dict[str, bytes]:
    """Return b_u of every survivor and s_u of every dropped hospital, each checked against what is public."""
    routed = masked_sum.routed
    revealed: dict[str, dict[int, bytes]] = {hospital: {} for hospital in routed.cohort}
    for sender, message in messages.items():
        for share in (*message.self_mask_shares, *message.masking_key_shares):
            revealed[share.owner][routed.graph.points[sender]] = share.share
    for owner, shares in revealed.items():
        if len(shares) < routed.graph.share_threshold:
            raise TooFewSharesError(
                place,
                f"at least {routed.graph.share_threshold} shares of each secret must be revealed, got {len(shares)}",
                owner,
            )
    advertised = {each.hospital: each for each in routed.directory.keys}
    context = round_context(routed.run, routed.directory.round_number)
    secrets: dict[str, bytes] = {}
    for owner, shares in revealed.items():
        points = sorted(shares)[: routed.graph.share_threshold]
        secret = shamir.rebuild({point: shares[point] for point in points})
        if secret is None or not _is_what_was_promised(masked_sum, owner, secret, advertised[owner], context):
            erase(*secrets.values(), secret or b"")
            raise InconsistentDealingError(
                place, "the shares a hospital dealt must rebuild the secret it committed to", owner
            )
        secrets[owner] = secret
    return secrets


def _is_what_was_promised(
    masked_sum: MaskedSum, owner: str, secret: bytes, advertised: AdvertisedKeys, context: bytes
) -> bool:
    if owner in masked_sum.survivors:
        promised = masked_sum.routed.self_mask_commitments[owner]
        return commit(context, Committed.SELF_MASK_SEED, owner, owner, secret) == promised
    return is_behind(masked_sum.routed.run, masked_sum.routed.directory.round_number, advertised, secret)


def _leftover_masks(masked_sum: MaskedSum, secrets: Mapping[str, bytes], segment: Segment) -> Sequence[Mask]:
    """Return what takes off the survivors' own masks, and those they share with the dropped."""
    routed, survivors = masked_sum.routed, set(masked_sum.survivors)
    context = round_context(routed.run, routed.directory.round_number)
    public, run, round_number = public_by_hospital(routed.directory, segment), routed.run, routed.directory.round_number
    masks = []
    for owner, secret in secrets.items():
        if owner in survivors:
            masks.append(Mask(derive(secret, self_mask_info(context, owner, segment)), subtract=True))
            continue
        with derived_key(run, round_number, owner, secret, segment) as private:
            agreements = Agreements(private)
        for peer in survivors.intersection(routed.graph.by_hospital[owner]):
            info = pairwise_seed_info(context, masked_sum.cohort_hash, masked_sum.request_hash, (owner, peer), segment)
            # The peer added this mask when its name comes first; take away what it added.
            masks.append(Mask(agreements.agree(public[peer], info), subtract=peer < owner))
    return masks
