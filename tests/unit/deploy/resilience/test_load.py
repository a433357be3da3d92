"""``confide load`` prints the server's memory beyond its constant in vectors of the model it is asked for."""

import json
from pathlib import Path

import pytest

from common.config import Config
from deploy.resilience import load

MIB = 2**20
VECTOR_BYTES = 20 * MIB


def test_memory_beyond_the_small_models_is_told_in_vectors_of_the_large_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(config: Config, _folder: Path) -> load.LoadMeasured:
        of_server, of_superlink, vector = (
            (100 * MIB, 200 * MIB, MIB) if config.model.name == "cnn" else (150 * MIB, 240 * MIB, VECTOR_BYTES)
        )
        return load.LoadMeasured(config.experiment.num_clients, 100, 2, 4, 1.0, of_server, of_superlink, vector)

    monkeypatch.setattr(load, "measure", measured)
    report = tmp_path / "load.json"
    what = ["--hospitals", "4,8", "--set", "model.name=resnet18", "--constant", "cnn"]
    assert load.main(["load", *what, "--json", str(report)]) == 0
    runs = json.loads(report.read_text())["runs"]
    assert [(run["hospitals"], run["serverapp_vectors"], run["superlink_vectors"]) for run in runs] == [
        (4, 2.5, 2.0),
        (8, 2.5, 2.0),
    ]
    assert "ServerApp 2.5 and SuperLink 2.0 vectors" in capsys.readouterr().out


def test_without_a_small_model_nothing_is_said_of_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "measure", lambda *_: load.LoadMeasured(4, 100, 2, 4, 1.0, MIB, MIB, VECTOR_BYTES))
    report = tmp_path / "load.json"
    assert load.main(["load", "--hospitals", "4", "--json", str(report)]) == 0
    (run,) = json.loads(report.read_text())["runs"]
    assert (run["serverapp_vectors"], run["superlink_vectors"]) == (None, None)
