"""The models a run can name in ``model.name``.

====================== ========================================================== ====================================
name                   what is trained                                            on
====================== ========================================================== ====================================
cnn                    a small convolutional network (the default)                images
cnn_wide               the same, half as wide again, with twice the parameters    images
resnet18               torchvision's ResNet-18 with GroupNorm                     images
scattering_linear      a linear classifier                                        scattering features, no weights
scattering_mlp         one hidden layer                                           scattering features, no weights
efficientnet_linear    a linear classifier                                        frozen EfficientNet-Lite0 features
efficientnet_mlp       one hidden layer                                           frozen EfficientNet-Lite0 features
imagenet_resnet_linear a linear classifier                                        frozen ResNet-18 features, from a file
imagenet_resnet_mlp    one hidden layer                                           frozen ResNet-18 features, from a file
====================== ========================================================== ====================================
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import nn

from common.errors import ConfigError
from common.models.block_statistics import width_of
from common.models.cnn import WIDE, SmallCnn
from common.models.frozen import FrozenFeatures
from common.models.heads import linear_head, mlp_head
from common.models.scattering import Scattering

SMALLEST_IMAGE = 28
"""Pixels on a side."""


@dataclass(frozen=True)
class _OnImages:
    """A model that is trained on images: (classes, channels) to the model."""

    make: Callable[[int, int], nn.Module]


@dataclass(frozen=True)
class _OnFeatures:
    """A model that is trained on frozen features: (features, classes) to the model.

    The width is known without the features' weights, which a server need not have.
    """

    features: Callable[[], FrozenFeatures]
    width: Callable[[int], int]
    make: Callable[[int, int], nn.Module]


def _resnet18(classes: int, channels: int) -> nn.Module:
    from common.models.resnet import group_norm_resnet18  # torchvision takes a second to import

    return group_norm_resnet18(classes, channels)


@cache
def _scattering() -> FrozenFeatures:
    return Scattering()


@cache
def _efficientnet() -> FrozenFeatures:
    from common.models.efficientnet import efficientnet_features  # loads 13 MB of weights

    return efficientnet_features()


@cache
def _imagenet_resnet() -> FrozenFeatures:
    from common.models.imagenet_resnet import resnet_features  # loads 45 MB of weights

    return resnet_features()


def _scattering_width(channels: int) -> int:
    return _scattering().width(channels)


def _efficientnet_width(channels: int) -> int:
    return _efficientnet().width(channels)


def _imagenet_resnet_width(channels: int) -> int:
    from common.models.imagenet_resnet import BLOCK_CHANNELS

    return width_of(BLOCK_CHANNELS, channels)


_MODELS: Mapping[str, _OnImages | _OnFeatures] = {
    "cnn": _OnImages(SmallCnn),
    "cnn_wide": _OnImages(partial(SmallCnn, widths=WIDE)),
    "resnet18": _OnImages(_resnet18),
    "scattering_linear": _OnFeatures(_scattering, _scattering_width, linear_head),
    "scattering_mlp": _OnFeatures(_scattering, _scattering_width, mlp_head),
    "efficientnet_linear": _OnFeatures(_efficientnet, _efficientnet_width, linear_head),
    "efficientnet_mlp": _OnFeatures(_efficientnet, _efficientnet_width, mlp_head),
    "imagenet_resnet_linear": _OnFeatures(_imagenet_resnet, _imagenet_resnet_width, linear_head),
    "imagenet_resnet_mlp": _OnFeatures(_imagenet_resnet, _imagenet_resnet_width, mlp_head),
}


def names() -> tuple[str, ...]:
    """Return the names that ``model.name`` may have."""
    return tuple(_MODELS)


def build(name: str, classes: int, channels: int, image_size: int, seed: int) -> nn.Module:
    """Return the trainable model; its initial weights depend on the arguments alone.

    Args:
        name: one of :func:`names`.
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
    width = entry.width(channels) if isinstance(entry, _OnFeatures) else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return entry.make(width, classes) if isinstance(entry, _OnFeatures) else entry.make(classes, channels)


def frozen_features(name: str) -> FrozenFeatures | None:
    """Return what turns images into a model's input, or None where it takes the images themselves.

    Raises:
        ConfigError: there is no such model.
    """
    entry = _entry(name)
    return entry.features() if isinstance(entry, _OnFeatures) else None


def input_shape(name: str, records: int, channels: int, image_size: int) -> tuple[int, ...]:
    """Return the shape of what a model takes, for ``records`` records.

    Raises:
        ConfigError: there is no such model, or it cannot take such images.
    """
    entry = _entry(name)
    if isinstance(entry, _OnFeatures):
        return (records, entry.width(channels))
    return (records, channels, image_size, image_size)


def parameter_count(name: str, classes: int, channels: int, image_size: int) -> int:
    """Return d, the length of the model as a flat vector.

    Raises:
        ConfigError: there is no such model, or it cannot take such images.
    """
    input_shape(name, 1, channels, image_size)  # Makes filters outside of the next line, where tensors have no numbers.
    with torch.device("meta"):
        model = build(name, classes, channels, image_size, seed=0)
    return sum(parameter.numel() for parameter in model.parameters())


def _entry(name: str) -> _OnImages | _OnFeatures:
    entry = _MODELS.get(name)
    if entry is None:
        raise ConfigError(f"model.name must be one of {', '.join(_MODELS)}, got {name!r}")
    return entry
