"""torchvision's DenseNet-121 and EfficientNet-B0 with GroupNorm in place of BatchNorm, for images of 64 to 512 pixels.

Huang et al. 2017 (arXiv:1608.06993), the network that chest X-rays are most often read with (CheXNet); Tan and Le 2019
(arXiv:1905.11946).
"""

from torch import nn
from torchvision.models import densenet121, efficientnet_b0

from common.models.naming import RGB
from common.models.replaced_layers import replace_layers


def group_norm_densenet121(classes: int, channels: int) -> nn.Module:
    """Return a DenseNet-121 of 7.0 million parameters.

    Args:
        classes: number of logits.
        channels: of the input, (records, channels, height, width) with height and width of at least 64.
    """
    model, _ = replace_layers(densenet121(num_classes=classes))
    if channels != RGB:
        first = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        model.set_submodule("features.conv0", first)
    return model


def group_norm_efficientnet_b0(classes: int, channels: int) -> nn.Module:
    """Return an EfficientNet-B0 of 4.0 million parameters.

    Args:
        classes: number of logits.
        channels: of the input, (records, channels, height, width) with height and width of at least 64.
    """
    model, _ = replace_layers(efficientnet_b0(num_classes=classes))
    if channels != RGB:
        first = nn.Conv2d(channels, 32, kernel_size=3, stride=2, padding=1, bias=False)
        model.set_submodule("features.0.0", first)
    return model
