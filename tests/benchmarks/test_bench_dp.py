"""The benchmark measures all three kinds of step, and its result has the names that others read."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from common.errors import RunError
from common.models import registry
from tests.benchmarks import bench_dp
from tests.benchmarks.bench_dp import Case, StepCost


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = (Case("cnn", batch=5, steps=1, aim=1.5), Case("scattering_linear", batch=6, steps=2, aim=1.2))
    monkeypatch.setattr(bench_dp, "CASES", cases)
    # Opacus takes batches of the convolutional network in pieces of two.
    monkeypatch.setattr(bench_dp, "OPACUS_BYTES", 2 * 4 * 25_842)


def test_the_result_has_every_name_and_is_written_as_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_dp.main(["dp", "--repeat", "1", "--json", str(tmp_path / "dp.json")]) == 0
    result = json.loads((tmp_path / "dp.json").read_text())
    assert set(result) == {"steps", "threads", "machine", "versions", "commit"}
    printed = capsys.readouterr().out
    for step, case in zip(result["steps"], bench_dp.CASES, strict=True):
        assert set(step) == {field.name for field in fields(StepCost)}
        assert (step["model"], step["batch"], step["aim"]) == (case.model, case.batch, case.aim)
        assert step["private_ratio"] == pytest.approx(step["private_seconds"] / step["plain_seconds"])
        assert step["opacus_ratio"] == pytest.approx(step["opacus_seconds"] / step["plain_seconds"])
        assert f"{step['private_ratio']:.2f}" in printed


def test_the_resnet_that_opacus_is_measured_on_computes_what_the_deployed_one_does() -> None:
    images = torch.randn(2, 1, 28, 28)
    deployed = registry.build("resnet18", 2, 1, 28, seed=1)
    expected = deployed(images)
    assert torch.equal(bench_dp._never_in_place(deployed)(images), expected)


def test_what_cannot_be_measured_or_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="at least 1"):
        bench_dp.main(["dp", "--repeat", "0"])
    with pytest.raises(RunError, match="can be written"):
        bench_dp.main(["dp", "--repeat", "1", "--json", str(tmp_path / "no" / "dp.json")])
