"""The models a run can name: the table :data:`MODELS`, from which help and error texts derive, and those from outside.

Everywhere here a ``name`` is what :attr:`common.config.ModelConfig.architecture` returns, so that a package's function
and a backbone's file come with their hash (``common/models/naming.py``). It imports no PyTorch, so that a configuration
can be checked where no model is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING

from common.errors import ConfigError
from common.models.naming import BACKBONES, BackboneModel, PackageModel, backbone_width, from_outside

if TYPE_CHECKING:
    from torch import nn

    from common.models.frozen import FrozenFeatures
    from common.models.replaced_layers import Replaced

SMALLEST_IMAGE = 28
"""Pixels on a side."""

FIVE_HALVINGS = 64
"""Pixels on a side that a network with five halvings needs."""


@dataclass(frozen=True)
class OnImages:
    """A model that is trained on images.

    Attributes:
        words: what it is, for help.
        make: (classes, channels) to the model.
        smallest: image that it takes, in pixels on a side.
    """

    words: str
    make: Callable[[int, int], nn.Module]
    smallest: int = SMALLEST_IMAGE


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


@dataclass(frozen=True)
class OfPackage:
    """A function of an installed package, of which nothing runs before its source's hash is compared.

    Attributes:
        named: the function, and the hash of the package.
    """

    named: PackageModel

    def make(self, classes: int, channels: int, image_size: int) -> tuple[nn.Module, tuple[Replaced, ...]]:
        """Return the model that the function makes, with what was replaced in it: see ``replaced_layers.py``.

        Raises:
            ConfigError: the package is missing, has another source, or makes no such model.
        """
        from common.models import package
        from common.models.replaced_layers import replace_layers, require_trainable

        made, replaced = replace_layers(package.make(self.named, classes, channels, image_size))
        require_trainable(made, self.named.name)
        return made, replaced


Entry = OnImages | OnFeatures | OfPackage


def _cnn(classes: int, channels: int) -> nn.Module:
    from common.models.cnn import SmallCnn

    return SmallCnn(classes, channels)


def _cnn_wide(classes: int, channels: int) -> nn.Module:
    from common.models.cnn import WIDE, SmallCnn

    return SmallCnn(classes, channels, widths=WIDE)


def _resnet18(classes: int, channels: int) -> nn.Module:
    from common.models.resnet import group_norm_resnet18

    return group_norm_resnet18(classes, channels)


def _densenet121(classes: int, channels: int) -> nn.Module:
    from common.models.deep import group_norm_densenet121

    return group_norm_densenet121(classes, channels)


def _efficientnet_b0(classes: int, channels: int) -> nn.Module:
    from common.models.deep import group_norm_efficientnet_b0

    return group_norm_efficientnet_b0(classes, channels)


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
def _efficientnet(variant: int = 0) -> FrozenFeatures:
    from common.models.efficientnet import efficientnet_features  # loads 13 to 25 MB of weights

    return efficientnet_features(variant)


@cache
def _imagenet_resnet() -> FrozenFeatures:
    from common.models.imagenet_resnet import resnet_features  # loads 45 MB of weights

    return resnet_features()


@cache
def _scattering_efficientnet() -> FrozenFeatures:
    from common.models.concatenated import Concatenated

    return Concatenated((_scattering(), _efficientnet()))


def _scattering_width(channels: int) -> int:
    from common.models.scattering import width_of

    return width_of(channels)


def _efficientnet_width(channels: int, variant: int = 0) -> int:
    from common.models.block_statistics import width_of
    from common.models.efficientnet import BLOCK_CHANNELS

    return width_of(BLOCK_CHANNELS[variant], channels)


def _scattering_efficientnet_width(channels: int) -> int:
    return _scattering_width(channels) + _efficientnet_width(channels)


def _imagenet_resnet_width(channels: int) -> int:
    from common.models.block_statistics import width_of
    from common.models.imagenet_resnet import BLOCK_CHANNELS

    return width_of(BLOCK_CHANNELS, channels)


MODELS: Mapping[str, OnImages | OnFeatures] = {
    "cnn": OnImages("a small convolutional network", _cnn),
    "cnn_wide": OnImages("the same, half as wide again, with twice the parameters", _cnn_wide),
    "resnet18": OnImages("torchvision's ResNet-18 with GroupNorm", _resnet18),
    "densenet121": OnImages("torchvision's DenseNet-121 with GroupNorm, from 64 pixels", _densenet121, FIVE_HALVINGS),
    "efficientnet_b0": OnImages(
        "torchvision's EfficientNet-B0 with GroupNorm, from 64 pixels", _efficientnet_b0, FIVE_HALVINGS
    ),
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
    "efficientnet_lite1_linear": OnFeatures(
        "a linear classifier on frozen EfficientNet-Lite1 features", partial(_efficientnet, 1),
        partial(_efficientnet_width, variant=1), _linear,
    ),
    "efficientnet_lite1_mlp": OnFeatures(
        "one hidden layer on frozen EfficientNet-Lite1 features", partial(_efficientnet, 1),
        partial(_efficientnet_width, variant=1), _mlp,
    ),
    "efficientnet_lite2_linear": OnFeatures(
        "a linear classifier on frozen EfficientNet-Lite2 features", partial(_efficientnet, 2),
        partial(_efficientnet_width, variant=2), _linear,
    ),
    "efficientnet_lite2_mlp": OnFeatures(
        "one hidden layer on frozen EfficientNet-Lite2 features", partial(_efficientnet, 2),
        partial(_efficientnet_width, variant=2), _mlp,
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
    """Check that a name is in :data:`MODELS`, or of a model from outside; that is not looked for.

    Raises:
        ConfigError: there is no such model.
    """
    _entry(name)


def build(name: str, classes: int, channels: int, image_size: int, seed: int) -> nn.Module:
    """Return the trainable model; its initial weights depend on the arguments alone.

    Args:
        name: of the model.
        classes: number of logits.
        channels: of an image.
        image_size: pixels on a side; see :func:`smallest_image`.
        seed: of the initial weights.

    Raises:
        ConfigError: there is no such model, or it cannot take such images.
    """
    return build_with_replaced(name, classes, channels, image_size, seed)[0]


def require_size(name: str, image_size: int) -> None:
    """Check that images are large enough for a model.

    Raises:
        ConfigError: they are not; names the smallest side.
    """
    smallest = smallest_image(name)
    if image_size < smallest:
        raise ConfigError(f"model.image_size must be at least {smallest} for model.name {name}, got {image_size}")


def build_with_replaced(
    name: str, classes: int, channels: int, image_size: int, seed: int
) -> tuple[nn.Module, tuple[Replaced, ...]]:
    """Do as :func:`build`, and return as well which layers of a package's model others stand in for."""
    entry = _entry(name)
    require_size(name, image_size)
    import torch  # It takes a second; whoever only checks a name does without it.

    width = entry.width(channels) if isinstance(entry, OnFeatures) else 0
    with torch.random.fork_rng(devices=[]):
        if isinstance(entry, OfPackage):
            torch.manual_seed(seed)
        else:  # All on the CPU. The line above notes its caller's stack for each kind of device, which takes longer.
            torch.default_generator.manual_seed(seed)
        match entry:
            case OnFeatures():
                from common.models.centred import CentredModel

                return CentredModel(entry.make(width, classes), width), ()
            case OnImages():
                return entry.make(classes, channels), ()
            case OfPackage():
                return entry.make(classes, channels, image_size)


def smallest_image(name: str) -> int:
    """Return how many pixels on a side an image must have.

    Raises:
        ConfigError: there is no such model.
    """
    entry = _entry(name)
    return entry.smallest if isinstance(entry, OnImages) else SMALLEST_IMAGE


def frozen_features(name: str) -> FrozenFeatures | None:
    """Return what turns images into a model's input, or None where it takes the images themselves.

    Raises:
        ConfigError: there is no such model, or its backbone's file is missing or is not accepted.
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
    entry = _entry(name)
    require_size(name, image_size)
    if isinstance(entry, OfPackage):  # Its function may look at the image's size, and is asked each time.
        return _parameters_in(build(name, classes, channels, image_size, seed=0))
    return _counted(name, entry, classes, channels)


@lru_cache(maxsize=64)
def _counted(name: str, entry: OnImages | OnFeatures, classes: int, channels: int) -> int:
    """Make a model without numbers, and count its parameters; ``entry`` is what the name stands for."""
    import torch

    if isinstance(entry, OnFeatures):
        entry.width(channels)  # Makes filters outside of the next line, where tensors have no numbers.
    size = entry.smallest if isinstance(entry, OnImages) else SMALLEST_IMAGE
    with torch.device("meta"):
        return _parameters_in(build(name, classes, channels, size, seed=0))


def _parameters_in(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _entry(name: str) -> Entry:
    entry = MODELS.get(name)
    if entry is not None:
        return entry
    match from_outside(name):
        case PackageModel() as named:
            return OfPackage(named)
        case BackboneModel() as named:
            return _on_backbone(named)
    others = f"{', '.join(MODELS)}, {', '.join(BACKBONES)} or package:function"
    raise ConfigError(f"model.name must be one of {others}, got {name!r}")


def _on_backbone(named: BackboneModel) -> OnFeatures:
    return OnFeatures(
        f"a head on the frozen features of a file ({named.kind})",
        partial(_backbone, named),
        partial(backbone_width, named.features),
        _linear if named.head == BACKBONES[0] else _mlp,
    )


@cache
def _backbone(named: BackboneModel) -> FrozenFeatures:
    from common.models.backbone import backbone_features

    return backbone_features(named)
