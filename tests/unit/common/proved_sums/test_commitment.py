"""Commitments are linear, their randomness is uniform, and bytes that are no commitment are refused."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.keystream import Keystream
from common.proved_sums.commitment import Commitment, add, commit, draw, from_bytes, open_sum, to_bytes
from common.proved_sums.errors import CommitmentBytesError
from common.proved_sums.parameters import ProofParameters, parameters_for
from common.secagg.errors import SERVER, Place
from common.secagg.phases import Phase

KEY = bytes(range(32))
PLACE = Place(SERVER, 1, Phase.UNMASKING)
BY_BITS = {bits: parameters_for(20, bits, 4) for bits in (16, 32)}
PUBLISHED = json.loads((Path(__file__).parents[3] / "vectors" / "sum_commitments.json").read_text())["vectors"]


def committed(parameters: ProofParameters, seed: int, entry: int | None = None) -> tuple[list[int], Commitment]:
    """Return a change of a hospital at the edge of its range, or within it, and a commitment to it."""
    source = np.random.default_rng(seed)
    bound = parameters.bound // parameters.hospitals
    values = source.integers(-bound, bound + 1, parameters.entries) if entry is None else [entry] * parameters.entries
    change = np.array(values, f"<i{parameters.modulus_bits // 8}")
    return change.tolist(), commit(KEY, parameters, change, Keystream(seed.to_bytes(32, "big")).draw)


def parsed(parameters: ProofParameters, each: Commitment) -> list[int]:
    return from_bytes(parameters, each.value, PLACE, "hospital-1")


@settings(max_examples=20)
@given(st.integers(0, 2**30), st.sampled_from((16, 32)), st.sampled_from((None, -1, 0, 1)))
def test_commitments_of_all_hospitals_add_up_to_that_of_their_sum(seed: int, bits: int, edge: int | None) -> None:
    parameters = BY_BITS[bits]
    entry = None if edge is None else edge * (parameters.bound // parameters.hospitals)
    found = [committed(parameters, seed + hospital, entry) for hospital in range(parameters.hospitals)]
    changes = [sum(column) for column in zip(*(change for change, _ in found), strict=True)]
    randomness = sum(commitment.randomness.astype(np.int64) for _, commitment in found)
    assert abs(np.asarray(randomness)).max() <= parameters.bound  # Nothing wraps around.
    total = np.array([*changes, *np.asarray(randomness).tolist()], f"<i{bits // 8}")
    together = add(parameters, [parsed(parameters, commitment) for _, commitment in found])
    assert open_sum(KEY, parameters, total) == together


@pytest.mark.parametrize("bits", [16, 32])
def test_the_sum_of_masked_residues_is_the_same_sum(bits: int) -> None:
    # The server adds modulo R; a centred residue is the integer, also where a partial sum has wrapped around.
    parameters = BY_BITS[bits]
    found = [committed(parameters, hospital) for hospital in range(parameters.hospitals)]
    dtype = np.dtype(f"<u{bits // 8}")
    total = np.full(parameters.length, 12_345, dtype)
    for change, commitment in found:
        whole = np.concatenate([np.array(change, f"<i{bits // 8}"), commitment.randomness])
        total = (total + whole.view(dtype)).astype(dtype)
    total = (total - np.full(parameters.length, 12_345, dtype)).astype(dtype)
    together = add(parameters, [parsed(parameters, commitment) for _, commitment in found])
    assert open_sum(KEY, parameters, total.view(f"<i{bits // 8}")) == together


@pytest.mark.parametrize("bits", [16, 32])
def test_two_commitments_to_the_same_vector_have_nothing_in_common(bits: int) -> None:
    parameters = BY_BITS[bits]
    first, second = (committed(parameters, seed, entry=0)[1] for seed in (1, 2))
    same = sum(a == b for a, b in zip(parsed(parameters, first), parsed(parameters, second), strict=True))
    assert same <= 1
    assert (first.randomness != second.randomness).any()


def test_the_randomness_is_uniform_on_its_range_ends_included() -> None:
    parameters = parameters_for(20, 16, 4096)  # c = 7, so that every value is seen.
    assert parameters.largest_randomness == 7
    values = draw(parameters, Keystream(bytes(32)).draw)
    counts = Counter(values.tolist())
    assert sorted(counts) == list(range(-7, 8))
    expected = len(values) / 15
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_squared < 36.1  # One in a thousand, with 14 degrees of freedom.


def test_the_randomness_is_drawn_from_the_source_itself_and_words_that_are_too_large_are_skipped() -> None:
    parameters = BY_BITS[16]
    asked = []

    def source(count: int) -> bytes:
        asked.append(count)
        # First every word is 2 c + 1, one too many; then all are 0, which stands for -c.
        return (16383).to_bytes(2, "little") * (count // 2) if len(asked) == 1 else bytes(count)

    assert set(draw(parameters, source).tolist()) == {-8191}
    assert asked == [2 * parameters.randomness] * 2


@pytest.mark.parametrize("bits", [16, 32])
def test_bytes_of_a_commitment_are_read_back(bits: int) -> None:
    parameters = BY_BITS[bits]
    values = [parameters.lattice.modulus - 1, 0, *range(parameters.lattice.rows - 2)]
    encoded = to_bytes(parameters, values)
    assert len(encoded) == parameters.commitment_bytes
    assert from_bytes(parameters, encoded, PLACE, "hospital-1") == values


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("place", [0, -1])
def test_integers_of_q_or_more_are_refused(bits: int, place: int) -> None:
    parameters = BY_BITS[bits]
    for value in (parameters.lattice.modulus, (1 << bits * 2) - 1):
        values = [0] * parameters.lattice.rows
        values[place] = value
        with pytest.raises(CommitmentBytesError, match="below q") as refusal:
            from_bytes(parameters, to_bytes(parameters, values), PLACE, "hospital-2")
        assert refusal.value.hospital == "hospital-2"


@given(st.binary(max_size=5000))
def test_any_bytes_are_a_commitment_or_refused_by_name(noise: bytes) -> None:
    parameters = BY_BITS[16]
    try:
        values = from_bytes(parameters, noise, PLACE, "hospital-2")
    except CommitmentBytesError:
        return
    assert to_bytes(parameters, values) == noise


@pytest.mark.parametrize("vector", PUBLISHED, ids=[vector["name"] for vector in PUBLISHED])
def test_commitments_are_those_that_are_stored(vector: dict[str, Any]) -> None:
    assert sum_commitment(vector) == vector["commitment_sha256"]


def sum_commitment(vector: dict[str, Any]) -> str:
    """Return the SHA-256 of the commitment that a stored vector describes."""
    parameters = parameters_for(vector["entries"], vector["modulus_bits"], vector["hospitals"])
    bound = parameters.bound // parameters.hospitals
    values = [(7 * place) % (2 * bound + 1) - bound for place in range(parameters.entries)]
    key, seed = bytes.fromhex(vector["key"]), bytes.fromhex(vector["seed"])
    change = np.array(values, f"<i{parameters.modulus_bits // 8}")
    return hashlib.sha256(commit(key, parameters, change, Keystream(seed).draw).value).hexdigest()
