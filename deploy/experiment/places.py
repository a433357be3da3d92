"""Where a study's records are: dealt to hospitals in memory, or all in one place.

A study trains dozens of times on the same images. Nothing is written as a shard and read again; each hospital gets the
very arrays that reading its shard would give.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from client.data import DataContract
from client.data.hospital_data import HospitalData, HospitalRecords
from common.config import Config
from common.shards import SPLITS, Records, Split, combine_digests, record_digest
from deploy.datasets.datasets import DataSet, obtain
from deploy.demo.dealer import Hand


def obtained(config: Config, console: Console) -> DataSet:
    """Get an experiment's data set, and show what a person must see of it before anything is trained."""
    data = obtain(config.data, config.experiment.task, config.model.image_size)
    if data.banner:
        console.print(data.banner, style="bold")
    return data


def hospital_data(data: DataSet, hand: Hand) -> HospitalData:
    """Return the records of one hand as its hospital would hold them."""
    return _held({split: data.parts[split].select(hand.rows[split]) for split in SPLITS})


def pooled_data(data: DataSet) -> HospitalData:
    """Return all records in one place, for the central baselines."""
    return _held(dict(data.parts))


def alone_data(data: DataSet, hand: Hand) -> HospitalData:
    """Return what a hospital that trains alone has, measured on the whole test part so that results compare."""
    own = {split: data.parts[split].select(hand.rows[split]) for split in SPLITS}
    return _held({**own, "test": data.parts["test"]})


class InMemory:
    """Reads a hospital's data from memory: what :class:`client.agent.Surroundings` takes as ``open_data``."""

    def __init__(self, held: HospitalData) -> None:
        self._held = held

    def __call__(self, _folder: Path, _contract: DataContract, _cache: Path, _began_with: str = "") -> HospitalData:
        """Return the records, whatever the folder."""
        return self._held


def _held(parts: dict[Split, Records]) -> HospitalData:
    train, validation, test = (
        HospitalRecords(parts[split].images, parts[split].labels, _patient_numbers(parts[split].patients))
        for split in SPLITS
    )
    return HospitalData(train, validation, test, combine_digests(_digests(parts)))


def _patient_numbers(patients: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Number the patients; a record of nobody known is a patient of its own."""
    names = [patient or f"record {row}" for row, patient in enumerate(patients)]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _digests(parts: dict[Split, Records]) -> Iterable[bytes]:
    for split, records in parts.items():
        for image, label, patient in zip(records.images, records.labels, records.patients, strict=True):
            yield record_digest(hashlib.sha256(image.tobytes()).digest(), str(label), patient, split)
