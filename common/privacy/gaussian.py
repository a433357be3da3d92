"""The Gaussian mechanism without sampling, in closed form (Balle and Wang 2018; Dong, Roth and Su 2022).

A release with noise multiplier z has μ = 1 / z; releases compose by adding μ². All of μ together is (ε, δ)-private
exactly when δ ≥ Φ(-ε/μ + μ/2) - e^ε Φ(-ε/μ - μ/2). No accountant is needed, so a server knows what its evaluations
cost without PyTorch, which the accountants of Opacus bring.
"""

import math

_LARGEST_EPSILON = 2000.0
_HALVINGS = 80


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


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _log_normal_cdf(x: float) -> float:
    """Return ln Φ(x), where Φ(x) itself is below a double's smallest number as well."""
    value = _normal_cdf(x)
    if value > 1e-300:  # noqa: PLR2004 - near a double's smallest normal number
        return math.log(value)
    # Φ(x) < φ(x) / -x for x < 0 (Mills' ratio): from above, so that δ is subtracted too much nowhere it matters.
    return -0.5 * x * x - math.log(-x) - 0.5 * math.log(2 * math.pi)
