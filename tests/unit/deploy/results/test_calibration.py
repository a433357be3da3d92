import numpy as np
import pytest

from common.evaluation.calibration import Spread
from common.telemetry.events import Evaluated
from deploy.results.calibration import Calibration, attacker_gains, predictive_values
from deploy.results.history import RunHistory
from deploy.results.reader_questions import answers, epsilon_in_words
from tests.support.example_run import example_of_three_classes, example_run

HISTORY = RunHistory.of(example_run(6))


def _spread(others: list[float], own: list[float]) -> Spread:
    scores = np.linspace(-2, 2, len(own))
    spread = Spread.of(tuple(zip(scores.tolist(), others, own, strict=True)))
    assert spread is not None
    return spread


def test_operating_points_keep_what_is_wanted_and_lose_as_little_as_they_can() -> None:
    calibration = Calibration(_spread([60, 30, 8, 2, 0], [0, 5, 15, 40, 40]), 1.0)
    at_90, at_95, found_90, found_95 = calibration.points(0.1)
    assert [at_90.specificity[0], at_90.sensitivity[0]] == pytest.approx([0.90, 0.95])
    assert [at_95.specificity[0], at_95.sensitivity[0]] == pytest.approx([0.98, 0.80])
    assert [found_90.sensitivity[0], found_90.specificity[0]] == pytest.approx([0.95, 0.90])
    assert [found_95.sensitivity[0], found_95.specificity[0]] == pytest.approx([0.95, 0.90])
    assert at_90.threshold < at_95.threshold
    assert at_90.positive_value == pytest.approx(0.95 * 0.1 / (0.95 * 0.1 + 0.1 * 0.9))
    assert at_90.sensitivity[1] < 0.95 < at_90.sensitivity[2]


def test_where_all_alarms_are_right_the_values_are_one() -> None:
    assert predictive_values(0.5, 1.0, 0.3)[0] == 1.0
    assert np.isnan(predictive_values(0.0, 1.0, 0.3)[0])


def test_a_model_that_says_no_more_than_the_prevalence_gets_a_loud_line() -> None:
    useless = Calibration(_spread([20, 20, 20, 20, 20], [20, 20, 20, 20, 20]), 1.0)
    assert any("no more than the prevalence" in line for line in useless.warnings)
    good = Calibration(_spread([88, 73, 50, 27, 12], [12, 27, 50, 73, 88]), 1.0)
    assert good.warnings == ()


def test_an_attackers_odds_grow_by_e_to_the_epsilon() -> None:
    for epsilon, prior in ((0.0, 0.3), (1.0, 0.5), (8.0, 0.01)):
        after = attacker_gains(epsilon, prior)
        assert after / (1 - after) == pytest.approx(np.exp(epsilon) * prior / (1 - prior))
    assert attacker_gains(1e6, 0.5) == pytest.approx(1.0)


def test_what_a_radiologist_asks_is_answered_from_the_run() -> None:
    tested = HISTORY.tested
    assert isinstance(tested, Evaluated)
    spread = Spread.of(tested.scores)
    assert spread is not None
    said = {each.question: each.answer for each in answers(HISTORY, Calibration(spread, 1.0))}
    missed = said["How many of the sick does it miss?"]
    assert f"About {100 * (1 - tested.recall):.0f} of 100 sick are missed" in missed
    assert f"{tested.records} records" in said["How sure are these figures?"]
    assert "of the sick" not in said["For whom does it not work?"]
    assert "not known" in said["For whom does it not work?"]
    assert answers(RunHistory.of(example_of_three_classes(4)), None) == ()


def test_epsilon_is_said_in_words_with_its_factor_and_its_delta() -> None:
    words = epsilon_in_words(HISTORY)
    epsilon = HISTORY.rounds[-1].epsilon
    assert f"factor of at most {np.exp(epsilon):,.0f}" in words
    assert "δ = 0.0001" in words
    assert f"50 % to at most {100 * attacker_gains(epsilon, 0.5):.1f} %" in words
