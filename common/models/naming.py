"""How a model is named: one of the registry, a function of an installed package, or a head on a backbone from a file.

A run's section ``model`` says which it is (:class:`common.config.ModelConfig`). Its ``architecture`` is the same in one
string, which says everything that decides the model: the name of a model of the registry, or ::

    package.module:function@SHA-256
    backbone_linear@onnx/imagenet/512/SHA-256
    backbone_mlp@resnet18/imagenet/512/SHA-256

with the kind of backbone, the scale of its pixels, and how many features it gives. It imports no PyTorch, and nothing
of what it names.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from common.errors import ConfigError

SHA256 = r"[0-9a-f]{64}"

REGISTERED = r"[a-z][a-z0-9_]{0,63}"
"""A model of the registry."""

IN_PACKAGE = r"[A-Za-z][A-Za-z0-9_]{0,63}(?:\.[A-Za-z][A-Za-z0-9_]{0,63}){0,7}:[A-Za-z][A-Za-z0-9_]{0,63}"
"""A function of a package. Each part begins with a letter: what begins with an underline is not meant for others."""

BACKBONES = ("backbone_linear", "backbone_mlp")
"""The trainable heads on frozen features from a file."""

ONNX = "onnx"

Pixels = Literal["imagenet", "zero_one", "minus_one_one"]
"""How a backbone wants its pixels: each channel less ImageNet's mean over its deviation, 0 to 1, or -1 to 1."""

MOST_FEATURES = 65_536

RGB = 3

_OF_PACKAGE = re.compile(rf"({IN_PACKAGE})@({SHA256})")
_ON_BACKBONE = re.compile(
    rf"({'|'.join(BACKBONES)})@({REGISTERED})/({'|'.join(get_args(Pixels))})/([1-9][0-9]{{0,4}})/({SHA256})"
)


@dataclass(frozen=True)
class PackageModel:
    """A function of an installed package.

    Attributes:
        module: that holds the function.
        function: takes (classes, channels, image size) and returns a ``torch.nn.Module``.
        sha256: of the source of the whole package.
    """

    module: str
    function: str
    sha256: str

    @property
    def package(self) -> str:
        """The name of the package, which is the first part of the module's."""
        return self.module.partition(".")[0]

    @property
    def name(self) -> str:
        """The name as ``model.name`` has it."""
        return f"{self.module}:{self.function}"


@dataclass(frozen=True)
class BackboneModel:
    """A trainable head on the frozen features of a network from a file.

    Attributes:
        head: one of BACKBONES.
        kind: ``onnx``, or an architecture of torchvision whose weights the file holds.
        pixels: one of :data:`Pixels`.
        features: how many the network gives.
        sha256: of the file.
    """

    head: str
    kind: str
    pixels: str
    features: int
    sha256: str


def checked_name(name: str) -> str:
    """Return a value of ``model.name`` that has the form of a name.

    Raises:
        ValueError: it has not.
    """
    if not re.fullmatch(rf"{REGISTERED}|{IN_PACKAGE}", name):
        raise ValueError("must be a model of the registry, or package:function of an installed package")
    return name


def architecture(name: str, sha256: str, backbone: str, pixels: str, features: int) -> str:
    """Return the one string that says everything that decides a model."""
    if name in BACKBONES:
        return f"{name}@{backbone}/{pixels}/{features}/{sha256}"
    return f"{name}@{sha256}" if ":" in name else name


def from_outside(architecture: str) -> PackageModel | BackboneModel | None:
    """Read an architecture; None where it names no model from outside, but one of the registry or nothing.

    >>> from_outside("cnn") is None
    True
    >>> from_outside("lung_net.models:small@" + 64 * "0").package
    'lung_net'
    """
    match = _OF_PACKAGE.fullmatch(architecture)
    if match:
        module, _, function = match[1].partition(":")
        return PackageModel(module, function, match[2])
    match = _ON_BACKBONE.fullmatch(architecture)
    if match and int(match[4]) <= MOST_FEATURES:
        return BackboneModel(match[1], match[2], match[3], int(match[4]), match[5])
    return None


def backbone_width(features: int, channels: int) -> int:
    """Return the number of features of an image with this many colour channels.

    Raises:
        ConfigError: there are neither 1 nor 3 channels.
    """
    if channels not in (1, RGB):
        raise ConfigError(f"features of a backbone need grey or RGB images, got {channels} channels")
    return features
