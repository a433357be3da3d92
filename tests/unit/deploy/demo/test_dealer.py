from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import shards
from common.config import DataConfig
from common.errors import DataError
from common.shards import SPLITS, Records, Split
from deploy.datasets.datasets import DataSet
from deploy.demo.dealer import deal, split

BATCH_SIZE = 8


def example(train: int = 300, images_a_patient: int = 1, ill: float = 0.6, seed: int = 1) -> DataSet:
    """A data set whose every image is different, so that records can be told apart."""
    random = np.random.default_rng(seed)
    parts: dict[Split, Records] = {}
    for name, count in (("train", train), ("val", 60), ("test", 80)):
        labels = (random.random(count) < ill).astype(np.int64)
        if images_a_patient > 1:
            labels = np.repeat(labels, images_a_patient)[:count]
        images = random.integers(0, 256, (count, 1, 4, 4)).astype(np.uint8)
        patients = tuple(f"{name}-{row // images_a_patient}" for row in range(count))
        parts[name] = Records(images, labels, patients)  # type: ignore[index]
    return DataSet("Example", "example.npz", "pneumonia", ("normal", "pneumonia"), 1, 4, parts)


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "quantity"])
@settings(max_examples=25)
@given(hospitals=st.integers(1, 6), images_a_patient=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_hands_are_disjoint_complete_seeded_and_keep_patients_together(
    partition: str, hospitals: int, images_a_patient: int, seed: int
) -> None:
    data = example(images_a_patient=images_a_patient)
    config = DataConfig.model_validate({"partition": partition, "dirichlet_alpha": 1.0})
    hands = split(data, hospitals, config, seed, BATCH_SIZE)
    again = split(data, hospitals, config, seed, BATCH_SIZE)
    for name in SPLITS:
        rows = [hand.rows[name].tolist() for hand in hands]
        assert sorted(row for hand in rows for row in hand) == list(range(len(data.parts[name])))
        assert rows == [hand.rows[name].tolist() for hand in again]
        owners = [{data.parts[name].patients[row] for row in hand} for hand in rows]
        assert sum(len(owner) for owner in owners) == len(set().union(*owners))


def test_an_iid_split_gives_everyone_the_same_mix() -> None:
    data = example(train=400)
    hands = split(data, 4, DataConfig(), 3, BATCH_SIZE)
    mixes = [np.bincount(data.parts["train"].labels[hand.rows["train"]]) for hand in hands]
    assert np.ptp(mixes, axis=0).max() <= 1


def test_a_small_alpha_skews_labels_and_a_large_one_does_not() -> None:
    data = example(train=2000)

    def spread(alpha: float) -> float:
        hands = split(data, 4, DataConfig(partition="dirichlet", dirichlet_alpha=alpha), 3, BATCH_SIZE)
        return float(np.std([data.parts["train"].labels[hand.rows["train"]].mean() for hand in hands]))

    assert spread(0.2) > 5 * spread(1000.0)


def test_a_quantity_split_skews_sizes_and_keeps_the_mix() -> None:
    data = example(train=2000)
    hands = split(data, 4, DataConfig(partition="quantity", dirichlet_alpha=0.5), 3, BATCH_SIZE)
    sizes = [len(hand.rows["train"]) for hand in hands]
    assert max(sizes) > 2 * min(sizes)
    overall = data.parts["train"].labels.mean()
    for hand in hands:
        assert abs(data.parts["train"].labels[hand.rows["train"]].mean() - overall) < 0.02


def test_dealt_shards_together_are_the_data_set(tmp_path: Path) -> None:
    data = example()
    folders = [tmp_path / f"hospital-{number}" for number in (1, 2, 3)]
    summaries = deal(data, folders, DataConfig(), 1, BATCH_SIZE)
    for name in SPLITS:
        loaded = [shards.load(folder, name, 4, 1) for folder in folders]
        images = np.concatenate([records.images for records in loaded])
        assert sorted(image.tobytes() for image in images) == sorted(i.tobytes() for i in data.parts[name].images)
        patients = sorted(patient for records in loaded for patient in records.patients)
        assert patients == sorted(data.parts[name].patients)
        for summary, records in zip(summaries, loaded, strict=True):
            assert summary.records[name] == tuple(np.bincount(records.labels, minlength=2))
    assert sum(summary.patients for summary in summaries) == 440


def test_a_hospital_with_fewer_records_than_a_batch_is_refused_with_the_remedy() -> None:
    with pytest.raises(
        DataError,
        match=r"hospital \d would have 7\d training records, fewer than a batch of 128; lower experiment\.num_clients",
    ):
        split(example(train=300), 4, DataConfig(), 1, 128)


def test_a_hospital_with_a_single_class_is_refused_with_the_remedy() -> None:
    with pytest.raises(DataError, match=r"single class to train on; lower"):
        split(example(ill=0.0), 4, DataConfig(), 1, BATCH_SIZE)


@pytest.mark.long
@pytest.mark.parametrize("partition", ["dirichlet", "quantity"])
def test_a_skewed_split_is_refused_only_after_many_draws(partition: str) -> None:
    config = DataConfig.model_validate({"partition": partition, "dirichlet_alpha": 0.01})
    with pytest.raises(DataError, match=r"raise data\.dirichlet_alpha \(0\.01\).*1000 draws were tried"):
        split(example(train=60), 6, config, 1, BATCH_SIZE)


def test_a_hospital_without_test_records_is_refused() -> None:
    data = example()
    nothing = data.parts["test"].select(np.arange(2))
    with pytest.raises(DataError, match=r"hospital \d would have no test records"):
        split(DataSet(**{**vars(data), "parts": {**data.parts, "test": nothing}}), 4, DataConfig(), 1, BATCH_SIZE)


def test_a_folder_that_holds_a_shard_is_not_dealt_over(tmp_path: Path) -> None:
    deal(example(), [tmp_path / "a", tmp_path / "b"], DataConfig(), 1, BATCH_SIZE)
    with pytest.raises(DataError, match="holds one already"):
        deal(example(), [tmp_path / "a", tmp_path / "b"], DataConfig(), 1, BATCH_SIZE)
