"""What one training run says about its ε: the statistics of Steinke, Nasr and Jagielski 2023 (arXiv:2305.08846v1).

Their auditor flips a fair coin for each of m canaries, trains once on those that came up heads, and then guesses some
of the coins from what the training gave away (Algorithm 1). If training is (ε, δ)-private for adding or removing one
record, the number W of right guesses among r is hardly larger than that of r coins which come up right with
probability e^ε / (1 + e^ε) (Corollary 5.4)::

    P[W ≥ v] ≤ P[B ≥ v] + 2 m δ max_i P[v > B ≥ v - i] / i,        B ~ Binomial(r, e^ε / (1 + e^ε))

An ε under which what was seen has a probability of at most 1 - confidence is refuted; the largest such is the bound.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

GUESSED_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 1.0)
"""The shares of the canaries that are guessed. The most telling share depends on the ε that is sought: few sure guesses
for a small one, many for a large one. All are tried, each at a raised confidence, so that the best of them may be
reported (Bonferroni)."""

LARGEST_EPSILON = 64.0
"""An ε that no number of guesses here could refute."""

BISECTIONS = 30


@dataclass(frozen=True)
class LowerBound:
    """What was refuted.

    Attributes:
        epsilon: the training was not (ε', δ)-private for any ε' below this.
        confidence: of that statement: it is wrong about an honest training with probability 1 - confidence at most.
        guesses: made of the ``canaries`` coins, r.
        correct: of them, v.
        canaries: m.
    """

    epsilon: float
    confidence: float
    guesses: int
    correct: int
    canaries: int


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Return the largest probability that an (ε, δ)-private training lets ``correct`` guesses or more be right.

    Raises:
        ValueError: not 0 ≤ correct ≤ guesses ≤ canaries.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"correct ≤ guesses ≤ canaries must hold, got {correct}, {guesses}, {canaries}")
    if not correct:
        return 1.0
    right = float(special.expit(epsilon))
    at_least = float(special.betainc(correct, guesses - correct + 1, right))
    if not delta:
        return at_least
    fewer = np.arange(correct - 1, -1, -1)
    ways = special.gammaln(guesses + 1) - special.gammaln(fewer + 1) - special.gammaln(guesses - fewer + 1)
    exactly = np.exp(ways + fewer * special.log_expit(epsilon) + (guesses - fewer) * special.log_expit(-epsilon))
    steepest = float(np.max(np.cumsum(exactly) / np.arange(1, correct + 1)))
    return min(1.0, at_least + 2 * canaries * delta * steepest)


def lower_bound(canaries: int, guesses: int, correct: int, delta: float, confidence: float) -> float:
    """Return the largest ε (to 2^-24) that this many right guesses refute with this confidence; 0 where none."""
    refuted, standing = 0.0, LARGEST_EPSILON
    for _ in range(BISECTIONS):
        middle = (refuted + standing) / 2
        if p_value(canaries, guesses, correct, middle, delta) < 1 - confidence:
            refuted = middle
        else:
            standing = middle
    return refuted


def best_bound(scores: NDArray[np.float64], included: NDArray[np.bool_], delta: float, confidence: float) -> LowerBound:
    """Return the best bound that guessing from scores gives, at the confidence stated over all that was tried.

    Args:
        scores: (m,), higher where the training looks more as if the canary had been in it.
        included: (m,), whether it was, by fair and independent coins that the training did not know.
        delta: of the claim.
        confidence: in (0, 1).
    """
    each = 1 - (1 - confidence) / len(GUESSED_SHARES)
    canaries = len(scores)
    bounds = [
        LowerBound(lower_bound(canaries, guesses, correct, delta, each), confidence, guesses, correct, canaries)
        for guesses, correct in _guesses(scores, included)
    ]
    return max(bounds, key=lambda bound: bound.epsilon)


def _guesses(scores: NDArray[np.float64], included: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield how many guesses were made and were right, taking the highest scores for in and the lowest for out."""
    outcome = included[np.argsort(scores, kind="stable")]
    for share in GUESSED_SHARES:
        each_side = int(share * len(scores)) // 2
        if each_side:
            correct = int(outcome[-each_side:].sum()) + int((~outcome[:each_side]).sum())
            yield 2 * each_side, correct
