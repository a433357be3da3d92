"""The spread of hospitals' own AUC: what one unit changes at most, and what a noisy sum says."""

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.errors import RunError
from common.evaluation import site_spread
from common.evaluation.layout import NORM_BOUND
from common.evaluation.plan import ALONE_SHARE, EvaluationPlan, Part, ReleaseKind
from common.evaluation.question import Question
from common.evaluation.site_spread import (
    CASES,
    KNOTS,
    SHARES,
    WIDEST,
    Cases,
    SiteSpread,
    hospitals_needed,
    length_of,
    read_spread,
    vector_of,
)
from common.evaluation.tree import answer_spread, require_edges
from common.privacy.accounting import Accountant, epsilon
from common.task import TaskKind

DELTA = 1e-4
SEED = b"secret"
ROUNDING = 1e-9
STEP = 0.0026
"""A little more than the distance of the places at which quartiles are looked for."""


def plan_of(*, spread: float = 0.3, statistics: float = 0.0, alone: bool = False, target: float = 1.0,
            accountant: Accountant = Accountant.PRV) -> EvaluationPlan:  # fmt: skip
    return EvaluationPlan.of(
        rounds=3, classes=2, kind=TaskKind.BINARY, epsilon=target, delta=DELTA, accountant=accountant,
        interim_releases=9, repeats=1, statistics_epsilon=statistics, against_alone=alone, spread_share=spread,
    )  # fmt: skip


def largest_change(scores: np.ndarray, labels: np.ndarray, units: np.ndarray) -> float:
    """Return by how much emptying any one unit moves a hospital's vector, at most."""
    everything = vector_of(scores, labels, units)
    apart = []
    for unit in np.unique(units):
        kept = units != unit
        without = vector_of(scores[kept], labels[kept], units[kept])
        apart.append(math.sqrt(float(((everything - without) ** 2).sum())))
    return max(apart, default=0.0)


def worst_place(healthy: int, sick: int, auc: float, *, top: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return scores of about this AUC of which one sick unit's is below, or above, all healthy ones."""
    others = np.linspace(0.0, 1.0, healthy)
    of_sick = np.full(sick, auc + 1e-9)
    of_sick[0] = 2.0 if top else -1.0
    return np.concatenate([others, of_sick]), np.repeat([0, 1], [healthy, sick])


SIZES = sorted(
    {0, 1, CASES.least - 1, CASES.least, CASES.least + 1, 37, CASES.full - 1, CASES.full, CASES.full + 1, 90}
)
VALUES = st.sampled_from([-np.inf, -1e300, -1.0, 0.0, 0.5, 1.0, 1e300, np.inf, np.nan])


@pytest.mark.parametrize("auc", [0.0, 0.45, 0.5, 0.55, *KNOTS[1:-1], 0.91, 0.96, 0.99, 1.0])
def test_no_unit_changes_a_hospitals_vector_by_more_than_the_norm_where_it_weighs_most(auc: float) -> None:
    largest = 0.0
    for healthy, sick, top in product(SIZES, (CASES.least + 1, CASES.full, CASES.full + 1, 90), (False, True)):
        scores, labels = worst_place(healthy, sick, auc, top=top)
        for flipped in (False, True):  # The same of a healthy unit: classes change places.
            values, truth = (-scores, 1 - labels) if flipped else (scores, labels)
            largest = max(largest, largest_change(values, truth, np.arange(len(truth))))
    assert 0 < largest <= NORM_BOUND


def test_the_bound_is_not_far_from_what_a_unit_can_do() -> None:
    scores, labels = worst_place(90, CASES.full, 1.0, top=False)
    assert largest_change(scores, labels, np.arange(len(labels))) > 0.7 * NORM_BOUND


@settings(max_examples=150)
@given(
    healthy=st.sampled_from(SIZES) | st.integers(0, 70),
    sick=st.sampled_from(SIZES) | st.integers(0, 70),
    per_unit=st.sampled_from([1, 1, 2, 3]),
    apart=st.floats(-1, 6),
    levels=st.sampled_from([1, 2, 5, 0]),
    odd=st.lists(VALUES, max_size=6),
    mixed=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@example(healthy=50, sick=50, per_unit=1, apart=0.0, levels=1, odd=[], mixed=False, seed=1)
@example(healthy=26, sick=26, per_unit=3, apart=3.0, levels=0, odd=[np.nan, np.inf], mixed=True, seed=2)
def test_no_unit_changes_a_hospitals_vector_by_more_than_the_norm(
    healthy: int, sick: int, per_unit: int, apart: float, levels: int, odd: list[float], mixed: bool, seed: int
) -> None:
    generator, records = np.random.default_rng(seed), (healthy + sick) * per_unit
    units = np.repeat(np.arange(healthy + sick), per_unit)
    labels = np.repeat(np.repeat([0, 1], [healthy, sick]), per_unit)
    if mixed:  # Patients with records of both classes, and records whose label is not known.
        labels = np.where(generator.random(records) < 0.1, generator.integers(-1, 3, records), labels)
    scores = generator.normal(0, 1, records) + apart * labels
    if levels:  # Ties, down to scores that are all equal.
        scores = np.floor(scores * levels / 5)
    for place, value in zip(generator.permutation(records), odd, strict=False):
        scores[place] = value
    order = generator.permutation(records)
    assert largest_change(scores[order], labels[order], units[order]) <= NORM_BOUND


@settings(max_examples=60)
@given(least=st.integers(0, 6), more=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_the_bound_holds_for_other_numbers_of_cases(least: int, more: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site_spread, "CASES", Cases(least, least + more))
        for _ in range(4):
            healthy, sick = generator.integers(0, least + more + 4, 2)
            labels = np.repeat([0, 1], [healthy, sick])
            scores = np.rint(generator.normal(labels * generator.uniform(0, 5), 1) * 2) / 2
            assert largest_change(scores, labels, np.arange(len(labels))) <= NORM_BOUND
            values, truth = worst_place(least + more + 2, least + more, generator.random(), top=bool(seed % 2))
            assert largest_change(values, truth, np.arange(len(truth))) <= NORM_BOUND


@pytest.mark.parametrize("stated", [120, 90])
def test_an_empty_unit_changes_the_answer_by_at_most_the_norm_also_where_more_are_there_than_stated(
    stated: int,
) -> None:
    """A record whose label is not known is an empty one that keeps its place, as it has neither score nor class."""
    plan, generator = plan_of(), np.random.default_rng(3)
    labels, units = np.repeat([0, 1], [58, 60]), np.arange(118)
    logits = np.stack([np.zeros(118), generator.normal(3.0 * labels, 1)], axis=1).astype(np.float32)
    everything = answer_spread(plan, logits, labels, units, stated, SEED)
    assert everything.shape == (plan.length,)
    assert everything[: length_of()].any()
    assert not everything[length_of() :].any()
    changed = 0
    for unit in units:
        emptied = answer_spread(plan, logits, np.where(units == unit, -1, labels), units, stated, SEED)
        assert math.sqrt(float(((everything - emptied) ** 2).sum())) <= plan.norm_bound
        changed += bool((everything - emptied).any())
    assert 0 < changed <= stated


@pytest.mark.parametrize(("healthy", "sick"), [(0, 80), (80, 0), (0, 0), (CASES.least, 80), (80, CASES.least)])
def test_a_hospital_with_too_few_cases_of_a_class_adds_nothing(healthy: int, sick: int) -> None:
    labels = np.repeat([0, 1], [healthy, sick])
    assert not vector_of(labels.astype(float), labels, np.arange(len(labels))).any()


def test_what_a_hospital_adds_is_its_weight_and_its_auc_by_pieces() -> None:
    labels = np.repeat([0, 1], [100, 100])
    scores = np.concatenate([np.arange(100.0), np.full(100, 91.5)])  # 92 of 100 healthy ones are below.
    vector = vector_of(scores, labels, np.arange(200)) / CASES.scale
    pieces = np.diff(KNOTS)
    cut = np.clip(0.92 - np.array(KNOTS[:-1]), 0, pieces)
    assert vector == pytest.approx(np.append(cut - pieces / 2, site_spread.PER_HOSPITAL), abs=1 / CASES.scale)
    assert cut.sum() == pytest.approx(0.42)
    half = np.concatenate([scores[:100], scores[100:138]]), np.repeat([0, 1], [100, 38])
    weight = (38 - CASES.least) / (CASES.full - CASES.least)
    assert vector_of(*half, np.arange(138)) / CASES.scale == pytest.approx(weight * vector, abs=1 / CASES.scale)


def test_equal_scores_count_half_and_a_patient_is_one_case_with_the_mean_of_its_scores() -> None:
    labels = np.repeat([0, 1], [60, 60])
    flat = vector_of(np.zeros(120), labels, np.arange(120))
    worst = vector_of(-labels.astype(float), labels, np.arange(120))
    assert np.array_equal(flat, worst)  # An AUC of 0 counts as one of 0.5.
    # Two records a patient: of one each is wrong, and their mean is right; a patient with one sick record is sick.
    scores = np.repeat(np.where(labels, 3.0, 0.0), 2) + np.tile([4.0, -4.0], 120)
    records = np.repeat(labels, 2) * np.tile([1, 0], 120)
    together = vector_of(scores, records, np.repeat(np.arange(120), 2))
    assert np.array_equal(together, vector_of(labels.astype(float), labels, np.arange(120)))


def test_a_score_that_is_undefined_is_below_all_others() -> None:
    labels = np.repeat([0, 1], [60, 60])
    scores = np.where(labels, np.nan, -np.inf)
    assert site_spread._auc(*site_spread._of_units(scores, labels, np.arange(120))) == 0.5
    assert site_spread._auc(*site_spread._of_units(np.where(labels, np.nan, -1e300), labels, np.arange(120))) == 0.0
    # A patient with records at both ends has no mean.
    both = np.where(np.repeat(labels, 2), np.tile([np.inf, -np.inf], 120), 0.0)
    assert site_spread._auc(*site_spread._of_units(both, np.repeat(labels, 2), np.repeat(np.arange(120), 2))) == 0.0


def exact_sum(aucs: np.ndarray) -> np.ndarray:
    return np.rint(sum(site_spread._exact(auc, 1.0) for auc in aucs) * CASES.scale).astype(np.int64)


@pytest.mark.parametrize("low", [0.5, 0.72, 0.9, 0.99])
def test_without_noise_each_quartile_lies_in_its_interval_and_hospitals_are_counted_exactly(low: float) -> None:
    aucs = np.linspace(low, 1.0, 101)
    read = read_spread(exact_sum(aucs), 120, 0.0)
    assert read.counted == pytest.approx(101, abs=0.01)
    assert read.counted_ends == pytest.approx((101, 101), abs=0.01)
    assert read.needed == 1
    for share, value, (start, end) in zip(SHARES, read.quartiles, read.ends, strict=True):
        assert start - STEP <= np.quantile(aucs, share) <= end + STEP
        assert start <= value <= end
        assert end - start <= 2 * 0.1  # Two of the widest pieces.


def noisy(aucs: np.ndarray, deviation: float, generator: np.random.Generator) -> SiteSpread:
    noise = np.rint(generator.normal(0, deviation, length_of())).astype(np.int64)
    return read_spread(exact_sum(aucs) + noise, len(aucs), deviation**2)


MIXED: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "one model": lambda g, n: np.clip(g.normal(0.95, 0.02, n), 0, 1),
    "two kinds": lambda _, n: np.where(np.arange(n) % 3 == 0, 0.7, 0.96),
    "wide": lambda g, n: g.uniform(0.5, 1.0, n),
    "all alike": lambda _, n: np.full(n, 0.9),
}


@pytest.mark.parametrize("hospitals", [16, 64])
@pytest.mark.parametrize("kind", sorted(MIXED))
def test_intervals_contain_the_quartiles_and_the_number_of_hospitals(kind: str, hospitals: int) -> None:
    generator, draws = np.random.default_rng(7), 200
    inside, counted = np.zeros(3), 0
    for _ in range(draws):
        aucs = MIXED[kind](generator, hospitals)
        read = noisy(aucs, 5900.0, generator)
        counted += read.counted_ends[0] <= hospitals <= read.counted_ends[1]
        ordered = np.sort(aucs)
        for place, (share, (start, end)) in enumerate(zip(SHARES, read.ends, strict=True)):
            # Between two hospitals each AUC has just this share of them below it.
            least, most = ordered[round(share * hospitals) - 1], ordered[round(share * hospitals)]
            inside[place] += start <= most + STEP and least - STEP <= end
    assert (inside / draws >= 0.95).all()
    assert counted / draws >= 0.92


def test_where_noise_is_too_large_no_quartile_is_told_and_more_hospitals_are_asked_for() -> None:
    few = noisy(np.full(4, 0.9), 5900.0, np.random.default_rng(1))
    assert all(math.isnan(value) for value in few.quartiles)
    assert few.ends[0] == (0.5, 1.0)
    assert 4 < few.needed < 100
    enough = read_spread(exact_sum(np.full(few.needed + 1, 0.9)), few.needed + 1, 5900.0**2)
    assert enough.needed == few.needed
    assert enough.quartiles == pytest.approx((0.9,) * 3, abs=0.03)
    assert all(end - start <= WIDEST for start, end in enough.ends)
    assert hospitals_needed(2 * 5900.0 / CASES.scale) > few.needed


def test_a_sum_in_which_nobody_counts_tells_nothing() -> None:
    read = read_spread(np.zeros(length_of(), np.int64), 4, 5900.0**2)
    assert read.counted == 0.0
    assert read.ends == ((0.5, 1.0),) * 3
    assert all(math.isnan(value) for value in read.quartiles)
    below = read_spread(np.full(length_of(), -(10**6)), 4, 5900.0**2)
    assert below.counted_ends == (0.0, 0.0)
    above = read_spread(np.full(length_of(), 10**6), 4, 5900.0**2)
    assert above.counted == 4.0


@pytest.mark.parametrize("accountant", list(Accountant))
@pytest.mark.parametrize("alone", [False, True])
def test_with_the_spread_a_test_record_still_costs_the_target(accountant: Accountant, *, alone: bool) -> None:
    plan = plan_of(accountant=accountant, alone=alone)
    of_test = [release for release in plan.everything if release.part is Part.TEST]
    events = [plan.mechanism(release, colluders=1, tolerated_dropouts=1).event(1.0) for release in of_test]
    assert sum(release.share for release in of_test) == pytest.approx(1.0)
    assert 1.0 - 0.05 < epsilon(events, DELTA, accountant) <= 1.0 + ROUNDING
    assert plan.spent(Part.TEST) <= 1.0 + ROUNDING


def test_the_spread_is_numbered_last_and_cuts_no_score() -> None:
    plan, without = plan_of(statistics=0.5, alone=True), plan_of(statistics=0.5, alone=True, spread=0.0)
    spread = plan.spread
    assert spread is not None
    assert without.spread is None
    assert plan.everything[-1] == spread == plan.release(spread.number)
    assert spread.kind is ReleaseKind.SPREAD
    assert [release.number for release in plan.everything] == list(range(len(plan.everything)))
    assert [plan.test.share, without.test.share] == pytest.approx([0.7 - ALONE_SHARE, 1 - ALONE_SHARE])
    assert plan.length >= length_of()
    assert any("own AUC" in line for line in plan.describe())
    assert not any("own AUC" in line for line in without.describe())
    require_edges(plan, spread, Question(spread.number, ()))
    with pytest.raises(RunError, match="must have edges"):
        require_edges(plan, spread, Question(spread.number, ((0.0,),)))
