"""``confide model``: the hash that hospitals accept, a trial before a run, and first weights for a server."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import numpy as safetensors

from common.config import Config, replace
from common.errors import ConfigError, RunError
from common.models import registry
from common.models.first_model import FIRST_MODEL_FILE, FirstModel, FirstModelFacts
from common.models.flat import flat_parameters
from common.settings import CHECKPOINTS_FOLDER, SERVER_SETTINGS_FILE, ServerSettings
from deploy.models import check, initial
from deploy.models import hash as hash_command
from server import initial_model
from server.checkpoints import CheckpointStore
from tests.support.onnx_files import honest

RUN_ID = "c1" * 16
ABSENT = replace(Config(), model={"name": "not_on_this_server:small", "sha256": "d" * 64})

SMALL = ("--set", "hospital.stated_training_units=30", "--set", "privacy.accountant=rdp", "--set", "privacy.delta=0.01")


def a_server(folder: Path, config: Config) -> ServerSettings:
    settings = ServerSettings(
        config=folder / "config.yaml", run=folder / "run", logs=folder / "logs", run_id=RUN_ID, data_set="made up",
        classes=("a", "b"), channels=1,
    )  # fmt: skip
    (folder / "config.yaml").write_bytes(config.as_yaml())
    settings.write(folder / SERVER_SETTINGS_FILE)
    return settings


def test_the_hash_of_a_file_is_its_sha256(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "network.onnx"
    path.write_bytes(honest())
    assert hash_command.main(["hash", str(path)]) == 0
    assert capsys.readouterr().out.strip() == hashlib.sha256(honest()).hexdigest()
    with pytest.raises(ConfigError, match="the package not_here must be installed"):
        hash_command.main(["hash", "not_here:small"])


def test_a_trial_tells_gradients_size_memory_and_cost(capfd: pytest.CaptureFixture[str]) -> None:
    assert check.main(["check", "cnn", *SMALL, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["gradients"] == "layers"
    assert found["parameters"] == registry.parameter_count("cnn", 2, 1, 28)
    assert found["vector_bytes"] >= 2 * found["parameters"]
    assert found["peak_bytes"] > 2**26
    assert found["seconds"] > 0
    assert 0 < found["epsilon_first"] < found["epsilon_run"] <= 8
    assert all(is_known for _, _, _, is_known in found["layers"])


def test_a_trial_of_a_run_without_privacy_has_no_cost(capfd: pytest.CaptureFixture[str]) -> None:
    assert check.main(["check", "scattering_linear", *SMALL, "--set", "privacy.mode=none"]) == 0
    shown = capfd.readouterr().out
    assert "the run has no differential privacy" in shown
    assert "ε" not in shown


def test_a_model_on_frozen_features_is_tried_like_any_other_and_told_in_80_columns(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert check.main(["check", "scattering_linear", *SMALL]) == 0
    shown = capfd.readouterr().out
    assert "every layer is known" in shown
    assert "not known" not in shown  # Its centre is a part of the model that training leaves alone.
    assert "ε for each unit" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_trial_says_in_one_line_why_a_model_cannot_be_made() -> None:
    with pytest.raises(ConfigError, match=r"image_size must be at least 64 for model\.name densenet121, got 28"):
        check.main(["check", "densenet121", *SMALL])
    with pytest.raises(ConfigError, match="the package not_here must be installed"):
        check.main(["check", "not_here:small", *SMALL])


def test_the_first_model_is_that_of_the_seed_and_spares_a_server_the_package(tmp_path: Path) -> None:
    settings = a_server(tmp_path, replace(Config(), experiment={"seed": 5}))
    out = settings.run / FIRST_MODEL_FILE
    out.parent.mkdir()
    assert initial.main(["initial", "--out", str(out), "--set", "experiment.seed=5"]) == 0
    network = registry.build("cnn", 2, 1, 28, seed=5)
    first = FirstModel.read(out)
    assert np.array_equal(first.flat, flat_parameters(network))
    assert dict(zip(first.facts.tensors, first.shapes, strict=True)) == {
        name: tuple(tensor.shape) for name, tensor in network.named_parameters()
    }
    initial_model._make(tmp_path)
    made = CheckpointStore(settings.run / CHECKPOINTS_FOLDER).latest(RUN_ID)
    assert made is not None
    assert np.array_equal(made.model[:], first.flat)


def test_a_server_without_package_or_file_says_what_is_missing(tmp_path: Path) -> None:
    a_server(tmp_path, ABSENT)
    with pytest.raises(ConfigError, match="the package not_on_this_server must be installed"):
        initial_model._make(tmp_path)


def test_a_server_without_pytorch_or_file_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_server(tmp_path, Config())
    monkeypatch.setattr(initial_model, "has_pytorch", lambda: False)
    with pytest.raises(ConfigError, match="propose the run with --first-model"):
        initial_model._make(tmp_path)


@pytest.mark.parametrize("other", ["experiment.seed=6", "model.name=cnn_wide", "model.image_size=64"])
def test_a_first_model_of_another_run_is_not_taken(other: str, tmp_path: Path) -> None:
    settings = a_server(tmp_path, Config())
    settings.run.mkdir()
    assert initial.main(["initial", "--out", str(settings.run / FIRST_MODEL_FILE), "--set", other]) == 0
    with pytest.raises(RunError, match="must be made for the run: cnn, 2 classes"):
        initial_model._make(tmp_path)


@pytest.mark.parametrize(
    "wrong", [np.ones(4), np.array([np.nan], np.float32), np.array([np.inf], np.float32), np.ones(3, np.int32)]
)
def test_a_first_model_holds_finite_numbers_alone(wrong: np.ndarray, tmp_path: Path) -> None:
    facts = FirstModelFacts(architecture="cnn", classes=2, channels=1, image_size=28, seed=1, tensors=("weight",))
    path = tmp_path / FIRST_MODEL_FILE
    path.write_bytes(
        safetensors.save({"weight": wrong}, metadata={"confide_first_model": facts.model_dump_json()})
    )  # fmt: skip
    with pytest.raises(RunError, match="must hold finite float32 numbers"):
        FirstModel.read(path)


def test_a_file_that_is_no_first_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / FIRST_MODEL_FILE
    with pytest.raises(RunError, match="must be readable"):
        FirstModel.read(path)
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(RunError, match="must be in safetensors format"):
        FirstModel.read(path)
    path.write_bytes(safetensors.save({"weight": np.ones(3, np.float32)}))
    with pytest.raises(RunError, match="must be a first model of this version"):
        FirstModel.read(path)
    facts = FirstModelFacts(architecture="cnn", classes=2, channels=1, image_size=28, seed=1, tensors=("bias",))
    named = {"confide_first_model": facts.model_dump_json()}
    path.write_bytes(safetensors.save({"weight": np.ones(3, np.float32)}, metadata=named))
    with pytest.raises(RunError, match="must hold the tensors that it names"):
        FirstModel.read(path)
