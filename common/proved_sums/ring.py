"""A z over Z_q[X]/(X^N + 1), exactly, by a floating-point FFT whose error is bounded below one half.

Both factors are cut into limbs: those of A's entries are at most 2^10 in size, those of z at most 2^15. Products of
limbs are summed over a group of polynomials before they are rounded to integers.

**Exactness.** A coefficient of a group's sum is an integer. What the FFT gives differs from it by less than
:func:`most_error`, below .43, for *all* inputs within these bounds, those of an adversary included. So rounding gives
the integer itself. The bound assumes of numpy's FFT what holds for every Cooley and Tukey algorithm in IEEE arithmetic
whose twiddle factors are good to 4 units of roundoff (Higham 2002, theorem 24.2), and no more. What it gives for
random numbers is within .001. A result that is further than .45 from an integer is refused.

Proof: ``docs/proofs/proved-sums.md``.
"""

import math
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.proved_sums.expansion import UniformStream, Words
from common.proved_sums.parameters import Lattice, ProofParameters

GROUP_ENTRIES = 32_768
"""How many entries of z make a group: 128 polynomials of degree 256, or 16 of degree 2048."""

LIMB_BITS_OF_A = 11
LIMB_BITS_OF_Z = 16

MOST_DISTANCE = 0.45
"""Between :func:`most_error` and one half."""

LARGEST_FAST_MODULUS_BITS = 32
"""Up to here residues and their products with weights fit 64 bits."""

SPECTRA_BYTES = 512 << 20
"""What a process that takes part in a run keeps, :func:`keep_spectra`: each round has a product by the same matrix at
the server, and two at a hospital. At 11.2 million parameters and 16 bits the spectra take 270 MB; a model of 20 million
is the largest that gains."""

_MOST_KEPT_BYTES = 16 << 20
"""The most memory that spectra of A take between two products, unless a process asks for more by
:func:`keep_spectra`: enough for 150,000 entries of 16 bits."""

_UNIT_ROUNDOFF = 2.0**-53
_TWIDDLE_ERROR = 4 * _UNIT_ROUNDOFF

Integers = NDArray[np.signedinteger[Any]]
Spectra = NDArray[np.complex128]


class InexactTransformError(ArithmeticError):
    """The FFT of this machine does not keep the error that the proof allows; nothing computed with it can be used."""


def most_error(degree: int) -> float:
    """Return the proven bound on the distance of a group's coefficient from its integer, before it is rounded.

    >>> [round(most_error(degree), 3) for degree in (256, 2048)]
    [0.128, 0.424]
    """
    u, half, group = _UNIT_ROUNDOFF, degree // 2, GROUP_ENTRIES // degree
    stages = half.bit_length() - 1
    stage = _TWIDDLE_ERROR + 4 * u / (1 - 4 * u) * (math.sqrt(2) + _TWIDDLE_ERROR)
    transform = stages * stage / (1 - stages * stage)
    twist = _TWIDDLE_ERROR + math.sqrt(5) * u * (1 + _TWIDDLE_ERROR)
    forward = (1 + transform) * (1 + twist) - 1
    # A sum of as many complex products as a group has: in any order, fused or not.
    terms = 2 * group + 1
    combined = math.sqrt(2) * terms * u / (1 - terms * u)
    # The product of the Euclidean lengths of a folded limb of A and one of z, times the group.
    lengths = group * degree * 2.0 ** (LIMB_BITS_OF_A - 1 + LIMB_BITS_OF_Z - 1)
    before = lengths * ((1 + forward) ** 2 * (1 + combined) - 1)
    backward = (1 + transform) * (1 + twist) * (1 + u) - 1
    return before + (lengths + before) * math.sqrt(half) * backward


def multiply(key: bytes, parameters: ProofParameters, parts: Iterable[Integers]) -> list[int]:
    """Return A z: the coefficients of ``rank`` polynomials, k integers in [0, q).

    Memory: some megabytes, whatever the length of z, and what :func:`keep_spectra` allows, which stays for the next
    product.

    Args:
        key: of A's stream: the entries of its first column, row by row, each coefficient by coefficient; then those of
            the second column, and so on.
        parameters: of the run.
        parts: z in pieces, flat arrays of signed integers of at most R/2 in size. Each piece fills polynomials of its
            own, the last of which is filled up with zeros.

    Raises:
        InexactTransformError: the machine's FFT is not as good as the proof assumes.
    """
    parts, lattice = tuple(parts), parameters.lattice
    limbs_of_a = _limbs(lattice)
    limbs_of_z = parameters.modulus_bits // LIMB_BITS_OF_Z
    sums = np.zeros((limbs_of_a, limbs_of_z, lattice.rank, lattice.degree), np.int64)
    groups = list(_groups(parts, lattice.degree))
    for group, factors in zip(groups, _factors(key, lattice, tuple(map(len, groups))), strict=True):
        spectra_of_z = [_spectra(limb) for limb in _limbs_of_z(group, limbs_of_z)]
        for i, spectra_of_a in enumerate(factors):
            for j, spectra in enumerate(spectra_of_z):
                sums[i, j] += _coefficients(np.einsum("cr...,c...->r...", spectra_of_a, spectra))
    return _joined(sums, lattice)


def keep_spectra(most_bytes: int) -> None:
    """Let this process keep spectra of A between two products, where they take at most so much memory.

    A product without them takes 2.3 times as long. They take 8 bytes for each limb of an entry of A: 24 for each of z
    in a ring of 16 bits, where z is long.
    """
    _Kept.most_bytes = most_bytes
    _kept_factors.cache_clear()


def _joined(sums: NDArray[np.int64], lattice: Lattice) -> list[int]:
    """Return what products of limbs are together, modulo q."""
    limbs_of_a, limbs_of_z = sums.shape[:2]
    if lattice.modulus < 1 << LARGEST_FAST_MODULUS_BITS and limbs_of_z == 1:
        # A residue has 32 bits, a weight 22 at most: each product fits, and so do three.
        weights = 1 << (LIMB_BITS_OF_A * np.arange(limbs_of_a, dtype=np.int64))
        residues = np.einsum("i...,i->...", sums[:, 0] % lattice.modulus, weights) % lattice.modulus
        fast: list[int] = residues.ravel().tolist()
        return fast
    total = [0] * lattice.rows
    for i in range(limbs_of_a):
        for j in range(limbs_of_z):
            weight = 1 << (LIMB_BITS_OF_A * i + LIMB_BITS_OF_Z * j)
            total = [value + weight * more for value, more in zip(total, sums[i, j].ravel().tolist(), strict=True)]
    return [value % lattice.modulus for value in total]


def _limbs(lattice: Lattice) -> int:
    """Return how many limbs an entry of A has."""
    return -(-lattice.modulus.bit_length() // LIMB_BITS_OF_A)


def _factors(key: bytes, lattice: Lattice, counts: tuple[int, ...]) -> Iterable[tuple[Spectra, ...]]:
    """Return the spectra of A's limbs for each group of so many polynomials; kept where they are small.

    A is public and the same in all rounds of a run: a hospital that commits and checks makes these spectra once.
    """
    size = sum(counts) * _limbs(lattice) * lattice.rank * lattice.degree // 2 * np.dtype(np.complex128).itemsize
    return _kept_factors(key, lattice, counts) if size <= _Kept.most_bytes else _made_factors(key, lattice, counts)


class _Kept:
    most_bytes = _MOST_KEPT_BYTES


@lru_cache(maxsize=1)
def _kept_factors(key: bytes, lattice: Lattice, counts: tuple[int, ...]) -> tuple[tuple[Spectra, ...], ...]:
    return tuple(_made_factors(key, lattice, counts))


def _made_factors(key: bytes, lattice: Lattice, counts: tuple[int, ...]) -> Iterator[tuple[Spectra, ...]]:
    factors = UniformStream(key, lattice.modulus, GROUP_ENTRIES * lattice.rank)
    for count in counts:
        words = factors.take(count * lattice.degree * lattice.rank).reshape(count, lattice.rank, lattice.degree)
        yield tuple(_spectra(limb) for limb in _limbs_of_a(words, _limbs(lattice)))


def _groups(parts: Iterable[Integers], degree: int) -> Iterator[Integers]:
    """Yield z as polynomials, (count, N), at most a group at a time, each part's last one filled up with zeros."""
    for part in parts:
        for start in range(0, len(part), GROUP_ENTRIES):
            stretch = part[start : start + GROUP_ENTRIES]
            rest = -len(stretch) % degree
            if rest:
                stretch = np.concatenate([stretch, np.zeros(rest, part.dtype)])
            yield stretch.reshape(-1, degree)


def _limbs_of_a(words: Words, limbs: int) -> Iterator[Integers]:
    """Yield limbs l_i of at most 2^10 in size with ``word = Σ l_i 2^(11 i)``."""
    half = 1 << (LIMB_BITS_OF_A - 1)
    # The last limb is what is left, and smaller: 32 and 64 bits are two less than a whole number of limbs.
    low = (words & words.dtype.type(2 * half - 1)).astype(np.int16)
    left = words >> words.dtype.type(LIMB_BITS_OF_A)
    for _ in range(limbs - 1):
        carry = low >= half
        yield low - (carry * np.int16(2 * half))
        left += carry
        low = (left & words.dtype.type(2 * half - 1)).astype(np.int16)
        left >>= words.dtype.type(LIMB_BITS_OF_A)
    yield low


def _limbs_of_z(entries: Integers, limbs: int) -> Iterator[Integers]:
    """Yield limbs l_j of at most 2^15 in size with ``entry = Σ l_j 2^(16 j)``."""
    if limbs == 1:
        yield entries
        return
    half = 1 << (LIMB_BITS_OF_Z - 1)
    low = (((entries.astype(np.int64) + half) & (2 * half - 1)) - half).astype(np.int32)
    yield low
    yield (entries.astype(np.int64) - low) >> LIMB_BITS_OF_Z


@cache
def _twist(degree: int) -> Spectra:
    """Return exp(iπ j / N) for j below N/2: what makes a cyclic transform of half the length a negacyclic one."""
    angles = [math.pi * j / degree for j in range(degree // 2)]
    return np.array([complex(math.cos(angle), math.sin(angle)) for angle in angles])


def _spectra(limbs: Integers) -> Spectra:
    """Return real polynomials, (…, N), at those N/2 roots of X^N + 1 whose N/2-th power is i: (…, N/2)."""
    half = limbs.shape[-1] // 2
    folded = np.empty((*limbs.shape[:-1], half), np.complex128)
    folded.real = limbs[..., :half]
    folded.imag = limbs[..., half:]
    folded *= _twist(2 * half)
    spectra: Spectra = np.fft.fft(folded, axis=-1)
    return spectra


def _coefficients(spectra: Spectra) -> NDArray[np.int64]:
    """Return the integer polynomials, (…, N), with these spectra."""
    folded = np.fft.ifft(spectra, axis=-1) * _twist(2 * spectra.shape[-1]).conj()
    real = np.concatenate([folded.real, folded.imag], axis=-1)
    whole = np.rint(real)
    if not np.abs(real - whole).max() <= MOST_DISTANCE:
        raise InexactTransformError("the FFT of this machine is less exact than proved sums need; use another numpy")
    integers: NDArray[np.int64] = whole.astype(np.int64)
    return integers
