"""Layers that training with privacy cannot have, and what stands in their place.

BatchNorm mixes the records of a batch, so that no single record's influence could be bounded, and its running averages
are buffers outside the private gradient. GroupNorm (Wu and He 2018, arXiv:1803.08494) reads one record at a time.
Layers that drop something at random are left out: the noise regularises enough, and a round without privacy stays a
function of its seed.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torchvision.ops import StochasticDepth

from common.errors import ConfigError

GROUPS = 32
"""As Wu and He recommend; fewer where the channels cannot be divided by it."""

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_RANDOM = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, StochasticDepth)


@dataclass(frozen=True)
class Replaced:
    """One layer of a model that another stands in for.

    Attributes:
        place: of the layer in the model, such as ``features.norm0``.
        before: the kind of layer that was there.
        after: what is there now, in words.
    """

    place: str
    before: str
    after: str


def replace_layers(model: nn.Module) -> tuple[nn.Module, tuple[Replaced, ...]]:
    """Replace BatchNorm by GroupNorm and random dropping by nothing, in place.

    Returns:
        The model (another object only where the model itself is such a layer), and what was replaced.
    """
    found: list[Replaced] = []
    replacement = _replacement("", model, found)
    if replacement is not None:
        return replacement, tuple(found)
    for place, parent in list(model.named_modules()):
        for name, layer in list(parent.named_children()):
            replacement = _replacement(f"{place}.{name}".lstrip("."), layer, found)
            if replacement is not None:
                setattr(parent, name, replacement)
    return model, tuple(found)


def require_trainable(model: nn.Module, name: str) -> None:
    """Check that a model from outside is what training takes: parameters that are all trained, and nothing besides.

    Raises:
        ConfigError: names what it has too much, or in another form.
    """
    buffers = [place for place, _ in model.named_buffers()]
    if buffers:
        raise ConfigError(
            f"{name} must have no buffers, because a round's model holds parameters alone, got {', '.join(buffers[:5])}"
        )
    parameters = list(model.named_parameters())
    if not parameters:
        raise ConfigError(f"{name} must have parameters to train, got none")
    for place, parameter in parameters:
        if parameter.dtype != torch.float32 or not parameter.requires_grad:
            kind = str(parameter.dtype).removeprefix("torch.")
            trained = "trained" if parameter.requires_grad else "frozen"
            raise ConfigError(f"each parameter of {name} must be a trained float32, got {place}: {trained} {kind}")


def _replacement(place: str, layer: nn.Module, found: list[Replaced]) -> nn.Module | None:
    if isinstance(layer, _BATCH_NORMS):
        groups = math.gcd(GROUPS, layer.num_features)
        found.append(Replaced(place, type(layer).__name__, f"GroupNorm of {groups} groups"))
        return nn.GroupNorm(groups, layer.num_features, eps=layer.eps, affine=layer.affine)
    if isinstance(layer, _RANDOM):
        found.append(Replaced(place, type(layer).__name__, "nothing"))
        return nn.Identity()
    return None
