"""The model that a run begins with, as a file that comes with the run's proposal: a server then needs no PyTorch.

Whoever proposes the run makes the file, where PyTorch is installed (and, for a model out of a package, that package).
It is in safetensors format, so that no code in it can run: the model's tensors by their names, float32, and in the
file's metadata what they are (:class:`FirstModelFacts`). From it the server takes the weights of round 0, and later
the names that the tensors of ``model.safetensors`` have.

A server may send any first model, with or without such a file: hospitals take the weights of every round for arbitrary
numbers. ``confide audit verify`` makes the model of the run's seed again and compares.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors import numpy as safetensors

from common.complaints import complaint
from common.errors import RunError
from common.files import replace_file

FIRST_MODEL_FILE = "first-model.safetensors"
"""The name of the file in a run's folder."""

MAXIMUM_FIRST_MODEL_BYTES = 2 * 2**30
"""The most bytes of such a file: room for a model of 500 million parameters."""

_METADATA = "confide_first_model"


class FirstModelFacts(BaseModel):
    """What a first model is: everything that decides it, and what ``model.json`` says of every model of its kind."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    architecture: Annotated[str, Field(max_length=512)]
    """As :attr:`common.config.ModelConfig.architecture` returns it."""
    classes: Annotated[int, Field(ge=2, le=4096)]
    channels: Annotated[int, Field(ge=1, le=4)]
    image_size: Annotated[int, Field(ge=1, le=4096)]
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]
    tensors: Annotated[tuple[str, ...], Field(min_length=1)]
    """Their names, in the order of the flat vector."""
    preparation: dict[str, Any] | None = None
    """What is done around the network (``deploy/results/preparation.py``); None where its maker does not say."""

    def fits(self, architecture: str, classes: int, channels: int, image_size: int) -> bool:
        """Return whether it is a model of this architecture, for images and classes like these."""
        return (self.architecture, self.classes, self.channels, self.image_size) == (
            architecture, classes, channels, image_size,
        )  # fmt: skip


@dataclass(frozen=True)
class FirstModel:
    """A first model in memory.

    Attributes:
        facts: what it is.
        shapes: of the tensors, in their order.
        flat: all of them, (d,) float32.
    """

    facts: FirstModelFacts
    shapes: tuple[tuple[int, ...], ...]
    flat: NDArray[np.float32] = field(repr=False)

    def write(self, path: Path) -> None:
        """Replace the file, whole or not at all.

        Raises:
            RunError: it cannot be written.
        """
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])
        parts = np.split(self.flat, ends[:-1])
        named = zip(self.facts.tensors, parts, self.shapes, strict=True)
        content = safetensors.save(
            {name: part.reshape(shape) for name, part, shape in named},
            metadata={"format": "pt", _METADATA: self.facts.model_dump_json()},
        )
        replace_file(path, content)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file that :meth:`write` wrote.

        Raises:
            RunError: it cannot be read, is no first model of this version, or holds numbers that are not finite.
        """
        try:
            if path.stat().st_size > MAXIMUM_FIRST_MODEL_BYTES:
                raise RunError(f"{path.name} must be at most {MAXIMUM_FIRST_MODEL_BYTES} bytes long")
            with safe_open(path, framework="np") as file:
                facts = FirstModelFacts.model_validate_json((file.metadata() or {}).get(_METADATA, ""))
                if sorted(file.keys()) != sorted(facts.tensors):
                    raise RunError(f"{path.name} must hold the tensors that it names, each once")
                tensors = [file.get_tensor(name) for name in facts.tensors]
        except OSError as error:
            raise RunError(f"{path.name} must be readable: {error.strerror or type(error).__name__}") from None
        except ValidationError as error:
            raise RunError(
                f"{path.name} must be a first model of this version; {complaint(error, 'it')}; make it anew with "
                "`confide model initial`"
            ) from None
        except (SafetensorError, ValueError, TypeError, OverflowError) as error:
            raise RunError(f"{path.name} must be in safetensors format, got {type(error).__name__}") from None
        if any(tensor.dtype != np.float32 or not np.isfinite(tensor).all() for tensor in tensors):
            raise RunError(f"{path.name} must hold finite float32 numbers; make it anew with `confide model initial`")
        flat = np.concatenate([tensor.reshape(-1) for tensor in tensors])
        return cls(facts, tuple(tensor.shape for tensor in tensors), flat)

    def require(self, architecture: str, classes: int, channels: int, image_size: int, seed: int) -> None:
        """Check that it is the first model of a run.

        Raises:
            RunError: it was made for another one.
        """
        facts = self.facts
        if facts.fits(architecture, classes, channels, image_size) and facts.seed == seed:
            return
        raise RunError(
            f"{FIRST_MODEL_FILE} must be made for the run: {architecture}, {classes} classes, {channels} channels, "
            f"{image_size} pixels, seed {seed}; got {facts.architecture}, {facts.classes} classes, {facts.channels} "
            f"channels, {facts.image_size} pixels, seed {facts.seed}; make it anew with `confide model initial`"
        )
