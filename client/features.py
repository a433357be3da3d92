"""Frozen features of a hospital's images, computed once and kept on the hospital's own disk.

The features are a fixed public function of each image, so keeping them costs no privacy; but they are as
confidential as the images, so files are readable by their owner only and never leave.
"""

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.models import registry
from common.models.frozen import extract

_KEY_LETTERS = 32
"""Hexadecimal digits of SHA-256 in a file's name."""


def model_inputs(name: str, images: NDArray[np.uint8], folder: Path) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Return what a model is trained on: the images themselves, or their frozen features, from the cache if there.

    Args:
        name: of the model, one of the registry's.
        images: (n, channels, height, width) uint8.
        folder: the hospital's own; made with mode 0700 if missing.

    Returns:
        ``images``, or (n, features) float32. The cache knows images by their content: other images, or another
        version of the transform, never get each other's features.

    Raises:
        ConfigError: there is no such model, or it cannot take such images.
        DataError: the cache cannot be written.
    """
    features = registry.frozen_features(name)
    if features is None:
        return images
    width = features.width(images.shape[1])
    digest = hashlib.sha256(f"{features.version} {images.shape}".encode())
    digest.update(np.ascontiguousarray(images).data)
    path = folder / f"features-{digest.hexdigest()[:_KEY_LETTERS]}.npy"
    cached = _read(path, (len(images), width))
    if cached is not None:
        return cached
    extracted = extract(features, images)
    _write(path, extracted)
    return extracted


def _read(path: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """Return the cached array, or None where there is none that is whole; a damaged one is made again."""
    try:
        cached = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return cached if cached.shape == shape and cached.dtype == np.float32 else None


def _write(path: Path, array: NDArray[np.float32]) -> None:
    """Write so that a reader sees the whole file or none."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".features-")  # of mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                np.save(file, array, allow_pickle=False)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DataError(f"the hospital's feature cache must be writable: {error.strerror}") from None
