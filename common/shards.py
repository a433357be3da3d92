"""A hospital's shard: a folder of images with a manifest, the same from the demo's dealer and a real hospital.

::

    shard/
      manifest.csv     file,label,patient_id,split     UTF-8, one row an image, split is train, val or test
      shard.json       format version, data set, classes, channels, image size; a hospital may leave it out
      train/000000.png …

A label is the name of a class or its index. An empty ``patient_id`` says that the patient is unknown. The
manifest is written last, so a folder without one is a shard whose writing was cut short. Errors give the row of
the manifest and never what stands in it: a file name or a patient number may identify a person.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from common.errors import DataError
from common.files import make_private_folder
from common.task import Counts, TaskConfig, TaskKind, implied

Split: TypeAlias = Literal["train", "val", "test"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")
COLUMNS = ("file", "label", "patient_id", "split")
MANIFEST_NAME = "manifest.csv"
DESCRIPTION_NAME = "shard.json"
SHARD_FORMAT = "confide-shard"
SHARD_VERSION = 1

MAX_MANIFEST_BYTES = 256 * 2**20
"""About two million rows; more than any hospital has images, and little enough to hold in memory."""

MAX_FILE_BYTES = 256 * 2**20
"""One image file; an uncompressed 16-bit radiograph of the largest detectors has about 32 MiB."""

MAX_PIXELS = 64 * 2**20
"""One image; the largest radiography detectors have about 18 million pixels, and a bomb claims billions."""

_MOST_DIGITS = 9
"""The most digits of a label. A longer one is no class, and turning it into a number would cost time."""

_CHANNEL_MODES = {1: "L", 3: "RGB"}
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
SIXTEEN_BIT_MODE = "I;16"
"""A grey PNG of 16 bits. Pillow itself gives colour of 16 bits as the upper 8 of them."""

_STEP = (2**16 - 1) // (2**8 - 1)
"""How many of 16 bits' values are one of 8 bits'."""


@dataclass(frozen=True, eq=False)
class Records:
    """Images with their labels and patients, row for row; none of it is ever printed.

    Attributes:
        images: uint8, shape (n, c, h, w).
        labels: int64, shape (n,): the index of the class, or the sum over labels (:mod:`common.task`).
        patients: n identifiers, an empty one where the patient is unknown.
    """

    images: npt.NDArray[np.uint8] = field(repr=False)
    labels: npt.NDArray[np.int64] = field(repr=False)
    patients: tuple[str, ...] = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together.

        Raises:
            DataError: a shape or type is wrong, or the lengths differ.
        """
        if self.images.ndim != 4 or self.images.dtype != np.uint8:  # noqa: PLR2004 - (n, c, h, w)
            raise DataError(
                f"images must be uint8 of shape (n, c, h, w), got {self.images.dtype} of {self.images.shape}"
            )
        if self.labels.ndim != 1 or self.labels.dtype != np.int64:
            raise DataError(f"labels must be int64 of shape (n,), got {self.labels.dtype} of shape {self.labels.shape}")
        if not len(self.images) == len(self.labels) == len(self.patients):
            lengths = f"{len(self.images)}, {len(self.labels)} and {len(self.patients)}"
            raise DataError(f"images, labels and patients must have one length, got {lengths}")

    def __len__(self) -> int:
        """Return the number of records, n."""
        return len(self.labels)

    def select(self, rows: npt.NDArray[np.int64]) -> Self:
        """Return the records at ``rows``, int64 of shape (m,), in that order."""
        return type(self)(self.images[rows], self.labels[rows], tuple(self.patients[row] for row in rows))


@dataclass(frozen=True)
class ShardDescription:
    """What a shard says of itself in ``shard.json``."""

    data_set: str
    task: str
    classes: tuple[str, ...]
    channels: int
    image_size: int
    several: bool = False
    """Whether a record can have any number of the classes, which then are labels."""
    uncertain: Counts = Counts.REFUSE
    empty: Counts = Counts.REFUSE
    """What an uncertain and an empty label counts as, of several; a label that is left out is written as one."""

    @property
    def terms(self) -> TaskConfig:
        """What the labels are."""
        if self.several:
            return TaskConfig(
                kind=TaskKind.MULTILABEL, classes=self.classes, uncertain=self.uncertain, empty=self.empty
            )
        return implied(self.task, self.classes)


@dataclass(frozen=True)
class ManifestRow:
    """One image: where it lies below the folder, and what is said of it."""

    number: int
    """Its line in the manifest, the header being line 1."""
    file: str = field(repr=False)
    label: str = field(repr=False)
    patient_id: str = field(repr=False)
    split: Split = field(repr=False)


def write(folder: Path, description: ShardDescription, parts: Mapping[Split, Records]) -> None:
    """Write a shard: images first, the manifest last, all readable by their owner alone.

    Args:
        folder: made if missing; a folder that holds a manifest already is refused, never overwritten.
        description: goes to ``shard.json``.
        parts: the records of each split; labels index ``description.classes``.

    Raises:
        DataError: a shard is already there, a label is outside the classes, or the disk refuses.
    """
    if (folder / MANIFEST_NAME).exists():
        raise DataError(f"the folder for a shard must be new: {folder} holds one already; remove it or choose another")
    for records in parts.values():
        if len(records) and not 0 <= records.labels.min() <= records.labels.max() < description.terms.numbers:
            raise DataError(f"a shard's labels must lie in 0 … {description.terms.numbers - 1}")
    try:
        make_private_folder(folder)
        rows: list[tuple[str, str, str, str]] = []
        for split, records in parts.items():
            rows += _write_images(folder, split, records, description.terms)
        _write_private(folder / DESCRIPTION_NAME, _encode_description(description))
        table = io.StringIO(newline="")
        csv.writer(table).writerows([COLUMNS, *rows])
        partial = folder / f".{MANIFEST_NAME}.partial"
        _write_private(partial, table.getvalue().encode())
        partial.replace(folder / MANIFEST_NAME)
    except OSError as error:
        raise DataError(
            f"a shard could not be written to {folder}: {error.strerror}; see to space and rights"
        ) from None


def load(folder: Path, split: Split, image_size: int, channels: int, classes: Sequence[str] | None = None) -> Records:
    """Read one split of a shard into memory.

    Args:
        folder: the shard.
        split: which rows.
        image_size: pixels on a side of what is returned; see :func:`fit`.
        channels: 1 (grey) or 3 (colour).
        classes: names in the order of their indices; without them those of ``shard.json`` hold.

    Returns:
        The records in the manifest's order; none when no row has this split.

    Raises:
        DataError: the manifest or an image breaks a rule; names the row.
    """
    rows = [row for row in read_manifest(folder) if row.split == split]
    names = tuple(classes) if classes is not None else _classes_of(folder)
    images = np.empty((len(rows), channels, image_size, image_size), np.uint8)
    labels = np.empty(len(rows), np.int64)
    root = folder.resolve()
    for position, row in enumerate(rows):
        labels[position] = _label_of(row, names)
        images[position] = decode_image(
            _read_inside(root, row), f"{MANIFEST_NAME} row {row.number}", image_size, channels
        )
    return Records(images, labels, tuple(row.patient_id for row in rows))


def fingerprint(folder: Path) -> bytes:
    """Return 32 bytes that name this data: SHA-256 over content, label, patient and split of every image.

    The order of rows and the names of files do not matter; any change of an image's bytes, or of what is said of
    it, does.

    Raises:
        DataError: the manifest breaks a rule or a file cannot be read.
    """
    root = folder.resolve()
    return combine_digests(
        record_digest(hashlib.sha256(_read_inside(root, row)).digest(), row.label, row.patient_id, row.split)
        for row in read_manifest(folder)
    )


def record_digest(content_digest: bytes, label: str, patient_id: str, split: str) -> bytes:
    """Return 32 bytes that name one record: SHA-256 over that of its file and over what is said of it."""
    digest = hashlib.sha256(content_digest)
    for text in (label, patient_id, split):
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(4, "big") + encoded)
    return digest.digest()


def combine_digests(records: Iterable[bytes]) -> bytes:
    """Return the fingerprint of a data set, 32 bytes, from those of its records in any order."""
    digest = hashlib.sha256(f"{SHARD_FORMAT} {SHARD_VERSION} fingerprint".encode())
    for record in sorted(records):
        digest.update(record)
    return digest.digest()


def read_manifest(folder: Path) -> tuple[ManifestRow, ...]:
    """Read and check ``manifest.csv``; further columns are allowed and ignored.

    Raises:
        DataError: it is missing, too large, not UTF-8 or not CSV, lacks a column, or has an unknown split.
    """
    path = folder / MANIFEST_NAME
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise DataError(f"{MANIFEST_NAME} must have at most {MAX_MANIFEST_BYTES} bytes")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"a shard must hold a readable {MANIFEST_NAME}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{MANIFEST_NAME} must be UTF-8; byte {error.start} is not: save it again as UTF-8") from None
    return tuple(_rows(text))


def read_description(folder: Path) -> ShardDescription | None:
    """Read ``shard.json``, or return None where a hospital has none.

    Raises:
        DataError: it is not one, or of a version this program does not know.
    """
    path = folder / DESCRIPTION_NAME
    if not path.exists():
        return None
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if (tree["format"], tree["version"]) != (SHARD_FORMAT, SHARD_VERSION):
            raise DataError(f"{DESCRIPTION_NAME} must be {SHARD_FORMAT} version {SHARD_VERSION}; deal the data again")
        return ShardDescription(
            str(tree["data_set"]),
            str(tree["task"]),
            tuple(str(name) for name in tree["classes"]),
            int(tree["channels"]),
            int(tree["image_size"]),
            bool(tree.get("several", False)),
            Counts(tree.get("uncertain", Counts.REFUSE)),
            Counts(tree.get("empty", Counts.REFUSE)),
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise DataError(f"{DESCRIPTION_NAME} must be a readable shard description; remove it or deal again") from None


def class_index(label: str, classes: Sequence[str]) -> int | None:
    """Return the index that a label means, be it a class name (in any case) or an index, or None if it is neither.

    >>> class_index("Pneumonia", ("normal", "pneumonia")), class_index("0", ("normal", "pneumonia"))
    (1, 0)
    """
    wanted = label.strip().casefold()
    for index, name in enumerate(classes):
        if wanted == name.casefold():
            return index
    if wanted.isascii() and wanted.isdigit() and len(wanted) <= _MOST_DIGITS and int(wanted) < len(classes):
        return int(wanted)
    return None


def decode_image(encoded: bytes, where: str, image_size: int, channels: int) -> npt.NDArray[np.uint8]:
    """Decode a PNG or JPEG to uint8 of shape (channels, image_size, image_size).

    Args:
        encoded: the whole file.
        where: what to call it in an error, such as the row of the manifest.
        image_size: pixels on a side of what is returned.
        channels: 1 or 3.

    Raises:
        DataError: it is no PNG or JPEG, is cut short, or claims more than ``MAX_PIXELS`` pixels.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{where}: an image must have at most {MAX_PIXELS} pixels")
            if image.mode not in (*EIGHT_BIT_MODES, SIXTEEN_BIT_MODE):
                raise DataError(
                    f"{where}: a PNG must have 8 or 16 bits a channel, got mode {image.mode}; export 8 bits"
                )
            return fit(eight_bits(image).convert(_CHANNEL_MODES[channels]), image_size)
    except UnidentifiedImageError:
        raise DataError(f"{where}: the file must be a PNG or JPEG image") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise DataError(f"{where}: the image is damaged or cut short; export it again") from None


def eight_bits(image: Image.Image) -> Image.Image:
    """Return an image as it is, or a grey one of 16 bits scaled to 8, as a viewer shows it.

    0 becomes black and 65,535 white: a PNG's samples span the whole range of its depth (W3C, PNG, 12.4), and Pillow's
    own conversion would cut off whatever is above 255.
    """
    if image.mode != SIXTEEN_BIT_MODE:
        return image
    return Image.fromarray(((np.asarray(image, np.uint32) + _STEP // 2) // _STEP).astype(np.uint8))


def fit(image: Image.Image, image_size: int) -> npt.NDArray[np.uint8]:
    """Crop to the middle square and resize with anti-aliasing, as MedMNIST was made (Yang et al. 2023, Methods).

    Returns:
        uint8 of shape (c, image_size, image_size), c the number of the image's bands.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    if image.width != image.height:
        image = image.crop((left, top, left + side, top + side))
    if side != image_size:
        image = image.resize((image_size, image_size), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, np.uint8)
    return pixels[np.newaxis] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)  # noqa: PLR2004 - grey has no axis


def to_image(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """Return uint8 pixels of shape (1, h, w) or (3, h, w) as a grey or colour image."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, 2))


def _label_of(row: ManifestRow, classes: Sequence[str]) -> int:
    label = class_index(row.label, classes)
    if label is None:
        allowed = f"one of {', '.join(classes)} or 0 … {len(classes) - 1}"
        raise DataError(f"{MANIFEST_NAME} row {row.number}: the label must be {allowed}")
    return label


def _rows(text: str) -> Iterator[ManifestRow]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise DataError(
                f"{MANIFEST_NAME} must have the columns {','.join(COLUMNS)} in its first line; "
                f"missing: {', '.join(missing)}"
            )
        for cells in reader:
            number = reader.line_num
            values = [cells[column] for column in COLUMNS]
            if None in cells or None in values:
                raise DataError(f"{MANIFEST_NAME} row {number}: must have as many cells as the first line")
            file, label, patient_id, split = (str(value).strip() for value in values)
            yield ManifestRow(number, file, label, patient_id, _split(split, number))
    except csv.Error:
        raise DataError(
            f"{MANIFEST_NAME} row {reader.line_num}: must be CSV; look for an open quotation mark"
        ) from None


def _split(name: str, number: int) -> Split:
    for split in SPLITS:
        if name == split:
            return split
    raise DataError(f"{MANIFEST_NAME} row {number}: split must be train, val or test")


def _read_inside(root: Path, row: ManifestRow) -> bytes:
    """Return a file's bytes if it really lies below ``root``, whatever links and dots its name holds."""
    relative = PurePosixPath(row.file)
    path = root / relative
    try:
        if relative.is_absolute() or not path.resolve().is_relative_to(root):
            raise DataError(f"{MANIFEST_NAME} row {row.number}: the file must lie inside the folder")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError):
        raise DataError(f"{MANIFEST_NAME} row {row.number}: the file is missing or cannot be read") from None
    if len(content) > MAX_FILE_BYTES:
        raise DataError(f"{MANIFEST_NAME} row {row.number}: a file must have at most {MAX_FILE_BYTES} bytes")
    return content


def _classes_of(folder: Path) -> tuple[str, ...]:
    description = read_description(folder)
    if description is None:
        raise DataError(f"a shard without {DESCRIPTION_NAME} can be read only with the run's classes")
    return description.classes


def _encode_description(description: ShardDescription) -> bytes:
    tree = {
        "format": SHARD_FORMAT,
        "version": SHARD_VERSION,
        "data_set": description.data_set,
        "task": description.task,
        "classes": list(description.classes),
        "channels": description.channels,
        "image_size": description.image_size,
        **({"several": True} if description.several else {}),
        **{
            key: counts.value
            for key, counts in (("uncertain", description.uncertain), ("empty", description.empty))
            if description.several and counts is Counts.LEAVE_OUT
        },
    }
    return json.dumps(tree, indent=1).encode()


def _write_images(folder: Path, split: Split, records: Records, task: TaskConfig) -> list[tuple[str, str, str, str]]:
    (folder / split).mkdir(mode=0o700, exist_ok=True)
    names = [f"{split}/{position:06d}.png" for position in range(len(records))]

    def write_one(position: int) -> None:
        encoded = io.BytesIO()
        to_image(records.images[position]).save(encoded, "PNG", compress_level=1)  # noise hardly shrinks further
        _write_private(folder / names[position], encoded.getvalue())

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(write_one, range(len(records))):
            pass  # map raises here what a thread met
    return [
        (name, task.written(int(label)), patient, split)
        for name, label, patient in zip(names, records.labels, records.patients, strict=True)
    ]


def _write_private(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
