"""Masks made on several cores are those made on one, whatever becomes of the processes that help."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from common import mask_workers
from common.mask_workers import LEAST_BYTES, SLOT_BYTES, MaskWorkers, cores
from common.secagg.masks import Mask, apply_masks
from common.secagg.parameters import Vector
from tests.support.memory_scan import PIECES
from tests.unit.common.erased_seeds import SEEDS

ROOT = Path(__file__).parents[3]
MASKS = [Mask(bytes([number]) * 32, subtract=number % 2 == 1) for number in range(4)]
START_SECONDS = 60.0


@pytest.fixture
def workers() -> Iterator[MaskWorkers]:
    with MaskWorkers(2) as started:
        assert started.await_all(START_SECONDS) == 2
        yield started


def original(dtype: str = "<u2", elements_over: int = 0) -> Vector:
    length = (LEAST_BYTES + 5 * SLOT_BYTES) // np.dtype(dtype).itemsize + elements_over
    vector: Vector = np.arange(length, dtype=dtype)
    return vector


def on_one_core(vector: Vector) -> Vector:
    masked = vector.copy()
    apply_masks(masked, MASKS)
    return masked


def wait_until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize("elements_over", [-1, 0, 1, 12_345])
def test_the_masks_are_those_of_one_core(workers: MaskWorkers, dtype: str, elements_over: int) -> None:
    vector = original(dtype, elements_over)
    expected = on_one_core(vector)
    workers(vector, MASKS)
    assert np.array_equal(vector, expected)


def test_the_workers_do_their_share(workers: MaskWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    here = 0

    def count(vector: Vector, *arguments: object) -> None:
        nonlocal here
        here += vector.nbytes
        apply_masks(vector, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(mask_workers, "apply_masks", count)
    vector = original()
    expected = on_one_core(vector)
    workers(vector, MASKS)
    assert np.array_equal(vector, expected)
    assert 0 < here < vector.nbytes


def test_what_is_shared_is_zero_between_two_calls(workers: MaskWorkers) -> None:
    workers(original(), MASKS)
    assert not any(any(worker._shared[:]) for worker in workers._workers)


def test_no_seed_is_left_in_any_process_once_the_caller_has_erased_its_own() -> None:
    # In a process of its own, whose memory is small enough to be searched in seconds.
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.common.erased_seeds"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    assert found["before"] >= SEEDS * PIECES, "the caller's own"
    assert found["after"] == 0
    assert found["workers"] == [0, 0]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_what_a_lost_worker_leaves_is_made_here(
    workers: MaskWorkers, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(mask_workers, "ANSWER_SECONDS", 0.5)
    lost = workers._workers[0]._process
    lost.send_signal(number)
    if number is signal.SIGKILL:
        wait_until(lambda: Path(f"/proc/{lost.pid}/stat").read_text().split()[2] == "Z")
    for _ in range(2):
        vector = original()
        expected = on_one_core(vector)
        workers(vector, MASKS)
        assert np.array_equal(vector, expected)
    assert len(workers._workers) == 1
    assert lost.returncode is not None


def test_nobody_waits_for_workers_to_start() -> None:
    with MaskWorkers(1) as workers:
        workers._workers = [_NeverUp()]
        vector = original()
        expected = on_one_core(vector)
        workers(vector, MASKS)
    assert np.array_equal(vector, expected)


class _NeverUp(mask_workers._Worker):
    """A process that has started and not said so."""

    def __init__(self) -> None:
        super().__init__()
        self._process.send_signal(signal.SIGSTOP)

    def is_up(self, timeout: float = 0.0) -> bool:
        return False


def test_a_short_vector_starts_no_process() -> None:
    with MaskWorkers(1) as workers:
        vector: Vector = np.zeros(LEAST_BYTES // 2 - 1, "<u2")
        expected = on_one_core(vector)
        workers(vector, MASKS)
        assert workers._workers == []
    assert np.array_equal(vector, expected)


def test_the_end_of_the_context_ends_the_processes() -> None:
    with MaskWorkers(1) as workers:
        workers.await_all(START_SECONDS)
        process = workers._workers[0]._process
    assert process.returncode == -signal.SIGKILL


def test_a_worker_ends_when_its_parent_is_killed_and_shows_no_secret() -> None:
    program = (
        "from common.mask_workers import MaskWorkers; import signal; w = MaskWorkers(1); w.await_all(60);"
        "print(w._workers[0]._process.pid, flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        worker = Path("/proc") / parent.stdout.readline().strip()
        words = (worker / "cmdline").read_text().split("\0")
        assert words[1:3] == ["-m", "common.mask_workers"]
        assert all(word.isdecimal() for word in words[3:-1])
        parent.kill()
    wait_until(lambda: not (worker / "cmdline").exists() or (worker / "cmdline").read_text() == "")


@pytest.mark.parametrize(("asked", "most"), [("1", 1), ("0", 1), ("100000", None), ("", None), ("many", None)])
def test_a_process_uses_the_cores_it_may(monkeypatch: pytest.MonkeyPatch, asked: str, most: int | None) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert cores() == (most or len(os.sched_getaffinity(0)))
