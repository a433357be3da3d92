"""A small model to export, and what onnxruntime says of pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from common.models import registry
from common.models.flat import flat_parameters
from common.models.registry import OnImages
from common.run.model_facts import ModelFacts
from deploy.results.model_file import ModelCard, save_model


def model_of(
    folder: Path, name: str, channels: int = 1, threshold: float | None = 0.45, changed: dict[str, Any] | None = None
) -> ModelCard:
    """Save a model whose answers differ from picture to picture."""
    torch.set_num_threads(1)
    classes = ("normal", "pneumonia") if threshold is not None else ("none", "mild", "severe")
    size = registry.smallest_image(name)
    facts = ModelFacts(
        architecture=name, classes=classes, channels=channels, image_size=size, threshold=threshold, run_id="0" * 32,
        task="pneumonia", data_set="phantom", privacy={"mode": "local", "epsilon": 3.0, "delta": 1e-4},
        caveats=("Data set phantom: procedural images.",),
    ).model_copy(update=changed or {})  # fmt: skip
    flat = flat_parameters(registry.build(name, len(classes), channels, size, seed=3))
    if not isinstance(registry.MODELS.get(name), OnImages):
        flat = np.random.default_rng(2).normal(0, 0.1, flat.shape).astype(np.float32)
    return save_model(folder, flat, facts)


def answers_of(encoded: bytes, pictures: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    session = onnxruntime.InferenceSession(encoded, providers=["CPUExecutionProvider"])
    probabilities, decision = session.run(None, {"image": pictures})
    return probabilities, decision
