"""The benchmark of the published baseline trains for real, and is that network."""

import json
from pathlib import Path

import pytest
import torch

from tests.benchmarks import bench_published
from tests.benchmarks.bench_published import TABLE, baseline

SMALL = ("data.source=phantom", "data.phantom_records=200")


def test_the_network_is_the_published_one() -> None:
    """It has the weights of a ResNet-18 for small images, less those of two channels and eight classes.

    Nothing pools before its blocks, so that 28 pixels stay 28.
    """
    network = baseline(2, 1)
    assert sum(each.numel() for each in network.parameters()) == 11_173_962 - 2 * 64 * 9 - 8 * 513
    seen = []
    network.get_submodule("layer1").register_forward_hook(lambda _, __, made: seen.append(tuple(made.shape)))
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 2)
    assert seen == [(2, 64, 28, 28)]


@pytest.mark.parametrize("half", [False, True])
def test_it_trains_and_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str], half: bool) -> None:
    words = ["published", "--seeds", "1", "--epochs", "1", "--out", str(tmp_path), *(["--bfloat16"] if half else [])]
    overrides = [word for setting in SMALL for word in ("--set", setting)]
    assert bench_published.main([*words, *overrides]) == 0
    (group,) = json.loads((tmp_path / "results.json").read_text())["groups"]
    assert 0 <= group["auc"] <= 1
    assert group["precision"] == ("bfloat16" if half else "float32")
    shown = capsys.readouterr().out
    assert "epoch 1 of 1" in shown
    assert (tmp_path / TABLE).read_text() in shown
    assert bench_published.main([*words, *overrides]) == 0
    assert "1 of 1 trials were finished before" in capsys.readouterr().out
