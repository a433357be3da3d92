import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from common.config import Config, replace
from common.evaluation import METRICS
from common.telemetry.events import Evaluated, RoundDone
from deploy.results.intervals import Interval, of_round, of_test, over_runs, over_test_records
from tests.support.example_run import example_of_three_classes, example_run

EXACT = replace(Config(), evaluation={"exact": True}, privacy={"mode": "none"})
DONE = next(event for event in reversed(example_run(6, config=EXACT)) if isinstance(event, RoundDone))


def _tested(config: Config | None = None) -> Evaluated:
    return next(event for event in example_run(6, config=config) if isinstance(event, Evaluated))


def test_every_interval_holds_the_figure_it_is_about() -> None:
    intervals = over_test_records(DONE)
    assert set(intervals) == {"auc"} | {name for name, metric in METRICS.items() if metric.of_confusion}
    told = {name: interval for name, interval in intervals.items() if interval.is_told}
    assert {"accuracy", "precision", "recall", "f1", "specificity", "kappa", "auc"} <= set(told)
    for name, interval in told.items():
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
    # By words: from Python 3.13 on, what holds a NaN is not equal to itself.
    assert repr(over_test_records(DONE)) == repr(over_test_records(DONE))


def test_a_round_without_counts_has_no_intervals() -> None:
    assert over_test_records(DONE.model_copy(update={"confusion": ()})) == {}


def test_one_run_has_no_interval_and_says_none() -> None:
    assert str(over_runs([0.9])) == "0.900"
    assert str(over_runs([math.nan])) == "–"


def test_the_last_models_figures_have_the_intervals_that_came_with_their_noise() -> None:
    tested = _tested()
    sure = of_test(tested)
    assert (sure["accuracy"].low, sure["accuracy"].high) == tested.intervals["accuracy"]
    assert sure["accuracy"].noise == pytest.approx(1.96 * tested.noise["accuracy"])
    assert math.isnan(sure["kappa"].low)  # it came without one: none is made up from noisy counts


def test_exact_counts_of_the_last_model_are_bootstrapped() -> None:
    tested = _tested(EXACT)
    assert tested.intervals == {}
    assert repr(of_test(tested)["accuracy"]) == repr(over_test_records(tested)["accuracy"])
    assert math.isnan(of_test(tested)["accuracy"].noise)


@pytest.mark.parametrize(("deviation", "shown"), [(0.004, "0.893"), (0.006, "0.89")])
def test_a_third_decimal_is_shown_where_noise_leaves_it_a_meaning(deviation: float, shown: str) -> None:
    tested = _tested().model_copy(
        update={"accuracy": 0.8934, "intervals": {"accuracy": (0.86, 0.92)}, "noise": {"accuracy": deviation}}
    )
    assert of_test(tested)["accuracy"].figure == shown


def test_a_round_shows_two_decimals_where_its_interval_is_wide() -> None:
    done = DONE.model_copy(update={"accuracy": 0.8934, "auc": 0.9}).model_copy(
        update={"intervals": {"accuracy": (0.85, 0.93), "auc": (0.895, 0.905)}}
    )
    sure = of_round(done)
    assert sure["accuracy"].short == "0.89 ±0.04"
    assert sure["auc"].short == "0.900 ±0.005"


def test_a_figure_of_several_classes_that_has_no_auc_is_a_dash() -> None:
    events = example_of_three_classes(2, has_auc=False)
    tested = next(event for event in events if isinstance(event, Evaluated))
    assert of_test(tested)["auc"].short == str(of_test(tested)["auc"]) == "–"
    assert not of_test(tested)["auc"].is_told


def test_an_interval_reaches_as_far_as_its_wider_side() -> None:
    assert Interval(0.99, 0.9, 1.0, decimals=2).short == "0.99 ±0.09"
