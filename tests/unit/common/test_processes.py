"""By which signal a supervisor ends a process that it starts again, and by which one that it ends for good."""

import sys
import time
from pathlib import Path

import pytest

from common.processes import ProcessCommand, Supervisor

LIMIT_SECONDS = 60.0
PROGRAM = """
import time
from common.processes import Stopping, raise_on_signals
raise_on_signals()
try:
    print("ready", flush=True)
    time.sleep(60)
except Stopping as stopping:
    print(int(stopping.signal_number), flush=True)
"""


@pytest.mark.parametrize(("again", "number"), [(True, 2), (False, 15)])
def test_a_process_can_tell_that_it_is_started_again_from_its_end(tmp_path: Path, again: bool, number: int) -> None:
    supervisor, log = Supervisor(), tmp_path / "log"
    supervisor.start(ProcessCommand("one", (sys.executable, "-c", PROGRAM), log))
    give_up = time.monotonic() + LIMIT_SECONDS
    try:
        while log.read_text() != "ready\n":
            assert time.monotonic() < give_up, log.read_text()
            time.sleep(0.02)
        if again:
            supervisor.end("one")
        else:
            supervisor.stop(("one",))
        assert log.read_text() == f"ready\n{number}\n"
    finally:
        supervisor.stop()
