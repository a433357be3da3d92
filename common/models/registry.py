"""The models a run can name in ``model.name``: the table :data:`MODELS`, from which help and error texts derive.

It imports no PyTorch, so that a configuration can be checked where no model is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from common.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from common.models.frozen import FrozenFeatures

SMALLEST_IMAGE = 28
"""Pixels on a side."""


@dataclass(frozen=True)
class OnImages:
    """A model that is trained on images.

    Attributes:
        words: what it is, for help.
        make: (classes, channels) to the model.
    """

    words: str
    make: Callable[[int, int], nn.Module]


@dataclass(frozen=True)
class OnFeatures:
    """A model that is trained on frozen features.

    Attributes:
        words: what it is, for help.
        features: what turns images into the model's input.
        width: channels of an image to the number of features; known without the features' weights, which a server
            need not have.
        make: (features, classes) to the model's trainable head; before it the features are centred
            (:mod:`common.models.centred`).
    """

    words: str
    features: Callable[[], FrozenFeatures]
    width: Callable[[int], int]
    make: Callable[[int, int], nn.Module]


def _cnn(classes: int, channels: int) -> nn.Module:
    from common.models.cnn import SmallCnn

    return SmallCnn(classes, channels)


def _cnn_wide(classes: int, channels: int) -> nn.Module:
    from common.models.cnn import WIDE, SmallCnn

    return SmallCnn(classes, channels, widths=WIDE)


def _resnet18(classes: int, channels: int) -> nn.Module:
    from common.models.resnet import group_norm_resnet18

    return group_norm_resnet18(classes, channels)


def _linear(features: int, classes: int) -> nn.Module:
    from common.models.heads import linear_head

    return linear_head(features, classes)


def _mlp(features: int, classes: int) -> nn.Module:
    from common.models.heads import mlp_head

    return mlp_head(features, classes)


@cache
def _scattering() -> FrozenFeatures:
    from common.models.scattering import Scattering

    return Scattering()


@cache
def _efficientnet() -> FrozenFeatures:
    from common.models.efficientnet import efficientnet_features  # loads 13 MB of weights

    return efficientnet_features()


@cache
def _imagenet_resnet() -> FrozenFeatures:
    from common.models.imagenet_resnet import resnet_features  # loads 45 MB of weights

    return resnet_features()


@cache
def _scattering_efficientnet() -> FrozenFeatures:
    from common.models.concatenated import Concatenated

    return Concatenated((_scattering(), _efficientnet()))


def _scattering_width(channels: int) -> int:
    return _scattering().width(channels)


def _efficientnet_width(channels: int) -> int:
    return _efficientnet().width(channels)


def _scattering_efficientnet_width(channels: int) -> int:
    return _scattering_efficientnet().width(channels)


def _imagenet_resnet_width(channels: int) -> int:
    from common.models.block_statistics import width_of
    from common.models.imagenet_resnet import BLOCK_CHANNELS

    return width_of(BLOCK_CHANNELS, channels)


MODELS: Mapping[str, OnImages | OnFeatures] = {
    "cnn": OnImages("a small convolutional network", _cnn),
    "cnn_wide": OnImages("the same, half as wide again, with twice the parameters", _cnn_wide),
    "resnet18": OnImages("torchvision's ResNet-18 with GroupNorm", _resnet18),
    "scattering_linear": OnFeatures(
        "a linear classifier on scattering features, which need no weights", _scattering, _scattering_width, _linear
    ),
    "scattering_mlp": OnFeatures("one hidden layer on scattering features", _scattering, _scattering_width, _mlp),
    "efficientnet_linear": OnFeatures(
        "a linear classifier on frozen EfficientNet-Lite0 features", _efficientnet, _efficientnet_width, _linear
    ),
    "efficientnet_mlp": OnFeatures(
        "one hidden layer on frozen EfficientNet-Lite0 features", _efficientnet, _efficientnet_width, _mlp
    ),
    "scattering_efficientnet_linear": OnFeatures(
        "a linear classifier on scattering and frozen EfficientNet-Lite0 features together", _scattering_efficientnet,
        _scattering_efficientnet_width, _linear,
    ),
    "imagenet_resnet_linear": OnFeatures(
        "a linear classifier on frozen ResNet-18 features, from a file", _imagenet_resnet, _imagenet_resnet_width,
        _linear,
    ),
    "imagenet_resnet_mlp": OnFeatures(
        "one hidden layer on frozen ResNet-18 features, from a file", _imagenet_resnet, _imagenet_resnet_width, _mlp
    ),
}  # fmt: skip


def require(name: str) -> None:
    """Check that a name is in :data:`MODELS`.

    Raises:
        ConfigError: there is no such model.
    """
    _entry(name)


def build(name: str, classes: int, channels: int, image_size: int, seed: int) -> nn.Module:
    """Return the trainable model; its initial weights depend on the arguments alone.

    Args:
        name: a key of :data:`MODELS`.
        classes: number of logits.
        channels: of an image.
        image_size: pixels on a side; all models take any size from 28.
        seed: of the initial weights.

    Raises:
        ConfigError: there is no such model, or it cannot take such images.
    """
    entry = _entry(name)
    if image_size < SMALLEST_IMAGE:
        raise ConfigError(f"model.image_size must be at least {SMALLEST_IMAGE}, got {image_size}")
    import torch  # It takes a second; whoever only checks a name does without it.

    width = entry.width(channels) if isinstance(entry, OnFeatures) else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(entry, OnImages):
            return entry.make(classes, channels)
        from common.models.centred import CentredModel

        return CentredModel(entry.make(width, classes), width)


def frozen_features(name: str) -> FrozenFeatures | None:
    """Return what turns images into a model's input, or None where it takes the images themselves.

    Raises:
        ConfigError: there is no such model.
    """
    entry = _entry(name)
    return entry.features() if isinstance(entry, OnFeatures) else None


def is_on_features(name: str) -> bool:
    """Return whether a model is trained on frozen features; nothing is loaded for it.

    Raises:
        ConfigError: there is no such model.
    """
    return isinstance(_entry(name), OnFeatures)


def input_shape(name: str, records: int, channels: int, image_size: int) -> tuple[int, ...]:
    """Return the shape of what a model takes, for ``records`` records.

    Raises:
        ConfigError: there is no such model, or it cannot take such images.
    """
    entry = _entry(name)
    if isinstance(entry, OnFeatures):
        return (records, entry.width(channels))
    return (records, channels, image_size, image_size)


def parameter_count(name: str, classes: int, channels: int, image_size: int) -> int:
    """Return d, the length of the model as a flat vector.

    Raises:
        ConfigError: there is no such model, or it cannot take such images.
    """
    import torch

    input_shape(name, 1, channels, image_size)  # Makes filters outside of the next line, where tensors have no numbers.
    with torch.device("meta"):
        model = build(name, classes, channels, image_size, seed=0)
    return sum(parameter.numel() for parameter in model.parameters())


def _entry(name: str) -> OnImages | OnFeatures:
    entry = MODELS.get(name)
    if entry is None:
        raise ConfigError(f"model.name must be one of {', '.join(MODELS)}, got {name!r}")
    return entry
