"""A model on frozen features that first moves them to a common centre.

The features of similar images point in much the same direction, and a linear model learns from how they differ. So the
*centre* is subtracted from each image's unit-norm features, and what is left is brought back to norm ``frozen.NORM``.
The centre is a part of the model: it travels, is hashed and is stored with it. Training leaves it alone; it is zero, or
the mean over all hospitals' training records that a round of its own has told (``Purpose.MEAN`` of
:mod:`common.run.round_terms`).
"""

import torch
from torch import Tensor, nn

from common.models import frozen

_FURTHEST = 1e30
"""The largest number of a centre; its square is beyond float32, so the features' norm is infinite then."""

_SHORTEST = 1e-12
"""The least norm that is divided by, as in ``torch.nn.functional.normalize``."""


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
        # The cut keeps the difference finite for any centre; a norm that overflows then gives zeros.
        moved = features - (self.centre * frozen.NORM).clamp(-_FURTHEST, _FURTHEST)
        norms = torch.linalg.vector_norm(moved, dim=-1, keepdim=True).clamp_min_(_SHORTEST)
        return moved.mul_(frozen.NORM / norms)


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


def centre_length(model: nn.Module) -> int:
    """Return how many of the flat model's last parameters are a centre; 0 for a model on images."""
    return model.centring.centre.numel() if isinstance(model, CentredModel) else 0


def trained_length(model: nn.Module) -> int:
    """Return how many of the flat model's first parameters training changes; the others are a centre."""
    return sum(parameter.numel() for parameter in model.parameters()) - centre_length(model)
