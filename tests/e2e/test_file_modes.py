"""Whatever umask a role is started with, what it writes is its own alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.telemetry.events import EVENTS_FILE
from tests.support.example_run import example_run

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 200


def written_by_roles(out: Path) -> list[Path]:
    """Return a run's folder and everything in it: states, logs, checkpoints, figures."""
    return [out, *out.rglob("*")]


@pytest.mark.e2e
@pytest.mark.timeout(LIMIT_SECONDS + 80)
def test_every_role_started_with_umask_000_keeps_its_files_to_itself(tmp_path: Path) -> None:
    out = tmp_path / "run"
    demo = subprocess.Popen(
        (
            sys.executable, "-m", "deploy", "demo", "--data", "phantom", "--hospitals", "3", "--rounds", "50",
            "--set", "data.phantom_records=600", "--set", "model.name=cnn", "--out", str(out),
        ),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        umask=0,
    )  # fmt: skip
    try:
        give_up = time.monotonic() + LIMIT_SECONDS
        while not list(out.glob("checkpoints/step-0000000[1-9]*.safetensors")):
            assert demo.poll() is None
            assert time.monotonic() < give_up, "no round was finished in time"
            time.sleep(0.2)
        written = written_by_roles(out)
    finally:
        demo.send_signal(signal.SIGINT)
        demo.wait(60)
    names = {path.name for path in written}
    assert {"identity.key", "tls.key", "supernode.key", "ledger.sqlite", "audit.jsonl", "agent.log"} <= names
    assert {"metrics.csv", "summary.json", "events.jsonl"} <= names
    open_to_others = [
        f"{path.relative_to(out)} {path.stat().st_mode & 0o777:o}"
        for path in written
        if path.exists() and not path.is_symlink() and path.stat().st_mode & 0o077
    ]
    assert open_to_others == []


def test_what_a_command_makes_of_a_run_is_its_owners_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    (run / EVENTS_FILE).write_text("".join(event.to_line() for event in example_run()), encoding="utf-8")
    out = tmp_path / "out"
    subprocess.run(
        (sys.executable, "-m", "deploy", "report", str(run), "--out", str(out)),
        cwd=ROOT, check=True, capture_output=True, umask=0,
    )  # fmt: skip
    written = [out, *out.rglob("*")]
    assert {"report.html", "report.md", "model_card.md"} <= {path.name for path in written}
    assert [path.name for path in written if path.stat().st_mode & 0o077] == []
