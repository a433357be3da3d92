"""The benchmark of deployed rounds reads what a run recorded; no test asserts a time."""

import math

import pytest

from common.errors import RunError
from common.telemetry.events import Event, Exchange, RoundDone, RoundTime
from tests.benchmarks import bench_round


def exchange(number: int, phase: str, seconds: float) -> Exchange:
    return Exchange(time=0.0, round=number, phase=phase, seconds=seconds, answered=("hospital-1",))


def done(number: int, step: int, seconds: float) -> RoundDone:
    measures = dict.fromkeys(("accuracy", "precision", "recall", "f1", "auc", "loss", "epsilon"), math.nan)
    parts = RoundTime(training=seconds / 2, moving=1.0)
    return RoundDone(
        time=0.0,
        round=number,
        step=step,
        hospitals=4,
        seconds=seconds,
        upload_bytes=1,
        seconds_by_part=parts,
        **measures,
    )


def test_the_medians_are_over_all_runs_without_the_round_in_which_everyone_prepares() -> None:
    run: list[Event] = [
        exchange(1, "advertise_keys", 100.0),
        exchange(1, "masked_input", 100.0),
        exchange(2, "masked_input", 2.0),
        done(1, 1, 300.0),
        exchange(3, "masked_input", 4.0),
        done(2, 2, 10.0),
        exchange(4, "masked_input", 400.0),  # The last model is measured in a round of its own.
        done(3, 3, 20.0),
    ]
    other: list[Event] = [exchange(2, "masked_input", 3.0), done(1, 1, 300.0), done(2, 2, 30.0)]
    rounds = bench_round._rounds([run, other])
    assert (rounds.rounds, rounds.seconds) == (3, 20.0)
    assert rounds.exchanges == {"masked_input": 3.0}
    assert (rounds.training, rounds.moving) == (10.0, 1.0)


@pytest.mark.parametrize("option", ["--rounds", "--repeat"])
def test_nothing_to_measure_is_refused_by_name(option: str) -> None:
    with pytest.raises(RunError, match=option):
        bench_round.main(["round", option, "0"])
