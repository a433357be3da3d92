"""The Gaussian mechanism without sampling, in closed form (Balle and Wang 2018; Dong, Roth and Su 2022).

A release with noise multiplier z has μ = 1 / z; releases compose by adding μ². All of μ together is (ε, δ)-private
exactly when δ ≥ Φ(-ε/μ + μ/2) - e^ε Φ(-ε/μ - μ/2). No accountant is needed, so a server knows what its evaluations
cost without PyTorch, which the accountants of Opacus bring.

Proof: ``docs/proofs/gaussian-releases.md``.
"""

import math

import numpy as np

from common.privacy.accounting import PRV_DELTA_ERROR, PRV_EPSILON_ERROR, RDP_ORDERS, Accountant

_PRV_SLACK = 1.05
"""How far PRV's bound of composed Gaussian releases lies above the exact ε, at most, in units of its stated error."""

_LARGEST_EPSILON = 2000.0
_HALVINGS = 80
_SMALLEST_MU = 1e-6
_ROUNDING = 1 + 1e-9
"""Covers that the accountant sums the releases in another order."""


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return the smallest δ with which releases of ``mu`` together are (ε, δ)-private.

    >>> round(gaussian_delta(0.3139, 1.0) / 1e-4, 2)
    1.0
    """
    near, far = -epsilon / mu + mu / 2, -epsilon / mu - mu / 2
    # e^ε Φ(far) with the exponent inside: far is below -ε/μ, and e^ε alone overflows.
    log_far = epsilon + _log_normal_cdf(far)
    return max(0.0, _normal_cdf(near) - (math.exp(log_far) if log_far < 0 else 1.0))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the smallest ε, from above, with which releases of ``mu`` together are (ε, δ)-private; 0 for none.

    >>> round(gaussian_epsilon(0.3139, 1e-4), 3)
    1.0
    """
    if mu == 0:
        return 0.0
    low, high = 0.0, 1.0
    while gaussian_delta(mu, high) > delta and high < _LARGEST_EPSILON:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if gaussian_delta(mu, middle) > delta:
            low = middle
        else:
            high = middle
    return high


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Return the largest μ, from below, that is (ε, δ)-private.

    >>> round(gaussian_mu(1.0, 1e-4), 4)
    0.3139
    """
    low, high = 0.0, 1.0
    while gaussian_delta(high, epsilon) <= delta:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if gaussian_delta(middle, epsilon) <= delta:
            low = middle
        else:
            high = middle
    return low


def accounted_epsilon(mu: float, delta: float, accountant: Accountant) -> float:
    """Return at most what an accountant's bound is of releases of ``mu`` together, without asking it.

    Args:
        mu: the root of the sum of 1 / z² over the releases.
        delta: in (0, 1).
        accountant: PRV adds its error to the exact value; RDP converts the Rényi divergence α μ² / 2.
    """
    if accountant is Accountant.PRV:
        return gaussian_epsilon(mu, delta * (1 - PRV_DELTA_ERROR)) + _PRV_SLACK * PRV_EPSILON_ERROR
    alphas = np.asarray(RDP_ORDERS)
    # Canonne, Kamath and Steinke 2020, proposition 12, as in ``accounting``.
    bounds = alphas * mu**2 / 2 - (math.log(delta) + np.log(alphas)) / (alphas - 1) + np.log1p(-1 / alphas)
    return max(0.0, float(bounds.min())) * _ROUNDING


def accounted_mu(epsilon: float, delta: float, accountant: Accountant) -> float:
    """Return the largest μ, from below, that an accountant bounds by ``epsilon``; 0 where it bounds none so low."""
    if accounted_epsilon(_SMALLEST_MU, delta, accountant) > epsilon:
        return 0.0
    low, high = _SMALLEST_MU, 1.0
    while accounted_epsilon(high, delta, accountant) <= epsilon:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if accounted_epsilon(middle, delta, accountant) <= epsilon:
            low = middle
        else:
            high = middle
    return low


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _log_normal_cdf(x: float) -> float:
    """Return ln Φ(x), where Φ(x) itself is below a double's smallest number as well."""
    value = _normal_cdf(x)
    if value > 1e-300:  # noqa: PLR2004 - near a double's smallest normal number
        return math.log(value)
    # Φ(x) < φ(x) / -x for x < 0 (Mills' ratio): from above, so that δ is subtracted too much nowhere it matters.
    return -0.5 * x * x - math.log(-x) - 0.5 * math.log(2 * math.pi)
