"""What hospitals' models of their own records cost: their share comes out of the run's ε, in every mode."""

import math

import pytest

from client.planned_cost import planned_bookings
from common.config import Config, PrivacyMode, RunDescription, replace
from common.errors import ConfigError, PrivacyError
from common.privacy.accounting import Accountant, EpsilonAdversary, epsilon
from common.privacy.budget import Account
from common.privacy.calibration import alone_privacy, threshold_event
from common.privacy.mechanism import mechanism_of
from common.run.terms import claims_of, describe, layout_of

HOSPITALS = ("a", "b", "c", "d")
ROUNDS = 5
SHARES = {"mean_share": 0.04, "alone_share": 0.5}


def described(
    mode: PrivacyMode, classes: tuple[str, ...] = ("normal", "pneumonia"), **changes: dict[str, object]
) -> RunDescription:
    config = replace(
        Config(),
        model={"name": "scattering_linear"},
        experiment={"rounds": ROUNDS, "task": "pneumonia" if len(classes) == 2 else "retina"},
        training={"sample_rate": 1.0, **changes.get("training", {})},
        privacy={"mode": mode, "accountant": "rdp"} | SHARES | changes.get("privacy", {}),
        aggregation={"min_hospitals": len(HOSPITALS)},
        evaluation=changes.get("evaluation", {}),
    )
    return describe(config, 32 * "0", classes, 1, dict.fromkeys(HOSPITALS, ""))


def spent_on_training(run: RunDescription) -> float:
    events = [each.event for each in planned_bookings(run) if each.account is Account.TRAINING]
    return epsilon(events, run.privacy.delta, Accountant(run.privacy.accountant))


@pytest.mark.parametrize("accountant", list(Accountant))
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("mode", [PrivacyMode.LOCAL, PrivacyMode.DISTRIBUTED])
def test_everything_that_a_hospital_books_on_its_training_records_is_within_the_runs_target(
    mode: PrivacyMode, share: float, accountant: Accountant
) -> None:
    run = described(mode, privacy={"accountant": accountant, "alone_share": share})
    target = run.privacy.target_epsilon
    assert target - 0.05 < spent_on_training(run) <= target


@pytest.mark.long
@pytest.mark.parametrize("mode", [PrivacyMode.LOCAL, PrivacyMode.DISTRIBUTED])
def test_sampled_batches_leave_room_for_it_too(mode: PrivacyMode) -> None:
    run = described(mode, training={"sample_rate": 0.2}, privacy={"target_epsilon": 4.0})
    assert 3.9 < spent_on_training(run) <= 4.0


def test_with_half_the_share_the_runs_own_training_and_a_hospitals_cost_about_the_same() -> None:
    run = described(PrivacyMode.LOCAL)
    delta, accountant = run.privacy.delta, Accountant(run.privacy.accountant)
    mechanism, parameters = mechanism_of(run), layout_of(run).parameters
    of_alone = mechanism.bookings_alone(run, parameters)
    everything = [booking for booking in planned_bookings(run) if booking.account is Account.TRAINING]
    alone = epsilon([each.event for each in of_alone], delta, accountant)
    together = epsilon([each.event for each in everything if each not in of_alone], delta, accountant)
    assert alone == pytest.approx(together, rel=0.01)
    assert together < 0.75 * run.privacy.target_epsilon


def test_its_noise_is_all_the_hospitals_own_and_withstands_everyone() -> None:
    run = described(PrivacyMode.DISTRIBUTED)
    of_alone = mechanism_of(run).bookings_alone(run, layout_of(run).parameters)
    assert {booking.colluders for booking in of_alone} == {None}
    assert {booking.account for booking in of_alone} == {Account.TRAINING}


def test_what_a_mode_claims_against_each_adversary_counts_it() -> None:
    (outsider, hospital, server) = claims_of(described(PrivacyMode.DISTRIBUTED))
    assert [claim.adversary for claim in (outsider, hospital, server)] == [
        EpsilonAdversary.OUTSIDER, EpsilonAdversary.HOSPITAL, EpsilonAdversary.SERVER
    ]  # fmt: skip
    without = claims_of(described(PrivacyMode.DISTRIBUTED, privacy={"alone_share": 0.0}))
    # The noise of the run's own sums is larger, so another hospital, who knows a part of that, learns less of it.
    for claim, plain in zip((outsider, hospital, server), without, strict=True):
        assert plain.value - 1.5 < claim.value <= plain.value + 0.01


@pytest.mark.parametrize("accountant", list(Accountant))
def test_a_share_so_small_that_the_accountant_rounds_it_up_is_refused(accountant: Accountant) -> None:
    privacy = replace(
        Config(), privacy={"target_epsilon": 0.05, "delta": 0.01, "accountant": accountant, "alone_share": 0.05}
    ).privacy
    with pytest.raises(PrivacyError, match="tell from nothing"):
        alone_privacy(privacy)


def test_a_run_without_a_share_books_what_it_always_did() -> None:
    run = described(PrivacyMode.LOCAL, privacy={"alone_share": 0.0})
    assert mechanism_of(run).bookings_alone(run, layout_of(run).parameters) == ()
    assert mechanism_of(run).threshold_alone(run) is None
    with pytest.raises(PrivacyError, match=r"set privacy\.alone_share to 0"):
        alone_privacy(run.privacy)
    with pytest.raises(PrivacyError, match=r"set privacy\.alone_share to 0"):
        threshold_event(run.privacy)


def test_a_mode_without_privacy_has_the_comparison_and_no_cost() -> None:
    run = described(PrivacyMode.NONE)
    mechanism = mechanism_of(run)
    assert mechanism.bookings_alone(run, layout_of(run).parameters) == ()
    assert mechanism.threshold_alone(run) is None
    assert not mechanism.of_hospital_alone().privacy.alone_share


def test_several_classes_have_no_threshold_to_pay_for() -> None:
    run = described(PrivacyMode.LOCAL, ("0", "1", "2", "3", "4"))
    assert mechanism_of(run).threshold_alone(run) is None
    assert len(mechanism_of(run).bookings_alone(run, layout_of(run).parameters)) == 2  # Its steps and its mean.
    assert spent_on_training(run) < run.privacy.target_epsilon


def test_a_hospital_that_compares_at_home_has_the_runs_whole_target() -> None:
    run = described(PrivacyMode.LOCAL)
    whole = mechanism_of(run).with_whole_target()
    steps, mean = whole.steps_alone(run, noise=True), whole.mean_alone(run, layout_of(run).parameters, noise=True)
    assert steps.event is not None
    assert mean is not None
    assert mean.event is not None
    events = [*([steps.event] * ROUNDS), mean.event]
    reached = epsilon(events, run.privacy.delta, Accountant(run.privacy.accountant))
    assert run.privacy.target_epsilon - 0.05 < reached <= run.privacy.target_epsilon


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evaluation": {"exact": True}}, "evaluation.exact leaves counts without noise"),
        ({"privacy": {"alone_share": 0.95}}, "alone_share"),
        ({"privacy": {"alone_share": math.nan}}, "alone_share"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(changes: dict[str, dict[str, object]], said: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=said):
        described(PrivacyMode.LOCAL, ("normal", "pneumonia"), **changes)


def test_a_task_of_several_labels_is_refused() -> None:
    terms = {"kind": "multilabel", "classes": ("Edema", "Mass", "Hernia")}
    with pytest.raises((ConfigError, ValueError), match="multilabel"):
        replace(Config(), privacy={"alone_share": 0.5}, task=terms)


def test_a_preset_of_several_labels_is_refused_when_its_classes_are_known() -> None:
    config = replace(Config(), experiment={"task": "chestmnist"}, privacy={"alone_share": 0.5})
    with pytest.raises(ConfigError, match=r"^privacy\.alone_share must be 0 in a multilabel task, chestmnist"):
        describe(config, 32 * "0", tuple(map(str, range(14))), 1, dict.fromkeys(HOSPITALS, ""))
