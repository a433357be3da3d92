"""Whole runs in one process that count who they train on before they train."""

from dataclasses import replace
from pathlib import Path

import pytest

from common.telemetry.events import COMPLETED, STOPPED, Counted, Evaluated, Refusal
from tests.support.small_consortium import Dealt, everybody, small, willing

EPSILON = 2.0
ASKED = {"evaluation": {"score_bins": 16, "statistics_epsilon": EPSILON}}


@pytest.fixture(scope="module")
def dealt(tmp_path_factory: pytest.TempPathFactory) -> Dealt:
    return Dealt.into(tmp_path_factory.mktemp("dealt"))


def _lines(consortium: object, hospital: str) -> list[str]:
    return [entry["booking"]["account"] for entry in consortium.spent(hospital)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", ["local", "distributed", "none"])
def test_a_run_counts_once_before_it_trains_and_then_trains_as_ever(dealt: Dealt, tmp_path: Path, mode: str) -> None:
    policies = everybody(allow_statistics_epsilon=EPSILON, allow_no_privacy=True)
    run = small(dealt, tmp_path, policies=policies, privacy={"mode": mode}, **ASKED)
    assert run.run().train() == COMPLETED
    (counted,) = run.of(Counted)
    assert run.hospitals == [4, 4]
    assert run.of(Evaluated)
    assert 0 < counted.epsilon <= EPSILON
    for hospital in ("hospital-1", "hospital-4"):
        accounts = _lines(run, hospital)
        assert accounts.count("statistics") == 1
        assert accounts[0] == "statistics"
    # Phantom records state nothing but their label and their pixels, and each hospital states 40 of them.
    assert set(counted.tables) >= {"class", "view", "sex", "age in years"}
    for name in ("view", "sex", "age in years"):
        bins = counted.tables[name]
        assert bins["not known"] == pytest.approx(160, abs=5 * counted.deviation)
        others = [count for bin_name, count in bins.items() if bin_name != "not known"]
        assert all(count is None or 0 < count < 6 * counted.deviation for count in others)
    assert counted.units == 160
    assert counted.least == pytest.approx(3 * counted.deviation)


def test_a_run_that_does_not_ask_counts_nothing(dealt: Dealt, tmp_path: Path) -> None:
    run = small(dealt, tmp_path, policies=everybody(allow_statistics_epsilon=EPSILON))
    assert run.run().train() == COMPLETED
    assert not run.of(Counted)
    assert "statistics" not in _lines(run, "hospital-1")


def test_a_hospital_that_did_not_agree_takes_no_part(dealt: Dealt, tmp_path: Path) -> None:
    policies = {**everybody(allow_statistics_epsilon=EPSILON), "hospital_2": willing(allow_statistics_epsilon=1.9)}
    run = small(dealt, tmp_path, policies=policies, **ASKED)
    run.run().train()
    refusals = [refusal for refusal in run.of(Refusal) if "allow_statistics_epsilon" in refusal.reason]
    assert {refusal.hospital for refusal in refusals} == {"hospital-2"}
    assert not run.spent("hospital-2")


def test_a_resumed_run_does_not_count_again(dealt: Dealt, tmp_path: Path) -> None:
    run = small(dealt, tmp_path, policies=everybody(allow_statistics_epsilon=EPSILON), **ASKED)
    server = run.run()
    server._attempt(server._to_count)
    assert len(run.of(Counted)) == 1
    assert run.run().train() == COMPLETED
    assert len(run.of(Counted)) == 1
    assert _lines(run, "hospital-1").count("statistics") == 1


def test_a_second_run_finds_the_account_spent_and_trains_without_counting_that_hospital(
    dealt: Dealt, tmp_path: Path
) -> None:
    policies = everybody(allow_statistics_epsilon=EPSILON)
    first = small(dealt, tmp_path, policies=policies, **ASKED)
    assert first.run().train() == COMPLETED
    first.events.clear()
    run = first.consortium.server("d1" * 16, dealt.data, tmp_path / "second", first.events.append)
    assert run.train() == COMPLETED
    assert _lines(first, "hospital-1").count("statistics") == 1
    assert not first.of(Counted)  # Nobody counts: a sum of noise alone is not told as if it were counts.


def test_a_run_that_is_stopped_before_its_first_round_asks_nothing_and_never_counts_twice(
    dealt: Dealt, tmp_path: Path
) -> None:
    small_run = small(dealt, tmp_path, policies=everybody(allow_statistics_epsilon=EPSILON), **ASKED)
    stopped_at_once = small_run.run()
    stopped_at_once._plan = replace(stopped_at_once._plan, must_stop=lambda: True)
    assert stopped_at_once.train() == STOPPED
    assert not small_run.spent("hospital-1")
    # It goes on, counts, is stopped again before it trains, and goes on to its end.
    stopped_later = small_run.run()
    stopped_later._plan = replace(stopped_later._plan, must_stop=lambda: bool(small_run.of(Counted)))
    assert stopped_later.train() == STOPPED
    assert _lines(small_run, "hospital-1") == ["statistics"]
    assert small_run.run().train() == COMPLETED
    assert _lines(small_run, "hospital-1").count("statistics") == 1
    assert len(small_run.of(Counted)) == 1
