import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import Config, replace
from common.errors import ConfigError, RunError
from common.evaluation import statistics as tables
from common.evaluation.layout import NORM_BOUND
from common.evaluation.plan import EvaluationPlan, Part, ReleaseKind
from common.evaluation.statistics import AGES, SEXES, TRAITS, WEIGHT, length_of, read_tables, unknown_traits, vectors_of
from common.evaluation.tree import answer_statistics
from common.privacy.accounting import Accountant, epsilon
from common.task import TaskKind

DELTA = 1e-4
SEED = bytes(8)
ROUNDING = 1e-12
"""The tolerance of the accountants, as for the other releases."""


def plan_of(
    statistics_epsilon: float = 1.0, classes: int = 2, accountant: Accountant = Accountant.RDP
) -> EvaluationPlan:
    return EvaluationPlan.of(
        rounds=3, classes=classes, kind=TaskKind.BINARY if classes == 2 else TaskKind.MULTICLASS, epsilon=1.0,
        delta=DELTA, accountant=accountant, interim_releases=9, repeats=1, statistics_epsilon=statistics_epsilon,
    )  # fmt: skip


def _records(seed: int, count: int, classes: int = 2) -> "tuple[np.ndarray, np.ndarray]":
    source = np.random.default_rng(seed)
    traits = np.stack([source.integers(0, len(bins), count) for _, bins in TRAITS], axis=1).astype(np.uint8)
    return source.integers(0, classes, count), traits


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(2, 9))
def test_each_record_is_in_one_bin_of_each_table_and_within_the_norm(seed: int, count: int, classes: int) -> None:
    labels, traits = _records(seed, count, classes)
    vectors = vectors_of(classes, labels, traits)
    assert vectors.shape == (count, length_of(classes))
    assert ((vectors == 0) | (vectors == WEIGHT)).all()
    assert ((vectors == WEIGHT).sum(axis=1) == tables.TABLES).all()
    assert ((vectors**2).sum(axis=1) <= NORM_BOUND**2).all()


def test_no_weight_is_left_over() -> None:
    assert tables.TABLES * (WEIGHT + 1) ** 2 > NORM_BOUND**2


@given(st.integers(0, 2**32), st.integers(1, 40), st.booleans())
def test_a_unit_moves_the_answer_by_no_more_than_the_norm_whatever_the_records(
    seed: int, count: int, by_patient: bool
) -> None:
    plan = plan_of()
    labels, traits = _records(seed, count)
    units = np.arange(count) // (3 if by_patient else 1)
    everything = answer_statistics(plan, labels, traits, units, 1000, SEED)
    kept = units != units[seed % count]
    without = answer_statistics(plan, labels[kept], traits[kept], units[kept], 1000, SEED)
    assert math.sqrt(float(((everything - without) ** 2).sum())) <= plan.norm_bound
    assert everything.shape == (plan.length,)


def test_counts_of_all_hospitals_add_up_and_no_more_units_count_than_are_stated() -> None:
    plan, total = plan_of(), np.zeros(plan_of().length, np.int64)
    for seed in range(3):
        labels, traits = _records(seed, 50)
        total += answer_statistics(plan, labels, traits, np.arange(50), 40, SEED)
    told = read_tables(("normal", "pneumonia"), total, 120, 0.0)
    for table in told.tables:
        assert sum(each.count or 0.0 for each in table.bins) == pytest.approx(120)


@pytest.mark.parametrize("label", [-1, 2, 10**9])
def test_a_label_that_is_no_class_and_a_bin_that_is_none_raise_nothing(label: int) -> None:
    traits = np.full((1, len(TRAITS)), 255, np.uint8)
    (vector,) = vectors_of(2, np.array([label]), traits)
    assert not vector[:2].any()
    assert (vector == vectors_of(2, np.array([0]), unknown_traits(1))[0])[2:].all()


def test_what_does_not_stand_out_from_the_noise_is_suppressed_and_never_0() -> None:
    summed = np.zeros(length_of(2), np.int64)
    summed[:2] = 29 * WEIGHT, 31 * WEIGHT
    told = read_tables(("a", "b"), summed, 60, (10.0 * WEIGHT) ** 2)
    assert told.deviation == pytest.approx(10.0)
    assert told.least == pytest.approx(30.0)
    assert [each.count for each in told.tables[0].bins] == [None, 31.0]
    assert all(each.count is None for table in told.tables[1:] for each in table.bins)
    assert [len(table.bins) for table in told.tables[2:4]] == [len(SEXES), len(AGES)]


def test_counts_are_unbiased_and_their_deviation_is_that_of_the_noise() -> None:
    plan = plan_of()
    statistics = plan.statistics
    assert statistics is not None
    mechanism = plan.mechanism(statistics, colluders=0, tolerated_dropouts=0)
    variance = 4 * mechanism.share_variance(4)
    assert math.sqrt(variance) == pytest.approx(NORM_BOUND * plan.statistics_noise, rel=0.01)


@pytest.mark.parametrize("accountant", list(Accountant))
@pytest.mark.parametrize("target", [0.1, 1.0, 4.0])
def test_the_release_keeps_its_epsilon_by_the_accountant(accountant: Accountant, target: float) -> None:
    plan = plan_of(target, accountant=accountant)
    statistics = plan.statistics
    assert statistics is not None
    event = plan.mechanism(statistics, colluders=1, tolerated_dropouts=1).event(1.0)
    assert target - 0.05 < epsilon([event], DELTA, accountant) <= target + ROUNDING
    assert plan.spent(Part.TRAINING) <= target + ROUNDING
    assert plan.spent(Part.VALIDATION) == plan_of(0.0, accountant=accountant).spent(Part.VALIDATION)


def test_a_plan_without_statistics_is_what_it_was() -> None:
    without, with_them = plan_of(0.0), plan_of()
    assert without.statistics is None
    assert without.releases == with_them.releases == with_them.everything[:-1]
    assert with_them.release(len(with_them.releases)).kind is ReleaseKind.STATISTICS
    assert with_them.length == max(without.length, length_of(2))
    assert any("who is trained on" in line for line in with_them.describe())
    assert not any("who is trained on" in line for line in without.describe())


def test_a_sum_that_is_too_short_is_refused() -> None:
    with pytest.raises(RunError, match="at least"):
        read_tables(("a", "b"), np.zeros(5, np.int64), 10, 1.0)


def test_exact_counts_and_statistics_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="statistics_epsilon must be 0"):
        replace(Config(), evaluation={"exact": True, "statistics_epsilon": 1.0})
