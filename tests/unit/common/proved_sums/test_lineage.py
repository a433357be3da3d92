"""A hospital goes on from the model of the seed and proved sums alone; everything else is refused by name."""

from dataclasses import replace

import numpy as np
import pytest

from common.proved_sums.errors import (
    InitialModelError,
    MissingCommitmentError,
    ModelDoesNotFollowError,
    StaleModelError,
    TooManyVoidRoundsError,
    UnprovedModelError,
    UnsignedCommitmentError,
)
from common.proved_sums.lineage import (
    Lineage,
    VouchedState,
    begin,
    follow,
    has_opened,
    join,
    pass_over,
    state_hash,
    stay,
    void,
)
from common.proved_sums.proof import ProvedSum, verify_sum
from common.secagg import full_unmasking
from common.secagg.errors import Place, ViewSignatureError
from common.secagg.phases import Phase
from tests.support.parties import TERMS
from tests.support.proved_rounds import ProvedConsortium, ProvedRound, resigned

VICTIM, PEER, OTHER, COLLUDER = (f"hospital-{number}" for number in range(1, 5))
SEED, FIRST, SECOND = (bytes([number]) * 32 for number in range(3))
VOID = 2


@pytest.fixture(scope="module")
def played() -> ProvedRound:
    return ProvedConsortium(4).play()


def begun(played: ProvedRound) -> Lineage:
    return begin(played.run, VICTIM, VOID, SEED, SEED)


def proved(played: ProvedRound, name: str = VICTIM) -> ProvedSum:
    return verify_sum(played.groups[name], played.parameters, played.proof, played.sum)


def test_a_run_begins_from_the_model_of_its_seed() -> None:
    run = ProvedConsortium(3).run
    assert begin(run, VICTIM, VOID, SEED, SEED).state == SEED
    with pytest.raises(InitialModelError):
        begin(run, VICTIM, VOID, SEED, FIRST)


def test_a_hospital_goes_on_from_the_proved_sum_of_the_round_that_it_opened(played: ProvedRound) -> None:
    lineage = has_opened(begun(played), played.groups[VICTIM])
    after = follow(lineage, proved(played), FIRST, FIRST, 2)
    assert (after.state, after.opened) == (FIRST, None)
    assert stay(after, FIRST, 3) == after


def test_a_model_or_a_state_that_does_not_follow_is_refused(played: ProvedRound) -> None:
    lineage = has_opened(begun(played), played.groups[VICTIM])
    with pytest.raises(ModelDoesNotFollowError):
        follow(lineage, proved(played), FIRST, SECOND, 2)
    with pytest.raises(ModelDoesNotFollowError):
        stay(begun(played), FIRST, 1)


@pytest.mark.parametrize("changed", ["model", "velocity", "name", "missing"])
def test_the_hash_is_of_the_model_and_all_of_the_optimisers_state(changed: str) -> None:
    model, velocity = np.arange(4, dtype=np.float32), np.ones(4, np.float32)
    others = {
        "model": state_hash(np.nextafter(model, np.float32(9)), {"velocity": velocity}),
        "velocity": state_hash(model, {"velocity": velocity * np.float32(1 + 2**-23)}),
        "name": state_hash(model, {"moment": velocity}),
        "missing": state_hash(model, {}),
    }
    assert state_hash(model, {"velocity": velocity}) != others[changed]


def test_the_sum_of_a_round_that_was_opened_cannot_be_passed_over_in_silence(played: ProvedRound) -> None:
    lineage = has_opened(begun(played), played.groups[VICTIM])
    with pytest.raises(UnprovedModelError, match="round 1 was opened"):
        stay(lineage, SEED, 2)
    with pytest.raises(UnprovedModelError):
        stay(lineage, FIRST, 2)
    with pytest.raises(UnprovedModelError):
        follow(begun(played), proved(played), FIRST, FIRST, 2)
    with pytest.raises(UnprovedModelError):
        follow(lineage, replace(proved(played), round_number=7), FIRST, FIRST, 8)


def test_as_many_rounds_may_be_void_as_the_run_allows_and_no_more(played: ProvedRound) -> None:
    lineage = begun(played)
    for _ in range(VOID):
        lineage = pass_over(has_opened(lineage, played.groups[VICTIM]), 1, SEED, 2)
    assert lineage.void_rounds == (1, 1)
    with pytest.raises(TooManyVoidRoundsError, match="at most 2"):
        pass_over(has_opened(lineage, played.groups[VICTIM]), 1, SEED, 2)


def test_a_run_of_four_can_lose_twice_as_many_sums_as_each_hospital_counts(played: ProvedRound) -> None:
    """Three of four open a sum that is withheld, and another three make the next: it counts at the two in both.

    Who is left out of the next joins late, and follows that one in the place of what it opened.
    """
    group = played.groups[VICTIM]
    known = {name: begin(played.run, name, VOID, SEED, SEED) for name in (VICTIM, PEER, OTHER, COLLUDER)}
    lost = 0
    while True:
        both = sorted(known, key=lambda name: len(known[name].void_rounds))[:2]
        try:
            counted = {name: pass_over(has_opened(known[name], group), 1, SEED, 2) for name in both}
        except TooManyVoidRoundsError:
            break
        known |= counted
        lost += 1
    assert lost == 2 * VOID
    assert {lineage.void_rounds for lineage in known.values()} == {(1,) * VOID}


def test_a_round_whose_sum_was_seen_to_fail_is_void_before_anybody_says_so(played: ProvedRound) -> None:
    place = Place(VICTIM, 1, Phase.DISPUTE)
    lineage = void(has_opened(begun(played), played.groups[VICTIM]), 1, place)
    assert (lineage.void_rounds, lineage.state) == ((1,), SEED)
    assert stay(lineage, SEED, 2) == lineage
    with pytest.raises(UnprovedModelError):
        follow(lineage, proved(played), FIRST, FIRST, 2)
    with pytest.raises(UnprovedModelError):
        void(lineage, 1, place)
    used_up = has_opened(replace(lineage, void_rounds=(1,) * VOID), played.groups[VICTIM])
    with pytest.raises(TooManyVoidRoundsError):
        void(used_up, 1, place)


def test_a_void_round_changes_no_model_and_is_the_one_that_was_opened(played: ProvedRound) -> None:
    lineage = has_opened(begun(played), played.groups[VICTIM])
    with pytest.raises(ModelDoesNotFollowError):
        pass_over(lineage, 1, FIRST, 2)
    with pytest.raises(UnprovedModelError):
        pass_over(lineage, 9, SEED, 2)
    with pytest.raises(UnprovedModelError):
        pass_over(begun(played), 1, SEED, 2)


# A late joiner


def shown_of(played: ProvedRound) -> VouchedState:
    return VouchedState(played.total.views[PEER], played.views(), TERMS, FIRST)


def test_a_late_joiner_takes_the_state_that_everyone_signed_and_then_that_rounds_sum(played: ProvedRound) -> None:
    late = begun(played)
    joined = join(late, shown_of(played), played.total.survivors, 2)
    assert joined.state == FIRST
    assert joined.opened is not None
    assert joined.opened.hashes == played.groups[VICTIM].hashes
    sums = verify_sum(joined.opened, played.parameters, played.proof, played.sum)
    assert sums.total.tolist() == played.plain()
    assert follow(joined, sums, SECOND, SECOND, 2).state == SECOND


def test_a_late_joiner_after_a_void_round_goes_on_from_the_signed_state(played: ProvedRound) -> None:
    assert stay(join(begun(played), shown_of(played), (), 2), FIRST, 2).state == FIRST


def test_a_late_joiner_refuses_a_state_that_too_few_have_signed(played: ProvedRound) -> None:
    shown = shown_of(played)
    with pytest.raises(StaleModelError, match="at least 3"):
        join(begun(played), replace(shown, views=shown.views[:2]), (), 2)
    with pytest.raises(StaleModelError, match="survivor"):
        join(begun(played), replace(shown, views=shown.views[:3]), played.total.survivors, 2)


def test_a_late_joiner_refuses_a_state_of_a_round_that_is_not_over(played: ProvedRound) -> None:
    with pytest.raises(StaleModelError, match="a round before this one"):
        join(begun(played), shown_of(played), (), 1)


@pytest.mark.parametrize("number", [2, 5, 200])
def test_a_late_joiner_joins_however_many_rounds_have_failed_since(played: ProvedRound, number: int) -> None:
    assert join(begun(played), shown_of(played), (), number).state == FIRST


def test_a_late_joiner_refuses_a_state_of_another_request_or_run(played: ProvedRound) -> None:
    shown = shown_of(played)
    with pytest.raises(StaleModelError, match="request"):
        join(begun(played), replace(shown, terms=b"train from another model"), (), 2)
    with pytest.raises(StaleModelError, match="this run"):
        join(begun(played), replace(shown, view=replace(shown.view, run_id="f" * 32)), (), 2)
    with pytest.raises(UnsignedCommitmentError):
        join(begun(played), replace(shown, view=replace(shown.view, cohort_hash=bytes(32))), (), 2)


def test_the_joiners_sum_is_of_the_commitments_that_were_signed(played: ProvedRound) -> None:
    joined = join(begun(played), shown_of(played), played.total.survivors, 2)
    assert joined.opened is not None
    without = replace(played.proof, commitments=played.proof.commitments[:-1])
    with pytest.raises(MissingCommitmentError):
        verify_sum(joined.opened, played.parameters, without, played.sum)


# Two groups


def test_two_groups_that_are_given_two_proved_sums_cannot_open_another_one_together() -> None:
    # The colluder signs two commitments, and the server shows each half of the hospitals one of them. Each half gets a
    # sum that is proved, so their models differ; a round is bound to its model, and neither half opens the other's.
    consortium = ProvedConsortium(4)
    played = consortium.play()
    second = consortium.play(2, terms=b"train from the first half's model")
    view = second.total.views[VICTIM]
    other = resigned(consortium, replace(second.total.views[OTHER], request_hash=bytes(32)))
    with pytest.raises(UnsignedCommitmentError) as refusal:
        second.group_of(VICTIM, second.views({OTHER: other}))
    assert refusal.value.hospital == OTHER
    request = full_unmasking.request_all(second.total)
    shown = tuple(other if each.hospital == OTHER else each for each in request.views)
    with pytest.raises(ViewSignatureError):
        consortium[VICTIM].reveal_all(replace(request, views=shown))
    assert view.request_hash != played.total.views[VICTIM].request_hash
