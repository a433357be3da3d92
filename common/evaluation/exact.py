"""How the global model is measured without anyone seeing one hospital's results: integer counts, summed securely.

A hospital turns the model's logits on its validation and test records into :class:`EvaluationCounts`; counts of many
hospitals add up to the counts of their pooled records, of which :mod:`common.evaluation.metrics` makes what a person
reads.

**These counts carry no differential privacy**, and a server that asks often, or of models of its own making, learns
single records from their sums. So they are counted in privacy mode none, and where each hospital agrees; otherwise
:mod:`common.evaluation.plan` says what is asked instead.

**The score histogram.** AUC depends on the order of the scores only, so the bins may lie on any increasing scale of
the probability p. Equal bins of p itself lose everything as a model grows confident and its scores crowd at 0 and 1;
equal bins of the log-odds need a range beyond which they saturate. The bins here are equal in sigmoid(log-odds / 4):
never saturated, 0.06 of log-odds wide at p = 0.5 with 256 bins, and still 0.2 wide where p is 0.9999. Edges lie on a
fixed grid, so a decision threshold placed on an edge gives the *exact* confusion matrix of that threshold.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from common.errors import RunError

Integers = NDArray[np.int64]

COUNT_BITS = 24
"""The width of a count: a hospital has fewer than 2^24 records in a part."""

SUM_BITS = 48
"""The width of a sum over 2^24 records of a fixed-point value below 2^24."""

FIXED_POINT = 1 << 16
"""Steps per unit (nat or probability) of the fixed-point sums."""

LARGEST_LOGIT = 1e30
"""The bound at which scores are clamped; any softmax of such scores is 0 or 1."""

_LOGITS = -LARGEST_LOGIT, LARGEST_LOGIT

MAX_LOSS = 64.0
"""The largest cross-entropy of a record in nats, where p is 1e-28, so that one outlier cannot overflow the sum."""

SCORE_TEMPER = 4.0
"""The divisor of the log-odds before they are squashed to the unit interval that the bins divide."""

CALIBRATION_BINS = 15
"""The bins of the expected calibration error, as in Guo et al. 2017 and ``torchmetrics``."""

TWO_CLASSES = 2


@dataclass(frozen=True)
class EvaluationShape:
    """How many counts one evaluation has: ``classes`` of the task and ``bins`` of the score histogram.

    With ``labels``, it is that many evaluations of two classes, one after the other.
    """

    classes: int
    bins: int
    labels: int = 0

    @property
    def scores(self) -> int:
        """Return how many scores are binned: one for two classes (that of class 1), else one per class."""
        return 1 if self.classes == TWO_CLASSES else self.classes

    @property
    def counts_length(self) -> int:
        """Return how many plain counts one part has, each below 2^COUNT_BITS at one hospital."""
        return self.classes**2 + self.scores * 2 * self.bins + 2 * CALIBRATION_BINS

    @property
    def part_length(self) -> int:
        """Return how many integers one part has: its counts, then the fixed-point sums."""
        return self.counts_length + CALIBRATION_BINS + 1

    @property
    def length(self) -> int:
        """Return how many integers an evaluation has: the validation part, then the test part, for each label."""
        return 2 * self.part_length * max(1, self.labels)

    def bits(self) -> Integers:
        """Return the width in bits that each of the ``length`` integers needs at one hospital."""
        part = np.full(self.part_length, SUM_BITS, np.int64)
        part[: self.counts_length] = COUNT_BITS
        return np.tile(part, 2 * max(1, self.labels))


@dataclass(frozen=True)
class PartCounts:
    """What a model did on one part of the data; sums of these are those of the pooled records.

    Attributes:
        confusion: (classes, classes) records by truth (row) and most probable class (column).
        histograms: (scores, 2, bins) records by score bin; on the second axis, 0 holds the records of other classes
            and 1 those of the score's class.
        confident: (CALIBRATION_BINS,) records by probability of the most probable class.
        correct: (CALIBRATION_BINS,) those of them that were right.
        confidence: (CALIBRATION_BINS,) sum of those probabilities, in 1/FIXED_POINT.
        loss: sum of the cross-entropies, in 1/FIXED_POINT nats.
    """

    confusion: Integers
    histograms: Integers
    confident: Integers
    correct: Integers
    confidence: Integers
    loss: int

    @property
    def records(self) -> int:
        """Return how many records were counted."""
        return int(self.confusion.sum())

    def is_of_one_set(self) -> bool:
        """Return whether all counts can be of the same records; then so can sums of such counts."""
        totals = (self.confident.sum(), *self.histograms.sum(axis=(1, 2)))
        return all(int(total) == self.records for total in totals) and bool((self.correct <= self.confident).all())

    def flat(self) -> Integers:
        """Return all integers in the order of :meth:`EvaluationShape.bits`."""
        arrays = (self.confusion, self.histograms, self.confident, self.correct, self.confidence)
        return np.concatenate([*(array.ravel() for array in arrays), np.array([self.loss], np.int64)])

    @classmethod
    def from_flat(cls, flat: Integers, shape: EvaluationShape) -> Self:
        """Return the inverse of :meth:`flat`."""
        ends = np.cumsum([shape.classes**2, shape.scores * 2 * shape.bins, *[CALIBRATION_BINS] * 3])
        confusion, histograms, confident, correct, confidence, loss = np.split(flat, ends)
        return cls(
            confusion=confusion.reshape(shape.classes, shape.classes),
            histograms=histograms.reshape(shape.scores, 2, shape.bins),
            confident=confident,
            correct=correct,
            confidence=confidence,
            loss=int(loss[0]),
        )


@dataclass(frozen=True)
class EvaluationCounts:
    """Counts of a model on the validation part and, apart from it, on the test part."""

    validation: PartCounts
    test: PartCounts

    def flat(self) -> Integers:
        """Return all integers, shape (shape.length,): what travels inside the masked vector."""
        return np.concatenate([self.validation.flat(), self.test.flat()])

    @classmethod
    def from_flat(cls, flat: Integers, shape: EvaluationShape) -> Self:
        """Return the inverse of :meth:`flat`.

        Raises:
            RunError: the array has another length than ``shape`` asks for.
        """
        if flat.shape != (shape.length,):
            raise RunError(f"evaluation counts must have {shape.length} integers, got shape {flat.shape}")
        validation, test = np.split(flat, 2)
        return cls(PartCounts.from_flat(validation, shape), PartCounts.from_flat(test, shape))

    def check(self) -> None:
        """Raise :class:`RunError` where the counts of a part contradict each other, as noise does and no record can."""
        for name, part in (("validation", self.validation), ("test", self.test)):
            if not part.is_of_one_set():
                raise RunError(f"all counts of the {name} part must be of the same records; they contradict each other")

    @classmethod
    def zero(cls, shape: EvaluationShape) -> Self:
        """Return the counts of no records, from which a sum starts."""
        return cls.from_flat(np.zeros(shape.length, np.int64), shape)


def count(logits: NDArray[np.float32], labels: Integers, shape: EvaluationShape) -> PartCounts:
    """Count what a model did on some records.

    Nothing that scores hold raises an error, because the refusal would reveal the record: they are clamped, and a score
    that is undefined lies in the first bin.

    Args:
        logits: (records, classes) float32, of any values.
        labels: (records,) int64 in [0, classes).
        shape: of the evaluation.

    Returns:
        The counts; of a part with 2^COUNT_BITS records or more those of the first 2^COUNT_BITS - 1.
    """
    labels = labels[: (1 << COUNT_BITS) - 1]
    exact = np.clip(np.nan_to_num(logits[: len(labels)].astype(np.float64), nan=-LARGEST_LOGIT), *_LOGITS)
    log_p = exact - _log_sum_exp(exact)
    decided = log_p.argmax(axis=1)
    confusion = np.zeros((shape.classes, shape.classes), np.int64)
    np.add.at(confusion, (labels, decided), 1)
    confidence = np.exp(log_p.max(axis=1, initial=-np.inf)) if len(labels) else np.zeros(0)
    cells = np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    losses = np.minimum(-log_p[np.arange(len(labels)), labels], MAX_LOSS)
    return PartCounts(
        confusion=confusion,
        histograms=_histograms(exact, np.isnan(logits[: len(labels)]), labels, shape),
        confident=np.bincount(cells, minlength=CALIBRATION_BINS),
        correct=np.bincount(cells[decided == labels], minlength=CALIBRATION_BINS),
        confidence=_fixed_point_sums(cells, confidence),
        loss=int(np.rint(losses * FIXED_POINT).astype(np.int64).sum()),
    )


def _log_sum_exp(exact: NDArray[np.float64]) -> NDArray[np.float64]:
    largest = exact.max(axis=1, keepdims=True, initial=-np.inf)
    largest = np.where(np.isfinite(largest), largest, 0.0)
    summed: NDArray[np.float64] = largest + np.log(np.exp(exact - largest).sum(axis=1, keepdims=True))
    return summed


def _histograms(
    exact: NDArray[np.float64], undefined: NDArray[np.bool_], labels: Integers, shape: EvaluationShape
) -> Integers:
    """Bin each score's log-odds; see the module's head for the scale."""
    unknown = undefined.any(axis=1)
    histograms = np.zeros((shape.scores, 2, shape.bins), np.int64)
    first = 1 if shape.scores == 1 else 0
    for score in range(shape.scores):
        own = first + score
        # log(p / (1 - p)) of a softmax is this logit less the log-sum-exp of the others; so no digit of a p near 1
        # is lost.
        log_odds = exact[:, own] - _log_sum_exp(np.delete(exact, own, axis=1))[:, 0]
        place = 0.5 + 0.5 * np.tanh(log_odds / (2 * SCORE_TEMPER))
        cells = np.where(unknown, 0, np.minimum((place * shape.bins).astype(np.int64), shape.bins - 1))
        np.add.at(histograms[score], ((labels == own).astype(np.int64), cells), 1)
    return histograms


def _fixed_point_sums(cells: Integers, values: NDArray[np.float64]) -> Integers:
    sums = np.zeros(CALIBRATION_BINS, np.int64)
    np.add.at(sums, cells, np.rint(values * FIXED_POINT).astype(np.int64))
    return sums
