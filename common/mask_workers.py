"""Masks on every core: other processes make keystream while this one makes its own share.

The pinned ``cryptography`` holds Python's lock while it encrypts, so threads would only wait for each other (decision
005). A worker is ``python -m common.mask_workers``: it gets seeds through a socket that only it and its parent hold,
sums the masks of one stretch in a small piece of memory that both share, and ends when its parent does. Seeds go
into the socket and out of it without a copy in between, and each side erases its own when it has used them.
"""

import contextlib
import logging
import mmap
import os
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Self

import numpy as np

from common.processes import python_module
from common.secagg.erasing import erase
from common.secagg.masks import BUFFER_BYTES, Mask, apply_masks
from common.secagg.parameters import Vector

SLOT_BYTES = 4 * BUFFER_BYTES
"""The bytes of one stretch: enough to amortise a message, and so few that nobody waits long for the last one."""

SLOTS = 2
"""The stretches of a worker: it makes the next one while this process adds the one before to the vector."""

LEAST_BYTES = 4 * SLOT_BYTES
"""The shortest vector that workers help with; a shorter one is done before they have woken."""

ANSWER_SECONDS = 60.0
"""The longest wait for a worker; one that has not made a stretch of a megabyte by then never will."""

_REQUEST = struct.Struct("<BBQII")
"""Slot, bytes of an element, first element, elements, masks; the masks come after the message, outside of it, because
``multiprocessing`` would copy them: of each 1 for subtract or 0, and the seed."""
_READY = b"ready"
_MASK_BYTES = 1 + 32

_LOG = logging.getLogger("confide.masks")


def cores() -> int:
    """Return how many cores this process may use: those it is allowed to run on, or ``OMP_NUM_THREADS`` when fewer."""
    allowed = len(os.sched_getaffinity(0))
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(allowed, max(1, int(asked))) if asked.isdecimal() else allowed


class MaskWorkers:
    """A :data:`common.secagg.masks.MaskApplier` on several cores; use it as a context, which ends the workers.

    Workers are started when the first long vector comes, and are used as soon as they are up; nobody waits for them.
    The masks are the same whatever happens to a worker: this process does what it leaves undone.

    Memory: :data:`SLOTS` times :data:`SLOT_BYTES` for each worker, whatever the vector's length; all zero between two
    calls.

    Args:
        workers: beside this process, usually one less than :func:`cores`; 0 for none.
    """

    def __init__(self, workers: int) -> None:
        self._to_start = workers
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        """Start nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all workers."""
        while self._workers:
            self._workers.pop().end()
        self._to_start = 0

    def __call__(self, vector: Vector, masks: Sequence[Mask]) -> None:
        """Add every mask to ``vector`` in place, modulo R: see :func:`common.secagg.masks.apply_masks`.

        This process works from the front of the vector and hands out stretches from its back until they meet.
        """
        if vector.nbytes < LEAST_BYTES or not masks:
            apply_masks(vector, masks)
            return
        self._start()
        encoded = _encoded(masks)
        try:
            self._share_out(vector, masks, encoded)
        finally:
            erase(encoded)

    def _share_out(self, vector: Vector, masks: Sequence[Mask], encoded: bytes) -> None:
        own, theirs = BUFFER_BYTES // vector.itemsize, SLOT_BYTES // vector.itemsize
        front, back = 0, len(vector)
        while front < back:
            for worker in self._workers:
                while worker.is_free() and back - front > theirs:
                    stretch = range((back - 1) // theirs * theirs, back)
                    worker.ask(stretch, vector.itemsize, encoded)
                    back = stretch.start
            end = min(front + own, back)
            apply_masks(vector[front:end], masks, front)
            front = end
            self._collect(vector, masks, wait=False)
        self._collect(vector, masks, wait=True)

    def await_all(self, timeout: float) -> int:
        """Start the workers, wait up to ``timeout`` seconds for each, and return how many are up."""
        self._start()
        return sum(worker.is_up(timeout) for worker in self._workers)

    def _start(self) -> None:
        while self._to_start:
            self._workers.append(_Worker())
            self._to_start -= 1

    def _collect(self, vector: Vector, masks: Sequence[Mask], *, wait: bool) -> None:
        """Add what the workers have made; take over what a dead one has not."""
        for worker in list(self._workers):
            try:
                worker.add_to(vector, wait=wait)
            except (EOFError, OSError, TimeoutError) as error:
                _LOG.warning("a process that makes masks has failed, the others do its work: %s", error or "it ended")
                self._workers.remove(worker)
                worker.end()
                for stretch in worker.undone():
                    apply_masks(vector[stretch.start : stretch.stop], masks, stretch.start)


class _Worker:
    """One process, seen from its parent."""

    def __init__(self) -> None:
        memory = os.memfd_create("confide-masks", os.MFD_CLOEXEC)
        try:
            os.ftruncate(memory, SLOTS * SLOT_BYTES)
            self._shared = mmap.mmap(memory, SLOTS * SLOT_BYTES)
            self._connection, theirs = Pipe()
            with theirs:
                command = python_module("common.mask_workers", str(theirs.fileno()), str(memory))
                self._process = subprocess.Popen(command, pass_fds=(theirs.fileno(), memory), env=_environment())
        finally:
            os.close(memory)
        self._up = False
        self._free = list(range(SLOTS))
        self._asked: deque[tuple[int, range]] = deque()

    def is_up(self, timeout: float = 0.0) -> bool:
        """Return whether the process has started."""
        if not self._up:
            with contextlib.suppress(EOFError, OSError):
                self._up = self._connection.poll(timeout) and self._connection.recv_bytes() == _READY
        return self._up

    def is_free(self) -> bool:
        """Return whether the process can be asked for another stretch."""
        return bool(self._free) and self.is_up()

    def ask(self, stretch: range, itemsize: int, masks: bytes) -> None:
        """Ask for the sum of the masks over a stretch of the vector."""
        slot = self._free.pop()
        self._asked.append((slot, stretch))
        with contextlib.suppress(OSError):  # A dead worker is noticed when its answer is due.
            count = len(masks) // _MASK_BYTES
            self._connection.send_bytes(_REQUEST.pack(slot, itemsize, stretch.start, len(stretch), count))
            unsent = memoryview(masks)
            while unsent:
                unsent = unsent[os.write(self._connection.fileno(), unsent) :]

    def add_to(self, vector: Vector, *, wait: bool) -> None:
        """Add the stretches that are done to the vector, or with ``wait`` all that were asked for.

        Raises:
            EOFError, OSError: the process has ended.
            TimeoutError: it does not answer.
        """
        while self._asked and (wait or self._connection.poll()):
            if not self._connection.poll(ANSWER_SECONDS):
                raise TimeoutError(f"it must answer within {ANSWER_SECONDS:g} s")
            self._connection.recv_bytes()
            slot, stretch = self._asked.popleft()
            made = _in_slot(self._shared, slot, len(stretch), vector.dtype)
            target = vector[stretch.start : stretch.stop]
            np.add(target, made, out=target)
            made.fill(0)
            self._free.append(slot)

    def undone(self) -> Sequence[range]:
        """Return the stretches that were asked for and never added."""
        return [stretch for _, stretch in self._asked]

    def end(self) -> None:
        """End the process, in any state."""
        self._connection.close()
        self._process.kill()
        self._process.wait()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


def serve(connection: Connection, shared: mmap.mmap) -> None:
    """Answer requests, in order, until the parent closes its end."""
    connection.send_bytes(_READY)
    while True:
        try:
            slot, itemsize, first_element, elements, count = _REQUEST.unpack(connection.recv_bytes())
            masks = _receive_masks(connection, count)
        except (EOFError, ConnectionError):
            return
        made = _in_slot(shared, slot, elements, np.dtype(f"<u{itemsize}"))
        apply_masks(made, masks, first_element)
        erase(*(mask.seed for mask in masks))
        connection.send_bytes(bytes([slot]))


def _encoded(masks: Sequence[Mask]) -> bytes:
    return b"".join(part for mask in masks for part in (bytes([mask.subtract]), mask.seed))


def _receive_masks(connection: Connection, count: int) -> list[Mask]:
    """Read ``count`` masks, or raise :class:`EOFError` when the parent has ended in between."""
    encoded = bytearray(count * _MASK_BYTES)
    missing = memoryview(encoded)
    while missing:
        received = os.readv(connection.fileno(), [missing])
        if received == 0:
            raise EOFError
        missing = missing[received:]
    masks = [
        Mask(memoryview(encoded)[start + 1 : start + _MASK_BYTES].tobytes(), subtract=bool(encoded[start]))
        for start in range(0, len(encoded), _MASK_BYTES)
    ]
    encoded[:] = bytes(len(encoded))
    return masks


def main() -> int:
    """Work for the process that started this one, which ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection, memory = (int(number) for number in sys.argv[1:])
    serve(Connection(connection), mmap.mmap(memory, SLOTS * SLOT_BYTES))
    return 0


def _in_slot(shared: mmap.mmap, slot: int, elements: int, dtype: np.dtype[np.unsignedinteger]) -> Vector:
    made: Vector = np.frombuffer(shared, dtype, elements, slot * SLOT_BYTES)
    return made


if __name__ == "__main__":
    sys.exit(main())
