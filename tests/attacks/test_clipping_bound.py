"""A model crafted so that float32 hides how large one record's gradient is: the clipping bound holds all the same.

At 30890c7 the norm came from Gram matrices in float32, which such a model makes cancel: in the first trials below one
record moved the clipped sum by 19, 25 thousand, 26 million and 3e13 times the bound; and where numbers overflowed, the
sum of the whole batch was undefined (in 7 of the 24 trials with random weights).
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from client.per_record_gradients import record_gradients
from client.training import TrainingData, _clipped_sum, noisy_gradient_sum
from common.config import PrivacyConfig, PrivacyMode, PrivacyUnit
from common.models.flat import flat_parameters, share_parameters
from common.models.heads import linear_head
from common.models.registry import build
from common.privacy.distributed import DistributedMechanism
from common.privacy.mechanism import NoisySum

BOUND = 1.0
CHANNELS = 64
LARGEST = 3.4e38

torch.set_num_threads(1)


class Cancelling(nn.Module):
    """Two output positions that see nearly the same patch and pull the filters in opposite directions."""

    def __init__(self, generator: torch.Generator, pull: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False)
        self.head = nn.Linear(2 * CHANNELS, 2, bias=False)
        direction = torch.randn(CHANNELS, generator=generator)
        with torch.no_grad():
            self.conv.weight.copy_(1e-3 * torch.randn(self.conv.weight.shape, generator=generator))
            opposed = torch.stack([direction, -direction], dim=1).reshape(-1)
            self.head.weight.copy_(pull * torch.stack([opposed, -opposed]))

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.conv(x).flatten(1)
        return functional.linear(hidden, self.head.weight)


def influence(model: nn.Module, data: TrainingData, unit: PrivacyUnit = PrivacyUnit.RECORD) -> float:
    """Return how far the first unit moves the clipped sum of all."""
    privacy = PrivacyConfig(mode=PrivacyMode.LOCAL, max_grad_norm=BOUND, unit=unit)
    everyone = torch.arange(len(data))
    others = everyone[data.units(unit) != data.units(unit)[0]]
    share_parameters(model, torch.from_numpy(flat_parameters(model)))
    moved = _clipped_sum(model, data, everyone, privacy) - _clipped_sum(model, data, others, privacy)
    return float(moved.double().norm())


def features(inputs: Tensor) -> TrainingData:
    """Wrap inputs that a convolution takes as they are, as cached features are taken."""
    labels = torch.arange(len(inputs)) % 2
    return TrainingData(inputs, labels, torch.arange(len(inputs)))


@pytest.mark.parametrize("pull", [1e3, 1e6, 1e9, 1e15])
def test_gram_matrices_that_cancel_hide_no_record(pull: float) -> None:
    """A ghost norm of two opposed terms of size G² L² is off by u G² L², which may be more than it is."""
    worst = 0.0
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        model = Cancelling(generator, pull)
        patch = torch.randn(4, CHANNELS, 1, 1, generator=generator)
        apart = 10.0 ** -float(torch.rand((), generator=generator) * 5)
        inputs = torch.cat([patch, patch + apart * torch.randn(patch.shape, generator=generator)], dim=3)
        worst = max(worst, influence(model, features(inputs.float())))
    assert worst <= BOUND


@pytest.mark.parametrize(("name", "seeds"), [("cnn", 12), ("resnet18", 6)])
def test_no_weights_up_to_the_largest_let_a_record_through(name: str, seeds: int) -> None:
    worst = 0.0
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        model = build(name, 2, 1, 28, seed)
        flat = flat_parameters(model)
        scale = 10.0 ** random.uniform(-3, math.log10(LARGEST) if seed % 2 else 4)
        part = random.random(len(flat)) < random.uniform(0.001, 1)
        with np.errstate(over="ignore"):
            flat = np.clip(np.where(part, flat * scale, flat), -LARGEST, LARGEST).astype(np.float32)
        share_parameters(model, torch.from_numpy(flat))
        images = torch.from_numpy(random.integers(0, 256, (4, 1, 28, 28), np.uint8))
        worst = max(worst, influence(model, features(images)))
    assert worst <= BOUND


@pytest.mark.parametrize("unit", PrivacyUnit)
def test_a_unit_whose_gradient_overflows_adds_nothing_and_spoils_no_other(unit: PrivacyUnit) -> None:
    model = linear_head(8, classes=2)
    flat = flat_parameters(model)
    inputs = torch.full((6, 8), 0.01)
    inputs[0] = 3e38
    data = TrainingData(inputs, torch.arange(6) % 2, torch.arange(6))
    share_parameters(model, torch.from_numpy(flat))
    privacy = PrivacyConfig(mode=PrivacyMode.LOCAL, max_grad_norm=BOUND, unit=unit)
    with_it = _clipped_sum(model, data, torch.arange(6), privacy)
    without = _clipped_sum(model, data, torch.arange(1, 6), privacy)
    assert torch.isfinite(with_it).all()
    torch.testing.assert_close(with_it, without, rtol=0, atol=1e-6)


def test_in_mode_distributed_a_unit_that_overflows_is_zero_and_the_others_are_whole() -> None:
    model = linear_head(8, classes=2)
    flat = flat_parameters(model)
    mechanism = DistributedMechanism(1.0, BOUND, 2**12, len(flat), 0, 1)
    inputs = torch.full((6, 8), 0.01)
    inputs[0] = 3e38
    data = TrainingData(inputs, torch.arange(6) % 2, torch.arange(6))
    plan = NoisySum(PrivacyUnit.RECORD, 1.0, mechanism)

    def total(part: TrainingData) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        random = np.random.default_rng(0)
        return noisy_gradient_sum(model, flat, part, plan, 3, random.bytes).total

    without = TrainingData(inputs[1:], data.labels[1:], torch.arange(5))
    np.testing.assert_array_equal(total(data), total(without))


def test_the_bound_costs_ordinary_models_next_to_nothing() -> None:
    """Clipped a little more than the exact norm asks for: by the margin, and less than a tenth in ghost layers."""
    for name in ("cnn", "resnet18"):
        model = build(name, 2, 1, 28, 1)
        share_parameters(model, torch.from_numpy(flat_parameters(model)))
        images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 1, 28, 28), np.uint8))
        moved = influence(model, features(images))
        assert 0.9 * BOUND < moved <= BOUND


@pytest.mark.parametrize("small", [1e-21, 1e-23, 1e-30, 1e-38])
def test_small_inputs_that_meet_large_gradients_are_not_lost_in_squares_that_underflow(small: float) -> None:
    width = 25_000
    model = nn.Linear(width, 2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.weight.zero_()
    inputs = torch.full((3, width), small)
    data = features(inputs)
    assert influence(model, data) <= BOUND
    ghost = Cancelling(generator, 1e15)
    patches = small * torch.randn(4, CHANNELS, 1, 2, generator=generator)
    assert influence(ghost, features(patches)) <= BOUND
    exact = record_gradients(ghost, patches, torch.zeros(4, dtype=torch.int64), as_rows=True).rows().double()
    found = record_gradients(ghost, patches, torch.zeros(4, dtype=torch.int64)).norms()
    assert (found >= exact.norm(dim=1) * (1 - 1e-6)).all()
