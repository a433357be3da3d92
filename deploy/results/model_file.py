"""A trained model on disk: ``model.safetensors`` with named tensors, and ``model.json`` that says what they are.

Nothing is unpickled on the way back: safetensors holds numbers only, and the JSON pins the file by its SHA-256.
"""

import hashlib
import json
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from common.complaints import complaint
from common.errors import RunError
from common.files import replace_file
from common.models.first_model import FIRST_MODEL_FILE, FirstModel
from common.run.model_facts import ModelFacts
from deploy.results.preparation import Preparation, preparation_of
from server.initial_model import has_pytorch

TENSORS_FILE = "model.safetensors"
CARD_FILE = "model.json"


class TensorShape(BaseModel):
    """One parameter tensor; their order in the card is the order in the flat vector."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    shape: tuple[Annotated[int, Field(ge=1)], ...]


class ModelCard(ModelFacts):
    """The whole of ``model.json``."""

    format_version: Literal[2] = 2
    preparation: Preparation
    """What is done around the network: enough to use the tensors without Confide."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """The SHA-256 of ``model.safetensors``."""
    tensors: Annotated[tuple[TensorShape, ...], Field(min_length=1)]


def save_model(folder: Path, flat: NDArray[np.float32], facts: ModelFacts) -> ModelCard:
    """Write a model into ``folder``, the card last, so that a card never describes a missing file.

    Names of tensors, and what is done around the network, are those of the run's first model, where its file lies in
    the folder (``common/models/first_model.py``); only without that file is the network made, which takes PyTorch.

    Args:
        folder: an existing folder; an earlier model in it is replaced.
        flat: the parameters, float32, shape (d,), in the order of ``parameters_to_vector``.
        facts: what ``model.json`` says.

    Raises:
        RunError: the architecture has another number of parameters, the folder cannot be written, or there is neither
            a first model nor PyTorch.
    """
    shapes, preparation = _layout(folder, facts)
    expected = sum(prod(tensor.shape) for tensor in shapes)
    if flat.shape != (expected,) or flat.dtype != np.float32:
        raise RunError(
            f"a {facts.architecture} has {expected} float32 parameters, got {flat.dtype} of shape {flat.shape}"
        )
    ends = list(accumulate(prod(tensor.shape) for tensor in shapes))
    parts = np.split(flat, ends[:-1])
    encoded = safetensors.save(
        {tensor.name: part.reshape(tensor.shape) for tensor, part in zip(shapes, parts, strict=True)},
        metadata={"format": "pt", "run_id": facts.run_id},
    )
    card = ModelCard(
        **facts.model_dump(),
        preparation=preparation,
        sha256=hashlib.sha256(encoded).hexdigest(),
        tensors=shapes,
    )
    replace_file(folder / TENSORS_FILE, encoded)
    replace_file(folder / CARD_FILE, (card.model_dump_json(indent=2) + "\n").encode())
    return card


def load_model(folder: Path) -> tuple[NDArray[np.float32], ModelCard]:
    """Read a model that :func:`save_model` wrote; no code in the file can run.

    Returns:
        The parameters, float32, shape (d,), in the order of ``parameters_to_vector``; and the card.

    Raises:
        RunError: a file is missing or broken, or the tensors are not those the card pins.
    """
    try:
        card = ModelCard.model_validate_json((folder / CARD_FILE).read_bytes())
        encoded = (folder / TENSORS_FILE).read_bytes()
    except OSError as error:
        raise RunError(
            f"a model is a folder with {CARD_FILE} and {TENSORS_FILE}; {error.filename}: {error.strerror}"
        ) from None
    except ValidationError as error:
        raise RunError(f"{folder / CARD_FILE} must describe a model; {complaint(error, 'the file')}") from None
    if hashlib.sha256(encoded).hexdigest() != card.sha256:
        raise RunError(f"{folder / TENSORS_FILE} must be the file {CARD_FILE} was written for; its SHA-256 differs")
    try:
        tensors = safetensors.load(encoded)
    except (SafetensorError, KeyError) as error:
        raise RunError(f"{folder / TENSORS_FILE} must be in safetensors format: {error}") from None
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    if found != {tensor.name: (tensor.shape, np.dtype(np.float32)) for tensor in card.tensors}:
        raise RunError(f"{folder / TENSORS_FILE} must hold the float32 tensors {CARD_FILE} lists; it holds others")
    return np.concatenate([tensors[tensor.name].reshape(-1) for tensor in card.tensors]), card


def _layout(folder: Path, facts: ModelFacts) -> tuple[tuple[TensorShape, ...], Preparation]:
    """Return an architecture's tensors, in the order of ``parameters_to_vector``, and what is done around them."""
    kind = (facts.architecture, len(facts.classes), facts.channels, facts.image_size)
    file = folder / FIRST_MODEL_FILE
    if file.exists():
        first = FirstModel.read(file)
        if first.facts.fits(*kind) and first.facts.preparation is not None:
            named = zip(first.facts.tensors, first.shapes, strict=True)
            shapes = tuple(TensorShape(name=name, shape=shape) for name, shape in named)
            return shapes, _read_preparation(first.facts.preparation)
    if not has_pytorch():
        raise RunError(
            f"{FIRST_MODEL_FILE} of the run must lie in its folder where PyTorch is not installed; make it anew with "
            "`confide model initial`"
        )
    return parameter_shapes(facts), preparation_of(*kind)


def _read_preparation(said: dict[str, Any]) -> Preparation:
    try:
        return Preparation.model_validate_json(json.dumps(said))
    except ValidationError as error:
        raise RunError(f"{FIRST_MODEL_FILE} must be of this version; {complaint(error, 'it')}") from None


def parameter_shapes(facts: ModelFacts) -> tuple[TensorShape, ...]:
    """Return names and shapes of an architecture's parameters, in the order of ``parameters_to_vector``."""
    from common.models import registry

    network = registry.build(facts.architecture, len(facts.classes), facts.channels, facts.image_size, seed=0)
    return tuple(TensorShape(name=name, shape=tuple(values.shape)) for name, values in network.named_parameters())
