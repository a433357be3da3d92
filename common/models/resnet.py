"""torchvision's ResNet-18 with GroupNorm in place of BatchNorm, which DP-SGD cannot have (see ``cnn.py``)."""

from torch import nn
from torchvision.models import resnet18

from common.models.naming import RGB

GROUPS = 32
"""As Wu and He 2018 (arXiv:1803.08494) recommend."""


def group_norm_resnet18(classes: int, channels: int) -> nn.Module:
    """Return a ResNet-18 (He et al. 2016) of 11.2 million parameters.

    Args:
        classes: number of logits.
        channels: of the input, (records, channels, height, width).
    """
    model: nn.Module = resnet18(num_classes=classes, norm_layer=lambda width: nn.GroupNorm(GROUPS, width))
    if channels != RGB:
        model.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return model
