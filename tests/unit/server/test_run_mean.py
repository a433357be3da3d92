"""Round 0: the mean of features, told once before training, booked, put into the model, and not told again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.features import model_inputs
from common.models import registry
from common.privacy.calibration import mean_noise_multiplier
from common.run.messages import MaskRequest, Request
from common.run.round_terms import Purpose, RoundTerms
from common.secagg import messages as secagg
from common.secagg.errors import Place
from common.secagg.phases import Phase
from common.telemetry.events import COMPLETED, RoundDone
from deploy.experiment.consortium import Loss
from server.checkpoints import CheckpointStore
from tests.support.small_consortium import HOSPITALS, RUN_ID, Dealt, Small, everybody, small

torch.set_num_threads(1)

MODEL = "scattering_linear"
TRAINING = {"sample_rate": 1.0, "learning_rate": 1.0, "copies": 2, "warp": "chest"}


def centred(
    dealt: Dealt,
    folder: Path,
    mode: str,
    share: float = 0.04,
    epsilon: float = 900.0,
    **changes: dict[str, object],
) -> Small:
    """Return a consortium whose run asks for the mean; by default its noise is small."""
    policies = everybody(epsilon_budget=1000.0, allow_no_privacy=True, delta=1e-3)
    privacy = {"mode": mode, "mean_share": share, "target_epsilon": epsilon}
    return small(dealt, folder, policies=policies, model={"name": MODEL}, training=TRAINING, privacy=privacy, **changes)


def model_of(made: Small) -> NDArray[np.float32]:
    found = CheckpointStore(made.folder / "checkpoints").latest(RUN_ID)
    assert found is not None
    assert found.progress.centred
    return found.model[:]


def true_mean(made: Small) -> NDArray[np.float64]:
    """Return the mean of all hospitals' training images at norm 1, without copies."""
    images = made.dealt.data.parts["train"].images
    features = np.asarray(model_inputs(MODEL, images, made.folder / "own-cache"), np.float64)
    mean: NDArray[np.float64] = features.mean(axis=0) / 10.0
    return mean


@pytest.mark.parametrize("mode", ["none", "local", "distributed"])
def test_the_models_centre_is_the_mean_over_all_hospitals(dealt: Dealt, tmp_path: Path, mode: str) -> None:
    made = centred(dealt, tmp_path, mode)
    assert made.run().train() == COMPLETED
    width = registry.input_shape(MODEL, 1, 1, 28)[1]
    centre = model_of(made)[-width:]
    expected = true_mean(made)
    # The copies, the 40 units that are stated of some 50, and the noise leave the direction.
    cosine = centre @ expected / np.linalg.norm(centre) / np.linalg.norm(expected)
    assert cosine > 0.97
    assert 0.9 < np.linalg.norm(centre) / np.linalg.norm(expected) < 1.1
    assert made.of(RoundDone)[-1].step == 2


@pytest.mark.parametrize("mode", ["local", "distributed"])
def test_the_mean_is_booked_once_before_the_steps_and_all_of_it_keeps_the_target(
    dealt: Dealt, tmp_path: Path, mode: str
) -> None:
    made = centred(dealt, tmp_path, mode, epsilon=4.0, share=0.3)
    assert made.run().train() == COMPLETED
    for hospital in HOSPITALS:
        multipliers = [entry["booking"]["event"]["noise_multiplier"] for entry in made.booked(hospital)]
        assert len(multipliers) == 3
        assert multipliers[0] == mean_noise_multiplier(made.config.privacy)
        assert multipliers[1] == multipliers[2]
    assert 3.98 < made.of(RoundDone)[-1].epsilon <= 4.0


def test_a_mean_of_noise_is_left_out(dealt: Dealt, tmp_path: Path) -> None:
    made = centred(dealt, tmp_path, "distributed", epsilon=1.0)
    assert made.run().train() == COMPLETED
    width = registry.input_shape(MODEL, 1, 1, 28)[1]
    assert not model_of(made)[-width:].any()
    assert len(made.booked("hospital-1")) == 3


def test_a_server_that_starts_again_does_not_ask_again(dealt: Dealt, tmp_path: Path) -> None:
    made = centred(dealt, tmp_path, "local")
    run = made.run()
    run._attempt(run._to_centre)
    centre = model_of(made)
    assert centre.any()
    for hospital in HOSPITALS:
        made.consortium.restart(hospital)
    assert made.run().train() == COMPLETED
    assert len(made.booked("hospital-1")) == 3


def test_a_round_that_fails_is_asked_again_as_often_as_the_run_allows_and_training_goes_on(
    dealt: Dealt, tmp_path: Path
) -> None:
    made = centred(dealt, tmp_path, "distributed", aggregation={"min_hospitals": 4})
    made.consortium.transport.line = _lost_masks
    assert made.run().train() == COMPLETED
    booked = [entry["booking"]["event"]["noise_multiplier"] for entry in made.booked("hospital-1")]
    assert booked.count(mean_noise_multiplier(made.config.privacy)) == 1 + made.config.evaluation.repeats


def _lost_masks(hospital: str, request: Request) -> Loss | None:
    """Lose the replies of one hospital in every round that asks for the mean."""
    if hospital != "hospital-4" or not isinstance(request, MaskRequest):
        return None
    place = Place("test", 1, Phase.MASKED_INPUT)
    asked = secagg.decode(request.request, secagg.MaskedInputRequest, secagg.Limits(4), place)
    return Loss.OF_REPLY if RoundTerms.decode(asked.terms).purpose is Purpose.MEAN else None
