"""FedAvg, FedProx, FedAvgM and FedAdam in whole runs: with masks, and with noise of either mode."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.telemetry.events import COMPLETED, RoundDone
from server.checkpoints import Checkpoint, CheckpointStore
from tests.support.small_consortium import RUN_ID, Dealt, everybody, small

OPTIMISERS: dict[str, dict[str, dict[str, Any]]] = {
    "FedAvg": {},
    "FedProx": {"training": {"proximal_mu": 0.5, "local_epochs": 2}},
    "FedAvgM": {"aggregation": {"strategy": "fedavgm", "server_learning_rate": 0.5}},
    "FedAdam": {"aggregation": {"strategy": "fedadam", "server_learning_rate": 0.01}},
}

WILLING = everybody(allow_no_privacy=True, allow_plain=True, allow_exact_evaluation=True)


def _trained(dealt: Dealt, folder: Path, name: str, mode: str, masks: str = "secure") -> tuple[Checkpoint, RoundDone]:
    """Return the last checkpoint and the last round of a run of two rounds."""
    chosen = OPTIMISERS[name]
    changes = {
        "training": {"learning_rate": 0.1, "sample_rate": 0.5, **chosen.get("training", {})},
        "aggregation": {"mode": masks, **chosen.get("aggregation", {})},
        "privacy": {"mode": mode},
        "evaluation": {"exact": masks == "plain"},
    }
    made = small(dealt, folder, policies=WILLING, **changes)
    assert made.run().train() == COMPLETED
    last = CheckpointStore(folder / "checkpoints").latest(RUN_ID)
    assert last is not None
    return last, made.of(RoundDone)[-1]


@pytest.mark.parametrize("name", list(OPTIMISERS))
def test_masks_do_not_change_a_single_bit_of_the_model(dealt: Dealt, tmp_path: Path, name: str) -> None:
    masked, _ = _trained(dealt, tmp_path / "masked", name, "none")
    bare, _ = _trained(dealt, tmp_path / "bare", name, "none", masks="plain")
    assert masked.model[:].tobytes() == bare.model[:].tobytes()
    assert {key: array.tobytes() for key, array in masked.strategy.items()} == {
        key: array.tobytes() for key, array in bare.strategy.items()
    }


def test_each_optimiser_goes_its_own_way(dealt: Dealt, tmp_path: Path) -> None:
    models = {name: _trained(dealt, tmp_path / name, name, "none")[0].model[:].tobytes() for name in OPTIMISERS}
    assert len(set(models.values())) == len(OPTIMISERS)


@pytest.mark.parametrize("mode", ["local", "distributed"])
@pytest.mark.parametrize("name", list(OPTIMISERS))
def test_each_optimiser_trains_within_epsilon_in_both_modes(dealt: Dealt, tmp_path: Path, name: str, mode: str) -> None:
    last, done = _trained(dealt, tmp_path, name, mode)
    assert last.step == 2
    assert np.isfinite(last.model[:]).all()
    assert 0 < done.epsilon <= 4.0
    assert all(array.any() for array in last.strategy.values())
