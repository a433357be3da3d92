"""Two models on the same records, against plain computations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.evaluation.paired import FIGURES, Difference, Scored, differences, figures


def plain_area(scores: np.ndarray, truth: np.ndarray) -> float:
    pairs = [(sick, well) for sick in scores[truth] for well in scores[~truth]]
    return float(np.mean([1.0 if sick > well else 0.5 if sick == well else 0.0 for sick, well in pairs]))


@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=30))
def test_figures_are_those_of_a_plain_count(records: list[tuple[int, bool]]) -> None:
    scores, truth = np.array([float(score) for score, _ in records]), np.array([sick for _, sick in records])
    if truth.all() or not truth.any():
        return
    found = figures(Scored(scores, 0.5), truth)
    assert found["auc"] == pytest.approx(plain_area(scores, truth))
    assert found["accuracy"] == pytest.approx(np.mean((scores >= 0) == truth))
    assert found["sensitivity"] == pytest.approx(np.mean(scores[truth] >= 0))
    assert found["specificity"] == pytest.approx(np.mean(scores[~truth] < 0))


@pytest.mark.parametrize(("threshold", "called"), [(0.0, [True] * 3), (1.0, [False] * 3), (0.5, [False, True, True])])
def test_a_threshold_at_an_end_calls_everything_or_nothing(threshold: float, called: list[bool]) -> None:
    assert Scored(np.array([-1e4, 0.0, 1e4]), threshold).called.tolist() == called


def two_models(records: int) -> tuple[Scored, Scored, np.ndarray]:
    generator = np.random.default_rng(3)
    truth = generator.random(records) < 0.4
    hard = generator.normal(size=records)
    good, bad = hard + 3.0 * truth, hard + 1.0 * truth
    return Scored(good, 0.8), Scored(bad, 0.6), truth


def test_the_better_model_is_ahead_and_the_other_way_round_the_signs_turn() -> None:
    good, bad, truth = two_models(300)
    forth = differences(good, bad, truth, np.arange(300), draws=400)
    back = differences(bad, good, truth, np.arange(300), draws=400)
    assert (forth["auc"].says, back["auc"].says) == (1, -1)
    for name in FIGURES:
        value = figures(good, truth)[name] - figures(bad, truth)[name]
        assert forth[name].value == pytest.approx(value)
        assert forth[name].low <= forth[name].value <= forth[name].high
        assert (back[name].low, back[name].high) == pytest.approx((-forth[name].high, -forth[name].low), abs=1e-9)


def test_a_model_against_itself_cannot_be_told_apart() -> None:
    good, _, truth = two_models(60)
    for each in differences(good, good, truth, np.arange(60), draws=100).values():
        assert (each.value, each.low, each.high, each.says) == (0.0, 0.0, 0.0, 0)


def test_many_records_of_one_patient_count_as_one() -> None:
    good, bad, truth = two_models(40)
    first, second = (Scored(np.repeat(each.log_odds, 9), each.threshold) for each in (good, bad))
    by_patient = differences(first, second, np.repeat(truth, 9), np.repeat(np.arange(40), 9), draws=400)["auc"]
    by_record = differences(first, second, np.repeat(truth, 9), np.arange(360), draws=400)["auc"]
    once = differences(good, bad, truth, np.arange(40), draws=400)["auc"]
    assert (by_patient.low, by_patient.high) == pytest.approx((once.low, once.high))
    assert by_record.high - by_record.low < (once.high - once.low) / 2


def test_an_interval_holds_the_difference_of_all_patients_about_as_often_as_it_says() -> None:
    good, bad, truth = two_models(4000)
    real = plain_area(good.log_odds, truth) - plain_area(bad.log_odds, truth)
    generator, held = np.random.default_rng(5), 0
    for _ in range(60):
        some = generator.choice(4000, 150)
        first, second = (Scored(each.log_odds[some], each.threshold) for each in (good, bad))
        found = differences(first, second, truth[some], np.arange(150), draws=200)["auc"]
        held += found.low <= real <= found.high
    assert held >= 50


def test_the_interval_is_the_same_each_time() -> None:
    good, bad, truth = two_models(50)
    assert differences(good, bad, truth, np.arange(50)) == differences(good, bad, truth, np.arange(50))


def test_an_interval_that_touches_zero_says_nothing() -> None:
    assert [Difference(0.1, low, high).says for low, high in ((0.01, 0.2), (0.0, 0.2), (-0.2, -0.01))] == [1, 0, -1]
