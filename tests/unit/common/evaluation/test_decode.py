import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from common.errors import RunError
from common.evaluation import (
    METRICS,
    EvaluationPlan,
    EvaluationState,
    Measured,
    Metrics,
    Question,
    Release,
    ReleaseKind,
    TaskKind,
    answer,
    decode,
    next_question,
)
from common.evaluation.intervals import of_draws, of_rate
from common.evaluation.measure_classes import LARGEST_KAPPA_NOISE
from common.evaluation.measure_scores import MOST_TOGETHER
from common.evaluation.state import Normal, Reference
from common.privacy.accounting import Accountant
from tests.benchmarks.bench_evaluation import Trajectory, attacked, exactly, measure

CLASSES = {TaskKind.BINARY: 2, TaskKind.MULTICLASS: 3, TaskKind.ORDINAL: 5, TaskKind.MULTILABEL: 4}
UNITS = 624


def plan_of(kind: TaskKind, rounds: int = 3) -> EvaluationPlan:
    return EvaluationPlan.of(
        rounds=rounds,
        classes=CLASSES[kind],
        kind=kind,
        epsilon=1.0,
        delta=1e-4,
        accountant=Accountant.PRV,
        interim_releases=2,
        repeats=0,
    )


def records(kind: TaskKind, seed: int, units: int = UNITS) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    classes = CLASSES[kind]
    noise = generator.normal(size=(units, classes))
    if kind is TaskKind.MULTILABEL:
        labels = (generator.random((units, classes)) < 0.3).astype(np.int64)
        return (2.5 * labels - 1.2 + noise).astype(np.float32), labels
    labels = generator.choice(classes, units, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    apart = np.abs(np.arange(classes) - labels[:, None])
    towards = 1.5 - apart if kind is TaskKind.ORDINAL else np.where(apart == 0, 2.0, 0.0)
    return (1.3 * (towards + noise)).astype(np.float32), labels


def ask_all(
    plan: EvaluationPlan, noise: Callable[[Release], NDArray[np.int64]] | None = None
) -> list[tuple[Release, Question, Measured]]:
    """Run the whole plan over the same records."""
    logits, labels = records(plan.kind, 0)
    state, done = EvaluationState(), []
    for release in plan.releases:
        question = next_question(plan, release, state)
        summed = answer(plan, question, logits, labels, np.arange(UNITS), UNITS, bytes(32))
        variance = 0.0
        if noise is not None:
            summed = summed + noise(release)
            variance = 4.0 / 3 * (plan.noise_multiplier(release) * plan.norm_bound) ** 2
        measured, state = decode(plan, release, summed, UNITS, variance, state, question)
        assert EvaluationState.from_json(state.to_json()) == state
        done.append((release, question, measured))
    return done


@pytest.mark.parametrize("kind", list(TaskKind))
def test_without_noise_what_is_read_off_entries_is_exact(kind: TaskKind) -> None:
    plan = plan_of(kind)
    logits, labels = records(kind, 0)
    _, question, measured = ask_all(plan)[-1]
    exact = exactly(kind, logits, labels, [edges[len(edges) // 2] for edges in question.edges])
    for name in ("accuracy", "recall", "precision", "f1"):
        assert getattr(measured.metrics, name) == pytest.approx(exact[name], abs=0.012), name
    # Smooth figures are those of a fitted density; loss and its kin are cut at whole numbers.
    for name in ("auc", "loss", "kappa"):
        assert getattr(measured.metrics, name) == pytest.approx(exact[name], abs=0.02), name
    confusion = np.array(measured.metrics.confusion)
    if kind is not TaskKind.MULTILABEL:
        assert confusion.sum() == UNITS
        assert (confusion >= 0).all()
        assert np.trace(confusion) / UNITS == pytest.approx(exact["accuracy"], abs=0.012)


def test_the_prevalence_that_probabilities_hold_for_is_that_of_the_counted_units() -> None:
    _, labels = records(TaskKind.BINARY, 0)
    told = ask_all(plan_of(TaskKind.BINARY))[-2][2].metrics
    assert told.prevalence == pytest.approx((labels == 1).mean(), abs=0.005)
    assert told.temperature > 0
    assert math.isnan(ask_all(plan_of(TaskKind.MULTICLASS))[-2][2].metrics.prevalence)


def test_a_label_that_is_left_out_of_records_is_measured_on_the_others() -> None:
    plan = dataclasses.replace(plan_of(TaskKind.MULTILABEL), labels_left_out=True)
    logits, labels = records(TaskKind.MULTILABEL, 0)
    known = np.random.default_rng(4).random(labels.shape) < (1.0, 0.8, 0.5, 0.3)
    told = np.where(known, labels, -1)
    state = EvaluationState()
    for release in plan.releases:
        question = next_question(plan, release, state)
        summed = answer(plan, question, logits, told, np.arange(UNITS), UNITS, bytes(32))
        measured, state = decode(plan, release, summed, UNITS, 0.0, state, question)
        assert EvaluationState.from_json(state.to_json()) == state
    assert state.known == pytest.approx(known.mean(axis=0), abs=0.002)
    assert measured.metrics.records == UNITS
    for place, figures in enumerate(measured.each):
        own, middle = known[:, place], len(question.edges[place]) // 2
        truth, decided = labels[own, place] == 1, logits[own, place] >= question.edges[place][middle]
        assert figures.records == pytest.approx(own.sum(), abs=1)
        assert figures.support == pytest.approx(truth.sum(), abs=1.5)
        assert figures.recall == pytest.approx(decided[truth].mean(), abs=0.02)
        assert figures.specificity == pytest.approx(1 - decided[~truth].mean(), abs=0.02)
        assert figures.auc == pytest.approx(roc_auc_score(truth, logits[own, place]), abs=0.03)


@pytest.mark.long
@pytest.mark.parametrize("kind", list(TaskKind))
def test_noise_alone_or_of_any_size_is_decoded_without_an_error(kind: TaskKind) -> None:
    plan = plan_of(kind)
    generator = np.random.default_rng(3)
    for size in (1e3, 1e5, 1e8):

        def noise(_release: Release, size: float = size) -> NDArray[np.int64]:
            return np.rint(generator.normal(size=plan.length) * size).astype(np.int64)

        for release, question, measured in ask_all(plan, noise):
            assert [len(edges) for edges in question.edges] == list(plan.layout(release).edges)
            assert all((np.diff(edges) > 0).all() for edges in question.edges)
            for name, (low, high) in measured.intervals.items():
                value = getattr(measured.metrics, name)
                assert math.isnan(value) or low <= high, name
            if release.kind is not ReleaseKind.CLASSES:
                assert 0 <= measured.metrics.accuracy <= 1


@pytest.mark.parametrize(("variance", "is_told"), [(1.0, True), (1e10, False)])
def test_kappa_is_left_out_where_noise_drowns_it(variance: float, is_told: bool) -> None:
    plan = plan_of(TaskKind.ORDINAL)
    logits, labels = records(TaskKind.ORDINAL, 0)
    release = plan.final_validation
    question = next_question(plan, release, EvaluationState())
    summed = answer(plan, question, logits, labels, np.arange(UNITS), UNITS, bytes(32))
    measured, _ = decode(plan, release, summed, UNITS, variance, EvaluationState(), question)
    assert (measured.noise.get("kappa", math.inf) <= LARGEST_KAPPA_NOISE) == is_told
    assert math.isfinite(measured.metrics.kappa) == ("kappa" in measured.intervals) == is_told


def test_everyone_decodes_the_same_figures_from_the_same_sum() -> None:
    plan = plan_of(TaskKind.BINARY)
    first, second = ask_all(plan), ask_all(plan)
    assert [str(measured) for _, _, measured in first] == [str(measured) for _, _, measured in second]


def test_a_dropout_scales_the_class_count() -> None:
    plan = plan_of(TaskKind.BINARY)
    logits, labels = records(TaskKind.BINARY, 0)
    state = EvaluationState(shares=(0.625,), share_noise=0.01)
    half = UNITS // 2
    release = plan.final_validation
    question = next_question(plan, release, state)
    summed = answer(plan, question, logits[:half], labels[:half], np.arange(half), half, bytes(32))
    measured, _ = decode(plan, release, summed, half, 0.0, state, question)
    assert sum(measured.metrics.confusion[1]) == round(0.625 * half)


def test_a_run_without_a_class_count_goes_on_and_its_intervals_are_wide() -> None:
    plan = plan_of(TaskKind.BINARY)
    logits, labels = records(TaskKind.BINARY, 0)
    release = plan.releases[1]
    question = next_question(plan, release, EvaluationState())
    summed = answer(plan, question, logits, labels, np.arange(UNITS), UNITS, bytes(32))
    known, _ = decode(plan, release, summed, UNITS, 1e6, EvaluationState((2 / 3,), 0.01), question)
    unknown, _ = decode(plan, release, summed, UNITS, 1e6, EvaluationState(), question)

    def width(measured: Measured) -> float:
        return measured.intervals["recall"][1] - measured.intervals["recall"][0]

    assert width(unknown) > 1.5 * width(known)
    assert unknown.metrics.accuracy == known.metrics.accuracy


def test_scores_between_two_edges_have_no_auc_until_the_edges_have_found_them() -> None:
    assert MOST_TOGETHER < 1
    plan = plan_of(TaskKind.BINARY)
    logits, labels = records(TaskKind.BINARY, 0)
    far = logits + np.array([0, 9], np.float32)
    state = EvaluationState((2 / 3,), 0.01)
    aucs = []
    for _ in range(4):
        question = next_question(plan, plan.releases[1], state)
        summed = answer(plan, question, far, labels, np.arange(UNITS), UNITS, bytes(32))
        measured, state = decode(plan, plan.releases[1], summed, UNITS, 1e6, state, question)
        aucs.append(measured.metrics.auc)
    assert math.isnan(aucs[0])
    exact = exactly(TaskKind.BINARY, far, labels, [0.0])["auc"]
    assert aucs[-1] == pytest.approx(exact, abs=0.03)


def test_questions_follow_the_threshold_where_the_two_normals_err_equally() -> None:
    plan = plan_of(TaskKind.BINARY)
    reference = Reference(Normal(-3.0, 1.0), Normal(1.0, 3.0))
    edges = next_question(plan, plan.test, EvaluationState(references=(reference,))).edges[0]
    assert edges[3] == pytest.approx(-2.0)
    assert list(edges) == sorted(edges)


@settings(max_examples=100)
@given(
    means=st.tuples(st.floats(-1e5, 1e5), st.floats(-1e5, 1e5)),
    deviations=st.tuples(st.floats(1e-3, 1e4), st.floats(1e-3, 1e4)),
)
def test_edges_ascend_for_any_reference(means: tuple[float, float], deviations: tuple[float, float]) -> None:
    plan = plan_of(TaskKind.BINARY)
    reference = Reference(Normal(means[0], deviations[0]), Normal(means[1], deviations[1]))
    for release in plan.releases[1:]:
        edges = next_question(plan, release, EvaluationState(references=(reference,))).edges[0]
        assert (np.diff(edges) > 0).all()
        assert np.abs(edges).max() <= 1e6


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}x",
        b"\xff",
        '{"shares":[1.5]}',
        '{"shares":[NaN]}',
        '{"share_noise":-1.0}',
        '{"unknown":1}',
        '{"shares":["0.5"]}',
        '{"references":[{"others":{"mean":0.0,"deviation":0.0},"own":{"mean":0.0,"deviation":1.0}}]}',
        '{"references":[{"others":{"mean":0.0,"deviation":1.0}}]}',
        "[" * 100_000,
    ],
)
def test_a_state_that_is_none_is_refused(text: str | bytes) -> None:
    with pytest.raises(RunError, match="restore the file"):
        EvaluationState.from_json(text)


def test_a_sum_or_question_of_another_release_is_refused() -> None:
    plan = plan_of(TaskKind.BINARY)
    state = EvaluationState()
    question = next_question(plan, plan.test, state)
    good = np.zeros(plan.length, np.int64)
    with pytest.raises(RunError, match="entries"):
        decode(plan, plan.test, good[1:], UNITS, 1.0, state, question)
    with pytest.raises(RunError, match="units"):
        decode(plan, plan.test, good, 0, 1.0, state, question)
    with pytest.raises(RunError, match="question"):
        decode(plan, plan.final_validation, good, UNITS, 1.0, state, question)
    falling = Question(plan.test.number, (tuple(reversed(question.edges[0])),))
    with pytest.raises(RunError, match="ascending"):
        decode(plan, plan.test, good, UNITS, 1.0, state, falling)


def test_every_metric_of_a_binary_release_is_given() -> None:
    measured = ask_all(plan_of(TaskKind.BINARY))[-1][2]
    for name in Metrics.model_fields:
        value = getattr(measured.metrics, name)
        assert not isinstance(value, float) or math.isfinite(value), name
    assert set(measured.intervals) == set(METRICS) - {"ece"}  # Its interval would not cover.
    assert measured.metrics.roc[0] == (0.0, 0.0)
    assert measured.metrics.roc[-1] == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize(("rate", "units", "noise"), [(0.5, 100, 0.0), (0.97, 200, 0.02), (0.9, 624, 0.01)])
def test_a_score_interval_covers_a_rate_in_93_to_97_of_100_cases(rate: float, units: int, noise: float) -> None:
    generator = np.random.default_rng(1)
    seen = generator.binomial(units, rate, 4000) / units + generator.normal(size=4000) * noise
    inside = [low <= rate <= high for low, high in (of_rate(float(one), units, noise**2) for one in seen)]
    assert 0.93 <= np.mean(inside) <= 0.97


def test_a_score_interval_without_noise_is_wilsons_and_never_leaves_the_unit_interval() -> None:
    from scipy.stats import binomtest

    wilson = binomtest(90, 100).proportion_ci(method="wilson")
    assert of_rate(0.9, 100, 0.0) == pytest.approx((wilson.low, wilson.high), abs=1e-6)
    for rate in (-3.0, 0.0, 1.0, 1.3):
        low, high = of_rate(rate, 50, 0.01)
        assert 0 <= low <= high <= 1


def test_an_interval_of_too_few_draws_is_unknown() -> None:
    assert all(math.isnan(end) for end in of_draws(0.5, np.array([0.4])))
    assert all(math.isnan(end) for end in of_draws(math.nan, np.array([0.4, 0.5])))


def simulated(draws: int, epsilon: float = 1.0) -> dict[tuple[str, str], tuple[float, float, float]]:
    generator = np.random.default_rng(7)
    labels, logits = [], []
    for size in (524, UNITS):
        truth = (generator.random(size) < 0.625).astype(np.int64)
        score = np.where(truth == 1, 2.5, -2.5) + generator.normal(size=size) * 2.0
        labels.append(truth)
        logits.append(np.stack([np.zeros(size), score], axis=1))
    steps = tuple((logits[0] * scale, logits[1] * scale) for scale in (0.1, 0.7, 0.9, 1.0))
    training = Trajectory(TaskKind.BINARY, "made up", (labels[0], labels[1]), steps)
    findings = measure("made up", [training], epsilon, draws, seed=1)
    return {(one.release, one.figure): (one.bias, one.deviation, one.coverage) for one in findings}


@pytest.mark.long
def test_at_epsilon_1_accuracy_and_auc_of_624_records_are_near_the_exact_ones() -> None:
    found = simulated(25)
    bias, deviation, _ = found["test", "accuracy"]
    assert abs(bias) < 0.004
    assert 0.003 < deviation < 0.009
    bias, deviation, _ = found["test", "auc"]
    assert abs(bias) < 0.005
    assert deviation < 0.009
    assert found["interim", "accuracy"][1] < 0.03


@pytest.mark.slow
def test_the_aims_of_evaluation_hold_over_400_runs() -> None:
    found = simulated(400)
    bias, deviation, coverage = found["test", "accuracy"]
    assert abs(bias) < 0.001
    assert deviation < 0.008
    assert 0.93 <= coverage <= 0.97
    bias, deviation, coverage = found["test", "auc"]
    assert abs(bias) < 0.005
    assert deviation < 0.008
    for rate in ("recall", "specificity"):
        assert 0.93 <= found["test", rate][2] <= 0.975
    assert found["interim", "accuracy"][1] < 0.03


def test_a_server_finds_a_record_by_a_model_made_for_it_no_better_than_the_bound() -> None:
    empty, other, bound = attacked(1.0, seed=1)
    assert bound == pytest.approx(0.5613, abs=0.002)
    assert bound - 0.02 < empty < bound + 0.015
    assert other < 0.62
