"""What a whole run costs is known before its first round, and a run that would pass a budget is refused by then."""

import math

import pytest

from client.planned_cost import check_whole_run, planned_bookings
from common.config import HospitalConfig, replace
from common.errors import BudgetExceededError, PrivacyError
from common.privacy.budget import Account
from tests.support.proposed_run import CONFIG, Members

RUN = Members.made().description()


def test_a_run_is_planned_to_its_target_and_no_further() -> None:
    costs = {cost.account: cost for cost in check_whole_run(HospitalConfig(), RUN, ())}
    assert costs.keys() == {Account.TRAINING, Account.VALIDATION, Account.TEST}
    assert all(cost.before == 0 for cost in costs.values())
    assert 0.9 * RUN.privacy.target_epsilon < costs[Account.TRAINING].after <= RUN.privacy.target_epsilon + 1e-6
    assert 0.5 < costs[Account.TEST].after <= RUN.evaluation.target_epsilon + 1e-6


def test_what_was_spent_before_counts_and_the_run_that_passes_a_budget_is_refused_with_both_figures() -> None:
    booked = planned_bookings(RUN)
    (once, *_), (twice, *_) = check_whole_run(HospitalConfig(), RUN, ()), check_whole_run(HospitalConfig(), RUN, booked)
    assert math.isclose(twice.before, once.after)
    assert once.after < twice.after < 2 * once.after
    tight = HospitalConfig(epsilon_budget=(once.after + twice.after) / 2)
    assert check_whole_run(tight, RUN, ())[0].after == once.after
    with pytest.raises(BudgetExceededError, match=r"all 4 rounds would bring this hospital to ε = .* training data"):
        check_whole_run(tight, RUN, booked)


def test_a_measurement_has_a_budget_of_its_own() -> None:
    with pytest.raises(BudgetExceededError, match="of its validation data"):
        check_whole_run(HospitalConfig(evaluation_epsilon_budget=0.5), RUN, ())


def test_a_run_without_privacy_or_with_exact_counts_spends_nothing_there() -> None:
    members = Members.made()
    bare = members.description(replace(CONFIG, privacy={"mode": "none"}, evaluation={"exact": True}))
    assert check_whole_run(HospitalConfig(), bare, ()) == ()


def test_noise_that_promises_less_than_the_policy_wants_is_refused() -> None:
    with pytest.raises(PrivacyError, match="must be bounded for each patient"):
        check_whole_run(HospitalConfig(unit="patient"), RUN, ())  # type: ignore[arg-type]  # as in config.yaml


def test_statistics_are_planned_where_they_are_asked_for() -> None:
    run = Members.made().description(replace(CONFIG, evaluation={"statistics_epsilon": 0.5}))
    costs = {cost.account: cost for cost in check_whole_run(HospitalConfig(allow_statistics_epsilon=0.6), run, ())}
    assert 0 < costs[Account.STATISTICS].after <= 0.5 + 1e-6


def test_the_mean_of_features_is_part_of_the_target() -> None:
    config = replace(CONFIG, model={"name": "scattering_linear"}, privacy={"mean_share": 0.1})
    run = Members.made().description(config)
    training = [booking for booking in planned_bookings(run) if booking.account is Account.TRAINING]
    assert [booking.event.sample_rate for booking in training] == [run.training.sample_rate, 1.0]
    cost = check_whole_run(HospitalConfig(), run, ())[0]
    assert 0.9 * run.privacy.target_epsilon < cost.after <= run.privacy.target_epsilon + 1e-6
