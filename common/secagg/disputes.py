"""A dispute: after a sum that honest vectors cannot have, each hospital's change is stripped of its masks and judged.

It is our own, not in Bonawitz et al. 2017. Change and counts have masking keys of their own
(:mod:`common.secagg.masking_keys`), and the key of a change (s'_u) is all that is ever shown.

1. The server shows every survivor what the sum of changes is computed from: all masked changes, the survivors' rebuilt
   b_u and the dropped hospitals' s'_d. All of it is under signatures that the hospital saw before it revealed a share:
   :func:`check`.
2. A hospital whose own sum fails shows s'_u: :func:`open_change`. One whose sum holds shows nothing.
3. Everybody strips each change by what was shown, :func:`strip`, and finds the same cheats
   (:mod:`common.proved_sums.dispute`).

Proof: ``docs/proofs/disputes.md``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.secagg.advertise_keys import verify
from common.secagg.binding import bind, cohort_hash, directory_hash, require_place, round_context
from common.secagg.erasing import erase
from common.secagg.errors import DisputeEvidenceError, Place
from common.secagg.keys import (
    Agreements,
    Committed,
    commit,
    derive,
    is_signed,
    pairwise_seed_info,
    public_key,
    self_mask_info,
)
from common.secagg.masked_input import MaskedState, MaskedSum, array_hash, disputable_hash
from common.secagg.masking_keys import public_by_hospital
from common.secagg.masks import Mask, MaskApplier, apply_masks
from common.secagg.messages import (
    Dispute,
    DisputedVector,
    DroppedKey,
    KeyDirectory,
    MaskedInput,
    OpenedChange,
    SignedView,
    encode,
)
from common.secagg.parameters import RunParameters, Segment, Vector
from common.secagg.sealed_commitment import commitment_hash, open_sealed
from common.secagg.unmasking import Unmasked


@dataclass(frozen=True)
class DisputedRound:
    """What was signed in a round whose sum was opened; everybody who was shown the same has the same."""

    run: RunParameters
    view: MaskedInput
    """Anybody's; what is a hospital's own in it is not used."""
    views: Mapping[str, SignedView]
    """Survivor to what is its own in its view."""
    cohort: tuple[str, ...]
    change_keys: Mapping[str, bytes]
    """Hospital of the cohort to its public key for changes."""

    @property
    def round_number(self) -> int:
        """Return which round it is."""
        return self.view.round_number

    @property
    def survivors(self) -> tuple[str, ...]:
        """Return whose vectors are in the sum, sorted."""
        return tuple(sorted(self.views))

    @property
    def change_length(self) -> int:
        """Return how many elements a masked change has, ρ included."""
        return self.run.vector_length - self.run.counts_length * 32 // self.run.modulus_bits

    def pairwise_info(self, one: str, other: str) -> bytes:
        """Return what the mask of a pair of changes was derived for."""
        return pairwise_seed_info(
            round_context(self.run, self.round_number),
            self.view.cohort_hash,
            self.view.request_hash,
            (one, other),
            Segment.CHANGE,
        )


@dataclass(frozen=True)
class Disputable:
    """What a hospital keeps of a round whose sum it helped to open, until a dispute about it or the next round."""

    round: DisputedRound
    hospital: str
    change_key: bytes = field(repr=False)
    """s'_u"""

    def erase(self) -> None:
        """Overwrite the key."""
        erase(self.change_key)


@dataclass(frozen=True)
class ShownDispute:
    """What a dispute has shown, in accord with what was signed."""

    round: DisputedRound
    changes: Mapping[str, Vector] = field(repr=False)
    """Survivor to its masked change; views of what came."""
    seeds: Mapping[str, bytes] = field(repr=False)
    """Survivor to its b_u."""
    commitments: Mapping[str, bytes] = field(repr=False)
    """Survivor to its commitment, where that opens to what it signed the hash of."""
    total: Vector = field(repr=False)
    """The sum of changes, computed anew."""


def keep(masked: MaskedState, views: Iterable[SignedView]) -> Disputable | None:
    """Return what a hospital keeps when it helps to open a sum, in a run that has disputes.

    Args:
        masked: its state; the key is copied, so the state may be erased.
        views: of the survivors, checked.
    """
    if masked.change_key is None:
        return None
    keys = {name: masked.change_keys[name] for name in masked.cohort}
    of = DisputedRound(masked.run, masked.view, {each.hospital: each for each in views}, masked.cohort, keys)
    return Disputable(of, masked.hospital, memoryview(masked.change_key).tobytes())


def disputed_round(masked_sum: MaskedSum) -> DisputedRound:
    """Return the same for the server."""
    routed = masked_sum.routed
    keys = public_by_hospital(routed.directory, Segment.CHANGE)
    return DisputedRound(
        routed.run,
        masked_sum.views[masked_sum.survivors[0]],
        {name: SignedView.of(masked_sum.views[name]) for name in masked_sum.survivors},
        routed.cohort,
        {name: keys[name] for name in routed.cohort},
    )


def signed_round(
    run: RunParameters,
    directory: KeyDirectory,
    cohort: tuple[str, ...],
    view: MaskedInput,
    views: Iterable[SignedView],
    place: Place,
) -> DisputedRound:
    """Return the same for a hospital that did not see the round, or has forgotten it.

    The caller checks that the views are signed (:func:`common.proved_sums.proof.committed_group`).

    Args:
        run: of the round.
        directory: of the round.
        cohort: who was asked, sorted.
        view: a survivor's.
        views: of all survivors.
        place: with the round, of a refusal.

    Raises:
        ContextError, UnknownHospitalError, PublicKeyError: keys or the view are not of this round.
        DisputeEvidenceError: keys or cohort are not what the view is of.
    """
    round_number = place.round_number
    require_place(run, round_number, directory, place)
    require_place(run, round_number, view, place)
    for advertised in directory.keys:
        verify(run, round_number, advertised, place, advertised.hospital)
    keys = public_by_hospital(directory, Segment.CHANGE)
    is_of_view = (
        view.config_hash == run.config_hash
        and directory_hash(directory) == view.directory_hash
        and cohort_hash(view.directory_hash, cohort) == view.cohort_hash
    )
    shown = {each.hospital: each for each in views}
    if not is_of_view or not shown.keys() <= set(cohort) <= keys.keys():
        raise DisputeEvidenceError(place, "keys and cohort of a round must be those that its survivors signed")
    return DisputedRound(run, view, shown, cohort, {name: keys[name] for name in cohort})


def dispute(masked_sum: MaskedSum, unmasked: Unmasked) -> tuple[Dispute, Vector]:
    """Return what the server shows in a dispute, and the masked changes beside it, (survivors · change length,)."""
    routed = masked_sum.routed
    vectors = tuple(
        DisputedVector(
            name,
            masked_sum.sealed[name].ciphertext,
            routed.self_mask_commitments[name],
            masked_sum.counts_hashes[name],
            unmasked.self_mask_seeds[name],
        )
        for name in masked_sum.survivors
    )
    dropped = tuple(DroppedKey(name, key) for name, key in sorted(unmasked.dropped_keys.items()))
    shown = Dispute(routed.run.run_id, routed.directory.round_number, vectors, dropped)
    return shown, np.concatenate([masked_sum.changes[name] for name in masked_sum.survivors])


def check(
    of: DisputedRound, shown: Dispute, changes: Vector, place: Place, apply: MaskApplier = apply_masks
) -> ShownDispute:
    """Refuse to look at anything but what was signed, and compute the sum of changes.

    Args:
        of: the round.
        shown: by the server.
        changes: (survivors · change length,) of the ring: all masked changes, in the order of their hospitals' names.
        place: of a refusal.
        apply: takes masks off.

    Raises:
        ContextError: one of its kinds: another run or round.
        DisputeEvidenceError: something is not what was signed, or not there; the server lies.
    """
    require_place(of.run, of.round_number, shown, place)
    names = tuple(each.hospital for each in shown.vectors)
    if names != of.survivors:
        raise DisputeEvidenceError(place, "a dispute must show the vector of each survivor, and no other")
    if tuple(each.hospital for each in shown.dropped) != tuple(sorted(set(of.cohort) - set(names))):
        raise DisputeEvidenceError(place, "a dispute must show the key of each hospital that dropped out, and no other")
    expected = (len(names) * of.change_length,)
    if changes.dtype != of.run.dtype or changes.shape != expected:
        raise DisputeEvidenceError(
            place, f"a dispute must come with {expected[0]} of {of.run.dtype}, got {changes.shape} of {changes.dtype}"
        )
    by_hospital = dict(zip(names, changes.reshape(len(names), -1), strict=True))
    commitments: dict[str, bytes] = {}
    for each in shown.vectors:
        _verify_vector(of, each, by_hospital[each.hospital], place)
        value = open_sealed(of.run, of.round_number, each.hospital, each.self_mask_seed, each.sealed)
        if commitment_hash(of.run, of.view, each.hospital, value) == of.views[each.hospital].commitment:
            commitments[each.hospital] = value
    for dropped in shown.dropped:
        if public_key(dropped.change_key) != of.change_keys[dropped.hospital]:
            raise DisputeEvidenceError(
                place, "the key of a hospital that dropped out must be the one that it advertised", dropped.hospital
            )
    seeds = {each.hospital: each.self_mask_seed for each in shown.vectors}
    return ShownDispute(of, by_hospital, seeds, commitments, _total(of, by_hospital, seeds, shown.dropped, apply))


def _verify_vector(of: DisputedRound, shown: DisputedVector, change: Vector, place: Place) -> None:
    name = shown.hospital
    hashed = disputable_hash(shown.sealed, shown.self_mask_commitment, shown.counts_hash, array_hash(change))
    if hashed != of.views[name].vector_hash:
        raise DisputeEvidenceError(place, "a vector must be shown as its hospital signed it", name)
    context = round_context(of.run, of.round_number)
    promised = commit(context, Committed.SELF_MASK_SEED, name, name, shown.self_mask_seed)
    if promised != shown.self_mask_commitment:
        raise DisputeEvidenceError(place, "a rebuilt b_u must be the one that its hospital committed to", name)


def _self_mask(of: DisputedRound, hospital: str, seed: bytes) -> Mask:
    context = round_context(of.run, of.round_number)
    return Mask(derive(seed, self_mask_info(context, hospital, Segment.CHANGE)), subtract=True)


def _total(
    of: DisputedRound,
    changes: Mapping[str, Vector],
    seeds: Mapping[str, bytes],
    dropped: Iterable[DroppedKey],
    apply: MaskApplier,
) -> Vector:
    total: Vector = np.zeros(of.change_length, of.run.dtype)
    for change in changes.values():
        np.add(total, change, out=total)
    masks = [_self_mask(of, name, seed) for name, seed in seeds.items()]
    for each in dropped:
        agreements = Agreements(each.change_key)
        for peer in changes:
            seed = agreements.agree(of.change_keys[peer], of.pairwise_info(each.hospital, peer))
            masks.append(Mask(seed, subtract=peer < each.hospital))
    apply(total, masks)
    return total


def open_change(state: Disputable, identity_key: Ed25519PrivateKey) -> OpenedChange:
    """Show the key that this hospital's change is masked with, signed; the caller has noted on disk that it does.

    The message has memory of its own: the state is then to be erased.
    """
    of = state.round
    key = memoryview(state.change_key).tobytes()
    unsigned = OpenedChange(of.run.run_id, of.round_number, state.hospital, key, b"")
    return replace(unsigned, signature=identity_key.sign(signed_part(of.run, unsigned)))


def signed_part(run: RunParameters, message: OpenedChange) -> bytes:
    """Return what a hospital's identity signs when it shows its key: all of it, bound to version, run and round."""
    unsigned = encode(replace(message, signature=b""))
    return bind("opened change", round_context(run, message.round_number), unsigned)


def is_genuine(of: DisputedRound, opened: OpenedChange) -> bool:
    """Say whether a survivor showed this itself; anything else may be the server's invention, and blames nobody."""
    return (
        opened.hospital in of.views
        and (opened.run_id, opened.round_number) == (of.run.run_id, of.round_number)
        and is_signed(of.run.roster[opened.hospital], opened.signature, signed_part(of.run, opened))
    )


def is_advertised(of: DisputedRound, opened: OpenedChange) -> bool:
    """Say whether the key that a hospital showed is the one that it advertised."""
    return public_key(opened.change_key) == of.change_keys[opened.hospital]


def strip(shown: ShownDispute, opened: OpenedChange, apply: MaskApplier = apply_masks) -> Vector:
    """Return a survivor's change without its masks, z_u, (change length,) of the ring.

    Args:
        shown: of :func:`check`.
        opened: genuine, with the key that was advertised.
        apply: takes masks off.
    """
    of, name = shown.round, opened.hospital
    change = shown.changes[name].copy()
    agreements, masks = Agreements(opened.change_key), [_self_mask(of, name, shown.seeds[name])]
    for peer in of.cohort:
        if peer != name:
            seed = agreements.agree(of.change_keys[peer], of.pairwise_info(name, peer))
            masks.append(Mask(seed, subtract=name < peer))  # It added this mask where its own name comes first.
    apply(change, masks)
    return change
