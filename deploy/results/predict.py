"""``confide predict``: classify images with a trained model, at the threshold its hospitals' validation parts chose."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from client.data.contract import DataContract
from client.data.dicom import quiet
from client.data.examine import look_at
from client.data.mistakes import ADVICE, Finding
from client.data.pixels import UnusableImageError
from client.training import logits
from common.errors import DataError
from common.models import registry
from common.models.flat import share_parameters
from common.models.frozen import extract
from common.shards import MAX_FILE_BYTES, fit
from deploy.command import FILE, command, json_option
from deploy.results.model_file import CARD_FILE, TENSORS_FILE, ModelCard, load_model

NOT_A_DEVICE = "A research model, not a medical device: no decision about a patient may rest on it."


@dataclass(frozen=True)
class Prediction:
    """What the model says about one image."""

    file: str
    predicted: str
    probabilities: dict[str, float]
    """Class to probability; they sum to 1."""
    remarks: tuple[str, ...] = ()
    """Why the image may be unlike those that the model was trained for, as ``kind: reason``."""


@command(
    "predict",
    "Classify images with a trained model, at the threshold that its hospitals' validation parts chose. A research "
    "model, not a medical device.\n\n"
    f"MODEL is a run's folder, or one of {CARD_FILE} and {TENSORS_FILE}. IMAGE is PNG, JPEG or DICOM.",
    "./confide predict runs/0123456789ab image.png",
)
@click.argument("model", type=FILE)
@click.argument("images", nargs=-1, required=True, type=FILE, metavar="IMAGE...")
@json_option()
def main(model: Path, images: tuple[Path, ...], as_json: bool) -> int:
    """Classify the images named."""
    folder = model.parent if model.name in (CARD_FILE, TENSORS_FILE) else model
    flat, card = load_model(folder)
    predictions = predict(flat, card, images)
    if as_json:
        for prediction in predictions:
            print(json.dumps(vars(prediction)))
    else:
        _print_table(predictions, card)
    return 0


def predict(flat: NDArray[np.float32], card: ModelCard, images: Sequence[Path]) -> list[Prediction]:
    """Classify images, prepared exactly as a hospital prepares those it trains on.

    Args:
        flat: the model's parameters, float32, shape (d,).
        card: what the model is; its ``threshold`` decides between two classes, the largest probability between more.
        images: PNG, JPEG or DICOM files.

    Raises:
        DataError: an image cannot be used; names the file, the reason and the remedy. Nothing is classified then.
    """
    read = [_read(image, card) for image in images]
    inputs = _inputs(np.stack([pixels for pixels, _ in read]), card.architecture)
    network = registry.build(card.architecture, len(card.classes), card.channels, card.image_size, seed=0)
    share_parameters(network, torch.from_numpy(flat.copy()))
    rows = torch.softmax(logits(network, inputs).double(), dim=1).numpy()
    return [
        Prediction(
            str(image),
            card.classes[decide(row, card.threshold)],
            dict(zip(card.classes, row.tolist(), strict=True)),
            tuple(map(_remark, findings)),
        )
        for image, row, (_, findings) in zip(images, rows, read, strict=True)
    ]


def decide(probabilities: NDArray[np.float64], threshold: float | None) -> int:
    """Return the class: of two the second from ``threshold`` on; without a threshold the most probable one.

    >>> decide(np.array([0.7, 0.3]), 0.25), decide(np.array([0.7, 0.3]), None)
    (1, 0)
    """
    if threshold is None:
        return int(probabilities.argmax())
    return int(probabilities[1] >= threshold)


def _inputs(images: NDArray[np.uint8], architecture: str) -> torch.Tensor:
    """Return what the model takes: the images themselves, or their frozen features."""
    features = registry.frozen_features(architecture)
    return torch.from_numpy(images if features is None else np.concatenate(list(extract(features, images))))


def _read(path: Path, card: ModelCard) -> tuple[NDArray[np.uint8], tuple[Finding, ...]]:
    """Return an image as the model takes it, uint8 (channels, image_size, image_size), and what is odd about it."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path} must be a readable image: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise DataError(f"{path} must have at most {MAX_FILE_BYTES} bytes")
    contract = DataContract(card.task, card.classes, card.channels, card.image_size, 1, 0.0)
    try:
        with quiet():
            picture, findings = look_at(content, contract)
    except UnusableImageError as problem:
        advice = ADVICE[problem.mistake]
        detail = f" ({problem.detail})" if problem.detail else ""
        raise DataError(f"{path} cannot be used: {advice.reason}{detail}; {advice.remedy}") from None
    image = Image.fromarray(picture.pixels).convert("L" if card.channels == 1 else "RGB")
    return fit(image, card.image_size), findings


def _remark(finding: Finding) -> str:
    detail = f" ({finding.detail})" if finding.detail else ""
    return f"{finding.mistake.value}: {finding.advice.reason}{detail}"


def _print_table(predictions: Sequence[Prediction], card: ModelCard) -> None:
    rule = (
        "most probable class"
        if card.threshold is None
        else (f"{card.classes[1]} from {card.threshold:.3f} on, as validation records fixed it")
    )
    table = Table(title=f"{card.architecture} trained on {card.data_set} ({rule})", title_justify="left")
    table.add_column("image", overflow="fold")
    table.add_column("prediction", style="bold")
    for name in card.classes:
        table.add_column(name, justify="right")
    for prediction in predictions:
        shown = (f"{probability:.3f}" for probability in prediction.probabilities.values())
        table.add_row(prediction.file, prediction.predicted + (" (!)" if prediction.remarks else ""), *shown)
    console = Console()
    console.print(table)
    for prediction in predictions:
        for remark in prediction.remarks:
            console.print(
                f"(!) {prediction.file}: {remark}", style="red", markup=False, soft_wrap=True, highlight=False
            )
    for line in (*card.caveats, NOT_A_DEVICE):
        console.print(line, style="yellow", soft_wrap=True, highlight=False)
