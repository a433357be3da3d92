"""The next model and the optimiser's state, as every hospital computes them from a sum that it has seen proved.

It is what the server does (``server/run.py``), by the same functions, in the same order of operations: elementwise, one
rounding for each. So the bits are the same on every machine with IEEE arithmetic; where they are not, the hash of the
next request says so and that hospital sits the round out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.config import RunDescription
from common.privacy.change_norm import norm
from common.privacy.mechanism import LARGEST_MEAN_ERROR, MEAN_NORM, SummedMean, error_of_mean, mechanism_of
from common.proved_sums.commitment import Centred
from common.proved_sums.dispute import Rules, longest_in_units
from common.proved_sums.errors import SumNormError
from common.proved_sums.lineage import state_hash
from common.run.flat_model import stretches
from common.run.round_terms import Purpose
from common.run.strategies import Strategy, strategy_for
from common.run.vector import VectorLayout
from common.secagg.errors import Place

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


_ROUNDED = 1e-4
"""By how much single precision may lengthen a change, many times over."""


def check_norm(run: RunDescription, layout: VectorLayout, round_: SummedRound, total: Centred, place: Place) -> None:
    """Refuse a proved sum that is longer than the changes of so many honest hospitals can make it.

    A change times its weight w is at most S long, a part of the mean of features S + w, and rounding moves each of its
    d elements by less than one unit. So the sum of U of them is at most U (S / unit + √d) long, and W / unit more with
    W the sum of weights, by the triangle inequality: no honest sum is refused.

    Raises:
        SumNormError: it is longer, so somebody's change is longer than S. It names nobody.
    """
    longest, per_weight = _longest(run, layout, round_.purpose)
    if longest is None:
        return
    most = round_.survivors * longest + per_weight * layout.proved_weight(total)
    found = norm(total[: layout.parameters])
    if found > most:
        raise SumNormError(
            place, f"a sum of {round_.survivors} changes must be {most:.0f} long at most, got {found:.0f}"
        )


def rules_of(run: RunDescription, layout: VectorLayout, purpose: Purpose) -> Rules:
    """Return what the vectors of a round must keep, in a run that has disputes: what its sum is checked for."""
    longest, per_weight = _longest(run, layout, purpose)
    return Rules(layout.proof, layout.parameters, longest, layout.weight_limb_bits, layout.max_weight, per_weight)


def _longest(run: RunDescription, layout: VectorLayout, purpose: Purpose) -> tuple[float | None, float]:
    """Return how long a vector's change may be, and how much more for each unit of its weight, in the ring's units."""
    mechanism, parameters, per_weight = mechanism_of(run), layout.parameters, 0.0
    match purpose:
        case Purpose.TRAIN:
            longest = mechanism.longest_change(run, parameters)
        case Purpose.MEAN:
            longest = mechanism.longest_mean(run, parameters)
            per_weight = MEAN_NORM / layout.step * (1 + _ROUNDED)
        case Purpose.EVALUATE:
            longest = None
    if longest is None:
        return None, 0.0
    return longest_in_units(longest, layout.step, parameters, _ROUNDED), per_weight


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
        error = error_of_mean(mechanism.deviation_of_mean(run, parameters, public), width)
        return before if error > LARGEST_MEAN_ERROR else ModelState(before.model + change, before.state)
    strategy = strategy_of(run, parameters)
    strategy.restore(before.state)
    decoded, model = mechanism.decoder(run, parameters)(summed), np.empty_like(before.model)
    for stretch in stretches(parameters):
        model[stretch] = strategy.step(before.model[stretch], decoded(stretch), stretch.start)
    return ModelState(model, strategy.state())
