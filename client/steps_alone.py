"""A run's recipe on one hospital's records alone, a round's steps at a time: for its staff, and for a run that asks.

The model, its first weights, the features and their copies, the centre, the number of steps, their clipping and the
learning rate are the run's. Where there is noise, all of it is the hospital's own.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from common.config import RunDescription
from common.privacy.mechanism import LocalNoise, Mechanism, NoPrivacy, SummedMean, Trainer, mean_of_use
from common.run.strategies import strategy_for

Floats = npt.NDArray[np.float32]

COHORT_OF_ONE = 1


class StepsAlone:
    """One hospital's model of its own records, from the run's first model to that of its last step.

    Args:
        run: whose recipe it is.
        mechanism: whose whole target all steps together keep.
        first: (d,) float32, the model that the run begins with.
        trainer: makes the trainer that takes a round's steps from a model.
        stated: what a step divides by; a public number where the model, or what it says, leaves the hospital.
        noise: whether steps have noise.
        of_mean: makes the trainer that finds the centre; it has no more units than are stated.

    Raises:
        PrivacyError: the run is not private, or no noise keeps its ε.
    """

    def __init__(
        self,
        run: RunDescription,
        mechanism: Mechanism,
        first: Floats,
        trainer: Callable[[Floats], Trainer],
        stated: int,
        *,
        noise: bool,
        of_mean: Callable[[Floats], Trainer] | None = None,
    ) -> None:
        self._run = run
        self._trainer, self._of_mean = trainer, of_mean or trainer
        self._steps = mechanism.steps_alone(run, noise=noise)
        self._mean = mechanism.mean_alone(run, len(first), noise=noise)
        self._own = (LocalNoise if noise else NoPrivacy)(mechanism.privacy)
        self._public = SummedMean(COHORT_OF_ONE, COHORT_OF_ONE, stated)
        self._strategy = strategy_for(run.aggregation, run.training, run.privacy, len(first))
        self.weights = first
        self.done = 0
        """Rounds whose steps are taken or were tried, of those of the run."""

    @property
    def is_finished(self) -> bool:
        """Whether as many steps are taken or tried as the run takes."""
        return self.done >= self._run.experiment.rounds

    def advance(self) -> None:
        """Take the steps of one more round, and before the first ones find the centre; does nothing at the end.

        What fails is not tried again: its noise was drawn, and its cost is in what is booked.

        Raises:
            RunError: the weights grow without bound.
        """
        if self.is_finished:
            return
        is_first, self.done = not self.done, self.done + 1
        if is_first and self._mean is not None:
            deviation = self._own.deviation_of_mean(self._run, len(self.weights), self._public)
            self.weights = self.weights + mean_of_use(self._mean.change(self._of_mean(self.weights)), deviation)
        self.weights = self._strategy.step(self.weights, self._steps.change(self._trainer(self.weights)))

    def finish(self) -> None:
        """Take all steps that are left; errors as for :meth:`advance`."""
        while not self.is_finished:
            self.advance()
