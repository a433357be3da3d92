"""A finished demo's model is verified and kept by each of its hospitals."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from client.kept_runs import kept_runs
from common.errors import RunError
from common.files import write_private
from common.identity.certificates import certificate_pem, private_key_pem
from common.telemetry.events import EVENTS_FILE
from deploy.demo.consortium import Member
from deploy.demo.handing_home import bring_home
from deploy.demo.loopback import LoopbackDeployment
from tests.support.audited_run import NAMES, RUN_ID
from tests.support.finished_run import FinishedRun, finished_run


@dataclass(frozen=True)
class Demo:
    run: FinishedRun
    deployment: LoopbackDeployment


@pytest.fixture
def demo(tmp_path: Path) -> Demo:
    run = finished_run(tmp_path / "server")
    members = [Member(name, tmp_path / name, tmp_path / name / "shard", tmp_path / "logs") for name in NAMES]
    for member in members:
        identity = run.hospital(member.state, member.name)
        write_private(member.state / "identity.pem", certificate_pem(identity.certificate))
        write_private(member.state / "identity.key", private_key_pem(identity.key))
    made = SimpleNamespace(
        folder=run.folder, members=members, run_id=RUN_ID, consortium=SimpleNamespace(server_state=run.state)
    )
    return Demo(run, cast("LoopbackDeployment", made))


def test_each_hospital_keeps_the_model_and_a_run_that_was_not_signed_is_not_fetched(demo: Demo) -> None:
    assert bring_home(demo.deployment) == 0
    demo.run.write_results()
    assert bring_home(demo.deployment) == len(NAMES)
    for member in demo.deployment.members:
        (kept,) = kept_runs(member.state)
        assert (kept.run_id, kept.has_seen_model) == (RUN_ID, True)


def test_a_hospital_that_finds_something_wrong_says_what(demo: Demo) -> None:
    demo.run.write_results()
    events = demo.run.folder / EVENTS_FILE
    events.write_bytes(b" " * events.stat().st_size)
    with pytest.raises(
        RunError, match=f"{NAMES[0]} refuses what the server hands over: events.jsonl: must be the file"
    ):
        bring_home(demo.deployment)
