"""Splits a data set into one shard for each hospital of a demo or experiment.

Three ways, all seeded and by whole patients: ``iid`` (every hospital has the same mix), ``dirichlet`` (label skew: each
class is shared out by its own draw, Hsu et al. 2019, arXiv:1909.06335), ``quantity`` (size skew: one draw for all
classes). The test parts of all hospitals together are exactly the data set's test split, and so for the other two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.config import DataConfig
from common.errors import DataError
from common.shards import SPLITS, ShardDescription, Split, write
from common.task import TaskKind, counted, groups_of, strata
from deploy.datasets.datasets import DataSet
from deploy.datasets.partition import partition

MAX_DRAWS = 1000
"""How often a skewed split is drawn again until every hospital can train (as in Li et al. 2022, arXiv:2102.02079)."""

_FEWEST_CLASSES = 2


@dataclass(frozen=True)
class Hand:
    """What one hospital gets: row numbers into each split of the data set, int64."""

    rows: Mapping[Split, npt.NDArray[np.int64]]


@dataclass(frozen=True)
class ShardSummary:
    """How many records of each class one shard has in each split; for the demo's screen, never sent by a hospital."""

    folder: Path
    records: Mapping[Split, tuple[int, ...]]
    patients: int
    """Distinct known patients over all splits; 0 where none is known."""


def split(data: DataSet, hospitals: int, config: DataConfig, seed: int, batch_size: int) -> tuple[Hand, ...]:
    """Choose the records of each hospital.

    Args:
        data: the whole data set.
        hospitals: how many shards.
        config: ``partition`` and ``dirichlet_alpha``.
        seed: the same seed gives the same split.
        batch_size: expected records of a batch; no hospital may have fewer to train on.

    Returns:
        One hand a hospital: disjoint, together all records, every patient in one hand.

    Raises:
        DataError: some hospital would have a single class or fewer records than a batch to train on, or nothing to
            validate or test on; the message names the remedy.
    """
    draws = 1 if config.partition == "iid" else MAX_DRAWS
    complaint = ""
    for draw in range(draws):
        random = np.random.default_rng([seed, draw])
        shares = _draw_shares(config, hospitals, groups_of(data.terms), random)
        hands = _deal_by_shares(data, shares, random)
        complaint = _complaint(data, hands, batch_size)
        if not complaint:
            return hands
    remedy = "lower experiment.num_clients or training.batch_size"
    if config.partition != "iid":
        remedy = f"raise data.dirichlet_alpha ({config.dirichlet_alpha:g}), or {remedy}; {draws} draws were tried"
    raise DataError(f"{data.name} can't be split among {hospitals} hospitals: {complaint}; {remedy}")


def deal(
    data: DataSet, folders: Sequence[Path], config: DataConfig, seed: int, batch_size: int
) -> tuple[ShardSummary, ...]:
    """Write one shard into each folder; see :func:`split` for what goes where.

    Raises:
        DataError: the split is refused, a folder holds a shard already, or the disk refuses.
    """
    hands = split(data, len(folders), config, seed, batch_size)
    several = data.terms.kind is TaskKind.MULTILABEL
    description = ShardDescription(
        data.name, data.task, data.classes, data.channels, data.image_size, several, data.terms.uncertain,
        data.terms.empty,
    )  # fmt: skip
    summaries = []
    for folder, hand in zip(folders, hands, strict=True):
        parts = {part: data.parts[part].select(rows) for part, rows in hand.rows.items()}
        write(folder, description, parts)
        counts = {part: _counts(records.labels, data) for part, records in parts.items()}
        known = {patient for records in parts.values() for patient in records.patients} - {""}
        summaries.append(ShardSummary(folder, counts, len(known)))
    return tuple(summaries)


def _draw_shares(
    config: DataConfig, hospitals: int, classes: int, random: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Return shape (hospitals, classes): which share of a class each hospital gets."""
    match config.partition:
        case "iid":
            return np.full((hospitals, classes), 1.0 / hospitals)
        case "quantity":
            sizes = random.dirichlet(np.full(hospitals, config.dirichlet_alpha))
            return np.repeat(sizes[:, None], classes, axis=1)
        case "dirichlet":
            return random.dirichlet(np.full(hospitals, config.dirichlet_alpha), classes).T


def _deal_by_shares(data: DataSet, shares: npt.NDArray[np.float64], random: np.random.Generator) -> tuple[Hand, ...]:
    """Deal each split by the same shares, so that a hospital tests on the mix it trains on."""
    groups = {part: strata(data.terms, data.parts[part].labels) for part in SPLITS}
    dealt = {part: partition(groups[part], data.parts[part].patients, shares, random) for part in SPLITS}
    return tuple(Hand({part: dealt[part][number] for part in SPLITS}) for number in range(len(shares)))


def _complaint(data: DataSet, hands: Sequence[Hand], batch_size: int) -> str:
    """Say what keeps a hospital from taking part, or return ''."""
    for number, hand in enumerate(hands, start=1):
        train = data.parts["train"].labels[hand.rows["train"]]
        if len(train) < batch_size:
            return f"hospital {number} would have {len(train)} training records, fewer than a batch of {batch_size}"
        if len(np.unique(train)) < _FEWEST_CLASSES:
            return f"hospital {number} would have a single class to train on"
        for part in ("val", "test"):
            if not len(hand.rows[part]):
                return f"hospital {number} would have no {part} records"
    return ""


def _counts(labels: npt.NDArray[np.int64], data: DataSet) -> tuple[int, ...]:
    return counted(data.terms, labels)
