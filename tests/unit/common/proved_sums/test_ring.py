"""A z is that of big-integer arithmetic, for random, extreme and hostile inputs; its error bound is what it says."""

import math
import random
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.proved_sums import expansion, ring
from common.proved_sums.parameters import Lattice, ProofParameters, parameters_for

SMALL_16, SMALL_32 = parameters_for(300, 16, 4), parameters_for(300, 32, 4)
LARGE_16, LARGE_32 = parameters_for((1 << 17) + 1, 16, 4), parameters_for((1 << 17) + 1, 32, 4)
KINDS = {"small-16": SMALL_16, "small-32": SMALL_32, "large-16": LARGE_16, "large-32": LARGE_32}
KEY = bytes(range(32))


def in_integers(key: bytes, parameters: ProofParameters, parts: Iterable[NDArray[np.signedinteger]]) -> list[int]:
    """Return A z by Python's integers alone: negacyclic products through one large product (Kronecker 1882)."""
    lattice = parameters.lattice
    stream = expansion.UniformStream(key, lattice.modulus, lattice.rows)
    total = [0] * lattice.rows
    for part in parts:
        entries = [int(entry) for entry in part]
        entries += [0] * (-len(entries) % lattice.degree)
        for start in range(0, len(entries), lattice.degree):
            column = [int(word) for word in stream.take(lattice.rows)]
            for row in range(lattice.rank):
                first = row * lattice.degree
                product = negacyclic(column[first : first + lattice.degree], entries[start : start + lattice.degree])
                for place, value in enumerate(product):
                    total[first + place] += value
    return [value % lattice.modulus for value in total]


BITS = 128
"""The room for a coefficient of a product, and its sign."""


def packed(values: list[int]) -> int:
    return sum(value << (BITS * place) for place, value in enumerate(values))


def negacyclic(left: list[int], right: list[int]) -> list[int]:
    degree = len(left)
    lifted = 1 << (BITS - 2)  # Makes every digit positive.
    product = packed(left) * packed(right) + packed([lifted] * (2 * degree))
    mask = (1 << BITS) - 1
    encoded = product.to_bytes(2 * degree * BITS // 8 + 8, "little")
    digits = [
        (int.from_bytes(encoded[BITS // 8 * place : BITS // 8 * (place + 1)], "little") & mask) - lifted
        for place in range(2 * degree)
    ]
    return [low - high for low, high in zip(digits[:degree], digits[degree:], strict=True)]


def test_the_product_that_the_others_are_compared_with_is_the_schoolbook_product() -> None:
    source = random.Random(1)  # noqa: S311 - repeatable
    left, right = ([source.randint(-(2**40), 2**40) for _ in range(8)] for _ in range(2))
    expected = [0] * 8
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            expected[(i + j) % 8] += a * b if i + j < 8 else -a * b
    assert negacyclic(left, right) == expected


def entries_of(parameters: ProofParameters, count: int, kind: str) -> NDArray[np.signedinteger]:
    bound, dtype = parameters.bound, f"<i{parameters.modulus_bits // 8}"
    match kind:
        case "random":
            return np.random.default_rng(count).integers(-bound - 1, bound + 1, count).astype(dtype)
        case "largest":
            return np.full(count, bound, dtype)
        case "smallest":
            return np.full(count, -bound - 1, dtype)
        case "alternating":
            return np.resize(np.array([bound, -bound - 1], dtype), count)
        case _:
            return np.concatenate([np.zeros(count - 1, dtype), np.ones(1, dtype)])


@pytest.mark.parametrize("kind", ["random", "largest", "smallest", "alternating", "last-alone"])
@pytest.mark.parametrize("name", KINDS)
def test_a_product_is_that_of_big_integers(name: str, kind: str) -> None:
    parameters = KINDS[name]
    degree = parameters.lattice.degree
    parts = entries_of(parameters, degree + degree // 2 + 1, kind), entries_of(parameters, degree, kind)
    assert ring.multiply(KEY, parameters, parts) == in_integers(KEY, parameters, parts)


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 700), st.sampled_from((SMALL_16, SMALL_32)))
def test_products_add_up_as_big_integers_do(seed: int, count: int, parameters: ProofParameters) -> None:
    source = np.random.default_rng(seed)
    dtype, half = f"<i{parameters.modulus_bits // 8}", parameters.bound // 2
    left, right = (source.integers(-half, half, count).astype(dtype) for _ in range(2))
    modulus = parameters.lattice.modulus
    together = [
        (a + b) % modulus
        for a, b in zip(ring.multiply(KEY, parameters, [left]), ring.multiply(KEY, parameters, [right]), strict=True)
    ]
    assert ring.multiply(KEY, parameters, [left + right]) == together


@pytest.mark.parametrize("name", ["small-16", "large-16"])
def test_several_groups_are_summed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = KINDS[name]
    parts = [entries_of(parameters, 3 * parameters.lattice.degree + 5, "random")]
    whole = ring.multiply(KEY, parameters, parts)
    monkeypatch.setattr(ring, "GROUP_ENTRIES", 2 * parameters.lattice.degree)
    assert ring.multiply(KEY, parameters, parts) == whole


@pytest.mark.parametrize(("most_bytes", "made"), [(1 << 30, 1), (0, 3)])
def test_spectra_of_a_are_kept_where_they_may_take_the_memory(
    most_bytes: int, made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[bytes] = []

    def begin(key: bytes, modulus: int, most: int) -> expansion.UniformStream:
        streams.append(key)
        return expansion.UniformStream(key, modulus, most)

    monkeypatch.setattr(ring, "UniformStream", begin)
    monkeypatch.setattr(ring._Kept, "most_bytes", None)  # What it was is put back after the test.
    ring.keep_spectra(most_bytes)
    try:
        parts = entries_of(LARGE_16, LARGE_16.entries, "random"), entries_of(LARGE_16, LARGE_16.randomness, "random")
        products = [ring.multiply(KEY, LARGE_16, parts) for _ in range(3)]
        assert products[0] == products[1] == products[2]
        assert streams == [KEY] * made
        assert ring.multiply(bytes(32), LARGE_16, parts) != products[0]
    finally:
        ring._kept_factors.cache_clear()


@pytest.mark.parametrize("degree", [256, 2048])
def test_the_error_bound_leaves_room_to_round(degree: int) -> None:
    assert ring.most_error(degree) < ring.MOST_DISTANCE < 0.5


@pytest.mark.parametrize("degree", [256, 2048])
@pytest.mark.parametrize("kind", ["constant", "alternating", "resonant", "random"])
def test_the_error_stays_below_its_bound_where_spectra_are_largest(degree: int, kind: str) -> None:
    # Full groups of limbs of the largest size; constant and resonant ones put a whole product into few frequencies.
    count = ring.GROUP_ENTRIES // degree
    shapes = {
        "constant": np.ones(degree),
        "alternating": np.resize([1.0, -1.0], degree),
        "resonant": np.sign(np.cos(np.pi * (np.arange(degree) * 3 + 0.3) / degree)),
        "random": np.sign(np.random.default_rng(5).normal(size=degree)),
    }
    signs = shapes[kind].astype(np.int64)
    left, right = signs * 2 ** (ring.LIMB_BITS_OF_A - 1), signs * 2 ** (ring.LIMB_BITS_OF_Z - 1)
    spectra = np.einsum(
        "c...,c...->...", ring._spectra(np.tile(left, (count, 1))), ring._spectra(np.tile(right, (count, 1)))
    )
    folded = np.fft.ifft(spectra) * ring._twist(degree).conj()
    found = np.concatenate([folded.real, folded.imag])
    exact = [count * value for value in negacyclic(left.tolist(), right.tolist())]
    assert ring._coefficients(spectra).tolist() == exact
    error = max(abs(float(value) - whole) for value, whole in zip(found, exact, strict=True))
    assert error < ring.most_error(degree) / 20  # The bound is a worst case of a worst case.


def test_an_fft_that_is_not_exact_enough_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = np.fft.ifft
    monkeypatch.setattr(np.fft, "ifft", lambda spectra, axis: exact(spectra, axis=axis) + 0.48)
    with pytest.raises(ring.InexactTransformError, match="less exact"):
        ring.multiply(KEY, SMALL_16, [entries_of(SMALL_16, 10, "random")])


@given(st.lists(st.integers(0, 2**64 - 60), min_size=1, max_size=40))
def test_limbs_of_a_add_up_and_are_small(words: list[int]) -> None:
    limbs = [limb.tolist() for limb in ring._limbs_of_a(np.array(words, np.uint64), 6)]
    assert all(abs(value) <= 2**10 for limb in limbs for value in limb)
    assert [sum(limb[k] << (11 * i) for i, limb in enumerate(limbs)) for k in range(len(words))] == words


@pytest.mark.parametrize("edge", [0, 1, 1023, 1024, 2047, 2048, 2**32 - 100, 2**31, 2**22 - 1])
def test_limbs_of_a_hold_at_the_edges(edge: int) -> None:
    limbs = [int(limb[0]) for limb in ring._limbs_of_a(np.array([edge], np.uint32), 3)]
    assert sum(limb << (11 * i) for i, limb in enumerate(limbs)) == edge
    assert max(abs(limb) for limb in limbs) <= 2**10


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=40))
def test_limbs_of_z_add_up_and_are_small(entries: list[int]) -> None:
    limbs = [limb.tolist() for limb in ring._limbs_of_z(np.array(entries, np.int32), 2)]
    assert all(abs(value) <= 2**15 for limb in limbs for value in limb)
    assert [low + (high << 16) for low, high in zip(*limbs, strict=True)] == entries


def test_the_twist_is_exact_to_a_unit_of_roundoff() -> None:
    # sin² + cos² and the addition theorem, in integers of 2^-80.
    twist = ring._twist(2048)
    for value in twist[:: len(twist) // 16].tolist():
        real, imaginary = (int(math.ldexp(part, 80)) for part in (value.real, value.imag))
        assert abs(real * real + imaginary * imaginary - (1 << 160)) < 1 << (160 - 51)


def test_a_polynomial_times_its_monomial_is_rotated_with_a_sign() -> None:
    lattice = Lattice(256, 1, SMALL_16.lattice.modulus)
    column = [int(word) for word in expansion.UniformStream(KEY, lattice.modulus, 256).take(256)]
    entry = np.zeros(256, np.int16)
    entry[255] = 1
    parameters = SMALL_16
    found = ring.multiply(KEY, parameters, [entry])[:256]
    assert found == [(-value) % lattice.modulus for value in column[1:]] + [column[0]]
