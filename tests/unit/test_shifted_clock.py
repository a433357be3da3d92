"""The clock that tests shift waits for the processes that go by it, and for no other."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import shifted_clock
from tests.support.shifted_clock import Clock

DAY_SECONDS = 86_400.0


def test_a_process_goes_by_the_clock_and_one_that_has_its_number_later_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(tmp_path / "clock")
    (tmp_path / f"clock-{os.getpid()}-1").write_text("0")  # Of a process that had this one's number.
    clock.set(-DAY_SECONDS)
    script = "import sys, time\nprint(time.time(), flush=True)\nsys.stdin.read()"
    with subprocess.Popen(
        (sys.executable, "-c", script), env={**os.environ, **clock.environment()}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert float(process.stdout.readline()) == pytest.approx(time.time() - DAY_SECONDS, abs=60)
        clock.set(-2 * DAY_SECONDS)
        (told,) = tmp_path.glob(f"clock-{process.pid}-*")
        assert float(told.read_text()) == pytest.approx(time.time() - 2 * DAY_SECONDS, abs=60)
        process.send_signal(signal.SIGSTOP)  # Stopped, it goes by no clock.
        monkeypatch.setattr(shifted_clock, "_PATIENCE_SECONDS", 0.5)
        with pytest.raises(AssertionError, match="every process must go by the clock"):
            clock.set(0)
        process.kill()
