"""Makes processes as slow as on a slower machine, by letting them run for a part of the time."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from common.processes import children_of

PERIOD_SECONDS = 0.1
"""Shorter than any exchange, so that a process is slow and does not stall."""


def family(pid: int) -> list[int]:
    """Return a process and all that it has started, and they in turn."""
    return [pid, *(grandchild for child in children_of(pid) for grandchild in family(child))]


@contextlib.contextmanager
def slowed(pid: int, times: float) -> Iterator[None]:
    """Let a process and all that it has started by now have one part in ``times`` of the time."""
    processes, done = family(pid), threading.Event()

    def tell(number: signal.Signals) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def take_turns() -> None:
        while not done.wait(PERIOD_SECONDS / times):
            tell(signal.SIGSTOP)
            done.wait(PERIOD_SECONDS * (1 - 1 / times))
            tell(signal.SIGCONT)

    thread = threading.Thread(target=take_turns, name="slowing")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        tell(signal.SIGCONT)
