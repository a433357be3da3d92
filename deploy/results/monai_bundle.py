"""A MONAI bundle around the ONNX file, as https://docs.monai.io/en/stable/mb_specification.html lays one out.

::

    monai_bundle/
      configs/metadata.json     what the model is, what it takes and gives
      configs/inference.json    a folder of pictures in, predictions.csv out
      models/model.onnx
      scripts/onnx_network.py   runs the file as a torch module
      docs/README.md
      LICENSE
"""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.errors import RunError
from common.files import replace_file
from common.task import TaskKind
from deploy.results.model_file import ModelCard
from deploy.source_tree import ROOT

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"

MONAI = "1.6.1"
"""The release with which MONAI's own checks were run on a bundle; it is no dependency of Confide."""

VERSION = "1.0.0"
_NETWORK = Path(__file__).with_name("monai_network.py")


def write_bundle(folder: Path, onnx_file: bytes, card: ModelCard) -> None:
    """Write a bundle; files of an earlier one are replaced.

    Args:
        folder: made when it does not exist.
        onnx_file: from :func:`deploy.results.onnx_file.to_onnx`.
        card: what the model is.

    Raises:
        RunError: the folder cannot be written.
    """
    files: Mapping[str, bytes] = {
        "models/model.onnx": onnx_file,
        "scripts/__init__.py": b"",
        "scripts/onnx_network.py": _NETWORK.read_bytes(),
        "configs/metadata.json": _as_json(metadata(card)),
        "configs/inference.json": _as_json(inference(card)),
        "docs/README.md": _readme(card).encode(),
        "LICENSE": (ROOT / "LICENSE").read_bytes(),
    }
    for name, content in files.items():
        try:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"--out must name a folder that can be written: {error.strerror}") from None
        replace_file(folder / name, content)


def metadata(card: ModelCard) -> dict[str, Any]:
    """Return ``metadata.json``."""
    epsilon = card.privacy.get("epsilon")
    privacy = "without differential privacy" if epsilon is None else f"at epsilon {epsilon:g}"
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "changelog": {VERSION: f"run {card.run_id}"},
        "monai_version": MONAI,
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"onnxruntime": version("onnxruntime"), "pillow": version("pillow")},
        "name": f"Confide {card.task}",
        "task": f"{card.task}: {', '.join(card.classes) if _gives_labels(card) else ' or '.join(card.classes)}",
        "description": (
            f"{card.architecture}, trained by hospitals together on {card.data_set} {privacy}. Research, not a medical "
            f"device. {' '.join(card.caveats)}"
        ).strip(),
        "authors": "the hospitals of the run",
        "copyright": "of the hospitals of the run",
        "data_source": card.data_set,
        "data_type": "png",
        "intended_use": "Research. No decision about a patient may rest on it.",
        "privacy": card.privacy,
        "threshold": list(card.thresholds) if _gives_labels(card) else card.threshold,
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude" if card.channels == 1 else "rgb",
                    "num_channels": card.channels,
                    "spatial_shape": ["*", "*"],
                    "dtype": "float32",
                    "value_range": [0, 255],
                    "is_patch_data": False,
                    "channel_def": {"0": "image"} if card.channels == 1 else {"0": "R", "1": "G", "2": "B"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "probabilities",
                    "format": "classification",
                    "num_channels": len(card.classes),
                    "spatial_shape": [1, len(card.classes)],
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": False,
                    "channel_def": {str(index): name for index, name in enumerate(card.classes)},
                }
            },
        },
    }


def inference(card: ModelCard) -> dict[str, Any]:
    """Return ``inference.json``."""
    mode = "L" if card.channels == 1 else "RGB"
    return {
        "imports": ["$import glob"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cpu')",
        "datalist": "$[{'image': file} for file in sorted(glob.glob(@dataset_dir + '/*.png'))]",
        "network_def": {
            "_target_": "scripts.onnx_network.OnnxNetwork",
            "path": "$@bundle_root + '/models/model.onnx'",
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "LoadImaged",
                    "keys": "image",
                    "reader": "PILReader",
                    "converter": f"$lambda picture: picture.convert('{mode}')",
                    "reverse_indexing": False,
                    "ensure_channel_first": True,
                },
                {"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.float32"},
            ],
        },
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "Compose", "transforms": [{"_target_": "Identityd", "keys": "pred"}]},
        "handlers": [
            {
                "_target_": "ClassificationSaver",
                "output_dir": "@output_dir",
                "batch_transform": "$lambda batch: [item['image'].meta for item in batch]",
                "output_transform": "$monai.handlers.from_engine(['pred'])",
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
            "amp": False,
        },
        "run": ["$@evaluator.run()"],
    }


def _readme(card: ModelCard) -> str:
    decided = "The most probable class is the answer."
    if card.threshold is not None:
        decided = f"*{card.classes[1]}* is the answer from a probability of {card.threshold:.4f} on."
    if _gives_labels(card):
        told = (f"{name} {least:.4f}" for name, least in zip(card.classes, card.thresholds, strict=True))
        decided = f"A picture may have any number of them, each from its own probability on: {', '.join(told)}."
    return (
        f"# {card.task} on {card.data_set}\n\n"
        f"A research model of Confide, not a medical device. {' '.join(card.caveats)}\n\n"
        "Put PNG files into `images` and run, in this folder, with monai, pytorch-ignite and onnxruntime installed:\n\n"
        "```\npython -m monai.bundle run --config_file configs/inference.json\n```\n\n"
        f"`eval/predictions.csv` then has a row for each: the probabilities of {', '.join(card.classes)}. {decided}\n"
    )


def _gives_labels(card: ModelCard) -> bool:
    """Return whether a picture may have any number of the classes."""
    return card.kind is TaskKind.MULTILABEL


def _as_json(tree: dict[str, Any]) -> bytes:
    return (json.dumps(tree, indent=2, allow_nan=False) + "\n").encode()
