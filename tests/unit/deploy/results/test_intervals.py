import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from common.events import RoundDone
from deploy.results.intervals import over_runs, over_test_records
from tests.example_run import example_run

DONE = next(event for event in reversed(example_run(6)) if isinstance(event, RoundDone))


def test_every_interval_holds_the_figure_it_is_about() -> None:
    intervals = over_test_records(DONE)
    assert set(intervals) == {"accuracy", "precision", "recall", "f1", "specificity", "kappa", "auc"}
    for name, interval in intervals.items():
        assert interval.value == getattr(DONE, name)
        assert interval.low < interval.value < interval.high


def test_the_interval_of_an_accuracy_is_that_of_a_binomial_share() -> None:
    interval = over_test_records(DONE)["accuracy"]
    records = sum(map(sum, DONE.confusion))
    deviation = math.sqrt(DONE.accuracy * (1 - DONE.accuracy) / records)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * deviation, rel=0.1)


def test_the_interval_of_auc_from_counts_is_that_from_the_records_themselves() -> None:
    generator = np.random.default_rng(1)
    truth = np.repeat([0, 1], (120, 180))
    scores = np.round(generator.normal(truth, 1.2) * 8) / 8  # binned, so that there are ties
    false_alarms, found, _ = roc_curve(truth, scores)
    done = DONE.model_copy(
        update={
            "auc": float(roc_auc_score(truth, scores)),
            "confusion": ((100, 20), (60, 120)),
            "roc": tuple((float(x), float(y)) for x, y in zip(false_alarms, found, strict=True)),
        }
    )
    rows = generator.integers(0, len(truth), (400, len(truth)))
    low, high = np.percentile([roc_auc_score(truth[row], scores[row]) for row in rows], [2.5, 97.5])
    interval = over_test_records(done)["auc"]
    assert interval.low == pytest.approx(low, abs=0.015)
    assert interval.high == pytest.approx(high, abs=0.015)


def test_more_classes_have_intervals_of_their_means_and_no_roc() -> None:
    done = DONE.model_copy(update={"confusion": ((30, 5, 2), (6, 20, 4), (1, 3, 29)), "roc": None, "kappa": 0.8})
    intervals = over_test_records(done)
    assert "auc" not in intervals
    assert intervals["kappa"].low < 0.8 < intervals["kappa"].high


def test_a_class_that_is_never_called_leaves_no_undefined_interval() -> None:
    done = DONE.model_copy(update={"confusion": ((40, 0), (10, 0)), "roc": None, "precision": 0.0})
    assert not math.isnan(over_test_records(done)["precision"].low)


def test_the_same_counts_give_the_same_interval() -> None:
    assert over_test_records(DONE) == over_test_records(DONE)


def test_a_round_without_counts_has_no_intervals() -> None:
    assert over_test_records(DONE.model_copy(update={"confusion": ()})) == {}


def test_one_run_has_no_interval_and_says_none() -> None:
    assert str(over_runs([0.9])) == "0.900"
    assert str(over_runs([math.nan])) == "–"
