"""A server that misstates who survived, to get both kinds of shares for one hospital and so open its vector."""

from dataclasses import replace

import pytest

from common.secagg import consistency_check
from common.secagg.errors import (
    ConfigHashError,
    DifferentSurvivorsError,
    DroppedAndAliveError,
    ImpersonationError,
    IncompleteSurvivorsError,
    NotInCohortError,
    OmittedHospitalError,
    ReplayedMessageError,
    SecAggError,
    SurvivorOutsideCohortError,
    SurvivorSignatureError,
    TooFewHospitalsError,
    TooFewSignaturesError,
    UnsignedSurvivorsError,
)
from common.secagg.messages import SurvivorList, SurvivorSignature, UnmaskingRequest
from common.secagg.parameters import Adversary
from common.secagg.phases import Phase
from tests.support.parties import RUN_ID, Consortium, Hospital

VICTIM, PEER, LAST = "hospital-1", "hospital-2", "hospital-5"


@pytest.fixture
def consortium() -> Consortium:
    """Five hospitals that have masked; the threshold is four."""
    consortium = Consortium(5)
    consortium.masked_sum()
    return consortium


def assert_not_signed(victim: Hospital, survivors: SurvivorList, error: type[SecAggError]) -> None:
    with pytest.raises(error) as refusal:
        victim.sign(survivors)
    assert refusal.type is error
    assert (refusal.value.place.party, refusal.value.place.phase) == (victim.name, Phase.CONSISTENCY_CHECK)
    assert victim.signed == {}


def signed_request(
    consortium: Consortium, survivors: tuple[str, ...], dropped: tuple[str, ...] = ()
) -> UnmaskingRequest:
    """Let all survivors sign the same list, and ask for shares."""
    told = SurvivorList(RUN_ID, 1, survivors, dropped)
    signatures = tuple(consortium[name].sign(told) for name in survivors)
    return UnmaskingRequest(RUN_ID, 1, survivors, dropped, signatures)


def with_signature(request: UnmaskingRequest, forged: SurvivorSignature) -> UnmaskingRequest:
    signatures = {signature.hospital: signature for signature in request.signatures} | {forged.hospital: forged}
    return replace(request, signatures=tuple(signatures[name] for name in sorted(signatures)))


def assert_nothing_revealed(
    victim: Hospital, request: UnmaskingRequest, error: type[SecAggError], about: str | None = PEER
) -> None:
    with pytest.raises(error) as refusal:
        victim.reveal(request)
    assert refusal.type is error
    assert (refusal.value.place.party, refusal.value.place.phase) == (victim.name, Phase.UNMASKING)
    assert refusal.value.hospital == (about or victim.name)


def test_a_hospital_listed_both_dropped_and_alive_is_refused(consortium: Consortium) -> None:
    """Both its shares would be revealed: the flaw of Flower's SecAgg+."""
    told = SurvivorList(RUN_ID, 1, consortium.names, (PEER,))
    assert_not_signed(consortium[VICTIM], told, DroppedAndAliveError)


def test_a_hospital_listed_neither_dropped_nor_alive_is_refused(consortium: Consortium) -> None:
    told = SurvivorList(RUN_ID, 1, consortium.names[:4], ())
    assert_not_signed(consortium[VICTIM], told, IncompleteSurvivorsError)


def test_survivors_outside_the_cohort_are_refused(consortium: Consortium) -> None:
    told = SurvivorList(RUN_ID, 1, (*consortium.names, "hospital-9"), ())
    assert_not_signed(consortium[VICTIM], told, SurvivorOutsideCohortError)


def test_a_hospital_that_sent_its_vector_refuses_to_be_declared_dropped(consortium: Consortium) -> None:
    told = SurvivorList(RUN_ID, 1, consortium.names[1:], (VICTIM,))
    assert_not_signed(consortium[VICTIM], told, OmittedHospitalError)


def test_survivors_below_the_threshold_are_refused(consortium: Consortium) -> None:
    told = SurvivorList(RUN_ID, 1, consortium.names[:3], consortium.names[3:])
    assert_not_signed(consortium[VICTIM], told, TooFewHospitalsError)


def test_survivors_replayed_from_an_earlier_round_are_refused(consortium: Consortium) -> None:
    consortium.masked_sum(round_number=2)
    victim = consortium[VICTIM]
    victim.masked[1] = victim.masked[2]
    assert_not_signed(victim, SurvivorList(RUN_ID, 1, consortium.names, ()), ReplayedMessageError)


def test_different_survivors_told_to_different_hospitals_are_found_out(consortium: Consortium) -> None:
    everybody, but_one = consortium.names, consortium.names[:4]
    whole = SurvivorList(RUN_ID, 1, everybody, ())
    split = SurvivorList(RUN_ID, 1, but_one, (LAST,))
    signatures = [consortium[name].sign(whole if name == VICTIM else split) for name in but_one]
    request = UnmaskingRequest(RUN_ID, 1, everybody, (), tuple(signatures))
    assert_nothing_revealed(consortium[VICTIM], request, DifferentSurvivorsError)


def test_other_survivors_than_the_hospital_signed_are_refused(consortium: Consortium) -> None:
    request = signed_request(consortium, consortium.names)
    other = replace(request, survivors=consortium.names[:4], dropped=(LAST,), signatures=request.signatures[:4])
    assert_nothing_revealed(consortium[VICTIM], other, DifferentSurvivorsError, about=None)


def test_a_forged_survivor_signature_is_refused(consortium: Consortium) -> None:
    request = signed_request(consortium, consortium.names)
    genuine = request.signatures[1]
    for signature in (bytes(64), b"", request.signatures[2].signature):
        forged = with_signature(request, replace(genuine, signature=signature))
        assert_nothing_revealed(consortium[VICTIM], forged, SurvivorSignatureError)


def test_a_signature_by_someone_who_is_no_survivor_is_refused(consortium: Consortium) -> None:
    survivors, dropped = consortium.names[:4], (LAST,)
    request = signed_request(consortium, survivors, dropped)
    stray = replace(request.signatures[0], hospital=LAST)
    assert_nothing_revealed(consortium[VICTIM], with_signature(request, stray), NotInCohortError, about=LAST)


def test_too_few_signatures_are_refused(consortium: Consortium) -> None:
    request = signed_request(consortium, consortium.names)
    few = replace(request, signatures=request.signatures[:3])
    assert_nothing_revealed(consortium[VICTIM], few, TooFewSignaturesError, about=None)


def test_signatures_replayed_from_an_earlier_round_are_refused(consortium: Consortium) -> None:
    earlier = signed_request(consortium, consortium.names)
    later = consortium.unmasking_request(consortium.masked_sum(round_number=2))
    replayed = with_signature(later, earlier.signatures[1])
    assert_nothing_revealed(consortium[VICTIM], replayed, ReplayedMessageError)


def test_a_signature_under_another_configuration_is_refused(consortium: Consortium) -> None:
    """Its hospital trains something else and would not know."""
    request = signed_request(consortium, consortium.names)
    peer = consortium[PEER]
    stale = replace(request.signatures[1], config_hash=bytes(32), signature=b"")
    signed = replace(stale, signature=peer.identity.sign(consistency_check.signed_part(consortium.run, stale)))
    assert_nothing_revealed(consortium[VICTIM], with_signature(request, signed), ConfigHashError)


def test_shares_asked_for_without_the_consistency_check_are_refused(consortium: Consortium) -> None:
    request = UnmaskingRequest(RUN_ID, 1, consortium.names, (), ())
    assert_nothing_revealed(consortium[VICTIM], request, UnsignedSurvivorsError, about=None)


def test_a_semi_honest_run_still_refuses_a_hospital_both_dropped_and_alive() -> None:
    consortium = Consortium(5, adversary=Adversary.SEMI_HONEST)
    consortium.masked_sum()
    request = UnmaskingRequest(RUN_ID, 1, consortium.names, (PEER,), ())
    assert_nothing_revealed(consortium[VICTIM], request, DroppedAndAliveError)


def test_an_honest_server_names_who_signed_something_else(consortium: Consortium) -> None:
    total = consortium.masked_sum(round_number=2)
    survivors = total.close()
    messages = {name: consortium[name].sign(survivors) for name in consortium.names}
    messages[PEER] = replace(messages[PEER], signature=bytes(64))
    signed = consistency_check.collect(total, messages)
    assert [(refusal.code, refusal.hospital) for refusal in signed.refusals] == [("survivor_signature", PEER)]
    assert [signature.hospital for signature in signed.request.signatures] == [
        name for name in consortium.names if name != PEER
    ]


def test_a_hospital_that_signs_for_another_is_refused(consortium: Consortium) -> None:
    total = consortium.masked_sum(round_number=2)
    survivors = total.close()
    messages = {name: consortium[name].sign(survivors) for name in consortium.names}
    messages[PEER] = messages[VICTIM]
    refusals = consistency_check.collect(total, messages).refusals
    assert [type(refusal) for refusal in refusals] == [ImpersonationError]


def test_too_few_signatures_end_the_round_at_the_server(consortium: Consortium) -> None:
    total = consortium.masked_sum(round_number=2)
    survivors = total.close()
    messages = {name: consortium[name].sign(survivors) for name in consortium.names[:3]}
    with pytest.raises(TooFewSignaturesError):
        consistency_check.collect(total, messages)
