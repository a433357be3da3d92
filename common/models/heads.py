"""The small trainable models on frozen features."""

from torch import nn

HIDDEN = 64


def linear_head(features: int, classes: int) -> nn.Module:
    """Return a linear classifier that starts at zero, whatever the seed."""
    head = nn.Linear(features, classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def mlp_head(features: int, classes: int) -> nn.Module:
    """Return one hidden layer with a bounded activation (see ``cnn.py``) and a classifier that starts at zero."""
    return nn.Sequential(nn.Linear(features, HIDDEN), nn.Tanh(), linear_head(HIDDEN, classes))
