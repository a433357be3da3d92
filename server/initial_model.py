"""``python -m server.initial_model --state DIR``: makes the model that a run begins with, as its first checkpoint.

A process of its own, because it takes PyTorch: the ServerApp, which only ever adds to a flat array, starts without
PyTorch and keeps 450 MB less in memory for as long as the run lasts.
"""

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.config import ModelConfig, RunDescription, load_config
from common.models import registry
from common.models.flat import flat_parameters
from common.processes import die_with_parent, run_service
from common.settings import CHECKPOINTS_FOLDER, SERVER_SETTINGS_FILE, ServerSettings
from server.checkpoints import Checkpoint, CheckpointStore
from server.progress import RunProgress


def initial_model(description: RunDescription) -> npt.NDArray[np.float32]:
    """Return the model of round 0, (d,) float32, the same wherever it is made: it depends on the seed alone."""
    return _made(description.model, len(description.classes), description.channels, description.experiment.seed)


def first_checkpoint(description: RunDescription) -> Checkpoint:
    """Return where a run stands that has not begun."""
    return _before_round_1(description.run_id, initial_model(description))


def _made(model: ModelConfig, classes: int, channels: int, seed: int) -> npt.NDArray[np.float32]:
    return flat_parameters(registry.build(model.name, classes, channels, model.image_size, seed))


def _before_round_1(run_id: str, model: npt.NDArray[np.float32]) -> Checkpoint:
    return Checkpoint(run_id, 0, 0, model, {}, 0, RunProgress())


def _make(state: Path) -> None:
    die_with_parent()
    settings = ServerSettings.read(state / SERVER_SETTINGS_FILE)
    config = load_config(settings.run_config or settings.config)
    model = _made(config.model, len(settings.classes), settings.channels, config.experiment.seed)
    CheckpointStore(settings.run / CHECKPOINTS_FOLDER).save(_before_round_1(settings.run_id, model))


if __name__ == "__main__":
    sys.exit(run_service("server.initial_model", __doc__, _make))
