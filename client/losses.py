"""What a record is trained towards: cross-entropy of one class among several, or of each label for itself.

The labels themselves say which: (records,) places of classes, or (records, labels) of 0 and 1, and less than 0 where a
label is not known of a record: it adds nothing then. Both losses are a sum over records of functions of one record
alone, as clipping needs; which labels of it are known is a part of the record.
"""

import torch
from torch import Tensor
from torch.nn import functional


def summed_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the sum over records of the cross-entropy; of several labels, of the sum over labels too.

    Args:
        scores: (records, classes) or (records, labels).
        labels: (records,) int64, or (records, labels) of 0 and 1, and less than 0 for a label that is not known.
    """
    if labels.ndim == 1:
        return functional.cross_entropy(scores, labels, reduction="sum")
    each = functional.binary_cross_entropy_with_logits(scores, labels.clamp(min=0).to(scores.dtype), reduction="none")
    return torch.where(labels >= 0, each, 0.0).sum()


def score_gradients(scores: Tensor, labels: Tensor) -> Tensor:
    """Return each record's gradient of that loss by its scores: probability less truth, of the shape of ``scores``."""
    if labels.ndim == 1:
        residuals = functional.softmax(scores, dim=1)
        residuals[torch.arange(len(labels), device=labels.device), labels] -= 1.0
        return residuals
    return torch.where(labels >= 0, torch.sigmoid(scores) - labels, 0.0)
