"""The ledger under kill -9, a full disk and two processes at once: never an under-count, never an overrun."""

import os
import random
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.ledger import chain as ledger_chain
from client.ledger.ledger import Ledger, export, verify
from common.errors import BudgetExceededError, LedgerError
from common.privacy.accounting import Accountant
from common.privacy.budget import BudgetPolicy
from tests.unit.client.ledger.ledger_worker import BOOKING, DELTA, FINGERPRINT, RUN_ID, rounds_within

WORKER = Path(__file__).with_name("ledger_worker.py")
LONGEST_LIFE_SECONDS = 0.02
LIMIT_SECONDS = 60.0
BUDGET = 2.0
AMPLE = BudgetPolicy(1000.0, DELTA)


class Hospital:
    """A process that forks children, and the count of what they released."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), str(BUDGET)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.released = 0

    def answer(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.readline().decode().strip()

    def start(self, folder: Path) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{folder}\n".encode())
        self.process.stdin.flush()
        return int(self.answer())

    def watch(self, seconds: float) -> None:
        """Count what is released within so many seconds, and what lies there already."""
        assert self.process.stdout is not None
        until = time.monotonic() + seconds
        while select.select([self.process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
            self.released += len(os.read(self.process.stdout.fileno(), 4096))

    def live_and_die(self, folder: Path, seconds: float) -> None:
        """Run a child for this time and kill it; it never ends by itself."""
        child = self.start(folder)
        self.watch(seconds)
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(int(self.answer())) == signal.SIGKILL
        self.watch(0)

    def end(self) -> None:
        self.process.kill()
        self.process.wait(LIMIT_SECONDS)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@contextmanager
def hospital() -> Iterator[Hospital]:
    process = Hospital()
    try:
        assert process.answer() == "ready"
        yield process
    finally:
        process.end()


def booked(folder: Path) -> int:
    if not ledger_chain.exists(folder):
        return 0
    return sum(entry["kind"] == "spent" for entry in export(folder)["entries"])


def die_often(tmp_path: Path, kills: int) -> None:
    most = rounds_within(BUDGET)
    chance = random.Random(kills)  # noqa: S311 - moments to kill at
    died = number = 0
    with hospital() as dying:
        while died < kills:
            folder, number, dying.released = tmp_path / f"ledger-{number}", number + 1, 0
            # On to another data set once this one's budget is spent: a child would have nothing left to die in.
            while died < kills and booked(folder) < most:
                dying.live_and_die(folder, chance.uniform(0, LONGEST_LIFE_SECONDS))
                died += 1
                assert dying.released <= booked(folder) <= most


def test_two_hundred_kills_never_lose_a_round_and_never_overrun(tmp_path: Path) -> None:
    die_often(tmp_path, 200)


@pytest.mark.slow
def test_a_thousand_kills_never_lose_a_round_and_never_overrun(tmp_path: Path) -> None:
    die_often(tmp_path, 1000)


def test_two_processes_never_spend_the_same_budget(tmp_path: Path) -> None:
    folder, most = tmp_path / "ledger", rounds_within(BUDGET)
    with hospital() as first, hospital() as second:
        # Both wait at the door and are let in together.
        with ledger_chain.exclusive(folder):
            children = [first.start(folder), second.start(folder)]
        until = time.monotonic() + LIMIT_SECONDS
        while first.released + second.released < most and time.monotonic() < until:
            first.watch(0.01)
            second.watch(0.01)
        # Whoever asks now, everything is spent.
        with pytest.raises(BudgetExceededError):
            Ledger.open(folder, FINGERPRINT).record(RUN_ID, 1, BOOKING, BudgetPolicy(BUDGET, DELTA))
        for child in children:
            os.kill(child, signal.SIGKILL)
        first.watch(0)
        second.watch(0)
        assert first.released + second.released == booked(folder) == most


@contextmanager
def files_no_larger_than(size_bytes: int) -> Iterator[None]:
    """Refuse to let any file of this process grow beyond a size, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit_bytes", [0, 100, 4096, 12288, 16384, 20480])
def test_a_disk_that_fills_stops_training_and_loses_nothing(tmp_path: Path, limit_bytes: int) -> None:
    ledger = Ledger.open(tmp_path / "ledger", FINGERPRINT)
    ledger.record(RUN_ID, 0, BOOKING, AMPLE, Accountant.RDP)
    released = 1
    with files_no_larger_than(limit_bytes):
        while released < 200:
            try:
                ledger.record(RUN_ID, released, BOOKING, AMPLE, Accountant.RDP)
            except LedgerError as error:
                assert "must be readable and writable" in str(error)  # noqa: PT017 - which round it is isn't known
                break
            released += 1
    assert released < 200
    # A line may be there that was never used, when the anchor beside it could not be written.
    assert released <= booked(tmp_path / "ledger") <= released + 1
    ledger.record(RUN_ID, 200, BOOKING, AMPLE, Accountant.RDP)
    assert Ledger.open(tmp_path / "ledger", FINGERPRINT).head() == verify(tmp_path / "ledger")


def test_a_full_disk_begins_no_ledger(tmp_path: Path) -> None:
    with files_no_larger_than(1000), pytest.raises(LedgerError, match="must be readable and writable"):
        Ledger.open(tmp_path / "ledger", FINGERPRINT)
    assert Ledger.open(tmp_path / "ledger", FINGERPRINT).head().sequence == 1
