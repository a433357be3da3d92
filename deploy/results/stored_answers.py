"""What a model said in a silent trial, one JSON object a line in a file of the hospital's own user; nothing leaves.

Each answer is stored once, by the image's and the model's SHA-256, so a nightly command over the same folder adds what
is new. An image that a check flagged is stored without an answer, so that it is counted and not lost. The file holds
accession numbers, by which answers find their reports; it holds no name, no patient identifier and no pixels.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.data.likeness import FURTHEST, LikenessReference
from client.data.picture_checks import thumbnail
from common.errors import RunError
from common.files import alone

_PATIENCE_SECONDS = 60.0
_BYTE = 255.0

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]

STATISTICS = ("score", "brightness", "contrast", "distance")
"""The features of an answer whose drift is looked for."""


class StoredAnswer(BaseModel):
    """One image and what the model said of it.

    Attributes:
        version: of this format.
        time: seconds since the Unix epoch at which the model was asked.
        model: SHA-256 of its tensors.
        classes: of the model.
        image: SHA-256 of the file.
        file: its name, without folder.
        accession_number: '' where the file does not say.
        study_instance_uid: likewise.
        predicted: the class; '' where the image was flagged and no answer stands.
        probabilities: by class; empty where no answer stands.
        score: log-odds of the second of two classes, of more classes those of the predicted one; None without answer.
        brightness: mean of the model's input, 0 to 1.
        contrast: its standard deviation.
        distance: from the task's images, 1 where hardly any is further away; None where that is not known.
        remarks: what the checks say of the image, as ``kind: reason``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    time: Finite
    model: Digest
    classes: tuple[str, ...]
    image: Digest = Field(repr=False)
    file: str = Field(repr=False)
    accession_number: str = Field(repr=False)
    study_instance_uid: str = Field(repr=False)
    predicted: str
    probabilities: dict[str, Finite]
    score: Finite | None
    brightness: Finite
    contrast: Finite
    distance: Finite | None
    remarks: tuple[str, ...]

    @property
    def stands(self) -> bool:
        """Whether there is an answer: the image was not flagged."""
        return bool(self.predicted)


def input_statistics(
    image: NDArray[np.uint8], reference: LikenessReference | None
) -> tuple[float, float, float | None]:
    """Return brightness, contrast and distance of an image as the model takes it, uint8 (channels, size, size)."""
    distance = None
    if reference is not None:
        distance = float(reference.distances(thumbnail(image)[None])[0]) / FURTHEST
    return float(image.mean()) / _BYTE, float(image.std()) / _BYTE, distance


def store(path: Path, answers: Iterable[StoredAnswer]) -> int:
    """Add those answers that the file lacks, durably, and return how many were added.

    Raises:
        RunError: the file cannot be read or written, or is not such a file.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        with alone(lock, _PATIENCE_SECONDS):
            _cut_unfinished(path)
            known = {(answer.image, answer.model) for answer in read(path)} if path.exists() else set()
            lines = []
            for answer in answers:
                if (answer.image, answer.model) not in known:
                    known.add((answer.image, answer.model))
                    lines.append(answer.model_dump_json() + "\n")
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise RunError(f"the file of answers must be writable: {error.strerror}") from None
    return len(lines)


def read(path: Path) -> tuple[StoredAnswer, ...]:
    """Return the answers in the order they were stored; a last line that was cut short is left out.

    Raises:
        RunError: the file cannot be read, or a line is not an answer; names the line only.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError as error:
        raise RunError(f"the file of answers must be readable: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RunError("the file of answers must be one that confide predict --store wrote") from None
    answers = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):  # Its writer was killed in the middle of it.
            continue
        try:
            answers.append(StoredAnswer.model_validate_json(line))
        except ValidationError as error:
            finding = error.errors(include_url=False, include_input=False)[0]
            raise RunError(f"the file of answers, line {number}, must be an answer: {finding['msg']}") from None
    return tuple(answers)


def _cut_unfinished(path: Path) -> None:
    """Remove what a writer that was killed left of its last line; the answer is not lost, it is made again."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
