"""Masks on every core: threads make keystream, each for a stretch of the vector at a time (decision 005).

``cryptography`` lets go of Python's lock while it encrypts, and NumPy while it adds, so threads do not wait for each
other. All are in this process: no seed is copied to another one, and what a caller erases is gone.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Self

from common.secagg.masks import BUFFER_BYTES, Mask, apply_masks
from common.secagg.parameters import Vector

STRETCH_BYTES = 2 * BUFFER_BYTES
"""The bytes of one stretch: enough to amortise the ciphers that it needs, and so few that nobody waits long for the
last one."""

LEAST_BYTES = 4 * STRETCH_BYTES
"""The shortest vector that is shared out; a shorter one is done before another thread has woken."""


def cores() -> int:
    """Return how many cores this process may use: those it is allowed to run on, or ``OMP_NUM_THREADS`` when fewer."""
    allowed = len(os.sched_getaffinity(0))
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(allowed, max(1, int(asked))) if asked.isdecimal() else allowed


class MaskWorkers:
    """A :data:`common.secagg.masks.MaskApplier` on several cores; use it as a context, which ends the threads.

    Threads are started when the first long vector comes. Memory: one buffer for each thread, whatever the vector's
    length.

    Args:
        workers: threads beside the caller's, usually one less than :func:`cores`; 0 for none.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._threads = ThreadPoolExecutor(max(1, workers), thread_name_prefix="masks")

    def __enter__(self) -> Self:
        """Start nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all threads."""
        self._threads.shutdown()

    def __call__(self, vector: Vector, masks: Sequence[Mask]) -> None:
        """Add every mask to ``vector`` in place, modulo R: see :func:`common.secagg.masks.apply_masks`."""
        if vector.nbytes < LEAST_BYTES or not masks or not self._workers:
            apply_masks(vector, masks)
            return
        step = STRETCH_BYTES // vector.itemsize
        numbers = count()
        others = [self._threads.submit(_take_stretches, vector, masks, step, numbers) for _ in range(self._workers)]
        try:
            _take_stretches(vector, masks, step, numbers)
        finally:
            errors = [other.exception() for other in others]
        for error in errors:
            if error is not None:
                raise error


def _take_stretches(vector: Vector, masks: Sequence[Mask], step: int, numbers: Iterator[int]) -> None:
    """Mask the next stretch that nobody has taken, until all are taken; taking a number is one step under the lock."""
    for number in numbers:
        first = number * step
        if first >= len(vector):
            return
        apply_masks(vector[first : first + step], masks, first)
