"""Lets a Python process go by a clock of its own from its start on: one that is off by what a file says at the time.

Python imports this module by itself when its folder is on the path. What is shifted is the time of day, as Python's
code sees it; the monotonic clock is the machine's, as it is where an administrator sets the clock.
"""

import os
import sys
import threading
import time
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import time_machine

_POLL_SECONDS = 0.05


class _MachinesTime:
    """What gRPC's Python code sees as the module ``time``: it hands times to C code, which has the machine's clock."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the module time has
        return getattr(time, name)

    @staticmethod
    def time() -> float:
        travels = time_machine.escape_hatch.is_travelling()
        return time_machine.escape_hatch.time.time() if travels else time.time()


_HANDS_TIMES_TO_C = ("grpc._channel", "grpc._server")
"""A server whose deadlines are a year ago polls without a pause, and takes a third of a processor."""


class _GrpcFinder:
    """Gives gRPC's modules the machine's time as soon as they are imported, before anybody uses them."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, _target: object = None) -> ModuleSpec | None:
        if name not in _HANDS_TIMES_TO_C:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_patch(module: ModuleType) -> None:
                execute(module)
                module.time = _MachinesTime()  # type: ignore[attr-defined]

            spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


class _Clock:
    """This process's clock."""

    def __init__(self, file: Path, confirmed: Path) -> None:
        self._file, self._confirmed = file, confirmed
        self._seconds = 0.0
        self._travel: time_machine.travel | None = None

    def look(self) -> None:
        """Go by what the file says."""
        wanted = float(self._file.read_text())
        if wanted != self._seconds:
            if self._travel is not None:
                self._travel.stop()
            self._travel = time_machine.travel(time.time() + wanted) if wanted else None
            if self._travel is not None:
                self._travel.start()
            self._seconds = wanted
        self._confirmed.write_text(f"{time.time()}")

    def follow(self) -> None:
        """Look all the time."""
        while True:
            self.look()
            time.sleep(_POLL_SECONDS)


_file = Path(os.environ["CONFIDE_TEST_CLOCK"])
# A number is given to another process once this one has ended; number and start together are not.
_start = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
_clock = _Clock(_file, _file.parent / f"{_file.name}-{os.getpid()}-{_start}")
_clock.look()  # A command that ends within a moment goes by the clock from its first line on.
sys.meta_path.insert(0, _GrpcFinder())
threading.Thread(target=_clock.follow, daemon=True).start()
