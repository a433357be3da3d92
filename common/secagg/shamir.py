"""Shamir's secret sharing over a prime field (Shamir 1979; SS.share and SS.recon of Bonawitz et al. 2017, section 3.1).

The field is the integers modulo 2^257 - 93, the largest prime below 2^257. A 32-byte secret, whatever its bits, is one
element, so there is nothing to split or reduce; and 257 random bits miss the field with probability below 2^-250, so
drawing coefficients by rejection is exactly uniform and never waits.

Proof: ``docs/proofs/shamir.md``.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from math import prod

from common.secagg.messages import SHARE_BYTES

PRIME = 2**257 - 93
SECRET_BYTES = 32

Random = Callable[[int], bytes]
"""Returns that many bytes from a cryptographic source; ``os.urandom`` in production.

A new object each time, which the source does not keep: whoever drew a secret erases it in place."""


def share(secret: bytes, threshold: int, points: Sequence[int], random: Random) -> dict[int, bytes]:
    """Split ``secret`` so that any ``threshold`` shares rebuild it and fewer are independent of it.

    Args:
        secret: 32 bytes.
        threshold: at least 1 and at most the number of points.
        points: where the polynomial is evaluated: distinct, from 1 to PRIME - 1.
        random: source of the polynomial's coefficients.

    Returns:
        Point to share, 33 bytes each.

    >>> import os
    >>> shares = share(bytes(range(32)), 2, [1, 2, 3], os.urandom)
    >>> rebuild({3: shares[3], 1: shares[1]}) == bytes(range(32))
    True
    """
    # Highest power first, as Horner's rule takes them; the secret is the value at 0.
    coefficients = [_field_element(random) for _ in range(threshold - 1)] + [int.from_bytes(secret, "big")]
    shares = {}
    for point in points:
        value = 0
        for coefficient in coefficients:
            value = (value * point + coefficient) % PRIME
        shares[point] = value.to_bytes(SHARE_BYTES, "big")
    return shares


def rebuild(shares: Mapping[int, bytes]) -> bytes | None:
    """Return the secret that exactly these shares lie on, 32 bytes.

    Args:
        shares: point to share; as many as the threshold.

    Returns:
        The secret, or None when the shares lie on no 32-byte secret: they were not dealt by :func:`share`.
    """
    weights = _lagrange_at_zero(tuple(shares))
    values = (int.from_bytes(share, "big") for share in shares.values())
    secret = sum(weight * value for weight, value in zip(weights, values, strict=True)) % PRIME
    return secret.to_bytes(SECRET_BYTES, "big") if secret < 2 ** (8 * SECRET_BYTES) else None


@lru_cache(maxsize=1024)
def _lagrange_at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Return for each point the weight of its share in the value at 0.

    Points are small, so products of them and of their differences are taken as they are and reduced once. Inverting all
    denominators costs one inversion: each is their common inverse times the others' product.
    """
    everything = prod(points)
    denominators = [prod(other - point for other in points if other != point) % PRIME for point in points]
    before = list(accumulate(denominators, lambda left, right: left * right % PRIME, initial=1))
    inverse = pow(before[-1], -1, PRIME)
    weights = []
    for index in range(len(points) - 1, -1, -1):
        weights.append(everything // points[index] * inverse * before[index] % PRIME)
        inverse = inverse * denominators[index] % PRIME
    return tuple(reversed(weights))


def _field_element(random: Random) -> int:
    """Draw uniformly from the field: 257 bits, again in the one case in 2^250 that they are too large."""
    while True:
        value = int.from_bytes(random(SHARE_BYTES), "big") >> (8 * SHARE_BYTES - PRIME.bit_length())
        if value < PRIME:
            return value
