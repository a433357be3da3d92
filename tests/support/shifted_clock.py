"""A clock for a server or a hospital that a test sets while its processes run; the machine's own stays as it is."""

import os
import time
from pathlib import Path

from deploy.source_tree import ROOT

_PATIENCE_SECONDS, _NEAR_SECONDS, _POLL_SECONDS = 30.0, 10.0, 0.05
_SITE = Path(__file__).parent / "clock"


class Clock:
    """A clock that shows the machine's time until it is set.

    Args:
        file: says how far the clock is off; processes that go by the clock look at it all the time.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0)

    def set(self, seconds: float) -> None:
        """Let the clock be off by so many seconds from now on; returns when all processes go by it."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds}")
        new.rename(self._file)
        give_up = time.monotonic() + _PATIENCE_SECONDS
        while not all(abs(told - time.time() - seconds) <= _NEAR_SECONDS for told in self._told()):
            assert time.monotonic() < give_up, "every process must go by the clock"
            time.sleep(_POLL_SECONDS)

    def forget_processes(self) -> None:
        """Take what ended processes said away: another process may have the number of one of them."""
        for file in self._file.parent.glob(f"{self._file.name}-*"):
            file.unlink()

    def _told(self) -> list[float]:
        """Return what time it is for each process that goes by the clock."""
        files = self._file.parent.glob(f"{self._file.name}-*")
        texts = [file.read_text() for file in files if _is_running(*file.name.split("-")[-2:])]
        return [float(text or "nan") for text in texts]

    def environment(self, root: Path = ROOT) -> dict[str, str]:
        """Return what a process of the source tree ``root``, and those it starts, need to go by this clock."""
        return {"PYTHONPATH": os.pathsep.join((str(_SITE), str(root))), "CONFIDE_TEST_CLOCK": str(self._file)}


def _is_running(number: str, start: str) -> bool:
    """Return whether the process that had this number runs still, and not another one that has its number now."""
    try:
        stat = Path(f"/proc/{number}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    state, *more = stat.rpartition(")")[2].split()
    return state != "Z" and more[18] == start
