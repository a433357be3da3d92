import numpy as np

from client.data import DataContract
from common.config import DataConfig
from common.shards import SPLITS
from deploy.datasets.datasets import DataSet, obtain
from deploy.demo.dealer import split
from deploy.experiment.places import InMemory, alone_data, hospital_data, pooled_data
from tests.support.tiny import PHANTOM


def _data() -> DataSet:
    return obtain(PHANTOM.data, "pneumonia", 28)


def test_hospitals_in_memory_have_every_record_once() -> None:
    data = _data()
    held = [hospital_data(data, hand) for hand in split(data, 4, DataConfig(), 1, 16)]
    for name, part in zip(("train", "validation", "test"), SPLITS, strict=True):
        dealt = np.concatenate([getattr(each, name).images for each in held])
        assert sorted(image.tobytes() for image in dealt) == sorted(x.tobytes() for x in data.parts[part].images)


def test_who_trains_alone_is_measured_on_everybodys_test_records() -> None:
    data = _data()
    hand = split(data, 4, DataConfig(), 1, 16)[2]
    alone = alone_data(data, hand)
    assert len(alone.test) == len(data.parts["test"])
    assert len(alone.train) == len(hand.rows["train"])


def test_records_of_one_patient_have_one_number_and_those_of_nobody_known_their_own() -> None:
    data = _data()
    patients = data.parts["train"].patients
    numbers = pooled_data(data).train.patients
    assert len(set(numbers.tolist())) == len({patient or str(row) for row, patient in enumerate(patients)})
    first = patients.index(patients[0])
    same = [row for row, patient in enumerate(patients) if patient == patients[first]]
    assert len(set(numbers[same].tolist())) == 1


def test_other_records_have_another_fingerprint() -> None:
    data = _data()
    hands = split(data, 4, DataConfig(), 1, 16)
    prints = {hospital_data(data, hand).fingerprint for hand in hands} | {pooled_data(data).fingerprint}
    assert len(prints) == 5


def test_what_is_in_memory_is_returned_whatever_the_folder() -> None:
    from pathlib import Path

    held = pooled_data(_data())
    contract = DataContract.__new__(DataContract)
    assert InMemory(held)(Path("/nowhere"), contract, Path("/nowhere")) is held
