"""The default model: a small convolutional network that learns well under noise, in two widths."""

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (16, 32, 32)
"""Channels of the two convolutions, then units of the hidden layer."""
WIDE = (24, 48, 48)
GROUPS = 4

FINAL_SIDE = 4
"""Positions on a side before the linear layers: what 28 pixels leave; larger images are averaged down to it."""


class OverlappingMaxPool(nn.Module):
    """The maximum of each 2x2 window, windows one pixel apart: (n, c, h, w) to (n, c, h - 1, w - 1)."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool with the channels innermost, which on a CPU takes a third of the time, copies included."""
        channels_inner = x.contiguous(memory_format=torch.channels_last)
        return functional.max_pool2d(channels_inner, kernel_size=2, stride=1).contiguous()

    def extra_repr(self) -> str:
        """Return what a reader of ``model.json`` must know of it."""
        return "MaxPool2d, kernel_size=2, stride=1"


class SmallCnn(nn.Sequential):
    """Two wide convolutions and two linear layers, bounded activations throughout.

    25,842 parameters for two classes of grey images, 57,194 in the widths ``WIDE``.

    The layout is the one Papernot et al. (2021, arXiv:2007.14191) and Tramèr and Boneh (2021, arXiv:2011.11660)
    found to suit DP-SGD: tanh keeps activations, and with them gradient norms, bounded, so that clipping distorts
    less. It has GroupNorm besides. Not BatchNorm: batch statistics mix the records of a batch, so that no single
    record's influence could be bounded, and its running averages are buffers outside the private gradient.

    Args:
        classes: number of logits.
        channels: of the input, (records, channels, height, width) with height and width of at least 28.
        widths: of the two convolutions and of the hidden layer.
    """

    def __init__(self, classes: int, channels: int, widths: tuple[int, int, int] = WIDTHS) -> None:
        first, second, hidden = widths
        super().__init__(
            nn.Conv2d(channels, first, kernel_size=8, stride=2, padding=3),
            nn.GroupNorm(GROUPS, first),
            nn.Tanh(),
            OverlappingMaxPool(),
            nn.Conv2d(first, second, kernel_size=4, stride=2),
            nn.GroupNorm(GROUPS, second),
            nn.Tanh(),
            OverlappingMaxPool(),
            nn.AdaptiveAvgPool2d(FINAL_SIDE),
            nn.Flatten(),
            nn.Linear(second * FINAL_SIDE**2, hidden),
            nn.Tanh(),
            nn.Linear(hidden, classes),
        )
