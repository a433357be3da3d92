"""Processes of a real deployment are killed at random points, and the run goes on as if nothing had happened."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def chaos(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    report = tmp_path / "chaos.json"
    finished = subprocess.run(
        (sys.executable, "-m", "deploy", "chaos", "--json", str(report), "--out", str(tmp_path / "run"), *arguments),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
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
