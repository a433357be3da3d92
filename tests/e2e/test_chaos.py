"""Processes of a real deployment are killed at random points, and the run goes on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def command(tmp_path: Path, *arguments: str) -> tuple[str, ...]:
    files = ("--json", str(tmp_path / "chaos.json"), "--out", str(tmp_path / "run"))
    return (sys.executable, "-m", "deploy", "chaos", *files, *arguments)


def chaos(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    report = tmp_path / "chaos.json"
    finished = subprocess.run(
        command(tmp_path, *arguments), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    told: dict[str, Any] = json.loads(report.read_text())
    return told


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_a_run_survives_kills_without_an_under_count(tmp_path: Path) -> None:
    report = chaos(tmp_path, "--kills", "3", "--seed", "7", "--hospitals", "3")
    assert report["kills"] == report["resumed"] == 3
    assert report["hung"] == report["undone_rounds"] == report["ledger_under_counts"] == 0
    assert report["finished_rounds"] > 3


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_kills_that_are_ended_by_a_signal_are_reported_as_far_as_they_went(tmp_path: Path) -> None:
    asked_for = ("--kills", "50", "--seed", "7", "--hospitals", "3")
    with subprocess.Popen(
        command(tmp_path, *asked_for),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stderr is not None
        next(line for line in running.stderr if line.startswith("2: "))
        running.send_signal(signal.SIGTERM)
        printed, _ = running.communicate(timeout=120)
    assert running.returncode == 128 + signal.SIGTERM
    assert "ended by a signal after 2 of 50 kills" in printed
    report = json.loads((tmp_path / "chaos.json").read_text())
    assert (report["ended_early"], report["asked_for"], report["kills"]) == (True, 50, 2)
    assert len(report["strikes"]) == 2
    assert report["ledger_under_counts"] == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_killed_run_without_privacy_gives_the_same_model_bit_for_bit(tmp_path: Path) -> None:
    report = chaos(tmp_path, "--kills", "6", "--seed", "3", "--hospitals", "3", "--same-model")
    assert report["kills"] == 6
    assert report["same_model"] is True


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_a_run_survives_two_hundred_kills(tmp_path: Path) -> None:
    report = chaos(tmp_path, "--kills", "200", "--seed", "11")
    assert report["kills"] == report["resumed"] == 200
    assert report["hung"] == report["undone_rounds"] == report["ledger_under_counts"] == 0
