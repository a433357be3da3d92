"""Memory, files and threads of processes are read as the kernel says, and growth is told from rest."""

import os
import subprocess
import sys

import numpy as np
import pytest

from deploy.resilience.load import Measured, draw
from deploy.resilience.soak import growth
from deploy.resources import Sampler, Usage, processes_under, usage_of

MIB = 2**20


def test_a_process_that_has_ended_uses_nothing() -> None:
    ended = subprocess.Popen((sys.executable, "-c", ""))
    ended.wait()
    assert usage_of(ended.pid) is None


def test_this_process_uses_what_the_kernel_says() -> None:
    used = usage_of(os.getpid())
    assert used is not None
    assert used.peak_bytes >= used.memory_bytes > 10 * MIB
    assert used.files > 0
    assert used.threads > 0


def test_descendants_are_found_by_what_they_run_and_sampled_until_they_end() -> None:
    waiting = "import sys; sys.stdin.read()"
    child = subprocess.Popen((sys.executable, "-c", waiting, "client.resident"), stdin=subprocess.PIPE)
    try:
        assert processes_under(os.getpid())[child.pid] == "agent"
        with Sampler(os.getpid(), 0.01) as sampler:
            while not sampler.peak_bytes("agent"):
                assert child.poll() is None
    finally:
        child.communicate(b"")
    assert child.pid not in processes_under(os.getpid())


@pytest.mark.parametrize(
    ("last", "grows"),
    [
        (Usage(100 * MIB, 100 * MIB, 9, 4), False),
        (Usage(130 * MIB, 130 * MIB, 9, 4), True),
        (Usage(100 * MIB, 100 * MIB, 40, 4), True),
        (Usage(100 * MIB, 100 * MIB, 9, 12), True),
    ],
)
def test_growth_is_told_from_rest(last: Usage, grows: bool) -> None:
    first = Usage(100 * MIB, 100 * MIB, 9, 4)
    between = [
        Usage(int(first.memory_bytes + share / 60 * (last.memory_bytes - first.memory_bytes)), 0, 9, 4)
        for share in range(60)
    ]
    assert growth("agent", [*between, last]).has_grown() is grows


def test_filling_caches_at_the_start_is_no_growth() -> None:
    filling = [Usage(size * MIB, 0, 9, 4) for size in range(100, 120)]
    assert not growth("agent", [*filling, *[Usage(120 * MIB, 0, 9, 4)] * 60]).has_grown()


def test_the_plot_has_a_point_for_each_run() -> None:
    runs = [Measured(count, 1000, 20, count, 0.5, 300 * MIB, 200 * MIB, 2000) for count in (4, 8)]
    time_axes, memory_axes = draw(runs).axes
    assert [np.size(line.get_xdata()) for line in (*time_axes.lines, *memory_axes.lines)] == [2, 2, 2]
