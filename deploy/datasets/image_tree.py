"""Reads a public data set that comes as ``train|val|test/CLASS/image``, from a folder or straight from a tar of it."""

import itertools
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import numpy.typing as npt

from common.errors import DataError
from common.shards import MAX_FILE_BYTES, Split, decode_image

_SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip

_IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")

_DECODED_TOGETHER = 512
"""The files held at once, so that the wanted images bound the memory, not the files they come from."""

_HELD_BYTES = 64 * 2**20
"""The bytes of files held at once, or one file: a small archive can unpack to hundreds of large ones."""

_PIECE_BYTES = 2**20


@dataclass(frozen=True)
class TreePicture:
    """One image, decoded, with where it lay; ``pixels`` is uint8 of shape (channels, size, size)."""

    split: Split
    label: int
    name: str
    pixels: npt.NDArray[np.uint8] = field(repr=False)


@dataclass(frozen=True)
class _File:
    split: Split
    label: int
    name: str
    encoded: bytes = field(repr=False)


def read_tree(path: Path, classes: Sequence[str], image_size: int, channels: int) -> Iterator[TreePicture]:
    """Yield every image below ``path``, in the order it is stored.

    Args:
        path: a folder, or a tar (compressed or not) of one; nothing is unpacked to disk.
        classes: names that class folders must have, in any case, in the order of their indices.
        image_size: pixels on a side; other sizes are cropped to their middle square and resized.
        channels: 1 or 3.

    Raises:
        DataError: the tar is damaged, a class folder has another name, or an image cannot be decoded.
    """
    files = _from_folder(path, classes) if path.is_dir() else _from_tar(path, classes)

    def decode(file: _File) -> TreePicture:
        pixels = decode_image(file.encoded, f"{path.name}: {file.name}", image_size, channels)
        return TreePicture(file.split, file.label, file.name, pixels)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        while batch := _some(files):
            yield from threads.map(decode, batch)


def is_split_tree(path: Path, classes: Sequence[str]) -> bool:
    """Return whether a folder or tar is such a tree, of these classes and no others; no image is opened.

    Raises:
        DataError: the tar is damaged.
    """
    found = False
    for name in _names(path):
        try:
            found = _place(name, classes, path.name) is not None or found
        except DataError:
            return False
    return found


def _names(path: Path) -> Iterator[PurePosixPath]:
    if path.is_dir():
        yield from (PurePosixPath(file.relative_to(path)) for file in path.rglob("*"))
        return
    try:
        with tarfile.open(path, "r:*") as archive:
            yield from (PurePosixPath(member.name) for member in archive)
    except (tarfile.TarError, OSError, EOFError, lzma.LZMAError, zlib.error):
        raise DataError(
            f"{path.name} must be an npz file, or a folder or tar of images; it is damaged or something else"
        ) from None


def _some(files: Iterator[_File]) -> list[_File]:
    batch, held = list[_File](), 0
    for file in itertools.islice(files, _DECODED_TOGETHER):
        batch.append(file)
        held += len(file.encoded)
        if held >= _HELD_BYTES:
            break
    return batch


def _content(opened: IO[bytes]) -> bytes:
    """Read a file up to the longest allowed; room is taken for what is there, whatever an archive claims."""
    pieces, there = list[bytes](), 0
    while there < MAX_FILE_BYTES and (piece := opened.read(_PIECE_BYTES)):
        pieces.append(piece)
        there += len(piece)
    return b"".join(pieces)


def _from_folder(path: Path, classes: Sequence[str]) -> Iterator[_File]:
    for file in sorted(path.rglob("*")):
        place = _place(PurePosixPath(file.relative_to(path)), classes, path.name)
        if place is not None and file.is_file():
            try:
                with file.open("rb") as opened:
                    yield _File(*place, file.name, _content(opened))
            except OSError as error:
                raise DataError(f"{path.name}: {file.name} must be readable: {error.strerror}") from None


def _from_tar(path: Path, classes: Sequence[str]) -> Iterator[_File]:
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                place = _place(name, classes, path.name)
                opened = archive.extractfile(member) if place is not None and member.isreg() else None
                if place is not None and opened is not None:
                    yield _File(*place, name.name, _content(opened))
    except (tarfile.TarError, OSError, EOFError, lzma.LZMAError, zlib.error):
        raise DataError(
            f"{path.name} must be an npz file, or a folder or tar of train|val|test/CLASS/image; "
            "it is damaged or something else"
        ) from None


def _place(name: PurePosixPath, classes: Sequence[str], where: str) -> tuple[Split, int] | None:
    """Return split and class by the two folders an image lies in, or None for any other file."""
    if len(name.parts) < 3 or name.suffix.lower() not in _IMAGE_ENDINGS or name.name.startswith("."):  # noqa: PLR2004
        return None
    split = _SPLIT_FOLDERS.get(name.parts[-3].lower())
    if split is None:
        return None
    for label, known in enumerate(classes):
        if name.parts[-2].casefold() == known.casefold():
            return split, label
    raise DataError(f"{where}: the class folders must be {', '.join(classes)}; got {name.parts[-2]}")
