from collections import Counter
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data import DataContract
from client.data.mistakes import Mistake
from client.data.picture_checks import centred
from client.data.survey import alike, check_counts, choose_split
from common.shards import Split
from tests.support.hospital_folder import CONTRACT

ENOUGH: dict[Split, tuple[int, ...]] = {"train": (20, 30), "val": (3, 4), "test": (3, 4)}


def rows(seed: int, count: int) -> npt.NDArray[np.float32]:
    """Return rows of which several are nearly alike, in clusters."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(1, count // 3), 64))
    noisy = centres[random.integers(0, len(centres), count)] + random.normal(0, 0.05, (count, 64))
    return centred(noisy.astype(np.float32))


@given(seed=st.integers(0, 1000), count=st.integers(0, 60), likeness=st.sampled_from([0.9, 0.99, 0.997, 0.999]))
def test_alike_finds_the_pairs_that_comparing_all_with_all_finds(seed: int, count: int, likeness: float) -> None:
    thumbnails = rows(seed, count)
    all_with_all = thumbnails @ thumbnails.T
    unsure = np.abs(all_with_all - likeness) < 1e-5  # the two multiply in another order
    expected = {tuple(pair) for pair in np.argwhere(np.triu(all_with_all >= likeness, 1)).tolist()}
    found = list(alike(thumbnails, likeness))
    assert len(set(found)) == len(found)
    assert all(unsure[pair] for pair in set(found) ^ expected)


def test_alike_looks_across_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.data.survey._COMPARED_TOGETHER", 7)
    thumbnails = rows(5, 60)
    thumbnails[[3, 57]] = thumbnails[30]
    assert {(3, 30), (3, 57), (30, 57)} <= set(alike(thumbnails, 0.999))


def test_the_choice_of_a_part_is_stable_and_near_its_shares() -> None:
    chosen = [choose_split(f"patient-{number}".encode()) for number in range(5000)]
    assert chosen == [choose_split(f"patient-{number}".encode()) for number in range(5000)]
    shares = Counter(chosen)
    assert abs(shares["train"] / 5000 - 0.8) < 0.02
    assert abs(shares["val"] / 5000 - 0.1) < 0.02


def test_the_choice_of_a_part_never_changes_between_versions() -> None:
    """Else an update would move patients from test to train."""
    named = "".join(choose_split(f"p-{number}".encode())[:2] for number in range(30))
    assert named == "trtrtrtrtrtrtrtrtrtrtrvavatrtrtrtrtrvatrtrtrtetrtrtrtrtrtrtr"


def test_counts_that_keep_the_contract_give_no_finding() -> None:
    assert not list(check_counts(ENOUGH, CONTRACT))


@pytest.mark.parametrize(
    ("changed", "contract", "mistakes"),
    [
        ({"val": (0, 0)}, CONTRACT, {Mistake.PART_EMPTY}),
        ({"train": (0, 50)}, CONTRACT, {Mistake.SINGLE_CLASS}),
        ({"train": (3, 4)}, CONTRACT, {Mistake.TOO_FEW_FOR_BATCH}),
        ({"train": (4, 4)}, CONTRACT, set()),
        ({"train": (0, 0)}, CONTRACT, {Mistake.PART_EMPTY}),
        ({}, replace(CONTRACT, delta=1 / 50), {Mistake.DELTA_TOO_LARGE}),
        ({}, replace(CONTRACT, delta=1 / 51), set()),
        ({}, replace(CONTRACT, delta=0.0), set()),
        ({}, replace(CONTRACT, min_records_per_class=20), set()),
        ({}, replace(CONTRACT, min_records_per_class=21), {Mistake.TOO_FEW_IN_CLASS}),
    ],
)
def test_each_bound_of_the_contract_holds_exactly(
    changed: dict[Split, tuple[int, ...]], contract: DataContract, mistakes: set[Mistake]
) -> None:
    found = {finding.mistake for finding in check_counts({**ENOUGH, **changed}, contract)}
    assert found == mistakes
