import os
from itertools import count
from pathlib import Path

import pytest

from client.status import HospitalStatus, StatusKeeper
from common.config import Config, HospitalConfig, RunDescription, replace

BUDGET = 10.0
POLICY = HospitalConfig(epsilon_budget=BUDGET, evaluation_epsilon_budget=3.0, delta=1e-5)


def _keeper(path: Path) -> StatusKeeper:
    ticks = count(1_750_000_000)
    return StatusKeeper(path, "st-mary", POLICY, lambda: float(next(ticks)))


def _read(path: Path) -> HospitalStatus:
    status = HospitalStatus.read(path)
    assert status is not None
    return status


def _description(mode: str) -> RunDescription:
    config = replace(Config(), privacy={"mode": mode})
    return RunDescription.of(
        config,
        run_id="ab" * 16,
        classes=("normal", "pneumonia"),
        channels=1,
        vector_length=100,
        roster={},
    )


def test_an_agent_tells_its_budget_before_its_first_run(tmp_path: Path) -> None:
    _keeper(tmp_path / "status.json")
    status = _read(tmp_path / "status.json")
    assert (status.hospital, status.epsilon_budget, status.epsilon_spent) == ("st-mary", BUDGET, 0.0)
    assert (status.delta, status.evaluation_epsilon_budget) == (1e-5, 3.0)


def test_a_round_leaves_its_number_epsilon_and_speed(tmp_path: Path) -> None:
    keeper = _keeper(tmp_path / "status.json")
    keeper.joined(_description("local"))
    spent = {"validation": 0.5, "test": 0.0}
    keeper.contributed(3, spent=1.5, evaluation_spent=spent, records_per_second=2000.0, notes=("few records",))
    keeper.contributed(4, spent=1.5, evaluation_spent={}, records_per_second=None, notes=("few records",))
    status = _read(tmp_path / "status.json")
    assert (status.run_id, status.round, status.epsilon_spent) == ("ab" * 16, 4, 1.5)
    assert status.training_records_per_second == 2000.0
    assert (status.delta, status.accountant) == (1e-5, "prv")
    assert (status.evaluation_epsilon_spent, status.notes) == (spent, ("few records",))
    assert "everyone outside the hospital" in status.adversary


def test_an_agent_that_starts_again_goes_on_counting(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    before = _keeper(path)
    before.joined(_description("local"))
    before.contributed(9, spent=4.0, evaluation_spent={}, records_per_second=500.0, notes=())
    before.refused("budget_exceeded")
    after = _keeper(path)
    after.refused("budget_exceeded")
    after.refused("policy")
    status = _read(path)
    assert status.refusals == {"budget_exceeded": 2, "policy": 1}
    assert (status.round, status.epsilon_spent) == (9, 4.0)


def test_a_damaged_status_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    path.write_text("{")
    _keeper(path)
    assert _read(path).refusals == {}


def test_a_disk_that_refuses_breaks_no_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = _keeper(tmp_path / "status.json")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    keeper.refused("policy")
    assert _read(tmp_path / "status.json").refusals == {}
