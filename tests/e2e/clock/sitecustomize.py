"""Lets a Python process go by a clock of its own from its start on: one that is off by what a file says at the time.

Python imports this module by itself when its folder is on the path. What is shifted is the time of day, as Python's
code sees it; the monotonic clock is the machine's, as it is where an administrator sets the clock.
"""

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import time_machine

_POLL_SECONDS = 0.02


class _MachinesTime:
    """What gRPC's Python code sees as the module ``time``: it hands times to C code, which has the machine's clock."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the module time has
        return getattr(time, name)

    @staticmethod
    def time() -> float:
        travels = time_machine.escape_hatch.is_travelling()
        return time_machine.escape_hatch.time.time() if travels else time.time()


def _follow(file: Path, confirmed: Path) -> None:
    seconds, travel = 0.0, None
    while True:
        if (channel := sys.modules.get("grpc._channel")) is not None:
            channel.time = _MachinesTime()  # type: ignore[attr-defined]
        wanted = float(file.read_text())
        if wanted != seconds:
            if travel is not None:
                travel.stop()
            travel = time_machine.travel(time.time() + wanted) if wanted else None
            if travel is not None:
                travel.start()
            seconds = wanted
        confirmed.write_text(f"{time.time()}")
        time.sleep(_POLL_SECONDS)


_file = Path(os.environ["CONFIDE_TEST_CLOCK"])
threading.Thread(target=_follow, args=(_file, _file.parent / f"{_file.name}-{os.getpid()}"), daemon=True).start()
