"""Lists what a hospital's data claims to hold, in any of the four layouts, without opening an image.

- ``manifest.csv`` (or ``manifest.xlsx``) with the columns ``file,label`` and, where known, ``patient_id,split`` and
  ``view,sex,age``; in a multi-label task a column for each label may stand in the place of ``label``;
- the table of a public set of chest X-rays as it is published (:mod:`client.data.known_tables`);
- one folder for each class, ``[train|val|test/]CLASS/[PATIENT/]image``;
- an npz file in MedMNIST's layout.

Images may also lie in zip archives below the folder (:mod:`client.data.archives`); a class or patient is then named by
a folder around the archive or in it.

Beside them may lie ``accepted.csv`` (``file,mistake``): what the data manager has looked at and stands by. A file that
is not read is never passed over without a word: it is found by name or, where it can hold no image, counted.
"""

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from client.data import known_tables
from client.data.archives import Archives, UnusableArchiveError, split_path
from client.data.known_tables import KnownTable, Said, age_written, find_known_table, is_table
from client.data.mistakes import Finding, Mistake
from client.data.readers import (
    ARCHIVE_ENDING,
    HEAD_BYTES,
    IMAGE_ENDINGS,
    is_read_archive,
    kind_not_read,
    npz,
    reader_of,
)
from client.data.tables import Table, UnusableTableError, read_table
from client.data.views import view_written
from common.errors import DataError
from common.shards import DESCRIPTION_NAME, MANIFEST_NAME, MAX_MANIFEST_BYTES, SPLITS, Split
from common.task import BETWEEN_LABELS, BETWEEN_NAME_AND_VALUE, LabelReader, TaskConfig, TaskKind, Unread, implied

ACCEPTED_NAME = "accepted.csv"
MANIFEST_WORKBOOK_NAME = "manifest.xlsx"

SPLIT_FOLDERS: Mapping[str, Split] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip

FETCHED_NAME = "fetched.csv"
"""What ``confide hospital fetch`` says of every study, beside the images."""

ON_ITS_WAY_FOLDER = ".fetch"
"""Where it keeps what has not come whole; nothing in it is an image of the hospital's data yet."""

_SEXES = {
    "f": "F", "female": "F", "w": "F", "weiblich": "F",
    "m": "M", "male": "M", "männlich": "M",
    "o": "O", "other": "O", "d": "O", "divers": "O",
}  # fmt: skip
"""Sexes in English and German. No other word is taken for one by how it begins: ``missing`` is not male."""


def _view(text: str) -> str:
    return text if view_written(text) else ""


def _sex(text: str) -> str:
    return _SEXES.get(text.lower(), "")


_PATIENT_COLUMNS: Mapping[str, tuple[Callable[[str], str], str]] = {
    "view": (_view, "a view such as PA, AP or lateral"),
    "sex": (_sex, "F, M or O"),
    "age": (age_written, "a number of years"),
}
"""What a manifest may say of an image whose file does not: how a cell is read, and what it must be."""

_COLUMNS = ("file", "label", "patient_id", "split", *_PATIENT_COLUMNS)
_REQUIRED_COLUMNS = ("file", "label")
_ACCEPTED_COLUMNS = ("file", "mistake")

_DIRECTORY_NAME = "DICOMDIR"
"""The table of contents of a DICOM medium (PS3.10, 8): DICOM, but no image."""

_BESIDE_IMAGES = frozenset(
    {
        MANIFEST_NAME,
        MANIFEST_WORKBOOK_NAME,
        DESCRIPTION_NAME,
        ACCEPTED_NAME,
        FETCHED_NAME,
        _DIRECTORY_NAME,
        "Thumbs.db",
        "desktop.ini",
    }
)
"""Names of files that are known to hold no exported image."""

_NO_PATIENT = frozenset({"images", "image"})
"""Names of folders inside a class folder that are no patient's."""

_NO_TASK = implied("", ("0", "1"))  # of a scan for images, which reads no label

_NO_ENDING = "no ending"
_ENDINGS_NAMED = 8


class DataLayout(StrEnum):
    """How the data lies."""

    MANIFEST = "manifest.csv"
    KNOWN_TABLE = "the table of a public set"
    CLASS_FOLDERS = "a folder for each class"
    NPZ = "npz file"


@dataclass(frozen=True, slots=True)
class ListedImage:
    """One image that the data claims to hold.

    Attributes:
        file: its path from the data folder, or ``train_images[7]`` in an npz file.
        label: its number (:mod:`common.task`): the index of its class, or the sum over its labels; None where the run's
            task leaves it out. It is listed all the same, so that nothing but training depends on what a task names.
        label_text: the label as it was written.
        patient: identifier, '' if unknown.
        split: None where the hospital leaves the choice to Confide.
        said: what a table says of it that a file of its kind cannot.
    """

    file: str = field(repr=False)
    label: int | None = field(repr=False)
    label_text: str = field(repr=False)
    patient: str = field(repr=False)
    split: Split | None = field(repr=False)
    said: Said | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Catalogue:
    """Everything the data claims to hold.

    Attributes:
        root: the folder with links resolved, or the npz file.
        layout: which of the four.
        entries: every image, in an npz file in its order.
        findings: what is wrong with the list itself.
        accepted: files and mistakes that the data manager accepts.
        digest: 32 bytes that change whenever the list, or the size or time of any file, does.
    """

    root: Path
    layout: DataLayout
    entries: tuple[ListedImage, ...] = field(repr=False)
    findings: tuple[Finding, ...] = field(repr=False)
    accepted: frozenset[tuple[str, str]] = field(repr=False)
    digest: bytes

    @property
    def labelled(self) -> tuple[ListedImage, ...]:
        """The images whose labels the task names."""
        return tuple(entry for entry in self.entries if entry.label is not None)


@dataclass
class _Listing:
    """What has been found so far, and a running digest of it."""

    root: Path
    task: TaskConfig
    archives: Archives = field(repr=False)
    entries: list[ListedImage] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    digest: "hashlib._Hash" = field(default_factory=lambda: hashlib.sha256(b"confide catalogue 3"))
    reader: LabelReader = field(init=False, repr=False)
    beside: frozenset[str] = frozenset()
    """Names of files below the folder, beside :data:`_BESIDE_IMAGES`, that are known to be no images."""
    left_out: int = 0
    """How many records the task leaves out for what their labels say."""

    def __post_init__(self) -> None:
        self.reader = self.task.reader

    def find(self, mistake: Mistake, where: str, detail: str = "") -> None:
        self.findings.append(Finding(mistake, where, detail))

    def add(self, entry: ListedImage, status: os.stat_result) -> None:
        self.entries.append(entry)
        said = (entry.file, entry.label_text, entry.patient, entry.split, entry.said)
        stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        self.digest.update(repr((said, stamp)).encode())


def read_catalogue(data: Path, task: TaskConfig) -> Catalogue:
    """List a hospital's data.

    Args:
        data: a folder, or an npz file.
        task: of the run, which says what labels mean.

    Returns:
        The list, with what is wrong with it among its findings.

    Raises:
        DataError: there is nothing at ``data``; the path is not repeated, because this may travel to the server.
    """
    if not data.exists():
        raise DataError("the hospital's data folder does not exist; mount it, or correct the path")
    root = Path(os.path.realpath(data))
    with Archives(root) as archives:
        return _catalogue(_Listing(root, task, archives))


def _catalogue(listing: _Listing) -> Catalogue:
    layout, npz_file = _layout_of(listing.root)
    match layout:
        case DataLayout.KNOWN_TABLE:
            _list_known_table(listing)
        case DataLayout.NPZ:
            _list_npz(listing, npz_file)
        case DataLayout.MANIFEST:
            _list_manifest(listing)
        case DataLayout.CLASS_FOLDERS:
            _list_class_folders(listing)
    if listing.left_out:
        listing.find(Mistake.TABLE_REMARK, "", f"{listing.left_out} records are left out, as the task says")
    if not listing.entries and not listing.findings:
        listing.find(Mistake.EMPTY_FOLDER, "")
    accepted = frozenset(_read_accepted(listing))
    root = npz_file if layout is DataLayout.NPZ else listing.root
    return Catalogue(root, layout, tuple(listing.entries), tuple(listing.findings), accepted, listing.digest.digest())


@dataclass(frozen=True)
class Scan:
    """What lies below a folder.

    Attributes:
        images: paths from the folder of all files that a reader knows, in a fixed order.
        findings: the files that are not read, and those that cannot be named.
    """

    images: tuple[str, ...] = field(repr=False)
    findings: tuple[Finding, ...] = field(repr=False)


def scan_images(root: Path) -> Scan:
    """Return every image below ``root``, and what else lies there, without opening more than the head of a file."""
    real = Path(os.path.realpath(root))
    with Archives(real) as archives:
        listing = _Listing(real, _NO_TASK, archives)
        images = tuple(_walk(listing))
    return Scan(images, tuple(listing.findings))


def printable(name: str) -> str:
    r"""Return a file name as UTF-8 can hold it, with each odd byte as a number.

    >>> printable("f\udcfcr.dcm")
    'f\\xfcr.dcm'
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _layout_of(root: Path) -> tuple[DataLayout, Path]:
    if root.is_file():
        return DataLayout.NPZ, root
    if (root / MANIFEST_NAME).exists() or (root / MANIFEST_WORKBOOK_NAME).exists():
        return DataLayout.MANIFEST, root
    if find_known_table(root) is not None:
        return DataLayout.KNOWN_TABLE, root
    archives = list(root.glob("*.npz"))
    return (DataLayout.NPZ, archives[0]) if len(archives) == 1 else (DataLayout.CLASS_FOLDERS, root)


def _list_npz(listing: _Listing, path: Path) -> None:
    for split in SPLITS:
        try:
            labels, images = npz.label_rows(path, split), npz.describe(path, split).records
        except DataError as error:
            listing.find(Mistake.NPZ_MALFORMED, path.name, str(error))
            return
        if len(labels) != images:
            listing.find(Mistake.NPZ_MALFORMED, path.name, f"{split}: {images} images and {len(labels)} labels")
            return
        for number, text in enumerate(label_texts(labels, listing.task)):
            file = f"{split}_images[{number}]"
            label = _label_of(listing, text, file)
            listing.add(ListedImage(file, label, sys.intern(text), "", split), path.stat())


def _list_manifest(listing: _Listing) -> None:
    name = MANIFEST_NAME if (listing.root / MANIFEST_NAME).exists() else MANIFEST_WORKBOOK_NAME
    if name == MANIFEST_NAME and (listing.root / MANIFEST_WORKBOOK_NAME).exists():
        listing.find(Mistake.MANIFEST_MALFORMED, MANIFEST_WORKBOOK_NAME, f"{MANIFEST_NAME} is there too; keep one")
        return
    wanted, required, by_column = _manifest_columns(listing, name)
    table = _read(listing, name, wanted, required)
    if table is None:
        return
    unheard = _Listing(listing.root, listing.task, listing.archives)
    times = Counter(str(PurePosixPath(cells["file"])) for _, cells in _rows(unheard, table, name))
    unread: Counter[str] = Counter()
    # Read twice rather than kept: a row with its cells takes as much memory as all that is remembered of an image.
    for number, cells in _rows(listing, table, name):
        _list_row(listing, number, cells, times, by_column, _said_by(cells, unread))
    for column, count in unread.items():
        must = f"column {column} must have {_PATIENT_COLUMNS[column][1]}"
        listing.find(Mistake.TABLE_REMARK, name, f"{must}; cells that do not, and count as not known: {count}")
    for file in _walk(listing):
        if file not in times:
            listing.find(Mistake.FILE_EXTRA, file)


def _manifest_columns(listing: _Listing, name: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the columns that are wanted of a manifest, those it must have, and those of labels, if it has such.

    In a multi-label task a manifest without a column ``label`` may have one for each label, with 1, 0, -1 or nothing.
    """
    task = listing.task
    names = tuple(dict.fromkeys((*task.classes, *task.labels)))
    if task.kind is not TaskKind.MULTILABEL or not names:
        return _COLUMNS, _REQUIRED_COLUMNS, ()
    wanted = (*_COLUMNS, *(each for each in names if each not in _COLUMNS))
    try:
        found = read_table((listing.root / name).read_bytes(), wanted, ("file",)).columns
    except (OSError, UnusableTableError):
        return _COLUMNS, _REQUIRED_COLUMNS, ()  # Said once, when it is read.
    if "label" in found:
        return _COLUMNS, _REQUIRED_COLUMNS, ()
    return wanted, ("file", *task.classes), tuple(each for each in names if each in found)


def _list_row(
    listing: _Listing,
    number: int,
    cells: Mapping[str, str],
    times: Mapping[str, int],
    by_column: Sequence[str],
    said: Said | None,
) -> None:
    where = f"row {number}: {cells['file']}"
    file = str(PurePosixPath(cells["file"]))
    split = _split_of(cells.get("split", ""))
    text = BETWEEN_LABELS.join(f"{name}{BETWEEN_NAME_AND_VALUE}{cells[name]}" for name in by_column)
    text = text if by_column else cells["label"]
    if times[file] > 1:
        listing.find(Mistake.MANIFEST_ROW_REPEATED, where)
    elif isinstance(split, Mistake):
        listing.find(split, where, cells["split"])
    elif isinstance(status := _status_inside(listing, file), Mistake):
        listing.find(status, where)
    else:
        label, label_text = _label_of(listing, text, where), sys.intern(text)  # one object for all that have it
        listing.add(ListedImage(file, label, label_text, cells.get("patient_id", ""), split, said), status)


def _said_by(cells: Mapping[str, str], unread: Counter[str]) -> Said | None:
    """Return what a manifest's row says of the patient; None where it has no such column. Count what says nothing."""
    columns = [column for column in _PATIENT_COLUMNS if column in cells]
    if not columns:
        return None
    values = {column: _PATIENT_COLUMNS[column][0](cells[column].strip()) for column in columns}
    unread.update(column for column in columns if cells[column].strip() and not values[column])
    return Said(*(sys.intern(values.get(column, "")) for column in ("view", "sex", "age")))


def _label_of(listing: _Listing, text: str, where: str) -> int | None:
    """Return a label's number; where there is none, say why, or count the record among those that are left out."""
    label = listing.reader.read(text)
    if not isinstance(label, Unread):
        return label
    if label is Unread.LEFT_OUT:
        listing.left_out += 1
    elif label is Unread.UNKNOWN:
        listing.find(Mistake.LABEL_UNKNOWN, where, text)
    else:
        listing.find(Mistake.LABEL_MISSING, where, "uncertain" if label is Unread.UNCERTAIN else "")
    return None


def _split_of(text: str) -> Split | Mistake | None:
    """Return a split, or None where it is left open."""
    return None if text == "" else next((split for split in SPLITS if split == text.lower()), Mistake.SPLIT_UNKNOWN)


def _status_inside(listing: _Listing, file: str) -> os.stat_result | Mistake:
    """Return the status of a regular file that really lies below the root, or of the archive that it lies in.

    Returns:
        what is wrong with it, where it does not.
    """
    try:
        real = Path(os.path.realpath(listing.root / file))
        if ".." in PurePosixPath(file).parts or not real.is_relative_to(listing.root):
            return Mistake.OUTSIDE_FOLDER
        if real.is_file():
            return real.stat()
        inside = split_path(listing.root, file)
        if inside is None or not listing.archives.has(*inside):
            return Mistake.FILE_MISSING
        return (listing.root / inside[0]).stat()
    except PermissionError:
        return Mistake.UNREADABLE
    except (OSError, ValueError):
        return Mistake.FILE_MISSING


def label_texts(rows: npt.NDArray[np.int64], task: TaskConfig) -> Iterator[str]:
    """Yield the labels of an npz file, (n, labels), as a table would hold them."""
    for row in rows.tolist():
        if task.kind is TaskKind.MULTILABEL and len(row) == len(task.classes):
            pairs = zip(task.classes, row, strict=True)
            yield BETWEEN_LABELS.join(f"{name}{BETWEEN_NAME_AND_VALUE}{value}" for name, value in pairs)
        else:
            yield BETWEEN_LABELS.join(str(value) for value in row)


def _list_known_table(listing: _Listing) -> None:
    known = find_known_table(listing.root)
    if known is None:
        return
    listing.beside = frozenset(path.name for path in listing.root.iterdir() if is_table(path.name))
    files = list(_walk(listing))
    by_name = {file if known.by_path else known_tables.stem(file): file for file in reversed(files)}

    def read(name: str, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
        table = _read(listing, name, columns, columns[:2])
        if table is not None:
            yield from _rows(listing, table, name)

    used: set[str] = set()
    passed: Counter[str] = Counter()
    for row in known.rows(read):
        found = _named_image(row.image, by_name, known)
        if found is None:
            passed[f"rows of the table of {known.name} name images that are not here"] += 1
        elif found in used:
            listing.find(Mistake.MANIFEST_ROW_REPEATED, f"row {row.line}: {found}")
        else:
            used.add(found)
            _list_known_row(listing, found, row, passed)
    for what, count in passed.items():
        listing.find(Mistake.TABLE_REMARK, "", f"{count} {what}")
    for file in sorted(set(files) - used):
        listing.find(Mistake.FILE_EXTRA, file)


def _named_image(image: str, by_name: Mapping[str, str], known: KnownTable) -> str | None:
    """Return the file that a row of a known table names; a path may begin above the folder."""
    if not known.by_path:
        return by_name.get(known_tables.stem(image) if PurePosixPath(image).suffix else image)
    parts = PurePosixPath(image).parts
    paths = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((by_name[path] for path in paths if path in by_name), None)


def _list_known_row(listing: _Listing, file: str, row: known_tables.KnownRow, passed: Counter[str]) -> None:
    if row.label is None:
        passed[f"images are left out, because the table gives their view as {row.said.position.strip().upper()}"] += 1
        return
    status = _status_inside(listing, file)
    if isinstance(status, Mistake):
        listing.find(status, file)
        return
    label = _label_of(listing, row.label, f"row {row.line}: {file}")
    said = Said(*map(sys.intern, (row.said.position, row.said.sex, row.said.age)))
    listing.add(ListedImage(file, label, sys.intern(row.label), row.patient, None, said), status)


def _list_class_folders(listing: _Listing) -> None:
    unknown: set[str] = set()
    read = listing.reader.read
    for file in _walk(listing):
        path = PurePosixPath(file)
        above = [name for name in path.parts[:-1] if PurePosixPath(name).suffix.lower() != ARCHIVE_ENDING]
        split = SPLIT_FOLDERS.get(above[0].lower()) if above else None
        folders = above[1:] if split else above
        text = folders[0] if folders else ""
        label = read(text) if folders else Unread.UNKNOWN
        if isinstance(status := _status_inside(listing, file), Mistake):
            listing.find(status, file)
            continue
        if label is Unread.LEFT_OUT:
            listing.left_out += 1
        elif isinstance(label, Unread):
            place = str(path.parent)
            if place not in unknown:  # once for a folder, not for each of its images
                unknown.add(place)
                listing.find(Mistake.LABEL_UNKNOWN, place, "" if folders else "images outside any class folder")
        patient = next((name for name in folders[1:] if name.casefold() not in _NO_PATIENT), "")
        number = None if isinstance(label, Unread) else label
        listing.add(ListedImage(file, number, sys.intern(text), patient, split), status)


def _walk(listing: _Listing) -> Iterator[str]:
    """Yield every image in a fixed order, without following a link to a folder, and note files of other kinds."""
    others: Counter[str] = Counter()

    def unreadable(error: OSError) -> None:
        listing.find(Mistake.UNREADABLE, printable(os.path.relpath(str(error.filename), listing.root)))

    for folder, folders, files in os.walk(listing.root, onerror=unreadable):
        inside = os.path.relpath(folder, listing.root)
        folders[:] = sorted(name for name in folders if (inside, name) != (".", ON_ITS_WAY_FOLDER))
        for name in folders:
            if Path(folder, name).is_symlink():
                listing.find(Mistake.OUTSIDE_FOLDER, printable(os.path.normpath(f"{inside}/{name}")))
        for name in sorted(files):
            file = os.path.normpath(f"{inside}/{name}")
            if name not in _BESIDE_IMAGES and file not in listing.beside:
                yield from _images_of(listing, file, others)
    if others:
        named = [f"{count} {ending}" for ending, count in others.most_common(_ENDINGS_NAMED)]
        rest = others.total() - sum(count for _, count in others.most_common(_ENDINGS_NAMED))
        more = [f"{rest} with other endings"] if rest else []
        listing.find(Mistake.FILE_KIND_NOT_READ, "", f"files that are no images: {', '.join(named + more)}")


def _images_of(listing: _Listing, file: str, others: Counter[str]) -> Iterator[str]:
    """Yield a file that is an image, or the images in one that is an archive; find or count what is neither."""
    path = listing.root / file

    def head() -> bytes:
        with path.open("rb") as opened:
            return opened.read(HEAD_BYTES)

    try:
        is_archive = not path.name.startswith(".") and printable(file) == file and is_read_archive(path, head)
    except OSError:
        listing.find(Mistake.FILE_KIND_NOT_READ, printable(file), "it cannot be opened")
        return
    if is_archive:
        yield from _images_in_archive(listing, file, others)
    elif _is_image(listing, file, head, others):
        yield file


def _images_in_archive(listing: _Listing, archive: str, others: Counter[str]) -> Iterator[str]:
    try:
        names = listing.archives.names(archive)
        images = [
            file
            for name in names
            if _is_image(
                listing,
                file := f"{archive}/{name}",
                lambda name=name: listing.archives.read(archive, name, HEAD_BYTES),  # type: ignore[misc]
                others,
            )
        ]
    except UnusableArchiveError as refused:
        listing.find(Mistake.FILE_KIND_NOT_READ, archive, f"zip archive that is not read: {refused}")
        return
    if not images:
        listing.find(Mistake.FILE_KIND_NOT_READ, archive, f"zip archive without an image, {len(names)} files")
    yield from sorted(images)


def _is_image(listing: _Listing, file: str, read_head: Callable[[], bytes], others: Counter[str]) -> bool:
    """Tell by the ending or, for all other endings, by the first bytes; find or count what is no image.

    Hidden files do not count (macOS leaves one beside each file it copies), but one that a reader knows is named.
    """
    path = PurePosixPath(file)
    ending = path.suffix.lower()
    is_hidden = path.name.startswith(".")
    recognised, kind = ending in IMAGE_ENDINGS and not is_hidden, ""
    if not recognised:
        try:
            head = read_head()
        except OSError:
            listing.find(Mistake.FILE_KIND_NOT_READ, printable(file), "it cannot be opened")
            return False
        recognised = reader_of(head) is not None
        kind = kind_not_read(path, head)
    if printable(file) != file and (recognised or kind):
        listing.find(Mistake.NAME_NOT_UTF8, printable(file))
    elif recognised and not is_hidden:
        return True
    elif recognised or kind:
        listing.find(Mistake.FILE_KIND_NOT_READ, printable(file), "a hidden file" if recognised else kind)
    elif not is_hidden:
        others[ending if ending and ending.isprintable() else _NO_ENDING] += 1
    return False


def _read(listing: _Listing, name: str, wanted: Sequence[str], required: Sequence[str]) -> Table | None:
    """Read a table's head, or report as a finding why it cannot be read."""
    path = listing.root / name
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            listing.find(Mistake.MANIFEST_MALFORMED, name, f"more than {MAX_MANIFEST_BYTES} bytes")
            return None
        content = known_tables.decompressed(name, path.read_bytes(), MAX_MANIFEST_BYTES)
    except ValueError as refused:
        listing.find(Mistake.MANIFEST_MALFORMED, name, str(refused))
        return None
    except OSError:
        listing.find(Mistake.UNREADABLE, name)
        return None
    listing.digest.update(content)
    try:
        table = read_table(content, wanted, required)
    except UnusableTableError as problem:
        _find_in_table(listing, name, problem)
        return None
    for remark in table.remarks:
        listing.find(Mistake.TABLE_REMARK, name, remark)
    return table


def _rows(listing: _Listing, table: Table, name: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each row's line number and cells; report rows that have too many or too few."""
    try:
        for line, cells in table.rows():
            if cells is None:
                listing.find(Mistake.MANIFEST_MALFORMED, f"{name} row {line}", "number of cells")
            else:
                yield line, cells
    except UnusableTableError as problem:
        _find_in_table(listing, name, problem)


def _find_in_table(listing: _Listing, name: str, problem: UnusableTableError) -> None:
    is_row = problem.line and problem.mistake is not Mistake.MANIFEST_NOT_UTF8
    listing.find(problem.mistake, f"{name} row {problem.line}" if is_row else name, problem.detail)


def _read_accepted(listing: _Listing) -> Iterator[tuple[str, str]]:
    if listing.root.is_dir() and (listing.root / ACCEPTED_NAME).exists():
        table = _read(listing, ACCEPTED_NAME, _ACCEPTED_COLUMNS, _ACCEPTED_COLUMNS)
        if table is not None:
            for _, cells in _rows(listing, table, ACCEPTED_NAME):
                yield cells["file"], cells["mistake"]
