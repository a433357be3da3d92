import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.task import TaskKind
from deploy.datasets import phantom
from deploy.results.export import main
from deploy.results.model_file import ModelCard
from deploy.results.monai_bundle import metadata
from deploy.results.onnx_file import INPUT
from tests.support.exported_model import answers_of, model_of

MANDATORY = {
    "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task", "description",
    "authors", "copyright", "network_data_format",
}  # fmt: skip
"""The keys of ``metadata.json``, by MONAI's bundle specification."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    model_of(folder, "cnn")
    assert main(["export", str(folder), "--monai"]) == 0
    return folder / "monai_bundle"


def _read(bundle: Path, name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((bundle / "configs" / name).read_text(encoding="utf-8"))
    return read


def test_a_bundle_has_the_files_that_the_specification_names(bundle: Path) -> None:
    files = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()}
    assert files == {
        "LICENSE", "configs/inference.json", "configs/metadata.json", "docs/README.md", "models/model.onnx",
        "scripts/__init__.py", "scripts/onnx_network.py",
    }  # fmt: skip


def test_the_metadata_says_what_the_specification_asks_for(bundle: Path) -> None:
    said = _read(bundle, "metadata.json")
    assert MANDATORY - said.keys() == set()
    assert said["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "normal", "1": "pneumonia"}
    assert said["network_data_format"]["inputs"]["image"]["num_channels"] == 1
    assert "not a medical device" in said["description"]
    assert "at epsilon 3" in said["description"]


def test_the_network_of_a_bundle_answers_as_the_onnx_file(bundle: Path) -> None:
    config = _read(bundle, "inference.json")
    assert config["network_def"]["_target_"] == "scripts.onnx_network.OnnxNetwork"
    spec = importlib.util.spec_from_file_location("onnx_network", bundle / "scripts" / "onnx_network.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.OnnxNetwork(str(bundle / "models" / "model.onnx"))
    pictures = phantom.chest(5, 40, seed=9).images
    expected, _ = answers_of((bundle / "models" / "model.onnx").read_bytes(), pictures)
    assert np.array_equal(network(torch.from_numpy(pictures).float()).numpy(), expected)
    assert INPUT == "image"


def test_a_bundle_of_a_model_of_labels_gives_each_its_threshold(tmp_path: Path) -> None:
    thresholds = (0.5, 0.45, 0.6)
    said = {"kind": TaskKind.MULTILABEL, "classes": ("edema", "mass", "none"), "thresholds": thresholds}
    model_of(tmp_path, "cnn", threshold=None, changed=said)
    assert main(["export", str(tmp_path), "--monai"]) == 0
    bundle = tmp_path / "monai_bundle"
    metadata = _read(bundle, "metadata.json")
    assert metadata["threshold"] == list(thresholds)
    assert metadata["task"].endswith("edema, mass, none")
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "edema", "1": "mass", "2": "none"}
    assert "mass 0.4500" in (bundle / "docs" / "README.md").read_text()


TYPES: dict[str, type] = {
    "schema": str, "version": str, "changelog": dict, "monai_version": str, "pytorch_version": str,
    "numpy_version": str, "required_packages_version": dict, "task": str, "description": str, "authors": str,
    "copyright": str, "data_source": str, "data_type": str, "intended_use": str, "network_data_format": dict,
}  # fmt: skip
"""The type of each key by MONAI's schema of 2024-07-25 (``meta_schema_20240725.json``), of those that a bundle has."""

OF_A_TENSOR: dict[str, type] = {
    "type": str, "format": str, "num_channels": int, "spatial_shape": list, "dtype": str, "value_range": list,
    "is_patch_data": bool, "channel_def": dict,
}  # fmt: skip
"""What the same schema says of an input or output; the first six must be there."""


@pytest.mark.parametrize("kind", ["two classes", "three classes", "labels"])
def test_the_metadata_keeps_the_types_of_monais_schema(tmp_path: Path, kind: str) -> None:
    said = metadata(card_of(tmp_path, kind))
    assert {key for key, wanted in TYPES.items() if not isinstance(said[key], wanted)} == set()
    for ends in said["network_data_format"].values():
        for tensor in ends.values():
            assert tensor.keys() == OF_A_TENSOR.keys()
            assert {key for key, wanted in OF_A_TENSOR.items() if not isinstance(tensor[key], wanted)} == set()
            assert all(isinstance(size, int | str) for size in tensor["spatial_shape"])
            assert all(isinstance(end, int | float) for end in tensor["value_range"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["two classes", "three classes", "labels"])
def test_monais_own_checks_accept_a_bundle(tmp_path: Path, kind: str) -> None:
    """MONAI is no dependency: this runs where it is installed. Its schema is downloaded, unless a file is named."""
    pytest.importorskip("monai")
    pytest.importorskip("ignite")
    card_of(tmp_path, kind)
    assert main(["export", str(tmp_path), "--monai"]) == 0
    bundle, meta = tmp_path / "monai_bundle", ("--meta_file", "configs/metadata.json")
    schema = os.environ.get("CONFIDE_MONAI_SCHEMA")
    if schema:
        (tmp_path / "schema.json").write_bytes(Path(schema).read_bytes())
    for words in (
        ("verify_metadata", *meta, "--filepath", str(tmp_path / "schema.json")),
        ("verify_net_in_out", "network", *meta, "--config_file", "configs/inference.json", "--any", "40"),
    ):
        done = subprocess.run(
            (sys.executable, "-m", "monai.bundle", *words), cwd=bundle, capture_output=True, text=True, check=False,
            timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "verified with no error" in done.stdout + done.stderr


def card_of(folder: Path, kind: str) -> ModelCard:
    changed: dict[str, dict[str, Any]] = {
        "labels": {"kind": TaskKind.MULTILABEL, "classes": ("edema", "mass", "none"), "thresholds": (0.5, 0.45, 0.6)}
    }
    return model_of(folder, "cnn", threshold=0.45 if kind == "two classes" else None, changed=changed.get(kind))
