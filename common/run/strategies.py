"""How the decoded sum of a round becomes the next model.

FedAvg (McMahan et al. 2017) adds the weighted mean change; FedAvgM (Hsu et al. 2019) and FedAdam (Reddi et al. 2021,
arXiv:2003.00295, algorithm 2) treat it as a gradient of the server's own optimiser. FedProx acts in the hospital
(``client/training.py``). In mode ``distributed`` the mean change is the negative mean gradient, and the learning rate
and momentum of ``training`` act here, because a hospital takes no step.

A step reads the decoded sum alone, so it costs no privacy. It goes element by element, so it can be taken a stretch
of the model at a time. All state is in named arrays, which a checkpoint stores: none for FedAvg, one of the model's
size for FedAvgM, two for FedAdam.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.config import AggregationConfig, PrivacyConfig, TrainingConfig
from common.errors import ConfigError, RunError
from common.privacy.mechanism import mechanism_for

Array = NDArray[np.float32]

SECOND_MOMENT_DECAY = 0.99
"""β₂ of FedAdam, as Reddi et al. fix it in all experiments."""

ADAPTIVITY = 1e-3
"""τ of FedAdam, likewise: the least denominator, so that a parameter that hardly moves gets no huge step."""


class Strategy(ABC):
    """A server optimiser over flat models of ``parameters`` float32."""

    def __init__(self, parameters: int, learning_rate: float) -> None:
        self.learning_rate = np.float32(learning_rate)
        self._state = {name: np.zeros(parameters, np.float32) for name in self._state_names()}

    @abstractmethod
    def _state_names(self) -> tuple[str, ...]: ...

    @abstractmethod
    def _direction(self, mean_delta: Array, state: Mapping[str, Array]) -> Array: ...

    def step(self, weights: Array, mean_delta: Array, start: int = 0) -> Array:
        """Return the next model, or a stretch of it, as a new array; the state of that stretch advances.

        Args:
            weights: float32, the round's model from ``start`` on.
            mean_delta: as long, float32, weighted mean change of the surviving hospitals.
            start: where in the model the stretch begins.

        Raises:
            RunError: the next model is not finite.
        """
        state = {name: array[start : start + len(weights)] for name, array in self._state.items()}
        with np.errstate(over="ignore", invalid="ignore"):  # Named below, by what it means.
            stepped: Array = weights + self.learning_rate * self._direction(mean_delta, state)
        if not np.isfinite(stepped).all():
            raise RunError("the model must stay finite; lower aggregation.server_learning_rate")
        return stepped

    def state(self) -> dict[str, Array]:
        """Return the state's own arrays, by name, which the next step changes."""
        return dict(self._state)

    def restore(self, state: Mapping[str, Array]) -> None:
        """Continue from what :meth:`state` returned.

        Raises:
            RunError: the names or lengths are not those of this strategy.
        """
        expected = {name: array.shape for name, array in self._state.items()}
        got = {name: array.shape for name, array in state.items()}
        if got != expected:
            raise RunError(f"the checkpoint must hold a strategy state of {expected}, got {got}")
        self._state = {name: np.array(array, np.float32) for name, array in state.items()}


class FedAvg(Strategy):
    """The mean change itself."""

    def _state_names(self) -> tuple[str, ...]:
        return ()

    def _direction(self, mean_delta: Array, state: Mapping[str, Array]) -> Array:  # noqa: ARG002 - it has none
        return mean_delta


class FedAvgM(Strategy):
    """Heavy-ball momentum on the mean change.

    Args:
        parameters: d.
        learning_rate: of the server.
        momentum: in [0, 1); 0 is FedAvg.
    """

    def __init__(self, parameters: int, learning_rate: float, momentum: float) -> None:
        super().__init__(parameters, learning_rate)
        self.momentum = np.float32(momentum)

    def _state_names(self) -> tuple[str, ...]:
        return ("velocity",)

    def _direction(self, mean_delta: Array, state: Mapping[str, Array]) -> Array:
        velocity = state["velocity"]
        velocity *= self.momentum
        velocity += mean_delta
        return velocity


class FedAdam(Strategy):
    """Per-parameter step sizes from running moments of the mean change.

    Args:
        parameters: d.
        learning_rate: of the server.
        momentum: β₁, in [0, 1).
    """

    def __init__(self, parameters: int, learning_rate: float, momentum: float) -> None:
        super().__init__(parameters, learning_rate)
        self.momentum = np.float32(momentum)

    def _state_names(self) -> tuple[str, ...]:
        return ("first_moment", "second_moment")

    def _direction(self, mean_delta: Array, state: Mapping[str, Array]) -> Array:
        first, second = state["first_moment"], state["second_moment"]
        first *= self.momentum
        first += (1 - self.momentum) * mean_delta
        second *= np.float32(SECOND_MOMENT_DECAY)
        second += np.float32(1 - SECOND_MOMENT_DECAY) * np.square(mean_delta)
        return np.divide(first, np.sqrt(second) + np.float32(ADAPTIVITY), dtype=np.float32)


@dataclass(frozen=True)
class StrategyTerms:
    """What a strategy may depend on.

    Attributes:
        parameters: d, of the model.
        learning_rate: of the server; in mode ``distributed`` times that of the hospitals' optimiser.
        server_momentum: ``aggregation.server_momentum``.
        momentum: of the hospitals' optimiser where it acts on the server (mode ``distributed``); else 0.
    """

    parameters: int
    learning_rate: float
    server_momentum: float
    momentum: float


@dataclass(frozen=True)
class NamedStrategy:
    """An entry of :data:`STRATEGIES`: what it does, in words for help, and how it is made."""

    words: str
    make: Callable[[StrategyTerms], Strategy]


def _fedavg(terms: StrategyTerms) -> Strategy:
    if terms.momentum:  # Then it is SGD, with the momentum that a hospital's optimiser would have.
        return FedAvgM(terms.parameters, terms.learning_rate, terms.momentum)
    return FedAvg(terms.parameters, terms.learning_rate)


STRATEGIES: Mapping[str, NamedStrategy] = {
    "fedavg": NamedStrategy("the weighted mean of the hospitals' changes", _fedavg),
    "fedavgm": NamedStrategy(
        "server momentum on the mean change",
        lambda terms: FedAvgM(terms.parameters, terms.learning_rate, terms.server_momentum),
    ),
    "fedadam": NamedStrategy(
        "per-parameter step sizes from moments of the mean change",
        lambda terms: FedAdam(terms.parameters, terms.learning_rate, terms.server_momentum),
    ),
}
"""What ``aggregation.strategy`` can name; checks and help read it."""


def require(name: str) -> NamedStrategy:
    """Return the strategy of that name.

    Raises:
        ConfigError: there is none.
    """
    found = STRATEGIES.get(name)
    if found is None:
        raise ConfigError(f"aggregation.strategy must be one of {', '.join(STRATEGIES)}, got {name!r}")
    return found


def strategy_for(
    aggregation: AggregationConfig, training: TrainingConfig, privacy: PrivacyConfig, parameters: int
) -> Strategy:
    """Return the strategy that a run's description names.

    In mode ``distributed`` the two learning rates multiply, the hospital's and the server's, and FedAvg is SGD with
    ``training.momentum``.

    Raises:
        ConfigError: there is no strategy of that name.
    """
    training_rate, training_momentum = mechanism_for(privacy).server_optimiser(training)
    return require(aggregation.strategy).make(
        StrategyTerms(
            parameters,
            learning_rate=aggregation.server_learning_rate * training_rate,
            server_momentum=aggregation.server_momentum,
            momentum=training_momentum,
        )
    )
