"""A run's model at the server and at its hospitals, over the processes that ``server`` and ``join`` start."""

import subprocess
import sys
from pathlib import Path

import pytest

from client.kept_runs import kept_runs
from common.settings import free_port
from common.telemetry.events import COMPLETED, HospitalLost, RunFinished
from tests.support.consortium import ENVIRONMENT, ROOT, Consortium

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

NAMES = ("st-anne", "st-john", "st-luke", "st-mary")
ROUNDS = 12
WRITTEN = ("model.safetensors", "model.json", "metrics.csv", "summary.json", "report.html", "model_card.md", "ca.pem")


def confide(*words: str) -> str:
    command = (sys.executable, "-m", "deploy", *words)
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def lost(consortium: Consortium) -> dict[str, bool]:
    """Return who has gone in a run, and whether that hospital said that it was stopped."""
    return {event.hospital: event.left for event in consortium.events() if isinstance(event, HospitalLost)}


def ports() -> tuple[str, ...]:
    names = ("--fleet-port", "--enrolment-port", "--runtime-port")
    return tuple(word for name in names for word in (name, str(free_port())))


def test_a_finished_run_leaves_its_files_at_the_server_and_comes_home_also_to_who_is_back_later(
    tmp_path: Path,
) -> None:
    consortium = Consortium(tmp_path, 4, (f"experiment.rounds={ROUNDS}",))
    try:
        consortium.start_server(["localhost"], ports())
        for name in NAMES:
            consortium.join(name, consortium.invite(name), ("--runtime-port", str(free_port())))
        consortium.wait_for_rounds(1, 4, 240)
        consortium.stop_hospital(NAMES[3])
        consortium.wait_for(lambda: NAMES[3] in lost(consortium), 120)
        assert lost(consortium) == {NAMES[3]: True}  # It has said that it was stopped.
        consortium.wait_for(lambda: any(isinstance(event, RunFinished) for event in consortium.events()), 240)
        (server_run,) = (consortium.state / "runs").iterdir()
        consortium.wait_for((server_run / "delivery.json").exists, 120)
        assert {*WRITTEN, "plots"} <= {path.name for path in server_run.iterdir()}
        assert next(event.reason for event in consortium.events() if isinstance(event, RunFinished)) == COMPLETED

        for name in NAMES[:3]:
            state = consortium.hospital_state(name)
            consortium.wait_for(lambda state=state: len(kept_runs(state)) == 1, 120)  # type: ignore[misc]
            (kept,) = kept_runs(state)
            assert (kept.steps, kept.has_seen_model) == (ROUNDS, True)
        # A restart of the server, and a hospital that comes back only then, need nothing by hand.
        consortium.restart_server()
        assert kept_runs(consortium.hospital_state(NAMES[3])) == ()
        consortium.rejoin(NAMES[3])
        consortium.wait_for(lambda: len(kept_runs(consortium.hospital_state(NAMES[3]))) == 1, 180)
        (late,) = kept_runs(consortium.hospital_state(NAMES[3]))
        assert (late.steps, late.has_seen_model) == (ROUNDS, False)
    finally:
        consortium.stop()

    state = consortium.hospital_state(NAMES[0])
    before = {path: path.read_bytes() for path in state.rglob("*") if path.is_file()}
    told = " ".join(confide("hospital", "report", "--state", str(state), "--alone").split())
    assert "together − alone" in told
    assert "images have changed" not in told
    assert {path: path.read_bytes() for path in state.rglob("*") if path.is_file()} == before
    kept_at = confide("hospital", "model", "path", "--state", str(state)).strip()
    for run in (kept_at, str(server_run)):
        image = next(path for path in consortium.shards[0].rglob("*.png"))
        assert "prediction" in confide("predict", run, str(image))
        confide("report", run, "--out", str(tmp_path / "report"))
        verdict = confide("audit", "verify", run)
        assert "the one the rounds produced" in verdict
        assert ("hospitals         st-anne: each chain agrees" in verdict) == (run == kept_at)
        confide("evidence", run, "--out", str(tmp_path / "evidence.zip"))
    assert (Path(kept_at) / "model.safetensors").read_bytes() == (server_run / "model.safetensors").read_bytes()
