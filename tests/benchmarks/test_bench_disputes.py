"""The benchmark of disputes compares rounds of one run; no test asserts a time of a real one."""

import math

import pytest

from common.errors import RunError
from common.telemetry.events import Event, Exchange, RoundDone
from tests.benchmarks import bench_disputes


def exchange(phase: str, time: float, seconds: float) -> Exchange:
    return Exchange(
        time=time, round=9, phase=phase, seconds=seconds, answered=(), missing=(), upload_bytes=1, download_bytes=500
    )


def done(time: float) -> Event:
    measures = dict.fromkeys(("accuracy", "precision", "recall", "f1", "auc", "loss"), math.nan)
    return RoundDone(
        time=time, round=1, step=1, epsilon=1.0, hospitals=4, seconds=1.0, upload_bytes=1, part="none", **measures
    )


def test_the_round_of_a_dispute_is_compared_with_the_median_of_those_before_it() -> None:
    events = [done(time) for time in (0.0, 50.0, 52.0, 54.0, 57.0)]
    events += [exchange("dispute", 60.0, 1.0), exchange("verdict", 62.0, 1.5), done(65.0), done(67.0)]
    cost = bench_disputes.cost_of(events, 1)
    assert (cost.plain_rounds, cost.plain_seconds) == (3, 2.0)
    assert (cost.disputed_seconds, cost.disputed_to_plain) == (5.0, 2.5)
    assert (cost.dispute_seconds, cost.verdict_seconds) == (1.0, 1.5)
    assert cost.next_to_plain == 1.5
    assert cost.download_bytes == 1000


def test_a_number_of_rounds_that_measures_nothing_is_refused() -> None:
    with pytest.raises(RunError, match="at least 1"):
        bench_disputes.main(["disputes", "--rounds", "0"])
