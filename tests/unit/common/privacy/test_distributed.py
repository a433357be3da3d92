"""The mechanism against its theorem: sensitivity, noise and divergence, each in exact or enclosing arithmetic."""

import dataclasses
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import integrate, stats
from scipy.special import ndtr

from common.config import PrivacyUnit
from common.errors import PrivacyError
from common.keystream import Keystream
from common.privacy import distributed
from common.privacy.accounting import Accountant, EpsilonAdversary, MechanismKind, epsilon
from common.privacy.calibration import noise_multiplier
from common.privacy.discrete_gaussian import LARGEST_VARIANCE
from common.privacy.distributed import DistributedMechanism
from tests.support.published import gaussian

SEED = bytes(range(32))
DIMENSION = 12


def mechanism(**changes: Any) -> DistributedMechanism:  # noqa: ANN401 - each of the fields
    fields: dict[str, Any] = {
        "noise_multiplier": 1.25,
        "max_grad_norm": 0.5,
        "norm_bound": 4096,
        "dimension": DIMENSION,
        "colluders": 1,
        "tolerated_dropouts": 1,
    }
    return DistributedMechanism(**(fields | changes))


any_float32 = st.floats(width=32, allow_nan=True, allow_infinity=True)
batches = hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.just(DIMENSION)), elements=any_float32)


@given(batches)
def test_no_gradient_whatever_it_holds_moves_the_sum_by_more_than_the_bound(gradients: NDArray[np.float32]) -> None:
    clip = mechanism().clip
    whole = clip(gradients).total
    for unit in range(len(gradients)):
        moved = whole - clip(np.delete(gradients, unit, axis=0)).total
        assert sum(int(element) ** 2 for element in moved) <= 4096**2


@given(batches)
def test_a_batch_may_come_in_parts(gradients: NDArray[np.float32]) -> None:
    clip = mechanism().clip
    together, parts = clip(gradients), clip(gradients[:1]) + clip(gradients[1:])
    assert np.array_equal(parts.total, together.total)
    assert (parts.units, parts.refused) == (together.units, together.refused)


def test_an_empty_batch_is_a_sum_like_any_other() -> None:
    clipped = mechanism().clip(np.empty((0, DIMENSION), np.float32))
    assert clipped.total.tolist() == [0] * DIMENSION
    assert clipped.units == 0


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_unit_that_is_not_finite_counts_as_zero(poison: float) -> None:
    gradients = np.full((3, DIMENSION), 0.01, np.float32)
    expected = mechanism().clip(gradients[:2]).total
    gradients[2, 5] = poison
    clipped = mechanism().clip(gradients)
    assert np.array_equal(clipped.total, expected)
    assert (clipped.units, clipped.refused) == (3, 1)


@pytest.mark.parametrize(("beyond", "refused"), [(0, 0), (1, 1)])
def test_the_bound_is_checked_in_integers_whatever_floating_point_proposed(
    beyond: int, refused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 4096² and 4096² + 1: a relative difference of 6e-8.
    proposal = np.array([4095, 90, 9, 3, 1] + 7 * [0], np.int64)
    proposal[5] = beyond
    assert int(proposal @ proposal) == 4096**2 + beyond
    monkeypatch.setattr(DistributedMechanism, "_whole_numbers", lambda *_: proposal[None])
    clipped = mechanism().clip(np.zeros((1, DIMENSION), np.float32))
    assert clipped.refused == refused
    assert np.array_equal(clipped.total, (1 - refused) * proposal)


def test_gradients_clipped_a_few_at_a_time_add_up_as_if_clipped_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = np.random.default_rng(2).normal(size=(11, DIMENSION)).astype(np.float32)
    gradients[4, 3] = np.nan
    gradients[6] = 0
    one_by_one = [mechanism().clip(gradients[row : row + 1]) for row in range(len(gradients))]
    monkeypatch.setattr(distributed, "_ELEMENTS_AT_ONCE", 3 * DIMENSION)
    together = mechanism().clip(gradients)
    assert np.array_equal(together.total, sum(each.total for each in one_by_one))
    assert (together.units, together.refused) == (11, 1)


def test_decoding_gives_the_sum_of_clipped_gradients() -> None:
    generator = np.random.default_rng(1)
    # A third of them is shorter than the bound, and must stay as it is.
    gradients = (generator.normal(size=(50, DIMENSION)) * generator.uniform(0.01, 0.5, (50, 1))).astype(np.float32)
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    expected = (gradients * np.minimum(1, 0.5 / norms)).sum(axis=0)
    decoded = mechanism(norm_bound=2**18).decode(mechanism(norm_bound=2**18).clip(gradients).total)
    assert decoded == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_gradient_of_another_shape_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"shape \(units, 12\)"):
        mechanism().clip(np.zeros((2, DIMENSION + 1), np.float32))
    with pytest.raises(PrivacyError, match="shape"):
        mechanism().clip(np.zeros(DIMENSION, np.float32))


@given(st.floats(0.01, 8.0), st.integers(4, 2**18), st.integers(0, 5), st.integers(0, 5), st.integers(1, 100))
def test_the_noise_that_remains_is_enough_in_exact_arithmetic(
    multiplier: float, bound: int, colluders: int, dropouts: int, honest: int
) -> None:
    run = mechanism(
        noise_multiplier=multiplier, norm_bound=bound, dimension=1, colluders=colluders, tolerated_dropouts=dropouts
    )
    variance = run.share_variance(honest + colluders + dropouts)
    assert variance >= distributed.SMALLEST_SHARE_VARIANCE
    assert honest * variance - distributed.SMOOTHING_VARIANCE >= (Fraction(multiplier) * bound) ** 2


def test_shares_are_no_larger_than_they_must_be() -> None:
    run = mechanism(norm_bound=2**18)
    remaining = 8 - 2
    assert remaining * (run.share_variance(8) - 1) - distributed.SMOOTHING_VARIANCE < (1.25 * 2**18) ** 2


def test_a_noise_share_is_drawn_from_the_keystream_it_is_given() -> None:
    run = mechanism(norm_bound=2**18)
    one, again, other = (run.noise_share(6, Keystream(key)) for key in (SEED, SEED, bytes(reversed(range(32)))))
    assert np.array_equal(one, again)
    assert (one != other).mean() > 0.5


def test_a_noise_share_has_the_variance_of_the_cohort() -> None:
    run = dataclasses.replace(mechanism(norm_bound=2**18), dimension=40_000)
    share = run.noise_share(6, Keystream(SEED))
    assert share.dtype == np.int64
    assert share.shape == (40_000,)
    assert share.var() == pytest.approx(run.share_variance(6), rel=0.04)


def test_fewer_survivors_than_the_noise_allows_are_named() -> None:
    assert mechanism(tolerated_dropouts=2).fewest_survivors(7) == 5


@pytest.mark.parametrize(("colluders", "dropouts"), [(2, 1), (0, 3), (3, 0), (5, 5)])
def test_a_cohort_in_which_no_honest_noise_is_sure_to_remain_is_refused(colluders: int, dropouts: int) -> None:
    run = mechanism(colluders=colluders, tolerated_dropouts=dropouts)
    for ask in (run.share_variance, run.fewest_survivors):
        with pytest.raises(PrivacyError, match="at least one honest one's noise must remain"):
            ask(3)


def test_noise_beyond_the_sampler_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"raise privacy\.target_epsilon"):
        mechanism(noise_multiplier=1e6, norm_bound=2**18).share_variance(3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_multiplier": 0.0}, "noise multiplier"),
        ({"noise_multiplier": math.nan}, "noise multiplier"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"max_grad_norm": math.inf}, "max_grad_norm"),
        ({"dimension": 0}, "elements"),
        ({"dimension": distributed.LARGEST_DIMENSION + 1}, "elements"),
        ({"norm_bound": 0}, "integer clipping norm"),
        ({"norm_bound": distributed.LARGEST_NORM_BOUND + 1}, "integer clipping norm"),
        ({"norm_bound": 10}, "set aggregation.modulus_bits to 32"),
        ({"colluders": -1}, "colluders"),
        ({"tolerated_dropouts": -1}, "tolerated_dropouts"),
    ],
)
def test_parameters_outside_the_theorem_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        mechanism(**changes)


def fitted(**changes: Any) -> DistributedMechanism:  # noqa: ANN401 - each of the arguments
    arguments: dict[str, Any] = {
        "noise_multiplier": 1.0,
        "max_grad_norm": 1.0,
        "dimension": 26_000,
        "hospitals": 4,
        "expected_units": 512,
        "colluders": 1,
        "tolerated_dropouts": 1,
        "modulus_bits": 32,
    }
    return DistributedMechanism.fit(**(arguments | changes))


@settings(max_examples=50)
@given(st.floats(0.3, 30.0), st.integers(3, 200), st.integers(1, 2000))
def test_a_fitted_sum_stays_within_the_ring(multiplier: float, hospitals: int, batch: int) -> None:
    expected = hospitals * batch
    run = fitted(noise_multiplier=multiplier, hospitals=hospitals, expected_units=expected, dimension=1000)
    # A sum of independent coins has no heavier upper tail than the Poisson variable of its mean (Hoeffding 1956).
    deviation = math.sqrt(hospitals * run.share_variance(hospitals))
    room = 2**31 - 1 - stats.norm.isf(2.0**-65 / 1000) * deviation
    assert stats.poisson.sf(room // run.norm_bound, expected) <= 2.0**-64
    assert run.share_variance(hospitals) <= LARGEST_VARIANCE


def test_a_ring_of_16_bits_is_too_small_and_says_so() -> None:
    with pytest.raises(PrivacyError, match=r"set aggregation\.modulus_bits to 32"):
        fitted(modulus_bits=16)


def test_a_large_model_fits_32_bits() -> None:
    assert fitted(dimension=11_200_000).norm_bound == distributed.LARGEST_NORM_BOUND


def test_the_sum_over_a_ring_is_the_sum_over_the_integers() -> None:
    run = fitted(dimension=500)
    rng, stream = np.random.default_rng(2), Keystream(SEED)
    plain = np.zeros(500, np.int64)
    ring = np.zeros(500, np.uint32)
    for _ in range(4):
        gradients = rng.normal(size=(128, 500)).astype(np.float32)
        noisy = run.clip(gradients).total + run.noise_share(4, stream)
        plain += noisy
        ring += noisy.astype(np.uint32)
    assert np.array_equal(ring.view(np.int32), plain)


@pytest.mark.long
def test_each_adversary_gets_its_own_epsilon_and_more_colluders_never_less() -> None:
    target = 3.0
    multiplier = noise_multiplier(target, 1e-5, 0.1, 5, Accountant.RDP)
    before = math.inf
    for colluders in range(3):
        run = fitted(noise_multiplier=multiplier, hospitals=5, colluders=colluders)
        claims = run.epsilons(0.1, 5, 5, 1e-5, PrivacyUnit.PATIENT, Accountant.RDP)
        by = {claim.adversary: claim for claim in claims}
        assert list(by) == list(EpsilonAdversary)[: 3 if colluders == 0 else 4]
        assert {claim.unit for claim in claims} == {PrivacyUnit.PATIENT}
        outsider, hospital, server = (by[each].value for each in list(EpsilonAdversary)[:3])
        assert outsider == server < hospital
        # The more noise is there in case of colluders, the less everybody else learns.
        assert server < before
        before = server
        if colluders == 0:
            assert server <= target < hospital
        else:
            assert by[EpsilonAdversary.COLLUDING_SERVER].colluders == colluders
            assert hospital <= by[EpsilonAdversary.COLLUDING_SERVER].value <= target
        if colluders == 1:
            assert hospital == pytest.approx(by[EpsilonAdversary.COLLUDING_SERVER].value, rel=1e-6)


@pytest.mark.long
@pytest.mark.parametrize(("target", "of_a_hospital"), [(1.0, 1.26), (3.0, 3.87), (8.0, 10.9)])
def test_another_hospital_of_the_run_knows_its_own_noise(target: float, of_a_hospital: float) -> None:
    """Four hospitals, one dropout tolerated, no colluders: what is 1, 3, 8 against the server is more against them."""
    rate, rounds, delta = 0.4, 30, 1e-4
    run = fitted(
        noise_multiplier=noise_multiplier(target, delta, rate, rounds), hospitals=4, colluders=0, tolerated_dropouts=1
    )
    outsider, hospital, server = run.epsilons(rate, rounds, 4, delta, PrivacyUnit.RECORD, Accountant.PRV)
    assert outsider.value == server.value <= target
    assert hospital.adversary is EpsilonAdversary.HOSPITAL
    assert hospital.value == pytest.approx(of_a_hospital, abs=0.05)
    assert str(hospital).endswith("for each record (zero-out), against another hospital of the run (PRV)")


def test_nothing_is_claimed_where_no_honest_noise_remains() -> None:
    run = fitted(hospitals=2, colluders=0, tolerated_dropouts=1)
    _, hospital, _ = run.epsilons(0.1, 20, 2, 1e-5, PrivacyUnit.RECORD, Accountant.RDP)
    assert hospital.value == math.inf
    assert run.event_against(1, 2, 0.1) is None


def test_the_event_against_the_agreed_colluders_is_never_cheaper_than_what_is_booked() -> None:
    run = fitted(hospitals=6, colluders=2)
    booked, against = run.event(0.1), run.event_against(2, 6, 0.1)
    assert against is not None
    assert against.noise_multiplier == pytest.approx(booked.noise_multiplier, rel=1e-6)
    assert against.noise_multiplier >= booked.noise_multiplier


def test_a_round_is_booked_as_the_gaussian_it_is_bounded_by() -> None:
    event = mechanism().event(0.1, rounds=7)
    assert event.kind is MechanismKind.DISTRIBUTED_DISCRETE_GAUSSIAN
    assert 0 < event.approximation < 1e-30
    assert epsilon([event], 1e-5) == epsilon([gaussian(1.25, 0.1, 7)], 1e-5)


# --- the theorem, where its terms are large enough to be seen ---


def discrete_gaussian_law(variance: float, reach: int) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * variance))
    law: NDArray[np.float64] = weights / weights.sum()
    return law


@pytest.mark.parametrize("variance", [1, 2])
@pytest.mark.parametrize("shares", [2, 3, 5])
def test_a_sum_of_shares_is_within_tau_of_one_discrete_gaussian(variance: int, shares: int) -> None:
    one = discrete_gaussian_law(variance, 40)
    law = one
    for _ in range(shares - 1):
        law = np.convolve(law, one)
    single = discrete_gaussian_law(variance * shares, 40 * shares)
    near = slice(40 * shares - 6, 40 * shares + 7)
    distance = np.abs(np.log(law[near] / single[near])).max()
    # Above the rounding of the test's own arithmetic, or it would show nothing.
    assert 1e-13 < distance <= distributed._tau(shares, variance) + 1e-13


@pytest.mark.parametrize("smoothing", [0.25, 0.5])
def test_a_discrete_gaussian_is_a_rounded_gaussian_within_three_eta(smoothing: float) -> None:
    variance, shift = 3.0, 2
    eta = 2 * math.exp(-2 * math.pi**2 * smoothing) + 2 * math.exp(-8 * math.pi**2 * smoothing)
    whole = np.arange(-60, 61)

    def rounded_to(y: int, x: float) -> float:
        weights = np.exp(-((whole - x) ** 2) / (2 * smoothing))
        density = math.exp(-((x - shift) ** 2) / (2 * (variance - smoothing)))
        density /= math.sqrt(2 * math.pi * (variance - smoothing))
        return float(density * math.exp(-((y - x) ** 2) / (2 * smoothing)) / weights.sum())

    law = discrete_gaussian_law(variance, 60)
    for y in range(-4, 8):
        probability, _ = integrate.quad(lambda x, y=y: rounded_to(y, x), -20, 24, limit=500, epsabs=1e-13)
        assert abs(math.log(probability / law[y - shift + 60])) <= 3 * eta


def test_eta_is_what_is_given_away_by_smoothing() -> None:
    assert distributed._eta(1) == pytest.approx(2 * math.exp(-2 * math.pi**2), rel=1e-12)
    assert mechanism(norm_bound=2**18, dimension=10**7).approximation * 10**5 < 1e-20


@pytest.mark.parametrize("rate", [0.05, 0.4, 1.0])
@pytest.mark.parametrize("privacy_loss", [0.1, 0.5, 1.5])
def test_the_sampled_discrete_mechanism_hides_no_less_than_the_sampled_gaussian(
    rate: float, privacy_loss: float
) -> None:
    # One coordinate, one round, four shares, computed outright: the hockey-stick divergence in both directions.
    bound, shares, variance = 40, 4, 500
    one = discrete_gaussian_law(variance, 400)
    law = one
    for _ in range(shares - 1):
        law = np.convolve(law, one)
    without = np.concatenate([law, np.zeros(bound)])
    with_unit = (1 - rate) * without + rate * np.concatenate([np.zeros(bound), law])
    removed = np.maximum(with_unit - math.exp(privacy_loss) * without, 0).sum()
    added = np.maximum(without - math.exp(privacy_loss) * with_unit, 0).sum()
    multiplier = math.sqrt(shares * variance - distributed.SMOOTHING_VARIANCE) / bound
    allowed = sampled_gaussian_delta(multiplier, rate, privacy_loss)
    # A Gaussian with 3 % less noise would allow less than what is really lost: the bound is no gift.
    assert sampled_gaussian_delta(1.03 * multiplier, rate, privacy_loss) < max(removed, added) <= allowed


def sampled_gaussian_delta(multiplier: float, rate: float, privacy_loss: float) -> float:
    """Return δ of one Poisson-subsampled Gaussian step at ε: the probability that the loss is above it, weighed."""
    inside = (math.exp(privacy_loss) - 1 + rate) / rate
    edge = multiplier**2 * math.log(inside) + 0.5
    above_without = ndtr(-edge / multiplier)
    above_with = (1 - rate) * above_without + rate * ndtr((1 - edge) / multiplier)
    return float(above_with - math.exp(privacy_loss) * above_without)
