"""What an operator sends to a running server to propose a run."""

from pathlib import Path

import msgspec
import numpy as np

from common.models.first_model import FirstModel, FirstModelFacts
from server.operator_socket import Propose, leave_first_model
from tests.support.proposed_run import CONFIG, PARAMETERS

FACTS = FirstModelFacts(
    architecture=CONFIG.model.architecture, classes=2, channels=1, image_size=CONFIG.model.image_size,
    seed=CONFIG.experiment.seed, tensors=("weight",),
)  # fmt: skip
FIRST = FirstModel(FACTS, ((PARAMETERS,),), np.zeros(PARAMETERS, np.float32))


def proposal(state: Path, **changes: object) -> Propose:
    """Leave the first model in a server's state folder, and return the proposal that names it."""
    asked = Propose(
        config=CONFIG.model_dump(mode="json"), data_set="phantom", classes=("normal", "pneumonia"), channels=1,
        first_model=leave_first_model(state, FIRST), days=30.0,
    )  # fmt: skip
    return msgspec.structs.replace(asked, **changes)
