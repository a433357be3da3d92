"""The comparison with hospitals' own models: what a record adds at most, and what a sum says."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import RunError
from common.evaluation.against_alone import DISAGREE, WEIGHT, length_of, read_gain, vectors_of
from common.evaluation.layout import NORM_BOUND
from common.evaluation.plan import ALONE_SHARE, EvaluationPlan, Part, ReleaseKind
from common.evaluation.question import Question
from common.evaluation.tree import answer_against_alone, decisions, require_edges
from common.privacy.accounting import Accountant, epsilon
from common.task import TaskKind

DELTA = 1e-4
SEED = b"secret"
ROUNDING = 1e-9


def plan_of(kind: TaskKind = TaskKind.BINARY, classes: int = 2, *, statistics: float = 0.0, alone: bool = True,
            target: float = 1.0, accountant: Accountant = Accountant.PRV) -> EvaluationPlan:  # fmt: skip
    return EvaluationPlan.of(
        rounds=3, classes=classes, kind=kind, epsilon=target, delta=DELTA, accountant=accountant, interim_releases=9,
        repeats=1, statistics_epsilon=statistics, against_alone=alone,
    )  # fmt: skip


@given(
    classes=st.integers(2, 6),
    labels=st.lists(st.integers(-3, 9), min_size=1, max_size=12),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_record_passes_the_norm_whatever_the_models_decide(classes: int, labels: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    together, alone = generator.integers(-1, classes + 2, (2, len(labels)))
    vectors = vectors_of(classes, np.array(labels), together, alone)
    assert (np.sqrt((vectors.astype(float) ** 2).sum(axis=1)) <= NORM_BOUND).all()
    unknown = [not 0 <= label < classes for label in labels]
    assert not vectors[unknown].any()


@pytest.mark.parametrize("per_unit", [1, 3])
def test_a_unit_changes_the_answer_by_at_most_the_norm(per_unit: int) -> None:
    plan, generator = plan_of(), np.random.default_rng(1)
    labels, units = generator.integers(0, 2, 60), np.arange(60) // per_unit
    decided = generator.integers(0, 2, 60), generator.integers(0, 2, 60)
    everything = answer_against_alone(plan, decided, labels, units, 100, SEED)
    assert everything.shape == (plan.length,)
    for unit in np.unique(units):
        kept = units != unit
        others = decided[0][kept], decided[1][kept]
        without = answer_against_alone(plan, others, labels[kept], units[kept], 100, SEED)
        assert math.sqrt(float(((everything - without) ** 2).sum())) <= plan.norm_bound


def test_without_noise_a_sum_says_exactly_how_often_which_model_is_right() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1] * 10)
    together = np.where(np.arange(100) % 10 == 0, 1 - labels, labels)  # One of ten wrong, a healthy one.
    alone = np.where(np.arange(100) % 10 >= 7, 1 - labels, labels)  # Three of ten wrong, all sick.
    plan = plan_of()
    summed = answer_against_alone(plan, (together, alone), labels, np.arange(100), 100, SEED)
    gain = read_gain(summed, 100, 0.0, np.array([40.0, 60.0]))
    assert gain.accuracy == pytest.approx(0.2)
    assert list(gain.recalls) == pytest.approx([-0.25, 0.5])
    assert gain.disagree == pytest.approx(0.4)
    assert gain.noise == 0.0
    low, high = gain.ends
    assert (gain.accuracy - low) == pytest.approx(1.96 * math.sqrt((0.4 - 0.04) / 100), rel=1e-3)
    assert high - gain.accuracy == pytest.approx(gain.accuracy - low)


def test_a_class_of_which_few_are_known_has_no_figure() -> None:
    gain = read_gain(np.zeros(3, np.int64), 100, 1.0, np.array([19.0, math.nan]))
    assert all(math.isnan(value) for value in gain.recalls)
    assert all(math.isnan(end) for ends in gain.ends_of_recalls for end in ends)


def test_noise_cannot_put_a_figure_out_of_range() -> None:
    summed = np.array([10**6, 10**6, -(10**6)])
    gain = read_gain(summed, 100, 900.0, np.array([50.0, 50.0]))
    assert (gain.accuracy, gain.disagree) == (1.0, 1.0)
    assert all(-1 <= end <= 1 for ends in (gain.ends, *gain.ends_of_recalls) for end in ends)


@pytest.mark.parametrize(("differ", "ahead"), [(0.08, 0.02), (0.2, 0.1), (0.02, 0.0)])
@pytest.mark.parametrize("deviation", [0.0, 7.5])
def test_intervals_contain_the_populations_difference(differ: float, ahead: float, deviation: float) -> None:
    """The population's models differ on ``differ`` of records, and the run's is ahead by ``ahead``."""
    generator, records, covered, own = np.random.default_rng(3), 624, 0, 0
    draws = 400
    for _ in range(draws):
        labels = (generator.random(records) < 0.6).astype(np.int64)
        chance = generator.random(records)
        first, second = chance < (differ + ahead) / 2, (chance >= (differ + ahead) / 2) & (chance < differ)
        together, alone = np.where(second, 1 - labels, labels), np.where(first, 1 - labels, labels)
        noise = np.rint(generator.normal(0, deviation * NORM_BOUND, 3)).astype(np.int64)
        summed = vectors_of(2, labels, together, alone).sum(axis=0) + noise
        of_class = np.array([(labels == 0).sum(), (labels == 1).sum()], float)
        gain = read_gain(summed, records, (deviation * NORM_BOUND) ** 2, of_class)
        covered += gain.ends[0] <= ahead <= gain.ends[1]
        own += gain.ends_of_recalls[1][0] <= ahead <= gain.ends_of_recalls[1][1]
    assert covered / draws >= 0.92
    assert own / draws >= 0.92


@pytest.mark.parametrize("accountant", list(Accountant))
@pytest.mark.parametrize("target", [0.5, 1.0, 4.0])
def test_with_the_comparison_a_test_record_still_costs_the_target(accountant: Accountant, target: float) -> None:
    plan = plan_of(target=target, accountant=accountant)
    events = [
        plan.mechanism(release, colluders=1, tolerated_dropouts=1).event(1.0)
        for release in plan.everything
        if release.part is Part.TEST
    ]
    assert len(events) == 2
    assert target - 0.05 < epsilon(events, DELTA, accountant) <= target + ROUNDING
    assert plan.spent(Part.TEST) <= target + ROUNDING


def test_the_comparison_is_numbered_last_and_other_runs_are_what_they_were() -> None:
    plan, without = plan_of(statistics=0.5), plan_of(statistics=0.5, alone=False)
    comparison = plan.comparison
    assert comparison is not None
    assert without.comparison is None
    assert comparison.number == len(plan.everything) - 1
    assert plan.release(comparison.number) is not None
    assert plan.release(comparison.number).kind is ReleaseKind.AGAINST_ALONE
    assert [release.number for release in plan.everything] == list(range(len(plan.everything)))
    assert [plan.test.share, without.test.share] == pytest.approx([1 - ALONE_SHARE, 1.0])
    assert plan.length >= length_of(2)
    assert any("model of its own records" in line for line in plan.describe())
    assert not any("model of its own records" in line for line in without.describe())


@pytest.mark.parametrize(
    ("kind", "classes", "edges"),
    [(TaskKind.BINARY, 2, ((0.5,),)), (TaskKind.MULTICLASS, 4, ()), (TaskKind.ORDINAL, 5, ())],
)
def test_it_cuts_a_score_at_one_threshold_where_there_are_two_classes(
    kind: TaskKind, classes: int, edges: tuple[tuple[float, ...], ...]
) -> None:
    plan = plan_of(kind, classes)
    comparison = plan.comparison
    assert comparison is not None
    require_edges(plan, comparison, Question(comparison.number, edges))
    with pytest.raises(RunError, match="must have edges"):
        require_edges(plan, comparison, Question(comparison.number, (*edges, (0.0,))))


def test_a_model_of_two_classes_decides_at_the_threshold_and_others_for_the_likeliest_class() -> None:
    logits = np.array([[0.0, 1.0], [0.0, 3.0], [0.0, -1.0], [0.0, np.nan]], np.float32)
    assert decisions(TaskKind.BINARY, logits, 2.0).tolist() == [0, 1, 0, 0]
    assert decisions(TaskKind.BINARY, logits, None).tolist() == [1, 1, 0, 0]
    several = np.array([[0.0, 2.0, 1.0], [5.0, np.nan, 1.0]], np.float32)
    assert decisions(TaskKind.MULTICLASS, several, 2.0).tolist() == [1, 0]


def test_both_weights_are_within_the_norm_and_use_it() -> None:
    assert NORM_BOUND - 1 < math.hypot(WEIGHT, DISAGREE) <= NORM_BOUND
