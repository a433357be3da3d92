"""MedMNIST's npz files (Yang et al. 2023), read block by block so that a file of any length needs little memory."""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from common.errors import DataError
from common.run.messages import LONGEST_HEAD_BYTES, NO_ARRAY
from common.shards import MAX_PIXELS, Split
from common.task import MOST_LABELS

BLOCK_BYTES = 32 * 2**20
"""The bytes of pixels that are held at once while a member is read."""

_GREY_AXES, _COLOUR_AXES = 3, 4


@dataclass(frozen=True)
class NpzSplit:
    """What one split of the file holds, known from its header alone."""

    records: int
    height: int
    width: int
    channels: int


def describe(path: Path, split: Split) -> NpzSplit:
    """Read the header of one split's images.

    Raises:
        DataError: the file is not an npz in MedMNIST's layout.
    """
    with _member(path, f"{split}_images") as file:
        return _image_header(file, path, f"{split}_images")


def labels(path: Path, split: Split) -> npt.NDArray[np.int64]:
    """Read one split's labels, int64 of shape (n,).

    Raises:
        DataError: labels are missing, or a record has more than one (a multi-label task).
    """
    with _member(path, f"{split}_labels") as file:
        shape, dtype = _header(file, path, f"{split}_labels")
        return _labels(file, path, split, shape, dtype)[:, 0]


def label_rows(path: Path, split: Split) -> npt.NDArray[np.int64]:
    """Read one split's labels, int64 of shape (n, labels): one of a task of classes, 0 and 1 of a multi-label task.

    Raises:
        DataError: labels are missing, or are no whole numbers.
    """
    with _member(path, f"{split}_labels") as file:
        shape, dtype = _header(file, path, f"{split}_labels")
        return _labels(file, path, split, shape, dtype, most=MOST_LABELS)


def _labels(
    file: IO[bytes], path: Path, split: Split, shape: tuple[int, ...], dtype: np.dtype[np.generic], most: int = 1
) -> npt.NDArray[np.int64]:
    width = shape[1] if len(shape) == 2 else 1  # noqa: PLR2004 - (n, labels)
    if dtype.kind not in "iu" or len(shape) not in (1, 2) or not 1 <= width <= most:
        wanted, columns = ("one whole number", "1") if most == 1 else (f"1 to {most} whole numbers", "labels")
        raise DataError(f"{path.name}: {split}_labels must hold {wanted} a record, shape (n,) or (n, {columns})")
    flat = np.frombuffer(_read(file, shape[0] * width * dtype.itemsize, path), dtype).astype(np.int64)
    return flat.reshape(shape[0], width)


def image_blocks(path: Path, split: Split) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield one split's images in order, as uint8 blocks of shape (m, c, h, w) of at most ``BLOCK_BYTES``.

    Raises:
        DataError: the file is not an npz in MedMNIST's layout, or is damaged.
    """
    with _member(path, f"{split}_images") as file:
        header = _image_header(file, path, f"{split}_images")
        record_bytes = header.height * header.width * header.channels
        rows = max(1, BLOCK_BYTES // record_bytes)
        for start in range(0, header.records, rows):
            count = min(rows, header.records - start)
            block = np.frombuffer(_read(file, count * record_bytes, path), np.uint8)
            yield np.moveaxis(block.reshape(count, header.height, header.width, header.channels), 3, 1)


@contextlib.contextmanager
def _member(path: Path, name: str) -> Iterator[IO[bytes]]:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        raise DataError(f"{path.name} must be a whole npz file; it is damaged or cut short") from None
    with archive:
        try:
            file = archive.open(f"{name}.npy")
        except (KeyError, OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
            raise DataError(f"{path.name} must hold the array {name}, as MedMNIST's files do") from None
        with file:
            yield file


def _header(file: IO[bytes], path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    try:
        if np.lib.format.read_magic(file) != (1, 0):  # Later ones are for longer heads, and would read up to 4 GiB.
            raise ValueError("another version")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=LONGEST_HEAD_BYTES)
    except (*NO_ARRAY, OSError, EOFError, zipfile.BadZipFile, zlib.error, SyntaxError):
        raise DataError(f"{path.name}: {name} must be a numpy array; the file is damaged") from None
    if fortran_order or dtype.hasobject:
        raise DataError(f"{path.name}: {name} must be a plain array of numbers in C order")
    return tuple(int(side) for side in shape), dtype


def _image_header(file: IO[bytes], path: Path, name: str) -> NpzSplit:
    shape, dtype = _header(file, path, name)
    colour = len(shape) == _COLOUR_AXES
    if dtype != np.uint8 or not (len(shape) == _GREY_AXES or (colour and shape[3] in (1, 3))):
        raise DataError(f"{path.name}: {name} must be uint8 of shape (n, h, w) or (n, h, w, 3), got {dtype} of {shape}")
    if not 0 < shape[1] * shape[2] <= MAX_PIXELS:
        raise DataError(f"{path.name}: {name} must have 1 to {MAX_PIXELS} pixels an image, got {shape[1]} x {shape[2]}")
    return NpzSplit(shape[0], shape[1], shape[2], shape[3] if colour else 1)


def _read(file: IO[bytes], count: int, path: Path) -> bytes:
    try:
        content = file.read(count)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error):
        raise DataError(f"{path.name} is damaged or cut short; get it again") from None
    if len(content) != count:
        raise DataError(f"{path.name} is cut short; get it again")
    return content
