"""Runs go from proposal to end in one order, keep their terms, and begin when those they name have agreed."""

import datetime as dt
from pathlib import Path

import pytest

from common.config import replace
from common.errors import IdentityError, RunError
from common.identity.certificates import certificate_pem
from common.run.proposal import MOST_OPEN, Proposal, RunAnswer, RunState
from common.telemetry.events import COMPLETED
from server.run_queue import CONFIG_FILE, KeptRun, RunProposal, RunQueue
from tests.support.proposed_run import CONFIG, HOUR, NAMES, NOW, RUN_ID, Members

MEMBERS = Members.made((*NAMES, "st-luke"))


def proposed(
    queue: RunQueue, run_id: str = RUN_ID, hospitals: tuple[str, ...] = NAMES, *, held: bool = False
) -> KeptRun:
    until = int((NOW + HOUR).timestamp())
    asked = RunProposal(CONFIG, MEMBERS.description(run_id=run_id), "phantom", hospitals, until, held)
    return queue.propose(asked, NOW)


def answer(queue: RunQueue, name: str, run_id: str = RUN_ID, *, agreed: bool = True, reason: str = "") -> None:
    proposal = queue.proposal(run_id)
    assert proposal is not None
    identity = MEMBERS.identities[name]
    given = RunAnswer(
        run_id=run_id, proposal=proposal.hash(), hospital=name, agreed=agreed, by="operator", reason=reason
    ).signed(identity.key)
    queue.take_answer(given, certificate_pem(identity.certificate))


def agreed(queue: RunQueue, run_id: str = RUN_ID, now: dt.datetime = NOW) -> None:
    for name in NAMES:
        answer(queue, name, run_id)
    queue.settle(now)


def test_a_run_is_due_when_all_that_it_names_have_agreed_and_not_before(tmp_path: Path) -> None:
    queue = RunQueue(tmp_path)
    proposed(queue)
    for name in ("st-luke", *NAMES[:2]):
        answer(queue, name)
        assert queue.settle(NOW) == ()
        assert queue.due() is None
    answer(queue, NAMES[2])
    (changed,) = queue.settle(NOW)
    assert changed.state is RunState.AGREED
    due = queue.due()
    assert due is not None
    assert due.run_id == RUN_ID
    assert queue.agreed(RUN_ID) == frozenset({*NAMES, "st-luke"})


def test_one_run_goes_on_at_a_time_in_the_order_of_proposals(tmp_path: Path) -> None:
    queue, ids = RunQueue(tmp_path), [f"{number:02x}" + 30 * "0" for number in range(1, 4)]
    for run_id in ids:
        proposed(queue, run_id)
    agreed(queue, ids[1])
    agreed(queue, ids[0])
    assert queue.due() == queue.get(ids[0])
    queue.begin(ids[1])
    assert queue.due() == queue.get(ids[1])  # What was going on goes on.
    queue.end(ids[1], RunState.FINISHED, COMPLETED)
    assert queue.due() == queue.get(ids[0])
    assert queue.find("3").run_id == ids[2]
    assert queue.find("2").run_id == ids[1]
    assert queue.find("03").run_id == ids[2]
    with pytest.raises(RunError, match="3 runs are called '0'"):
        queue.find("0")


def test_a_decline_of_one_that_is_named_ends_a_proposal_and_of_another_does_not(tmp_path: Path) -> None:
    queue = RunQueue(tmp_path)
    proposed(queue)
    answer(queue, "st-luke", agreed=False, reason="no")
    assert queue.settle(NOW) == ()
    answer(queue, "st-john", agreed=False, reason="not before May")
    (declined,) = queue.settle(NOW)
    assert (declined.state, declined.reason) == (RunState.DECLINED, "st-john: not before May")
    with pytest.raises(RunError, match="this one is declined"):
        queue.resume(RUN_ID)


def test_a_proposal_lapses(tmp_path: Path) -> None:
    queue = RunQueue(tmp_path)
    proposed(queue)
    (lapsed,) = queue.settle(NOW + 2 * HOUR)
    assert lapsed.state is RunState.LAPSED
    assert queue.due() is None


def test_a_held_run_waits_for_its_start(tmp_path: Path) -> None:
    queue = RunQueue(tmp_path)
    proposed(queue, held=True)
    with pytest.raises(RunError, match="st-anne, st-john, st-mary have not"):
        queue.start(RUN_ID)
    agreed(queue)
    assert queue.due() is None
    queue.start(RUN_ID)
    assert queue.due() is not None


def test_a_run_stops_goes_on_and_once_finished_is_not_changed(tmp_path: Path) -> None:
    queue = RunQueue(tmp_path)
    proposed(queue)
    agreed(queue)
    queue.begin(RUN_ID)
    assert not queue.must_stop(RUN_ID)
    queue.stop(RUN_ID)
    assert queue.must_stop(RUN_ID)
    queue.end(RUN_ID, RunState.STOPPED, "stopped")
    assert queue.due() is None
    assert queue.resume(RUN_ID).state is RunState.AGREED
    assert not queue.must_stop(RUN_ID)
    queue.begin(RUN_ID)
    queue.end(RUN_ID, RunState.FINISHED, COMPLETED)
    for change in (queue.resume, queue.stop, queue.start):
        with pytest.raises(RunError, match="finished"):
            change(RUN_ID)


def test_a_stop_before_the_answers_takes_a_run_from_the_queue_and_resume_waits_for_them_again(tmp_path: Path) -> None:
    queue = RunQueue(tmp_path)
    proposed(queue)
    queue.stop(RUN_ID)
    agreed(queue)
    assert queue.due() is None
    assert queue.resume(RUN_ID).state is RunState.AGREED


def test_an_answer_is_a_member_s_own_to_this_proposal_and_given_once(tmp_path: Path) -> None:
    queue = RunQueue(tmp_path)
    proposed(queue)
    answer(queue, "st-mary")
    answer(queue, "st-mary")  # The reply to the first was lost.
    with pytest.raises(RunError, match="must answer once"):
        answer(queue, "st-mary", agreed=False)
    proposal = queue.proposal(RUN_ID)
    assert proposal is not None
    anne, john = MEMBERS.identities["st-anne"], MEMBERS.identities["st-john"]
    forged = RunAnswer(run_id=RUN_ID, proposal=proposal.hash(), hospital="st-john", agreed=True, by="policy")
    with pytest.raises(IdentityError):
        queue.take_answer(forged.signed(anne.key), certificate_pem(john.certificate))
    other = RunAnswer(run_id=RUN_ID, proposal="0" * 64, hospital="st-john", agreed=True, by="policy")
    with pytest.raises(RunError, match="got an answer to another run"):
        queue.take_answer(other.signed(john.key), certificate_pem(john.certificate))
    unknown = RunAnswer(run_id="f" * 32, proposal="0" * 64, hospital="st-john", agreed=True, by="policy")
    with pytest.raises(RunError, match="must know the run"):
        queue.take_answer(unknown.signed(john.key), certificate_pem(john.certificate))
    assert queue.answers(RUN_ID).keys() == {"st-mary"}


def test_a_run_keeps_the_configuration_it_was_proposed_with(tmp_path: Path) -> None:
    queue = RunQueue(tmp_path)
    proposed(queue)
    assert queue.config(RUN_ID) == CONFIG
    queue.hold_terms(RUN_ID, MEMBERS.description())
    queue.hold_terms(RUN_ID, Members.made().description())  # Members may change.
    with pytest.raises(RunError, match="must go on with the configuration that it was proposed with"):
        queue.hold_terms(RUN_ID, MEMBERS.description(replace(CONFIG, experiment={"rounds": 5})))


def test_a_run_that_nobody_proposed_keeps_the_configuration_it_began_with_and_goes_on_after_a_failure(
    tmp_path: Path,
) -> None:
    queue = RunQueue(tmp_path)
    queue.adopt(RUN_ID, "phantom", ("a", "b"), 1)
    assert queue.agreed(RUN_ID) is None
    queue.hold_terms(RUN_ID, MEMBERS.description())
    queue.end(RUN_ID, RunState.FAILED, "too few hospitals")
    assert queue.due() is None
    assert queue.adopt(RUN_ID, "phantom", ("a", "b"), 1).state is RunState.AGREED
    assert queue.due() is not None
    with pytest.raises(RunError, match="got a changed one"):
        queue.hold_terms(RUN_ID, MEMBERS.description(replace(CONFIG, privacy={"target_epsilon": 1.0})))


def test_a_proposal_that_names_strangers_or_too_few_is_refused(tmp_path: Path) -> None:
    queue = RunQueue(tmp_path)
    for names in (NAMES[:2], ("st-anne", "st-john", "st-peter")):
        with pytest.raises(RunError):
            proposed(queue, hospitals=names)
    assert queue.all() == ()


def test_so_many_runs_are_open_at_once_and_no_more(tmp_path: Path) -> None:
    queue = RunQueue(tmp_path)
    for number in range(MOST_OPEN):
        proposed(queue, f"{number:032x}"[::-1])
    with pytest.raises(RunError, match="may be open at once"):
        proposed(queue, "f" * 32)


def test_what_is_kept_is_its_owner_s_alone_and_a_damaged_record_is_named(tmp_path: Path) -> None:
    queue = RunQueue(tmp_path)
    proposed(queue)
    answer(queue, "st-mary")
    for path in (tmp_path / "runs").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path.name
    assert isinstance(queue.proposal(RUN_ID), Proposal)
    assert (queue.folder(RUN_ID) / CONFIG_FILE).exists()
    (queue.folder(RUN_ID) / "run.json").write_text("{")
    with pytest.raises(RunError, match="the record of run 0123456789ab cannot be read"):
        queue.all()
