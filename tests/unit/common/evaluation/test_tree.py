import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.errors import RunError
from common.evaluation import EvaluationPlan, EvaluationState, Question, ReleaseKind, TaskKind, answer, next_question
from common.evaluation.layout import MOST_ROWS, layout_of
from common.evaluation.tree import _within_norm
from common.privacy.accounting import Accountant

SEED = bytes(32)
TASKS = {
    TaskKind.BINARY: 2,
    TaskKind.MULTICLASS: 4,
    TaskKind.ORDINAL: 5,
    TaskKind.MULTILABEL: 3,
}
PLANS = {
    kind: EvaluationPlan.of(
        rounds=3,
        classes=classes,
        kind=kind,
        epsilon=1.0,
        delta=1e-4,
        accountant=Accountant.PRV,
        interim_releases=2,
        repeats=0,
    )
    for kind, classes in TASKS.items()
}
LEFT_OUT = dataclasses.replace(PLANS[TaskKind.MULTILABEL], labels_left_out=True)
"""A task of several labels, of which some may not be known of a record."""

Integers = NDArray[np.int64]
AnyFloat32 = st.one_of(
    st.floats(width=32), st.sampled_from([math.nan, math.inf, -math.inf, 3.4e38, -3.4e38, 0.0, -0.0, 1e-45])
)
AnyEdge = st.one_of(st.floats(-1e30, 1e30), st.sampled_from([-1e30, 0.0, 1e30]))


def some_labels(kind: TaskKind, records: int, seed: int = 0) -> Integers:
    generator = np.random.default_rng(seed)
    if kind is TaskKind.MULTILABEL:
        return generator.integers(0, 2, (records, TASKS[kind]))
    return generator.integers(0, TASKS[kind], records)


def some_logits(kind: TaskKind, records: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(records, TASKS[kind])).astype(np.float32) * 3


def questions(plan: EvaluationPlan) -> list[Question]:
    return [next_question(plan, release, EvaluationState()) for release in plan.releases]


@settings(max_examples=150)
@given(data=st.data(), plan=st.sampled_from([*PLANS.values(), LEFT_OUT]))
def test_no_question_score_or_label_lets_a_unit_count_for_more_than_the_bound(
    data: st.DataObject, plan: EvaluationPlan
) -> None:
    kind = plan.kind
    release = data.draw(st.sampled_from(plan.releases))
    edges = tuple(
        tuple(data.draw(st.lists(AnyEdge, min_size=count, max_size=count))) for count in plan.layout(release).edges
    )
    records = data.draw(st.integers(1, 4))
    width = TASKS[kind]
    flat = data.draw(st.lists(AnyFloat32, min_size=records * width, max_size=records * width))
    logits = np.array(flat, np.float32).reshape(records, width)
    shape = (records, width) if kind is TaskKind.MULTILABEL else (records,)
    label = st.one_of(st.integers(-2, width + 1), st.sampled_from([2**62, -(2**62)]))
    count = math.prod(shape)
    labels = np.array(data.draw(st.lists(label, min_size=count, max_size=count)), np.int64).reshape(shape)
    patient = answer(plan, Question(release.number, edges), logits, labels, np.zeros(records, np.int64), 1, SEED)
    assert patient.dtype == np.int64
    assert patient.shape == (plan.length,)
    assert int((patient * patient).sum()) <= plan.norm_bound**2
    assert not patient[plan.layout(release).length :].any()


@pytest.mark.parametrize("kind", list(TaskKind))
def test_a_record_uses_most_of_the_norm_it_is_given(kind: TaskKind) -> None:
    plan = PLANS[kind]
    for question in questions(plan):
        for seed in range(5):
            logits, labels = some_logits(kind, 1, seed), some_labels(kind, 1, seed)
            vector = answer(plan, question, logits, labels, np.zeros(1, np.int64), 1, SEED)
            assert 0.55 * plan.norm_bound < math.sqrt(int((vector * vector).sum())) <= plan.norm_bound


@pytest.mark.parametrize("kind", list(TaskKind))
def test_answers_of_hospitals_add_up_to_that_of_their_pooled_records(kind: TaskKind) -> None:
    plan = PLANS[kind]
    logits, labels, units = some_logits(kind, 60), some_labels(kind, 60), np.arange(60)
    for question in questions(plan):
        pooled = answer(plan, question, logits, labels, units, 60, SEED)
        parts = [answer(plan, question, logits[i::3], labels[i::3], units[i::3], 20, SEED) for i in range(3)]
        assert np.array_equal(np.sum(parts, axis=0), pooled)


@pytest.mark.parametrize("kind", list(TaskKind))
def test_replacing_a_unit_by_an_empty_one_changes_the_sum_by_the_units_own_vector(kind: TaskKind) -> None:
    plan = PLANS[kind]
    logits, labels = some_logits(kind, 10), some_labels(kind, 10)
    for question in questions(plan):
        whole = answer(plan, question, logits, labels, np.arange(10), 10, SEED)
        without = answer(plan, question, logits[1:], labels[1:], np.arange(1, 10), 10, SEED)
        alone = answer(plan, question, logits[:1], labels[:1], np.zeros(1, np.int64), 1, SEED)
        assert np.array_equal(whole - without, alone)


def test_more_units_than_stated_are_a_fixed_subset_and_no_data_is_zero() -> None:
    plan = PLANS[TaskKind.BINARY]
    question = questions(plan)[-1]
    logits, labels, units = some_logits(TaskKind.BINARY, 50), some_labels(TaskKind.BINARY, 50), np.arange(50)
    first = answer(plan, question, logits, labels, units, 20, SEED)
    assert np.array_equal(first, answer(plan, question, logits, labels, units, 20, SEED))
    assert not np.array_equal(first, answer(plan, question, logits, labels, units, 20, bytes([1]) * 32))
    weight = plan.layout(plan.test).class_weight
    assert abs(int(first[14])) <= 20 * weight
    # Each unit adds ± the weight of the decision to one of the two roots; so they tell how many were counted.
    parity = answer(plan, question, logits, np.ones(50, np.int64), units, 20, SEED)
    assert int(parity[14]) == 20 * weight
    nothing = answer(plan, question, logits[:0], labels[:0], units[:0], 20, SEED)
    assert not nothing.any()


def test_the_same_units_count_in_every_release_of_a_run() -> None:
    plan = PLANS[TaskKind.BINARY]
    labels = np.arange(50) % 2
    counted = [
        answer(plan, question, some_logits(TaskKind.BINARY, 50), labels, np.arange(50), 21, SEED)
        for question in (questions(plan)[0], questions(plan)[-1])
    ]
    assert counted[0][0] / 1000 == counted[1][14] / 300


def test_a_patients_vector_is_the_mean_of_the_records_in_whole_numbers() -> None:
    plan = PLANS[TaskKind.BINARY]
    question = questions(plan)[-1]
    logits, labels = some_logits(TaskKind.BINARY, 5), np.array([1, 0, 1, 1, 0])
    each = [
        answer(plan, question, logits[i : i + 1], labels[i : i + 1], np.zeros(1, np.int64), 1, SEED) for i in range(5)
    ]
    patients = answer(plan, question, logits, labels, np.array([7, 7, 7, 9, 9]), 2, SEED)
    expected = np.rint(np.mean(each[:3], axis=0)) + np.rint(np.mean(each[3:], axis=0))
    assert np.array_equal(patients, expected)


def test_the_binary_tree_is_laid_out_as_documented() -> None:
    plan = PLANS[TaskKind.BINARY]
    question = Question(plan.test.number, ((-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0),))
    # Log-odds 3 passes five edges: right of 0, left of 4, right of 2.
    vector = answer(plan, question, np.array([[0, 3]], np.float32), np.array([1]), np.zeros(1, np.int64), 1, SEED)
    expected = np.zeros(15, np.int64)
    expected[[1, 5, 12, 14]] = 700, -500, 400, 300
    assert np.array_equal(vector, expected)
    undefined = answer(
        plan, question, np.array([[0, math.nan]], np.float32), np.array([0]), np.zeros(1, np.int64), 1, SEED
    )
    expected = np.zeros(15, np.int64)
    expected[[0, 2, 6, 14]] = -700, -500, -400, -300
    assert np.array_equal(undefined, expected)


@pytest.mark.parametrize("kind", list(TaskKind))
def test_a_question_of_another_shape_is_refused_whatever_the_data(kind: TaskKind) -> None:
    plan = PLANS[kind]
    good = questions(plan)[-1]
    bad = [
        Question(len(plan.releases), good.edges),
        Question(good.release, good.edges[1:]),
        Question(good.release, (*good.edges, (0.0,))),
        Question(good.release, tuple(edges[1:] for edges in good.edges)),
    ]
    logits, labels = some_logits(kind, 3), some_labels(kind, 3)
    for question in bad:
        texts = set()
        for records in (0, 3):
            with pytest.raises(RunError, match="release") as refusal:
                answer(plan, question, logits[:records], labels[:records], np.arange(records), 3, SEED)
            texts.add(str(refusal.value))
        assert len(texts) == 1


def test_a_vector_beyond_the_bound_counts_as_zero() -> None:
    vectors = np.array([[1000, 0], [1000, 1], [0, 1001], [-600, 800], [2**31, 2**31], [-(2**62), 0]])
    kept = _within_norm(vectors, 1000)
    assert np.array_equal(kept, [[1000, 0], [0, 0], [0, 0], [-600, 800], [0, 0], [0, 0]])


@pytest.mark.parametrize("classes", [3, 10, MOST_ROWS, MOST_ROWS + 1, 256])
@pytest.mark.parametrize("kind", [TaskKind.MULTICLASS, TaskKind.ORDINAL, TaskKind.MULTILABEL])
def test_the_weights_of_every_layout_stay_within_the_norm(kind: TaskKind, classes: int) -> None:
    asked = ((True, False, False), (False, False, False), (False, True, True))
    left_out = (False, True) if kind is TaskKind.MULTILABEL else (False,)
    for (classes_only, final, with_classes), some in itertools.product(asked, left_out):
        layout = layout_of(
            kind, classes, classes_only=classes_only, final=final, with_classes=with_classes, labels_left_out=some
        )
        per_label = classes if kind is TaskKind.MULTILABEL else 1
        trees = per_label * sum(weight**2 for weight in layout.own)
        if layout.depth and kind is not TaskKind.MULTILABEL:
            trees += (classes - 1) * sum(weight**2 for weight in layout.others)
        blocks = trees + sum(weight**2 for _, weight in layout.numbers)
        assert blocks + layout.confusion**2 + per_label * (layout.class_weight**2 + layout.known_weight**2) <= 1_000_000


def test_the_class_count_does_not_read_the_models_scores() -> None:
    plan = PLANS[TaskKind.BINARY]
    question = questions(plan)[0]
    assert plan.releases[0].kind is ReleaseKind.CLASSES
    labels = np.array([0, 1, 1])
    vector = answer(plan, question, np.zeros((0, 0), np.float32), labels, np.arange(3), 3, SEED)
    assert vector[0] == plan.norm_bound


def test_a_label_that_is_not_known_adds_nothing_but_that_it_is_not_known() -> None:
    plan = LEFT_OUT
    logits, labels = some_logits(TaskKind.MULTILABEL, 1), np.array([[1, -1, 0]])
    for question, release in zip(questions(plan), plan.releases, strict=True):
        layout = plan.layout(release)
        vector = answer(plan, question, logits, labels, np.zeros(1, np.int64), 1, SEED)
        trees = vector[: layout.numbers_start].reshape(layout.trees, -1) if layout.depth else np.ones((3, 1))
        assert [bool(tree.any()) for tree in trees] == ([True, False, True] if layout.depth else [True] * 3)
        if layout.class_weight:
            weight = layout.class_weight
            assert vector[layout.classes_start : layout.known_start].tolist() == [weight, 0, -weight]
            known = layout.known_weight
            assert vector[layout.known_start : layout.length].tolist() == [known, -known, known]
        else:
            assert layout.known_weight == 0


def test_a_task_that_leaves_no_label_out_is_asked_as_ever() -> None:
    plain = PLANS[TaskKind.MULTILABEL]
    for release in plain.releases:
        assert plain.layout(release).known_weight == 0
    lengths = [LEFT_OUT.layout(release).length - plain.layout(release).length for release in plain.releases]
    assert lengths == [3, *[0] * (len(lengths) - 2), 3]
