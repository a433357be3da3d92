import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import log_loss

from common.evaluation.calibration import ROWS, Spread, rows_of, tempered

Floats = NDArray[np.float64]


def _records(temperature: float, seed: int = 3) -> tuple[Floats, NDArray[np.int64]]:
    """Return scores that are right after division by a temperature, and labels drawn by them."""
    random = np.random.default_rng(seed)
    truth = random.normal(0.3, 1.5, 40_000)
    return truth * temperature, (random.random(len(truth)) < 1 / (1 + np.exp(-truth))).astype(np.int64)


def _spread(scores: Floats, labels: NDArray[np.int64]) -> Spread:
    order = np.argsort(scores)
    spread = Spread.of(rows_of(scores[order], (1 - labels[order]).astype(np.float64), labels[order].astype(np.float64)))
    assert spread is not None
    return spread


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_made_the_scores_is_found(temperature: float) -> None:
    scores, labels = _records(temperature)
    spread = _spread(scores, labels)
    assert spread.best_temperature() == pytest.approx(temperature, rel=0.05)
    assert spread.calibration_error(spread.best_temperature()) < 0.015
    if temperature != 1.0:
        assert spread.calibration_error() > 0.05


def test_the_loss_is_scikit_learns_and_beats_the_prevalence() -> None:
    scores, labels = _records(1.0)
    spread = _spread(scores, labels)
    assert spread.log_loss() == pytest.approx(log_loss(labels, 1 / (1 + np.exp(-scores))), abs=2e-3)
    assert spread.prevalence_loss() == pytest.approx(log_loss(labels, np.full(len(labels), labels.mean())), abs=1e-9)
    assert spread.log_loss() < spread.prevalence_loss()


def test_reliability_says_what_was_said_and_seen() -> None:
    scores = np.log(np.array([0.1, 0.9]) / np.array([0.9, 0.1]))
    spread = Spread.of(rows_of(scores, np.array([80.0, 5.0]), np.array([20.0, 15.0])))
    assert spread is not None
    low, high = spread.reliability()
    assert [low.said, low.seen, low.share] == pytest.approx([0.1, 0.2, 100 / 120])
    assert [high.said, high.seen, high.share] == pytest.approx([0.9, 0.75, 20 / 120])
    assert spread.calibration_error() == pytest.approx(100 / 120 * 0.1 + 20 / 120 * 0.15)


def test_nothing_is_calibrated_where_a_class_is_absent_or_a_count_is_no_number() -> None:
    assert Spread.of(()) is None
    assert Spread.of(rows_of(np.array([0.0, 1.0]), np.array([3.0, 4.0]), np.array([0.0, -2.0]))) is None
    assert rows_of(np.array([0.0, 1.0]), np.array([3.0, math.nan]), np.array([1.0, 1.0])) == ()


@given(st.lists(st.tuples(st.floats(-50, 50), st.floats(-5, 100), st.floats(-5, 100)), min_size=1, max_size=300))
def test_rows_hold_all_units_in_order_and_are_few(found: list[tuple[float, float, float]]) -> None:
    scores, others, own = np.array(sorted(found)).T
    rows = rows_of(scores, others, own)
    assert len(rows) <= ROWS
    assert [score for score, _, _ in rows] == pytest.approx(sorted(score for score, _, _ in rows))
    assert sum(row[1] for row in rows) == pytest.approx(np.maximum(others, 0).sum())
    assert sum(row[2] for row in rows) == pytest.approx(np.maximum(own, 0).sum())


@given(st.floats(0.001, 0.999), st.floats(0.05, 20))
def test_a_tempered_threshold_decides_the_same(threshold: float, temperature: float) -> None:
    score = math.log(threshold / (1 - threshold))
    assert tempered(threshold, temperature) == pytest.approx(1 / (1 + math.exp(-score / temperature)))
    assert tempered(0.0, temperature) == 0.0
