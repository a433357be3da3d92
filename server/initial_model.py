"""``python -m server.initial_model --state DIR``: makes the model that a run begins with, as its first checkpoint.

A process of its own, because it takes PyTorch: the ServerApp, which only ever adds to a flat array, starts without
PyTorch and keeps 450 MB less in memory for as long as the run lasts.

**A model out of a package.** The server need not have the package, nor run a line of it: whoever proposes the run makes
the first model where the package is installed (``./confide model initial``), and the file stands in the server's state
folder, ``initial-model.npy``. Hospitals take the weights of every round for arbitrary numbers anyway.
"""

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.config import ModelConfig, RunDescription, load_config
from common.errors import RunError
from common.models import registry
from common.models.flat import flat_parameters
from common.models.naming import PackageModel, from_outside
from common.processes import die_with_parent, run_service
from common.run.messages import read_array
from common.settings import CHECKPOINTS_FOLDER, SERVER_SETTINGS_FILE, ServerSettings
from server.checkpoints import Checkpoint, CheckpointStore
from server.progress import RunProgress

INITIAL_MODEL_FILE = "initial-model.npy"
"""A file in the server's state folder: the model of round 0, where its proposer made it on another machine."""


def initial_model(description: RunDescription) -> npt.NDArray[np.float32]:
    """Return the model of round 0, (d,) float32, the same wherever it is made: it depends on the seed alone."""
    return _made(description.model, len(description.classes), description.channels, description.experiment.seed)


def first_checkpoint(description: RunDescription) -> Checkpoint:
    """Return where a run stands that has not begun."""
    return _before_round_1(description.run_id, initial_model(description))


def read_initial_model(path: Path) -> npt.NDArray[np.float32]:
    """Read a model that ``./confide model initial`` wrote, (d,) float32; no code in the file can run.

    Raises:
        RunError: it is no such file, or holds numbers that are not finite.
    """
    try:
        model: npt.NDArray[np.float32] = read_array(path.read_bytes()).copy()
    except OSError as error:
        raise RunError(f"{path.name} must be readable: {error.strerror}") from None
    if model.ndim != 1 or model.dtype != np.float32 or not len(model) or not np.isfinite(model).all():
        raise RunError(f"{path.name} must hold finite float32 numbers, one after the other; make it anew")
    return model


def _made(model: ModelConfig, classes: int, channels: int, seed: int) -> npt.NDArray[np.float32]:
    return flat_parameters(registry.build(model.architecture, classes, channels, model.image_size, seed))


def _before_round_1(run_id: str, model: npt.NDArray[np.float32]) -> Checkpoint:
    return Checkpoint(run_id, 0, 0, model, {}, 0, RunProgress())


def _make(state: Path) -> None:
    die_with_parent()
    settings = ServerSettings.read(state / SERVER_SETTINGS_FILE)
    config = load_config(settings.run_config or settings.config)
    given = state / INITIAL_MODEL_FILE
    if given.exists() and isinstance(from_outside(config.model.architecture), PackageModel):
        model = read_initial_model(given)
    else:
        model = _made(config.model, len(settings.classes), settings.channels, config.experiment.seed)
    CheckpointStore(settings.run / CHECKPOINTS_FOLDER).save(_before_round_1(settings.run_id, model))


if __name__ == "__main__":
    sys.exit(run_service("server.initial_model", __doc__, _make))
