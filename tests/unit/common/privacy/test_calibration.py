"""The noise a run needs, and the refusal of what means nothing."""

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.config import PrivacyConfig, PrivacyUnit, TrainingConfig
from common.errors import PrivacyError
from common.privacy.accounting import Accountant, MechanismEvent, MechanismKind, epsilon
from common.privacy.calibration import (
    EPSILON_TOLERANCE,
    FEWEST_UNITS,
    noise_multiplier,
    require_enough_units,
    require_meaningful,
    run_noise_multiplier,
)
from common.privacy.mechanism import DistributedNoise, LocalNoise
from tests.support.published import gaussian, published


@pytest.mark.long
@pytest.mark.parametrize("case", published("opacus", solve_for="noise_multiplier"))
def test_the_noise_multiplier_is_what_opacus_publishes(case: dict[str, Any]) -> None:
    steps = int(case.get("steps") or case["epochs"] / case["sample_rate"])
    accountant = Accountant(case["accountant"])
    got = noise_multiplier(case["target_epsilon"], case["delta"], case["sample_rate"], steps, accountant)
    assert got == pytest.approx(case["noise_multiplier"], abs=10.0 ** -case["places"])


@pytest.mark.long
@settings(max_examples=4)
@given(st.floats(0.3, 8.0), st.floats(0.01, 1.0), st.integers(1, 40), st.sampled_from(list(Accountant)))
@example(2.0, 0.075, 1, Accountant.PRV)  # On its way, the search meets multipliers that PRV has no answer for.
def test_the_target_is_met_and_never_passed(target: float, rate: float, steps: int, accountant: Accountant) -> None:
    multiplier = noise_multiplier(target, 1e-5, rate, steps, accountant)
    spent = epsilon([gaussian(multiplier, rate, steps)], 1e-5, accountant)
    assert target - EPSILON_TOLERANCE <= spent <= target


@pytest.mark.long
def test_what_was_spent_before_is_within_the_target() -> None:
    already = [gaussian(3.0, 0.1, 20)]
    multiplier = noise_multiplier(2.0, 1e-5, 0.1, 10, already=already)
    assert epsilon([*already, gaussian(multiplier, 0.1, 10)], 1e-5) <= 2.0
    assert multiplier > noise_multiplier(2.0, 1e-5, 0.1, 10)


def test_a_target_that_was_spent_already_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"spent already.*1, got ε = 3\.602"):
        noise_multiplier(1.0, 1e-5, 0.1, 50, already=[gaussian(1.0, 0.1, 20)])


def test_a_target_that_no_noise_reaches_is_refused() -> None:
    # The error that PRV's bound adds is more than this by itself.
    with pytest.raises(PrivacyError, match="no noise keeps 50 steps"):
        noise_multiplier(0.005, 1e-5, 0.1, 50)


@pytest.mark.parametrize("target", [0.0, -1.0, float("nan")])
def test_a_target_that_is_no_epsilon_is_refused(target: float) -> None:
    with pytest.raises(PrivacyError, match=r"privacy\.target_epsilon"):
        noise_multiplier(target, 1e-5, 0.1, 50)


def test_meaningful_parameters_give_the_sample_rate() -> None:
    assert require_meaningful(1000, 50, 1e-4) == 0.05
    assert require_meaningful(FEWEST_UNITS, FEWEST_UNITS, 1e-3) == 1.0


@pytest.mark.parametrize(
    ("units", "batch", "delta", "remedy"),
    [
        (1000, 50, 1e-3, "set privacy.delta to 1e-04 or less"),
        (1000, 50, 0.5, "set privacy.delta"),
        (1000, 50, 0.0, "set privacy.delta"),
        (1000, 50, float("nan"), "set privacy.delta"),
        (1000, 1001, 1e-5, "set training.batch_size to at most 1000"),
        (1000, 0, 1e-5, "set training.batch_size"),
        (FEWEST_UNITS - 1, 5, 1e-5, "or stay out of this run"),
        (0, 1, 1e-5, "or stay out of this run"),
    ],
)
def test_what_means_nothing_is_refused_with_the_remedy(units: int, batch: int, delta: float, remedy: str) -> None:
    with pytest.raises(PrivacyError, match=remedy):
        require_meaningful(units, batch, delta)


def test_a_refusal_names_the_unit() -> None:
    with pytest.raises(PrivacyError, match="30 patients"):
        require_meaningful(30, 31, 1e-5, PrivacyUnit.PATIENT)


def test_calibration_is_for_the_mechanism_that_is_booked() -> None:
    multiplier = noise_multiplier(3.0, 1e-5, 0.2, 10)
    booked = MechanismEvent(MechanismKind.DISTRIBUTED_DISCRETE_GAUSSIAN, multiplier, 0.2, 10, approximation=1e-25)
    assert epsilon([booked], 1e-5) <= 3.0


def test_a_refusal_is_about_what_is_stated() -> None:
    require_enough_units(FEWEST_UNITS, 1e-3)
    with pytest.raises(
        PrivacyError, match=r"must state at least 20 training patients, got 19; raise hospital\.stated_tr"
    ):
        require_enough_units(FEWEST_UNITS - 1, 1e-3, PrivacyUnit.PATIENT)
    with pytest.raises(PrivacyError, match="δ must be above 0 and below 1 / 100 stated records"):
        require_enough_units(100, 0.01)


@pytest.mark.long
@pytest.mark.parametrize("mechanism", [LocalNoise, DistributedNoise])
@pytest.mark.parametrize("rate", [0.1, 0.3, 1.0])
def test_the_rounds_that_are_booked_together_cost_the_target_and_no_more(
    mechanism: type[LocalNoise | DistributedNoise], rate: float
) -> None:
    training = TrainingConfig(sample_rate=rate, local_epochs=2)
    privacy = PrivacyConfig(mode=mechanism.mode, target_epsilon=3.0, accountant="rdp")
    schedule = mechanism(privacy).schedule(training)
    multiplier = run_noise_multiplier(schedule, privacy, 5)
    spent = epsilon([gaussian(multiplier, rate, schedule.steps)] * 5, privacy.delta, Accountant.RDP)
    assert 3.0 - EPSILON_TOLERANCE <= spent <= 3.0


@pytest.mark.long
def test_a_round_of_mode_local_is_booked_with_the_runs_own_rate_and_steps() -> None:
    """With another rate, or fewer steps, the booked ε would be below the one that training gives away."""
    training = TrainingConfig(sample_rate=0.3, local_epochs=2)
    privacy = PrivacyConfig(target_epsilon=3.0, accountant="rdp")
    mechanism = LocalNoise(privacy)
    event = mechanism.steps(training, 5).event
    assert event.kind is MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN
    assert (event.sample_rate, event.steps, event.approximation) == (0.3, 8, 0.0)
    assert event.noise_multiplier == run_noise_multiplier(mechanism.schedule(training), privacy, 5)
