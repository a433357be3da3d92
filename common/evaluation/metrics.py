"""What a person reads of a model: the table :data:`METRICS`, and every metric of exact counts.

Events, the hospital's own results, outputs, reports, the exporter and the tests of the dashboards read the table. A
metric that is a function of the confusion matrix alone holds for noisy counts and for resampled ones as well.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict

from common.evaluation.calibration import Row, Spread, rows_of
from common.evaluation.exact import FIXED_POINT, SCORE_TEMPER, TWO_CLASSES, EvaluationCounts, Integers, PartCounts
from common.task import TaskKind

Floats = NDArray[np.float64]


def _undefined_as_nan(value: object) -> object:
    return math.nan if value is None or (isinstance(value, float) and not math.isfinite(value)) else value


Measure = Annotated[float, BeforeValidator(_undefined_as_nan)]
"""A number that may be undefined (an AUC over one class, an ε where nothing bounds it): null in JSON, NaN here."""


class Figures(BaseModel):
    """A value for each of :data:`METRICS`, by its name; NaN where it is undefined.

    Those without a default are in every file that Confide ever wrote.
    """

    model_config = ConfigDict(frozen=True)

    accuracy: Measure
    precision: Measure
    recall: Measure
    f1: Measure
    specificity: Measure = math.nan
    auc: Measure
    loss: Measure
    kappa: Measure = math.nan
    ece: Measure = math.nan


class ClassFigures(BaseModel):
    """How well one class of several, or one label, is told from the rest; NaN where that is undefined.

    Attributes:
        support: units that are of the class.
        called: units that are decided to be.
        threshold: least probability that is called so; NaN where the most probable class is.
        records: units of which the label is known; NaN where that is all.
        intervals: name of a figure to the ends of its 95 % interval; empty where counts are exact.
        noise: name of a figure to the standard deviation that privacy noise alone gives it.
    """

    model_config = ConfigDict(frozen=True)

    support: Measure
    called: Measure
    recall: Measure
    specificity: Measure
    precision: Measure
    auc: Measure
    threshold: Measure = math.nan
    records: Measure = math.nan
    intervals: dict[str, tuple[Measure, Measure]] = {}
    noise: dict[str, Measure] = {}


class Metrics(Figures):
    """All that one measurement says; all but ``loss`` and ``threshold`` of the test part at the threshold.

    Attributes:
        records: in the test part.
        auc_error_bound: the AUC of the unbinned scores lies within ± this.
        threshold: least probability of class 1 that is called class 1, chosen on the validation part; NaN with more
            than two classes, where the most probable class is called.
        confusion: records by truth (row) and decision (column).
        roc: (false-positive rate, true-positive rate) of the two-class ROC curve at every bin edge, else empty.
        scores: the spread of the test part's scores, see :mod:`common.evaluation.calibration`; empty where there is
            none.
        temperature: of the validation part; NaN where there is none.
        prevalence: of the second of two classes in the validation part, between 0 and 1; NaN where there is no
            temperature.
    """

    records: int
    auc_error_bound: float
    threshold: float
    confusion: tuple[tuple[int, ...], ...]
    roc: tuple[tuple[float, float], ...]
    scores: tuple[Row, ...] = ()
    temperature: float = math.nan
    prevalence: float = math.nan


def accuracy(confusion: Floats) -> Floats:
    """Return the share of records decided rightly, (B,) of confusion matrices (B, C, C)."""
    return _share(np.trace(confusion, axis1=1, axis2=2), confusion.sum(axis=(1, 2)))


def precision(confusion: Floats) -> Floats:
    """Return the share of alarms that are right."""
    right, called, _, _ = by_class(confusion)
    return _of_interest(_share(right, called))


def recall(confusion: Floats) -> Floats:
    """Return the share of positive records that are found."""
    right, _, true, _ = by_class(confusion)
    return _of_interest(_share(right, true))


def f1(confusion: Floats) -> Floats:
    """Return the harmonic mean of precision and recall."""
    right, called, true, _ = by_class(confusion)
    return _of_interest(_share(2 * right, called + true))


def specificity(confusion: Floats) -> Floats:
    """Return the true-negative rate."""
    right, called, true, total = by_class(confusion)
    return _of_interest(_share(total - true - called + right, total - true))


def quadratic_kappa(confusion: Floats) -> Floats:
    """Return Cohen's kappa with quadratic weights (1968): 1 agrees, 0 is chance; 0 where all is one class."""
    grades = np.arange(confusion.shape[1])
    weights = np.subtract.outer(grades, grades) ** 2
    total = confusion.sum(axis=(1, 2))
    products = confusion.sum(axis=2)[:, :, None] * confusion.sum(axis=1)[:, None, :]
    by_chance = (weights * products).sum(axis=(1, 2))
    apart = (weights * confusion).sum(axis=(1, 2)) * total
    return np.where(by_chance > 0, 1 - _share(apart, by_chance), 0.0)


def _calibration_error(part: PartCounts) -> float:
    gaps = np.abs(part.correct - part.confidence / FIXED_POINT)
    return float(gaps.sum() / part.records)


@dataclass(frozen=True)
class Metric:
    """One entry of :data:`METRICS`.

    Attributes:
        heading: of a column.
        label: in a report.
        words: what it says, in a report.
        help: what it is, in the exporter; None where it is not exported.
        low: no value is below.
        high: no value is above.
        of_confusion: from confusion matrices (B, C, C), truth by row, to (B,): of class 1, or with more than two
            classes the mean over classes; a rate over no records is 0, as scikit-learn's default.
        of_part: from exact counts; of a metric that the confusion matrix alone does not give.
    """

    heading: str
    label: str
    words: str
    help: str | None = None
    low: float = 0.0
    high: float = 1.0
    of_confusion: Callable[[Floats], Floats] | None = None
    of_part: Callable[[PartCounts], float] | None = None

    def of(self, part: PartCounts, confusion: Integers) -> float:
        """Return the metric of exact counts whose decisions are ``confusion``, (C, C)."""
        if self.of_confusion is not None:
            return float(self.of_confusion(confusion[None].astype(np.float64))[0])
        return math.nan if self.of_part is None else self.of_part(part)


METRICS: Mapping[str, Metric] = {
    "auc": Metric(
        "AUC", "AUC", "ranks a sick above a healthy one this often",
        "Area under the receiver operating characteristic, 0.5 (chance) to 1.",
        of_part=lambda part: auc_and_bound(part.histograms)[0],
    ),
    "accuracy": Metric(
        "accuracy", "accuracy", "records classified correctly",
        "Share of records classified correctly by the last model that was measured, 0 to 1; of the records that "
        "confide_measured_info names.",
        of_confusion=accuracy,
    ),
    "precision": Metric(
        "precision", "precision", "alarms that are right",
        "Share of positive predictions that are right, 0 to 1.",
        of_confusion=precision,
    ),
    "recall": Metric(
        "recall", "recall (sensitivity)", "of the sick, those found",
        "Share of positive records that are found (sensitivity), 0 to 1.",
        of_confusion=recall,
    ),
    "specificity": Metric(
        "specificity", "specificity", "of the healthy, those left in peace",
        "Share of negative records that are recognised as such, 0 to 1.",
        of_confusion=specificity,
    ),
    "f1": Metric(
        "F1", "F1", "balance of precision and recall",
        "Harmonic mean of precision and recall, 0 to 1.",
        of_confusion=f1,
    ),
    "kappa": Metric(
        "kappa", "kappa (quadratic)", "agreement beyond chance, for ordered grades",
        low=-1.0, of_confusion=quadratic_kappa,
    ),
    "ece": Metric(
        "ECE", "calibration error (ECE)", "how far stated probabilities are from what happens",
        of_part=_calibration_error,
    ),
    "loss": Metric(
        "loss", "loss", "mean cross-entropy, in nats",
        "Mean cross-entropy of the global model, in nats.",
        high=math.inf, of_part=lambda part: part.loss / FIXED_POINT / part.records,
    ),
}  # fmt: skip
"""AUC with more than two classes is the mean of one-versus-rest, as MedMNIST reports, and NaN where a class has no or
only records. The calibration error is of the most probable class, in CALIBRATION_BINS equal bins."""

HEADLINES = ("auc", "accuracy", "f1")
"""The metrics that curves and small tables show, where not all have room."""

SUMMARISED = (*HEADLINES, "recall", "specificity", "kappa")
"""The metrics that the last lines of a run and a comparison of runs name, those of the task."""

BY_ROUND = ("accuracy", "precision", "recall", "f1", "auc", "loss")
"""The metrics that a run's table and ``metrics.csv`` have for each round: a fixed format, which programs read."""

WHERE_NARROW = ("auc", "accuracy", "recall", "specificity", "loss")
"""The metrics that a hospital's own report shows with their digits in a narrow terminal."""

OF_A_CLASS = ("auc", "recall", "specificity", "precision")
"""The metrics that one class of several, or one label, has: fields of :class:`ClassFigures`."""

UNDEFINED: Mapping[str, float] = dict.fromkeys(METRICS, math.nan)


def metrics_of_kind(kind: TaskKind) -> tuple[str, ...]:
    """Return the names of the metrics that say something of a task: quadratic kappa of ordered grades alone."""
    return tuple(name for name in METRICS if name != "kappa" or kind is TaskKind.ORDINAL)


def class_figures(confusion: Integers, areas: tuple[float, ...] = ()) -> tuple[ClassFigures, ...]:
    """Return each class's figures from exact counts.

    Args:
        confusion: (C, C), truth by row.
        areas: each class's AUC against the rest; undefined where it is not given.
    """
    right, called, true, total = (each[0] for each in by_class(confusion[None].astype(np.float64)))
    return tuple(
        ClassFigures(
            support=float(true[place]),
            called=float(called[place]),
            recall=_rate(right[place], true[place]),
            specificity=_rate(total[0] - true[place] - called[place] + right[place], total[0] - true[place]),
            precision=_rate(right[place], called[place]),
            auc=areas[place] if areas else math.nan,
        )
        for place in range(len(confusion))
    )


def _rate(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else math.nan


def metrics(counts: EvaluationCounts, decided: float | None = None) -> Metrics:
    """Return the metrics of the pooled test part, decided at the threshold chosen on the pooled validation part.

    For an empty test part all but the threshold are NaN.

    Args:
        counts: exact ones.
        decided: a threshold of two classes that was chosen otherwise; the nearest edge of the histogram stands for it.
    """
    test = counts.test
    binary = len(test.confusion) == TWO_CLASSES
    edge = 0
    if binary:
        bins = test.histograms.shape[2]
        edge = threshold_edge(counts.validation) if decided is None else _nearest_edge(decided, bins)
    threshold = _edge_probability(edge, test.histograms.shape[2]) if binary else math.nan
    confusion = _confusion_at(test.histograms[0], edge) if binary else test.confusion
    figures = {name: metric.of(test, confusion) for name, metric in METRICS.items()} if test.records else UNDEFINED
    return Metrics(
        **figures,
        records=test.records,
        auc_error_bound=auc_and_bound(test.histograms)[1],
        threshold=threshold,
        confusion=tuple(tuple(int(cell) for cell in row) for row in confusion),
        roc=_roc(test.histograms[0]) if binary else (),
        scores=_spread(test.histograms[0]) if binary else (),
        **calibration_of(_spread(counts.validation.histograms[0]) if binary else ()),
    )


def calibration_of(rows: tuple[Row, ...]) -> dict[str, float]:
    """Return ``temperature``, the best of a spread, and ``prevalence``; nothing where it lacks a class."""
    spread = Spread.of(rows)
    return {} if spread is None else {"temperature": spread.best_temperature(), "prevalence": spread.prevalence()}


def _spread(histogram: Integers) -> tuple[Row, ...]:
    """Return the spread of a score histogram; the scale of its bins is that of :func:`_edge_probability`."""
    negatives, positives = histogram
    middles = (np.arange(len(positives)) + 0.5) / len(positives)
    return rows_of(SCORE_TEMPER * np.log(middles / (1 - middles)), negatives.astype(float), positives.astype(float))


def threshold_edge(validation: PartCounts) -> int:
    """Return the bin edge at which the two-class decision errs equally often in both classes of the validation part.

    Equal error is the rule that noisy counts follow, too (:mod:`common.evaluation.decode`). Unlike accuracy it does not
    depend on how common the disease is in the validation part, which is not how common it is where the model will be
    used. On classes that are all but separated the largest sum of sensitivity and specificity (Youden 1950) is a wide
    plateau, and which of its edges is the best is chance; where the errors cross is not. Where several edges are
    equally good the middle one is taken, the farthest from a decision that the data contradict. Without records of both
    classes the edge is that of p = 0.5.
    """
    negatives, positives = validation.histograms[0]
    bins = len(positives)
    if not negatives.sum() or not positives.sum():
        return bins // 2
    # Entry e is the decision "positive from bin e on". In integers, so that equally good edges compare equal.
    missed = np.concatenate([[0], positives.cumsum()])
    alarms = np.concatenate([negatives[::-1].cumsum()[::-1], [0]])
    apart = np.abs(missed * int(negatives.sum()) - alarms * int(positives.sum()))
    best = np.flatnonzero(apart == apart.min())
    return int(best[len(best) // 2])


def _edge_probability(edge: int, bins: int) -> float:
    """Return the probability at a bin edge: the inverse of the scale of :func:`_histograms`."""
    place = edge / bins
    if place in (0.0, 1.0):
        return place
    log_odds = SCORE_TEMPER * np.log(place / (1 - place))
    return float(1 / (1 + np.exp(-log_odds)))


def _nearest_edge(probability: float, bins: int) -> int:
    """Return the edge whose probability is nearest, by the scale of :func:`_edge_probability`."""
    if not 0 < probability < 1:
        return bins if probability >= 1 else 0
    odds: float = ((1 - probability) / probability) ** (1 / SCORE_TEMPER)
    return round(bins / (1 + odds))


def _confusion_at(histogram: Integers, edge: int) -> Integers:
    negatives, positives = histogram
    return np.array(
        [
            [negatives[:edge].sum(), negatives[edge:].sum()],
            [positives[:edge].sum(), positives[edge:].sum()],
        ]
    )


def auc_and_bound(histograms: Integers) -> tuple[float, float]:
    """Return the mean AUC over scores, and how far the AUC of the unbinned scores can be from it.

    A pair of a positive and a negative in different bins is ordered for certain; a pair in one bin counts one half
    (Mann and Whitney 1947), and is off by at most one half.
    """
    areas, bounds = [], []
    for histogram in histograms:
        area, bound = _area_and_bound(histogram)
        areas.append(area)
        bounds.append(bound)
    return float(np.mean(areas)), float(np.mean(bounds))


def areas_of(histograms: Integers) -> tuple[float, ...]:
    """Return the AUC of each score; NaN where one of its two groups is empty."""
    return tuple(_area_and_bound(histogram)[0] for histogram in histograms)


def _area_and_bound(histogram: Integers) -> tuple[float, float]:
    negatives, positives = histogram
    pairs = int(negatives.sum()) * int(positives.sum())
    if not pairs:
        return math.nan, math.nan
    below = np.concatenate([[0], negatives.cumsum()[:-1]])
    tied = int((positives * negatives).sum())
    return (int((positives * below).sum()) + tied / 2) / pairs, tied / 2 / pairs


def _roc(histogram: Integers) -> tuple[tuple[float, float], ...]:
    negatives, positives = histogram
    if not negatives.sum() or not positives.sum():
        return ()
    alarms = np.concatenate([[0], negatives[::-1].cumsum()]) / negatives.sum()
    caught = np.concatenate([[0], positives[::-1].cumsum()]) / positives.sum()
    points = np.stack([alarms, caught], axis=1)
    moved = np.concatenate([[True], np.any(np.diff(points, axis=0) != 0, axis=1)])
    return tuple((float(x), float(y)) for x, y in points[moved])


def by_class(confusion: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Return, by class (B, C), the records decided rightly, called so, and truly so; and all records (B, 1)."""
    right = np.diagonal(confusion, axis1=1, axis2=2)
    return right, confusion.sum(axis=1), confusion.sum(axis=2), confusion.sum(axis=(1, 2))[:, None]


def _of_interest(rates: Floats) -> Floats:
    """Return, of rates by class (B, C), that of class 1 or, with more than two classes, their mean."""
    chosen: Floats = rates[:, 1] if rates.shape[1] == TWO_CLASSES else rates.mean(axis=1)
    return chosen


def _share(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part, np.float64), where=whole > 0)
