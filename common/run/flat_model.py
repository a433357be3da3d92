"""A model as d numbers, wherever they lie: an array in memory, or a file of which a stretch at a time is read."""

import hashlib
from collections.abc import Iterator, Sequence
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


class JoinedModel:
    """Several of them, one behind the other, without a copy."""

    def __init__(self, parts: Sequence[FlatModel]) -> None:
        self._parts = tuple(parts)

    def __len__(self) -> int:
        """Return how many numbers all have together."""
        return sum(map(len, self._parts))

    def __getitem__(self, stretch: slice, /) -> NDArray[np.float32]:
        """Return a stretch of them, across parts.

        >>> JoinedModel((np.zeros(2, np.float32), np.ones(2, np.float32)))[1:3].tolist()
        [0.0, 1.0]
        """
        first, last, _ = stretch.indices(len(self))
        taken, start = [], 0
        for part in self._parts:
            inside = slice(max(0, first - start), max(0, min(len(part), last - start)))
            if inside.start < inside.stop:
                taken.append(part[inside])
            start += len(part)
        return taken[0] if len(taken) == 1 else np.concatenate([np.zeros(0, np.float32), *taken])


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
