"""A model as one flat array, the form in which it travels and is stored."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import parameters_to_vector

from common.errors import RunError


def flat_parameters(model: nn.Module) -> NDArray[np.float32]:
    """Return a copy of the parameters, (d,) float32, in the order of ``model.parameters()``."""
    with torch.no_grad():
        vector: NDArray[np.float32] = parameters_to_vector(model.parameters()).numpy().copy()
    return vector


def share_parameters(model: nn.Module, flat: torch.Tensor) -> None:
    """Make the parameters views into ``flat``, so that a change of one is a change of the other.

    Args:
        model: without buffers.
        flat: (d,) float32, contiguous.

    Raises:
        RunError: ``flat`` has not as many elements as the model has parameters.
    """
    parameters = list(model.parameters())
    expected = sum(parameter.numel() for parameter in parameters)
    if flat.shape != (expected,) or flat.dtype != torch.float32:
        raise RunError(f"the model has {expected} float32 parameters, got {tuple(flat.shape)} of {flat.dtype}")
    start = 0
    for parameter in parameters:
        parameter.data = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
