"""Hospitals, or a server in between, that deal, deliver or reveal wrong shares: each is named."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from common.secagg import shamir, unmasking
from common.secagg.binding import round_context
from common.secagg.errors import (
    CorruptedShareError,
    DirectoryMismatchError,
    ImpersonationError,
    InconsistentDealingError,
    MisdirectedShareError,
    MissingShareError,
    NotInCohortError,
    ReplayedMessageError,
    SecAggError,
    ShareDecryptionError,
    TooFewHospitalsError,
    TooFewSharesError,
    UnexpectedShareError,
    UnknownHospitalError,
)
from common.secagg.keys import agree, encrypt, share_encryption_info
from common.secagg.masked_input import MaskedSum
from common.secagg.messages import EncryptedShare, EncryptedShares, MaskedInputRequest, RevealedShare, UnmaskingShares
from common.secagg.phases import Phase
from common.secagg.share_keys import Routed, SharePair, commit_to_pair, pack_shares, route
from tests.support.parties import TERMS, Consortium

VICTIM, DEALER, OTHER, LAST = "hospital-1", "hospital-2", "hospital-3", "hospital-5"


@pytest.fixture
def consortium() -> Consortium:
    return Consortium(5)


def with_share(request: MaskedInputRequest, changed: EncryptedShare) -> MaskedInputRequest:
    inbox = {share.dealer: share for share in request.inbox} | {changed.dealer: changed}
    return replace(request, inbox=tuple(inbox[dealer] for dealer in sorted(inbox)))


def dealt_by(request: MaskedInputRequest, dealer: str) -> EncryptedShare:
    return next(share for share in request.inbox if share.dealer == dealer)


def assert_nothing_masked(
    consortium: Consortium, request: MaskedInputRequest, error: type[SecAggError], about: str = DEALER
) -> None:
    with pytest.raises(error) as refusal:
        consortium[VICTIM].mask(request, consortium.vector())
    assert refusal.type is error
    assert (refusal.value.place.party, refusal.value.place.phase) == (VICTIM, Phase.MASKED_INPUT)
    assert refusal.value.hospital == about
    assert consortium[VICTIM].masked == {}


def encrypted(consortium: Consortium, routed: Routed, plaintext: bytes) -> bytes:
    """Encrypt for the victim whatever a dishonest dealer likes, with its own keys."""
    dealer = consortium[DEALER]
    info = share_encryption_info(round_context(consortium.run, 1), routed.directory_hash, DEALER, VICTIM)
    victims = next(keys for keys in routed.directory.keys if keys.hospital == VICTIM)
    return encrypt(agree(dealer.keys[1].encryption_key, victims.encryption_key, info), plaintext, dealer.random)


def test_a_share_altered_on_the_way_is_refused(consortium: Consortium) -> None:
    request = consortium.routed().request_for(VICTIM, TERMS)
    genuine = dealt_by(request, DEALER)
    for position in (0, 20, -1):
        altered = bytearray(genuine.ciphertext)
        altered[position] ^= 1
        changed = replace(genuine, ciphertext=bytes(altered))
        assert_nothing_masked(consortium, with_share(request, changed), ShareDecryptionError)


@pytest.mark.parametrize("length", [0, 5, 12, 20])
def test_a_share_cut_short_is_refused(consortium: Consortium, length: int) -> None:
    request = consortium.routed().request_for(VICTIM, TERMS)
    genuine = dealt_by(request, DEALER)
    changed = replace(genuine, ciphertext=genuine.ciphertext[:length])
    assert_nothing_masked(consortium, with_share(request, changed), ShareDecryptionError)


def test_a_share_for_another_recipient_is_refused(consortium: Consortium) -> None:
    routed = consortium.routed()
    request = routed.request_for(VICTIM, TERMS)
    stray = dealt_by(routed.request_for(OTHER, TERMS), DEALER)
    assert_nothing_masked(consortium, with_share(request, stray), MisdirectedShareError)


def test_a_share_for_another_recipient_relabelled_is_refused(consortium: Consortium) -> None:
    routed = consortium.routed()
    request = routed.request_for(VICTIM, TERMS)
    stray = replace(dealt_by(routed.request_for(OTHER, TERMS), DEALER), recipient=VICTIM)
    assert_nothing_masked(consortium, with_share(request, stray), ShareDecryptionError)


def test_a_share_from_another_dealer_relabelled_is_refused(consortium: Consortium) -> None:
    request = consortium.routed().request_for(VICTIM, TERMS)
    stray = replace(dealt_by(request, OTHER), dealer=DEALER)
    assert_nothing_masked(consortium, with_share(request, stray), ShareDecryptionError)


def test_a_share_replayed_from_an_earlier_round_is_refused(consortium: Consortium) -> None:
    earlier = consortium.routed(1).request_for(VICTIM, TERMS)
    request = consortium.routed(2).request_for(VICTIM, TERMS)
    assert_nothing_masked(consortium, with_share(request, dealt_by(earlier, DEALER)), ShareDecryptionError)


def test_a_dealer_that_encrypts_a_share_for_someone_else_is_refused(consortium: Consortium) -> None:
    routed = consortium.routed()
    request = routed.request_for(VICTIM, TERMS)
    pair = SharePair(bytes(33), bytes(33))
    for plaintext in (pack_shares(DEALER, OTHER, pair), pack_shares(OTHER, VICTIM, pair), b"", bytes(66)):
        changed = replace(dealt_by(request, DEALER), ciphertext=encrypted(consortium, routed, plaintext))
        assert_nothing_masked(consortium, with_share(request, changed), MisdirectedShareError)


def test_a_dealer_whose_share_is_not_the_committed_one_is_refused(consortium: Consortium) -> None:
    routed = consortium.routed()
    request = routed.request_for(VICTIM, TERMS)
    ciphertext = encrypted(consortium, routed, pack_shares(DEALER, VICTIM, SharePair(bytes(33), bytes(33))))
    changed = replace(dealt_by(request, DEALER), ciphertext=ciphertext)
    assert_nothing_masked(consortium, with_share(request, changed), CorruptedShareError)


def test_a_share_withheld_by_the_server_is_missed(consortium: Consortium) -> None:
    request = consortium.routed().request_for(VICTIM, TERMS)
    inbox = tuple(share for share in request.inbox if share.dealer != DEALER)
    assert_nothing_masked(consortium, replace(request, inbox=inbox), MissingShareError)


def test_a_share_from_outside_the_cohort_is_refused(consortium: Consortium) -> None:
    request = consortium.routed().request_for(VICTIM, TERMS)
    smaller = replace(request, cohort=tuple(name for name in request.cohort if name != LAST))
    assert_nothing_masked(consortium, smaller, UnexpectedShareError, about=LAST)


def shares_by(consortium: Consortium) -> tuple[Routed, dict[str, EncryptedShares]]:
    directory = consortium.directory()
    messages = {name: consortium[name].share(directory) for name in consortium.names}
    return route(consortium.run, directory, messages), messages


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda message: replace(message, round_number=0), ReplayedMessageError),
        (lambda message: replace(message, hospital=OTHER), ImpersonationError),
        (lambda message: replace(message, directory_hash=bytes(32)), DirectoryMismatchError),
        (lambda message: replace(message, shares=message.shares[1:]), MissingShareError),
        (
            lambda message: replace(message, shares=(*message.shares, replace(message.shares[0], recipient=DEALER))),
            UnexpectedShareError,
        ),
        (
            lambda message: replace(message, shares=(replace(message.shares[0], dealer=OTHER), *message.shares[1:])),
            MisdirectedShareError,
        ),
    ],
    ids=["replayed", "for-another", "other-directory", "one-missing", "one-to-itself", "other-dealer"],
)
def test_wrong_shares_keep_their_dealer_out_of_the_cohort(
    consortium: Consortium, change: Callable[[EncryptedShares], EncryptedShares], error: type[SecAggError]
) -> None:
    routed, messages = shares_by(consortium)
    messages[DEALER] = change(messages[DEALER])
    after = route(consortium.run, routed.directory, messages)
    assert [(type(refusal), refusal.hospital) for refusal in after.refusals] == [(error, DEALER)]
    assert after.cohort == tuple(name for name in consortium.names if name != DEALER)


def test_shares_from_one_that_never_advertised_are_refused(consortium: Consortium) -> None:
    directory = consortium.directory(who=consortium.names[:4])
    messages = {name: consortium[name].share(directory) for name in consortium.names[:4]}
    messages[LAST] = replace(messages[VICTIM], hospital=LAST)
    refusals = route(consortium.run, directory, messages).refusals
    assert [(type(refusal), refusal.hospital) for refusal in refusals] == [(UnknownHospitalError, LAST)]


def test_too_few_good_dealers_end_the_round(consortium: Consortium) -> None:
    routed, messages = shares_by(consortium)
    with pytest.raises(TooFewHospitalsError):
        route(consortium.run, routed.directory, {name: messages[name] for name in consortium.names[:3]})


def revealed_by(consortium: Consortium, lost: tuple[str, ...] = ()) -> tuple[MaskedSum, dict[str, UnmaskingShares]]:
    total = consortium.masked_sum(lost=lost)
    request = consortium.unmasking_request(total)
    return total, {name: consortium[name].reveal(request) for name in request.survivors}


def test_a_corrupted_share_is_refused_and_its_revealer_named(consortium: Consortium) -> None:
    total, messages = revealed_by(consortium)
    genuine = messages[DEALER].self_mask_shares
    corrupted = replace(genuine[0], share=bytes(33))
    messages[DEALER] = replace(messages[DEALER], self_mask_shares=(corrupted, *genuine[1:]))
    refusals = unmasking.unmask(total, messages).refusals
    assert [(type(refusal), refusal.hospital) for refusal in refusals] == [(CorruptedShareError, DEALER)]


def test_a_corrupted_share_of_a_dropped_hospitals_key_is_refused(consortium: Consortium) -> None:
    total, messages = revealed_by(consortium, lost=(LAST,))
    corrupted = RevealedShare(LAST, bytes(33))
    messages[DEALER] = replace(messages[DEALER], masking_key_shares=(corrupted,))
    before = total.total.copy()
    with pytest.raises(TooFewSharesError):
        unmasking.unmask(total, messages)
    assert (total.total == before).all()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            lambda message: replace(
                message,
                masking_key_shares=(
                    replace(message.self_mask_shares[0], share=bytes(33)),
                    *message.masking_key_shares,
                ),
            ),
            UnexpectedShareError,
        ),
        (lambda message: replace(message, self_mask_shares=message.self_mask_shares[1:]), MissingShareError),
        (lambda message: replace(message, hospital=OTHER), ImpersonationError),
        (lambda message: replace(message, round_number=0), ReplayedMessageError),
    ],
    ids=["both-kinds-for-one", "one-withheld", "for-another", "replayed"],
)
def test_wrong_revelations_are_refused_and_their_sender_named(
    consortium: Consortium, change: Callable[[UnmaskingShares], UnmaskingShares], error: type[SecAggError]
) -> None:
    total, messages = revealed_by(consortium)
    messages[DEALER] = change(messages[DEALER])
    refusals = unmasking.unmask(total, messages).refusals
    assert [(type(refusal), refusal.hospital) for refusal in refusals] == [(error, DEALER)]


def test_shares_from_one_that_dropped_out_are_refused(consortium: Consortium) -> None:
    total, messages = revealed_by(consortium, lost=(LAST,))
    messages[LAST] = replace(messages[VICTIM], hospital=LAST)
    refusals = unmasking.unmask(total, messages).refusals
    assert [(type(refusal), refusal.hospital) for refusal in refusals] == [(NotInCohortError, LAST)]


def play_with_dishonest_dealer(
    consortium: Consortium, of_seed: dict[str, bytes], of_key: dict[str, bytes], lost: tuple[str, ...] = ()
) -> None:
    """Play a round in which the dealer deals, and commits to, the given shares."""
    routed, messages = shares_by(consortium)
    dealer, context = consortium[DEALER], round_context(consortium.run, 1)
    everyone = {keys.hospital: keys for keys in routed.directory.keys}
    shares = []
    for share in messages[DEALER].shares:
        name = share.recipient
        pair = SharePair(of_seed[name], of_key[name])
        info = share_encryption_info(context, routed.directory_hash, DEALER, name)
        key = agree(dealer.keys[1].encryption_key, everyone[name].encryption_key, info)
        ciphertext = encrypt(key, pack_shares(DEALER, name, pair), dealer.random)
        shares.append(EncryptedShare(DEALER, name, ciphertext, *commit_to_pair(context, DEALER, name, pair)))
    messages[DEALER] = replace(messages[DEALER], shares=tuple(shares))
    routed = route(consortium.run, routed.directory, messages)
    total = MaskedSum(routed, TERMS)
    for name in consortium.names:
        message, masked = consortium[name].mask(routed.request_for(name, TERMS), consortium.vector())
        if name not in lost:
            total.add(name, message, masked)
    consortium.unmask(total, consortium.unmasking_request(total))


@pytest.mark.parametrize("lost", [(), (DEALER,)], ids=["seed", "key"])
def test_a_dealer_whose_shares_rebuild_another_secret_is_named(consortium: Consortium, lost: tuple[str, ...]) -> None:
    points = list(range(1, 6))
    other = shamir.share(b"not what was promised to anybody", 4, points, consortium.source.randbytes)
    shares = dict(zip(consortium.names, other.values(), strict=True))
    with pytest.raises(InconsistentDealingError) as refusal:
        play_with_dishonest_dealer(consortium, shares, shares, lost)
    assert refusal.value.hospital == DEALER


@pytest.mark.parametrize("lost", [(), (DEALER,)], ids=["seed", "key"])
def test_a_dealer_whose_shares_rebuild_no_secret_is_named(consortium: Consortium, lost: tuple[str, ...]) -> None:
    too_large = dict.fromkeys(consortium.names, (2**256 + 1).to_bytes(33, "big"))
    with pytest.raises(InconsistentDealingError) as refusal:
        play_with_dishonest_dealer(consortium, too_large, too_large, lost)
    assert refusal.value.hospital == DEALER


def test_a_dealer_that_reveals_a_false_share_of_its_own_blames_only_itself(consortium: Consortium) -> None:
    total, messages = revealed_by(consortium)
    false = tuple(
        replace(share, share=bytes(33)) if share.owner == DEALER else share
        for share in messages[DEALER].self_mask_shares
    )
    messages[DEALER] = replace(messages[DEALER], self_mask_shares=false)
    with pytest.raises(InconsistentDealingError) as refusal:
        unmasking.unmask(total, messages)
    assert refusal.value.hospital == DEALER
