"""``confide hospital list-images``: begins a manifest from what the headers of a PACS export say; nothing leaves.

Labels come from a table that the hospital has (of findings by accession number, say), or are filled in by hand.
"""

import argparse
import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from client.data.catalogue import image_files
from client.data.dicom import DECODER_ERRORS, parse_dicom, quiet
from client.data.pixels import UnusableImageError, is_dicom
from common.errors import DataError
from common.shards import COLUMNS, MANIFEST_NAME, MAX_FILE_BYTES


class Key(StrEnum):
    """What a table of labels may name an image by; the value is its column here and there."""

    ACCESSION_NUMBER = "accession_number"
    PATIENT_ID = "patient_id"
    STUDY_INSTANCE_UID = "study_instance_uid"
    FILE = "file"


_KEYWORDS = {
    Key.ACCESSION_NUMBER: "AccessionNumber",
    Key.PATIENT_ID: "PatientID",
    Key.STUDY_INSTANCE_UID: "StudyInstanceUID",
}

_COLUMNS = (*COLUMNS, Key.ACCESSION_NUMBER.value, Key.STUDY_INSTANCE_UID.value, "modality")
"""Those of a manifest, then what helps to fill in the labels; a check reads past the others."""


@dataclass(frozen=True)
class Listed:
    """How many images were listed, and how many of them have a label."""

    images: int
    labelled: int


def main(argv: Sequence[str]) -> int:
    """Write the manifest; argv begins with the command's last word.

    Raises:
        DataError: there are no images, a manifest is there already, or the table of labels has not the columns.
    """
    arguments = _parser().parse_args(argv[1:])
    labels = read_labels(arguments.labels, arguments.key) if arguments.labels else {}
    listed = list_images(arguments.path, labels, arguments.key)
    print(f"{listed.images} images are listed in {arguments.path / MANIFEST_NAME}, {listed.labelled} with a label")
    if listed.labelled < listed.images:
        print("fill in the label of the others or delete their rows, then run: confide hospital check-data")
    return 0


def list_images(folder: Path, labels: Mapping[str, str], key: Key) -> Listed:
    """Write ``manifest.csv`` into a folder of images.

    Args:
        folder: of the export, with any folders below it.
        labels: by what ``key`` names.
        key: column that ``labels`` are found by.

    Raises:
        DataError: the folder has a manifest already, or no image.
    """
    if not folder.is_dir():
        raise DataError("the export must be a folder that exists")
    if (folder / MANIFEST_NAME).exists():
        raise DataError(f"{MANIFEST_NAME} is there already; move it away to begin anew")
    with quiet():
        rows = list(_rows(folder, labels, key))
    if not rows:
        raise DataError("there is no PNG, JPEG or DICOM file below this folder")
    try:
        with (folder / MANIFEST_NAME).open("x", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, _COLUMNS)
            table.writeheader()
            table.writerows(rows)
    except OSError as error:
        raise DataError(f"{MANIFEST_NAME} could not be written: {error.strerror}") from None
    return Listed(len(rows), sum(bool(row["label"]) for row in rows))


def read_labels(path: Path, key: Key) -> dict[str, str]:
    """Read a table with the column that ``key`` names and the column ``label``.

    Raises:
        DataError: it is not a UTF-8 table with these columns, or gives one key two labels; names the line only.
    """
    labels: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, strict=True)
            missing = {key.value, "label"} - set(table.fieldnames or ())
            if missing:
                raise DataError(f"--labels must have the columns {key.value},label; missing: {', '.join(missing)}")
            for row in table:
                name, label = (row[key.value] or "").strip(), (row["label"] or "").strip()
                if labels.setdefault(name, label) != label:
                    raise DataError(f"--labels, line {table.line_num}: this {key.value} has another label further up")
    except OSError as error:
        raise DataError(f"--labels must be a readable file: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error):
        raise DataError("--labels must be a CSV file with commas, saved as 'CSV UTF-8'") from None
    return labels


def _rows(folder: Path, labels: Mapping[str, str], key: Key) -> Iterator[dict[str, str]]:
    for file in image_files(folder):
        row = {**dict.fromkeys(_COLUMNS, ""), "file": file, **_header(folder / file)}
        yield {**row, "label": labels.get(row[key.value], "")}


def _header(path: Path) -> dict[str, str]:
    """Return what a DICOM header names; nothing for other files and for those a check will find damaged."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES)
        if not is_dicom(content):
            return {}
        dataset = parse_dicom(content)
        named = {key.value: str(dataset.get(keyword, "") or "").strip() for key, keyword in _KEYWORDS.items()}
        return {**named, "modality": str(dataset.get("Modality", "") or "")}
    except (OSError, UnusableImageError, *DECODER_ERRORS):
        return {}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="confide hospital list-images", description=__doc__)
    parser.add_argument("path", type=Path, help=f"the export's folder; {MANIFEST_NAME} is written into it")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="a CSV table with the columns KEY and label")
    parser.add_argument(
        "--key", type=Key, choices=list(Key), default=Key.ACCESSION_NUMBER, help="default: accession_number"
    )
    return parser
