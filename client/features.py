"""Frozen features of a hospital's images, computed once and kept on the hospital's own disk.

The features are a fixed public function of each image, so keeping them costs no privacy; but they are as
confidential as the images, so files are readable by their owner only and never leave.

Each set of images has two files: ``features-<version>-<key>.npy``, one row an image, and beside it ``….images``, the
SHA-256 of each image. So a set with a few new images takes the rows of the others from the sets that are there.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.files import make_private_folder, whole_file, write_private
from common.models import registry
from common.models.frozen import FrozenFeatures, extract
from common.run.messages import LONGEST_HEAD_BYTES, NO_ARRAY

LIMIT_BYTES = 16 * 2**30
"""The limit of all files of features together: room for a million images. The least recently used are removed first."""

_DIGEST_BYTES = 32
"""The length of a SHA-256, which names an image in the cache."""

_KEY_LETTERS = 32
"""How many hexadecimal digits of a SHA-256 a file's name has."""


def model_inputs(
    name: str, images: NDArray[np.uint8], folder: Path, limit_bytes: int = LIMIT_BYTES
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Return what a model is trained on: the images themselves, or their frozen features, from the cache if there.

    Args:
        name: of the model, one of the registry's.
        images: (n, channels, height, width) uint8.
        folder: the hospital's own; made with mode 0700 if missing.
        limit_bytes: that all files of features may take together; those of these images stay whatever it says.

    Returns:
        ``images``, or (n, features) float32, mapped from disk. The cache knows images by their content: other images,
        or another version of the transform, never get each other's features.

    Raises:
        ConfigError: there is no such model, or it cannot take such images.
        DataError: the cache cannot be written.
    """
    features = registry.frozen_features(name)
    if features is None:
        return images
    if not len(images):
        return np.empty((0, features.width(images.shape[1])), np.float32)
    cache = _FeatureCache(folder, features, images.shape[1:], limit_bytes)
    try:
        return cache.rows(images)
    except OSError as error:
        raise DataError(f"the hospital's feature cache must be writable: {error.strerror}") from None


def model_files(name: str, images: NDArray[np.uint8], folder: Path) -> tuple[Path, ...]:
    """Return where :func:`model_inputs` keeps the features of a set of images: its rows and their digests.

    Raises:
        ConfigError: there is no such model, or it cannot take such images.
    """
    features = registry.frozen_features(name)
    if features is None or not len(images):
        return ()
    path = _FeatureCache(folder, features, images.shape[1:], LIMIT_BYTES).path_of(images)
    return path, path.with_suffix(".images")


class _FeatureCache:
    """The files of one version of one transform, for images of one shape."""

    def __init__(self, folder: Path, features: FrozenFeatures, image_shape: tuple[int, ...], limit_bytes: int) -> None:
        self._folder = folder
        self._features = features
        self._prefix = f"features-{features.version}-{'x'.join(map(str, image_shape))}-"
        self._width = features.width(image_shape[0])
        self._limit_bytes = limit_bytes

    def path_of(self, images: NDArray[np.uint8]) -> Path:
        """Return the file of the features of a set of images."""
        return self._path(b"".join(_digests(images)))

    def _path(self, named: bytes) -> Path:
        return self._folder / f"{self._prefix}{hashlib.sha256(named).hexdigest()[:_KEY_LETTERS]}.npy"

    def rows(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the features of images, (n, width) float32.

        Raises:
            OSError: the folder cannot be written, or the disk is full.
        """
        digests = _digests(images)
        named = b"".join(digests)
        path = self._path(named)
        cached = self._map(path, named)
        if cached is not None:
            return cached
        make_private_folder(self._folder)
        for unfinished in self._folder.glob("features-*.new"):
            unfinished.unlink(missing_ok=True)
        known = self._known(set(digests))
        write_private(path.with_suffix(".images"), named)
        with whole_file(path) as file:
            self._write_rows(file, images, digests, known)
        self._make_room(path)
        written = self._map(path, named)
        if written is None:
            raise DataError("the hospital's feature cache was changed by another process; let one agent use its folder")
        return written

    def _map(self, path: Path, named: bytes) -> NDArray[np.float32] | None:
        """Return a cached array, or None where there is no whole one; a damaged one is made again."""
        try:
            if path.with_suffix(".images").read_bytes() != named:
                return None
            # Copy on write: writing into a batch changes memory, never the cache.
            cached = np.load(path, mmap_mode="c", allow_pickle=False, max_header_size=LONGEST_HEAD_BYTES)
            path.touch()
        except (OSError, *NO_ARRAY, EOFError):
            return None
        is_whole = cached.shape == (len(named) // _DIGEST_BYTES, self._width) and cached.dtype == np.float32
        return cached.view(np.ndarray) if is_whole else None

    def _known(self, wanted: set[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """Return the rows that other sets of images have already, by the image's digest."""
        known: dict[bytes, NDArray[np.float32]] = {}
        for path in self._folder.glob(f"{self._prefix}*.npy"):
            try:
                named = path.with_suffix(".images").read_bytes()
            except OSError:
                continue
            digests = [named[start : start + _DIGEST_BYTES] for start in range(0, len(named), _DIGEST_BYTES)]
            if wanted.isdisjoint(digests):
                continue
            cached = self._map(path, named)
            if cached is not None:
                known.update((digest, row) for digest, row in zip(digests, cached, strict=True) if digest in wanted)
        return known

    def _write_rows(
        self,
        file: IO[bytes],
        images: NDArray[np.uint8],
        digests: list[bytes],
        known: dict[bytes, NDArray[np.float32]],
    ) -> None:
        """Write straight to disk, so that memory holds a few images' features at most."""
        shape = (len(images), self._width)
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        new = np.array([row for row, digest in enumerate(digests) if digest not in known], np.int64)
        extracted = self._extracted(images, new)
        for digest in digests:
            row = known[digest] if digest in known else next(extracted)
            file.write(row.astype("<f4").tobytes())

    def _extracted(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(rows), self._features.at_once):
            for some in extract(self._features, images[rows[start : start + self._features.at_once]]):
                yield from some

    def _make_room(self, kept: Path) -> None:
        """Remove the least recently used sets until all together are within the limit, never the one just written."""
        paths = sorted(self._folder.glob("features-*.npy"), key=lambda path: path.stat().st_mtime, reverse=True)
        size = kept.stat().st_size
        for path in paths:
            if path == kept:
                continue
            size += path.stat().st_size
            if size > self._limit_bytes:
                for file in (path, path.with_suffix(".images")):
                    with contextlib.suppress(FileNotFoundError):
                        file.unlink()


def _digests(images: NDArray[np.uint8]) -> list[bytes]:
    return [hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in images]
