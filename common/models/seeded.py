"""The first model of a run, as the description and its seed give it: the same wherever PyTorch is."""

import numpy as np
from numpy.typing import NDArray

from common.config import RunDescription
from common.models import registry
from common.models.flat import flat_parameters


def seeded_model(description: RunDescription) -> NDArray[np.float32]:
    """Return the model of round 0, (d,) float32.

    Raises:
        ConfigError: the model's package is missing, or the model cannot take such images.
    """
    model, experiment = description.model, description.experiment
    network = registry.build(
        model.architecture, len(description.classes), description.channels, model.image_size, experiment.seed
    )
    return flat_parameters(network)
