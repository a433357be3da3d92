"""Memory, files and threads of processes are read as the kernel says, and growth is told from rest."""

import os
import subprocess
import sys

import numpy as np
import pytest

from deploy.resilience.load import LoadMeasured, draw
from deploy.resilience.resources import Sampler, Usage, processes_under, usage_of
from deploy.resilience.soak import growth

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
        (Usage(100 * MIB, 100 * MIB, 9, 4, time=120.0), False),
        (Usage(130 * MIB, 130 * MIB, 9, 4, time=120.0), True),
        (Usage(100 * MIB, 100 * MIB, 40, 4, time=120.0), True),
        (Usage(100 * MIB, 100 * MIB, 9, 12, time=120.0), True),
    ],
)
def test_growth_is_told_from_rest(last: Usage, grows: bool) -> None:
    between = [
        Usage(int(100 * MIB + share / 60 * (last.memory_bytes - 100 * MIB)), 0, 9, 4, time=2.0 * share)
        for share in range(60)
    ]
    assert growth("agent", [*between, last]).has_grown() is grows


def test_filling_caches_at_the_start_is_no_growth() -> None:
    sizes = [*range(100, 120), *[120] * 60]
    usages = [Usage(size * MIB, 0, 9, 4, time=2.0 * number) for number, size in enumerate(sizes)]
    assert not growth("agent", usages).has_grown()


def test_growth_is_counted_by_the_clock_and_not_by_the_samples() -> None:
    sparse = [Usage((100 + number) * MIB, 0, 9, 4, time=360.0 * number) for number in range(30)]
    assert growth("agent", sparse).memory_mib_per_hour == pytest.approx(10.0)


def test_the_plot_has_a_point_for_each_run() -> None:
    runs = [LoadMeasured(count, 1000, 20, count, 0.5, 300 * MIB, 200 * MIB, 2000) for count in (4, 8)]
    time_axes, memory_axes = draw(runs).axes
    assert [np.size(line.get_xdata()) for line in (*time_axes.lines, *memory_axes.lines)] == [2, 2, 2]
