"""A server that chooses who masks for whom, so that a hospital is left alone in its sum."""

from dataclasses import replace

import pytest

from common.secagg.errors import (
    CohortMismatchError,
    OmittedHospitalError,
    ReplayedMessageError,
    RequestHashError,
    SecAggError,
    ShareDecryptionError,
    ThresholdLoweredError,
    TooFewHospitalsError,
    TooFewNeighboursError,
    UnknownHospitalError,
    WrongRunError,
)
from common.secagg.masked_input import MaskedSum
from common.secagg.messages import KeyDirectory, MaskedInputRequest, SurvivorList, UnmaskingRequest
from common.secagg.parameters import Adversary, GraphParameters
from common.secagg.phases import Phase
from common.secagg.share_keys import Routed, route
from tests.support.parties import RUN_ID, TERMS, Consortium, sent

VICTIM = "hospital-1"
OTHER_TERMS = bytes(32)


@pytest.fixture
def consortium() -> Consortium:
    return Consortium(5)


def request_to(victim: str, routed: Routed, cohort: tuple[str, ...]) -> MaskedInputRequest:
    """Return the victim's request with another cohort, and the shares that go with it."""
    honest = routed.request_for(victim, TERMS)
    return replace(honest, cohort=cohort, inbox=tuple(share for share in honest.inbox if share.dealer in cohort))


def assert_nothing_masked(consortium: Consortium, request: MaskedInputRequest, error: type[SecAggError]) -> None:
    with pytest.raises(error) as refusal:
        consortium[VICTIM].mask(request, consortium.vector())
    assert refusal.type is error
    assert (refusal.value.place.party, refusal.value.place.phase) == (VICTIM, Phase.MASKED_INPUT)
    assert consortium[VICTIM].masked == {}


def test_a_lowered_threshold_is_refused(consortium: Consortium) -> None:
    directory = replace(consortium.directory(), threshold=3)
    assert consortium.run.threshold(5) == 4
    with pytest.raises(ThresholdLoweredError):
        consortium[VICTIM].share(directory)


def test_a_threshold_that_can_never_be_met_is_refused(consortium: Consortium) -> None:
    directory = replace(consortium.directory(), threshold=6)
    with pytest.raises(ThresholdLoweredError):
        consortium[VICTIM].share(directory)


def test_a_threshold_below_a_hospitals_own_minimum_is_refused(consortium: Consortium) -> None:
    directory = consortium.directory()
    victim = consortium[VICTIM]
    victim.keys[1] = replace(victim.keys[1], run=replace(consortium.run, min_hospitals=5))
    with pytest.raises(ThresholdLoweredError):
        victim.share(directory)


def test_a_directory_below_the_minimum_is_refused(consortium: Consortium) -> None:
    directory = consortium.directory()
    with pytest.raises(TooFewHospitalsError):
        consortium[VICTIM].share(replace(directory, keys=directory.keys[:2], threshold=2))


def test_a_cohort_below_the_threshold_is_refused(consortium: Consortium) -> None:
    request = request_to(VICTIM, consortium.routed(), consortium.names[:3])
    assert_nothing_masked(consortium, request, TooFewHospitalsError)


def test_a_cohort_without_the_hospital_it_is_sent_to_is_refused(consortium: Consortium) -> None:
    request = request_to(VICTIM, consortium.routed(), consortium.names[1:])
    assert_nothing_masked(consortium, request, OmittedHospitalError)


def test_a_cohort_with_a_hospital_that_has_no_key_is_refused(consortium: Consortium) -> None:
    request = request_to(VICTIM, consortium.routed(), (*consortium.names, "hospital-9"))
    assert_nothing_masked(consortium, request, UnknownHospitalError)


def test_two_cohorts_that_differ_in_one_hospital_are_found_out(consortium: Consortium) -> None:
    """The difference of the two sums would be that hospital's vector."""
    routed = consortium.routed()
    smaller = consortium.names[:-1]
    for name in consortium.names:
        cohort = smaller if name == VICTIM else consortium.names
        consortium[name].mask(request_to(name, routed, cohort), consortium.vector())
    # The server sends each the survivors that fit the cohort it was shown.
    signatures = {
        name: consortium[name].sign(SurvivorList(RUN_ID, 1, smaller, () if name == VICTIM else (consortium.names[-1],)))
        for name in smaller
    }
    request = UnmaskingRequest(RUN_ID, 1, smaller, (), tuple(signatures[name] for name in smaller))
    with pytest.raises(CohortMismatchError):
        consortium[VICTIM].reveal(request)
    for name in smaller[1:]:
        with pytest.raises(CohortMismatchError) as refusal:
            consortium[name].reveal(replace(request, dropped=(consortium.names[-1],)))
        assert refusal.value.hospital == VICTIM


def test_a_vector_masked_for_another_cohort_is_refused_by_the_server(consortium: Consortium) -> None:
    routed = consortium.routed()
    total = MaskedSum(routed, TERMS)
    message, masked = consortium[VICTIM].mask(request_to(VICTIM, routed, consortium.names[:-1]), consortium.vector())
    with pytest.raises(CohortMismatchError):
        total.add(VICTIM, message, masked)


def test_two_directories_for_one_round_keep_their_hospitals_apart(consortium: Consortium) -> None:
    """Keys for shares are bound to the whole directory, so no one opens a share dealt under another."""
    whole = consortium.directory()
    smaller = KeyDirectory(RUN_ID, 1, 4, whole.keys[:4])
    shares = {name: consortium[name].share(smaller if name == VICTIM else whole) for name in consortium.names}
    shares[VICTIM] = replace(consortium[VICTIM].share(whole), shares=shares[VICTIM].shares)
    consortium[VICTIM].share(smaller)
    inbox = tuple(share for name in consortium.names[1:4] for share in shares[name].shares if share.recipient == VICTIM)
    request = MaskedInputRequest(RUN_ID, 1, TERMS, consortium.names[:4], inbox)
    assert_nothing_masked(consortium, request, ShareDecryptionError)


def test_a_vector_made_for_other_terms_is_refused_by_the_server(consortium: Consortium) -> None:
    routed = consortium.routed()
    total = MaskedSum(routed, TERMS)
    message, masked = consortium[VICTIM].mask(routed.request_for(VICTIM, OTHER_TERMS), consortium.vector())
    with pytest.raises(RequestHashError):
        total.add(VICTIM, message, masked)


def test_a_request_replayed_from_an_earlier_round_is_refused(consortium: Consortium) -> None:
    earlier = consortium.routed(1).request_for(VICTIM, TERMS)
    consortium.routed(2)
    victim = consortium[VICTIM]
    victim.shared[1] = victim.shared[2]
    assert_nothing_masked(consortium, earlier, ReplayedMessageError)


def test_a_request_of_another_run_is_refused(consortium: Consortium) -> None:
    request = replace(consortium.routed().request_for(VICTIM, TERMS), run_id="f" * 32)
    assert_nothing_masked(consortium, request, WrongRunError)


def test_a_cohort_with_too_few_neighbours_is_refused() -> None:
    """In a sparse graph a large cohort can still leave one hospital without enough of those who hold its shares."""
    graph = GraphParameters(complete_up_to=5, colluding=0.05, dropping_out=0.05, security_bits=2, correctness_bits=2)
    consortium = Consortium(24, adversary=Adversary.SEMI_HONEST, graph=graph)
    directory = consortium.directory()
    shares = {name: sent(consortium[name].share(directory)) for name in consortium.names}
    routed = route(consortium.run, directory, shares)
    near = routed.graph.by_hospital[VICTIM]
    far = tuple(name for name in consortium.names if name not in near[1:])
    assert len(far) >= directory.threshold, "the graph must be sparse"
    assert_nothing_masked(consortium, request_to(VICTIM, routed, far), TooFewNeighboursError)
