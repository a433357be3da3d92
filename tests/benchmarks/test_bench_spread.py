"""The benchmark of the spread tells more with more hospitals, and its intervals hold."""

from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import bench_spread
from tests.benchmarks.bench_spread import row, weighted_quartiles


def test_many_hospitals_are_told_and_few_are_not() -> None:
    few, many = (row(hospitals, 0.3, 1.0, 12).split(" | ") for hospitals in (4, 64))
    assert few[2].startswith("0")
    assert many[2].startswith("100")
    assert float(many[-1].split()[0]) >= 90


def test_quartiles_go_by_weight() -> None:
    assert weighted_quartiles([0.9, 0.7, 0.8], [1.0, 1.0, 1.0]).tolist() == [0.7, 0.8, 0.9]
    assert weighted_quartiles([0.9, 0.7, 0.8], [0.0, 0.0, 1.0]).tolist() == [0.8, 0.8, 0.8]
    assert np.isfinite(weighted_quartiles([0.9], [1.0])).all()


def test_the_table_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_spread, "HOSPITALS", (16,))
    assert bench_spread.main(["spread", "--draws", "3", "--out", str(tmp_path)]) == 0
    assert (tmp_path / bench_spread.TABLE).read_text().count("\n| 16 |") == 2
