"""The files that ``confide predict`` is asked about, and the table that it writes of its answers."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.data.readers import HEAD_BYTES, IMAGE_ENDINGS, reader_of
from common.errors import DataError
from common.files import replace_file
from deploy.results.model_file import ModelCard


@dataclass(frozen=True)
class Prediction:
    """What the model says about one image."""

    file: str
    predicted: str
    probabilities: dict[str, float]
    """Class to probability; they sum to 1."""
    remarks: tuple[str, ...] = ()
    """Why the image may be unlike those that the model was trained for, as ``kind: reason``."""
    prevalence: float | None = None
    """The share of the second class that the probabilities are given for; None for the model's own."""


@dataclass(frozen=True)
class Unanswered:
    """A file that got no answer."""

    file: str
    error: str


def files_of(named: Sequence[Path]) -> tuple[list[Path], int]:
    """Return the files to ask about, and how many files in folders are no images.

    A folder stands for the images below it, in the order of their names. A file that is named itself is always asked
    about, and so is one in a folder that has an image's ending, be it damaged or not.

    Raises:
        DataError: there is no image below the folders.
    """
    files: list[Path] = []
    passed_over = 0
    for path in named:
        if not path.is_dir():
            files.append(path)
            continue
        for file in _below(path):
            if file.suffix.lower() in IMAGE_ENDINGS or _begins_as_image(file):
                files.append(file)
            else:
                passed_over += 1
    if not files:
        raise DataError(f"there must be an image to ask about, got folders with {passed_over} other files")
    return files, passed_over


def write_table(path: Path, answers: Sequence[Prediction], unanswered: Sequence[Unanswered], card: ModelCard) -> None:
    """Write a row for each file: answer, probabilities, remarks, and why it got no answer.

    Where the probabilities are for a reader's own prevalence, each row of an answer says for which.

    Raises:
        RunError: the file cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    mixed = ["prevalence"] if any(answer.prevalence is not None for answer in answers) else []
    table.writerow(["file", "predicted", *card.classes, *mixed, "remarks", "error"])
    for answer in answers:
        figures = [f"{answer.probabilities[name]:.6f}" for name in card.classes]
        prevalence = [f"{answer.prevalence:g}" for _ in mixed]
        table.writerow([answer.file, answer.predicted, *figures, *prevalence, "; ".join(answer.remarks), ""])
    for each in unanswered:
        table.writerow([each.file, "", *("" for _ in (*card.classes, *mixed)), "", each.error])
    replace_file(path, text.getvalue().encode())


def _below(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def _begins_as_image(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return reader_of(file.read(HEAD_BYTES)) is not None
    except OSError:
        return True  # It is asked about, and told why it cannot be read.
