"""How hard it is to open a commitment to another sum, and how well it hides: the written estimate behind each choice.

Breaking the binding means finding a short integer vector w with A w = 0 mod q, the short integer solution problem. The
formulas for lattice reduction are those of the lattice estimator (github.com/malb/lattice-estimator,
``estimator/sis_lattice.py``, Euclidean norm) with Chen's root Hermite factor (thesis, 2013) and the core-SVP cost of
0.292 bits a dimension of a block (Becker et al. 2016). Hiding is the leftover hash lemma.

Proof: ``docs/proofs/proved-sums.md``.
"""

import math
from functools import cache

MOST_ROOT_HERMITE_FACTOR = 1.0037
"""BKZ needs blocks of 445 to reach this δ, for which core-SVP counts 129 bits."""

HIDING_BITS = 512
"""Bits of ρ beyond those of a commitment. Half of them are lost in the leftover hash lemma (2^-257 on average over
matrices); the other half pays for a server that picks the best of 2^64 matrices (2^-96 is left for the worst)."""

_CORE_SVP_BITS = 0.292
_SMALLEST_BLOCK = 50


def root_hermite_factor(rows: int, modulus: int, norm: float, columns: int) -> float:
    """Return δ, how well lattice reduction must work to find a solution: the smaller, the harder.

    Args:
        rows: k, of A over the integers modulo q.
        modulus: q.
        norm: β, the Euclidean length of the longest vector that counts as a solution.
        columns: of A; the attacker uses as many of them as suit it.

    Raises:
        ValueError: β is q or more, for which the estimate has no meaning: (q, 0, …, 0) is a solution.

    >>> round(root_hermite_factor(113, 2048, 512, 10**6), 5)  # the estimator's own example: δ 1.011391, d 276
    1.01139
    """
    if not 1 < norm < modulus:
        raise ValueError(f"a solution must be shorter than q, 2^{math.log2(modulus):.1f}, got 2^{math.log2(norm):.1f}")
    determinant = rows * math.log2(modulus)
    length = math.log2(norm)
    dimension = min(math.floor(2 * determinant / length), columns)
    exponent: float = 2 ** ((length - determinant / dimension) / (dimension - 1))
    return exponent


@cache
def block_size(root_hermite_factor: float) -> int:
    """Return the smallest block size with which BKZ reaches this δ.

    >>> [block_size(delta) for delta in (1.0121, 1.0093, 1.0024)]  # the estimator's own examples
    [50, 100, 808]
    """
    size = _SMALLEST_BLOCK
    while _reached_with(size) > root_hermite_factor:
        size += 1
    return size


def _reached_with(size: int) -> float:
    reached: float = (size / (2 * math.pi * math.e) * (math.pi * size) ** (1 / size)) ** (1 / (2 * (size - 1)))
    return reached


def classical_bits(size: int) -> int:
    """Return log2 of the cost of one call for a block of this size, by core-SVP: the whole attack costs more."""
    return math.floor(_CORE_SVP_BITS * size)


def randomness_length(rows: int, modulus: int, largest: int) -> int:
    """Return m, how many entries ρ must have, uniform in [-c, c], so that a commitment hides.

    ``m = ⌈(k log2 q + 512) / (log2(2 c + 1) - 1)⌉``, in exact integer arithmetic, so that every party gets the same.
    The "- 1" is there because the sum of all ρ is public: given the sum of two hospitals' ρ, an entry keeps less than
    log2(2 c + 1) bits of its own, but more than one bit less.

    Args:
        rows: k.
        modulus: q.
        largest: c, at least 1.
    """
    values = 2 * largest + 1
    needed = modulus**rows << HIDING_BITS

    def is_enough(length: int) -> bool:
        return bool(values**length >= needed << length)

    length = max(1, math.floor(math.log2(needed) / (math.log2(values) - 1)) - 1)
    while not is_enough(length):
        length += 1
    return length


def hiding_exponent(rows: int, modulus: int, largest: int, length: int) -> float:
    """Return log2 of a bound on how far a commitment is from uniform, given the sum of two hospitals' ρ.

    The statistical distance, on average over A and that sum: half of the root of q^k times the probability that two ρ
    with this sum are the same. Every difference of two ρ must be hashed as by a random function.

    Args:
        rows: k.
        modulus: q.
        largest: c.
        length: m.
    """
    values = 2 * largest + 1
    # The sum of two entries takes 2 B - 1 values P, and the likeliest first entry has probability 1/B^2 / Pr[P].
    same = length * math.log2((2 * values - 1) / values**2)
    return (rows * math.log2(modulus) + same) / 2 - 1
