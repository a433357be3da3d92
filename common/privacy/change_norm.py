"""How long a hospital's change of a model may be: a public bound, which honest code clips to and so never passes.

In mode ``local`` the noise of a change, times the hospital's weight w, has a size that is public: each step adds noise
of deviation σC to a sum of gradients, divides by q·w (the expected batch, by what the hospital states), and takes
η of it. So w times the change has noise of expected square

    d (η σ C / q)² Σ_t a_t²,    a_t = 1 + μ + … + μ^(T - t)

whatever w is. The run's bound S is a multiple of the root. A hospital clips w times its change to S: that is
post-processing of a private release, and costs no privacy. What one hospital can do to a sum is then limited where its
own code is honest, and seen in the sum where it is far from that (``common/run/next_model.py``). Proof: claim 10 of
``docs/proofs/proved-sums.md``.
"""

import math

import numpy as np
from numpy.typing import NDArray

_PIECE = 1 << 16
"""The elements of which double-precision squares are in memory at a time."""


def noise_norm(
    parameters: int, steps: int, deviation: float, sample_rate: float, learning_rate: float, momentum: float
) -> float:
    """Return the root of the expected square of the noise in w times a change.

    Args:
        parameters: d.
        steps: T, of a round.
        deviation: σC, of one step's sum.
        sample_rate: q.
        learning_rate: η.
        momentum: μ.

    >>> noise_norm(10_000, 4, 1.0, 0.5, 0.1, 0.0)
    40.0
    """
    reach, square = 0.0, 0.0
    for _ in range(steps):  # From the last step, which moves the change once, to the first.
        reach = 1.0 + momentum * reach
        square += reach * reach
    return learning_rate * deviation / sample_rate * math.sqrt(parameters * square)


def norm(change: NDArray[np.floating] | NDArray[np.signedinteger]) -> float:
    """Return the L2 norm, in double precision; infinite where an element is."""
    square = 0.0
    for start in range(0, len(change), _PIECE):
        piece = change[start : start + _PIECE].astype(np.float64)
        square += float(np.dot(piece, piece))
    return math.sqrt(square)


def clipped(change: NDArray[np.float32], longest: float) -> NDArray[np.float32]:
    """Return a change whose norm is at most ``longest``: the same one, or one in its direction.

    >>> clipped(np.array([3.0, 4.0], np.float32), 1.0).tolist()
    [0.6000000238418579, 0.800000011920929]
    """
    length, within = norm(change), np.zeros_like(change)
    if not math.isfinite(length):
        return within
    factor = min(1.0, longest / length) if length else 1.0  # By 1 it is multiplied, too: time must not tell.
    for start in range(0, len(change), _PIECE):
        piece = slice(start, start + _PIECE)
        np.multiply(change[piece], factor, out=within[piece], casting="same_kind", dtype=np.float64)
    return within
