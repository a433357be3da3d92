"""The next model and the optimiser's state, as every hospital computes them from a sum that it has seen proved.

It is what the server does (``server/run.py``), by the same functions, in the same order of operations: elementwise, one
rounding for each. So the bits are the same on every machine with IEEE arithmetic; where they are not, the hash of the
next request says so and that hospital sits the round out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.config import RunDescription
from common.privacy.mechanism import LARGEST_MEAN_ERROR, SummedMean, mechanism_of
from common.proved_sums.commitment import Centred
from common.proved_sums.lineage import state_hash
from common.run.round_terms import Purpose
from common.run.strategies import Strategy, strategy_for
from common.run.vector import VectorLayout

Array = NDArray[np.float32]


@dataclass(frozen=True)
class ModelState:
    """A model, and the state of the optimiser that steps it.

    Attributes:
        model: (d,) float32.
        state: the optimiser's arrays, by name.
    """

    model: Array
    state: Mapping[str, Array]

    @property
    def hash(self) -> bytes:
        """Return the hash of both, 32 bytes."""
        return state_hash(self.model, self.state)


@dataclass(frozen=True)
class SummedRound:
    """What of a round decides the next model, its sum aside."""

    purpose: Purpose
    cohort: int
    survivors: int


def strategy_of(run: RunDescription, parameters: int) -> Strategy:
    """Return the optimiser of a run, before its first step."""
    return strategy_for(run.aggregation, run.training, run.privacy, parameters)


def next_model(
    run: RunDescription, layout: VectorLayout, before: ModelState, round_: SummedRound, total: Centred
) -> ModelState:
    """Return the model and state that follow from a proved sum.

    Args:
        run: the description that the round was under.
        layout: of its vectors.
        before: what the round began from; unchanged.
        round_: what it was for, and who was in it.
        total: of changes and weights, without ρ.

    Raises:
        WeightRangeError: no honest hospitals have such a total weight.
        RunError: the next model is not finite.
    """
    if round_.purpose is Purpose.EVALUATE:
        return before
    mechanism, parameters = mechanism_of(run), layout.parameters
    summed = layout.decode_proved(total, round_.survivors)
    if round_.purpose is Purpose.MEAN:
        change = mechanism.mean_decoder(run, parameters)(summed)(slice(None))
        public = SummedMean(round_.cohort, round_.survivors, summed.tail.weight)
        width = int(np.count_nonzero(change))
        error = mechanism.deviation_of_mean(run, parameters, public) * math.sqrt(width)
        return before if error > LARGEST_MEAN_ERROR else ModelState(before.model + change, before.state)
    strategy = strategy_of(run, parameters)
    strategy.restore(before.state)
    model = strategy.step(before.model, mechanism.decoder(run, parameters)(summed)(slice(None)))
    return ModelState(model, strategy.state())
