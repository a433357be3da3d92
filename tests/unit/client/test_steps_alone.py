"""A run's recipe on one hospital's records alone: as many draws of noise as are booked, whatever fails."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from client.steps_alone import StepsAlone
from common.config import Config, PrivacyMode, RunDescription, replace
from common.errors import RunError
from common.privacy.mechanism import NoisySteps, NoisySum, PlainSteps, mechanism_of
from common.run.terms import describe, layout_of

ROUNDS = 5
STATED = 40

Floats = npt.NDArray[np.float32]


def described(mode: PrivacyMode, **aggregation: object) -> RunDescription:
    config = replace(
        Config(),
        model={"name": "scattering_linear"},
        experiment={"rounds": ROUNDS},
        training={"sample_rate": 1.0, "learning_rate": 1.0, "momentum": 0.0},
        privacy={"mode": mode, "accountant": "rdp", "mean_share": 0.04, "alone_share": 0.5},
        aggregation={"min_hospitals": 4, **aggregation},
    )
    return describe(config, 32 * "0", ("normal", "pneumonia"), 1, dict.fromkeys("abcd", ""))


class Trainer:
    """Draws nothing and counts how often it was asked to; some of its steps are beyond what a model can hold."""

    def __init__(self, failing: Callable[[int], bool] = lambda _: False) -> None:
        self.failing = failing
        self.asked_for_steps = self.asked_for_means = 0

    def __call__(self, weights: Floats) -> "Trainer":
        self.weights = weights
        return self

    def steps(self, plan: PlainSteps | NoisySteps) -> Floats:
        assert isinstance(plan, NoisySteps)
        self.asked_for_steps += 1
        return np.full_like(self.weights, np.inf if self.failing(self.asked_for_steps) else 1.0)

    def gradient_sum(self, plan: NoisySum) -> npt.NDArray[np.int64]:
        raise AssertionError(plan)

    def feature_mean(self, plan: PlainSteps | NoisySteps) -> Floats:
        assert isinstance(plan, NoisySteps)
        self.asked_for_means += 1
        return np.zeros_like(self.weights)

    def feature_sum(self, plan: NoisySum) -> npt.NDArray[np.int64]:
        raise AssertionError(plan)


def alone(trainer: Trainer, mode: PrivacyMode = PrivacyMode.LOCAL, of_mean: Trainer | None = None) -> StepsAlone:
    run = described(mode)
    first = np.zeros(layout_of(run).parameters, np.float32)
    return StepsAlone(
        run, mechanism_of(run).of_hospital_alone(), first, trainer, STATED, noise=True, of_mean=of_mean
    )  # fmt: skip


@pytest.mark.parametrize("mode", [PrivacyMode.LOCAL, PrivacyMode.DISTRIBUTED])
def test_it_takes_as_many_steps_as_the_run_and_finds_one_centre(mode: PrivacyMode) -> None:
    trainer = Trainer()
    steps = alone(trainer, mode)
    steps.advance()
    assert (trainer.asked_for_steps, trainer.asked_for_means) == (1, 1)
    steps.finish()
    steps.finish()
    steps.advance()
    assert (trainer.asked_for_steps, trainer.asked_for_means) == (ROUNDS, 1)
    assert steps.is_finished
    assert steps.weights == pytest.approx(float(ROUNDS))


def test_a_step_that_fails_is_paid_for_and_not_drawn_again() -> None:
    trainer = Trainer(failing=lambda number: number in (1, 2, 4))
    steps = alone(trainer)
    for _ in range(3 * ROUNDS):
        try:
            steps.advance()
        except RunError:
            continue
    assert (trainer.asked_for_steps, trainer.asked_for_means) == (ROUNDS, 1)
    assert steps.weights == pytest.approx(ROUNDS - 3.0)
    assert np.isfinite(steps.weights).all()


def test_the_centre_may_be_of_fewer_units_than_the_steps() -> None:
    trainer, of_mean = Trainer(), Trainer()
    alone(trainer, of_mean=of_mean).finish()
    assert (trainer.asked_for_means, of_mean.asked_for_means) == (0, 1)
    assert (trainer.asked_for_steps, of_mean.asked_for_steps) == (ROUNDS, 0)
