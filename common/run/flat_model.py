"""A model as d numbers, wherever they lie: an array in memory, or a file of which a stretch at a time is read."""

import hashlib
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

STRETCH = 1 << 18
"""Parameters of a stretch, 1 MiB of float32: enough to be sent as one piece, and negligible in memory."""


class FlatModel(Protocol):
    """What a NumPy array of float32 offers, and also a model in a file (``server/checkpoints.py``).

    ``model[:]`` is the whole model in memory.
    """

    def __len__(self) -> int:
        """Return d, the number of parameters."""
        ...

    def __getitem__(self, stretch: slice, /) -> NDArray[np.float32]:
        """Return a stretch of them; one in a file is read again each time."""
        ...


def stretches(length: int) -> Iterator[slice]:
    """Return the stretches of a model of ``length`` parameters, in order.

    >>> [stretch.stop - stretch.start for stretch in stretches(STRETCH + 1)]
    [262144, 1]
    """
    return (slice(start, min(start + STRETCH, length)) for start in range(0, length, STRETCH))


def hash_model(model: FlatModel) -> bytes:
    """Return the SHA-256 of a model's bytes, 32 bytes: what hospitals compare to know that all train the same."""
    digest = hashlib.sha256()
    for stretch in stretches(len(model)):
        digest.update(np.ascontiguousarray(model[stretch]).data)
    return digest.digest()
