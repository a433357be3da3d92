"""A model on frozen features that first moves them to a common centre.

The features of similar images point in much the same direction, and a linear model learns from how they differ. So the
*centre* is subtracted from each image's unit-norm features, and what is left is brought back to norm ``frozen.NORM``.
The centre is a part of the model: it travels, is hashed and is stored with it. Training leaves it alone; it is zero, or
the mean over all hospitals' training records that a round of its own has told (``Purpose.MEAN`` of
:mod:`common.run.round_terms`).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.models import frozen


class Centring(nn.Module):
    """Subtracts the centre from unit features and brings the rest to norm ``frozen.NORM``.

    Args:
        width: of the features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.zeros(width), requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return (…, width) features of norm ``frozen.NORM``, or 0 where the centre is beyond any float, of such."""
        return functional.normalize(features / frozen.NORM - self.centre, dim=-1) * frozen.NORM


class CentredModel(nn.Module):
    """A trainable head on centred features.

    The head's parameters are the first of the flat model, the centre's the last (:func:`trained_length`).

    Args:
        head: takes (records, width) features.
        width: of the features.
    """

    def __init__(self, head: nn.Module, width: int) -> None:
        super().__init__()
        self.head = head
        self.centring = Centring(width)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, (…, classes)."""
        logits: Tensor = self.head(self.centring(features))
        return logits


def trained_length(model: nn.Module) -> int:
    """Return how many of the flat model's first parameters training changes; the others are a centre."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def centre_length(model: nn.Module) -> int:
    """Return how many of the flat model's last parameters are a centre; 0 for a model on images."""
    return sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
