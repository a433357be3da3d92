import gc
import math
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.nn import functional

from client.per_record_gradients import CHUNK, MOST_RECORDS, norm_bounds, record_gradients, weighted_rows
from common.errors import ConfigError
from common.models import registry
from common.models.cnn import SmallCnn

torch.set_num_threads(1)


def strided() -> nn.Module:
    """Unequal strides, paddings and dilations, no biases; wide layers on few positions, so that ghosts are used."""
    return nn.Sequential(
        nn.Conv2d(2, 8, (3, 5), stride=(2, 1), padding=(0, 2), dilation=(2, 1), bias=False),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Conv2d(8, 64, 3, stride=2),
        nn.GroupNorm(4, 64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.Flatten(),
        nn.Linear(256, 3, bias=False),
    )


def grouped() -> nn.Module:
    """Depthwise convolutions, one with two filters a channel, and groups of several channels; odd geometry."""
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, groups=2, bias=False),
        nn.GroupNorm(4, 8),
        nn.SiLU(),
        nn.Conv2d(8, 8, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=8),
        nn.SiLU(),
        nn.Conv2d(8, 12, 3, stride=2, groups=4),
        nn.Conv2d(12, 24, 3, padding=2, groups=12, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "cnn": (lambda: SmallCnn(classes=3, channels=2), (5, 2, 28, 28)),
    "strided": (strided, (5, 2, 18, 20)),
    "grouped": (grouped, (5, 2, 18, 20)),
    "linear": (lambda: nn.Linear(11, 3), (5, 11)),
}


def batch(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator), torch.randint(0, 3, (shape[0],), generator=generator)


def opacus_rows(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return every record's gradient as Opacus computes it, (records, d)."""
    wrapped = GradSampleModule(model, loss_reduction="sum")
    functional.cross_entropy(wrapped(inputs), labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
    rows = torch.cat([parameter.grad_sample.flatten(1) for parameter in wrapped.parameters()], dim=1)
    wrapped.remove_hooks()
    return rows.detach()


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("as_rows", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_norms_and_sums_are_those_of_opacus(name: str, *, as_rows: bool) -> None:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make()
    inputs, labels = batch(shape)
    expected = opacus_rows(model, inputs, labels)
    ours = record_gradients(model, inputs, labels, as_rows=as_rows)
    weights = torch.tensor([1.0, 0.0, 0.3, 0.25, 2.0])
    exact = expected.double().norm(dim=1)
    assert (ours.norms() >= exact * (1 - 1e-5)).all()
    assert torch.allclose(ours.norms(), exact, rtol=0.01)
    assert torch.allclose(ours.weighted_sum(weights).float(), weights @ expected, rtol=1e-3, atol=1e-5)
    if as_rows:
        assert torch.allclose(ours.rows(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("as_rows", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_norms_and_sums_of_several_labels_are_those_of_opacus(name: str, *, as_rows: bool) -> None:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make()
    inputs, _ = batch(shape)
    labels = torch.tensor([[1, 0, 1], [0, -1, 0], [1, 1, -1], [0, 1, 0], [-1, 0, 1]])  # Below 0: not known.
    wrapped = GradSampleModule(model, loss_reduction="sum")
    scores, known = wrapped(inputs), labels >= 0
    functional.binary_cross_entropy_with_logits(scores[known], labels[known].float(), reduction="sum").backward()  # type: ignore[no-untyped-call]
    expected = torch.cat([parameter.grad_sample.flatten(1) for parameter in wrapped.parameters()], dim=1).detach()
    wrapped.remove_hooks()
    ours = record_gradients(model, inputs, labels, as_rows=as_rows)
    exact = expected.double().norm(dim=1)
    assert (ours.norms() >= exact * (1 - 1e-5)).all()
    assert torch.allclose(ours.norms(), exact, rtol=0.01)
    weights = torch.tensor([1.0, 0.0, 0.3, 0.25, 2.0])
    assert torch.allclose(ours.weighted_sum(weights).float(), weights @ expected, rtol=1e-3, atol=1e-5)


def test_a_record_has_the_same_gradient_whoever_shares_its_batch() -> None:
    torch.manual_seed(0)
    model = SmallCnn(classes=2, channels=1)
    inputs, labels = torch.randn(4, 1, 28, 28), torch.tensor([0, 1, 1, 0])
    together = record_gradients(model, inputs, labels, as_rows=True).rows()
    alone = record_gradients(model, inputs[2:3], labels[2:3], as_rows=True).rows()
    assert torch.allclose(together[2], alone[0], rtol=1e-4, atol=1e-6)


def test_a_backward_pass_leaves_nothing_for_the_cycle_collector() -> None:
    model = strided()
    inputs, labels = batch((5, 2, 18, 20))
    gc.collect()
    gc.disable()
    try:
        gradients = record_gradients(model, inputs, labels)
        gone = weakref.ref(gradients)
        before = gc.get_count()[0]
        del gradients
        assert gone() is None
        assert gc.get_count()[0] <= before
    finally:
        gc.enable()


class _Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(4, 4), _Scale(), nn.Linear(4, 3)),
        nn.Sequential(shared := nn.Linear(4, 4), nn.Tanh(), shared, nn.Linear(4, 3)),
        nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3)),
    ],
)
def test_a_parameter_that_is_not_in_exactly_one_supported_layer_is_refused(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match="each parameter in one layer"):
        record_gradients(model, *batch((5, 4)))


@pytest.mark.long
@pytest.mark.parametrize("as_rows", [False, True])
@pytest.mark.parametrize("name", ["densenet121", "efficientnet_b0"])
def test_the_gradients_of_deep_networks_are_those_of_each_record_alone(name: str, *, as_rows: bool) -> None:
    model = registry.build(name, 3, 1, 64, seed=4)
    inputs, labels = batch((3, 1, 64, 64))
    alone = []
    for record in range(3):
        model.zero_grad()
        functional.cross_entropy(model(inputs[record : record + 1]), labels[record : record + 1]).backward()  # type: ignore[no-untyped-call]
        alone.append(torch.cat([parameter.grad.reshape(-1).clone() for parameter in model.parameters()]))  # type: ignore[union-attr]
    expected = torch.stack(alone)
    ours = record_gradients(model, inputs, labels, as_rows=as_rows)
    exact = expected.double().norm(dim=1)
    assert torch.allclose(ours.norms(), exact, rtol=0.01)
    assert bool((ours.norms() >= exact * (1 - 1e-4)).all())
    weights = torch.tensor([1.0, 0.0, 0.3])
    off = ours.weighted_sum(weights.double()).double() - (weights @ expected).double()
    assert float(off.norm()) < 1e-4 * float(exact.max())
    if as_rows:
        assert float((ours.rows() - expected).norm()) < 1e-4 * float(exact.max())


def test_a_convolution_whose_padding_is_a_word_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding="same"), nn.Flatten(), nn.Linear(36, 3))
    with pytest.raises(ConfigError, match="padding in pixels, got 'same'"):
        record_gradients(model, *batch((5, 2, 3, 3)))


def test_a_linear_layer_on_several_rows_of_a_record_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(ConfigError, match="one row a record, got 3 axes"):
        record_gradients(model, *batch((5, 6, 4)))


def test_a_group_norm_without_parameters_is_computed_as_it_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4, affine=False), nn.Flatten(), nn.Linear(4, 3))
    inputs, labels = batch((5, 2, 3, 3))
    rows = record_gradients(model, inputs, labels, as_rows=True).rows()
    model.zero_grad()
    functional.cross_entropy(model(inputs), labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
    whole = torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()])  # type: ignore[union-attr]
    assert torch.allclose(rows.sum(dim=0), whole, atol=1e-5)


def test_rows_that_were_not_kept_are_not_handed_out_as_if_there_were_none() -> None:
    with pytest.raises(ValueError, match="as_rows"):
        record_gradients(nn.Linear(4, 3), *batch((5, 4))).rows()


def test_norm_bounds_hold_for_numbers_of_any_size_and_are_close() -> None:
    rng = np.random.default_rng(0)
    for length in (1, 5, 256, 257, 1000):
        sizes = 10 ** rng.uniform(-45, 12, (200, 1)) * 10 ** rng.uniform(-3, 0, (200, length))
        rows = torch.from_numpy((rng.standard_normal((200, length)) * sizes).astype(np.float32))
        exact, bounds = rows.double().norm(dim=1), norm_bounds(rows)
        assert bool((bounds >= exact).all())
        assert bool((bounds <= exact * (1 + 2.0**-14) + 2.0**-62 * length**0.5).all())


def test_what_is_not_finite_or_too_large_has_no_bound() -> None:
    rows = torch.zeros(5, 300)
    rows[0, 7], rows[1, 299], rows[2, 0], rows[3, 0] = math.nan, math.inf, 2e15, 3e38
    assert norm_bounds(rows).isinf().tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("first", [1e-30, 1e-42])
def test_the_norm_of_a_layer_whose_inputs_underflow_when_squared_is_bounded(first: float) -> None:
    """In float32 the squares of what the second layer sees are 0, and so was its norm."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 3, bias=False))
    with torch.no_grad():
        for weight, size in zip(model.parameters(), (first, 1.0, 1e14), strict=True):
            weight.copy_(torch.linspace(1, 2, weight.numel()).view_as(weight) * size)
    inputs, labels = batch((5, 4))
    ghosts = record_gradients(model, inputs, labels)
    weights = 1 / ghosts.norms()
    assert float(ghosts.weighted_sum(torch.where(torch.arange(5) == 2, weights, 0.0)).double().norm()) <= 1
    rows = record_gradients(model, inputs, labels, as_rows=True).rows().double()
    assert bool((rows.norm(dim=1) <= ghosts.norms()).all())


def opposed(pull: float) -> nn.Module:
    """Two positions of a ghost layer whose output gradients are opposite in sign."""
    model = nn.Sequential(nn.Conv2d(64, 64, 1, bias=False), nn.Flatten(), nn.Linear(128, 3, bias=False))
    convolution, head = model.parameters()
    with torch.no_grad():
        convolution.mul_(1e-3)
        pulls = torch.linspace(1, 2, 64)[:, None] * torch.tensor([pull, -pull])
        head.copy_(torch.outer(torch.tensor([1.0, -1.0, 0.0]), pulls.reshape(-1)))
    return model


@pytest.mark.parametrize(("size", "pull"), [(1e-25, 1e30), (1e-40, 1e37), (1e-3, 1e3), (1e12, 1e-12)])
def test_ghost_norms_are_exact_for_numbers_whose_products_are_beyond_float32(size: float, pull: float) -> None:
    torch.manual_seed(3)
    model = opposed(pull)
    inputs, labels = torch.randn(4, 64, 1, 2) * size, torch.tensor([0, 1, 2, 0])
    norms = record_gradients(model, inputs, labels).norms()
    exact = record_gradients(model, inputs, labels, as_rows=True).rows().double().norm(dim=1)
    assert torch.allclose(norms, exact, rtol=1e-3)


def test_a_ghost_norm_is_never_below_a_thousandth_of_the_sizes_that_cancel() -> None:
    """The weighted sum is exact enough because of this, even where float64 would cancel, too."""
    model = opposed(1e6)
    inputs, labels = torch.ones(1, 64, 1, 2), torch.tensor([1])
    convolution, head = model.parameters()
    with torch.no_grad():
        convolution.zero_()
    residual = torch.tensor([1.0, -2.0, 1.0]) / 3
    of_output = (residual @ head).view(64, 2).detach()
    sizes = float(of_output.double().norm(dim=0).sum()) * 8
    assert float(record_gradients(model, inputs, labels).norms()) >= 0.9999e-3 * sizes


def test_a_record_of_weight_zero_adds_nothing_even_where_it_is_not_finite() -> None:
    model = strided()
    inputs, labels = batch((5, 2, 18, 20))
    weights = torch.tensor([1.0, 0.5, 0.0, 0.0, 0.25], dtype=torch.float64)
    expected = record_gradients(model, inputs, labels).weighted_sum(weights)
    inputs[2], inputs[3] = math.nan, 3e38
    gradients = record_gradients(model, inputs, labels)
    assert gradients.norms()[2:4].isinf().all()
    assert torch.equal(gradients.weighted_sum(weights), expected)


def test_more_records_than_a_sum_is_exact_for_are_refused() -> None:
    rows = torch.zeros(MOST_RECORDS + 1, 4)
    weights = torch.zeros(len(rows), dtype=torch.float64)
    with pytest.raises(ValueError, match=f"at most {MOST_RECORDS} rows"):
        weighted_rows(weights, rows)
    gradients = record_gradients(nn.Linear(4, 3), rows, torch.zeros(len(rows), dtype=torch.int64))
    with pytest.raises(ValueError, match=f"at most {MOST_RECORDS} records"):
        gradients.weighted_sum(weights)


@pytest.mark.parametrize("records", [CHUNK - 1, CHUNK, CHUNK + 1, MOST_RECORDS])
def test_sums_in_chunks_are_the_sums_of_all(records: int) -> None:
    rows = torch.randn(records, 300, generator=torch.Generator().manual_seed(2))
    weights = torch.linspace(0, 1, records, dtype=torch.float64)
    assert torch.allclose(weighted_rows(weights, rows).double(), weights @ rows.double(), atol=1e-4)
