from dataclasses import replace

import pytest

from common.proved_sums.errors import ProofParameterError
from common.proved_sums.parameters import MOST_ENTRIES, Lattice, ProofParameters, parameters_for

TABLE = [
    # entries, bits, hospitals: N, rank, m, bytes of a commitment, bytes more to upload
    (26_000, 16, 3, 256, 4, 2560, 4096, 9216),
    (26_000, 16, 4, 256, 4, 2816, 4096, 9728),
    (57_000, 16, 16, 256, 4, 3072, 4096, 10_240),
    (57_000, 16, 64, 256, 4, 3840, 4096, 11_776),
    (57_000, 32, 3, 256, 5, 2816, 10_240, 21_504),
    (57_000, 32, 4, 256, 5, 3072, 10_240, 22_528),
    (57_000, 32, 64, 256, 5, 3328, 10_240, 23_552),
    (11_200_000, 16, 4, 2048, 1, 6144, 8192, 20_480),
    (11_200_000, 32, 4, 2048, 1, 6144, 16_384, 40_960),
]


@pytest.mark.parametrize(("entries", "bits", "hospitals", "degree", "rank", "m", "commitment", "upload"), TABLE)
def test_a_run_has_the_commitments_of_the_table(
    entries: int, bits: int, hospitals: int, degree: int, rank: int, m: int, commitment: int, upload: int
) -> None:
    parameters = parameters_for(entries, bits, hospitals)
    assert (parameters.lattice.degree, parameters.lattice.rank, parameters.randomness) == (degree, rank, m)
    assert (parameters.commitment_bytes, parameters.upload_bytes) == (commitment, upload)


@pytest.mark.parametrize("entries", [1, 26_000, 57_000, 1 << 17])
@pytest.mark.parametrize("hospitals", [3, 4, 16, 64])
def test_a_small_model_uploads_12_kilobytes_more_in_16_bits_and_25_in_32(entries: int, hospitals: int) -> None:
    assert parameters_for(entries, 16, hospitals).upload_bytes <= 12_000
    assert parameters_for(entries, 32, hospitals).upload_bytes <= 25_000


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("entries", [1000, 1 << 20])
def test_moduli_are_primes_that_are_5_modulo_8(entries: int, bits: int) -> None:
    modulus = parameters_for(entries, bits, 3).lattice.modulus
    assert modulus % 8 == 5
    assert is_prime(modulus)


def is_prime(number: int) -> bool:
    """Miller and Rabin, with bases that decide all numbers below 3.3e24 (Sorenson and Webster 2015)."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41):
        power = pow(base, odd, number)
        if power not in (1, number - 1) and not any(
            pow(power, 2**exponent, number) == number - 1 for exponent in range(1, twos)
        ):
            return False
    return True


def test_the_test_of_primes_knows_composites() -> None:
    assert [number for number in range(42, 100) if is_prime(number)] == [43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97]
    assert not is_prime(3215031751)


@pytest.mark.parametrize("hospitals", [3, 4, 4096])
@pytest.mark.parametrize("bits", [16, 32])
def test_sums_of_randomness_never_wrap_and_its_differences_are_units(bits: int, hospitals: int) -> None:
    parameters = parameters_for(1000, bits, hospitals)
    assert hospitals * parameters.largest_randomness <= 2 ** (bits - 1) - 1
    # Lyubashevsky and Seiler 2018, corollary 1.2, for two factors: below √(q/2) in every coefficient.
    assert 2 * (2 * parameters.largest_randomness) ** 2 < parameters.lattice.modulus


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ((0, 16, 4), "entries"),
        ((MOST_ENTRIES + 1, 16, 4), "entries"),
        ((1000, 16, 2), "hospitals"),
        ((1000, 16, 0), "hospitals"),
        ((1000, 16, 40_000), "room"),
        ((1000, 8, 4), "rings of 16 and 32"),
    ],
)
def test_runs_without_safe_commitments_are_refused(arguments: tuple[int, int, int], rule: str) -> None:
    with pytest.raises(ProofParameterError, match=rule):
        parameters_for(*arguments)


GOOD = parameters_for(26_000, 16, 4)


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        (replace_lattice, rule)
        for replace_lattice, rule in (
            ({"lattice": Lattice(256, 3, GOOD.lattice.modulus)}, "root Hermite factor"),
            ({"lattice": Lattice(256, 4, (1 << 32) - 5)}, "5 modulo 8"),
            ({"lattice": Lattice(256, 4, (1 << 16) + 5)}, "4 times"),
            ({"lattice": Lattice(256, 4, (1 << 28) - 3)}, "inverse"),
            ({"randomness": 2560}, "hide"),
            ({"randomness": 2817}, "whole polynomials"),
            ({"entries": 1 << 29}, "root Hermite factor"),
            ({"modulus_bits": 32}, "4 times"),
        )
    ],
)
def test_weaker_parameters_cannot_be_made(changed: dict[str, int], rule: str) -> None:
    with pytest.raises(ProofParameterError, match=rule):
        replace(GOOD, **changed)  # type: ignore[arg-type]


def test_parameters_are_the_same_object_for_the_same_run() -> None:
    assert isinstance(GOOD, ProofParameters)
    assert parameters_for(26_000, 16, 4) is GOOD
