"""Exact counts of a task with several labels: each label is a task of two classes, and the whole is their mean."""

import math

import numpy as np
from numpy.typing import NDArray

from common.evaluation.exact import TWO_CLASSES, EvaluationCounts, EvaluationShape, Integers, PartCounts, count
from common.evaluation.metrics import METRICS, ClassFigures, Metrics, class_figures, metrics

Scores = NDArray[np.float32]


def count_labels(
    validation: tuple[Scores, Integers], test: tuple[Scores, Integers], bins: int
) -> tuple[EvaluationCounts, ...]:
    """Return each label's counts.

    Args:
        validation: scores (records, labels) and what is true of each, 0 or 1, or less than 0 where that is not known;
            it fixes each label's threshold. A label is counted over the records of which it is known.
        test: the same of the part that is measured.
        bins: of each score's histogram.
    """
    shape = EvaluationShape(TWO_CLASSES, bins)
    return tuple(
        EvaluationCounts(*(_of_label(scores, truth, label, shape) for scores, truth in (validation, test)))
        for label in range(validation[0].shape[1])
    )


def flat_labels(counts: tuple[EvaluationCounts, ...]) -> Integers:
    """Return all integers, shape (shape.length,): what travels inside the masked vector."""
    return np.concatenate([each.flat() for each in counts])


def labels_from_flat(flat: Integers, shape: EvaluationShape) -> tuple[EvaluationCounts, ...]:
    """Return the inverse of :func:`flat_labels`.

    Raises:
        RunError: the array has another length than ``shape`` asks for.
    """
    single = EvaluationShape(shape.classes, shape.bins)
    return tuple(EvaluationCounts.from_flat(one, single) for one in np.split(flat, shape.labels))


def figures_of_labels(counts: tuple[EvaluationCounts, ...]) -> tuple[Metrics, tuple[ClassFigures, ...]]:
    """Return the mean over labels, and each label's figures, on the test part at the thresholds of validation."""
    each = tuple(metrics(one) for one in counts)
    return mean_of(each), tuple(_as_class(one) for one in each)


def mean_of(each: tuple[Metrics, ...]) -> Metrics:
    """Return the mean of every figure over the labels for which it is defined; NaN where it is for none."""
    values = {name: [getattr(one, name) for one in each] for name in METRICS}
    defined = {name: [value for value in found if not math.isnan(value)] for name, found in values.items()}
    return Metrics(
        **{name: float(np.mean(found)) if found else math.nan for name, found in defined.items()},
        records=each[0].records if each else 0,
        auc_error_bound=0.0,
        threshold=math.nan,
        confusion=(),
        roc=(),
    )


def _as_class(one: Metrics) -> ClassFigures:
    figures = class_figures(np.array(one.confusion, np.int64))[1]
    return figures.model_copy(update={"auc": one.auc, "threshold": one.threshold, "records": float(one.records)})


def _of_label(scores: Scores, truth: Integers, label: int, shape: EvaluationShape) -> PartCounts:
    known = truth[:, label] >= 0
    own = scores[known, label]
    return count(np.stack([np.zeros(len(own), np.float32), own], axis=1), truth[known, label], shape)
