"""Figures of a task with several labels: each label is a task of two classes, and the whole is their mean."""

import math

import numpy as np
from numpy.typing import NDArray

from common.evaluation.exact import EvaluationCounts, EvaluationShape, PartCounts, count
from common.evaluation.metrics import METRICS, Metrics, metrics

Scores = NDArray[np.float32]
Targets = NDArray[np.int64]


def of_labels(
    validation: tuple[Scores, Targets], test: tuple[Scores, Targets], bins: int
) -> tuple[Metrics, tuple[Metrics, ...]]:
    """Return the mean over labels, and each label's figures, from exact counts.

    Args:
        validation: scores (records, labels) and what is true of each, 0 or 1; it fixes each label's threshold.
        test: the same of the part that is measured.
        bins: of each score's histogram.
    """
    shape = EvaluationShape(classes=2, bins=bins)
    labels = validation[0].shape[1]
    each = tuple(
        metrics(EvaluationCounts(*(_of_label(scores, truth, label, shape) for scores, truth in (validation, test))))
        for label in range(labels)
    )
    return mean_of(each), each


def mean_of(each: tuple[Metrics, ...]) -> Metrics:
    """Return the mean of every figure over the labels for which it is defined; NaN where it is for none."""
    means = {name: [getattr(figures, name) for figures in each] for name in METRICS}
    defined = {name: [value for value in values if not math.isnan(value)] for name, values in means.items()}
    return Metrics(
        **{name: float(np.mean(values)) if values else math.nan for name, values in defined.items()},
        records=each[0].records if each else 0,
        auc_error_bound=0.0,
        threshold=math.nan,
        confusion=(),
        roc=(),
    )


def _of_label(scores: Scores, truth: Targets, label: int, shape: EvaluationShape) -> PartCounts:
    two = np.stack([np.zeros(len(scores), np.float32), scores[:, label]], axis=1)
    return count(two, truth[:, label], shape)
