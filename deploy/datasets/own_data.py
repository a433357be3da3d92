"""A person's own images for a demo: what task they pose, and the images themselves, read as a hospital reads them.

A folder, or a tar of one, in any layout that :mod:`client.data.catalogue` knows. What is proposed is a beginning: which
class is looked for, and what an uncertain label counts as, are for people to decide.
"""

import contextlib
import datetime
import re
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import yaml

from client.data.archives import Archives
from client.data.catalogue import SPLIT_FOLDERS, read_catalogue, scan_images
from client.data.contract import DataContract
from client.data.examine import examine_all, read_file
from client.data.known_tables import find_known_table
from client.data.mistakes import Finding, Mistake, Weight
from client.data.pixels import UnusableImageError
from client.data.readers import quiet, read_picture
from client.data.survey import Survey
from client.data.tables import UnusableTableError, read_table
from common.errors import ConfigError, DataError
from common.shards import MANIFEST_NAME, SPLITS, Records, Split
from common.task import BETWEEN_LABELS, MOST_CLASSES, MOST_LABELS, MOST_LABELS_LEFT_OUT, Counts, TaskConfig, TaskKind

TASK_FILE = "task.yaml"
"""The proposed section in a run's folder: a configuration that ``--config`` takes."""

_SAMPLED = 24
"""Images that are opened to tell grey from colour."""

_GREY_AXES = 2
_FEWEST_CLASSES = 2
_MOST_PROPOSED = 20
"""Findings that are proposed as labels where a table has hundreds: the most frequent ones."""

_HEALTHY = re.compile(
    r"\W*(normal|healthy|negative|neg|benign|control|controls|clear|none|unremarkable|no[ _-].*|non[ _-].*|0)\W*",
    re.IGNORECASE,
)
_UNCERTAIN = frozenset({"-1", "-1.0"})
_VALUES = frozenset({"", "0", "1", "0.0", "1.0"}) | _UNCERTAIN
_NOT_LABELS = ("file", "patient_id", "split", "age", "sex", "gender", "view", "path", "date", "id", "image", "study")


_ABSENT = "uncertain and empty labels count as absent (negative); decide."
_UNKNOWN = "an uncertain label (-1) is left out of its record, an empty one counts as absent (negative); decide."


@dataclass(frozen=True)
class TaskProposal:
    """What a person's data suggest.

    Attributes:
        name: for ``experiment.task``.
        terms: the section ``task``.
        source: where it was read off, in words.
        doubts: what a person should decide, a sentence each.
    """

    name: str
    terms: TaskConfig
    source: str
    doubts: tuple[str, ...] = ()

    def as_yaml(self) -> str:
        """Return the sections as ``config.yaml`` holds them, with the doubts as comments."""
        section = {key: value for key, value in self.terms.model_dump(mode="json").items() if value not in ([], {})}
        tree = {"experiment": {"task": self.name}, "task": section}
        head = f"# Proposed from {self.source}. Change what is wrong; --config takes this file.\n"
        return (
            head + "".join(f"# {doubt}\n" for doubt in self.doubts) + yaml.safe_dump(tree, sort_keys=False, width=100)
        )


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Path]:
    """Give the folder that holds the images: a tar is unpacked beside nothing else, and removed afterwards.

    Folders that hold one folder and nothing else are passed through.

    Raises:
        DataError: there is no such path, the tar is damaged, or the disk is full.
    """
    if not path.exists():
        raise DataError(f"--data must be auto, phantom or a path that exists; there is no {path}")
    if path.is_dir():
        yield _innermost(path)
        return
    with tempfile.TemporaryDirectory(prefix="confide-data-") as folder:
        try:
            with tarfile.open(path, "r:*") as archive:
                needed, free = sum(member.size for member in archive), shutil.disk_usage(folder).free
                if needed > free:
                    raise DataError(f"{path.name} needs {needed} bytes of disk to be unpacked, {free} are free")
            with tarfile.open(path, "r:*") as archive:
                archive.extractall(folder, filter="data")
        except (tarfile.TarError, EOFError, OSError, ValueError):
            raise DataError(
                f"{path.name} must be an npz file, a folder or a tar of one; it is damaged or something else"
            ) from None
        yield _innermost(Path(folder))


def propose(path: Path) -> TaskProposal:
    """Return the task that a folder or a tar suggests.

    Raises:
        DataError: it holds no images, or nothing tells their classes apart.
    """
    name = _task_name(path.name)
    with opened(path) as folder:
        channels = _channels(folder)
        known = find_known_table(folder)
        if known is not None and known.task is not None:
            terms = known.task.model_copy(update={"channels": channels})
            doubts = (_UNKNOWN,) if terms.leaves_labels_out else ()
            return TaskProposal(name, terms, f"the table of {known.name}", doubts)
        if known is not None:
            return _of_findings(name, [row.label for row in known.rows(_reader(folder)) if row.label is not None],
                                channels, f"the table of {known.name}")  # fmt: skip
        if (folder / MANIFEST_NAME).exists():
            return _of_manifest(name, folder, channels)
        return _of_classes(name, _class_folders(folder), channels, "the names of folders")


def read(path: Path, contract: DataContract) -> tuple[Mapping[Split, Records], tuple[str, ...]]:
    """Read all images as a hospital would, and leave out those that a hospital would refuse.

    Args:
        path: a folder, or a tar of one.
        contract: what a run would ask, with the task.

    Returns:
        The parts, split by patient where the data do not say how, and notes on what was left out.

    Raises:
        DataError: a label is none of the task's, the list cannot be read, or no image is left.
    """
    with opened(path) as folder:
        catalogue = read_catalogue(folder, contract.meaning)
        _refuse(catalogue.findings, contract)
        survey, held, found = Survey(contract), list[_Held](), Counter[str]()
        today = datetime.datetime.now(datetime.UTC).date()
        left_out: dict[str, Mistake] = {}
        for examined in examine_all(catalogue, contract, today):
            label = examined.entry.label
            if label is None:
                continue
            for finding in examined.findings:
                if finding.blocks:
                    left_out.setdefault(examined.entry.file, finding.mistake)
            if examined.usable is not None:
                split, _ = survey.add(examined, examined.usable)
                patient = examined.entry.patient or examined.header.patient
                held.append(_Held(examined.entry.file, split, label, patient, examined.usable.pixels))
        for finding in survey.findings():
            if finding.blocks and finding.where:
                left_out.setdefault(finding.where, finding.mistake)
    found.update(mistake.value for mistake in left_out.values())
    kept = [one for one in held if one.file not in left_out]
    notes = tuple(f"{count} images left out: {mistake}" for mistake, count in sorted(found.items()))
    remarks = [finding for finding in catalogue.findings if finding.mistake is Mistake.TABLE_REMARK]
    return _parts(kept, contract), (*notes, *(finding.detail for finding in remarks))


@dataclass(frozen=True)
class _Held:
    file: str
    split: Split
    label: int
    patient: str
    pixels: npt.NDArray[np.uint8] = field(repr=False)


def _parts(kept: list[_Held], contract: DataContract) -> Mapping[Split, Records]:
    parts: dict[Split, Records] = {}
    for split in SPLITS:
        own = [one for one in kept if one.split == split]
        shape = (len(own), contract.channels, contract.image_size, contract.image_size)
        images = np.stack([one.pixels for one in own]) if own else np.empty(shape, np.uint8)
        labels = np.array([one.label for one in own], np.int64)
        parts[split] = Records(images, labels, tuple(one.patient for one in own))
    if not len(parts["train"]) or not len(parts["test"]):
        raise DataError(
            f"the data must hold images to train and to test on, got {len(parts['train'])} and {len(parts['test'])}; "
            "add images, or see ./confide hospital check-data for why they are not used"
        )
    return parts


def _refuse(findings: Iterable[Finding], contract: DataContract) -> None:
    """Refuse a list that the task does not fit, in one line.

    Raises:
        DataError: names the first mistake, how often it occurs, what was got and what to do.
    """
    refused = [finding for finding in findings if finding.advice.weight is Weight.REFUSED]
    if not refused:
        return
    first = refused[0]
    times = sum(finding.mistake is first.mistake for finding in refused)
    got = f" ({first.detail or PurePosixPath(first.where).name!s})" if first.detail or first.where else ""
    classes = f"; the classes are {', '.join(contract.classes)}" if first.mistake is Mistake.LABEL_UNKNOWN else ""
    raise DataError(
        f"--data must fit the task: {first.advice.reason}, in {times} places{got}{classes}; {first.advice.remedy}"
    )


def _innermost(folder: Path) -> Path:
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return _innermost(inside[0]) if len(inside) == 1 and inside[0].is_dir() else folder


def _task_name(name: str) -> str:
    """Return a name for a task as the configuration takes it.

    >>> _task_name("COVID-19 Radiography.tar.gz"), _task_name("2024")
    ('covid_19_radiography', 'own_2024')
    """
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower().split(".")[0]).strip("_")
    return (plain if plain[:1].isalpha() else f"own_{plain}".rstrip("_"))[:64]


def _channels(folder: Path) -> int:
    """Return 3 where a sample of the images holds colours, else 1.

    Raises:
        DataError: there is no image.
    """
    images = scan_images(folder).images
    if not images:
        raise DataError("--data must hold images (PNG, JPEG or DICOM, also in zip archives); there are none")
    step = max(1, len(images) // _SAMPLED)
    with quiet(), Archives(folder) as archives:
        for file in images[::step][:_SAMPLED]:
            with contextlib.suppress(UnusableImageError):
                if _is_coloured(read_picture(read_file(archives, file), 3).pixels):
                    return 3
    return 1


def _is_coloured(pixels: npt.NDArray[np.uint8]) -> bool:
    return pixels.ndim > _GREY_AXES and bool((pixels[..., 0] != pixels[..., 1]).any())


def _class_folders(folder: Path) -> list[str]:
    names: Counter[str] = Counter()
    for file in scan_images(folder).images:
        parts = [part for part in PurePosixPath(file).parts[:-1] if not part.lower().endswith(".zip")]
        inside = parts[1:] if parts and parts[0].lower() in SPLIT_FOLDERS else parts
        if inside:
            names[inside[0]] += 1
    return sorted(names, key=str.casefold)


def _of_manifest(name: str, folder: Path, channels: int) -> TaskProposal:
    try:
        columns = _all_columns(folder / MANIFEST_NAME)
        table = read_table((folder / MANIFEST_NAME).read_bytes(), columns, ("file",))
        rows = [cells for _, cells in table.rows() if cells is not None]
    except (OSError, UnusableTableError):
        raise DataError(f"{MANIFEST_NAME} must be a table with the columns file and label; see check-data") from None
    if "label" in (column.casefold() for column in columns):
        label = next(column for column in columns if column.casefold() == "label")
        texts = [cells[label] for cells in rows]
        if any(BETWEEN_LABELS in text for text in texts):
            return _of_findings(name, texts, channels, f"the labels in {MANIFEST_NAME}")
        return _of_classes(name, sorted({text for text in texts if text not in ("", "-1")}), channels,
                           f"the labels in {MANIFEST_NAME}")  # fmt: skip
    found = [
        column
        for column in columns
        if not any(word in column.casefold() for word in _NOT_LABELS) and {cells[column] for cells in rows} <= _VALUES
    ]
    if not found:
        raise DataError(
            f"{MANIFEST_NAME} must have a column label, or a column of 0 and 1 for each label; it has neither"
        )
    labels = found[:MOST_LABELS]
    has_uncertain = any(cells[column] in _UNCERTAIN for cells in rows for column in labels)
    uncertain = Counts.LEAVE_OUT if has_uncertain and len(labels) <= MOST_LABELS_LEFT_OUT else Counts.NEGATIVE
    return _of_labels(name, labels, {}, channels, f"the columns of {MANIFEST_NAME}", uncertain)


def _all_columns(path: Path) -> tuple[str, ...]:
    head = path.read_bytes()[: 1 << 16].decode("utf-8-sig", "replace").splitlines()[:1]
    line = head[0] if head else ""
    separator = max(",;\t|", key=line.count)
    return tuple(cell.strip().strip('"') for cell in line.split(separator) if cell.strip())


def _reader(folder: Path):  # type: ignore[no-untyped-def]  # noqa: ANN202 - the type is known_tables.Read
    def rows(name: str, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
        try:
            table = read_table((folder / name).read_bytes(), columns, columns[:2])
            yield from ((line, cells) for line, cells in table.rows() if cells is not None)
        except (OSError, UnusableTableError):
            raise DataError(f"{name} must be a table that can be read; see check-data") from None

    return rows


def _of_findings(name: str, texts: list[str], channels: int, source: str) -> TaskProposal:
    """Propose the most frequent findings of lists such as ``Edema|Effusion`` as labels; the others are no matter."""
    times = Counter(item.strip() for text in texts for item in text.split(BETWEEN_LABELS) if item.strip())
    healthy = [item for item in times if _HEALTHY.fullmatch(item)]
    frequent = [item for item, _ in times.most_common() if item not in healthy][:_MOST_PROPOSED]
    other = {item: "" for item in times if item not in frequent}
    return _of_labels(name, sorted(frequent), other, channels, source)


def _of_labels(
    name: str,
    labels: Iterable[str],
    other: Mapping[str, str],
    channels: int,
    source: str,
    uncertain: Counts = Counts.NEGATIVE,
) -> TaskProposal:
    terms = _terms(
        kind=TaskKind.MULTILABEL,
        classes=tuple(labels),
        labels=dict(other),
        uncertain=uncertain,
        empty=Counts.NEGATIVE,
        channels=channels,
    )
    return TaskProposal(name, terms, source, (_UNKNOWN if terms.leaves_labels_out else _ABSENT,))


def _of_classes(name: str, classes: list[str], channels: int, source: str) -> TaskProposal:
    if not _FEWEST_CLASSES <= len(classes) <= MOST_CLASSES:
        found = ", ".join(classes[:3]) or "none"
        raise DataError(
            f"--data must tell {_FEWEST_CLASSES} to {MOST_CLASSES} classes apart, by folders such as train/covid/1.png "
            f"or a {MANIFEST_NAME} with file,label; got {len(classes)} ({found})"
        )
    sick = tuple(each for each in classes if not _HEALTHY.fullmatch(each))
    positive: tuple[str, ...]
    if len(classes) == _FEWEST_CLASSES:
        positive = sick if len(sick) == 1 else (classes[1],)
        doubts = () if len(sick) == 1 else (f"nothing says that {classes[1]} is the class looked for; decide.",)
        terms = _terms(kind=TaskKind.BINARY, classes=tuple(classes), positive=positive, channels=channels)
        return TaskProposal(name, terms.normal(), source, doubts)
    if all(each.isdigit() for each in classes):
        ordered = tuple(sorted(classes, key=int))
        doubts = ("numbers are taken for grades in their order; if they are not, kind is multiclass.",)
        return TaskProposal(name, _terms(kind=TaskKind.ORDINAL, classes=ordered, channels=channels), source, doubts)
    positive = sick if len(sick) < len(classes) else ()
    terms = _terms(kind=TaskKind.MULTICLASS, classes=tuple(classes), positive=positive, channels=channels)
    return TaskProposal(name, terms, source)


def _terms(**fields: object) -> TaskConfig:
    try:
        return TaskConfig.model_validate(fields)
    except ValueError as error:
        raise ConfigError(f"no task can be proposed for this data: {str(error).splitlines()[-1].strip()}") from None
