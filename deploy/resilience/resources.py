"""What a deployment's processes use: memory, open files and threads, sampled from ``/proc`` while it runs."""

import contextlib
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from common.processes import children_of

KIB = 1024


@dataclass(frozen=True)
class Usage:
    """One process at one moment."""

    memory_bytes: int
    """Resident memory."""
    peak_bytes: int
    """The peak of resident memory."""
    files: int
    threads: int
    time: float
    """Seconds on the monotonic clock."""


NAMES = {
    "server.flower.superlink": "SuperLink",
    "flower-superexec": "executor",
    "flwr-serverapp": "ServerApp",
    "server.metrics": "server exporter",
    "server.initial_model": "model maker",
    "client.flower.supernode": "SuperNode",
    "client.resident": "agent",
    "client.metrics": "hospital exporter",
    "-m server": "server supervisor",
    "-m client": "hospital supervisor",
}
"""What a command line holds, the first that fits, to what the process is called."""


def usage_of(pid: int) -> Usage | None:
    """Return what a process uses, None when it has ended."""
    try:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        return Usage(_kib(status["VmRSS"]), _kib(status["VmHWM"]), files, int(status["Threads"]), time.monotonic())
    except (OSError, KeyError):
        return None


def processes_under(root: int) -> dict[int, str]:
    """Return every process started by ``root`` or its descendants, by number, with what it is called."""
    found: dict[int, str] = {}
    waiting = [root]
    while waiting:
        for pid, command in children_of(waiting.pop()).items():
            waiting.append(pid)
            name = next((name for part, name in NAMES.items() if part in command), None)
            if name is not None:
                found[pid] = name
    return found


class Sampler:
    """Samples all processes under one, in a thread of its own.

    Args:
        root: number of the process that started the deployment.
        seconds: between two samples.
    """

    def __init__(self, root: int, seconds: float) -> None:
        self.samples: dict[tuple[str, int], list[Usage]] = defaultdict(list)
        """A process's name and number to its samples, in order."""
        self._root = root
        self._seconds = seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="resources", daemon=True)

    def __enter__(self) -> "Sampler":
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._done.set()
        self._thread.join()

    def peak_bytes(self, name: str) -> int:
        """Return the most memory that any process of this name ever held."""
        seen = list(self.samples.items())  # The sampling thread may add to it meanwhile.
        peaks = [used.peak_bytes for (called, _), usages in seen if called == name for used in list(usages)]
        return max(peaks, default=0)

    def _sample(self) -> None:
        while not self._done.wait(self._seconds):
            with contextlib.suppress(OSError):
                for pid, name in processes_under(self._root).items():
                    used = usage_of(pid)
                    if used is not None:
                        self.samples[name, pid].append(used)


def _kib(text: str) -> int:
    return int(text.split(maxsplit=1)[0]) * KIB
