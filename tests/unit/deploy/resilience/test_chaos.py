"""What chaos plans and how it reads a run's progress."""

import itertools
from dataclasses import replace

import pytest

from common.secagg.phases import Phase
from common.telemetry.events import Exchange, Refusal, RoundDone, RunFinished
from deploy.resilience.chaos import ChaosReport
from deploy.resilience.chaos_plan import SERVER_ROLES, STARTING_POINTS, Point, Role, plan_kills
from deploy.resilience.chaos_progress import Progress

HOSPITALS = ("a", "b", "c")


def exchange(round_number: int, phase: Phase, answered: tuple[str, ...] = HOSPITALS, at: float = 0.0) -> Exchange:
    return Exchange(time=at, round=round_number, phase=phase, seconds=0.5, answered=answered)


def whole_round(progress: Progress, number: int, answered: tuple[str, ...] = HOSPITALS) -> None:
    ending = (Phase.FULL_UNMASKING,) if answered == HOSPITALS else (Phase.CONSISTENCY_CHECK, Phase.UNMASKING)
    for phase in (Phase.MASKED_INPUT, *ending):
        progress.add(exchange(number, phase, answered, at=10.0 * number))


def test_every_role_and_every_point_comes_up() -> None:
    kills = plan_kills(400, 4, seed=3)
    assert {kill.role for kill in kills} == set(Role)
    assert {kill.point for kill in kills} == set(Point)
    assert all((kill.hospital is None) == (kill.role in SERVER_ROLES) for kill in kills)
    assert {kill.hospital for kill in kills if kill.hospital is not None} == {0, 1, 2, 3}


def test_a_starting_point_only_follows_the_kill_of_a_server_process() -> None:
    kills = plan_kills(400, 4, seed=4)
    for before, kill in itertools.pairwise(kills):
        assert (kill.point in STARTING_POINTS) == kill.while_recovering
        assert not kill.while_recovering or before.hospital is None
    assert not kills[0].while_recovering


def test_the_round_that_was_in_hand_is_no_recovery() -> None:
    progress = Progress()
    whole_round(progress, 1)
    assert progress.round_in_hand() == 2
    progress.add(exchange(2, Phase.MASKED_INPUT))
    assert progress.round_in_hand() == 2
    whole_round(progress, 2)
    assert progress.first_finished_after(2, None) is None
    whole_round(progress, 3)
    assert progress.first_finished_after(2, None) == 30.0


def test_a_killed_hospital_has_recovered_when_its_vector_is_in_a_sum_again() -> None:
    progress = Progress()
    whole_round(progress, 1)
    whole_round(progress, 2, ("a", "b"))
    assert progress.first_finished_after(1, "c") is None
    whole_round(progress, 3)
    assert progress.first_finished_after(1, "c") == 30.0


def test_a_refusal_is_no_vector() -> None:
    progress = Progress()
    progress.add(Refusal(time=0, round=1, hospital="c", reason="it was restarted", code="run"))
    whole_round(progress, 1)
    assert progress.rounds_sent_by("c") == set()
    assert progress.rounds_sent_by("a") == {1}


def test_rounds_that_were_begun_and_gave_no_sum_are_lost() -> None:
    progress = Progress()
    whole_round(progress, 1)
    progress.add(exchange(2, Phase.MASKED_INPUT))
    whole_round(progress, 65)
    progress.add(exchange(66, Phase.MASKED_INPUT))
    assert progress.lost_rounds() == {2}


@pytest.mark.parametrize(("second_round", "undone"), [(1, 0), (65, 1)])
def test_a_step_done_twice_shows_a_finished_round_that_was_forgotten(second_round: int, undone: int) -> None:
    progress = Progress()
    for number in (1, second_round):
        progress.add(
            RoundDone(
                time=0, round=number, step=1, accuracy=0, precision=0, recall=0, f1=0, auc=0, loss=0, epsilon=0,
                hospitals=3, seconds=1, upload_bytes=1,
            )
        )  # fmt: skip
    assert progress.undone_rounds == undone


def test_the_end_of_a_run_is_seen() -> None:
    progress = Progress()
    assert not progress.finished
    progress.add(RunFinished(time=0, reason="completed", rounds_done=3))
    assert progress.gave_up is None
    assert progress.finished


UNHARMED = ChaosReport(
    asked_for=9,
    kills=9,
    resumed=9,
    hung=0,
    lost_rounds=2,
    undone_rounds=0,
    finished_rounds=20,
    median_recovery_seconds=8.0,
    longest_recovery_seconds=20.0,
    ledger_under_counts=0,
    ledger_over_counts=1,
)


def test_a_run_that_ends_before_its_last_round_has_not_survived() -> None:
    progress = Progress()
    progress.add(RunFinished(time=0, reason="too few hospitals", rounds_done=3))
    assert progress.gave_up == "too few hospitals"
    assert UNHARMED.holds()
    assert not replace(UNHARMED, gave_up="too few hospitals").holds()
