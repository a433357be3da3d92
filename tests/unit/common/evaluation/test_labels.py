"""Exact figures of several labels are those of scikit-learn, label by label, and counts of hospitals add up."""

import numpy as np
import pytest
from sklearn.metrics import recall_score, roc_auc_score

from common.evaluation import EvaluationCounts, EvaluationShape
from common.evaluation.labels import count_labels, figures_of_labels, flat_labels, labels_from_flat

LABELS, BINS = 3, 4096
SHAPE = EvaluationShape(2, BINS, LABELS)


def part(seed: int, records: int = 300) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = (random.random((records, LABELS)) < (0.5, 0.1, 0.02)).astype(np.int64)
    truth[0] = 1
    scores = (random.normal(size=truth.shape) + truth * (1.0, 2.0, 0.0)).astype(np.float32)
    return scores, truth


def test_each_labels_auc_and_sensitivity_are_scikit_learns() -> None:
    validation, test = part(1), part(2)
    mean, each = figures_of_labels(count_labels(validation, test, BINS))
    for label, figures in enumerate(each):
        scores, truth = test[0][:, label], test[1][:, label]
        assert figures.auc == pytest.approx(roc_auc_score(truth, scores), abs=2e-3)
        decided = 1 / (1 + np.exp(-scores.astype(np.float64))) >= figures.threshold
        assert figures.support == truth.sum()
        assert figures.recall == pytest.approx(recall_score(truth, decided), abs=0.02)
    assert mean.auc == pytest.approx(np.mean([figures.auc for figures in each]))


def test_counts_of_two_hospitals_add_up_to_those_of_both() -> None:
    one, other = (part(1), part(2)), (part(3), part(4))
    both = tuple((np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1]])) for a, b in zip(one, other, strict=True))
    summed = flat_labels(count_labels(*one, BINS)) + flat_labels(count_labels(*other, BINS))
    assert summed.shape == (SHAPE.length,) == SHAPE.bits().shape
    pooled = count_labels(both[0], both[1], BINS)
    assert (summed == flat_labels(pooled)).all()
    read = labels_from_flat(summed, SHAPE)
    assert all(isinstance(counts, EvaluationCounts) for counts in read)
    assert figures_of_labels(read)[0].auc == figures_of_labels(pooled)[0].auc


def test_a_label_that_nobody_has_is_undefined_and_leaves_the_mean_alone() -> None:
    validation, test = part(1), part(2)
    test[1][:, 2] = 0
    mean, each = figures_of_labels(count_labels(validation, test, BINS))
    assert np.isnan(each[2].auc)
    assert np.isnan(each[2].recall)
    assert mean.auc == pytest.approx((each[0].auc + each[1].auc) / 2)


def test_a_label_is_counted_over_the_records_of_which_it_is_known() -> None:
    validation, (scores, truth) = part(1), part(2)
    known = np.random.default_rng(5).random(truth.shape) < (1.0, 0.7, 0.9)
    known[0] = True
    mean, each = figures_of_labels(count_labels(validation, (scores, np.where(known, truth, -1)), BINS))
    for label, figures in enumerate(each):
        own = known[:, label]
        assert (figures.records, figures.support) == (own.sum(), truth[own, label].sum())
        assert figures.auc == pytest.approx(roc_auc_score(truth[own, label], scores[own, label]), abs=2e-3)
    assert mean.records == len(truth)
