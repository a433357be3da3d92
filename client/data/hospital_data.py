"""The way from a hospital's folder to the arrays it trains on: :func:`open_data`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.data.contract import DataContract
from common import shards
from common.errors import DataError
from common.shards import Records


@dataclass(frozen=True, eq=False)
class HospitalRecords:
    """One part of a hospital's data, ready to train on.

    Attributes:
        images: uint8, shape (n, c, h, w).
        labels: int64, shape (n,): the index of the class.
        patients: int64, shape (n,): equal numbers mean one patient; the numbers themselves mean nothing.
    """

    images: npt.NDArray[np.uint8] = field(repr=False)
    labels: npt.NDArray[np.int64] = field(repr=False)
    patients: npt.NDArray[np.int64] = field(repr=False)

    def __len__(self) -> int:
        """Return the number of records, n."""
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class HospitalData:
    """All of a hospital's data that a run uses, checked against the contract.

    Attributes:
        train: what gradients are computed on.
        validation: what a decision threshold is chosen on.
        test: what the global model is measured on.
        fingerprint: 32 bytes that name this data; the privacy ledger is bound to it.
    """

    train: HospitalRecords
    validation: HospitalRecords
    test: HospitalRecords
    fingerprint: bytes


def open_data(folder: Path, contract: DataContract, cache_dir: Path) -> HospitalData:
    """Read a hospital's data, check it against the contract, and return it ready to train on.

    Args:
        folder: the hospital's data: a shard.
        contract: what the run asks.
        cache_dir: the hospital's own folder for prepared images, on its own disk.

    Raises:
        DataError: the data breaks the contract; names rows, never a patient, a file or what is in one.
    """
    del cache_dir  # the shards of a demo load faster than a cache of them would
    parts = {
        split: shards.load(folder, split, contract.image_size, contract.channels, contract.classes)
        for split in shards.SPLITS
    }
    train = parts["train"]
    if len(np.unique(train.labels)) < 2:  # noqa: PLR2004 - nothing can be told apart from nothing
        raise DataError("the training records must be of at least two classes; add records of another class")
    if len(train) < contract.batch_size:
        raise DataError(
            f"there must be at least a batch ({contract.batch_size}) of training records; "
            "add records, or ask for a smaller training.batch_size"
        )
    numbers = _number_patients(list(parts.values()))
    prepared = {
        split: HospitalRecords(records.images, records.labels, patients)
        for (split, records), patients in zip(parts.items(), numbers, strict=True)
    }
    return HospitalData(prepared["train"], prepared["val"], prepared["test"], shards.fingerprint(folder))


def _number_patients(parts: Sequence[Records]) -> list[npt.NDArray[np.int64]]:
    """Replace identifiers by running numbers, the same for one patient in all parts; an unknown one is nobody else."""
    known: dict[str, int] = {}
    numbered: list[npt.NDArray[np.int64]] = []
    following = 0
    for records in parts:
        numbers = np.empty(len(records), np.int64)
        for row, patient in enumerate(records.patients):
            numbers[row] = known.setdefault(patient, following) if patient else following
            following += 1
        numbered.append(numbers)
    return numbered
