import dataclasses
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sk
from torchmetrics.classification import MulticlassAUROC, MulticlassCalibrationError, MulticlassSpecificity

from common.errors import RunError
from common.evaluation import (
    FIXED_POINT,
    EvaluationCounts,
    EvaluationShape,
    PartCounts,
    count,
    metrics,
    threshold_edge,
)

BINARY = EvaluationShape(classes=2, bins=256)
FIVE = EvaluationShape(classes=5, bins=256)


def scores(
    shape: EvaluationShape, records: int, seed: int, sharpness: float = 1.0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits that know something about the labels; ``sharpness`` sets how confident they are."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, shape.classes, records)
    labels[: shape.classes] = np.arange(shape.classes)
    logits = rng.standard_normal((records, shape.classes))
    logits[np.arange(records), labels] += 1.0
    return (logits * sharpness).astype(np.float32), labels


def counted(shape: EvaluationShape, seed: int, sharpness: float = 1.0, records: int = 600) -> EvaluationCounts:
    return EvaluationCounts(
        validation=count(*scores(shape, records, seed + 1, sharpness), shape),
        test=count(*scores(shape, records, seed, sharpness), shape),
    )


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    probabilities: NDArray[np.float64] = torch.softmax(torch.from_numpy(logits).double(), dim=1).numpy()
    return probabilities


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), sharpness=st.sampled_from([0.01, 0.3, 1.0, 5.0, 30.0]))
def test_the_auc_is_scikit_learns_within_the_stated_bound(seed: int, sharpness: float) -> None:
    logits, labels = scores(BINARY, 300, seed, sharpness)
    # The exact AUC of the unbinned log-odds; probabilities would tie where they round to 1.
    exact = sk.roc_auc_score(labels, logits[:, 1].astype(np.float64) - logits[:, 0])
    part = count(logits, labels, BINARY)
    result = metrics(EvaluationCounts(part, part))
    assert abs(result.auc - exact) <= result.auc_error_bound + 1e-12


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 5.0])
def test_the_binning_error_is_below_a_tenth_of_a_point_for_usual_scores(sharpness: float) -> None:
    logits, labels = scores(BINARY, 5000, 3, sharpness)
    exact = sk.roc_auc_score(labels, logits[:, 1].astype(np.float64) - logits[:, 0])
    part = count(logits, labels, BINARY)
    assert abs(metrics(EvaluationCounts(part, part)).auc - exact) < 1e-3


def test_the_scale_keeps_resolution_where_equal_bins_of_the_probability_lose_it() -> None:
    logits, labels = scores(BINARY, 5000, 4, sharpness=1.0)
    logits[:, 1] += 8.0  # a model that is sure of everything still ranks well
    exact = sk.roc_auc_score(labels, logits[:, 1].astype(np.float64) - logits[:, 0])
    equal_bins = np.floor(softmax(logits)[:, 1] * 256)
    part = count(logits, labels, BINARY)
    ours = abs(metrics(EvaluationCounts(part, part)).auc - exact)
    assert ours < 2e-3
    assert abs(sk.roc_auc_score(labels, equal_bins) - exact) > 20 * ours


def test_the_macro_auc_of_five_classes_is_torchmetrics_within_the_bound() -> None:
    logits, labels = scores(FIVE, 1000, 5)
    part = count(logits, labels, FIVE)
    result = metrics(EvaluationCounts(part, part))
    expected = MulticlassAUROC(5, average="macro")(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    assert abs(result.auc - expected) <= result.auc_error_bound + 1e-6
    assert result.auc_error_bound < 0.01


def test_five_class_metrics_are_scikit_learns() -> None:
    logits, labels = scores(FIVE, 1000, 6)
    part = count(logits, labels, FIVE)
    result = metrics(EvaluationCounts(part, part))
    decided = logits.argmax(axis=1)
    assert result.accuracy == pytest.approx(sk.accuracy_score(labels, decided))
    assert result.precision == pytest.approx(sk.precision_score(labels, decided, average="macro"))
    assert result.recall == pytest.approx(sk.recall_score(labels, decided, average="macro"))
    assert result.f1 == pytest.approx(sk.f1_score(labels, decided, average="macro"))
    assert result.kappa == pytest.approx(sk.cohen_kappa_score(labels, decided, weights="quadratic"))
    assert result.loss == pytest.approx(sk.log_loss(labels, softmax(logits)), abs=2 / FIXED_POINT)
    specificity = MulticlassSpecificity(5, average="macro")(torch.from_numpy(logits), torch.from_numpy(labels))
    assert result.specificity == pytest.approx(specificity.item(), abs=1e-6)
    assert math.isnan(result.threshold)
    assert np.array_equal(np.array(result.confusion), sk.confusion_matrix(labels, decided))


@pytest.mark.parametrize("shape", [BINARY, FIVE])
def test_the_calibration_error_is_torchmetrics(shape: EvaluationShape) -> None:
    logits, labels = scores(shape, 1000, 7, sharpness=3.0)
    part = count(logits, labels, shape)
    metric = MulticlassCalibrationError(shape.classes, n_bins=15, norm="l1")
    expected = metric(torch.from_numpy(softmax(logits)), torch.from_numpy(labels)).item()
    assert metrics(EvaluationCounts(part, part)).ece == pytest.approx(expected, abs=1e-4)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31))
def test_two_class_metrics_are_scikit_learns_at_the_threshold(seed: int) -> None:
    logits, labels = scores(BINARY, 400, seed)
    result = metrics(EvaluationCounts(count(*scores(BINARY, 400, seed + 1), BINARY), count(logits, labels, BINARY)))
    decided = (softmax(logits)[:, 1] >= result.threshold).astype(int)
    assert np.array_equal(np.array(result.confusion), sk.confusion_matrix(labels, decided))
    assert result.accuracy == pytest.approx(sk.accuracy_score(labels, decided))
    assert result.precision == pytest.approx(sk.precision_score(labels, decided, zero_division=0))
    assert result.recall == pytest.approx(sk.recall_score(labels, decided))
    assert result.specificity == pytest.approx(sk.recall_score(labels, decided, pos_label=0))
    assert result.f1 == pytest.approx(sk.f1_score(labels, decided))


def test_at_the_threshold_both_classes_of_the_validation_part_err_equally_often() -> None:
    logits, labels = scores(BINARY, 800, 11)
    part = count(logits, labels, BINARY)
    chosen = metrics(EvaluationCounts(part, part))
    false_alarms, caught, _ = sk.roc_curve(labels, softmax(logits)[:, 1])
    equal = np.abs(1 - caught - false_alarms).argmin()
    # The best of the fixed edges can miss the best of all thresholds by what one bin holds.
    assert abs(chosen.recall - chosen.specificity) < 0.02
    assert chosen.recall == pytest.approx(caught[equal], abs=0.02)


def test_the_threshold_depends_on_validation_records_alone() -> None:
    validation = count(*scores(BINARY, 300, 12), BINARY)
    thresholds = {
        metrics(EvaluationCounts(validation, count(*scores(BINARY, 300, seed), BINARY))).threshold
        for seed in (13, 14, 15)
    }
    assert len(thresholds) == 1


def test_among_equally_good_thresholds_the_middle_one_is_taken() -> None:
    logits = np.array([[0, -4], [0, -4], [0, 4], [0, 4]], np.float32)
    part = count(logits, np.array([0, 0, 1, 1]), BINARY)
    assert abs(threshold_edge(part) - 128) <= 1


def test_without_validation_records_of_both_classes_the_threshold_is_one_half() -> None:
    empty = EvaluationCounts.zero(BINARY).validation
    test = count(*scores(BINARY, 100, 1), BINARY)
    assert metrics(EvaluationCounts(empty, test)).threshold == pytest.approx(0.5)
    only_positive = count(np.zeros((5, 2), np.float32), np.ones(5, np.int64), BINARY)
    assert metrics(EvaluationCounts(only_positive, test)).threshold == pytest.approx(0.5)


def test_counts_of_hospitals_add_up_to_the_counts_of_their_pooled_records() -> None:
    logits, labels = scores(FIVE, 900, 16)
    parts = [
        count(some, truth, FIVE).flat() for some, truth in zip(np.split(logits, 3), np.split(labels, 3), strict=True)
    ]
    assert np.array_equal(np.sum(parts, axis=0), count(logits, labels, FIVE).flat())


def test_counts_survive_the_way_through_a_flat_array() -> None:
    counts = counted(FIVE, 17)
    again = EvaluationCounts.from_flat(counts.flat(), FIVE)
    assert np.array_equal(again.flat(), counts.flat())
    assert metrics(again) == pytest.approx(metrics(counts), nan_ok=True) or again.test.loss == counts.test.loss


def test_a_flat_array_of_another_length_is_refused() -> None:
    with pytest.raises(RunError, match=str(BINARY.length)):
        EvaluationCounts.from_flat(np.zeros(BINARY.length + 1, np.int64), BINARY)


def test_no_records_count_as_zeros() -> None:
    nothing = count(np.zeros((0, 5), np.float32), np.zeros(0, np.int64), FIVE)
    assert not nothing.flat().any()


def test_an_empty_test_part_has_a_threshold_and_no_other_figure() -> None:
    result = metrics(dataclasses.replace(EvaluationCounts.zero(BINARY), validation=counted(BINARY, 3).validation))
    assert result.records == 0
    assert result.confusion == ((0, 0), (0, 0))
    assert all(math.isnan(value) for value in (result.accuracy, result.auc, result.loss, result.kappa, result.ece))
    assert result.threshold == metrics(counted(BINARY, 3)).threshold


@pytest.mark.parametrize("shape", [BINARY, FIVE])
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, 3.4e38, -3.4e38])
def test_scores_of_any_value_are_counted(shape: EvaluationShape, odd: float) -> None:
    logits, labels = scores(shape, 50, 1)
    for row, place in ((0, 0), (1, 1), (2, slice(None))):
        logits[row, place] = odd
    part = count(logits, labels, shape)
    assert part.is_of_one_set()
    assert part.records == 50
    assert not (part.flat() >> np.split(shape.bits(), 2)[0]).any()
    assert (part.flat() >= 0).all()


def test_a_score_that_is_undefined_lies_in_the_first_bin() -> None:
    for row in ([math.nan, 0.0], [0.0, math.nan], [math.nan, math.nan]):
        part = count(np.array([row], np.float32), np.array([1]), BINARY)
        assert part.histograms[0, 1, 0] == 1


def test_an_auc_over_one_class_is_not_a_number_and_the_rest_still_holds() -> None:
    part = count(np.array([[0, 1], [0, 2]], np.float32), np.array([1, 1]), BINARY)
    result = metrics(EvaluationCounts(part, part))
    assert math.isnan(result.auc)
    assert result.roc == ()
    assert result.accuracy == 1.0
    assert result.kappa == 0.0


def test_an_outlying_loss_is_clipped_so_that_the_sum_cannot_overflow() -> None:
    part = count(np.array([[1e6, 0.0]], np.float32), np.array([1]), BINARY)
    assert part.loss == 64 * FIXED_POINT


def test_the_roc_curve_runs_from_corner_to_corner_and_bounds_the_auc() -> None:
    result = metrics(counted(BINARY, 20))
    assert result.roc[0] == (0.0, 0.0)
    assert result.roc[-1] == (1.0, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        area = sk.auc([x for x, _ in result.roc], [y for _, y in result.roc])
    assert area == pytest.approx(result.auc)


def test_every_count_fits_the_width_it_is_declared_with() -> None:
    counts = counted(FIVE, 21).flat()
    assert counts.shape == FIVE.bits().shape
    assert (counts >= 0).all()
    assert not (counts >> FIVE.bits()).any()


def test_a_part_knows_how_many_records_it_counted() -> None:
    part: PartCounts = count(*scores(FIVE, 37, 22), FIVE)
    assert part.records == 37
    assert part.histograms.sum() == 5 * 37
    assert part.confident.sum() == 37


@pytest.mark.parametrize("shape", [BINARY, FIVE])
def test_sums_of_counts_of_records_agree_and_one_count_more_is_found(shape: EvaluationShape) -> None:
    summed = counted(shape, 1).flat() + counted(shape, 2, records=50).flat()
    EvaluationCounts.from_flat(summed, shape).check()
    EvaluationCounts.zero(shape).check()
    half = len(summed) // 2
    for place, part in ((0, "validation"), (shape.classes**2, "validation"), (half, "test")):
        wrong = summed.copy()
        wrong[place] += 1
        with pytest.raises(RunError, match=f"all counts of the {part} part must be of the same records"):
            EvaluationCounts.from_flat(wrong, shape).check()


def test_more_right_decisions_than_decisions_are_found() -> None:
    part = counted(BINARY, 1).test
    wrong = dataclasses.replace(part, correct=part.confident + 1)
    with pytest.raises(RunError, match="they contradict each other"):
        EvaluationCounts(part, wrong).check()


def test_noise_is_no_count_of_records() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        noise = rng.integers(0, 1 << BINARY.bits())
        with pytest.raises(RunError, match="they contradict each other"):
            EvaluationCounts.from_flat(noise, BINARY).check()
