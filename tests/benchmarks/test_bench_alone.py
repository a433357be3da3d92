"""The benchmark of the comparison trains for real: what a run tells is held against what its hospitals see."""

import json
from pathlib import Path

import pytest

from client.own_results import AgainstAlone
from tests.benchmarks import bench_alone
from tests.benchmarks.bench_alone import SPLITS, gain_at_home

SMALL = (
    "data.source=phantom", "data.phantom_records=400", "experiment.rounds=3", "model.name=scattering_linear",
    "training.sample_rate=1.0", "training.batch_size=16", "privacy.delta=0.001",
)  # fmt: skip


def test_the_gain_at_home_is_over_all_records() -> None:
    own = (AgainstAlone(records=10, together=0.9, alone=0.7), AgainstAlone(records=30, together=0.8, alone=0.9))
    assert gain_at_home(own) == pytest.approx((2 - 3) / 40)


def test_every_setting_is_trained_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [word for setting in SMALL for word in ("--set", setting)]
    assert bench_alone.main(["alone", "--seeds", "1", "--out", str(tmp_path), *overrides]) == 0
    groups = json.loads((tmp_path / "results.json").read_text())["groups"]
    assert [(group["split"], group["alone_share"]) for group in groups] == [
        (name, share) for name in SPLITS for share in (0.0, 0.5)
    ]
    for group in groups:
        assert ("told" in group) == (group["alone_share"] > 0)
        assert group["epsilon_of_steps"] == pytest.approx(8.0 if not group["alone_share"] else 5.3, abs=0.35)
    assert all(-1 <= group["true"] <= 1 for group in groups if "true" in group)
    assert (tmp_path / bench_alone.TABLE).read_text() in capsys.readouterr().out
