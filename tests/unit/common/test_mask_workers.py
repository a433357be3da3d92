"""Masks made by several threads are those made by one, whatever fails in one of them."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from common import mask_workers
from common.mask_workers import LEAST_BYTES, STRETCH_BYTES, MaskWorkers, cores
from common.secagg.masks import Mask, apply_masks, stream
from common.secagg.parameters import Vector
from tests.support.memory_scan import PIECES
from tests.unit.common.erased_seeds import SEEDS

ROOT = Path(__file__).parents[3]
MASKS = [Mask(bytes([number]) * 32, subtract=number % 2 == 1) for number in range(4)]


@pytest.fixture
def workers() -> Iterator[MaskWorkers]:
    with MaskWorkers(2) as started:
        yield started


def original(dtype: str = "<u2", elements_over: int = 0) -> Vector:
    length = (LEAST_BYTES + 5 * STRETCH_BYTES) // np.dtype(dtype).itemsize + elements_over
    vector: Vector = np.arange(length, dtype=dtype)
    return vector


def on_one_core(vector: Vector) -> Vector:
    masked = vector.copy()
    apply_masks(masked, MASKS)
    return masked


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize("elements_over", [-1, 0, 1, 12_345])
def test_the_masks_are_those_of_one_core(workers: MaskWorkers, dtype: str, elements_over: int) -> None:
    vector = original(dtype, elements_over)
    expected = on_one_core(vector)
    workers(vector, MASKS)
    assert np.array_equal(vector, expected)


def test_all_threads_mask_at_the_same_time(workers: MaskWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(3, timeout=30)
    met = threading.local()

    def meet(vector: Vector, *arguments: object) -> None:
        if not hasattr(met, "once"):
            met.once = True
            together.wait()
        apply_masks(vector, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(mask_workers, "apply_masks", meet)
    vector = original()
    expected = on_one_core(vector)
    workers(vector, MASKS)
    assert np.array_equal(vector, expected)


def test_who_encrypts_does_not_hold_pythons_lock() -> None:
    """Decision 005 rests on it. A release of ``cryptography`` before 47 held the lock for the whole call."""
    encryptor = stream(bytes(32), 0)
    zeros = bytes(64 * 2**20)
    target = bytearray(len(zeros) + 16)
    steps, done, seen = 0, threading.Event(), list[int]()

    def encrypt() -> None:
        seen.append(steps)
        encryptor.update_into(zeros, target)
        seen.append(steps)
        done.set()

    before = sys.getswitchinterval()
    sys.setswitchinterval(0.5)  # Nobody is asked to hand the lock over in the middle of a call that keeps it.
    try:
        thread = threading.Thread(target=encrypt)
        thread.start()
        while not done.is_set():
            steps += 1
        thread.join()
    finally:
        sys.setswitchinterval(before)
    assert seen[1] > seen[0]


def test_no_seed_is_left_once_the_caller_has_erased_its_own() -> None:
    # In a process of its own, whose memory is small enough to be searched in seconds.
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.common.erased_seeds"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    assert found["before"] >= SEEDS * PIECES, "the caller's own"
    assert found["after"] == 0


@pytest.mark.parametrize("fails_in", ["caller", "other"])
def test_what_fails_in_a_thread_fails_the_call(
    workers: MaskWorkers, monkeypatch: pytest.MonkeyPatch, fails_in: str
) -> None:
    caller = threading.current_thread()
    others = threading.Event()

    def fail(vector: Vector, *arguments: object) -> None:
        here = threading.current_thread()
        if (here is caller) == (fails_in == "caller"):
            others.set()
            raise MemoryError("no room")
        others.wait(30)
        apply_masks(vector, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(mask_workers, "apply_masks", fail)
    with pytest.raises(MemoryError, match="no room"):
        workers(original(), MASKS)


@pytest.mark.parametrize("workers_beside", [0, 1])
def test_a_short_vector_or_no_worker_starts_no_thread(workers_beside: int) -> None:
    before = threading.active_count()
    with MaskWorkers(workers_beside) as workers:
        vector: Vector = np.zeros(LEAST_BYTES // 2 - workers_beside, "<u2")
        expected = on_one_core(vector)
        workers(vector, MASKS)
        assert threading.active_count() == before
    assert np.array_equal(vector, expected)


def test_the_end_of_the_context_ends_the_threads() -> None:
    before = threading.active_count()
    with MaskWorkers(2) as workers:
        workers(original(), MASKS)
        assert threading.active_count() > before
    assert threading.active_count() == before


@pytest.mark.parametrize(("asked", "most"), [("1", 1), ("0", 1), ("100000", None), ("", None), ("many", None)])
def test_a_process_uses_the_cores_it_may(monkeypatch: pytest.MonkeyPatch, asked: str, most: int | None) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert cores() == (most or len(os.sched_getaffinity(0)))
