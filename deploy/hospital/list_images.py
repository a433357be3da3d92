"""``confide hospital list-images``: begins a manifest from what the headers of a PACS export say; nothing leaves.

Labels come from a table that the hospital has (of findings by accession number, say), or are filled in by hand. Rows of
the table that match no image, images that no row names, and files that are not read are counted and named: no label
is guessed, and none is lost without a word.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import click

from client.data.archives import Archives, UnusableArchiveError
from client.data.catalogue import scan_images
from client.data.mistakes import ADVICE, Finding, Mistake
from client.data.pixels import UnusableImageError
from client.data.readers.dicom import DECODER_ERRORS, is_dicom, parse_dicom, quiet
from client.data.tables import UnusableTableError, read_table, without_point_zero
from common.errors import DataError
from common.files import write_private
from common.shards import COLUMNS, MANIFEST_NAME, MAX_FILE_BYTES, MAX_MANIFEST_BYTES
from deploy.command import FILE, command

SHOWN = 5
"""Lines or files named of a kind; a manifest or table shows all of them."""


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
class LabelTable:
    """A table of labels.

    Attributes:
        labels: by key; an empty key or label is not among them.
        lines: where each key stands.
        without_key: lines whose key is empty.
        without_label: lines whose label is empty.
        remarks: what of the file was left out.
    """

    labels: Mapping[str, str] = field(default_factory=dict, repr=False)
    lines: Mapping[str, int] = field(default_factory=dict, repr=False)
    without_key: tuple[int, ...] = ()
    without_label: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listed:
    """What was listed, and what found no partner.

    Attributes:
        images: how many were listed.
        labels: how many have which label.
        unmatched: lines of the table that match no image.
        unmatched_but_for_zeros: those of them that would match without leading zeros.
        shortened: lines that matched without the ``.0`` of a number.
        unnamed: files that have a key, which no row of the table names.
        without_key: files that have no key.
        not_read: the other files of the folder.
    """

    images: int
    labels: Mapping[str, int] = field(default_factory=dict, repr=False)
    unmatched: tuple[int, ...] = ()
    unmatched_but_for_zeros: tuple[int, ...] = ()
    shortened: tuple[int, ...] = ()
    unnamed: tuple[str, ...] = field(default=(), repr=False)
    without_key: tuple[str, ...] = field(default=(), repr=False)
    not_read: tuple[Finding, ...] = field(default=(), repr=False)

    @property
    def labelled(self) -> int:
        """How many images have a label."""
        return sum(self.labels.values())


@command(
    "list-images",
    f"Begin a manifest from what the headers of a PACS export say. Nothing leaves this machine.\n\n"
    f"PATH is the export's folder; {MANIFEST_NAME} is written into it. Labels come from a table that the hospital has, "
    "or are filled in by hand. Rows that match no image, images that no row names and files that are not read are "
    "counted and named.",
    "./confide hospital list-images /data/export --labels findings.xlsx",
)
@click.argument("path", type=FILE)
@click.option("--labels", type=FILE, metavar="FILE", help="A table, CSV or .xlsx, with the columns KEY and label.")
@click.option(
    "--key",
    type=click.Choice([key.value for key in Key]),
    default=Key.ACCESSION_NUMBER.value,
    help="The column that names an image in the table.",
)
@click.option(
    "--rename",
    multiple=True,
    metavar="OLD=NEW",
    help="What a label of the table is called in the run, such as Pneumonie=pneumonia; repeatable.",
)
def main(path: Path, labels: Path | None, key: str, rename: tuple[str, ...]) -> int:
    """Write the manifest.

    Raises:
        DataError: there are no images, a manifest is there already, or the table of labels cannot be read.
    """
    column = Key(key)
    renamed = dict(renaming(text) for text in rename)
    table = read_labels(labels, column, renamed) if labels else LabelTable()
    listed = list_images(path, table, column)
    print(f"{listed.images} images are listed in {path / MANIFEST_NAME}, {listed.labelled} with a label")
    for line in _account(listed, table, column) if labels else _not_read(listed):
        print(line)
    if listed.labelled < listed.images:
        print("fill in the label of the others or delete their rows, then run: confide hospital check-data")
    return 0


def list_images(folder: Path, table: LabelTable, key: Key) -> Listed:
    """Write ``manifest.csv`` into a folder of images.

    Args:
        folder: of the export, with any folders below it.
        table: of labels; an empty one leaves the labels open.
        key: column that labels are found by.

    Raises:
        DataError: the folder has a manifest already, or no image.
    """
    if not folder.is_dir():
        raise DataError("the export must be a folder that exists")
    if (folder / MANIFEST_NAME).exists():
        raise DataError(f"{MANIFEST_NAME} is there already; move it away to start again")
    scan = scan_images(folder)
    if not scan.images:
        named = "".join(f"\n{line}" for line in _found(scan.findings))
        raise DataError(f"there is no PNG, JPEG or DICOM file below this folder{named}")
    with quiet(), Archives(folder) as archives:
        rows = [{**dict.fromkeys(_COLUMNS, ""), "file": file, **_header(archives, file)} for file in scan.images]
    keys = {row[key] for row in rows} - {""}
    at_hand, shortened = labels_of(table, keys)
    for row in rows:
        row["label"] = at_hand.get(row[key], "") if row[key] else ""
    _write(folder / MANIFEST_NAME, rows)
    unmatched = [name for name in table.labels if name not in keys and without_point_zero(name) not in keys]
    open_keys = {name.lstrip("0") for name in keys - set(at_hand)}
    return Listed(
        len(rows),
        Counter(row["label"] for row in rows if row["label"]),
        tuple(table.lines[name] for name in unmatched),
        tuple(table.lines[name] for name in unmatched if without_point_zero(name).lstrip("0") in open_keys),
        tuple(table.lines[name] for name in shortened),
        tuple(row["file"] for row in rows if row[key] and row[key] not in at_hand),
        tuple(row["file"] for row in rows if not row[key]),
        scan.findings,
    )


def read_labels(path: Path, key: Key, renamed: Mapping[str, str] | None = None) -> LabelTable:
    """Read a table with the column that ``key`` names and the column ``label``: CSV or an Excel workbook.

    Args:
        path: of the file.
        key: the column that names an image.
        renamed: labels of the table, in any case, and what they are called in the run.

    Raises:
        DataError: it is no table with these columns, or gives one key two labels; names the line only.
    """
    labels: dict[str, str] = {}
    lines: dict[str, int] = {}
    without_key: list[int] = []
    without_label: list[int] = []
    wanted = (key.value, "label")
    new_names = {old.casefold(): new for old, new in (renamed or {}).items()}
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise DataError(f"--labels must have at most {MAX_MANIFEST_BYTES} bytes")
        table = read_table(path.read_bytes(), wanted, wanted)
        for line, cells in table.rows():
            if cells is None:
                raise DataError(f"--labels, line {line}: it must have as many cells as the first line has columns")
            name, label = cells[key.value], new_names.get(cells["label"].casefold(), cells["label"])
            if not name or not label:
                (without_label if name else without_key).append(line)
            elif labels.setdefault(name, label) != label:
                raise DataError(f"--labels, line {line}: this {key.value} has another label in line {lines[name]}")
            else:
                lines.setdefault(name, line)
    except OSError as error:
        raise DataError(f"--labels must be a readable file: {error.strerror}") from None
    except UnusableTableError as problem:
        raise DataError(f"--labels: {_why(problem, wanted)}") from None
    return LabelTable(labels, lines, tuple(without_key), tuple(without_label), table.remarks)


def _why(problem: UnusableTableError, wanted: Sequence[str]) -> str:
    if problem.mistake is Mistake.MANIFEST_COLUMN_MISSING:
        return f"the first line must name the columns {', '.join(wanted)}; {problem.detail}"
    advice = ADVICE[problem.mistake]
    line = f", line {problem.line}" if problem.line and "line" not in problem.detail else ""
    return f"{problem.detail}{line}: {advice.reason}; {advice.remedy}"


def renaming(text: str) -> tuple[str, str]:
    """Return what ``OLD=NEW`` says: a label of a table, and what it is called in the run.

    Raises:
        DataError: it says something else.
    """
    old, mark, new = (part.strip() for part in text.partition("="))
    if not (old and mark and new):
        raise DataError(f"--rename must be OLD=NEW, such as Pneumonie=pneumonia, got {text}")
    return old, new


def labels_of(table: LabelTable, keys: set[str]) -> tuple[dict[str, str], list[str]]:
    """Return labels by the keys of images, and which rows matched only without the ``.0`` that made them numbers.

    Raises:
        DataError: an exact row and a shortened one give one image two labels.
    """
    at_hand = {name: label for name, label in table.labels.items() if name in keys}
    shortened = []
    for name, label in table.labels.items():
        plain = without_point_zero(name)
        if name not in keys and plain in keys:
            if at_hand.setdefault(plain, label) != label:
                raise DataError(f"--labels, line {table.lines[name]}: this key has another label without its '.0'")
            shortened.append(name)
    return at_hand, shortened


def _write(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Write the manifest whole or not at all."""
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, _COLUMNS)
    table.writeheader()
    table.writerows(rows)
    try:
        write_private(path, text.getvalue().encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise DataError(f"{MANIFEST_NAME} could not be written: {error.strerror}") from None


def _account(listed: Listed, table: LabelTable, key: Key) -> Iterator[str]:
    """Say what became of every row and every image."""
    if listed.labels:
        yield "labels: " + ", ".join(f"{label} {count}" for label, count in sorted(listed.labels.items()))
    if listed.unmatched:
        zeros = len(listed.unmatched_but_for_zeros)
        hint = f" (leading zeros? without them {zeros} would match: give that column the format Text)" if zeros else ""
        yield f"{_times(listed.unmatched, 'row')} of the table match no image{hint}: {_lines(listed.unmatched)}"
    if listed.shortened:
        yield f"{_times(listed.shortened, 'row')} matched without the '.0' of a number: {_lines(listed.shortened)}"
    if table.without_key:
        rows = _times(table.without_key, "row")
        yield f"{rows} of the table without {key.value}, not used: {_lines(table.without_key)}"
    if table.without_label:
        yield f"{_times(table.without_label, 'row')} of the table without label: {_lines(table.without_label)}"
    if listed.unnamed:
        yield f"{_times(listed.unnamed, 'image')} that no row of the table names: {_some(listed.unnamed)}"
    if listed.without_key:
        images = _times(listed.without_key, "image")
        yield f"{images} without {key.value}, so without a label: {_some(listed.without_key)}"
    for remark in table.remarks:
        yield f"the table: {remark}"
    yield from _not_read(listed)


def _not_read(listed: Listed) -> Iterator[str]:
    yield from _found(listed.not_read)


def _found(findings: Sequence[Finding]) -> Iterator[str]:
    """Say of each kind of finding how often it was met, and name some places."""
    for mistake in dict.fromkeys(finding.mistake for finding in findings):
        places = [finding for finding in findings if finding.mistake is mistake]
        named = _some([": ".join(part for part in (place.where, place.detail) if part) for place in places])
        yield f"not listed, {mistake.value}: {named}; {ADVICE[mistake].remedy}"


def _times(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _lines(lines: Sequence[int]) -> str:
    return f"line{'' if len(lines) == 1 else 's'} {_some([str(line) for line in sorted(lines)])}"


def _some(names: Sequence[str]) -> str:
    more = [f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return ", ".join([*names[:SHOWN], *more])


def _header(archives: Archives, file: str) -> dict[str, str]:
    """Return what a DICOM header names; nothing for other files and for those a check will find damaged."""
    try:
        content = archives.content(file, MAX_FILE_BYTES)
        if not is_dicom(content):
            return {}
        dataset = parse_dicom(content)
        named = {key.value: str(dataset.get(keyword, "") or "").strip() for key, keyword in _KEYWORDS.items()}
        return {**named, "modality": str(dataset.get("Modality", "") or "")}
    except (OSError, UnusableArchiveError, UnusableImageError, *DECODER_ERRORS):
        return {}
