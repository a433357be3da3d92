import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from common.errors import ConfideError, RunError
from common.models import registry
from common.run.model_facts import ModelFacts
from deploy.results.model_file import load_model, save_model

FACTS = ModelFacts(
    architecture="cnn",
    classes=("normal", "pneumonia"),
    channels=1,
    image_size=28,
    threshold=0.41,
    run_id="0" * 32,
    task="pneumonia",
    data_set="PneumoniaMNIST",
    privacy={"mode": "local", "epsilon": 3.2, "delta": 1e-4},
)


@pytest.fixture
def flat() -> NDArray[np.float32]:
    torch.set_num_threads(1)
    network = registry.build("cnn", 2, 1, 28, seed=7)
    vector: NDArray[np.float32] = torch.nn.utils.parameters_to_vector(network.parameters()).detach().numpy()
    return vector


def test_a_model_comes_back_bit_for_bit_with_what_was_said_about_it(tmp_path: Path, flat: NDArray[np.float32]) -> None:
    save_model(tmp_path, flat, FACTS)
    loaded, card = load_model(tmp_path)
    assert np.array_equal(loaded, flat)
    assert card.classes == ("normal", "pneumonia")
    assert card.threshold == 0.41
    assert card.privacy["epsilon"] == 3.2


def test_the_tensors_fit_the_network_by_name(tmp_path: Path, flat: NDArray[np.float32]) -> None:
    save_model(tmp_path, flat, FACTS)
    network = registry.build("cnn", 2, 1, 28, seed=1)
    network.load_state_dict(load_file(tmp_path / "model.safetensors"))
    vector = torch.nn.utils.parameters_to_vector(network.parameters()).detach().numpy()
    assert np.array_equal(vector, flat)


def test_a_vector_of_another_length_is_refused_before_anything_is_written(
    tmp_path: Path, flat: NDArray[np.float32]
) -> None:
    with pytest.raises(RunError, match=rf"a cnn has {len(flat)} float32 parameters, got float32 of shape \(5,\)"):
        save_model(tmp_path, flat[:5], FACTS)
    assert list(tmp_path.iterdir()) == []


def test_a_vector_of_another_precision_is_refused(tmp_path: Path, flat: NDArray[np.float32]) -> None:
    with pytest.raises(RunError, match="got float64"):
        save_model(tmp_path, flat.astype(np.float64), FACTS)


@pytest.mark.parametrize("place", [8, 200, -1])
def test_one_flipped_bit_in_the_tensors_is_refused(tmp_path: Path, flat: NDArray[np.float32], place: int) -> None:
    save_model(tmp_path, flat, FACTS)
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"must be the file model\.json was written for"):
        load_model(tmp_path)


def test_a_card_that_lists_other_tensors_is_refused(tmp_path: Path, flat: NDArray[np.float32]) -> None:
    save_model(tmp_path, flat, FACTS)
    path = tmp_path / "model.json"
    card = json.loads(path.read_text())
    card["tensors"][0]["shape"] = [1]
    path.write_text(json.dumps(card))
    with pytest.raises(RunError, match=r"must hold the float32 tensors model\.json lists"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("format_version", 1), ("sha256", "x"), ("image_size", 0), ("threshold", 1.5), ("code", "import os")],
)
def test_a_card_that_breaks_the_format_is_refused_by_its_key(
    tmp_path: Path, flat: NDArray[np.float32], key: str, value: object
) -> None:
    save_model(tmp_path, flat, FACTS)
    path = tmp_path / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(RunError, match=rf"must describe a model; {key}"):
        load_model(tmp_path)


def test_a_pickle_in_the_place_of_the_tensors_is_never_unpickled(tmp_path: Path, flat: NDArray[np.float32]) -> None:
    save_model(tmp_path, flat, FACTS)
    torch.save({"weights": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(RunError, match="its SHA-256 differs"):
        load_model(tmp_path)


def test_a_folder_without_a_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"a model is a folder with model\.json and model\.safetensors"):
        load_model(tmp_path)


def test_an_unknown_architecture_is_refused(tmp_path: Path, flat: NDArray[np.float32]) -> None:
    with pytest.raises(ConfideError, match="no_such_network"):
        save_model(tmp_path, flat, FACTS.model_copy(update={"architecture": "no_such_network"}))
