"""The benchmark of proved sums measures real proofs; no test asserts a time."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from common.errors import RunError
from common.proved_sums.errors import FalseSumError
from tests.benchmarks import bench_sums


def test_the_result_has_every_name_and_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_sums, "SIZES", ((500, 16), (300, 32), (10**12, 16)))
    target = tmp_path / "bench.json"
    assert bench_sums.main(["sums", "--repeat", "1", "--most", "1000", "--json", str(target)]) == 0
    result = json.loads(target.read_text())
    assert [cost["parameters"] for cost in result["sums"]] == [500, 300]
    assert set(result["sums"][0]) == {field.name for field in fields(bench_sums.SumCost)}
    assert set(result) >= {"machine", "versions", "commit", "hospitals"}
    assert "commit_to_mask" in capsys.readouterr().out
    assert result["sums"][0]["upload_more_bytes"] == 9728


def test_a_commitment_needs_some_megabytes_whatever_the_vectors_length() -> None:
    for entries in (100_000, 1_000_000):
        assert bench_sums.measure(entries, 16, 3, 1).commit_peak_bytes < 8_000_000


def test_a_sum_that_is_not_proved_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    true_round = bench_sums._round

    def another(*arguments: object) -> object:
        views, proof, total = true_round(*arguments)  # type: ignore[arg-type]
        return views, proof, total + np.ones_like(total)

    monkeypatch.setattr(bench_sums, "_round", another)
    with pytest.raises(FalseSumError):
        bench_sums.measure(300, 16, 3, 1)


@pytest.mark.parametrize("arguments", [["--hospitals", "2"], ["--repeat", "0"]])
def test_arguments_out_of_range_are_refused_by_name(arguments: list[str]) -> None:
    with pytest.raises(RunError, match="--hospitals"):
        bench_sums.main(["sums", *arguments])
