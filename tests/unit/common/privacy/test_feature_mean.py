"""What the mean of features costs: full batches are one Gaussian mechanism, and its share comes out of the steps'."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from common.config import Config, PrivacyMode, RunDescription, replace
from common.errors import ConfigError, PrivacyError
from common.privacy.accounting import Accountant, MechanismEvent, MechanismKind, epsilon
from common.privacy.calibration import mean_noise_multiplier, run_noise_multiplier
from common.privacy.gaussian import accounted_mu, gaussian_epsilon
from common.privacy.mechanism import FeatureMean, NoisySteps, NoisySum, PlainSteps, SummedMean, mechanism_of
from common.privacy.schedule import Schedule
from common.run.terms import describe, layout_of, verified_layout_of
from common.run.vector import Tail

HOSPITALS = ("a", "b", "c", "d")
MODEL = "scattering_linear"


def described(mode: PrivacyMode, model: str = MODEL, **changes: dict[str, object]) -> RunDescription:
    config = replace(
        Config(),
        model={"name": model},
        experiment={"rounds": 5},
        training={"sample_rate": 1.0, **changes.get("training", {})},
        privacy={"mode": mode, "accountant": "rdp", "mean_share": 0.04, **changes.get("privacy", {})},
        aggregation={"min_hospitals": len(HOSPITALS)},
    )
    return describe(config, 32 * "0", ("normal", "pneumonia"), 1, dict.fromkeys(HOSPITALS, ""))


@pytest.mark.parametrize("target", [1.0, 3.0, 8.0])
def test_full_batches_and_the_mean_are_one_gaussian_mechanism_and_the_accountant_says_so(target: float) -> None:
    privacy = replace(Config(), privacy={"target_epsilon": target, "mean_share": 0.04}).privacy
    steps, mean = run_noise_multiplier(Schedule(1.0, 1), privacy, 30), mean_noise_multiplier(privacy)
    mu = math.sqrt(30 / steps**2 + 1 / mean**2)
    assert mu == pytest.approx(accounted_mu(target, privacy.delta, Accountant.PRV))
    assert (1 / mean**2) / mu**2 == pytest.approx(0.04)
    exact = gaussian_epsilon(mu, privacy.delta)
    assert target - 0.012 < exact <= target  # PRV adds its error to what it returns.
    kind = MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN
    events = [MechanismEvent(kind, steps, 1.0, 30), MechanismEvent(kind, mean, 1.0, 1)]
    assert exact <= epsilon(events, privacy.delta) <= target


@pytest.mark.long
def test_with_sampled_batches_the_steps_leave_room_for_the_mean() -> None:
    privacy = replace(Config(), privacy={"target_epsilon": 4.0, "accountant": "rdp", "mean_share": 0.1}).privacy
    steps, mean = run_noise_multiplier(Schedule(0.5, 2), privacy, 6), mean_noise_multiplier(privacy)
    kind = MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN
    events = [MechanismEvent(kind, steps, 0.5, 12), MechanismEvent(kind, mean, 1.0, 1)]
    assert 3.98 < epsilon(events, privacy.delta, Accountant.RDP) <= 4.0
    alone = run_noise_multiplier(Schedule(0.5, 2), privacy.model_copy(update={"mean_share": 0.0}), 6)
    assert steps > alone


def test_a_run_without_a_mean_has_the_noise_that_it_always_had() -> None:
    privacy = replace(Config(), privacy={"target_epsilon": 2.0, "accountant": "rdp"}).privacy
    steps = run_noise_multiplier(Schedule(1.0, 1), privacy, 7)
    event = MechanismEvent(MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN, steps, 1.0, 7)
    assert 1.999 < epsilon([event], privacy.delta, Accountant.RDP) <= 2.0
    with pytest.raises(PrivacyError, match=r"set privacy\.mean_share to 0"):
        mean_noise_multiplier(privacy)
    for mode in PrivacyMode:
        run = described(mode, privacy={"mean_share": 0.0})
        assert mechanism_of(run).mean_plan(run, layout_of(run).parameters) is None


class Trainer:
    """Tells the features that it was made with, as a hospital that states ``stated`` units."""

    def __init__(self, features: np.ndarray, stated: int) -> None:
        self.features, self.stated = features, stated
        self.asked: list[object] = []

    def feature_mean(self, plan: PlainSteps | NoisySteps) -> np.ndarray:
        self.asked.append(plan)
        return (self.features / self.stated).astype(np.float32)

    def feature_sum(self, plan: NoisySum) -> np.ndarray:
        self.asked.append(plan)
        summed: np.ndarray = np.rint(self.features * plan.noise.norm_bound).astype(np.int64)
        return summed

    def steps(self, plan: PlainSteps | NoisySteps) -> np.ndarray:
        raise AssertionError("a round that asks for the mean trains nothing")

    def gradient_sum(self, plan: NoisySum) -> np.ndarray:
        raise AssertionError("a round that asks for the mean trains nothing")


@pytest.mark.parametrize("mode", PrivacyMode)
def test_what_hospitals_tell_is_read_as_the_mean_over_what_they_state(mode: PrivacyMode) -> None:
    run = described(mode)
    mechanism, layout = mechanism_of(run), layout_of(run)
    plan = mechanism.mean_plan(run, layout.parameters)
    assert isinstance(plan, FeatureMean)
    total = np.zeros(layout.length, layout.dtype)
    random = np.random.default_rng(2)
    sums = random.uniform(-3, 3, (4, layout.parameters))
    for summed, stated in zip(sums, (100, 200, 50, 150), strict=True):
        trainer = Trainer(summed, stated)
        tail = Tail(stated, 0, 0, np.zeros(layout.counts_length - 3, np.int64))
        total += plan.encode(layout, plan.change(trainer), tail, random.bytes)
        assert trainer.asked == [plan.release]
    mean = mechanism.mean_decoder(run, layout.parameters)(layout.decode(total, 4))(slice(None))
    assert np.abs(mean - sums.sum(axis=0) / 500).max() < 2e-3


def test_the_mean_is_booked_as_a_release_of_its_own() -> None:
    steps: dict[PrivacyMode, Callable[[MechanismEvent], bool]] = {
        PrivacyMode.LOCAL: lambda event: event.kind is MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN,
        PrivacyMode.DISTRIBUTED: lambda event: event.kind is MechanismKind.DISTRIBUTED_DISCRETE_GAUSSIAN,
    }
    for mode, is_kind in steps.items():
        run = described(mode)
        plan = mechanism_of(run).mean_plan(run, layout_of(run).parameters)
        assert plan is not None
        booking = plan.booking(run.privacy.delta)
        assert booking is not None
        assert is_kind(booking.event)
        assert (booking.event.sample_rate, booking.event.steps) == (1.0, 1)
        assert booking.event.noise_multiplier == mean_noise_multiplier(run.privacy)
        assert booking.colluders == (None if mode is PrivacyMode.LOCAL else 0)
    run = described(PrivacyMode.NONE)
    plan = mechanism_of(run).mean_plan(run, layout_of(run).parameters)
    assert plan is not None
    assert plan.booking(1e-4) is None


def test_steps_that_leave_the_mean_out_of_their_budget_are_refused() -> None:
    run = described(PrivacyMode.DISTRIBUTED)
    alone = described(PrivacyMode.DISTRIBUTED, privacy={"mean_share": 0.0})
    lying = run.model_copy(update={"noise_multiplier": alone.noise_multiplier})
    with pytest.raises(PrivacyError, match="must keep its target"):
        mechanism_of(lying).plan(lying, layout_of(run).parameters)


def test_the_claims_of_a_run_count_the_mean() -> None:
    run = described(PrivacyMode.DISTRIBUTED)
    claims = mechanism_of(run).claims(run, layout_of(run).parameters)
    outsider = next(claim for claim in claims if claim.adversary == "outsider with the model")
    assert 0.95 * run.privacy.target_epsilon < outsider.value <= run.privacy.target_epsilon
    alone = described(PrivacyMode.DISTRIBUTED, privacy={"mean_share": 0.0})
    quieter = alone.model_copy(update={"noise_multiplier": run.noise_multiplier})
    (without, *_) = mechanism_of(quieter).claims(quieter, layout_of(run).parameters)
    assert without.value < outsider.value


def test_the_noise_in_the_mean_follows_from_what_is_public() -> None:
    public = SummedMean(cohort=4, survivors=4, stated=4682)
    for mode, factor in ((PrivacyMode.DISTRIBUTED, 4 / 3), (PrivacyMode.LOCAL, 4.0), (PrivacyMode.NONE, 0.0)):
        run = described(mode, privacy={"target_epsilon": 1.0})
        found = mechanism_of(run).deviation_of_mean(run, layout_of(run).parameters, public)
        sigma = 0.0 if mode is PrivacyMode.NONE else mean_noise_multiplier(run.privacy)
        assert found == pytest.approx(sigma * math.sqrt(factor) / 4682, rel=1e-3)


def test_a_model_on_images_has_neither_a_mean_nor_copies_and_a_run_that_names_them_is_refused() -> None:
    training = {"copies": 3, "warp": "chest"}
    run = described(PrivacyMode.LOCAL, "cnn", training=training)
    assert (run.privacy.mean_share, run.training.copies) == (0.0, 1)
    on_features = described(PrivacyMode.LOCAL, training=training)
    assert (on_features.privacy.mean_share, on_features.training.copies) == (0.04, 3)
    for section in ("privacy", "training"):
        lying = run.model_copy(update={section: getattr(on_features, section)})
        with pytest.raises(ConfigError, match="for a model on images"):
            verified_layout_of(lying)
