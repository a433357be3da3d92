"""Which models of a hospital's own can be trained with privacy, and which are refused by name."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from client.own_models import RECORDS, GradientMethod, fit_to_train, gradient_method, layers_of
from client.per_record_gradients import ByRecord, record_gradients
from client.training import TrainingData, train_locally
from common.config import PrivacyUnit, TrainingConfig
from common.errors import ConfigError
from common.models.flat import flat_parameters
from common.privacy.mechanism import NoisySteps
from common.privacy.schedule import Schedule

SHAPE = (RECORDS, 1, 28, 28)
CLASSES = 3


def known() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 5, stride=4), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, CLASSES))


def unknown() -> nn.Module:
    """LayerNorm, a linear layer on rows of a record, and a layer that is used twice."""
    shared = nn.Linear(28, 28)
    return nn.Sequential(shared, nn.LayerNorm(28), nn.Tanh(), shared, nn.Flatten(), nn.Linear(784, CLASSES))


class Attention(nn.Module):
    """Rows of an image attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(28, 4, batch_first=True)
        self.place = nn.Parameter(torch.zeros(28, 28))
        self.head = nn.Linear(28, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        rows = x[:, 0] + self.place
        attended, _ = self.attention(rows, rows, rows, need_weights=False)
        scores: Tensor = self.head(attended.mean(dim=1))
        return scores


class Mixing(nn.Module):
    """The mean of the batch is taken off, as BatchNorm does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(784, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        scores: Tensor = self.linear(flat - flat.mean(dim=0))
        return scores


class ByChance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(784, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(x.flatten(1) + torch.rand(1))
        return scores


def rows_alone(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    rows = []
    for record in range(len(labels)):
        model.zero_grad(set_to_none=True)
        functional.cross_entropy(model(inputs[record : record + 1]), labels[record : record + 1]).backward()  # type: ignore[no-untyped-call]
        rows.append(torch.cat([parameter.grad.reshape(-1).clone() for parameter in model.parameters()]))  # type: ignore[union-attr]
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("make", "method"),
    [(known, GradientMethod.LAYERS), (unknown, GradientMethod.FUNCTORCH), (Attention, GradientMethod.FUNCTORCH)],
)
def test_each_records_gradient_is_that_of_a_loop_by_the_fastest_method(
    make: Callable[[], nn.Module], method: GradientMethod
) -> None:
    torch.manual_seed(2)
    model = make()
    before = flat_parameters(model)
    assert gradient_method(model, SHAPE, CLASSES, "own:model") is method
    assert (flat_parameters(model) == before).all()
    fit = fit_to_train(model, SHAPE, CLASSES, "own:model")
    inputs, labels = torch.randn(7, *SHAPE[1:]), torch.randint(0, CLASSES, (7,))
    expected = rows_alone(model, inputs, labels)
    gradients = record_gradients(fit, inputs, labels, as_rows=True)
    assert float((gradients.rows() - expected).norm()) < 1e-4 * float(expected.norm())
    assert bool((gradients.norms() >= expected.double().norm(dim=1) * (1 - 1e-5)).all())
    weights = torch.linspace(0, 1, 7, dtype=torch.float64)
    assert torch.allclose(gradients.weighted_sum(weights).double(), weights @ expected.double(), atol=1e-5)


@pytest.mark.parametrize("unit", list(PrivacyUnit))
def test_a_wrapped_model_trains_in_pieces_of_rows(unit: PrivacyUnit, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    model = fit_to_train(Attention(), SHAPE, CLASSES, "own:model")
    assert isinstance(model, ByRecord)
    data = TrainingData(
        torch.randint(0, 256, (40, *SHAPE[1:]), dtype=torch.uint8), torch.arange(40) % CLASSES, torch.arange(40) // 2
    )
    pieces: list[int] = []
    plain = record_gradients

    def seen(inner: nn.Module, inputs: Tensor, labels: Tensor, *, as_rows: bool = False) -> object:
        pieces.append(len(labels))
        return plain(inner, inputs, labels, as_rows=as_rows)

    monkeypatch.setattr("client.training.record_gradients", seen)
    monkeypatch.setattr("client.training.ROW_ELEMENTS", 8 * len(flat_parameters(model)))
    plan = NoisySteps(unit, Schedule(sample_rate=1.0, steps=1), max_grad_norm=0.5, noise_multiplier=1e-6)
    start = flat_parameters(model)
    training = TrainingConfig(learning_rate=1.0)
    units = data.count(unit)
    update = train_locally(model, start, data, training, plan, bytes, expected_units=units)
    assert sum(pieces) == 40
    assert max(pieces) <= 8
    assert 0 < float(torch.from_numpy(update.delta).norm()) <= 0.5 * (1 + 1e-3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Mixing, "must score each record by itself"),
        (ByChance, "must score each record by itself"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, CLASSES + 1)), r"must return 3 scores a record, \(3, 3\)"),
        (lambda: nn.Linear(5, CLASSES), r"must take images of \(1, 28, 28\), a batch of any size, got RuntimeError"),
    ],
)
def test_a_model_that_cannot_be_trained_with_privacy_is_refused_by_name(
    make: Callable[[], nn.Module], words: str
) -> None:
    with pytest.raises(ConfigError, match=f"own:model {words}"):
        gradient_method(make(), SHAPE, CLASSES, "own:model")


class InPlace(nn.Module):
    """A parameter that is made into a number on the way, which torch.func cannot do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(784, CLASSES)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(x.flatten(1)) * self.scale
        return scores if x.flatten()[0].item() < 2 else scores * 2


def test_a_model_whose_records_have_no_gradient_of_their_own_is_refused() -> None:
    with pytest.raises(ConfigError, match="every layer of own:model must have a gradient for each record"):
        gradient_method(InPlace(), SHAPE, CLASSES, "own:model")


def test_layers_are_listed_with_what_is_known_of_them() -> None:
    found = {layer.place: (layer.kind, layer.is_known) for layer in layers_of(Attention())}
    assert found["(the model)"] == ("Attention", False)
    assert found["head"] == ("Linear", True)
    assert found["attention.out_proj"] == ("NonDynamicallyQuantizableLinear", False)
