"""The server's operator sees members, versions and runs, and what needs a person, without a running server."""

from pathlib import Path

import pytest

from common.run.proposal import RunState
from common.telemetry.events import EVENTS_FILE, HospitalLost, RoundDone, RunFinished
from deploy.command import WIDTH
from deploy.consortium import server, status
from server.members.roster import Membership
from server.members.versions import SpokenVersions
from server.run_queue import RunProposal, RunQueue
from tests.support.example_run import example_run
from tests.support.proposed_run import CONFIG, HOUR, NAMES, NOW, RUN_ID, Members

GONE = (
    HospitalLost(time=NOW.timestamp(), hospital="hospital-1", left=True),
    HospitalLost(time=NOW.timestamp(), hospital="hospital-2"),
)


def shown(state: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = status.main(["status", "--state", str(state)])
    told = capsys.readouterr().out
    assert all(len(line) <= WIDTH for line in told.splitlines())
    return code, " ".join(told.split())


def test_a_server_shows_its_members_versions_and_runs_and_what_needs_a_person(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "server"
    server.main(["server", "--state", str(state), "--address", "localhost", "--no-start", "--hold-authority-key"])
    code, told = shown(state, capsys)
    assert code == 0
    assert "not running" in told
    assert "certificate until" in told

    Membership(state).invite("st-luke", NOW + HOUR)
    Membership(state).invite("clinic", NOW + HOUR, group=3)
    Membership(state).invite("st-late", NOW - HOUR)
    members, membership, queue = Members.made(), Membership(state), RunQueue(state)
    for name, pem in members.roster.items():
        membership.admit(name, pem.encode(), b"key")
    membership.versions.note("st-anne", SpokenVersions(2, "0.1.0"))
    description = members.description()
    queue.propose(RunProposal(CONFIG, description, "phantom", NAMES, int((NOW + HOUR).timestamp())), NOW)
    events = [event for event in example_run(6) if not isinstance(event, RunFinished)]
    (queue.folder(RUN_ID) / EVENTS_FILE).write_text("".join(event.to_line() for event in events))
    queue.end(RUN_ID, RunState.FAILED, "too few hospitals are left")
    code, told = shown(state, capsys)
    assert code == 1
    assert "st-anne: protocol version 2 (Confide 0.1.0)" in told
    assert "st-anne: protocol version 2 (Confide 0.1.0); certificate until 20" in told
    assert "invitation for st-luke, until 20" in told
    assert "invitation for 3 more hospitals clinic-…, until 20" in told
    assert "st-late" not in told
    assert "st-john: has not said which version it speaks" in told
    assert "run 1 (0123456789ab) is failed: too few hospitals are left" in told
    last = [event for event in events if isinstance(event, RoundDone)][-1]
    assert f"6 rounds done, the last with {last.hospitals} hospitals; largest ε" in told
    assert "hospital-4 refused 1 time: budget" in told
    assert "is gone" not in told  # hospital-3 came back.
    (queue.folder(RUN_ID) / EVENTS_FILE).write_text("".join(event.to_line() for event in [*events, *GONE]))
    _, told = shown(state, capsys)
    assert "hospital-1 was stopped there" in told
    assert "hospital-2 is gone without a word" in told
    assert "needs you st-anne speaks another version of the protocol" in told
    assert "`confide run resume 1`" in told
