"""The sampler against the exact law, and its floating-point shortcut against arithmetic without rounding."""

import decimal
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from common.errors import PrivacyError
from common.keystream import Keystream
from common.privacy import discrete_gaussian
from common.privacy.discrete_gaussian import LARGEST_VARIANCE, sample

SEED = bytes(range(32))


class Scripted(Keystream):
    """A stream that says what the test wants, then what its seed gives."""

    def __init__(self, words: list[int]) -> None:
        super().__init__(SEED)
        self.words = words

    def fill(self, out: NDArray[Any]) -> None:
        super().fill(out)
        if self.words:
            given_words = self.words[: out.size]
            out[: len(given_words)] = given_words
            self.words = self.words[len(given_words) :]


def exact_probabilities(variance: int, values: NDArray[np.int64]) -> NDArray[np.float64]:
    weights = np.exp(-(np.arange(-2000, 2001) ** 2) / (2 * variance))
    law: NDArray[np.float64] = np.exp(-(values.astype(float) ** 2) / (2 * variance)) / weights.sum()
    return law


@pytest.mark.parametrize("variance", [1, 2, 3, 7, 50, 1000])
def test_samples_have_the_exact_law(variance: int) -> None:
    samples = sample(variance, 200_000, Keystream(SEED))
    reach = math.ceil(3.5 * math.sqrt(variance))
    values = np.arange(-reach, reach + 1)
    counts = np.array([np.count_nonzero(samples == value) for value in values])
    expected = len(samples) * exact_probabilities(variance, values)
    beyond = len(samples) - expected.sum()
    statistic = ((counts - expected) ** 2 / expected).sum() + (len(samples) - counts.sum() - beyond) ** 2 / beyond
    # A law off by 1 % anywhere near the middle gives less than 1e-6 here.
    assert stats.chi2.sf(statistic, len(values)) > 1e-3


@pytest.mark.parametrize("variance", [2**20 + 1, 2**34, 3 * 2**40, LARGEST_VARIANCE])
def test_wide_samples_have_the_moments_and_distribution_of_the_gaussian(variance: int) -> None:
    scaled = sample(variance, 200_000, Keystream(SEED)) / math.sqrt(variance)
    assert stats.kstest(scaled, "norm").pvalue > 1e-3
    assert scaled.var() == pytest.approx(1.0, abs=5 * math.sqrt(2 / len(scaled)))


@pytest.mark.parametrize("variance", [1, 12, 2**30 + 7])
def test_each_floating_point_decision_is_the_exact_one(variance: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discrete_gaussian, "_PROPOSALS", 4000)
    shortcut = sample(variance, 1500, Keystream(SEED))
    # Nothing is further apart than this, so every single acceptance is decided without floating point.
    monkeypatch.setattr(discrete_gaussian, "_MARGIN", 2.0)
    assert np.array_equal(sample(variance, 1500, Keystream(SEED)), shortcut)


def test_the_same_stream_gives_the_same_samples_and_another_stream_others() -> None:
    first, second = (sample(2**30, 1000, Keystream(SEED)) for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, sample(2**30, 1000, Keystream(bytes(32))))


def test_a_negative_zero_is_rejected() -> None:
    # Otherwise zero would come twice as often as it must; the law's test sees it, this one names it.
    zeros = np.count_nonzero(sample(1, 100_000, Keystream(SEED)) == 0)
    assert zeros == pytest.approx(100_000 * float(exact_probabilities(1, np.array([0]))[0]), rel=0.02)


def test_no_samples_are_no_samples() -> None:
    assert sample(5, 0, Keystream(SEED)).shape == (0,)


@pytest.mark.parametrize("variance", [0, -4, LARGEST_VARIANCE + 1, 2.5, True, float("nan")])
def test_a_variance_outside_the_proof_is_refused(variance: Any) -> None:  # noqa: ANN401 - of any wrong type
    with pytest.raises(PrivacyError, match="noise variance must be a whole number"):
        sample(variance, 1, Keystream(SEED))


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**6), st.integers(1, 10**5))
def test_a_lazy_uniform_compares_as_a_real_number(word: int, numerator: int, denominator: int) -> None:
    with decimal.localcontext(decimal.Context(prec=400)):
        power = (-decimal.Decimal(numerator) / denominator).exp()
        low, high = decimal.Decimal(word) / 2**64, decimal.Decimal(word + 1) / 2**64
        below = discrete_gaussian._LazyUniform(word, Keystream(SEED)).below_exp(numerator, denominator)
        # Where the first 64 bits decide, there is one answer.
        assert (low < power) if below else (power < high)


@pytest.mark.parametrize(("following", "below"), [(0, True), (2**64 - 1, False)])
def test_bits_that_do_not_decide_are_followed_by_more(following: int, below: bool) -> None:
    with decimal.localcontext(decimal.Context(prec=60)):
        word = int(decimal.Decimal(-1).exp() * 2**64)
    stream = Scripted([following])
    assert discrete_gaussian._LazyUniform(word, stream).below_exp(1, 1) is below
    assert stream.words == []


def test_the_geometric_variable_has_its_law() -> None:
    values = np.concatenate([discrete_gaussian._geometric(stream) for stream in [Keystream(SEED)] for _ in range(8)])
    for least in range(1, 8):
        share = np.mean(values >= least)
        assert share == pytest.approx(math.exp(-least), abs=5 * math.sqrt(math.exp(-least) / len(values)))


def test_a_geometric_variable_in_an_undecided_cell_is_decided_by_further_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discrete_gaussian, "_PROPOSALS", 5)
    with decimal.localcontext(decimal.Context(prec=60)):
        cell = int(decimal.Decimal(-3).exp() * 2**53)
    at_the_start, at_the_end = cell << 11, (cell << 11) + 2**11 - 1
    words = [at_the_start, at_the_end, 0, 2**64 - 1, ((cell + 1) << 11)]
    got = discrete_gaussian._geometric(Scripted(words))
    # e^-44.36 is 2^-64, so a word of zeros lies below e^-44 and whatever more its further bits say.
    assert got[[0, 1, 3, 4]].tolist() == [3, 2, 0, 2]
    assert got[2] >= 44
