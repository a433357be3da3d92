"""Writes clean copies of a hospital's images, each as its reader in :mod:`client.data.readers` makes it.

Patients become ``patient-000001`` and so on, in an order drawn at random. The key of the pseudonyms is not kept.
What is burned into the pixels cannot be cleaned: images with, or suspected of, burned-in text are left out.
"""

import csv
import secrets
from collections.abc import Iterator
from pathlib import Path

from client.data.archives import Archives
from client.data.catalogue import DataLayout, ListedImage, read_catalogue
from client.data.contract import DataContract
from client.data.examine import read_file
from client.data.hospital_data import Report
from client.data.mistakes import Mistake
from client.data.pixels import UnusableImageError
from client.data.readers import Pseudonyms, clean_copy, quiet
from client.data.survey import choose_split
from common.errors import DataError
from common.files import make_private_folder
from common.shards import (
    COLUMNS,
    MANIFEST_NAME,
)

_LEFT_OUT = frozenset({Mistake.BURNED_IN_TEXT, Mistake.BURNED_IN_TEXT_SUSPECTED})


def deidentify(folder: Path, contract: DataContract, report: Report, out: Path) -> int:
    """Write clean copies of every usable image into a new folder, with a manifest.

    Args:
        folder: the hospital's data: a manifest with images, or class folders.
        contract: what the run asks.
        report: of the check; images with burned-in text are left out.
        out: made if missing; must be empty.

    Returns:
        How many copies were written.

    Raises:
        DataError: ``out`` holds something, lies inside the data, or cannot be written, or the data is an npz file.
    """
    catalogue = read_catalogue(folder, contract.meaning)
    if catalogue.layout is DataLayout.NPZ:
        raise DataError("an npz file holds pixels alone; there is nothing to clean")
    if out.exists() and any(out.iterdir()):
        raise DataError("--deidentify must name a new or empty folder")
    if out.resolve().is_relative_to(catalogue.root):
        raise DataError("--deidentify must name a folder outside the data")
    left_out = {finding.where for finding in report.findings if finding.mistake in _LEFT_OUT and not finding.accepted}
    kept = [entry for entry in catalogue.entries if entry.file not in left_out]
    secrets.SystemRandom().shuffle(kept)
    try:
        make_private_folder(out / "images")
        with (
            quiet(),
            Archives(catalogue.root) as archives,
            (out / MANIFEST_NAME).open("w", encoding="utf-8", newline="") as file,
        ):
            rows = list(_clean_all(archives, kept, contract, out))
            csv.writer(file).writerows([COLUMNS, *rows])
    except OSError as error:
        raise DataError(f"the clean copies could not be written: {error.strerror}; see to space and rights") from None
    return len(rows)


def _clean_all(
    archives: Archives, entries: list[ListedImage], contract: DataContract, out: Path
) -> Iterator[tuple[str, str, str, str]]:
    """Write copies one by one and yield their rows of the manifest; what has no label or can't be read is left out."""
    pseudonyms = Pseudonyms()
    for number, entry in enumerate(entries):
        if entry.label is None:
            continue
        try:
            copy = clean_copy(read_file(archives, entry.file), entry.patient, pseudonyms)
        except UnusableImageError:
            continue
        name = f"images/{number:06d}{copy.ending}"
        path = out / name
        path.touch(mode=0o600)
        path.write_bytes(copy.content)
        split = entry.split or (choose_split(copy.original.encode()) if copy.original else "")
        yield name, contract.meaning.written(entry.label), pseudonyms.patient(copy.original), split
