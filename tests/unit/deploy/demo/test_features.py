from pathlib import Path

import numpy as np
import pytest

from client.features import model_inputs
from client.warps import copies_of
from common.config import Config, Warp, replace
from deploy.datasets.datasets import DataSet, obtain
from deploy.demo.features import bytes_needed, features_for, give

CONFIG = replace(
    Config(),
    data={"source": "phantom", "phantom_records": 200},
    model={"name": "scattering_linear"},
    training={"copies": 2, "warp": "chest"},
)


@pytest.fixture(scope="module")
def data() -> DataSet:
    return obtain(CONFIG.data, "pneumonia", 28)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.mark.long
def test_features_are_computed_once_and_a_hospital_finds_its_own_among_them(
    data: DataSet, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    files = features_for(data, CONFIG, said.append, kept)
    assert files
    assert any("computed once" in line for line in said)
    give(files, tmp_path / "cache")
    give(files, tmp_path / "cache")  # A hospital that has them keeps them.

    def computing(*_: object) -> None:
        raise AssertionError("features that are there were computed anew")

    own = data.parts["train"].images[5:40:3]
    expected = model_inputs("scattering_linear", copies_of(own, Warp.CHEST, 2), tmp_path / "other")
    monkeypatch.setattr("client.features.extract", computing)
    found = model_inputs("scattering_linear", copies_of(own, Warp.CHEST, 2), tmp_path / "cache")
    assert np.allclose(found, expected, atol=1e-3)
    monkeypatch.setattr("deploy.demo.features.ProcessPoolExecutor", computing)
    assert features_for(data, CONFIG, said.append, kept) == files
    assert bytes_needed(data, CONFIG) == 4 * 3472 * sum(
        len(part) * (1 if split == "test" else 2) for split, part in data.parts.items()
    )


def test_a_model_on_images_needs_none(data: DataSet, kept: Path) -> None:
    config = replace(Config(), data={"source": "phantom"})
    assert features_for(data, config, print, kept) == ()
    assert bytes_needed(data, config) == 0
    give((), kept / "nowhere")
    assert not (kept / "nowhere").exists()
