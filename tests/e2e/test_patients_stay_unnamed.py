"""Everything that deployed processes write and serve, searched for the patients whom the hospitals' data names."""

import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.config import replace
from common.telemetry.events import EVENTS_FILE, EventFile, Refusal, RoundDone, RunFinished
from deploy.datasets.datasets import obtain
from deploy.demo.loopback import LoopbackDeployment
from deploy.results.outputs import RunOutputs
from deploy.results.report import write_report
from deploy.results.report_facts import RunFacts
from tests.support import named_patients
from tests.support.small_consortium import CONFIG, RUN_ID

LIMIT_SECONDS = 200.0
DEPLOYED = replace(
    CONFIG,
    experiment={"rounds": 1},
    transport={"start_deadline_seconds": 120.0, "exchange_deadline_seconds": 60.0, "roster_stable_seconds": 2.0},
)


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[LoopbackDeployment]:
    deployment = LoopbackDeployment(DEPLOYED, tmp_path / "run", RUN_ID)
    for seed, member in enumerate(deployment.members):
        named_patients.write(member.data, seed)
    named_patients.break_one(deployment.members[3].data)
    try:
        yield deployment
    finally:
        deployment.supervisor.stop()


@pytest.mark.e2e
@pytest.mark.timeout(280)
def test_nothing_that_deployed_processes_write_or_serve_names_a_patient(
    deployment: LoopbackDeployment, tmp_path: Path
) -> None:
    data = obtain(DEPLOYED.data, DEPLOYED.experiment.task, DEPLOYED.model.image_size)
    ports = deployment.set_up(data)
    deployment.start_server()
    deployment.await_server()
    deployment.start_hospitals()
    outputs, events = RunOutputs(deployment.folder), EventFile(deployment.folder / EVENTS_FILE)
    give_up = time.monotonic() + LIMIT_SECONDS
    served = b""
    seen: list[object] = []
    while not any(isinstance(event, RunFinished) for event in seen):
        assert time.monotonic() < give_up, deployment.last_words("server")
        for event in events.read_new():
            outputs.add(event)
            seen.append(event)
            served += b"".join(_metrics_at(port) for role in ports.values() for port in role)
        time.sleep(0.2)
    served += b"".join(_metrics_at(port) for port in ports["hospital"])
    deployment.supervisor.stop()
    outputs.finish(None, None)
    write_report([RunFacts.read(deployment.folder)], deployment.folder)

    assert [event.hospitals for event in seen if isinstance(event, RoundDone)] == [3]
    assert {event.hospital for event in seen if isinstance(event, Refusal)} == {"hospital-4"}
    assert b"hospital-1" in served
    assert not named_patients.is_named_in(served)
    log = (deployment.members[3].logs / "agent.log").read_text()
    assert "image_damaged in 1 places: the image is damaged or cut short: export or copy it again" in log
    own = tuple(member.data for member in deployment.members)
    assert named_patients.named_below(tmp_path, own) == []


def _metrics_at(port: int) -> bytes:
    """Return what an exporter serves, nothing while it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return bytes(answer.read())
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return b""
