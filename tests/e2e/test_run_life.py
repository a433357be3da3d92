"""A run's life on real processes: proposed, agreed to by hand and by policy, started, stopped and resumed."""

import subprocess
import sys
from pathlib import Path

import pytest

from common.audit.chain import AUDIT_FILE, read_chain
from common.audit.entries import AnsweredProposal, JoinedRun
from common.identity.certificates import load_certificate
from common.run.proposal import RunState
from common.settings import SERVER_SETTINGS_FILE, free_port
from common.telemetry.events import COMPLETED, EVENTS_FILE, STOPPED, EventFile, RoundDone, RunFinished, RunStarted
from server.run_queue import RunQueue
from tests.support.consortium import ENVIRONMENT, ROOT, Consortium
from tests.support.printed import unwrapped

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

SERVER = "127.0.0.1"
ROUNDS = 40
"""Enough that the command to stop arrives before the last one, on a busy machine too."""


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    return Consortium(tmp_path, 3)


def start(consortium: Consortium) -> tuple[str, ...]:
    ports = ("--fleet-port", str(free_port()), "--enrolment-port", str(free_port()), "--runtime-port", str(free_port()))
    consortium.start_server([SERVER], ports)
    return ports


def test_a_run_is_agreed_to_by_hand_and_by_policy_stops_goes_on_and_keeps_its_terms(consortium: Consortium) -> None:
    queue = RunQueue(consortium.state)
    try:
        ports = start(consortium)
        for name in ("st-anne", "st-john"):
            consortium.join(name, consortium.invite(name), ("--runtime-port", str(free_port())))
        asked = ("--set", "hospital.runs=ask", "--runtime-port", str(free_port()))
        consortium.join("st-mary", consortium.invite("st-mary"), asked)
        told = consortium.propose(3, "--set", f"experiment.rounds={ROUNDS}", "--hold")
        assert "waits for the hospitals' answers" in unwrapped(told)
        (run,) = queue.all()

        # Two agree by policy. The third waits for its operator, and three hospitals that are online start nothing.
        consortium.wait_for(lambda: len(queue.answers(run.run_id)) == 2, 120)
        state = str(consortium.hospital_state("st-mary"))
        consortium.wait_for(lambda: "waits for you" in consortium.deploy("hospital", "runs", "--state", state), 60)
        assert not consortium.rounds()
        consortium.deploy("hospital", "approve", run.run_id[:12], "--state", state)
        consortium.wait_for(lambda: queue.get(run.run_id).state is RunState.AGREED, 60)
        assert not consortium.rounds()

        consortium.run("start", "1")
        consortium.wait_for(lambda: len(consortium.rounds()) >= 2, 240)
        assert "ends after its round" in consortium.run("stop", "1")
        consortium.wait_for(lambda: queue.get(run.run_id).state is RunState.STOPPED, 120)
        done = len(consortium.rounds())
        assert done < ROUNDS
        assert [event.reason for event in consortium.events() if isinstance(event, RunFinished)] == [STOPPED]

        refuses_a_second_server(consortium, ports)
        consortium.run("resume", "1")
        consortium.wait_for(lambda: queue.get(run.run_id).state is RunState.FINISHED, 300)
        events = EventFile(queue.folder(run.run_id) / EVENTS_FILE).read_new()
        assert [event.step for event in events if isinstance(event, RoundDone)] == list(range(1, ROUNDS + 1))
        assert len({event.config_hash for event in events if isinstance(event, RunStarted)}) == 1
        finished = [event.reason for event in events if isinstance(event, RunFinished)]
        assert finished == [STOPPED, COMPLETED]
        assert f"{ROUNDS} of {ROUNDS}" in consortium.run("list")

        everybody_sees_it(consortium, run.run_id[:12])

        # Another run declines by hand, and what is finished is not changed any more.
        consortium.run("propose", "--set", "experiment.rounds=3")
        second = queue.find("2")
        consortium.wait_for(lambda: "waits for you" in consortium.deploy("hospital", "runs", "--state", state), 60)
        consortium.deploy("hospital", "decline", second.run_id[:12], "--state", state, "--reason", "not before May")
        consortium.wait_for(lambda: queue.get(second.run_id).state is RunState.DECLINED, 60)
        assert "not before May" in unwrapped(consortium.run("show", "2"))
        assert "finished run is not changed" in failed("run", "resume", "1", "--state", str(consortium.state))
    finally:
        consortium.stop()
    authority = load_certificate(consortium.state / "ca.pem")
    chain = read_chain((consortium.hospital_state("st-mary") / AUDIT_FILE).read_bytes(), "st-mary", authority)
    bodies = [entry.body for entry in chain.entries]
    answers = [body for body in bodies if isinstance(body, AnsweredProposal)]
    assert [(answer.agreed, answer.by) for answer in answers] == [(True, "operator"), (False, "operator")]
    assert bodies.index(answers[0]) < next(place for place, body in enumerate(bodies) if isinstance(body, JoinedRun))


def everybody_sees_it(consortium: Consortium, run: str) -> None:
    """Look at logs and status of both sides after a run of all rounds."""
    log = (consortium.folder / "server.out").read_text()
    told = [log.count(f"gave step {step} of {ROUNDS}: 3 hospitals") for step in range(1, ROUNDS + 1)]
    assert told == [1] * ROUNDS
    assert f"is finished after {ROUNDS} rounds: completed" in log
    state = consortium.hospital_state("st-mary")
    assert f"run {run}, round " in (state / "logs" / "agent.log").read_text()
    status = unwrapped(consortium.deploy("status", "--state", str(consortium.state)))
    assert f"run 1 ({run}) is finished" in status
    assert status.count("protocol version") == 4  # The server, and each hospital.
    standing = unwrapped(consortium.deploy("hospital", "status", "--state", str(state)))
    assert f"run {run} is " in standing
    assert "this hospital agrees, by its operator" in standing


def refuses_a_second_server(consortium: Consortium, ports: tuple[str, ...]) -> None:
    files = [consortium.state / name for name in (SERVER_SETTINGS_FILE, "config.yaml", "ca.pem")]
    before = [file.read_bytes() for file in files]
    words = failed("server", "--state", str(consortium.state), *ports, "--set", "experiment.rounds=77", "--no-start")
    assert "one server alone may run on a state folder" in words
    assert [file.read_bytes() for file in files] == before


def failed(*words: str) -> str:
    command = (sys.executable, "-m", "deploy", *words)
    done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 2, done.stdout + done.stderr
    return done.stderr
