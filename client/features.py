"""Frozen features of a hospital's images, computed once and kept on the hospital's own disk.

The features are a fixed public function of each image, so keeping them costs no privacy; but they are as
confidential as the images, so files are readable by their owner only and never leave.
"""

import contextlib
import hashlib
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.models import registry
from common.models.frozen import FrozenFeatures, extract
from common.shards import make_private_folder

LIMIT_BYTES = 16 * 2**30
"""Of all files of features together; room for a million images. The least recently used go first."""

_KEY_LETTERS = 32
"""Hexadecimal digits of SHA-256 in a file's name."""

_UNFINISHED = ".features-"
"""How the name of a file that is still being written begins; what a killed process left is removed by the next."""


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
    shape = (len(images), features.width(images.shape[1]))
    if not len(images):
        return np.empty(shape, np.float32)
    path = folder / f"features-{_key(features, images)}.npy"
    cached = _map(path, shape)
    if cached is not None:
        return cached
    try:
        _write(path, features, images, shape)
        _make_room(folder, path, limit_bytes)
    except OSError as error:
        raise DataError(f"the hospital's feature cache must be writable: {error.strerror}") from None
    written = _map(path, shape)
    if written is None:
        raise DataError("the hospital's feature cache was changed by another process; let one agent use its folder")
    return written


def _key(features: FrozenFeatures, images: NDArray[np.uint8]) -> str:
    digest = hashlib.sha256(f"{features.version} {images.shape}".encode())
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()[:_KEY_LETTERS]


def _map(path: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """Return the cached array, or None where there is none that is whole; a damaged one is made again."""
    try:
        # Copy on write: whoever writes into a batch changes memory, never the cache.
        cached = np.load(path, mmap_mode="c", allow_pickle=False)
        path.touch()
    except (OSError, ValueError, EOFError):
        return None
    is_whole = cached.shape == shape and cached.dtype == np.float32
    return cached.view(np.ndarray) if is_whole else None


def _write(path: Path, features: FrozenFeatures, images: NDArray[np.uint8], shape: tuple[int, int]) -> None:
    """Extract straight to disk, so that a reader sees the whole file or none, and memory holds a few images' at most.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    make_private_folder(path.parent)
    for unfinished in path.parent.glob(f"{_UNFINISHED}*"):
        unfinished.unlink(missing_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=_UNFINISHED, delete=False) as file:  # of mode 0600
        temporary = Path(file.name)
        try:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for some in extract(features, images):
                file.write(some.astype("<f4").tobytes())
            file.flush()
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _make_room(folder: Path, kept: Path, limit_bytes: int) -> None:
    """Remove the least recently used files until all together are within the limit, never the one just written."""
    files = sorted(folder.glob("features-*.npy"), key=lambda file: file.stat().st_mtime, reverse=True)
    size = kept.stat().st_size
    for file in files:
        if file == kept:
            continue
        size += file.stat().st_size
        if size > limit_bytes:
            with contextlib.suppress(FileNotFoundError):
                file.unlink()
