"""Divides labelled records into parts by whole patients; pure, so that its promises can be tested as properties."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def partition(
    labels: npt.NDArray[np.int64],
    patients: Sequence[str],
    shares: npt.NDArray[np.float64],
    random: np.random.Generator,
) -> tuple[npt.NDArray[np.int64], ...]:
    """Divide records so that part p gets about ``shares[p, k]`` of class k, a patient never being divided.

    Each class is dealt for itself: whole patients in random order, each to the part that lacks most. A patient with
    several classes counts as the class of the first record. With one record a patient, every part gets its share of
    every class to within one record.

    Args:
        labels: class indices, int64 of shape (n,).
        patients: n identifiers; an empty one is a patient of its own.
        shares: shape (parts, classes); each column sums to 1.
        random: the same state gives the same parts.

    Returns:
        For each part the ascending row numbers of its records, int64; together exactly 0 … n - 1.
    """
    groups = _patients_of(patients)
    class_of_group = np.array([labels[rows[0]] for rows in groups], np.int64)
    parts: list[list[int]] = [[] for _ in shares]
    for label in range(shares.shape[1]):
        members = random.permutation(np.flatnonzero(class_of_group == label))
        sizes = np.array([len(groups[member]) for member in members], np.int64)
        lacking = shares[:, label] * sizes.sum()
        for member, size in zip(members, sizes, strict=True):
            part = int(np.argmax(lacking))
            lacking[part] -= size
            parts[part] += groups[member]
    return tuple(np.array(sorted(rows), np.int64) for rows in parts)


def _patients_of(patients: Sequence[str]) -> list[list[int]]:
    known: dict[str, list[int]] = {}
    alone: list[list[int]] = []
    for row, patient in enumerate(patients):
        if patient:
            known.setdefault(patient, []).append(row)
        else:
            alone.append([row])
    return [*known.values(), *alone]
