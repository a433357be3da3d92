"""The estimate behind the parameters: published examples, and what each parameter set must keep."""

import math
from fractions import Fraction
from functools import cache

import pytest

from common.proved_sums.estimate import (
    HIDING_BITS,
    MOST_ROOT_HERMITE_FACTOR,
    block_size,
    classical_bits,
    hiding_exponent,
    randomness_length,
    root_hermite_factor,
)
from common.proved_sums.parameters import ProofParameters, parameters_for

SIZES = (26_000, 57_000, 100_000, 1 << 17, (1 << 17) + 1, 11_200_000, 1 << 29)
HOSPITALS = (3, 4, 5, 16, 64, 1024, 4096)
ALL = [parameters_for(size, bits, hospitals) for size in SIZES for bits in (16, 32) for hospitals in HOSPITALS]


def name_of(parameters: ProofParameters) -> str:
    return f"{parameters.entries}-{parameters.modulus_bits}-{parameters.hospitals}"


@pytest.mark.parametrize(("delta", "block"), [(1.0121, 50), (1.0093, 100), (1.0024, 808)])
def test_blocks_are_those_of_the_lattice_estimator(delta: float, block: int) -> None:
    # Examples in its estimator/reduction.py.
    assert block_size(delta) == block


def test_the_root_hermite_factor_is_that_of_the_lattice_estimator() -> None:
    # The example in its estimator/sis_lattice.py: n = 113, q = 2048, length 512 in the Euclidean norm.
    found = root_hermite_factor(113, 2048, 512, 10**6)
    assert found == pytest.approx(1.011391, abs=1e-5)
    assert block_size(found) == 61


def test_fewer_columns_than_an_attacker_would_like_make_the_problem_harder() -> None:
    assert root_hermite_factor(113, 2048, 512, 200) < root_hermite_factor(113, 2048, 512, 276)


@pytest.mark.parametrize("norm", [2048, 5000, 1])
def test_lengths_for_which_the_estimate_has_no_meaning_are_refused(norm: int) -> None:
    with pytest.raises(ValueError, match="shorter than q"):
        root_hermite_factor(113, 2048, norm, 1000)


def test_the_limit_on_the_root_hermite_factor_gives_128_bits() -> None:
    assert block_size(MOST_ROOT_HERMITE_FACTOR) == 445
    assert (classical_bits(445), classical_bits(438)) == (129, 127)


@pytest.mark.parametrize("parameters", ALL, ids=name_of)
def test_finding_a_false_sum_costs_128_bits_in_every_run(parameters: ProofParameters) -> None:
    # Stated again, without the parameters' own properties: entries up to 4 (R/2 - 1), all of them.
    lattice = parameters.lattice
    norm = 4 * (2 ** (parameters.modulus_bits - 1) - 1) * math.sqrt(parameters.entries + parameters.randomness)
    factor = root_hermite_factor(lattice.degree * lattice.rank, lattice.modulus, norm, 10**12)
    assert factor <= 1.0037
    assert block_size(factor) >= 445
    assert parameters.security_bits >= 128


@cache
def kept_bits(largest: int) -> float:
    """Return the average min-entropy of one of two uniform entries in [-c, c] given their sum, by counting.

    Dodis et al. 2008: -log2 of the mean, over the sum P, of the likeliest entry's probability given P.
    """
    values = 2 * largest + 1
    mean_of_likeliest = Fraction(0)
    for distance in range(values):  # |P|: B - |P| pairs of entries have this sum, all equally likely.
        pairs = values - distance
        sums = 1 if distance == 0 else 2
        mean_of_likeliest += sums * Fraction(pairs, values**2) * Fraction(1, pairs)
    return math.log2(mean_of_likeliest.denominator) - math.log2(mean_of_likeliest.numerator)


def test_an_entry_keeps_one_bit_less_once_the_sum_of_two_is_known() -> None:
    for largest in (1, 7, 8191):
        whole = math.log2(2 * largest + 1)
        assert whole - 1 < kept_bits(largest) < whole - 0.4
    assert kept_bits(8191) == pytest.approx(math.log2(16383) - 1, abs=1e-4)


@pytest.mark.parametrize("largest", [511, 2047, 8191, 10922])
@pytest.mark.parametrize(("rows", "modulus"), [(1024, (1 << 32) - 99), (1280, (1 << 64) - 59)])
def test_two_honest_hospitals_keep_enough_entropy_once_their_sum_is_known(
    rows: int, modulus: int, largest: int
) -> None:
    # The length without the "- 1" fails here: it keeps some thousand bits too few.
    length = randomness_length(rows, modulus, largest)
    needed = rows * math.log2(modulus) + HIDING_BITS
    assert length * kept_bits(largest) >= needed
    assert (length - 3) * kept_bits(largest) < needed


def test_without_the_bit_that_the_sum_takes_two_honest_hospitals_are_not_hidden() -> None:
    rows, modulus, largest = 1024, (1 << 32) - 99, 8191
    mutant = math.ceil((rows * math.log2(modulus) + HIDING_BITS) / math.log2(2 * largest + 1))
    assert mutant * kept_bits(largest) < rows * math.log2(modulus)  # Nothing is left to hide a commitment with.
    assert hiding_exponent(rows, modulus, largest, mutant) > 0


@pytest.mark.parametrize("parameters", ALL, ids=name_of)
def test_every_run_hides_its_vectors(parameters: ProofParameters) -> None:
    lattice = parameters.lattice
    exponent = hiding_exponent(lattice.rows, lattice.modulus, parameters.largest_randomness, parameters.randomness)
    assert exponent <= -257


def test_the_bound_on_hiding_holds_where_the_distance_can_be_computed() -> None:
    # One row, q = 5, c = 1, m = 3: all matrices, all pairs of ρ.
    modulus, largest, length = 5, 1, 3
    exact = exact_distance(modulus, largest, length)
    assert 0.1 < exact <= 2 ** hiding_exponent(1, modulus, largest, length)


def exact_distance(modulus: int, largest: int, length: int) -> float:
    """Return the mean over A and the sum of two ρ of the distance of A ρ_1 from uniform, given that sum."""
    entries = range(-largest, largest + 1)
    pairs = [(left, right) for left in entries for right in entries]
    total = 0.0
    for matrix in matrices(modulus, length):
        by_sum: dict[tuple[int, ...], dict[int, int]] = {}
        stack: list[tuple[tuple[int, ...], int]] = [((), 0)]
        for factor in matrix:
            stack = [
                ((*sums, left + right), (value + factor * left) % modulus)
                for sums, value in stack
                for left, right in pairs
            ]
        for sums, value in stack:
            counts = by_sum.setdefault(sums, {})
            counts[value] = counts.get(value, 0) + 1
        for counts in by_sum.values():
            seen = sum(counts.values())
            distance = sum(abs(counts.get(value, 0) / seen - 1 / modulus) for value in range(modulus)) / 2
            total += distance * seen / len(stack)
    return total / float(modulus**length)


def matrices(modulus: int, length: int) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for _ in range(length):
        found = [(*matrix, factor) for matrix in found for factor in range(modulus)]
    return found
