from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from deploy.datasets.partition import partition


@st.composite
def labelled_patients(draw: st.DrawFn) -> tuple[npt.NDArray[np.int64], list[str], npt.NDArray[np.float64], int]:
    """Labels and patients (some unknown, some with several images and labels), shares, and a seed."""
    classes = draw(st.integers(2, 4))
    labels = draw(st.lists(st.integers(0, classes - 1), max_size=60))
    patients = draw(
        st.lists(st.sampled_from(["", "", "a", "b", "c", "d", "e", "f"]), min_size=len(labels), max_size=len(labels))
    )
    seed = draw(st.integers(0, 2**32 - 1))
    parts = draw(st.integers(1, 6))
    alpha = draw(st.sampled_from([0.05, 1.0, 100.0]))
    shares = np.random.default_rng(seed).dirichlet(np.full(parts, alpha), classes).T
    return np.array(labels, np.int64), patients, shares, seed


def divide(case: tuple[npt.NDArray[np.int64], Sequence[str], npt.NDArray[np.float64], int]) -> list[list[int]]:
    labels, patients, shares, seed = case
    return [rows.tolist() for rows in partition(labels, patients, shares, np.random.default_rng(seed))]


@given(labelled_patients())
def test_parts_are_disjoint_and_complete(
    case: tuple[npt.NDArray[np.int64], list[str], npt.NDArray[np.float64], int],
) -> None:
    parts = divide(case)
    assert len(parts) == len(case[2])
    assert sorted(row for part in parts for row in part) == list(range(len(case[0])))
    assert all(part == sorted(part) for part in parts)


@given(labelled_patients())
def test_a_patient_is_never_divided(
    case: tuple[npt.NDArray[np.int64], list[str], npt.NDArray[np.float64], int],
) -> None:
    patients = case[1]
    seen: dict[str, int] = {}
    for number, part in enumerate(divide(case)):
        for row in part:
            if patients[row]:
                assert seen.setdefault(patients[row], number) == number


@given(labelled_patients())
def test_the_same_seed_gives_the_same_parts(
    case: tuple[npt.NDArray[np.int64], list[str], npt.NDArray[np.float64], int],
) -> None:
    assert divide(case) == divide(case)


@given(st.integers(1, 9), st.lists(st.integers(0, 2), max_size=200), st.integers(0, 1000))
def test_with_one_record_a_patient_every_part_gets_its_share_to_within_one(
    parts: int, labels: list[int], seed: int
) -> None:
    random = np.random.default_rng(seed)
    shares = random.dirichlet(np.ones(parts), 3).T
    counted = np.array(labels, np.int64)
    for number, rows in enumerate(partition(counted, [""] * len(labels), shares, random)):
        got = np.bincount(counted[rows], minlength=3)
        wanted = shares[number] * np.bincount(counted, minlength=3)
        assert np.all(got - wanted < 1.0 + 1e-9)
        assert np.all(wanted - got < 1.0 + 1e-9) or parts == 1


def test_another_seed_gives_other_parts() -> None:
    labels, nobody, shares = np.zeros(100, np.int64), [""] * 100, np.full((2, 1), 0.5)
    first, second = (partition(labels, nobody, shares, np.random.default_rng(seed))[0] for seed in (1, 2))
    assert first.tolist() != second.tolist()
