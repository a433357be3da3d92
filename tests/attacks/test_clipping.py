"""A lying server chooses the weights; still no unit moves a hospital's clipped sum by more than the clipping bound.

The relation is zero-out: a unit against an empty one in its place, which is how the privacy of training is stated. An
empty unit is made here by giving one unit the weight zero; that nothing else changes with its content is a test, too.
"""

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from client import training as module
from client.per_record_gradients import MOST_RECORDS, record_gradients
from client.training import TrainingData, noisy_gradient_sum, scores, train_locally
from common.config import PrivacyConfig, PrivacyMode, PrivacyUnit, TrainingConfig
from common.models import registry
from common.models.cnn import SmallCnn
from common.models.flat import flat_parameters
from common.privacy.distributed import DistributedMechanism
from common.privacy.mechanism import LocalNoise, NoisySteps, NoisySum, PlainSteps

torch.set_num_threads(1)

LARGEST = 3.4e38
CLASSES = 3
BOUND = 0.7


def ghost_convolution() -> nn.Module:
    """Its second convolution has few positions and wide filters, so that its norms come from Gram matrices."""
    return nn.Sequential(
        nn.Conv2d(1, 64, 3, stride=2),
        nn.GroupNorm(8, 64),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.Flatten(),
        nn.Linear(256, CLASSES),
    )


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=3), nn.GroupNorm(2, 8), nn.Conv2d(8, 16, 3, stride=2, groups=8), nn.SiLU(),
        nn.Conv2d(16, 8, 2, groups=2), nn.Flatten(), nn.Linear(32, CLASSES),
    )  # fmt: skip


def group_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(512, CLASSES)
    )


def hidden_layer() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 64), nn.Tanh(), nn.Linear(64, CLASSES))


MODELS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "ghost convolution": (ghost_convolution, True),
    "convolution as rows": (lambda: SmallCnn(classes=CLASSES, channels=1), True),
    "group norm": (group_norm, True),
    "depthwise": (depthwise, True),
    "hidden layer": (hidden_layer, False),
    "cached features": (lambda: nn.Linear(12, CLASSES), False),
}
"""What makes it, and whether it takes images."""


def huge(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.standard_normal(shape) * 10 ** rng.uniform(0, 38.5)


def denormal(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.standard_normal(shape) * 1e-43


def cancelling(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    """Pairs of large weights of opposite sign, with something small beside them."""
    signs = np.where(np.indices(shape).sum(axis=0) % 2, 1.0, -1.0)
    return signs * 10 ** rng.uniform(0, 12) + rng.standard_normal(shape)


def any_size(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.standard_normal(shape) * 10 ** rng.uniform(-45, 38.5)


def single_huge(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    weights = rng.standard_normal(shape) * 0.1
    weights.flat[rng.integers(weights.size)] = rng.choice((-LARGEST, LARGEST, 1e19, 1e-40))
    return weights


WEIGHTS = {make.__name__: make for make in (huge, denormal, cancelling, any_size, single_huge)}


def hostile(kind: str, weights: str, rng: np.random.Generator) -> nn.Module:
    """Return a model each of whose layers has honest or hostile weights, all of them finite."""
    torch.manual_seed(int(rng.integers(2**31)))
    model = MODELS[kind][0]()
    with torch.no_grad():
        for parameter in model.parameters():
            if rng.random() < 0.6:
                chosen = WEIGHTS[weights](tuple(parameter.shape), rng).clip(-LARGEST, LARGEST)
                parameter.copy_(torch.from_numpy(chosen.astype(np.float32)))
    return model


def records(kind: str, rng: np.random.Generator, number: int = 9, per_patient: int = 1) -> TrainingData:
    inputs: NDArray[np.uint8] | NDArray[np.float32]
    if MODELS[kind][1]:
        inputs = rng.integers(0, 256, (number, 1, 28, 28), dtype=np.uint8)
        inputs[0], inputs[1] = 127, 0
    else:
        inputs = rng.standard_normal((number, 12)).astype(np.float32)
        inputs[0] = 0
    return TrainingData.of(inputs, rng.integers(0, CLASSES, number), np.arange(number) // per_patient)


def clipped_sum_without(
    place: int | None, model: nn.Module, data: TrainingData, privacy: PrivacyConfig, monkeypatch: pytest.MonkeyPatch
) -> Tensor:
    """Return the clipped sum of all records with an empty unit in one place, if any is named."""
    seen = itertools.count()
    original = module._clipping

    def clipping(norms: Tensor, max_grad_norm: float) -> Tensor:
        factors = original(norms, max_grad_norm)
        numbers = torch.tensor([next(seen) for _ in range(len(factors))])
        return torch.where(numbers == place, 0.0, factors) if place is not None else factors

    with monkeypatch.context() as patched:
        patched.setattr(module, "_clipping", clipping)
        return module._clipped_sum(model, data, torch.arange(len(data)), privacy).double()


def assert_bounded(model: nn.Module, data: TrainingData, privacy: PrivacyConfig) -> float:
    """Assert the bound for every unit in turn; returns the farthest that one moved the sum, in C."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        whole = clipped_sum_without(None, model, data, privacy, monkeypatch)
        assert bool(torch.isfinite(whole).all())
        farthest = 0.0
        for unit in range(data.count(privacy.unit)):
            moved = (whole - clipped_sum_without(unit, model, data, privacy, monkeypatch)).norm()
            assert float(moved) <= privacy.max_grad_norm
            farthest = max(farthest, float(moved) / privacy.max_grad_norm)
    return farthest


def cancelling_resnet18(large: float, scale: float) -> nn.Module:
    """Return a ResNet-18 whose gradients in the last 1 x 1 convolution are large, of opposite sign, and all but cancel.

    That layer's inputs are ``large`` and nearly equal at all positions. A difference filter in the block behind it
    makes the gradients of its output add up to zero over the positions, and a group norm multiplies them. All else is
    small, so that the record's norm is this layer's, and in float32 its Gram matrices cancel to zero or below. At
    30890c7 single records moved the sum by up to 6.8e12 and 6.8e7 times the bound with the two settings below.
    """
    model = registry.build("resnet18", 2, 1, 64, seed=1)
    named = dict(model.named_parameters())
    with torch.no_grad():
        named["layer3.1.bn2.bias"].fill_(large)
        for name in ("layer4.0.conv2", "layer4.0.bn2", "layer4.0.downsample.0", "layer4.1.conv1", "layer4.1.conv2"):
            named[f"{name}.weight"].zero_()
        for name in ("layer4.0.bn2.bias", "layer4.1.bn1.weight", "fc.weight", "fc.bias"):
            named[name].zero_()
        named["layer4.0.downsample.1.weight"].fill_(scale)
        named["layer4.0.downsample.1.bias"].fill_(1e-20)
        named["layer4.1.conv1.weight"][0, 0, 1] = torch.tensor([-1e3, 0.0, 1e3])
        named["layer4.1.bn1.weight"][0] = 1e5
        named["layer4.1.bn1.bias"].fill_(1e-3)
        named["layer4.1.conv2.weight"][0, 0, 1, 1] = 1e-3
        named["layer4.1.bn2.bias"][0] = 1.0
        named["fc.weight"][0, 0] = 1.0
    return model


@pytest.mark.parametrize(("large", "scale"), [(1e4, 1.0), (1e5, 1e-5)])
def test_a_resnet_whose_ghost_norms_cancel_moves_no_sum_beyond_the_bound(large: float, scale: float) -> None:
    model = cancelling_resnet18(large, scale)
    rng = np.random.default_rng(0)
    data = TrainingData.of(rng.integers(0, 256, (4, 1, 64, 64), dtype=np.uint8), rng.integers(0, 2, 4), np.arange(4))
    privacy = PrivacyConfig(mode=PrivacyMode.LOCAL)
    gradients = record_gradients(model, module._as_input(data.inputs), data.labels, as_rows=True).rows().double()
    assert float(gradients.norm(dim=1).min()) > 1e6
    for record in range(4):
        moved = module._clipped_sum(model, data, torch.tensor([record]), privacy)
        assert float(moved.double().norm()) <= 1.0


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("kind", MODELS)
def test_no_unit_moves_the_sum_beyond_the_bound_whatever_the_weights(kind: str, weights: str) -> None:
    for seed in range(4):
        rng = np.random.default_rng((seed, 15))
        model = hostile(kind, weights, rng)
        assert_bounded(model, records(kind, rng), PrivacyConfig(max_grad_norm=BOUND))
        by_patient = PrivacyConfig(max_grad_norm=BOUND, unit=PrivacyUnit.PATIENT)
        assert_bounded(model, records(kind, rng, per_patient=3), by_patient)


@settings(max_examples=40)
@given(
    kind=st.sampled_from(sorted(MODELS)),
    weights=st.sampled_from(sorted(WEIGHTS)),
    bound=st.floats(1e-6, 1e6),
    per_patient=st.integers(1, 4),
    unit=st.sampled_from(PrivacyUnit),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_models_and_batches_keep_the_bound(
    kind: str, weights: str, bound: float, per_patient: int, unit: PrivacyUnit, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    model = hostile(kind, weights, rng)
    data = records(kind, rng, number=6, per_patient=per_patient)
    assert_bounded(model, data, PrivacyConfig(max_grad_norm=bound, unit=unit))


@pytest.mark.parametrize("kind", MODELS)
def test_an_honest_gradient_is_used_up_to_nearly_the_bound(kind: str) -> None:
    torch.manual_seed(1)
    model = MODELS[kind][0]()
    data = records(kind, np.random.default_rng(1))
    assert 0.998 < assert_bounded(model, data, PrivacyConfig(max_grad_norm=1e-3)) <= 1


def test_a_unit_moves_a_batch_of_many_pieces_by_no_more_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(12, CLASSES)
    data = records("cached features", np.random.default_rng(3), number=3 * MOST_RECORDS + 5)
    privacy = PrivacyConfig(max_grad_norm=1e-3)
    whole = clipped_sum_without(None, model, data, privacy, monkeypatch)
    for unit in (0, 63, 64, MOST_RECORDS, len(data) - 1):
        moved = (whole - clipped_sum_without(unit, model, data, privacy, monkeypatch)).norm()
        assert 0.99e-3 < float(moved) <= 1e-3


@pytest.mark.parametrize("bound", [1e-3, 0.7, 30.0])
def test_sums_lie_on_a_grid_so_that_pieces_add_up_exactly_in_any_order(bound: float) -> None:
    data = records("cached features", np.random.default_rng(4), number=MOST_RECORDS + 40)
    privacy = PrivacyConfig(max_grad_norm=bound)
    total = module._clipped_sum(nn.Linear(12, CLASSES), data, torch.arange(len(data)), privacy)
    steps = total / 2.0 ** (math.floor(math.log2(bound)) - module.SUM_BITS)
    assert total.dtype == torch.float64
    assert torch.equal(steps.round(), steps)


def hostile_models(kind: str, seed: int) -> Iterator[nn.Module]:
    for weights in WEIGHTS:
        yield hostile(kind, weights, np.random.default_rng((seed, len(weights))))


@pytest.mark.parametrize("kind", MODELS)
def test_what_one_record_holds_changes_no_bit_of_anothers_gradient(kind: str) -> None:
    rng = np.random.default_rng(5)
    data = records(kind, rng, number=7)
    inputs = module._as_input(data.inputs)
    other = inputs.clone()
    other[3] = torch.full_like(other[3], 1e38 if MODELS[kind][1] else math.nan)
    labels, other_labels = data.labels, data.labels.clone()
    other_labels[3] = (labels[3] + 1) % CLASSES
    rest = [0, 1, 2, 4, 5, 6]
    for model in hostile_models(kind, 5):
        for as_rows in (True, False):
            ones = record_gradients(model, inputs, labels, as_rows=as_rows)
            others = record_gradients(model, other, other_labels, as_rows=as_rows)
            assert torch.equal(ones.norms()[rest], others.norms()[rest])
            if as_rows:
                mine, theirs = (each.rows()[rest].numpy().view(np.uint32) for each in (ones, others))
                assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("kind", MODELS)
def test_norms_are_above_those_of_the_explicit_gradients(kind: str, weights: str) -> None:
    for seed in range(3):
        rng = np.random.default_rng((seed, 16))
        model, data = hostile(kind, weights, rng), records(kind, rng)
        inputs = module._as_input(data.inputs)
        for as_rows in (False, True):
            gradients = record_gradients(model, inputs, data.labels, as_rows=as_rows)
            norms = gradients.norms()
            if as_rows:
                exact = gradients.rows().double().norm(dim=1)
                finite = torch.isfinite(norms)
                assert bool((exact[finite] <= norms[finite]).all())
            for record in range(len(data)):
                alone = torch.zeros(len(data), dtype=torch.float64)
                if math.isfinite(float(norms[record])) and float(norms[record]) > 0:
                    alone[record] = 1 / norms[record]
                assert float(gradients.weighted_sum(alone).double().norm()) <= 1 + 1e-6


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("kind", MODELS)
def test_nothing_stops_and_all_that_leaves_is_finite(kind: str, weights: str) -> None:
    rng = np.random.default_rng(17)
    model, data = hostile(kind, weights, rng), records(kind, rng)
    start = flat_parameters(model)
    training = TrainingConfig(batch_size=4, sample_rate=0.5, learning_rate=1000.0, momentum=0.9, proximal_mu=1000.0)
    noisy = NoisySteps(PrivacyUnit.RECORD, LocalNoise(PrivacyConfig()).schedule(training), 1.0, 1.0)
    for plan in (PlainSteps(training.batch_size, training.local_epochs), noisy):
        for part in (data, data.emptied()):
            update = train_locally(model, start, part, training, plan, rng.bytes, expected_units=4.5)
            assert np.isfinite(update.delta).all()
            assert update.delta.dtype == np.float32
    mechanism = DistributedMechanism.fit(
        noise_multiplier=1.0,
        max_grad_norm=BOUND,
        dimension=len(start),
        hospitals=4,
        expected_units=36,
        colluders=0,
        tolerated_dropouts=1,
        modulus_bits=32,
    )
    for unit, part in itertools.product(PrivacyUnit, (data, data.emptied())):
        total = noisy_gradient_sum(model, start, part, NoisySum(unit, 0.5, mechanism), 4, rng.bytes).total
        assert total.shape == start.shape
    for scored in scores(model, start, data, data.emptied(), CLASSES):
        assert np.isfinite(scored).all()
        assert scored.shape[1] == CLASSES
        assert np.abs(scored).max(initial=0.0) <= module.LARGEST_LOGIT
