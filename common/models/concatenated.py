"""Several frozen features of one image, side by side, each with the same weight."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from common.models import frozen
from common.models.frozen import FrozenFeatures


class Concatenated:
    """Features of norm 1 each, concatenated; see :class:`common.models.frozen.FrozenFeatures`.

    A linear model on them weighs textures that a network has learnt against where in the image a structure is stronger.

    Args:
        parts: at least one.
    """

    at_once = 16

    def __init__(self, parts: Sequence[FrozenFeatures]) -> None:
        self._parts = tuple(parts)
        self.version = "+".join(part.version for part in self._parts)

    def to(self, device: torch.device) -> None:
        """Compute each part on a device from now on, where it can; features come back to the CPU."""
        for part in self._parts:
            frozen.move(part, device)

    def width(self, channels: int) -> int:
        """Return the number of features of an image with this many colour channels."""
        return sum(part.width(channels) for part in self._parts)

    def __call__(self, images: Tensor) -> Tensor:
        """Return (n, width) float32 features of norm ``frozen.NORM`` of (n, channels, height, width) uint8 images."""
        made = (
            functional.normalize(torch.cat([part(some) for some in torch.split(images, part.at_once)]), dim=1)
            for part in self._parts
        )
        return functional.normalize(torch.cat(list(made), dim=1), dim=1) * frozen.NORM
