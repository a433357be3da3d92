"""A server reads validation and test images out of evaluations of crafted models, which used to be exact and free.

At 30890c7, mode local: 260 of 260 evaluation-only rounds were answered with exact counts, and nothing was booked.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config import HospitalConfig
from common.evaluation.plan import EvaluationPlan
from common.evaluation.question import Question
from common.evaluation.tree import answer
from common.keystream import Keystream
from common.run.round_terms import Purpose
from common.run.terms import evaluation_plan_of, layout_of, release_mechanism
from tests.support.twins import Led, Twins, described, hospital_data, quick_accounting

POLICY = HospitalConfig(
    delta=1e-4, stated_training_units=20, stated_validation_units=6, stated_test_units=6, allow_no_privacy=True
)
QUERIES = 260
TRIALS = 10_000
AT_ONCE = 2000
STATED_TEST_UNITS = 600
MOST_BALANCED_ACCURACY = 0.61


def of_mode(mode: str) -> dict[str, dict[str, Any]]:
    return {"privacy": {"mode": mode, "delta": 1e-4}}


@pytest.mark.parametrize(("mode", "queries"), [("local", QUERIES), ("distributed", 40), ("none", 40)])
def test_of_260_evaluations_few_are_answered(mode: str, queries: int, tmp_path: Path) -> None:
    with quick_accounting():
        twins = Twins(tmp_path, 1, POLICY, (hospital_data(24), hospital_data(25)))
        server = Led(twins, described(1, **of_mode(mode)))
        assert server.description is not None
        plan = evaluation_plan_of(server.description)
        assert plan is not None
        numbers = [release.number for release in plan.releases]
        codes = []
        for query in range(queries):
            refused = server.lead(Purpose.EVALUATE, release=numbers[query % len(numbers)])
            codes.append("" if refused is None else refused.code)
        # Each planned release once, and each kind of release once more.
        assert codes.count("") <= len(numbers) * (1 + server.description.evaluation.repeats)
        assert codes.count("evaluation_spent") == queries - codes.count("")
        assert "" not in codes[2 * len(numbers) :]
        assert server.lead(Purpose.EVALUATE) is not None  # A round that asks for nothing at all.


@pytest.mark.parametrize("mode", ["local", "distributed", "none"])
def test_run_after_run_the_budget_ends_it(mode: str, tmp_path: Path) -> None:
    """Once it is spent, vectors still come, of noise alone: they state no units."""
    measured = 0
    with quick_accounting():
        twins = Twins(tmp_path, 1, POLICY, (hospital_data(24), hospital_data(25)))
        server = Led(twins, described(0, **of_mode(mode)))
        for number in range(1, 31):
            server.run(described(number, **of_mode(mode)))
            assert server.description is not None
            plan = evaluation_plan_of(server.description)
            assert plan is not None
            assert server.lead(Purpose.EVALUATE, release=plan.test.number) is None
            tail = layout_of(server.description).decode(server.bare(), 1).tail
            assert tail.test_units in (0, POLICY.stated_test_units)
            measured += tail.test_units > 0
            assert measured == number or tail.test_units == 0
        twins.close()
    # μ grows as the square root of the runs, so ε = 4 has room for a few of ε = 1.
    assert 1 <= measured <= 16


def _sums(plan: EvaluationPlan, run: Any, cohort: int, present: bool, source: Keystream) -> Any:  # noqa: ANN401
    """Return TRIALS sums of the release of the test part; the target is in the part, or an empty record is."""
    question = Question(plan.test.number, tuple(tuple(range(count)) for count in plan.layout(plan.test).edges))
    # The server chose a model that is surest of the target; it knows all other records, so leaves them out.
    scores = np.array([[-1e30, 1e30]], np.float32)[: int(present)]
    labels, units = np.ones(int(present), np.int64), np.zeros(int(present), np.int64)
    counted = answer(plan, question, scores, labels, units, STATED_TEST_UNITS, b"choice")
    # The noise of many trials at once: an entry's does not depend on how many there are.
    mechanism = replace(release_mechanism(run, plan, plan.test), dimension=plan.length * AT_ONCE)
    sums = np.zeros((TRIALS, plan.length))
    for first in range(0, TRIALS, AT_ONCE):
        # As few shares of noise as a sum may hold.
        for _ in range(cohort - run.privacy.tolerated_dropouts):
            sums[first : first + AT_ONCE] += mechanism.noise_share(cohort, source).reshape(AT_ONCE, plan.length)
    return sums + counted, counted


def test_membership_in_a_test_part_is_guessed_hardly_better_than_by_chance() -> None:
    run = described(1, **of_mode("local"))
    plan = evaluation_plan_of(run)
    assert plan is not None
    without, _ = _sums(plan, run, 3, False, Keystream(bytes(32)))
    present, counted = _sums(plan, run, 3, True, Keystream(bytes(31) + b"1"))
    direction = counted / np.linalg.norm(counted)
    middle = np.linalg.norm(counted) / 2
    hits, alarms = (present @ direction > middle).mean(), (without @ direction > middle).mean()
    accuracy = (hits + 1 - alarms) / 2
    # The likeliest of two Gaussians is right with Φ(μ/2), which no test beats.
    mu = np.linalg.norm(counted) / (plan.noise_multiplier(plan.test) * plan.norm_bound)
    bound = 0.5 * (1 + math.erf(mu / 2 / math.sqrt(2)))
    assert 0.9 < np.linalg.norm(counted) / plan.norm_bound <= 1  # The attack is as strong as a record can be.
    assert bound <= MOST_BALANCED_ACCURACY
    assert 0.5 < accuracy <= MOST_BALANCED_ACCURACY
    assert accuracy == pytest.approx(bound, abs=0.02)
