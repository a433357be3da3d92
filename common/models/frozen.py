"""What every frozen feature extractor has in common: a fixed, public function of one image.

It learns from no hospital's data and reads one image at a time, so features cost no privacy, and a change of one
record changes one row. Only the small model on top is trained.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NORM = 10.0
"""L2 norm of every image's features: learning rates about 1 then suit a linear model, and clipping treats all alike."""


class FrozenFeatures(Protocol):
    """A fixed function from images to features.

    Attributes:
        version: changes whenever the function does; part of the name of a cached file.
        at_once: images for one call, so that the temporaries stay in cache.
    """

    version: str
    at_once: int

    def width(self, channels: int) -> int:
        """Return the number of features of an image with this many colour channels."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return (n, width) float32 features of L2 norm NORM of (n, channels, height, width) uint8 images."""


def extract(features: FrozenFeatures, images: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
    """Yield the features of any number of images, (some, width) float32, a few images at a time and in their order."""
    for start in range(0, len(images), features.at_once):
        with torch.inference_mode():
            yield features(torch.from_numpy(images[start : start + features.at_once])).numpy()


def move(features: FrozenFeatures | None, device: torch.device) -> None:
    """Compute features on a device, where their transform can; any other stays on the CPU."""
    to = getattr(features, "to", None)
    if callable(to):
        to(device)
