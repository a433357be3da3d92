import math

import pytest

from common.errors import PrivacyError
from common.evaluation import EvaluationPlan, Part, ReleaseKind, TaskKind
from common.evaluation.plan import EVALUATED
from common.privacy.accounting import Accountant, epsilon
from common.privacy.distributed import SMALLEST_SHARE_VARIANCE

DELTA = 1e-4

ROUNDING = 1e-12
"""How far a target may be passed in the last bit of the sum of its shares."""


def plan_of(
    rounds: int = 10,
    kind: TaskKind = TaskKind.BINARY,
    classes: int = 2,
    target: float = 1.0,
    accountant: Accountant = Accountant.PRV,
    interim_releases: int = 9,
    repeats: int = 1,
) -> EvaluationPlan:
    return EvaluationPlan.of(
        rounds=rounds,
        classes=classes,
        kind=kind,
        epsilon=target,
        delta=DELTA,
        accountant=accountant,
        interim_releases=interim_releases,
        repeats=repeats,
    )


def steps_of(plan: EvaluationPlan) -> list[int]:
    return [release.after_step for release in plan.releases if release.kind is ReleaseKind.INTERIM]


def test_a_short_run_is_measured_after_every_round() -> None:
    assert steps_of(plan_of(rounds=10)) == list(range(1, 10))
    assert steps_of(plan_of(rounds=3)) == [1, 2]


def test_a_long_run_is_measured_at_evenly_spaced_steps() -> None:
    assert steps_of(plan_of(rounds=100)) == [10, 20, 30, 40, 50, 60, 70, 80, 90]
    for rounds in range(11, 60):
        steps = steps_of(plan_of(rounds=rounds))
        assert len(set(steps)) == 9
        assert min(steps) >= 1
        assert max(steps) < rounds


def test_a_run_of_one_round_has_the_class_count_and_the_final_releases() -> None:
    plan = plan_of(rounds=1)
    assert [release.kind for release in plan.releases] == [ReleaseKind.CLASSES, ReleaseKind.FINAL, ReleaseKind.FINAL]
    assert plan.final_validation.share == pytest.approx(0.95)


@pytest.mark.parametrize("rounds", [1, 2, 10, 11, 40])
def test_the_shares_of_each_part_add_up_to_its_budget(rounds: int) -> None:
    plan = plan_of(rounds=rounds)
    for part in EVALUATED:
        assert math.fsum(r.share for r in plan.releases if r.part is part) == pytest.approx(1)
    assert [release.number for release in plan.releases] == list(range(len(plan.releases)))
    assert plan.final_validation.after_step == plan.test.after_step == rounds


def test_a_release_rides_on_the_round_that_starts_from_its_model_and_final_ones_on_none() -> None:
    plan = plan_of(rounds=4)
    riding = [plan.release_at(step) for step in range(5)]
    assert [release and release.number for release in riding] == [0, 1, 2, 3, None]


@pytest.mark.parametrize("accountant", list(Accountant))
@pytest.mark.parametrize("target", [0.5, 1.0, 4.0])
def test_the_products_own_accountant_bounds_all_events_of_a_part_by_the_target(
    target: float, accountant: Accountant
) -> None:
    plan = plan_of(rounds=30, target=target, accountant=accountant)
    for part in EVALUATED:
        events = [
            plan.mechanism(release, colluders=1, tolerated_dropouts=1).event(1.0)
            for release in plan.releases
            if release.part is part
        ]
        assert target - 0.05 < epsilon(events, DELTA, accountant) <= target + ROUNDING
        assert plan.spent(part) <= target + ROUNDING


def test_a_repeat_is_booked_in_full() -> None:
    plan = plan_of()
    assert plan.most_spent(Part.TEST) == pytest.approx(plan.spent(Part.TEST, (plan.test,)))
    assert plan.most_spent(Part.TEST) > 1.3
    assert plan_of(repeats=0).most_spent(Part.TEST) == plan.spent(Part.TEST)


@pytest.mark.parametrize(
    ("kind", "classes"),
    [
        (TaskKind.BINARY, 2),
        (TaskKind.MULTICLASS, 3),
        (TaskKind.MULTICLASS, 64),
        (TaskKind.MULTICLASS, 256),
        (TaskKind.ORDINAL, 5),
        (TaskKind.MULTILABEL, 14),
        (TaskKind.MULTILABEL, 256),
    ],
)
@pytest.mark.parametrize("target", [0.1, 1.0, 20.0, 1000.0])
def test_the_noise_is_within_the_theorem_for_every_task_and_size_of_consortium(
    kind: TaskKind, classes: int, target: float
) -> None:
    plan = plan_of(kind=kind, classes=classes, target=target)
    for release in (plan.releases[0], plan.releases[1], plan.test):
        mechanism = plan.mechanism(release, colluders=0, tolerated_dropouts=1)
        for cohort in (2, 4, 1024):
            assert mechanism.share_variance(cohort) >= SMALLEST_SHARE_VARIANCE
        assert mechanism.approximation < 1e-20


def test_a_vector_is_as_long_as_the_longest_release() -> None:
    plan = plan_of()
    assert plan.length == 15
    assert [plan.layout(release).length for release in plan.releases] == [1, *[6] * 9, 14, 15]


def test_a_ring_of_32_bits_holds_millions_of_units() -> None:
    assert plan_of().layout(plan_of().test).most_units(noise=4000) > 2_000_000


def test_the_plan_is_printed_with_relation_and_cost_of_repeats() -> None:
    lines = "\n".join(plan_of(rounds=4).describe())
    for expected in ("zero-out", "each of rounds 1, 2, 3", "at δ = 0.0001", "test: the last model, once", "repeated"):
        assert expected in lines
    assert "repeated" not in "\n".join(plan_of(repeats=0).describe())


@pytest.mark.parametrize(
    ("kind", "classes"),
    [(TaskKind.BINARY, 3), (TaskKind.MULTICLASS, 2), (TaskKind.ORDINAL, 2), (TaskKind.MULTILABEL, 257)],
)
def test_a_number_of_classes_that_the_task_cannot_have_is_refused(kind: TaskKind, classes: int) -> None:
    with pytest.raises(PrivacyError, match="classes"):
        plan_of(kind=kind, classes=classes)


def test_a_plan_without_rounds_and_a_release_outside_are_refused() -> None:
    with pytest.raises(PrivacyError, match="at least 1 round"):
        plan_of(rounds=0)
    with pytest.raises(PrivacyError, match="a release must be one of"):
        plan_of().release(len(plan_of().releases))
