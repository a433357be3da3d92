"""Lists what a hospital's data claims to hold, in any of the three layouts, without opening an image.

- ``manifest.csv`` with the columns ``file,label`` and, where known, ``patient_id,split``;
- one folder for each class, ``[train|val|test/]CLASS/[PATIENT/]image``;
- an npz file in MedMNIST's layout.

Beside them may lie ``accepted.csv`` (``file,mistake``): what the data manager has looked at and stands by.
"""

import csv
import hashlib
import io
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath

from client.data import npz
from client.data.mistakes import Finding, Mistake
from client.data.pixels import DICOM_MARK_END, is_dicom
from common.errors import DataError
from common.shards import DESCRIPTION_NAME, MANIFEST_NAME, MAX_MANIFEST_BYTES, SPLITS, Split, class_index

ACCEPTED_NAME = "accepted.csv"

SPLIT_FOLDERS: Mapping[str, Split] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip

IMAGE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".dcm", ".dicom"})

_REQUIRED_COLUMNS = ("file", "label")

_OTHER_SEPARATORS = (";", "\t")
"""What spreadsheets write between columns where a comma is the decimal mark."""

_DIRECTORY_NAME = "DICOMDIR"
"""The table of contents of a DICOM medium (PS3.10, 8): DICOM, but no image."""


class Layout(StrEnum):
    """How the data lies."""

    MANIFEST = "manifest.csv"
    CLASS_FOLDERS = "a folder for each class"
    NPZ = "npz file"


@dataclass(frozen=True, slots=True)
class Entry:
    """One image that the data claims to hold.

    Attributes:
        file: its path from the data folder, or ``train_images[7]`` in an npz file.
        label: index of its class.
        label_text: the label as it was written.
        patient: identifier, '' if unknown.
        split: None where the hospital leaves the choice to Confide.
    """

    file: str = field(repr=False)
    label: int = field(repr=False)
    label_text: str = field(repr=False)
    patient: str = field(repr=False)
    split: Split | None = field(repr=False)


@dataclass(frozen=True)
class Catalogue:
    """Everything the data claims to hold.

    Attributes:
        root: the folder with links resolved, or the npz file.
        layout: which of the three.
        entries: what can be opened.
        findings: what is wrong with the list itself.
        accepted: files and mistakes that the data manager stands by.
        digest: 32 bytes that change whenever the list, or the size or time of any file, does.
    """

    root: Path
    layout: Layout
    entries: tuple[Entry, ...] = field(repr=False)
    findings: tuple[Finding, ...] = field(repr=False)
    accepted: frozenset[tuple[str, str]] = field(repr=False)
    digest: bytes


@dataclass
class _Listing:
    """What has been found so far, and a running digest of it."""

    root: Path
    classes: Sequence[str]
    entries: list[Entry] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    digest: "hashlib._Hash" = field(default_factory=lambda: hashlib.sha256(b"confide catalogue 1"))

    def find(self, mistake: Mistake, where: str, detail: str = "") -> None:
        self.findings.append(Finding(mistake, where, detail))

    def add(self, entry: Entry, status: os.stat_result) -> None:
        self.entries.append(entry)
        said = (entry.file, entry.label_text, entry.patient, entry.split)
        stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        self.digest.update(repr((said, stamp)).encode())


def read_catalogue(data: Path, classes: Sequence[str]) -> Catalogue:
    """List a hospital's data.

    Args:
        data: a folder, or an npz file.
        classes: names of the run's classes in the order of their indices.

    Returns:
        The list, with what is wrong with it among its findings.

    Raises:
        DataError: there is nothing at ``data``; the path is not repeated, because this may travel to the server.
    """
    if not data.exists():
        raise DataError("the hospital's data folder does not exist; mount it, or correct the path")
    listing = _Listing(Path(os.path.realpath(data)), classes)
    layout, npz_file = _layout_of(listing.root)
    match layout:
        case Layout.NPZ:
            _list_npz(listing, npz_file)
        case Layout.MANIFEST:
            _list_manifest(listing)
        case Layout.CLASS_FOLDERS:
            _list_class_folders(listing)
    if not listing.entries and not listing.findings:
        listing.find(Mistake.EMPTY_FOLDER, "")
    accepted = frozenset(_read_accepted(listing))
    root = npz_file if layout is Layout.NPZ else listing.root
    return Catalogue(root, layout, tuple(listing.entries), tuple(listing.findings), accepted, listing.digest.digest())


def image_files(root: Path) -> Iterator[str]:
    """Yield the path from ``root`` of every file below it that could be an image, in a fixed order."""
    return _walk(_Listing(Path(os.path.realpath(root)), ()))


def _layout_of(root: Path) -> tuple[Layout, Path]:
    if root.is_file():
        return Layout.NPZ, root
    if (root / MANIFEST_NAME).exists():
        return Layout.MANIFEST, root
    archives = list(root.glob("*.npz"))
    return (Layout.NPZ, archives[0]) if len(archives) == 1 else (Layout.CLASS_FOLDERS, root)


def _list_npz(listing: _Listing, path: Path) -> None:
    for split in SPLITS:
        try:
            labels, images = npz.labels(path, split), npz.describe(path, split).records
        except DataError as error:
            listing.find(Mistake.NPZ_MALFORMED, path.name, str(error))
            return
        if len(labels) != images:
            listing.find(Mistake.NPZ_MALFORMED, path.name, f"{split}: {images} images and {len(labels)} labels")
            return
        for number, label in enumerate(labels.tolist()):
            file = f"{split}_images[{number}]"
            if 0 <= label < len(listing.classes):
                listing.add(Entry(file, label, str(label), "", split), path.stat())
            else:
                listing.find(Mistake.LABEL_UNKNOWN, file, str(label))


def _list_manifest(listing: _Listing) -> None:
    text = _read_text(listing, MANIFEST_NAME)
    if text is None:
        return
    unheard = _Listing(listing.root, listing.classes)
    rows = _rows(unheard, text, MANIFEST_NAME, _REQUIRED_COLUMNS)
    times = Counter(str(PurePosixPath(cells["file"])) for _, cells in rows)
    # Read twice rather than kept: a row with its cells takes as much memory as all that is remembered of an image.
    for number, cells in _rows(listing, text, MANIFEST_NAME, _REQUIRED_COLUMNS):
        _list_row(listing, number, cells, times)
    for file in _walk(listing):
        if file not in times and file not in (MANIFEST_NAME, DESCRIPTION_NAME, ACCEPTED_NAME):
            listing.find(Mistake.FILE_EXTRA, file)


def _list_row(listing: _Listing, number: int, cells: Mapping[str, str], times: Mapping[str, int]) -> None:
    where = f"row {number}: {cells['file']}"
    file = str(PurePosixPath(cells["file"]))
    split = _split_of(cells.get("split", ""))
    label = class_index(cells["label"], listing.classes)
    if times[file] > 1:
        listing.find(Mistake.MANIFEST_ROW_REPEATED, where)
    elif not cells["label"]:
        listing.find(Mistake.LABEL_MISSING, where)
    elif label is None:
        listing.find(Mistake.LABEL_UNKNOWN, where, cells["label"])
    elif isinstance(split, Mistake):
        listing.find(split, where, cells["split"])
    elif isinstance(status := _status_inside(listing.root, file), Mistake):
        listing.find(status, where)
    else:
        label_text = sys.intern(cells["label"])  # one object for all that have it
        listing.add(Entry(file, label, label_text, cells.get("patient_id", ""), split), status)


def _split_of(text: str) -> Split | Mistake | None:
    """Return a split, or None where it is left open."""
    return None if text == "" else next((split for split in SPLITS if split == text.lower()), Mistake.SPLIT_UNKNOWN)


def _status_inside(root: Path, file: str) -> os.stat_result | Mistake:
    """Return the status of a regular file that really lies below ``root``, or what is wrong with it."""
    try:
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            return Mistake.OUTSIDE_FOLDER
        real = Path(os.path.realpath(root / file))
        if not real.is_relative_to(root):
            return Mistake.OUTSIDE_FOLDER
        return real.stat() if real.is_file() else Mistake.FILE_MISSING
    except PermissionError:
        return Mistake.UNREADABLE
    except (OSError, ValueError):
        return Mistake.FILE_MISSING


def _list_class_folders(listing: _Listing) -> None:
    unknown: set[str] = set()
    for file in _walk(listing):
        path = PurePosixPath(file)
        split = SPLIT_FOLDERS.get(path.parts[0].lower()) if len(path.parts) > 1 else None
        folders = path.parts[1:-1] if split else path.parts[:-1]
        label = class_index(folders[0], listing.classes) if folders else None
        if label is None:
            place = str(path.parent)
            if place not in unknown:  # once for a folder, not for each of its images
                unknown.add(place)
                listing.find(Mistake.LABEL_UNKNOWN, place, "" if folders else "images outside any class folder")
        elif isinstance(status := _status_inside(listing.root, file), Mistake):
            listing.find(status, file)
        else:
            patient = folders[1] if len(folders) > 1 else ""
            listing.add(Entry(file, label, folders[0], patient, split), status)


def _walk(listing: _Listing) -> Iterator[str]:
    """Yield every file that could be an image, in a fixed order, without following a link to a folder."""

    def unreadable(error: OSError) -> None:
        listing.find(Mistake.UNREADABLE, os.path.relpath(str(error.filename), listing.root))

    for folder, folders, files in os.walk(listing.root, onerror=unreadable):
        folders.sort()
        inside = os.path.relpath(folder, listing.root)
        for name in folders:
            if Path(folder, name).is_symlink():
                listing.find(Mistake.OUTSIDE_FOLDER, os.path.normpath(f"{inside}/{name}"))
        for name in sorted(files):
            if not name.startswith(".") and name != _DIRECTORY_NAME and _may_be_image(Path(folder, name)):
                yield os.path.normpath(f"{inside}/{name}")


def _may_be_image(path: Path) -> bool:
    """Go by the ending; archives often give DICOM files none, or a number, and those are looked into."""
    ending = path.suffix.lower()
    if ending in IMAGE_ENDINGS:
        return True
    if ending and not ending[1:].isdigit():
        return False
    try:
        with path.open("rb") as file:
            return is_dicom(file.read(DICOM_MARK_END))
    except OSError:
        return False


def _read_text(listing: _Listing, name: str) -> str | None:
    path = listing.root / name
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            listing.find(Mistake.MANIFEST_MALFORMED, name, f"more than {MAX_MANIFEST_BYTES} bytes")
            return None
        content = path.read_bytes()
        listing.digest.update(content)
        return content.decode("utf-8-sig")
    except OSError:
        listing.find(Mistake.UNREADABLE, name)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        listing.find(Mistake.MANIFEST_NOT_UTF8, name, f"line {line}")
    return None


def _rows(listing: _Listing, text: str, name: str, required: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each row's line number and cells, trimmed; further columns are allowed."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = [column.strip().lower() for column in next(reader, [])]
        missing = [column for column in required if column not in columns]
        if missing and len(columns) == 1 and any(mark in columns[0] for mark in _OTHER_SEPARATORS):
            listing.find(Mistake.MANIFEST_MALFORMED, name, "semicolons or tabs between the columns")
            return
        if missing:
            listing.find(Mistake.MANIFEST_COLUMN_MISSING, name, f"missing: {', '.join(missing)}")
            return
        for cells in reader:
            if len(cells) == len(columns):
                yield reader.line_num, dict(zip(columns, (cell.strip() for cell in cells), strict=True))
            elif cells:
                listing.find(Mistake.MANIFEST_MALFORMED, f"{name} row {reader.line_num}", "number of cells")
    except csv.Error:
        listing.find(Mistake.MANIFEST_MALFORMED, f"{name} row {reader.line_num}", "open quotation mark or stray byte")


def _read_accepted(listing: _Listing) -> Iterator[tuple[str, str]]:
    if listing.root.is_dir() and (listing.root / ACCEPTED_NAME).exists():
        text = _read_text(listing, ACCEPTED_NAME)
        for _, cells in _rows(listing, text or "file,mistake", ACCEPTED_NAME, ("file", "mistake")):
            yield cells["file"], cells["mistake"]
