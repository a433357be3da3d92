"""Whether a model that hospitals bring themselves can be trained with privacy, found out before a round asks for it.

A package's source was accepted by the hospital's own people, so this looks for mistakes, not for malice: it tries the
model on three made-up records, and no record of the hospital is read. What is found depends on the model alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.per_record_gradients import ByRecord, record_gradients
from common.errors import ConfigError

RECORDS = 3
"""Made-up records that a model is tried on: the least that have a neighbour on each side."""

_TOLERANCE = 1e-3
"""The share of a norm, of a gradient or a score, by which two computations may differ. Float32 in another order loses
far less, and a mixed batch far more."""

_STIR = 0.05
"""The deviation of what is added to the initial weights, so that a layer that begins at zero is tried, too."""

_SEED = 1

_NO_GRADIENT = (ConfigError, RuntimeError, ValueError, TypeError, NotImplementedError)
"""What a method raises for a model that it cannot take."""


class GradientMethod(StrEnum):
    """How every record's gradient is formed."""

    LAYERS = "layers"
    """Computed by the layers of ``client/per_record_gradients.py``, all at once."""
    FUNCTORCH = "functorch"
    """Computed by ``torch.func``, which runs the model on each record by itself: any layer, but slower."""


@dataclass(frozen=True)
class LayerGradients:
    """One layer with parameters of its own, and whether the fast method knows it."""

    place: str
    kind: str
    parameters: int
    is_known: bool


def fit_to_train(model: nn.Module, shape: tuple[int, ...], classes: int, name: str) -> nn.Module:
    """Return the model, wrapped where only ``torch.func`` can form its records' gradients.

    Args:
        model: as the registry builds it.
        shape: of the inputs of RECORDS records.
        classes: number of logits.
        name: of the model, for errors.

    Raises:
        ConfigError: it gives no score for each class, mixes the records of a batch, or has no gradient of each record.
    """
    return model if gradient_method(model, shape, classes, name) is GradientMethod.LAYERS else ByRecord(model)


def gradient_method(model: nn.Module, shape: tuple[int, ...], classes: int, name: str) -> GradientMethod:
    """Return the fastest method whose gradients are those of each record alone; arguments as :func:`fit_to_train`."""
    kept = [parameter.detach().clone() for parameter in model.parameters()]
    was_training = model.training
    try:
        generator = torch.Generator().manual_seed(_SEED)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=_STIR)
        inputs = torch.rand(shape, generator=generator) * 2 - 1
        labels = torch.arange(RECORDS) % classes
        _check_scores(model, inputs, classes, name)
        model.train()
        alone = torch.cat([_gradient(model, *record) for record in _one_by_one(inputs, labels)])
        for method, rows in _METHODS.items():
            if _agrees(rows, model, inputs, labels, alone):
                return method
    finally:
        model.train(was_training)
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for parameter, before in zip(model.parameters(), kept, strict=True):
                parameter.copy_(before)
    raise ConfigError(
        f"every layer of {name} must have a gradient for each record, and neither the known layers nor torch.func give "
        "them; ./confide model check names the layers"
    )


def layers_of(model: nn.Module) -> tuple[LayerGradients, ...]:
    """Return each layer that has parameters of its own which training changes."""
    found = []
    for place, layer in model.named_modules():
        own = sum(each.numel() for each in layer.parameters(recurse=False) if each.requires_grad)
        if own:
            is_known = type(layer) in (nn.Conv2d, nn.Linear, nn.GroupNorm)
            found.append(LayerGradients(place or "(the model)", type(layer).__name__, own, is_known))
    return tuple(found)


def _check_scores(model: nn.Module, inputs: Tensor, classes: int, name: str) -> None:
    """Refuse a model whose scores of a record depend on the others, in training or out of it."""
    for training in (True, False):
        model.train(training)
        try:
            with torch.no_grad():
                together = model(inputs)
                alone = [model(inputs[record : record + 1]) for record in range(RECORDS)]
        except Exception as error:  # noqa: BLE001 - a package of others may raise anything
            raise ConfigError(
                f"{name} must take images of {tuple(inputs.shape[1:])}, a batch of any size, got {type(error).__name__}"
            ) from None
        if not isinstance(together, Tensor) or together.shape != (RECORDS, classes):
            shape = tuple(together.shape) if isinstance(together, Tensor) else type(together).__name__
            raise ConfigError(f"{name} must return {classes} scores a record, {(RECORDS, classes)}, got {shape}")
        if not _is_close(together, torch.cat(alone)):
            raise ConfigError(
                f"{name} must score each record by itself; its scores change with the other records of a batch, or by "
                "chance"
            )


def _one_by_one(inputs: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(inputs[record : record + 1], labels[record : record + 1]) for record in range(len(labels))]


def _gradient(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return one record's gradient by what training changes, as autograd forms it, (1, trained parameters)."""
    model.zero_grad(set_to_none=True)
    functional.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
    parts = [
        torch.zeros(parameter.numel()) if parameter.grad is None else parameter.grad.reshape(-1)
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    return torch.cat(parts)[None]


def _by_layers(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return record_gradients(model, inputs, labels, as_rows=True).rows()


def _by_functorch(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return record_gradients(ByRecord(model), inputs, labels, as_rows=True).rows()


_METHODS: dict[GradientMethod, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    GradientMethod.LAYERS: _by_layers,
    GradientMethod.FUNCTORCH: _by_functorch,
}


def _agrees(
    rows: Callable[[nn.Module, Tensor, Tensor], Tensor],
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    alone: Tensor,
) -> bool:
    try:
        found = rows(model, inputs, labels)
    except _NO_GRADIENT:
        return False
    return _is_close(found.detach(), alone)


def _is_close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    return float((found - expected).norm()) <= _TOLERANCE * float(expected.norm()) + _TOLERANCE**2
