"""The benchmark of cheats trains for real: the bound holds, and the cheat is out when the run ends."""

import json
from pathlib import Path

import pytest

from tests.benchmarks import bench_cheats
from tests.benchmarks.bench_cheats import Setting

SMALL = (
    "data.source=phantom", "data.phantom_records=400", "experiment.rounds=3", "model.name=scattering_linear",
    "training.copies=1", "training.warp=none", "privacy.mean_share=0", "privacy.delta=0.001",
)  # fmt: skip


def test_every_setting_is_trained_and_the_cheat_is_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {"experiment": {"rounds": 3}, "training": {"sample_rate": 1.0, "learning_rate": 20.0, "momentum": 0.0}}
    monkeypatch.setattr(bench_cheats, "LOCAL_STEPS", {8.0: steps})
    overrides = [word for setting in SMALL for word in ("--set", setting)]
    assert bench_cheats.main(["cheats", "--seeds", "1", "--out", str(tmp_path), *overrides]) == 0
    groups = json.loads((tmp_path / "results.json").read_text())["groups"]
    at_the_end = {group["setting"]: group["hospitals_at_the_end"] for group in groups}
    assert at_the_end == {
        Setting.PROVED: 4, Setting.BOUNDED: 4, Setting.CHEATED: 3, Setting.HONEST_ALONE: 3
    }  # fmt: skip
    assert (tmp_path / bench_cheats.TABLE).read_text() in capsys.readouterr().out
