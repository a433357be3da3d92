"""``python -m server.initial_model --state DIR``: puts the model that a run begins with into its first checkpoint.

The file came with the run's proposal (``common/models/first_model.py``). Where it did not, as in a demo, whose run
nobody proposes, it is made here, which takes PyTorch. That is why this is a process of its own: the ServerApp, which
only ever adds to a flat array, keeps 450 MB less in memory for as long as the run lasts.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.config import ModelConfig, RunDescription, load_config
from common.errors import ConfigError
from common.models.first_model import FIRST_MODEL_FILE, FirstModel, FirstModelFacts
from common.processes import die_with_parent, run_service
from common.settings import CHECKPOINTS_FOLDER, SERVER_SETTINGS_FILE, ServerSettings
from server.checkpoints import Checkpoint, CheckpointStore
from server.progress import RunProgress


def has_pytorch() -> bool:
    """Return whether models can be made here; the server's image has no PyTorch."""
    return find_spec("torch") is not None


def make_first_model(
    model: ModelConfig, classes: int, channels: int, seed: int, preparation: dict[str, Any] | None = None
) -> FirstModel:
    """Return the model of round 0, the same wherever it is made: it depends on the arguments alone.

    Raises:
        ConfigError: PyTorch or the model's package is missing, or the model cannot take such images.
    """
    if not has_pytorch():
        raise ConfigError(
            "PyTorch must be installed where a run's first model is made, and it is not here; make the model with "
            f"`confide model initial` where it is, and propose the run with --first-model {FIRST_MODEL_FILE}"
        )
    from common.models import registry
    from common.models.flat import flat_parameters

    network = registry.build(model.architecture, classes, channels, model.image_size, seed)
    named = [(name, tuple(tensor.shape)) for name, tensor in network.named_parameters()]
    facts = FirstModelFacts(
        architecture=model.architecture,
        classes=classes,
        channels=channels,
        image_size=model.image_size,
        seed=seed,
        tensors=tuple(name for name, _ in named),
        preparation=preparation,
    )
    return FirstModel(facts, tuple(shape for _, shape in named), flat_parameters(network))


def initial_model(description: RunDescription) -> npt.NDArray[np.float32]:
    """Return the model of round 0, (d,) float32; errors as for :func:`make_first_model`."""
    experiment = description.experiment
    return make_first_model(
        description.model, len(description.classes), description.channels, experiment.seed
    ).flat  # fmt: skip


def first_checkpoint(description: RunDescription) -> Checkpoint:
    """Return where a run stands that has not begun; errors as for :func:`make_first_model`."""
    return _before_round_1(description.run_id, initial_model(description))


def _before_round_1(run_id: str, model: npt.NDArray[np.float32]) -> Checkpoint:
    return Checkpoint(run_id, 0, 0, model, {}, 0, RunProgress())


def _make(state: Path) -> None:
    die_with_parent()
    settings = ServerSettings.read(state / SERVER_SETTINGS_FILE)
    config = load_config(settings.run_config or settings.config)
    decided = (len(settings.classes), settings.channels)
    path = settings.run / FIRST_MODEL_FILE
    if not path.exists():
        make_first_model(config.model, *decided, config.experiment.seed).write(path)
    first = FirstModel.read(path)
    first.require(config.model.architecture, *decided, config.model.image_size, config.experiment.seed)
    CheckpointStore(settings.run / CHECKPOINTS_FOLDER).save(_before_round_1(settings.run_id, first.flat))


if __name__ == "__main__":
    sys.exit(run_service("server.initial_model", __doc__, _make))
