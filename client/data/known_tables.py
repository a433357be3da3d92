"""Reads the tables of five public sets of chest X-rays as they are published, so that nobody has to convert them.

=========== ============================================ ================================ ===================
set         table, recognised by its columns             an image is named by             a row's labels
=========== ============================================ ================================ ===================
NIH         ``Data_Entry_2017.csv``                      its file's name                  a list, ``A|B``
CheXpert    ``train.csv``, ``valid.csv``                 its path                         a column each
RSNA        ``stage_2_train_labels.csv``, or             its patient, one image each      ``Target``, 0 or 1,
            ``stage_2_detailed_class_info.csv`` alone                                     or ``class``, three
PadChest    ``PADCHEST_chest_x_ray_images_labels_*.csv`` its file's name                  a list, ``['a', 'b']``
MIMIC-CXR   ``mimic-cxr-2.0.0-chexpert.csv`` with        its DICOM identifier             a column each
            ``mimic-cxr-2.0.0-metadata.csv``
=========== ============================================ ================================ ===================

A table may be compressed (``.csv.gz``). Views that are not frontal are left out and counted by their names: lateral and
oblique ones and, in PadChest, those of the ribs (COSTAL) and those that its authors exclude (EXCLUDE). What such a
table says of a patient's age and sex and of the view is taken for the image's, as a DICOM header would be.
"""

import csv
import gzip
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from common.task import BETWEEN_LABELS, BETWEEN_NAME_AND_VALUE, Counts, ImageKindName, TaskConfig, TaskKind

TABLE_ENDINGS = (".csv", ".csv.gz")
_COMPRESSED = ".gz"
_HEAD_BYTES = 1 << 16
_MOST_TABLES = 64
"""Tables of a folder whose heads are read; a public set has a handful."""

_NOT_FRONTAL = frozenset({"L", "LATERAL", "LL", "LAT", "LAO", "RAO", "OBLICUA", "COSTAL", "EXCLUDE"})
"""What the tables call a view that is not frontal, or that the authors of PadChest exclude."""

_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_AGE = re.compile(r"0*(\d{1,3})(?:\.0+)?Y?")
_YEAR = re.compile(r"(\d{4})")
_CHEXPERT_PATIENT = re.compile(r"patient\d+")

NO_FINDING = "No Finding"

NIH_LABELS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
    "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip
CHEXPERT_LABELS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Said:
    """What a table says of an image beside its label.

    Attributes:
        position: of the view, such as PA or AP; '' if unknown.
        sex: F or M; '' if unknown.
        age: as DICOM writes it, ``036Y``; '' if unknown.
    """

    position: str = ""
    sex: str = field(default="", repr=False)
    age: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class KnownRow:
    """One image of a table.

    Attributes:
        line: of the table.
        image: its path, or its file's name.
        label: its labels, as :class:`common.task.LabelReader` reads them; None for a view that is left out.
        patient: identifier.
        said: what else is known.
    """

    line: int
    image: str = field(repr=False)
    label: str | None = field(repr=False)
    patient: str = field(repr=False)
    said: Said = field(repr=False)


Read = Callable[[str, tuple[str, ...]], Iterator[tuple[int, dict[str, str]]]]
"""A function that yields the rows of a table by its file's name and the columns that it must have, others wanted."""


@dataclass(frozen=True)
class KnownTable:
    """A public set's table in a folder.

    Attributes:
        name: of the set.
        files: names of its tables.
        by_path: images are named by their paths, not by their files' names.
        task: what its labels are; None where they are whatever stands in the table.
    """

    name: str
    files: tuple[str, ...]
    by_path: bool
    task: TaskConfig | None
    _rows: Callable[[tuple[str, ...], Read], Iterator[KnownRow]] = field(repr=False)

    def rows(self, read: Read) -> Iterator[KnownRow]:
        """Yield every image that the table names; ``read`` opens the files."""
        yield from self._rows(self.files, read)


def find_known_table(folder: Path) -> KnownTable | None:
    """Return the known table that lies in a folder; None where there is none."""
    heads: dict[str, frozenset[str]] = {}
    try:
        tables = sorted(path for path in folder.iterdir() if is_table(path.name))
    except OSError:
        return None
    for path in tables[:_MOST_TABLES]:
        heads[path.name] = _head(path)
    for name, tables_of, by_path, task, rows in _SETS:
        found = [[file for file, head in heads.items() if columns <= head] for columns in tables_of]
        if all(found):
            files = found[0] if len(found) == 1 else [matching[0] for matching in found]
            return KnownTable(name, tuple(files), by_path, task, rows)
    return None


def is_table(name: str) -> bool:
    """Return whether a file's name is that of a table."""
    return name.lower().endswith(TABLE_ENDINGS)


def decompressed(name: str, content: bytes, most: int) -> bytes:
    """Return a table's text; a compressed one is unpacked up to ``most`` bytes.

    Raises:
        ValueError: it is damaged, or larger.
    """
    if not name.lower().endswith(_COMPRESSED):
        return content
    unpacker = zlib.decompressobj(wbits=31)
    try:
        text = unpacker.decompress(content, most + 1)
    except zlib.error:
        raise ValueError("it is damaged") from None
    if len(text) > most or not unpacker.eof:
        raise ValueError(f"it is cut short, or has more than {most} bytes when unpacked")
    return text


def stem(file: str) -> str:
    """Return a file's name without its ending, as images are named that were saved in another format."""
    return PurePosixPath(file).stem


def _head(path: Path) -> frozenset[str]:
    try:
        with gzip.open(path) if path.name.lower().endswith(_COMPRESSED) else path.open("rb") as file:
            text = file.read(_HEAD_BYTES).decode("utf-8-sig", "replace")
        return frozenset(cell.strip() for cell in next(csv.reader(text.splitlines()[:1]), []))
    except (OSError, EOFError, csv.Error, zlib.error):
        return frozenset()


def _nih(files: tuple[str, ...], read: Read) -> Iterator[KnownRow]:
    columns = ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender", "Patient Sex",
               "View Position")  # fmt: skip
    for line, cells in read(files[0], columns):
        sex = cells.get("Patient Gender") or cells.get("Patient Sex", "")
        said = Said(cells.get("View Position", ""), sex.upper()[:1], age_written(cells.get("Patient Age", "")))
        yield KnownRow(line, cells["Image Index"], cells["Finding Labels"], cells.get("Patient ID", ""), said)


def _chexpert(files: tuple[str, ...], read: Read) -> Iterator[KnownRow]:
    for file in files:
        columns = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", NO_FINDING, *CHEXPERT_LABELS)
        for line, cells in read(file, columns):
            patient = _CHEXPERT_PATIENT.search(cells["Path"])
            side = cells.get("Frontal/Lateral", "")
            is_left_out = _is_not_frontal(side)
            view = side if is_left_out else cells.get("AP/PA", "")
            said = Said(view, cells.get("Sex", "").upper()[:1], age_written(cells.get("Age", "")))
            label = None if is_left_out else _by_column(cells)
            yield KnownRow(line, cells["Path"], label, patient[0] if patient else "", said)


def _rsna(column: str, files: tuple[str, ...], read: Read) -> Iterator[KnownRow]:
    seen: set[str] = set()  # A patient has a row for each box; all of them have the same label.
    for line, cells in read(files[0], ("patientId", column)):
        patient = cells["patientId"]
        if patient not in seen:
            seen.add(patient)
            yield KnownRow(line, patient, cells[column], patient, Said())


def _padchest(files: tuple[str, ...], read: Read) -> Iterator[KnownRow]:
    columns = ("ImageID", "PatientID", "Labels", "Projection", "PatientBirth", "PatientSex_DICOM", "StudyDate_DICOM")
    for line, cells in read(files[0], columns):
        projection = cells.get("Projection", "")
        found = [(one or other).strip() for one, other in _QUOTED.findall(cells["Labels"])]
        label = BETWEEN_LABELS.join(dict.fromkeys(each for each in found if each))
        born, studied = _YEAR.match(cells.get("PatientBirth", "")), _YEAR.match(cells.get("StudyDate_DICOM", ""))
        age = str(max(0, int(studied[1]) - int(born[1]))) if born and studied else ""
        said = Said(projection, cells.get("PatientSex_DICOM", "").upper()[:1], age_written(age))
        is_left_out = _is_not_frontal(projection)
        yield KnownRow(line, cells["ImageID"], None if is_left_out else label, cells.get("PatientID", ""), said)


def _mimic(files: tuple[str, ...], read: Read) -> Iterator[KnownRow]:
    labels = {}
    studies, images = files[0], files[1]
    for _, cells in read(studies, ("study_id", NO_FINDING, *CHEXPERT_LABELS)):
        labels[cells["study_id"]] = _by_column(cells)
    for line, cells in read(images, ("dicom_id", "subject_id", "study_id", "ViewPosition")):
        label = labels.get(cells["study_id"], "")
        is_left_out = _is_not_frontal(cells.get("ViewPosition", ""))
        yield KnownRow(
            line, cells["dicom_id"], None if is_left_out else label, cells["subject_id"],
            Said(cells.get("ViewPosition", "")),
        )  # fmt: skip


def _by_column(cells: dict[str, str]) -> str:
    return BETWEEN_LABELS.join(
        f"{name}{BETWEEN_NAME_AND_VALUE}{cells[name]}" for name in (NO_FINDING, *CHEXPERT_LABELS) if name in cells
    )


def _is_not_frontal(view: str) -> bool:
    return view.strip().upper() in _NOT_FRONTAL


def age_written(text: str) -> str:
    """Return whole years in a table as DICOM writes them, ``036Y``; '' for what is not an age."""
    years = _AGE.fullmatch(text.strip().upper())
    return f"{int(years[1]):03d}Y" if years else ""


_CHEST = {"kind": TaskKind.MULTILABEL, "images": ImageKindName.CHEST_RADIOGRAPH, "labels": {NO_FINDING: ""}}
_UNCERTAIN_IS_UNKNOWN = {"uncertain": Counts.LEAVE_OUT, "empty": Counts.NEGATIVE}
"""What the labellers of CheXpert and MIMIC-CXR mean: -1 is a label that they are not sure of, empty one that no report
mentions."""

_NIH_TASK = TaskConfig.model_validate({**_CHEST, "classes": NIH_LABELS, "empty": Counts.NEGATIVE})
_CHEXPERT_TASK = TaskConfig.model_validate({**_CHEST, **_UNCERTAIN_IS_UNKNOWN, "classes": CHEXPERT_LABELS})
_RSNA_TASK = TaskConfig(
    kind=TaskKind.BINARY,
    classes=("no pneumonia", "pneumonia"),
    positive=("pneumonia",),
    images=ImageKindName.CHEST_RADIOGRAPH,
)

_RSNA_DETAILED_TASK = TaskConfig(
    kind=TaskKind.MULTICLASS,
    classes=("Normal", "No Lung Opacity / Not Normal", "Lung Opacity"),
    positive=("Lung Opacity",),
    images=ImageKindName.CHEST_RADIOGRAPH,
)

_Rows = Callable[[tuple[str, ...], Read], Iterator[KnownRow]]

_SETS: tuple[tuple[str, tuple[frozenset[str], ...], bool, TaskConfig | None, _Rows], ...] = (
    (
        "MIMIC-CXR",
        (frozenset({"subject_id", "study_id", NO_FINDING}), frozenset({"dicom_id", "study_id", "ViewPosition"})),
        False, _CHEXPERT_TASK, _mimic,
    ),
    ("CheXpert", (frozenset({"Path", "Frontal/Lateral", NO_FINDING}),), True, _CHEXPERT_TASK, _chexpert),
    ("NIH ChestX-ray14", (frozenset({"Image Index", "Finding Labels"}),), False, _NIH_TASK, _nih),
    ("PadChest", (frozenset({"ImageID", "PatientID", "Labels", "Projection"}),), False, None, _padchest),
    ("RSNA Pneumonia", (frozenset({"patientId", "Target"}),), False, _RSNA_TASK, partial(_rsna, "Target")),
    ("RSNA Pneumonia, detailed classes", (frozenset({"patientId", "class"}),), False, _RSNA_DETAILED_TASK,
     partial(_rsna, "class")),
)  # fmt: skip
"""Name, the columns that each of its tables has, how images are named, what its labels are, and how rows are read."""
