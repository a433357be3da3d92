import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.nn import functional

from client.per_record_gradients import record_gradients
from common.errors import ConfigError
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


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "cnn": (lambda: SmallCnn(classes=3, channels=2), (5, 2, 28, 28)),
    "strided": (strided, (5, 2, 18, 20)),
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


def test_a_grouped_convolution_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(ConfigError, match="grouped"):
        record_gradients(model, *batch((5, 2, 3, 3)))


def test_rows_that_were_not_kept_are_not_handed_out_as_if_there_were_none() -> None:
    with pytest.raises(ValueError, match="as_rows"):
        record_gradients(nn.Linear(4, 3), *batch((5, 4))).rows()
