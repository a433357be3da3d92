"""The models a run can name in ``model.name``."""

from collections.abc import Callable

import torch
from torch import nn

from common.errors import ConfigError
from common.models.cnn import SmallCnn

_BUILDERS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "cnn": lambda classes, channels, _: SmallCnn(classes, channels),
}


def names() -> tuple[str, ...]:
    """Return the names that ``model.name`` may have."""
    return tuple(_BUILDERS)


def build(name: str, classes: int, channels: int, image_size: int, seed: int) -> nn.Module:
    """Return a fresh model; its initial weights depend on the arguments alone.

    Args:
        name: one of :func:`names`.
        classes: number of logits.
        channels: of an image.
        image_size: pixels on a side.
        seed: of the initial weights.

    Raises:
        ConfigError: there is no such model.
    """
    builder = _builder(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return builder(classes, channels, image_size)


def input_shape(name: str, records: int, channels: int, image_size: int) -> tuple[int, ...]:
    """Return the shape of what a model takes, for ``records`` records.

    Raises:
        ConfigError: there is no such model.
    """
    _builder(name)
    return (records, channels, image_size, image_size)


def parameter_count(name: str, classes: int, channels: int, image_size: int) -> int:
    """Return d, the length of the model as a flat vector, without allocating it.

    Raises:
        ConfigError: there is no such model.
    """
    with torch.device("meta"):
        model = build(name, classes, channels, image_size, seed=0)
    return sum(parameter.numel() for parameter in model.parameters())


def _builder(name: str) -> Callable[[int, int, int], nn.Module]:
    builder = _BUILDERS.get(name)
    if builder is None:
        raise ConfigError(f"model.name must be one of {', '.join(_BUILDERS)}, got {name!r}")
    return builder
