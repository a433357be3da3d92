"""Features from a frozen network of images: how strongly each channel of each block answers, and how unevenly.

X-rays and retinas are not what the last layer of an ImageNet network was trained for, so the features are the means and
deviations over positions of *every* block's output: textures from the early blocks, shapes from the late ones.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.errors import ConfigError
from common.models import frozen
from common.models.memory import in_pieces
from common.models.naming import RGB

SMALLEST_SIDE = 112
"""Pixels; smaller images are enlarged to it, since five halvings leave nothing of 28 pixels."""

ON_A_GPU_AT_ONCE = 64
"""Images for one call on a GPU, which has no use for a core's cache."""


def width_of(block_channels: Sequence[int], channels: int) -> int:
    """Return the number of features of an image with this many colour channels.

    Raises:
        ConfigError: there are neither 1 nor 3 channels.
    """
    if channels not in (1, RGB):
        raise ConfigError(f"features of an ImageNet network need grey or RGB images, got {channels} channels")
    return 2 * sum(block_channels)


class BlockStatistics:
    """The frozen network, its blocks' outputs summed up per image; see :class:`common.models.frozen.FrozenFeatures`.

    Args:
        version: of the network, its weights and this transform together.
        network: takes (n, 3, height, width) float32.
        blocks: of the network, in the order they are passed.
        block_channels: of each block's output.
        mean: of the pixel values 0 to 255 that the network was trained on, by channel.
        deviation: likewise.
    """

    at_once = 4
    """Images for one call. At 224 pixels, 32 at once and channels first took four times as long, beyond the cache."""

    def __init__(
        self,
        version: str,
        network: nn.Module,
        blocks: Sequence[nn.Module],
        block_channels: Sequence[int],
        mean: Sequence[float],
        deviation: Sequence[float],
    ) -> None:
        self.version = version
        network = network.eval().requires_grad_(requires_grad=False)
        self._network = network.to(memory_format=torch.channels_last)
        self._block_channels = tuple(block_channels)
        self._mean = torch.tensor(mean).reshape(1, RGB, 1, 1)
        self._deviation = torch.tensor(deviation).reshape(1, RGB, 1, 1)
        self._outputs: list[Tensor] = []
        for block in blocks:
            block.register_forward_hook(self._keep)

    def width(self, channels: int) -> int:
        """See :func:`width_of`."""
        return width_of(self._block_channels, channels)

    def to(self, device: torch.device) -> None:
        """Compute on a device from now on, in pieces that fit into its memory; features come back to the CPU."""
        self._network.to(device)
        self._mean, self._deviation = self._mean.to(device), self._deviation.to(device)
        self.at_once = BlockStatistics.at_once if device.type == "cpu" else ON_A_GPU_AT_ONCE

    def __call__(self, images: Tensor) -> Tensor:
        """Return (n, width) float32 features of L2 norm ``frozen.NORM`` of (n, 1 or 3, height, width) uint8 images."""
        return torch.cat(list(in_pieces(images, self.at_once, self._features))) if len(images) else self._none(images)

    def _none(self, images: Tensor) -> Tensor:
        return torch.empty(0, self.width(images.shape[1]))

    def _features(self, images: Tensor) -> Tensor:
        images = images.to(self._mean.device)
        x = (images.to(torch.float32) - self._mean) / self._deviation
        if min(x.shape[2:]) < SMALLEST_SIDE:
            size = [SMALLEST_SIDE, SMALLEST_SIDE]
            x = functional.interpolate(x, size=size, mode="bicubic", align_corners=False)
        self._outputs.clear()
        self._network(x.contiguous(memory_format=torch.channels_last))
        summaries = [torch.std_mean(output, dim=(2, 3)) for output in self._outputs]
        # Each summary is centred and scaled by itself, or the blocks with the largest activations would drown the rest.
        parts = [_standardised(summary) for both in summaries for summary in both]
        return (functional.normalize(torch.cat(parts, dim=1), dim=1) * frozen.NORM).cpu()

    def _keep(self, _block: nn.Module, _inputs: Any, output: Tensor) -> None:  # noqa: ANN401 - torch's hook
        self._outputs.append(output)


def _standardised(summary: Tensor) -> Tensor:
    return functional.normalize(summary - summary.mean(dim=1, keepdim=True), dim=1)
