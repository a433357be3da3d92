"""Who a run trains on, counted once before training: tables of noisy counts over all hospitals together.

Every training record lies in exactly one bin of each table, so its vector of whole numbers has ``WEIGHT`` in one entry
of each of the k tables and 0 elsewhere: L2 norm √k · WEIGHT ≤ S, whatever the data are. A record against an empty one
(zero-out) moves the sum by that at most; a patient's vector is the mean over the patient's records, as in other
releases.

Which bins there are is the same for everyone and no choice of the server's. What is not known of a record is a bin of
its own, so missing fields are counted like everything else.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import RunError
from common.evaluation.layout import NORM_BOUND
from common.task import TaskKind

NOT_KNOWN = "not known"
"""Bin 0 of every table but the classes."""

VIEWS = (NOT_KNOWN, "frontal", "other")
SEXES = (NOT_KNOWN, "female", "male", "other")
AGES = (NOT_KNOWN, "0 to 1", "2 to 17", "18 to 39", "40 to 64", "65 and more")
SIDES = (NOT_KNOWN, "below 512", "512 to 1023", "1024 to 2047", "2048 and more")
GREYS = (NOT_KNOWN, "0 to 50", "51 to 101", "102 to 152", "153 to 203", "204 to 255")

TRAITS = (
    ("view", VIEWS),
    ("sex", SEXES),
    ("age in years", AGES),
    ("short side in pixels", SIDES),
    ("median grey level", GREYS),
    ("grey levels from the 1st to the 99th percentile", GREYS),
)
"""Tables beside that of the classes, with their bins; a record's traits are one bin of each, in this order."""

LABELS_HELD = ("none of the labels", "one label", "two labels or more")
"""The first table's bins in a multi-label task, where a record can be under several labels and must count once."""

TABLES = 1 + len(TRAITS)
WEIGHT = math.isqrt(NORM_BOUND**2 // TABLES)

SUPPRESSED_BELOW = 3.0
"""Deviations of the noise: what was counted below them is as likely noise, and is told as that and never as 0."""


@dataclass(frozen=True)
class BinCount:
    """One noisy count.

    Attributes:
        name: of the bin.
        count: unbiased estimate of the units in it; None where it does not stand out from the noise.
    """

    name: str
    count: float | None


@dataclass(frozen=True)
class TableCounts:
    """One table.

    Attributes:
        name: of the table.
        bins: in their order.
    """

    name: str
    bins: tuple[BinCount, ...]


@dataclass(frozen=True)
class Statistics:
    """All tables.

    Attributes:
        tables: the classes first, then those of :data:`TRAITS`.
        units: that the hospitals in the sum state to train on, together.
        deviation: standard deviation of the noise in each count, in units.
    """

    tables: tuple[TableCounts, ...]
    units: int
    deviation: float

    @property
    def least(self) -> float:
        """Return the count below which a bin is suppressed."""
        return SUPPRESSED_BELOW * self.deviation


def class_bins(kind: TaskKind, classes: int) -> int:
    """Return how many bins the first table has."""
    return len(LABELS_HELD) if kind is TaskKind.MULTILABEL else classes


def length_of(classes: int) -> int:
    """Return the entries of all tables, the first of which has ``classes`` bins."""
    return classes + sum(len(bins) for _, bins in TRAITS)


def vectors_of(classes: int, labels: NDArray[np.int64], traits: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return each record's vector, (records, length_of(classes)), of norm at most S.

    Args:
        classes: bins of the first table.
        labels: (records,) of its bins; one that is not among them counts in no bin of that table.
        traits: (records, len(TRAITS)), the bin in each table; one that is out of range is not known.
    """
    vectors = np.zeros((len(labels), length_of(classes)), np.int64)
    rows = np.arange(len(labels))
    known = (labels >= 0) & (labels < classes)
    vectors[rows, np.clip(labels, 0, classes - 1)] = WEIGHT * known
    start = classes
    for column, (_, bins) in enumerate(TRAITS):
        chosen = traits[:, column].astype(np.int64)
        vectors[rows, start + np.where(chosen < len(bins), chosen, 0)] = WEIGHT
        start += len(bins)
    return vectors


def unknown_traits(records: int) -> NDArray[np.uint8]:
    """Return the traits of records of which nothing but the label is known."""
    return np.zeros((records, len(TRAITS)), np.uint8)


def read_tables(classes: tuple[str, ...], summed: NDArray[np.int64], units: int, variance: float) -> Statistics:
    """Return what a sum says; a function of the sum and of public numbers.

    Args:
        classes: names of the first table's bins.
        summed: (length,) int64 with the tables in its first entries, noise included.
        units: stated by the hospitals in the sum, together.
        variance: of the noise in each entry.

    Raises:
        RunError: the sum is too short.
    """
    length = length_of(len(classes))
    if summed.ndim != 1 or len(summed) < length or not variance >= 0:
        raise RunError(f"a sum of statistics must have at least {length} entries, got {summed.shape}")
    deviation = math.sqrt(variance) / WEIGHT
    tables, start = [], 0
    for name, bins in (("class", classes), *TRAITS):
        counts = (summed[start : start + len(bins)] / WEIGHT).tolist()
        told = (BinCount(bin_name, count if count >= max(SUPPRESSED_BELOW * deviation, 0.5) else None)
                for bin_name, count in zip(bins, counts, strict=True))  # fmt: skip
        tables.append(TableCounts(name, tuple(told)))
        start += len(bins)
    return Statistics(tuple(tables), units, deviation)
