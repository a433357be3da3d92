"""Which whole number of a vector counts what, for each kind of task: the one place that weights are written.

Every unit (a record, or a patient) adds a vector of whole numbers of L2 norm at most S = ``NORM_BOUND``. The norm is
spent on *blocks*, in this order; each is cut where the release does not ask for it:

========== =================================================================================== ======================
block      what a record adds                                                                  of tasks
========== =================================================================================== ======================
trees      at one node of each level of a score's tree, ±weight: right or left of the node's   all
           edge; separate nodes for records of the class ("own") and for all others
numbers    weight × a number in [-1, 1]: decided rightly, loss, agreement of grades, grade     multi-class, ordinal
           decided, its square
confusion  in the row of its class: weight × √(C/(C-1)) × (the decided class's unit vector     multi-class, ordinal
           less its mean)
classes    ±weight with two classes or for each label; else as a row of the confusion          all
known      ±weight for each label: whether it is known of the record                           that leave labels out
========== =================================================================================== ======================

A label that is not known of a record adds 0 to that label's tree and class, and so to the norm.

A tree of depth D has 2^D - 1 edges and as many nodes; the node of level l and place j splits at edge
(2j + 1)·2^(D-l-1) - 1. Its entries lie level by level: those of other classes' records, then the class's own.

Halves beat cells: with n public, a yes or no counted as ±1/2 has half the noise of one counted as 0 or 1, and an empty
unit then counts as half of each answer.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from common.errors import PrivacyError
from common.task import TaskKind

NORM_BOUND = 1000
"""S, large enough that rounding a patient's mean to whole numbers costs less than a thousandth."""

MOST_SCORES = 256

MOST_ROWS = 64
"""The largest number of rows of a confusion matrix that is counted: with more, its C² cells would hold noise alone."""

TWO_CLASSES = 2

_RING = 1 << 31


class Numbers(StrEnum):
    """What is summed as a number from -1 to 1 for a record, in a task of several classes."""

    RIGHT = "right"
    LOSS = "loss"
    AGREEMENT = "agreement"
    GRADE = "grade"
    GRADE_SQUARED = "grade_squared"


@dataclass(frozen=True)
class Layout:
    """The blocks of one kind of release; see the module.

    Attributes:
        kind: of the task.
        classes: of the task, or its labels.
        trees: how many scores have a tree.
        own: for each level, the weight of the class's own records.
        others: the same for records of other classes.
        numbers: (what, weight) of each number.
        confusion: weight of a row; 0 without the block.
        class_weight: of the class block; 0 without it.
        known_weight: of the block of labels that are known; 0 without it.
    """

    kind: TaskKind
    classes: int
    trees: int
    own: tuple[int, ...]
    others: tuple[int, ...]
    numbers: tuple[tuple[Numbers, int], ...]
    confusion: int
    class_weight: int
    known_weight: int = 0

    @property
    def depth(self) -> int:
        """Return D, the levels of a tree."""
        return len(self.own)

    @property
    def edges(self) -> tuple[int, ...]:
        """Return how many edges a question must give for each score."""
        return ((1 << self.depth) - 1,) * self.trees if self.depth else ()

    @property
    def tree_length(self) -> int:
        """Return the entries of one tree."""
        return 2 * ((1 << self.depth) - 1)

    @property
    def numbers_start(self) -> int:
        """Return where the numbers begin."""
        return self.trees * self.tree_length

    @property
    def confusion_start(self) -> int:
        """Return where the confusion rows begin."""
        return self.numbers_start + len(self.numbers)

    @property
    def classes_start(self) -> int:
        """Return where the class block begins."""
        return self.confusion_start + (self.classes**2 if self.confusion else 0)

    @property
    def class_entries(self) -> int:
        """Return the entries of the class block where it is asked for: one for two classes."""
        return 1 if self.kind is TaskKind.BINARY else self.classes

    @property
    def known_start(self) -> int:
        """Return where the block of known labels begins."""
        return self.classes_start + (self.class_entries if self.class_weight else 0)

    @property
    def length(self) -> int:
        """Return how many entries the release has, from the vector's first."""
        return self.known_start + (self.classes if self.known_weight else 0)

    @property
    def largest(self) -> int:
        """Return the largest size that one unit gives one entry."""
        spread = NORM_BOUND if self.kind in (TaskKind.MULTICLASS, TaskKind.ORDINAL) else 0
        counts = self.class_weight, self.known_weight
        weights = [*self.own, *self.others, *(weight for _, weight in self.numbers), *counts]
        return max(*weights, min(spread, max(self.confusion, self.class_weight)))

    def most_units(self, noise: float) -> int:
        """Return how many units' sum fits a ring of 2^32 for certain, beside ten deviations of noise.

        Args:
            noise: standard deviation of the noise in an entry of the sum.
        """
        return max(0, int((_RING - 1 - 10 * noise) // self.largest))


def edge_of(depth: int, level: int, place: int) -> int:
    """Return which edge, from 0, the node of a level and place splits at.

    >>> [edge_of(3, 0, 0), edge_of(3, 1, 1), edge_of(3, 2, 3)]
    [3, 5, 6]
    """
    return int((2 * place + 1) * 2 ** (depth - level - 1) - 1)


def entry_of(level: int, place: int, *, own: bool) -> int:
    """Return a node's entry within its tree's; the same for trees of any depth.

    >>> [entry_of(0, 0, own=True), entry_of(1, 1, own=True), entry_of(2, 0, own=False)]
    [1, 5, 6]
    """
    return int(2 * (2**level - 1) + (2**level if own else 0) + place)


@lru_cache(maxsize=256)
def layout_of(
    kind: TaskKind, classes: int, *, classes_only: bool, final: bool, with_classes: bool, labels_left_out: bool = False
) -> Layout:
    """Return the blocks of a release.

    Args:
        kind: of the task.
        classes: of the task: 2 if binary, at least 3 if multi-class or ordinal; labels of a multi-label task.
        classes_only: the release counts classes and nothing else.
        final: it measures the last model in full.
        with_classes: it counts classes too.
        labels_left_out: the task leaves single labels of a record out, so that it is counted where each is known.

    Raises:
        PrivacyError: ``classes`` is out of range.
    """
    fewest = {TaskKind.BINARY: 2, TaskKind.MULTILABEL: 1}.get(kind, 3)
    most = TWO_CLASSES if kind is TaskKind.BINARY else MOST_SCORES
    if not fewest <= classes <= most:
        raise PrivacyError(
            f"a {kind} task must have {fewest} to {most} classes, got {classes}; correct the data's kind"
        )
    trees = 1 if kind is TaskKind.BINARY else classes
    # The class block's weight, or that of two blocks of the same norm together.
    both = math.sqrt(2) if labels_left_out else 1.0
    if classes_only:
        weight = NORM_BOUND if kind is not TaskKind.MULTILABEL else int(NORM_BOUND / (math.sqrt(classes) * both))
        return Layout(kind, classes, trees, (), (), (), 0, weight, weight if labels_left_out else 0)
    if kind in (TaskKind.BINARY, TaskKind.MULTILABEL):
        own = ((700, 500, 400) if with_classes else (700, 520, 470)) if final else (780, 620)
        share = 1 / math.sqrt(trees)
        levels = tuple(int(weight * share) for weight in own)
        weight = int(300 * share / both) if final and with_classes else 0
        return Layout(kind, classes, trees, levels, levels, (), 0, weight, weight if labels_left_out else 0)
    return _of_several_classes(kind, classes, final, with_classes)


def _of_several_classes(kind: TaskKind, classes: int, final: bool, with_classes: bool) -> Layout:
    """Spend the norm on what several classes are judged by; squares add up to at most S²."""
    graded = kind is TaskKind.ORDINAL
    numbers: tuple[tuple[Numbers, int], ...]
    if not final:
        numbers = (
            ((Numbers.RIGHT, 700), (Numbers.AGREEMENT, 650), (Numbers.GRADE, 200), (Numbers.GRADE_SQUARED, 200))
            if graded
            else ((Numbers.RIGHT, 980), (Numbers.LOSS, 190))
        )
        return Layout(kind, classes, 0, (), (), numbers, 0, 0)
    # The class's own records are few, and each is one class's alone; it is one of the others' for C - 1 classes.
    share = 1 / math.sqrt(classes - 1)
    if graded:
        own, others = (250, 180), (220, 150)
        numbers = (
            (Numbers.RIGHT, 500),
            (Numbers.LOSS, 150),
            (Numbers.AGREEMENT, 550),
            (Numbers.GRADE, 150),
            (Numbers.GRADE_SQUARED, 150),
        )
        confusion, class_weight = 350, 250
    else:
        own, others = (350, 250), (300, 220)
        numbers = ((Numbers.RIGHT, 600), (Numbers.LOSS, 200))
        confusion, class_weight = 400, 300
    confusion = confusion if classes <= MOST_ROWS else 0
    return Layout(
        kind,
        classes,
        classes,
        own,
        tuple(int(weight * share) for weight in others),
        numbers,
        confusion,
        class_weight if with_classes else 0,
    )
