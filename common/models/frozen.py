"""What every frozen feature extractor has in common: a fixed, public function of one image.

It learns from no hospital's data and looks at one image at a time, so features cost no privacy, and a change of one
record changes one row. Only the small model on top is trained.
"""

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
        """Return the number of features of an image with so many colour channels."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return (n, width) float32 features of L2 norm NORM of (n, channels, height, width) uint8 images."""


def extract(features: FrozenFeatures, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the features of any number of images, (n, width) float32."""
    n, channels = images.shape[:2]
    extracted = np.empty((n, features.width(channels)), np.float32)
    with torch.inference_mode():
        for start in range(0, n, features.at_once):
            some = torch.from_numpy(images[start : start + features.at_once])
            extracted[start : start + len(some)] = features(some).numpy()
    return extracted
