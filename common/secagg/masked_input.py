"""Phase 2, MaskedInputCollection: each hospital hides its vector under its masks; the server adds what arrives.

Proof that shares may be opened before masking: ``docs/proofs/early-opening.md``.

With the vector goes the hospital's signature over its view of the round, which the paper does not have: it takes the
place of the consistency check when everybody's vector arrives (:mod:`common.secagg.full_unmasking`).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.secagg.binding import bind, bound_hash, cohort_hash, request_hash, require_place, round_context
from common.secagg.erasing import erase
from common.secagg.errors import (
    SERVER,
    CohortMismatchError,
    CommitmentHashError,
    ConfigHashError,
    CorruptedShareError,
    DirectoryMismatchError,
    DuplicateMaskedInputError,
    LateMaskedInputError,
    MisdirectedShareError,
    MissingShareError,
    NotInCohortError,
    OmittedHospitalError,
    Place,
    RequestHashError,
    SecAggError,
    ShareDecryptionError,
    TooFewHospitalsError,
    TooFewNeighboursError,
    UnexpectedShareError,
    UnknownHospitalError,
    VectorHashError,
    VectorLengthError,
    VectorRingError,
    ViewSignatureError,
)
from common.secagg.keys import (
    Agreements,
    Committed,
    commit,
    decrypt,
    derive,
    is_signed,
    pairwise_seed_info,
    self_mask_info,
    share_encryption_info,
)
from common.secagg.masking_keys import derived_key, public_by_hospital
from common.secagg.masks import Mask, MaskApplier, apply_masks
from common.secagg.messages import (
    SHARE_BYTES,
    EncryptedShare,
    MaskedInput,
    MaskedInputRequest,
    SealedCommitment,
    SurvivorList,
    encode,
)
from common.secagg.parameters import HASH_BYTES, RunParameters, Segment, Vector
from common.secagg.phases import Phase
from common.secagg.sealed_commitment import commitment_hash, seal
from common.secagg.share_keys import Routed, SharedKeys, SharePair, commit_to_pair, pack_shares


@dataclass(frozen=True)
class MaskedState:
    """A hospital's state after it sent its masked vector: other hospitals' shares, no secret of its own."""

    run: RunParameters
    round_number: int
    hospital: str
    threshold: int
    cohort: tuple[str, ...]
    view: MaskedInput
    """What went with the vector, signed."""
    sealed: SealedCommitment | None
    """What goes with the vector besides, in a run that proves its sums."""
    shares: Mapping[str, SharePair] = field(repr=False)
    """Owner to shares: those of this hospital's neighbours in the cohort, and its own."""
    change_key: bytes | None = field(default=None, repr=False)
    """s'_u, in a run that has disputes: what this hospital shows of its change in one."""
    change_keys: Mapping[str, bytes] = field(default_factory=dict)
    """Hospital to its public key for changes, in such a run."""

    @property
    def cohort_hash(self) -> bytes:
        """Return the hash of the cohort that this hospital masked for."""
        return self.view.cohort_hash

    @property
    def request_hash(self) -> bytes:
        """Return the hash of what this hospital was asked for."""
        return self.view.request_hash

    def erase(self) -> None:
        """Overwrite all shares, and the key of this hospital's change."""
        _erase_shares(self.shares)
        erase(self.change_key or b"")


@dataclass(frozen=True)
class Accepted:
    """What a hospital has checked of a request before it trains and masks for it."""

    state: SharedKeys
    cohort: tuple[str, ...]
    request_hash: bytes
    shares: Mapping[str, SharePair] = field(repr=False)
    """Dealer to shares: those of this hospital's neighbours in the cohort, sorted."""

    def erase(self) -> None:
        """Overwrite the shares that were opened; ``state`` stays as it is, because it may have to answer again."""
        _erase_shares(self.shares)


def mask(
    state: SharedKeys,
    identity_key: Ed25519PrivateKey,
    request: MaskedInputRequest,
    vector: Vector,
    apply: MaskApplier = apply_masks,
    commitment: bytes = b"",
) -> tuple[MaskedState, MaskedInput, Vector]:
    """Hide ``vector`` under one mask per neighbour in the cohort and one of its own (figure 4, round 2, user).

    Every share in the inbox is opened first (figure 4 waits until round 4), so a hospital never sends a vector that it
    could not help to unmask, and never masks with a peer whose view of the directory differs.

    Args:
        state: the state of :func:`common.secagg.share_keys.share`.
        identity_key: this hospital's, as on the roster; signs its view of the round.
        request: what the server asks for and says is the cohort, with the shares dealt to this hospital. The vector is
            made from the request's own terms, which the masks are bound to.
        vector: shape (vector_length,), of the run's ring; masked in place, so that no second one takes memory and the
            plain one does not outlive its use. Left as it is when the request is refused.
        apply: puts the masks on.
        commitment: to what the vector hides, in a run that proves its sums; travels sealed, in the state's ``sealed``.

    Returns:
        The state to keep, the message and ``vector``, now masked, for the server. The masked vector alone is uniform.

    Raises:
        SecAggError: of the kinds named in :func:`verify_cohort`, :func:`open_inbox` and :func:`verify_vector`.
    """
    accepted = accept(state, request)
    try:
        return mask_accepted(accepted, identity_key, vector, apply, commitment)
    finally:
        accepted.erase()


def accept(state: SharedKeys, request: MaskedInputRequest) -> Accepted:
    """Check the cohort and open the inbox, which a hospital does before it trains: the first half of :func:`mask`."""
    place = Place(state.keys.hospital, state.keys.round_number, Phase.MASKED_INPUT)
    verify_cohort(state, request, place)
    return Accepted(state, request.cohort, request_hash(request.terms), open_inbox(state, request, place))


def mask_accepted(
    accepted: Accepted,
    identity_key: Ed25519PrivateKey,
    vector: Vector,
    apply: MaskApplier = apply_masks,
    commitment: bytes = b"",
) -> tuple[MaskedState, MaskedInput, Vector]:
    """Mask a vector for the cohort that was accepted: the second half of :func:`mask`.

    The state it returns has memory of its own: ``accepted`` and the state in it are then to be erased.
    """
    state, asked, shares = accepted.state, accepted.request_hash, accepted.shares
    keys, run = state.keys, state.keys.run
    place = Place(keys.hospital, keys.round_number, Phase.MASKED_INPUT)
    verify_vector(run, vector, place, keys.hospital)
    if bool(commitment) != run.proves_sums:
        raise CommitmentHashError(place, "a vector must be committed to where sums are proved, and nowhere else")
    together = cohort_hash(state.directory_hash, accepted.cohort)
    context = round_context(run, keys.round_number)
    change_key = None
    for segment, part in zip(Segment, run.segments(vector), strict=True):
        public = public_by_hospital(state.directory, segment)
        with derived_key(run, keys.round_number, keys.hospital, keys.masking_key, segment) as private:
            agreements = Agreements(private)
            if run.disputes and segment is Segment.CHANGE:
                change_key = memoryview(
                    private
                ).tobytes()  # Here, so that what HKDF leaves is written over by the masks.
        masks = [Mask(derive(state.self_mask_seed, self_mask_info(context, keys.hospital, segment)))]
        for peer in shares:
            info = pairwise_seed_info(context, together, asked, (keys.hospital, peer), segment)
            masks.append(Mask(agreements.agree(public[peer], info), subtract=keys.hospital > peer))
        try:
            apply(part, masks)
        except BaseException:
            erase(change_key or b"")
            raise
        finally:
            erase(*(mask.seed for mask in masks))
    sealed = seal(run, keys.round_number, keys.hospital, state.self_mask_seed, commitment) if commitment else None
    self_mask_commitment = commit(context, Committed.SELF_MASK_SEED, keys.hospital, keys.hospital, state.self_mask_seed)
    unsigned = MaskedInput(
        run_id=run.run_id,
        round_number=keys.round_number,
        hospital=keys.hospital,
        config_hash=run.config_hash,
        directory_hash=state.directory_hash,
        cohort_hash=together,
        request_hash=asked,
        modulus_bits=run.modulus_bits,
        vector_length=run.vector_length,
        vector_hash=signed_hash(run, vector, sealed, self_mask_commitment),
        commitment=b"",
        signature=b"",
    )
    if sealed is not None:
        unsigned = replace(unsigned, commitment=commitment_hash(run, unsigned, keys.hospital, commitment))
    view = replace(unsigned, signature=identity_key.sign(signed_part(run, unsigned)))
    masked_state = MaskedState(
        run=run,
        round_number=keys.round_number,
        hospital=keys.hospital,
        threshold=state.directory.threshold,
        cohort=accepted.cohort,
        view=view,
        sealed=sealed,
        shares={owner: pair.copy() for owner, pair in (*shares.items(), (keys.hospital, state.own_shares))},
        change_key=change_key,
        change_keys=public_by_hospital(state.directory, Segment.CHANGE) if run.disputes else {},
    )
    return masked_state, view, vector


def signed_part(run: RunParameters, message: MaskedInput) -> bytes:
    """Return what a hospital's identity signs of its view: all of it, bound to version, run and round."""
    unsigned = encode(replace(message, signature=b""))
    return bind("view", round_context(run, message.round_number), unsigned)


def signed_hash(
    run: RunParameters, vector: Vector, sealed: SealedCommitment | None, self_mask_commitment: bytes
) -> bytes:
    """Return what a hospital signs of its masked vector, 32 bytes: its :func:`vector_hash`.

    In a run that has disputes it is a hash of hashes, so that a masked change can be shown without the counts, and the
    commitment to b_u is in it, so that nobody can be shown another b_u.
    """
    if not run.disputes or sealed is None:
        return vector_hash(vector, sealed)
    counts, change = run.segments(vector)
    return disputable_hash(sealed.ciphertext, self_mask_commitment, array_hash(counts), array_hash(change))


def vector_hash(vector: Vector, sealed: SealedCommitment | None = None) -> bytes:
    """Return the SHA-256 of a masked vector's bytes, little-endian, 32 bytes; the vector is not copied.

    A sealed commitment that goes with the vector is hashed too: a server that alters it cannot say that its hospital
    had sent it so.
    """
    digest = hashlib.sha256(bind("vector") if sealed is None else bind("vector", sealed.ciphertext))
    digest.update(np.ascontiguousarray(vector).view(np.uint8).data)
    return digest.digest()


def disputable_hash(sealed: bytes, self_mask_commitment: bytes, counts_hash: bytes, change_hash: bytes) -> bytes:
    """Return what a hospital signs of its vector in a run that has disputes, from its parts."""
    return bound_hash("disputable vector", sealed, self_mask_commitment, counts_hash, change_hash)


def array_hash(array: Vector) -> bytes:
    """Return the SHA-256 of an array's bytes, little-endian, 32 bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).digest()


def verify_cohort(state: SharedKeys, request: MaskedInputRequest, place: Place) -> None:
    """Refuse a cohort that is too small, leaves this hospital out or names one that has no key.

    Raises:
        ContextError, RosterError, ThresholdError: one of their kinds.
    """
    run, hospital = state.keys.run, state.keys.hospital
    require_place(run, state.keys.round_number, request, place)
    for member in request.cohort:
        if member not in state.graph.by_hospital:
            raise UnknownHospitalError(place, "the cohort must be among those who advertised keys", member)
    if hospital not in request.cohort:
        raise OmittedHospitalError(place, "the cohort must contain this hospital, got one without it")
    if len(request.cohort) < state.directory.threshold:
        raise TooFewHospitalsError(
            place, f"the cohort must have at least {state.directory.threshold} hospitals, got {len(request.cohort)}"
        )
    near = set(state.graph.by_hospital[hospital]).intersection(request.cohort)
    if len(near) + 1 < state.graph.share_threshold:
        raise TooFewNeighboursError(
            place,
            f"at least {state.graph.share_threshold} neighbours, itself included, must be in the cohort, "
            f"got {len(near) + 1}",
        )


def open_inbox(state: SharedKeys, request: MaskedInputRequest, place: Place) -> dict[str, SharePair]:
    """Decrypt and check the shares that neighbours dealt to this hospital.

    Returns:
        Dealer to the two shares, for every neighbour in the cohort, sorted.

    Raises:
        ShareError: one of its kinds.
    """
    expected = set(state.graph.by_hospital[state.keys.hospital]).intersection(request.cohort)
    public = {advertised.hospital: advertised.encryption_key for advertised in state.directory.keys}
    agreements = Agreements(state.keys.encryption_key)
    opened: dict[str, SharePair] = {}
    try:
        for delivered in request.inbox:
            if delivered.recipient != state.keys.hospital:
                raise MisdirectedShareError(place, "a share must be for this hospital", delivered.dealer)
            if delivered.dealer not in expected:
                raise UnexpectedShareError(place, "a share must be from a neighbour in the cohort", delivered.dealer)
            opened[delivered.dealer] = _open(state, delivered, agreements, public[delivered.dealer], place)
        for missing in sorted(expected - set(opened)):
            raise MissingShareError(place, "there must be a share from every neighbour in the cohort", missing)
    except SecAggError:
        _erase_shares(opened)
        raise
    return opened


def _open(
    state: SharedKeys, delivered: EncryptedShare, agreements: Agreements, dealers_key: bytes, place: Place
) -> SharePair:
    keys, dealer = state.keys, delivered.dealer
    context = round_context(keys.run, keys.round_number)
    info = share_encryption_info(context, state.directory_hash, dealer, keys.hospital)
    key = agreements.agree(dealers_key, info)
    plaintext = decrypt(key, delivered.ciphertext)
    erase(key)
    if plaintext is None:
        raise ShareDecryptionError(place, "a share must be encrypted for this hospital and this directory", dealer)
    pair = SharePair(plaintext[-SHARE_BYTES:], plaintext[-2 * SHARE_BYTES : -SHARE_BYTES])
    packed = pack_shares(dealer, keys.hospital, pair)
    promised = (delivered.self_mask_commitment, delivered.masking_key_commitment)
    is_directed = plaintext == packed
    is_promised = commit_to_pair(context, dealer, keys.hospital, pair) == promised
    erase(plaintext, packed)
    if is_directed and is_promised:
        return pair
    pair.erase()
    if is_directed:
        raise CorruptedShareError(place, "a share must be the one its dealer committed to", dealer)
    raise MisdirectedShareError(place, "an encrypted share must name its dealer and this hospital", dealer)


def _erase_shares(shares: Mapping[str, SharePair]) -> None:
    for pair in shares.values():
        pair.erase()


def verify_vector(run: RunParameters, vector: Vector, place: Place, hospital: str) -> None:
    """Refuse anything but a flat array of this run's ring and length.

    Raises:
        VectorRingError, VectorLengthError: as they say.
    """
    if vector.dtype != run.dtype or vector.ndim != 1:
        raise VectorRingError(
            place, f"a vector must be flat, of {run.dtype}, got {vector.ndim} axes of {vector.dtype}", hospital
        )
    if len(vector) != run.vector_length:
        raise VectorLengthError(place, f"a vector must have {run.vector_length} elements, got {len(vector)}", hospital)


def verify_view(run: RunParameters, message: MaskedInput, place: Place) -> None:
    """Refuse a view that the hospital it names did not sign as it is, or that has another slot for a commitment filled.

    Args:
        run: whose roster has the hospital.
        message: the view; what it states has been compared, or was put there, by the caller.
        place: of the refusal.

    Raises:
        ViewSignatureError: as it says.
    """
    promised = HASH_BYTES if run.proves_sums else 0
    if len(message.commitment) != promised:
        raise ViewSignatureError(
            place,
            f"a view must have the hash of a commitment where sums are proved, and none elsewhere: {promised} bytes, "
            f"got {len(message.commitment)}",
            message.hospital,
        )
    if not is_signed(run.roster[message.hospital], message.signature, signed_part(run, message)):
        raise ViewSignatureError(
            place, "everyone in the cohort must have signed the same view of the round", message.hospital
        )


class MaskedSum:
    """The server's running sum of masked vectors: one vector of memory, whatever the number of hospitals.

    In a run that has disputes every masked change is kept besides, until the round is over.

    Figure 4, round 2, server.
    """

    def __init__(self, routed: Routed, terms: bytes) -> None:
        """Start an empty sum for the cohort that shared its keys, of vectors that ``terms`` ask for."""
        self.routed = routed
        self.request_hash = request_hash(terms)
        self.cohort_hash = cohort_hash(routed.directory_hash, routed.cohort)
        self.total: Vector = np.zeros(routed.run.vector_length, routed.run.dtype)
        self.survivors: tuple[str, ...] = ()
        """Whose vectors are in the sum (the paper's U_3), sorted; filled by :meth:`close`."""
        self.views: dict[str, MaskedInput] = {}
        """What each hospital whose vector is in the sum signed of the round."""
        self.sealed: dict[str, SealedCommitment] = {}
        """What each of them committed to, sealed, in a run that proves its sums."""
        self.changes: dict[str, Vector] = {}
        """Each of their masked changes, in a run that has disputes."""
        self.counts_hashes: dict[str, bytes] = {}
        """The hash of the masked counts of each, likewise."""
        self._closed = False

    @property
    def submitted(self) -> frozenset[str]:
        """Return the hospitals whose vectors are in the sum so far."""
        return frozenset(self.views)

    def add(self, sender: str, message: MaskedInput, vector: Vector, sealed: SealedCommitment | None = None) -> None:
        """Add a masked vector that has arrived.

        Args:
            sender: the authenticated sender.
            message: what the vector is said to be.
            vector: shape (vector_length,), of the run's ring; not kept.
            sealed: its commitment, in a run that proves its sums.

        Raises:
            SecAggError: the message or vector is of another run, round, sender, configuration, cohort, request, ring or
                length, is not as the sender signed it, is the sender's second, or comes after :meth:`close`; the sum is
                unchanged.
        """
        run, round_number = self.routed.run, self.routed.directory.round_number
        place = Place(SERVER, round_number, Phase.MASKED_INPUT)
        require_place(run, round_number, message, place, sender)
        if sender not in self.routed.inboxes:
            raise NotInCohortError(place, "a vector must be from a hospital of the cohort", sender)
        if sender in self.views:
            raise DuplicateMaskedInputError(place, "a hospital must send one vector a round, got a second", sender)
        if self._closed:
            raise LateMaskedInputError(place, "a vector must come before its owner is declared dropped", sender)
        self._verify(sender, message, place)
        verify_vector(run, vector, place, sender)
        if (sealed is not None) != run.proves_sums:
            raise CommitmentHashError(
                place, "a sealed commitment must come with a vector where sums are proved, and nowhere else", sender
            )
        if sealed is not None:
            require_place(run, round_number, sealed, place, sender)
        expected = signed_hash(run, vector, sealed, self.routed.self_mask_commitments[sender])
        if message.vector_hash != expected:
            raise VectorHashError(place, "a vector must be the one that its hospital signed", sender)
        verify_view(run, message, place)
        run.add(self.total, vector)
        self.views[sender] = message
        if sealed is not None:
            self.sealed[sender] = sealed
        if run.disputes:
            counts, change = run.segments(vector)
            self.changes[sender], self.counts_hashes[sender] = change.copy(), array_hash(counts)

    def _verify(self, sender: str, message: MaskedInput, place: Place) -> None:
        """Refuse a vector that is said to be another than this round asks for."""
        run = self.routed.run
        if message.config_hash != run.config_hash:
            raise ConfigHashError(place, "a vector must be made under this run's configuration", sender)
        if message.directory_hash != self.routed.directory_hash:
            raise DirectoryMismatchError(place, "a vector must be masked with the keys of this round", sender)
        if message.cohort_hash != self.cohort_hash:
            raise CohortMismatchError(place, "a vector must be masked for this round's cohort", sender)
        if message.request_hash != self.request_hash:
            raise RequestHashError(place, "a vector must be what this round asks for", sender)
        if message.modulus_bits != run.modulus_bits:
            raise VectorRingError(
                place, f"a vector must be modulo 2^{run.modulus_bits}, got 2^{message.modulus_bits}", sender
            )
        if message.vector_length != run.vector_length:
            raise VectorLengthError(
                place, f"a vector must have {run.vector_length} elements, got {message.vector_length}", sender
            )

    def close(self) -> SurvivorList:
        """Declare everyone who has not submitted dropped.

        Returns:
            The message for every survivor.

        Raises:
            TooFewHospitalsError: fewer than the threshold submitted; the sum stays masked for ever.
        """
        directory = self.routed.directory
        self._closed = True
        self.survivors = tuple(sorted(self.views))
        if len(self.survivors) < directory.threshold:
            raise TooFewHospitalsError(
                Place(SERVER, directory.round_number, Phase.MASKED_INPUT),
                f"at least {directory.threshold} hospitals must submit a vector, got {len(self.survivors)}",
            )
        dropped = tuple(sorted(set(self.routed.cohort) - self.submitted))
        return SurvivorList(self.routed.run.run_id, directory.round_number, self.survivors, dropped)
