"""Runs a consortium's server, and writes what its runs leave (``deploy/results/run_folder.py``)."""

import time
from collections.abc import Callable
from pathlib import Path

from common.processes import python_module, running_beside
from deploy.results.run_folder import ResultsKeeper
from deploy.source_tree import ROOT

STOP_SECONDS = 25.0
"""The time that a server has to end its processes, two supervisors one after the other."""

_POLL_SECONDS = 0.5


def serve(
    state: Path,
    *,
    once: bool = False,
    at_each_poll: Callable[[], None] = lambda: None,
    publish: Callable[[Path], None] = lambda _folder: None,
) -> int:
    """Run the server until it ends; returns its exit code.

    Args:
        state: the server's state folder.
        once: end with the run.
        at_each_poll: called about twice a second.
        publish: called with the folder of a run whose results are complete; again after a restart.
    """
    keeper = ResultsKeeper(state)
    command = python_module("server", "--state", str(state), *(("--once",) if once else ()))
    with running_beside(command, ROOT, STOP_SECONDS) as process:
        while process.poll() is None:
            _publish(keeper, publish)
            at_each_poll()
            time.sleep(_POLL_SECONDS)
    _publish(keeper, publish)
    return process.returncode


def _publish(keeper: ResultsKeeper, publish: Callable[[Path], None]) -> None:
    for folder in keeper.keep():
        publish(folder)
