"""The public bound on a change: the length of its noise, and clipping to it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from common.privacy.change_norm import clipped, noise_norm, norm


@pytest.mark.parametrize(("steps", "momentum"), [(1, 0.0), (4, 0.0), (5, 0.9)])
def test_the_length_of_the_noise_is_that_of_steps_of_noise_alone(steps: int, momentum: float) -> None:
    """Noise of deviation σC, divided by q w and stepped as ``client/training.py`` does, times w."""
    rng, parameters, deviation, rate, learning_rate, weight = np.random.default_rng(4), 40_000, 1.5, 0.2, 0.3, 77.0
    change, velocity = np.zeros(parameters), np.zeros(parameters)
    for _ in range(steps):
        velocity = momentum * velocity + rng.normal(0.0, deviation, parameters) / (rate * weight)
        change -= learning_rate * velocity
    expected = noise_norm(parameters, steps, deviation, rate, learning_rate, momentum)
    assert weight * float(np.linalg.norm(change)) == pytest.approx(expected, rel=0.02)


@given(
    change=arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-(2.0**90), 2.0**90, width=32)),
    longest=st.floats(1e-3, 1e6),
)
def test_a_clipped_change_is_within_the_bound_and_one_within_is_left_alone(change: np.ndarray, longest: float) -> None:
    within = clipped(change, longest)
    assert norm(within) <= longest * (1 + 1e-6)
    if norm(change) <= longest:
        np.testing.assert_array_equal(within, change)
    else:
        direction = change.astype(np.float64) / norm(change)
        np.testing.assert_allclose(within, direction * longest, rtol=1e-5, atol=1e-30)


def test_a_change_without_end_becomes_none() -> None:
    assert not clipped(np.array([np.inf, 1.0], np.float32), 1.0).any()
    assert math.isinf(norm(np.array([np.inf], np.float32)))
