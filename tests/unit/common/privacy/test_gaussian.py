"""The closed form of the Gaussian mechanism against the accountants, which know nothing of it."""

import pytest

from common.evaluation import EvaluationPlan, TaskKind
from common.evaluation.plan import EVALUATED
from common.privacy.accounting import Accountant, epsilon
from common.privacy.gaussian import accounted_mu, gaussian_delta, gaussian_epsilon, gaussian_mu

TINY = 1e-6


@pytest.mark.parametrize("accountant", Accountant)
@pytest.mark.parametrize("target", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("rounds", [1, 10, 100])
def test_an_accountant_bounds_a_plans_releases_by_its_target_and_hardly_by_less(
    accountant: Accountant, target: float, rounds: int
) -> None:
    plan = EvaluationPlan.of(
        rounds=rounds, classes=2, kind=TaskKind.BINARY, epsilon=target, delta=1e-4, accountant=accountant,
        interim_releases=9, repeats=0,
    )  # fmt: skip
    for part in EVALUATED:
        events = [
            plan.mechanism(release, colluders=0, tolerated_dropouts=1).event(1.0)
            for release in plan.releases
            if release.part is part
        ]
        assert target - 0.004 < epsilon(events, 1e-4, accountant) <= target


def test_epsilon_delta_and_mu_are_inverses_of_each_other() -> None:
    for mu in (0.01, 0.3139, 1.0, 5.0):
        for delta in (1e-9, 1e-4, 1e-2):
            found = gaussian_epsilon(mu, delta)
            assert gaussian_delta(mu, found) <= delta
            if found > TINY:  # A mechanism that δ alone covers has ε = 0, whatever its μ.
                assert gaussian_mu(found, delta) == pytest.approx(mu, rel=1e-6)


def test_a_published_value_is_met() -> None:
    """Balle and Wang 2018, figure 1's setting: at ε = 1 and δ = 1e-5 a deviation of 3.7304 is enough."""
    assert 1 / gaussian_mu(1.0, 1e-5) == pytest.approx(3.7304, abs=1e-3)


def test_what_no_noise_reaches_is_said() -> None:
    assert accounted_mu(0.005, 1e-4, Accountant.PRV) == 0.0
