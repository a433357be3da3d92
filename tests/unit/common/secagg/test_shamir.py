import random
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.secagg import shamir
from common.secagg.shamir import PRIME, rebuild, share

secrets = st.binary(min_size=32, max_size=32)


def seeded(seed: int) -> shamir.Random:
    return random.Random(seed).randbytes  # noqa: S311 - repeatable


def test_the_prime_is_prime_and_the_largest_below_2_to_the_257() -> None:
    assert _is_prime(PRIME)
    assert PRIME.bit_length() == 257
    assert not any(_is_prime(candidate) for candidate in range(PRIME + 2, 2**257, 2))


@given(secrets, st.integers(1, 12), st.integers(0, 5), st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_any_threshold_of_shares_rebuild_the_secret(
    secret: bytes, threshold: int, spare: int, seed: int, source: random.Random
) -> None:
    points = source.sample(range(1, 4097), threshold + spare)
    shares = share(secret, threshold, points, seeded(seed))
    chosen = source.sample(points, threshold)
    assert rebuild({point: shares[point] for point in chosen}) == secret


def test_every_choice_of_shares_rebuilds_the_secret() -> None:
    secret = bytes(range(32))
    shares = share(secret, 4, range(1, 8), seeded(1))
    for chosen in combinations(shares, 4):
        assert rebuild({point: shares[point] for point in chosen}) == secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_every_32_bytes_are_a_secret(secret: bytes) -> None:
    shares = share(secret, 2, [1, 2], seeded(2))
    assert rebuild(shares) == secret


@given(secrets, secrets, st.integers(2, 6), st.integers(0, 2**32))
def test_fewer_shares_than_the_threshold_are_independent_of_the_secret(
    secret: bytes, other: bytes, threshold: int, seed: int
) -> None:
    """For any t - 1 shares there is, for every secret, exactly one polynomial that deals them."""
    points = list(range(1, threshold + 1))
    shares = share(secret, threshold, points, seeded(seed))
    seen = {point: shares[point] for point in points[:-1]}
    # The share of the last point that makes these same shares rebuild the other secret.
    weights = dict(zip(points, shamir._lagrange_at_zero(tuple(points)), strict=True))
    rest = sum(weights[point] * int.from_bytes(seen[point], "big") for point in seen)
    missing = (int.from_bytes(other, "big") - rest) * pow(weights[points[-1]], -1, PRIME) % PRIME
    assert rebuild({**seen, points[-1]: missing.to_bytes(33, "big")}) == other


def test_a_single_share_is_uniform_whatever_the_secret() -> None:
    draws, bins = 4000, 16
    for secret in (bytes(32), b"\xff" * 32):
        source = seeded(3)
        found = Counter(int.from_bytes(share(secret, 2, [1], source)[1], "big") * bins // PRIME for _ in range(draws))
        expected = draws / bins
        # The 1 - 10^-6 quantile of chi-square with 15 degrees of freedom is 56.5.
        assert sum((found[index] - expected) ** 2 / expected for index in range(bins)) < 56.5


def test_shares_that_lie_on_no_32_byte_secret_rebuild_nothing() -> None:
    constant = (2**256).to_bytes(33, "big")
    assert rebuild({1: constant, 2: constant}) is None


def test_a_draw_outside_the_field_is_drawn_again() -> None:
    draws = iter([b"\xff" * 33, bytes(33)])
    shares = share(bytes(32), 2, [1], lambda count: next(draws)[:count])
    assert shares[1] == bytes(33)
    assert next(draws, None) is None


def _is_prime(number: int) -> bool:
    """Miller-Rabin with 40 fixed bases: wrong for a composite with probability below 4^-40 over its choice."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 42):
        power = pow(base, odd, number)
        if power in (1, number - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True
