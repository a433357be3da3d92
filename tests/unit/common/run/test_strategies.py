import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from common.config import AggregationConfig, PrivacyConfig, PrivacyMode, TrainingConfig
from common.errors import RunError
from common.privacy.mechanism import mean_change
from common.run.strategies import ADAPTIVITY, STRATEGIES, FedAdam, FedAvg, FedAvgM, Strategy, strategy_for

Array = NDArray[np.float32]


def deltas(rounds: int = 6, size: int = 40) -> list[Array]:
    rng = np.random.default_rng(3)
    return [rng.standard_normal(size).astype(np.float32) for _ in range(rounds)]


def walk(strategy: Strategy, changes: list[Array]) -> Array:
    weights = np.ones(len(changes[0]), np.float32)
    for change in changes:
        weights = strategy.step(weights, change)
    return weights


def walk_torch(optimiser: torch.optim.Optimizer, weights: torch.Tensor, changes: list[Array]) -> Array:
    for change in changes:
        weights.grad = -torch.from_numpy(change)
        optimiser.step()
    out: Array = weights.detach().numpy()
    return out


def test_fedavg_adds_the_mean_change() -> None:
    changes = deltas()
    assert np.allclose(walk(FedAvg(40, 1.0), changes), 1 + np.sum(changes, axis=0), atol=1e-5)


def test_fedavgm_is_torchs_sgd_with_momentum() -> None:
    weights = torch.ones(40, requires_grad=True)
    expected = walk_torch(torch.optim.SGD([weights], lr=0.5, momentum=0.9), weights, deltas())
    assert np.allclose(walk(FedAvgM(40, 0.5, 0.9), deltas()), expected, atol=1e-5)


def test_fedadam_follows_reddi_et_al_algorithm_2() -> None:
    weights, first, second = np.ones(40), np.zeros(40), np.zeros(40)
    for change in deltas():
        first = 0.9 * first + 0.1 * change
        second = 0.99 * second + 0.01 * change.astype(np.float64) ** 2
        weights = weights + 0.1 * first / (np.sqrt(second) + ADAPTIVITY)
    assert np.allclose(walk(FedAdam(40, 0.1, 0.9), deltas()), weights, atol=1e-5)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_restored_strategy_goes_on_bit_for_bit(name: str) -> None:
    aggregation = AggregationConfig.model_validate({"strategy": name})

    def make() -> Strategy:
        return strategy_for(aggregation, TrainingConfig(), PrivacyConfig(), 40)

    changes = deltas()
    whole = walk(make(), changes)
    first = make()
    halfway = np.ones(40, np.float32)
    for change in changes[:3]:
        halfway = first.step(halfway, change)
    second = make()
    second.restore(first.state())
    first.step(halfway, changes[3])  # must not reach into what was stored
    for change in changes[3:]:
        halfway = second.step(halfway, change)
    assert np.array_equal(whole, halfway)


def test_a_state_of_another_strategy_or_model_is_refused() -> None:
    with pytest.raises(RunError, match="velocity"):
        FedAvgM(40, 1.0, 0.9).restore(FedAvg(40, 1.0).state())
    with pytest.raises(RunError, match="velocity"):
        FedAvgM(40, 1.0, 0.9).restore(FedAvgM(39, 1.0, 0.9).state())


def test_a_model_that_is_no_longer_finite_is_refused() -> None:
    with pytest.raises(RunError, match="finite"):
        FedAvg(2, 1.0).step(np.array([3e38, 0], np.float32), np.array([3e38, 0], np.float32))


def test_a_step_leaves_the_models_it_was_given_as_they_were() -> None:
    weights, change = np.ones(3, np.float32), np.full(3, 2, np.float32)
    for strategy in (FedAvg(3, 1.0), FedAvgM(3, 1.0, 0.9), FedAdam(3, 1.0, 0.9)):
        strategy.step(weights, change)
        assert weights.tolist() == [1, 1, 1]
        assert change.tolist() == [2, 2, 2]


def test_in_mode_distributed_the_hospitals_learning_rate_and_momentum_act_on_the_server() -> None:
    training = TrainingConfig(learning_rate=0.5, momentum=0.9)
    distributed = PrivacyConfig(mode=PrivacyMode.DISTRIBUTED)
    weights = torch.ones(40, requires_grad=True)
    expected = walk_torch(torch.optim.SGD([weights], lr=0.5, momentum=0.9), weights, deltas())
    assert np.allclose(
        walk(strategy_for(AggregationConfig(), training, distributed, 40), deltas()), expected, atol=1e-5
    )
    local = strategy_for(AggregationConfig(), training, PrivacyConfig(), 40)
    assert np.allclose(walk(local, deltas()), 1 + np.sum(deltas(), axis=0), atol=1e-5)


def test_the_change_of_a_gradient_sum_is_a_step_down_the_mean_gradient() -> None:
    change = mean_change(np.array([4.0, -8.0]), 16)
    assert change.dtype == np.float32
    assert change.tolist() == [-0.25, 0.5]
