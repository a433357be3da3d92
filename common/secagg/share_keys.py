"""Phase 1, ShareKeys: each hospital deals shares of s_u and of a fresh b_u to its neighbours, through the server.

Proof that keys of the next round may ride on this one: ``docs/proofs/riding-keys.md``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from common.secagg import shamir
from common.secagg.advertise_keys import RoundKeys, public_keys, verify
from common.secagg.binding import directory_hash, require_place, round_context
from common.secagg.erasing import erase
from common.secagg.errors import (
    SERVER,
    DirectoryMismatchError,
    DuplicateKeyError,
    MisdirectedShareError,
    MissingShareError,
    OmittedHospitalError,
    Place,
    ReflectedKeyError,
    SecAggError,
    ThresholdLoweredError,
    TooFewHospitalsError,
    UnexpectedShareError,
    UnknownHospitalError,
)
from common.secagg.keys import KEY_BYTES, Agreements, Committed, commit, encrypt, share_encryption_info
from common.secagg.messages import (
    AdvertisedKeys,
    EncryptedShare,
    EncryptedShares,
    KeyDirectory,
    MaskedInputRequest,
)
from common.secagg.neighbours import Neighbourhoods, neighbourhoods
from common.secagg.parameters import RunParameters
from common.secagg.phases import Phase
from common.secagg.shamir import Random


@dataclass(frozen=True)
class SharePair:
    """One dealer's two shares for one recipient; a recipient reveals at most one of them."""

    self_mask: bytes = field(repr=False)
    """The share of b_u, 33 bytes."""
    masking_key: bytes = field(repr=False)
    """The share of s_u, 33 bytes."""

    def copy(self) -> "SharePair":
        """Return a pair of its own memory, for a state that outlives this one."""
        return SharePair(memoryview(self.self_mask).tobytes(), memoryview(self.masking_key).tobytes())

    def erase(self) -> None:
        """Overwrite both shares."""
        erase(self.self_mask, self.masking_key)


@dataclass(frozen=True)
class SharedKeys:
    """A hospital's state after ShareKeys; the keys it was made of are part of it."""

    keys: RoundKeys
    directory: KeyDirectory
    directory_hash: bytes
    graph: Neighbourhoods = field(repr=False)
    self_mask_seed: bytes = field(repr=False)
    """b_u"""
    own_shares: SharePair

    def erase(self) -> None:
        """Overwrite all secrets: both private keys, b_u and the shares the hospital keeps."""
        self.keys.erase()
        self.own_shares.erase()
        erase(self.self_mask_seed)


@dataclass(frozen=True)
class Routed:
    """The server's state after ShareKeys."""

    run: RunParameters
    directory: KeyDirectory
    directory_hash: bytes
    graph: Neighbourhoods = field(repr=False)
    cohort: tuple[str, ...]
    """The hospitals that shared their keys (the paper's U_2), sorted."""
    self_mask_commitments: Mapping[str, bytes] = field(repr=False)
    """Hospital of the cohort to its commitment to b_u."""
    inboxes: Mapping[str, Mapping[str, EncryptedShare]] = field(repr=False)
    """Recipient to dealer to share, both in the cohort."""
    refusals: tuple[SecAggError, ...]

    def request_for(self, hospital: str, terms: bytes) -> MaskedInputRequest:
        """Return what ``hospital`` needs to mask its vector: the terms, the cohort, and the shares dealt to it."""
        inbox = tuple(self.inboxes[hospital].values())
        return MaskedInputRequest(self.run.run_id, self.directory.round_number, terms, self.cohort, inbox)


def share(keys: RoundKeys, directory: KeyDirectory, random: Random) -> tuple[SharedKeys, EncryptedShares]:
    """Check everyone's keys, then deal shares of this hospital's two secrets (figure 4, round 1, user).

    Args:
        keys: the state of :func:`common.secagg.advertise_keys.advertise`, for the same round.
        directory: what the server says everyone advertised.
        random: cryptographic source.

    Returns:
        The state to keep, and the message for the server.

    Raises:
        SecAggError: of the kinds of :func:`verify_directory`; nothing was dealt.
    """
    verify_directory(keys, directory)
    return deal(keys, directory, random)


def deal(keys: RoundKeys, directory: KeyDirectory, random: Random) -> tuple[SharedKeys, EncryptedShares]:
    """Do as :func:`share` with a directory that is known to be good.

    For a benchmark that plays many hospitals and checks the directory for one of them; a hospital calls :func:`share`.
    """
    hospital, graph, everyone = keys.hospital, neighbourhoods(keys.run, directory), directory_hash(directory)
    context = round_context(keys.run, keys.round_number)
    self_mask_seed = random(KEY_BYTES)
    pairs = _split_secrets(keys, self_mask_seed, graph, random)
    public = {advertised.hospital: advertised.encryption_key for advertised in directory.keys}
    agreements, shares = Agreements(keys.encryption_key), []
    for neighbour in graph.by_hospital[hospital]:
        pair = pairs[neighbour]
        info = share_encryption_info(context, everyone, hospital, neighbour)
        key, plaintext = agreements.agree(public[neighbour], info), pack_shares(hospital, neighbour, pair)
        ciphertext = encrypt(key, plaintext, random)
        commitments = commit_to_pair(context, hospital, neighbour, pair)
        pair.erase()
        erase(key, plaintext)
        shares.append(EncryptedShare(hospital, neighbour, ciphertext, *commitments))
    message = EncryptedShares(
        run_id=keys.run.run_id,
        round_number=keys.round_number,
        hospital=hospital,
        directory_hash=everyone,
        self_mask_commitment=commit(context, Committed.SELF_MASK_SEED, hospital, hospital, self_mask_seed),
        shares=tuple(shares),
    )
    return SharedKeys(keys, directory, everyone, graph, self_mask_seed, pairs[hospital]), message


def _split_secrets(
    keys: RoundKeys, self_mask_seed: bytes, graph: Neighbourhoods, random: Random
) -> dict[str, SharePair]:
    """Return the shares of b_u and s_u for each neighbour, and those the hospital keeps."""
    holders = (*graph.by_hospital[keys.hospital], keys.hospital)
    points = [graph.points[holder] for holder in holders]
    of_seed = shamir.share(self_mask_seed, graph.share_threshold, points, random)
    of_key = shamir.share(keys.masking_key, graph.share_threshold, points, random)
    return {holder: SharePair(of_seed[point], of_key[point]) for holder, point in zip(holders, points, strict=True)}


def verify_directory(keys: RoundKeys, directory: KeyDirectory) -> None:
    """Refuse a directory that would let the server, or anyone it invents, read this hospital's shares.

    Raises:
        ContextError, OmittedHospitalError, ThresholdError, PublicKeyError, UnknownHospitalError: one of their kinds.
    """
    run, own = keys.run, keys.advertised
    place = Place(keys.hospital, keys.round_number, Phase.SHARE_KEYS)
    require_place(run, keys.round_number, directory, place)
    rule = run.threshold(len(directory.keys))
    if len(directory.keys) < rule:
        raise TooFewHospitalsError(
            place, f"at least {rule} hospitals must take part, got {len(directory.keys)} in the directory"
        )
    if not rule <= directory.threshold <= len(directory.keys):
        raise ThresholdLoweredError(
            place,
            f"the threshold must be from {rule} to {len(directory.keys)} for {len(directory.keys)} hospitals, "
            f"got {directory.threshold}",
        )
    for advertised in directory.keys:
        verify(run, keys.round_number, advertised, place, advertised.hospital)
    by_hospital = {advertised.hospital: advertised for advertised in directory.keys}
    if keys.hospital not in by_hospital:
        raise OmittedHospitalError(place, "the directory must hold this hospital's own keys, got it without them")
    if by_hospital.pop(keys.hospital) != own:
        raise DirectoryMismatchError(place, "the directory must hold the keys this hospital advertised, got others")
    _require_distinct_keys(place, own, by_hospital)


def _require_distinct_keys(place: Place, own: AdvertisedKeys, others: Mapping[str, AdvertisedKeys]) -> None:
    mine = set(public_keys(own))
    seen = set(mine)
    for hospital, advertised in others.items():
        theirs = set(public_keys(advertised))
        if theirs & mine:
            raise ReflectedKeyError(place, "a peer's key must not be this hospital's own", hospital)
        if theirs & seen or len(theirs) != len(public_keys(advertised)):
            raise DuplicateKeyError(place, "no two public keys of a round may be equal", hospital)
        seen |= theirs


def route(run: RunParameters, directory: KeyDirectory, messages: Mapping[str, EncryptedShares]) -> Routed:
    """Check who shared, which makes the cohort (figure 4, round 1, server).

    Args:
        run: the server's view of the run.
        directory: of :func:`common.secagg.advertise_keys.collect`.
        messages: authenticated sender to message; who advertised but is not here is simply not in the cohort.

    Returns:
        The cohort, everyone's inbox, and an error for each refused message.

    Raises:
        TooFewHospitalsError: fewer than the threshold shared their keys; the round cannot continue.
    """
    graph, everyone = neighbourhoods(run, directory), directory_hash(directory)
    accepted, refusals = {}, []
    for sender, message in sorted(messages.items()):
        try:
            _verify_shares(run, directory, everyone, graph, sender, message)
        except SecAggError as refusal:
            refusals.append(refusal)
        else:
            accepted[sender] = message
    if len(accepted) < directory.threshold:
        raise TooFewHospitalsError(
            Place(SERVER, directory.round_number, Phase.SHARE_KEYS),
            f"at least {directory.threshold} hospitals must share their keys, got {len(accepted)}",
        )
    inboxes: dict[str, dict[str, EncryptedShare]] = {hospital: {} for hospital in accepted}
    for dealer, message in accepted.items():
        for share in message.shares:
            if share.recipient in inboxes:
                inboxes[share.recipient][dealer] = share
    commitments = {dealer: message.self_mask_commitment for dealer, message in accepted.items()}
    return Routed(run, directory, everyone, graph, tuple(accepted), commitments, inboxes, tuple(refusals))


def _verify_shares(
    run: RunParameters,
    directory: KeyDirectory,
    directory_hash: bytes,
    graph: Neighbourhoods,
    sender: str,
    message: EncryptedShares,
) -> None:
    """Refuse a hospital's shares when they are not one for each of its neighbours, for this directory."""
    place = Place(SERVER, directory.round_number, Phase.SHARE_KEYS)
    require_place(run, directory.round_number, message, place, sender)
    if sender not in graph.by_hospital:
        raise UnknownHospitalError(place, "only a hospital that advertised keys may share them", sender)
    if message.directory_hash != directory_hash:
        raise DirectoryMismatchError(place, "shares must be made for the directory of this round", sender)
    recipients, neighbours = {share.recipient for share in message.shares}, set(graph.by_hospital[sender])
    if any(share.dealer != sender for share in message.shares):
        raise MisdirectedShareError(place, "a share must name its sender as dealer", sender)
    if recipients - neighbours:
        raise UnexpectedShareError(place, "shares must be for the sender's neighbours only", sender)
    if neighbours - recipients:
        raise MissingShareError(place, "there must be a share for each of the sender's neighbours", sender)


def pack_shares(dealer: str, recipient: str, pair: SharePair) -> bytes:
    """Return the plaintext of one encrypted share: u || v || s_uv || b_uv of figure 4, with lengths."""
    names = b"".join(bytes([len(name)]) + name.encode() for name in (dealer, recipient))
    return b"".join((names, pair.masking_key, pair.self_mask))  # Unlike a sum of three, no copy of the first two.


def commit_to_pair(context: bytes, dealer: str, recipient: str, pair: SharePair) -> tuple[bytes, bytes]:
    """Return the dealer's commitments to the two shares: of b_u, then of s_u."""
    return (
        commit(context, Committed.SELF_MASK_SHARE, dealer, recipient, pair.self_mask),
        commit(context, Committed.MASKING_KEY_SHARE, dealer, recipient, pair.masking_key),
    )
