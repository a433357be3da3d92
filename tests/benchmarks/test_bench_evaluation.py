"""The benchmark measures every kind of task without data, and trains on files where they are given."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import RunError
from common.evaluation import TaskKind
from tests.benchmarks import bench_evaluation
from tests.benchmarks.bench_evaluation import Finding


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_evaluation, "ROUNDS", 2)
    monkeypatch.setattr(bench_evaluation, "STEPS", 1)
    monkeypatch.setattr(bench_evaluation, "ATTACKS", 100)


def test_the_result_has_every_name_and_every_kind_of_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_evaluation.main(["evaluation", "--draws", "2", "--json", str(tmp_path / "e.json")]) == 0
    result = json.loads((tmp_path / "e.json").read_text())
    assert {"findings", "attacks", "machine", "commit"} <= set(result)
    assert {finding["task"].partition(":")[0] for finding in result["findings"]} == set(TaskKind)
    assert set(result["findings"][0]) == {field.name for field in fields(Finding)}
    assert "balanced accuracy" in capsys.readouterr().out


def test_heads_are_trained_on_the_files_of_a_folder(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name, channels, classes in (("pneumoniamnist", (), 2), ("retinamnist", (3,), 5)):
        arrays: dict[str, Any] = {}
        for part, size in (("train", 40), ("val", 24), ("test", 24)):
            arrays[f"{part}_images"] = generator.integers(0, 256, (size, 28, 28, *channels), dtype=np.uint8)
            arrays[f"{part}_labels"] = (np.arange(size) % classes)[:, None].astype(np.uint8)
        np.savez(tmp_path / f"{name}.npz", **arrays)
    found = bench_evaluation.trained(tmp_path, seed=1)
    assert [one.kind for one in found] == [TaskKind.BINARY] * 3 + [TaskKind.ORDINAL] * 3
    assert all(len(one.logits) == 3 and np.isfinite(one.logits[-1][1]).all() for one in found)


def test_one_draw_is_refused() -> None:
    with pytest.raises(RunError, match="at least 2"):
        bench_evaluation.main(["evaluation", "--draws", "1"])
