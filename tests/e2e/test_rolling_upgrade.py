"""Hospitals of real processes are killed and replaced by the next release, one after the other, while a run goes on."""

from pathlib import Path

import pytest

from client.ledger.ledger import export
from client.ledger.place import ledger_folder
from common.audit.chain import AUDIT_FILE
from common.config import PROTOCOL_VERSION
from common.run.proposal import RunState
from common.settings import free_port
from common.telemetry.events import EVENTS_FILE, AttackRefused, EventFile, HospitalLost, RoundDone
from server.members.roster import Membership
from server.members.versions import MemberVersions
from server.run_queue import RunQueue
from tests.support.agent_of_another_version import NEXT, next_release
from tests.support.consortium import ROOT, Consortium
from tests.support.printed import unwrapped

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

NAMES = ("st-anne", "st-john", "st-luke", "st-mary")
ROUNDS = 20
SETTINGS = (
    f"experiment.rounds={ROUNDS}", "privacy.mode=local", "privacy.target_epsilon=3", "privacy.accountant=rdp",
    "privacy.delta=0.001", "hospital.delta=0.001", "hospital.allow_no_privacy=false", "training.sample_rate=0.5",
    "hospital.answer_seconds=6", "transport.exchange_deadline_seconds=20",
)  # fmt: skip
"""A vector takes six seconds, so that the run outlasts the four starts, each of some twenty."""


def test_each_hospital_is_replaced_by_the_next_release_and_no_round_is_lost(tmp_path: Path) -> None:
    (release := tmp_path / "next-release").mkdir()
    next_release(release, ("client", "common", "server", "deploy"))
    consortium = Consortium(tmp_path, len(NAMES), SETTINGS, root=release)
    queue, versions = RunQueue(consortium.state), Membership(consortium.state).versions
    ports = [word for kind in ("fleet", "enrolment", "runtime") for word in (f"--{kind}-port", str(free_port()))]
    try:
        # The server first.
        consortium.start_server(["127.0.0.1"], ports)
        consortium.upgrade(ROOT, {})
        for name in NAMES:
            consortium.join(name, consortium.invite(name), ("--runtime-port", str(free_port())))
        consortium.upgrade(release, {})
        consortium.propose(len(NAMES))
        (run,) = queue.all()
        for name in NAMES:
            done = len(rounds(queue, run.run_id))
            consortium.wait_for(lambda done=done: len(rounds(queue, run.run_id)) > done, 300)  # type: ignore[misc]
            consortium.kill(name)
            consortium.rejoin(name)
            consortium.wait_for(lambda name=name: protocol_of(versions, name) == NEXT, 120)  # type: ignore[misc]
        assert queue.get(run.run_id).state is RunState.RUNNING
        consortium.wait_for(lambda: queue.get(run.run_id).state is not RunState.RUNNING, 500)
        assert queue.get(run.run_id).state is RunState.FINISHED
        folder = queue.folder(run.run_id)
        # Each step is there once, and no more than who was being replaced was missing.
        assert [done.step for done in rounds(queue, run.run_id)] == list(range(1, ROUNDS + 1))
        assert min(done.hospitals for done in rounds(queue, run.run_id)) >= len(NAMES) - 1
        events = EventFile(folder / EVENTS_FILE).read_new()
        assert not [event for event in events if isinstance(event, AttackRefused)]
        assert not [event for event in events if isinstance(event, HospitalLost) and event.left]  # They were killed.
        for name in NAMES:
            assert_no_round_is_booked_twice(consortium.hospital_state(name))
        chains = [word for name in NAMES for word in ("--chain", str(consortium.hospital_state(name) / AUDIT_FILE))]
        verdict = unwrapped(consortium.deploy("audit", "verify", str(folder), *chains))
        assert f"hospitals {', '.join(NAMES)}: each chain agrees" in verdict
        # The run keeps the version that all spoke when it was proposed.
        assert f'"protocol_version":{PROTOCOL_VERSION}' in (folder / "proposal.json").read_text()
    finally:
        consortium.stop()


def rounds(queue: RunQueue, run_id: str) -> list[RoundDone]:
    events = EventFile(queue.folder(run_id) / EVENTS_FILE).read_new()
    return [event for event in events if isinstance(event, RoundDone)]


def protocol_of(versions: MemberVersions, name: str) -> int | None:
    spoken = versions.of(name)
    return None if spoken is None else spoken.protocol


def assert_no_round_is_booked_twice(state: Path) -> None:
    spent = [entry for entry in export(ledger_folder(state))["entries"] if entry["kind"] == "spent"]
    lines = [(entry["round_number"], entry["booking"]["account"]) for entry in spent]
    assert lines
    assert len(set(lines)) == len(lines)
