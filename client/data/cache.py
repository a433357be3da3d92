"""Prepared images on the hospital's own disk: private, bounded, and used only while nothing has changed.

::

    cache/
      prepared-<key>/   index.json (written last), images.bin (hashes of the images), and for each split its images,
                        and of those that are records their rows, labels, patient numbers, traits and origins
      building-…/       one being written; removed at the next start if that was cut short

The images are mapped, not read: a run of any size needs only the memory of the batch in hand. Images that the run's
terms leave out are kept with the others, and what is computed of each is computed of them too. So neither the room nor
the time that it takes to join a run shows how many records the run's label map names.
"""

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from client.data.watch import Origin, Origins, OriginsWriter
from common.errors import DataError
from common.evaluation.statistics import TRAITS
from common.files import make_private_folder
from common.shards import (
    SPLITS,
    Split,
)

CACHE_FORMAT = "confide-prepared"
CACHE_VERSION = 7
"""The version of what is kept. Version 7 keeps images that the run leaves out; version 6 says which labels of a record
are not known; version 5 has where each record came from; version 4 has hashes of the images that the task leaves
out; version 3 has what statistics count of each record; version 2 shows pictures as :mod:`client.data.display` says."""

LIMIT_BYTES = 64 * 2**30
"""The limit of all prepared images together: room for a million grey X-rays at 224 pixels."""

_INDEX_NAME = "index.json"
_IMAGES_NAME = "images.bin"


class NoRoomError(DataError):
    """The prepared images do not fit the cache. That follows from how many a run asks for, and must not refuse it."""


@dataclass(frozen=True, eq=False)
class PreparedPart:
    """One part of the prepared data.

    Attributes:
        images: uint8, shape (N, c, h, w), mapped from disk: those of the n records, and those that the run leaves out.
        rows: int64, shape (n,), which of the images are records; increasing.
        labels: int64, shape (n,).
        patients: int64, shape (n,), running numbers.
        traits: uint8, shape (n, tables), bins of :mod:`client.data.traits`.
        origins: n of them.
    """

    images: npt.NDArray[np.uint8] = field(repr=False)
    rows: npt.NDArray[np.int64] = field(repr=False)
    labels: npt.NDArray[np.int64] = field(repr=False)
    patients: npt.NDArray[np.int64] = field(repr=False)
    traits: npt.NDArray[np.uint8] = field(repr=False)
    origins: Origins = field(repr=False)


@dataclass(frozen=True, eq=False)
class Prepared:
    """All prepared parts, the fingerprint of the data they came from, and hashes of its images.

    ``root`` is where their files are named from, and ``key`` is the name of this data in the cache.
    """

    parts: dict[Split, PreparedPart] = field(repr=False)
    fingerprint: bytes
    images: bytes = field(repr=False)
    root: Path = field(repr=False)
    key: str


@dataclass
class _PartWriter:
    images: IO[bytes] = field(repr=False)
    written: int = 0
    rows: list[int] = field(default_factory=list, repr=False)
    labels: list[int] = field(default_factory=list, repr=False)
    patients: list[int] = field(default_factory=list, repr=False)
    traits: bytearray = field(default_factory=bytearray, repr=False)
    origins: OriginsWriter = field(default_factory=OriginsWriter, repr=False)


class PreparedWriter:
    """Takes prepared images one by one; they count only after :meth:`commit`."""

    def __init__(self, folder: Path, target: Path, shape: tuple[int, int, int]) -> None:
        """Write images of one shape (c, h, w) into ``folder``, and become ``target`` in the end."""
        self._folder, self._target, self._shape = folder, target, shape
        self._parts = {split: _PartWriter(_create(folder / f"{split}.images")) for split in SPLITS}

    def add(
        self,
        split: Split,
        pixels: npt.NDArray[np.uint8],
        label: int,
        patient: int,
        traits: npt.NDArray[np.uint8],
        origin: Origin,
    ) -> None:
        """Append one record: uint8 of shape (c, h, w), with its bins in the tables of statistics and its origin.

        Raises:
            OSError: the disk is full.
        """
        part = self._parts[split]
        part.rows.append(part.written)
        self._write(part, pixels)
        part.labels.append(label)
        part.patients.append(patient)
        part.traits += traits.tobytes()
        part.origins.add(origin)

    def pass_over(self, split: Split, pixels: npt.NDArray[np.uint8] | None) -> None:
        """Append an image that is no record of the run; a black one where it cannot be read as the run wants it.

        Raises:
            OSError: the disk is full.
        """
        self._write(self._parts[split], np.zeros(self._shape, np.uint8) if pixels is None else pixels)

    def _write(self, part: _PartWriter, pixels: npt.NDArray[np.uint8]) -> None:
        if pixels.shape != self._shape:
            raise ValueError(f"an image must have the shape {self._shape}, got {pixels.shape}")
        part.images.write(pixels.tobytes())
        part.written += 1

    def commit(self, fingerprint: bytes, root: Path = Path(), images: bytes = b"") -> None:
        """Make what was added the prepared data.

        Args:
            fingerprint: of the data.
            root: from which the origins name their files.
            images: hashes of its images, for the ledger (:attr:`client.data.survey.Survey.images`).

        Raises:
            OSError: the disk is full.
        """
        for split, part in self._parts.items():
            _sync(part.images)
            columns = {
                "rows": np.array(part.rows, np.int64).tobytes(),
                "labels": np.array(part.labels, np.int64).tobytes(),
                "patients": np.array(part.patients, np.int64).tobytes(),
                "traits": bytes(part.traits),
                "files": bytes(part.origins.files),
                "digests": bytes(part.origins.digests),
                "stamps": bytes(part.origins.stamps),
            }
            for name, content in columns.items():
                with _create(self._folder / f"{split}.{name}") as file:
                    file.write(content)
                    _sync(file)
        with _create(self._folder / _IMAGES_NAME) as file:
            file.write(images)
            _sync(file)
        index = {
            "format": CACHE_FORMAT,
            "version": CACHE_VERSION,
            "fingerprint": fingerprint.hex(),
            "root": str(root),
            "shape": self._shape,
            "images": {split: part.written for split, part in self._parts.items()},
        }
        with _create(self._folder / _INDEX_NAME) as file:
            file.write(json.dumps(index).encode())
            _sync(file)
        shutil.rmtree(self._target, ignore_errors=True)
        self._folder.rename(self._target)

    def close(self) -> None:
        """Close the files, committed or not."""
        for part in self._parts.values():
            with contextlib.suppress(OSError):  # a full disk was reported when it was met
                part.images.close()


class PreparedCache:
    """The folder of prepared data sets."""

    def __init__(self, folder: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        """Use ``folder``, made if missing.

        Raises:
            DataError: it cannot be made.
        """
        self._folder, self._limit_bytes = folder, limit_bytes
        try:
            make_private_folder(folder)
            for unfinished in folder.glob("building-*"):
                shutil.rmtree(unfinished, ignore_errors=True)
        except OSError as error:
            raise DataError(f"the hospital's cache must be a writable folder: {error.strerror}") from None

    def find(self, key: str) -> Prepared | None:
        """Return the prepared data with this key, or None if it is missing or not whole."""
        folder = self._folder / f"prepared-{key}"
        try:
            index = json.loads((folder / _INDEX_NAME).read_text(encoding="utf-8"))
            if (index["format"], index["version"]) != (CACHE_FORMAT, CACHE_VERSION):
                return None
            shape = tuple(int(side) for side in index["shape"])
            parts = {split: _map_part(folder, split, int(index["images"][split]), shape) for split in SPLITS}
            folder.touch()  # the least recently used goes first when room is needed
            images = (folder / _IMAGES_NAME).read_bytes()
            return Prepared(parts, bytes.fromhex(index["fingerprint"]), images, Path(index["root"]), key)
        except (OSError, ValueError, KeyError, OverflowError, TypeError, RecursionError):
            return None

    @contextlib.contextmanager
    def build(self, key: str, images: int, shape: tuple[int, int, int]) -> Iterator[PreparedWriter]:
        """Give a writer for so many images of one shape (c, h, w), removing older data to make room.

        Raises:
            NoRoomError: there is no room.
        """
        self._make_room(images * math.prod(shape))
        try:
            folder = Path(tempfile.mkdtemp(prefix="building-", dir=self._folder))
            writer = PreparedWriter(folder, self._folder / f"prepared-{key}", shape)
            try:
                yield writer
            finally:
                writer.close()
                shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            raise NoRoomError(f"the hospital's cache could not be written: {error.strerror}; see to space") from None

    def _make_room(self, expected_bytes: int) -> None:
        if expected_bytes > self._limit_bytes:
            raise NoRoomError(
                "the prepared images would be larger than the hospital's cache may be; use fewer or smaller"
            )
        others = sorted(self._folder.glob("prepared-*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
        kept = expected_bytes
        for folder in others:
            kept += sum(file.stat().st_size for file in folder.iterdir())
            if kept > self._limit_bytes:
                shutil.rmtree(folder, ignore_errors=True)
        if shutil.disk_usage(self._folder).free < expected_bytes:
            raise NoRoomError("the disk of the hospital's cache has no room for the prepared images; free some")


def _map_part(folder: Path, split: Split, number: int, shape: tuple[int, ...]) -> PreparedPart:
    rows = np.fromfile(folder / f"{split}.rows", np.int64)
    labels = np.fromfile(folder / f"{split}.labels", np.int64)
    patients = np.fromfile(folder / f"{split}.patients", np.int64)
    traits = np.fromfile(folder / f"{split}.traits", np.uint8).reshape(len(rows), len(TRAITS))
    origins = Origins(*((folder / f"{split}.{name}").read_bytes() for name in ("files", "digests", "stamps")))
    path = folder / f"{split}.images"
    is_whole = len(labels) == len(patients) == len(origins) == len(rows)
    if not is_whole or path.stat().st_size != number * math.prod(shape):
        raise ValueError("cut short")
    if len(rows) and not (rows[0] >= 0 and rows[-1] < number and (np.diff(rows) > 0).all()):
        raise ValueError("records must be some of the images, in their order")
    if not number:
        return PreparedPart(np.empty((0, *shape), np.uint8), rows, labels, patients, traits, origins)
    # Copy on write: writing into a batch changes memory, never the cache.
    images = np.memmap(path, np.uint8, "c", shape=(number, *shape))
    return PreparedPart(images.view(np.ndarray), rows, labels, patients, traits, origins)


def _create(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
