"""A server that asks twice: the second answer would give it a difference, or the other kind of share."""

import pytest

from common.secagg.answered_rounds import AnsweredRounds
from common.secagg.errors import AlreadyAnsweredError, SecondMaskedInputError, SecondUnmaskingError
from common.secagg.phases import Phase
from tests.support.parties import RUN_ID

HOSPITAL = "hospital-1"


def test_a_second_masked_input_for_a_round_is_refused() -> None:
    answered = AnsweredRounds().check_and_advance(RUN_ID, 3, Phase.MASKED_INPUT, HOSPITAL)
    with pytest.raises(SecondMaskedInputError) as refusal:
        answered.check_and_advance(RUN_ID, 3, Phase.MASKED_INPUT, HOSPITAL)
    assert (refusal.value.hospital, refusal.value.place.round_number) == (HOSPITAL, 3)


def test_a_second_masked_input_is_refused_after_a_restart_too() -> None:
    answered = AnsweredRounds().check_and_advance(RUN_ID, 3, Phase.MASKED_INPUT, HOSPITAL)
    stored = dict(answered.highest)
    restarted = AnsweredRounds(stored)
    with pytest.raises(SecondMaskedInputError):
        restarted.check_and_advance(RUN_ID, 3, Phase.MASKED_INPUT, HOSPITAL)


def test_a_second_unmasking_for_a_round_is_refused() -> None:
    answered = AnsweredRounds().check_and_advance(RUN_ID, 3, Phase.UNMASKING, HOSPITAL)
    with pytest.raises(SecondUnmaskingError):
        answered.check_and_advance(RUN_ID, 3, Phase.UNMASKING, HOSPITAL)


@pytest.mark.parametrize("phase", [Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS, Phase.CONSISTENCY_CHECK])
def test_second_keys_shares_and_signatures_for_a_round_are_refused(phase: Phase) -> None:
    answered = AnsweredRounds().check_and_advance(RUN_ID, 3, phase, HOSPITAL)
    with pytest.raises(AlreadyAnsweredError):
        answered.check_and_advance(RUN_ID, 3, phase, HOSPITAL)


def test_an_earlier_round_is_refused_once_a_later_one_was_answered() -> None:
    answered = AnsweredRounds().check_and_advance(RUN_ID, 3, Phase.MASKED_INPUT, HOSPITAL)
    with pytest.raises(SecondMaskedInputError):
        answered.check_and_advance(RUN_ID, 2, Phase.MASKED_INPUT, HOSPITAL)


def test_keys_of_the_next_round_ride_ahead_without_closing_this_one() -> None:
    answered = AnsweredRounds().check_and_advance(RUN_ID, 4, Phase.ADVERTISE_KEYS, HOSPITAL)
    answered = answered.check_and_advance(RUN_ID, 3, Phase.MASKED_INPUT, HOSPITAL)
    assert answered.highest == {(RUN_ID, "advertise_keys"): 4, (RUN_ID, "masked_input"): 3}


def test_another_run_starts_from_its_own_first_round() -> None:
    answered = AnsweredRounds().check_and_advance(RUN_ID, 9, Phase.MASKED_INPUT, HOSPITAL)
    answered = answered.check_and_advance("f" * 32, 1, Phase.MASKED_INPUT, HOSPITAL)
    assert answered.highest[RUN_ID, "masked_input"] == 9


def test_the_record_that_was_checked_stays_as_it_was() -> None:
    before = AnsweredRounds()
    before.check_and_advance(RUN_ID, 1, Phase.UNMASKING, HOSPITAL)
    assert before == AnsweredRounds()
