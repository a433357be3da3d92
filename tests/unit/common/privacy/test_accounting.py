"""ε against published values, an independent accountant, and the properties any composition must have."""

import dataclasses
import itertools
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import PrivacyUnit
from common.errors import PrivacyError
from common.privacy import accounting
from common.privacy.accounting import (
    Accountant,
    Epsilon,
    EpsilonAdversary,
    MechanismEvent,
    MechanismKind,
    against_everyone,
    epsilon,
    for_a_group,
    rounded_up,
)
from tests.support.published import as_dp_event, gaussian, published, steps_of

GAUSSIAN = MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN

# Few mechanisms in many mixtures: the divergences of one are computed once and kept.
events = st.builds(
    MechanismEvent,
    st.just(GAUSSIAN),
    st.sampled_from([0.8, 1.3, 4.0]),
    st.sampled_from([0.01, 0.3]),
    st.integers(1, 150),
)
few_examples = settings(max_examples=6)


@pytest.mark.parametrize(
    "case",
    published("opacus", accountant="rdp", solve_for=None) + published("opacus", accountant="prv", solve_for=None),
)
def test_epsilon_is_what_opacus_publishes(case: dict[str, Any]) -> None:
    event = gaussian(case["noise_multiplier"], case["sample_rate"], case["steps"])
    got = epsilon([event], case["delta"], Accountant(case["accountant"]))
    assert got == pytest.approx(case["epsilon"], abs=10.0 ** -case["places"])


@pytest.mark.parametrize("case", published("opacus", accountant="gdp"))
def test_epsilon_is_above_the_central_limit_that_opacus_publishes_too(case: dict[str, Any]) -> None:
    # Gaussian differential privacy by the central limit theorem is an approximation from below, and no accountant here.
    event = gaussian(case["noise_multiplier"], case["sample_rate"], case["steps"])
    assert case["epsilon_range"][1] < epsilon([event], case["delta"]) < 1.05 * case["epsilon_range"][1]


@pytest.mark.parametrize("case", published("tensorflow_privacy", accountant="rdp"))
def test_epsilon_by_rdp_is_what_tensorflow_privacy_publishes(case: dict[str, Any]) -> None:
    got = epsilon([gaussian(case["noise_multiplier"], *steps_of(case))], case["delta"], Accountant.RDP)
    # Each bound is the minimum over a grid of orders, theirs another than ours; at equal orders the two accountants
    # agree to 1e-6, see the test against dp_accounting.
    assert got == pytest.approx(case["epsilon"], abs=2e-3)


@pytest.mark.parametrize("case", published("tensorflow_privacy", accountant="pld"))
def test_epsilon_by_prv_bounds_the_privacy_loss_distribution_tensorflow_privacy_publishes(case: dict[str, Any]) -> None:
    got = epsilon([gaussian(case["noise_multiplier"], *steps_of(case))], case["delta"])
    assert case["epsilon"] <= got <= case["epsilon"] + 2 * accounting.PRV_EPSILON_ERROR


def test_renyi_divergences_are_what_google_publishes() -> None:
    (case,) = (c.values[0] for c in published("google_dp_accounting", kind="rdp_poisson_subsampled_gaussian"))
    orders = tuple(map(float, case["orders"]))
    curve = case["count"] * accounting._rdp_curve(case["noise_multiplier"], case["sampling_probability"], orders)
    # The constant published for order 1.5 is a looser bound: 3 % above the integral, see the next test.
    assert orders[0] == 1.5
    assert curve[1:] == pytest.approx(case["rdp"][1:], rel=case["rtol"])
    assert 0.96 * case["rdp"][0] < curve[0] <= case["rdp"][0]


@pytest.mark.parametrize(("noise_multiplier", "rate"), [(2.5, 0.01), (1.5, 0.04), (0.8, 0.3), (4.0, 0.9)])
def test_renyi_divergences_are_the_integrals_they_stand_for(noise_multiplier: float, rate: float) -> None:
    orders = (1.1, 1.5, 2.0, 3.7, 10.9, 32.0)
    x, step = np.linspace(-60 * noise_multiplier, 60 * noise_multiplier + 40, 400_001, retstep=True)
    density = -0.5 * (x / noise_multiplier) ** 2 - math.log(noise_multiplier * math.sqrt(2 * math.pi))
    ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * noise_multiplier**2))
    exact = [(np.logaddexp.reduce(density + order * ratio) + math.log(step)) / (order - 1) for order in orders]
    assert accounting._rdp_curve(noise_multiplier, rate, orders) == pytest.approx(exact, rel=1e-6)


def test_the_conversion_to_epsilon_is_what_google_publishes() -> None:
    (case,) = (c.values[0] for c in published("google_dp_accounting", kind="gaussian_single"))
    orders = tuple(0.001 * i for i in range(1001, 100_000))
    curve = np.asarray(orders) / (2 * case["noise_multiplier"] ** 2)
    assert accounting._from_rdp(curve, orders, case["delta"]) == pytest.approx(case["epsilon"], abs=1e-7)


@few_examples
@given(st.lists(events, min_size=1, max_size=4))
def test_rdp_agrees_with_an_independent_accountant(mechanisms: list[MechanismEvent]) -> None:
    # At whole orders: its series for others takes seconds, or does not converge.
    orders = tuple(float(order) for order in range(2, 64))
    independent = RdpAccountant(orders=orders)
    for event in mechanisms:
        independent.compose(as_dp_event(event))
    curve = sum(
        event.steps * accounting._rdp_curve(event.noise_multiplier, event.sample_rate, orders) for event in mechanisms
    )
    exact = independent.get_epsilon(1e-5)
    assert accounting._from_rdp(np.asarray(curve), orders, 1e-5) == pytest.approx(exact, rel=1e-5)
    # More orders can only lower the bound.
    assert 0 < epsilon(mechanisms, 1e-5, Accountant.RDP) <= exact * (1 + 1e-5)


@few_examples
@given(st.lists(events, min_size=1, max_size=2))
def test_prv_bounds_the_privacy_loss_distribution_in_both_directions(mechanisms: list[MechanismEvent]) -> None:
    # dp_accounting takes the worse of adding and removing a unit; the PRV accountant looks at removing alone.
    independent = PLDAccountant(value_discretization_interval=1e-3)
    for event in mechanisms:
        independent.compose(as_dp_event(event))
    exact = independent.get_epsilon(1e-5)
    discretised = 1e-3 * math.sqrt(sum(event.steps for event in mechanisms))
    assert exact - discretised <= epsilon(mechanisms, 1e-5) <= exact + 3 * accounting.PRV_EPSILON_ERROR


@few_examples
@given(events, st.integers(1, 200))
def test_more_steps_never_cost_less(event: MechanismEvent, more: int) -> None:
    longer = dataclasses.replace(event, steps=event.steps + more)
    for accountant in Accountant:
        assert epsilon([longer], 1e-5, accountant) >= epsilon([event], 1e-5, accountant)


@pytest.mark.long
@few_examples
@given(events, st.sampled_from([1.01, 2.0]))
def test_more_noise_never_costs_more(event: MechanismEvent, factor: float) -> None:
    noisier = dataclasses.replace(event, noise_multiplier=event.noise_multiplier * factor)
    for accountant in Accountant:
        assert epsilon([noisier], 1e-5, accountant) <= epsilon([event], 1e-5, accountant)


@few_examples
@given(st.lists(events, min_size=2, max_size=3), st.randoms(use_true_random=False))
def test_order_and_grouping_of_events_make_no_difference(
    mechanisms: list[MechanismEvent], order: random.Random
) -> None:
    singles = [dataclasses.replace(e, steps=part) for e in mechanisms for part in (1, e.steps - 1) if part]
    order.shuffle(singles)
    for accountant in Accountant:
        assert epsilon(singles, 1e-4, accountant) == epsilon(mechanisms, 1e-4, accountant)


@few_examples
@given(st.lists(events, min_size=1, max_size=2), events)
def test_another_mechanism_never_makes_it_cheaper(mechanisms: list[MechanismEvent], another: MechanismEvent) -> None:
    for accountant in Accountant:
        before = epsilon(mechanisms, 1e-5, accountant)
        # Another mechanism lays out another grid, whose rounding is far below the error that PRV's bound adds.
        assert epsilon([*mechanisms, another], 1e-5, accountant) >= before - accounting.PRV_EPSILON_ERROR / 10


def test_nothing_spent_costs_nothing() -> None:
    assert epsilon([], 1e-5) == 0.0


def test_full_batches_are_the_gaussian_mechanism() -> None:
    # Balle and Wang 2018, theorem 8: ten full batches are one Gaussian with a tenth of the variance.
    exact = dp_accounting.get_epsilon_gaussian(5.0 / math.sqrt(10), 1e-5)
    assert exact <= epsilon([gaussian(5.0, 1.0, 10)], 1e-5) <= exact + 2 * accounting.PRV_EPSILON_ERROR


def test_the_distance_to_a_gaussian_is_paid_for_in_epsilon_and_delta() -> None:
    event = dataclasses.replace(
        gaussian(1.5, 0.1, 10), kind=MechanismKind.DISTRIBUTED_DISCRETE_GAUSSIAN, approximation=0.001
    )
    expected = epsilon([gaussian(1.5, 0.1, 10)], 1e-5 * math.exp(-0.01)) + 0.02
    assert epsilon([event], 1e-5) == expected
    assert expected > epsilon([gaussian(1.5, 0.1, 10)], 1e-5) + 0.02


@pytest.mark.parametrize(
    ("event", "delta"),
    [(gaussian(1.0, 0.1, 10), 1e-12), (gaussian(0.05, 0.5, 3), 1e-5), (gaussian(0.1, 1.0, 100), 1e-5)],
    ids=["tiny-delta", "little-noise", "huge-epsilon"],
)
def test_where_prv_has_no_answer_the_bound_of_rdp_stands_in(event: MechanismEvent, delta: float) -> None:
    assert epsilon([event], delta, Accountant.PRV) == epsilon([event], delta, Accountant.RDP)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_a_delta_that_is_no_probability_is_refused(delta: float) -> None:
    with pytest.raises(PrivacyError, match="δ must be between 0 and 1"):
        epsilon([gaussian(1.0, 0.1, 1)], delta)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("noise_multiplier", 0.0, "noise multiplier"),
        ("noise_multiplier", -1.0, "noise multiplier"),
        ("noise_multiplier", math.inf, "noise multiplier"),
        ("noise_multiplier", math.nan, "noise multiplier"),
        ("sample_rate", 0.0, "sample rate"),
        ("sample_rate", 1.0000001, "sample rate"),
        ("sample_rate", math.nan, "sample rate"),
        ("steps", 0, "steps"),
        ("steps", -3, "steps"),
        ("steps", 1.5, "steps"),
        ("steps", True, "steps"),
        ("approximation", -1e-9, "approximation"),
        ("approximation", 1.0, "approximation"),
        ("approximation", math.nan, "approximation"),
    ],
)
def test_an_event_that_no_accountant_could_bound_is_never_made(field: str, value: object, message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        dataclasses.replace(gaussian(1.0, 0.1, 1), **{field: value})  # type: ignore[arg-type]


def test_an_event_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        gaussian(1.0, 0.1, 1).steps = 0  # type: ignore[misc]


@given(st.floats(0, 1e6))
def test_what_is_shown_is_never_below_what_holds(value: float) -> None:
    assert value <= rounded_up(value) <= value + 1.001e-3


def test_an_infinite_epsilon_is_shown_as_such() -> None:
    assert rounded_up(math.inf) == math.inf


def test_a_claim_names_delta_unit_adversary_and_accountant() -> None:
    claim = Epsilon(1.2345, 1e-5, PrivacyUnit.PATIENT, EpsilonAdversary.COLLUDING_SERVER, Accountant.RDP, colluders=2)
    assert str(claim) == (
        "ε = 1.235 at δ = 1e-05 for each patient (zero-out), against the server with colluding hospitals (2) (RDP)"
    )


def test_local_noise_is_the_same_against_everyone() -> None:
    claims = against_everyone(2.0, 1e-5, PrivacyUnit.RECORD, Accountant.PRV, colluders=3)
    assert [claim.adversary for claim in claims] == list(EpsilonAdversary)
    assert {claim.value for claim in claims} == {2.0}
    without = against_everyone(2.0, 1e-5, PrivacyUnit.RECORD, Accountant.PRV, colluders=0)
    assert [claim.adversary for claim in without] == [
        each for each in EpsilonAdversary if each != EpsilonAdversary.COLLUDING_SERVER
    ]


# --- groups: a patient with several records, where each record is protected by itself ---


@pytest.mark.parametrize(("noise_multiplier", "rate"), [(1.2, 0.1), (2.0, 0.3), (0.8, 0.02)])
def test_a_group_of_one_is_a_unit(noise_multiplier: float, rate: float) -> None:
    orders = (1.1, 1.5, 2.0, 3.7, 10.0, 32.0)
    by_integral = [accounting._group_divergence(noise_multiplier, rate, 1, order) for order in orders]
    assert by_integral == pytest.approx(accounting._rdp_curve(noise_multiplier, rate, orders), rel=1e-6)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("order", [2, 3])
def test_the_divergence_of_a_group_is_the_sum_that_it_is_at_whole_orders(size: int, order: int) -> None:
    """The moment of a mixture of Gaussians is, at a whole order, a sum over which member each factor is of."""
    noise_multiplier, rate = 1.3, 0.2
    weights = [math.comb(size, j) * rate**j * (1 - rate) ** (size - j) for j in range(size + 1)]
    moment = math.fsum(
        math.prod(weights[j] for j in members)
        * math.exp(sum(a * b for a, b in itertools.combinations(members, 2)) / noise_multiplier**2)
        for members in itertools.product(range(size + 1), repeat=order)
    )
    got = accounting._group_divergence(noise_multiplier, rate, size, float(order))
    assert got == pytest.approx(math.log(moment) / (order - 1), rel=1e-9)


@pytest.mark.long
def test_a_group_costs_no_less_than_an_independent_accountant_says_and_little_more() -> None:
    noise_multiplier, rate, size, steps = 2.0, 0.1, 10, 250
    chosen = np.arange(size + 1)
    weights = [math.comb(size, int(j)) * rate**j * (1 - rate) ** (size - j) for j in chosen]
    independent = PLDAccountant(value_discretization_interval=1e-2)
    mixture = dp_accounting.dp_event.MixtureOfGaussiansDpEvent(noise_multiplier, [float(j) for j in chosen], weights)
    independent.compose(mixture, steps)
    exact = independent.get_epsilon(1e-5)
    got = epsilon([for_a_group(gaussian(noise_multiplier, rate, steps), size)], 1e-5)
    assert exact <= got <= 1.08 * exact


def test_gradients_that_point_elsewhere_are_told_no_better() -> None:
    """The claim of the module's head, where the patient's two records don't move the sum in one direction."""
    noise_multiplier, rate, order = 1.0, 0.3, 3.0
    bound = accounting._group_divergence(noise_multiplier, rate, 2, order)
    grid = np.linspace(-14, 14, 561)
    x, y = np.meshgrid(grid, grid)
    density = np.exp(-(x**2 + y**2) / 2) / (2 * np.pi) * (grid[1] - grid[0]) ** 2
    for angle in (0.0, 0.5, math.pi / 2, 3.0):
        for length in (0.4, 1.0):
            shifts = np.array([[0, 0], [1, 0], [math.cos(angle), math.sin(angle)]]) * [[0], [1], [length]]
            both = shifts[1] + shifts[2]
            ratio = sum(
                weight * np.exp(x * v[0] + y * v[1] - v @ v / 2)
                for weight, v in zip(
                    ((1 - rate) ** 2, rate * (1 - rate), rate * (1 - rate), rate**2), [*shifts, both], strict=True
                )
            )
            for power in (order, 1 - order):
                divergence = math.log(float((density * ratio**power).sum())) / (order - 1)
                assert divergence <= bound * (1 + 1e-9)


@pytest.mark.long
def test_more_records_of_a_patient_never_cost_less() -> None:
    event = gaussian(2.0, 0.1, 20)
    costs = [epsilon([for_a_group(event, size)], 1e-5, Accountant.RDP) for size in (1, 2, 3, 5, 10, 30)]
    assert costs == sorted(costs)
    assert costs[0] == epsilon([event], 1e-5, Accountant.RDP)
    # Where each record is in each batch, they add up to one vector of that many times the norm, which PRV composes too.
    assert epsilon([for_a_group(gaussian(40.0, 1.0, 5), 10)], 1e-5) == epsilon([gaussian(4.0, 1.0, 5)], 1e-5)


def test_groups_of_groups_are_groups() -> None:
    event = gaussian(2.0, 0.1, 20)
    assert for_a_group(for_a_group(event, 2), 3) == for_a_group(event, 6) == dataclasses.replace(event, group=6)


def test_a_group_that_takes_too_long_to_integrate_is_claimed_nothing_of() -> None:
    assert epsilon([for_a_group(gaussian(0.1, 0.1, 20), 1000)], 1e-5) == math.inf


@pytest.mark.parametrize("size", [0, -1, 1.5, accounting.LARGEST_GROUP + 1])
@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_a_group_that_is_none_is_refused(size: int, rate: float) -> None:
    with pytest.raises(PrivacyError, match="a group must be from 1"):
        for_a_group(gaussian(1.0, rate, 1), size)


def test_an_integral_that_is_not_vouched_for_is_no_bound() -> None:
    # At this point of a calibration scipy calls one of Opacus's integrals slowly convergent.
    event = gaussian(0.859375, 0.075, 1)
    assert epsilon([event], 1e-5) == epsilon([event], 1e-5, Accountant.RDP)


def test_the_module_is_imported_without_torch() -> None:
    probe = "import sys, common.privacy.accounting; sys.exit('torch' in sys.modules or 'opacus' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], cwd=Path(__file__).parents[4], check=False).returncode == 0
