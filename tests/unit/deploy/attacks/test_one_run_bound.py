"""The statistics against values that the paper prints, and against what they promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.attacks.one_run_bound import GUESSED_SHARES, best_bound, lower_bound, p_value


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "delta", "published"),
    [(1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.675)],
)
def test_the_bound_is_what_the_paper_prints(
    canaries: int, guesses: int, correct: int, delta: float, published: float
) -> None:
    # Appendix D, page 46, and section 7, page 28; one of the two is cut off there instead of rounded.
    assert lower_bound(canaries, guesses, correct, delta, 0.95) == pytest.approx(published, abs=1e-3)


def test_without_delta_the_p_value_is_the_tail_of_a_binomial() -> None:
    assert p_value(10, 3, 3, np.log(3), 0.0) == pytest.approx(0.75**3)
    assert p_value(10, 3, 0, 1.0, 0.0) == 1.0


@settings(max_examples=30)
@given(st.integers(1, 60), st.data())
def test_more_right_guesses_never_refute_less(guesses: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, guesses - 1))
    bounds = [lower_bound(100, guesses, right, 1e-4, 0.95) for right in (correct, correct + 1)]
    assert bounds[0] <= bounds[1]


def test_a_larger_delta_or_confidence_never_refutes_more() -> None:
    assert lower_bound(1000, 100, 90, 1e-3, 0.95) < lower_bound(1000, 100, 90, 0.0, 0.95)
    assert lower_bound(1000, 100, 90, 0.0, 0.99) < lower_bound(1000, 100, 90, 0.0, 0.95)


def test_scores_that_say_nothing_refute_nothing_but_as_often_as_the_confidence_allows() -> None:
    random = np.random.default_rng(1)
    refuting = sum(
        best_bound(random.standard_normal(400), random.random(400) < 0.5, 0.0, 0.9).epsilon > 0 for _ in range(100)
    )
    assert refuting <= 10 + 3 * np.sqrt(9)


def test_guesses_of_randomised_response_refute_less_than_its_epsilon() -> None:
    random = np.random.default_rng(2)
    included = random.random(5000) < 0.5
    told = np.where(random.random(5000) < 1 / (1 + np.exp(-2.0)), included, ~included)
    bound = best_bound(told + 1e-3 * random.random(5000), included, 0.0, 0.95)
    assert 1.5 < bound.epsilon < 2.0


def test_scores_that_tell_everything_refute_as_much_as_so_many_coins_can() -> None:
    included = np.arange(1000) % 3 == 0
    bound = best_bound(included.astype(np.float64), included, 0.0, 0.95)
    # A share of 0.5 is guessed right without a fault: what 666 canaries on the larger side allow.
    assert (bound.guesses, bound.correct) == (500, 500)
    each = 0.05 / len(GUESSED_SHARES)
    assert p_value(1000, 500, 500, bound.epsilon, 0.0) == pytest.approx(each, rel=1e-3)


def test_more_right_guesses_than_guesses_are_refused() -> None:
    with pytest.raises(ValueError, match="must hold"):
        p_value(10, 3, 4, 1.0, 0.0)
