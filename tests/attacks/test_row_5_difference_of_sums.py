"""A server takes the difference of two sums, with a hospital and without it: a round each that differ in nothing else.

At 30890c7, mode none: of hospitals with 60 and 61 records the difference said 60 and 61, and 12 validation records
each; the rest of it was the hospital's exact update.

The masks cannot hide a difference of two sums. What a hospital gives to it is therefore public (what it states), or
carries its own noise (the change in mode local), or carries what noise the sums had (evaluation, and the change in mode
distributed). In mode none the change has no noise: its difference *is* the hospital's, which the documents say.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.contribution import Contributor
from client.ledger.ledger import Ledger
from common.config import HospitalConfig, RunDescription
from common.evaluation.question import Question
from common.keystream import Keystream
from common.privacy.mechanism import NoisySteps, NoisySum
from common.run.flat_model import hash_model
from common.run.round_terms import Purpose, RoundTerms
from common.run.terms import evaluation_plan_of, fewest_survivors, layout_of, release_mechanism
from common.run.vector import DecodedSum
from tests.support.twins import described, first_model, hospital_data, quick_accounting

POLICY = HospitalConfig(
    delta=1e-3,
    epsilon_budget=1000.0,
    evaluation_epsilon_budget=1000.0,
    stated_training_units=20,
    stated_validation_units=6,
    stated_test_units=6,
)
HOSPITALS = 4
WITH, WITHOUT = 4, 3


class Room:
    """Four hospitals' own parts of rounds; their sums are what secure aggregation gives, bit by bit."""

    def __init__(self, folder: Path, run: RunDescription, size: int, seed: int = 1) -> None:
        self.run = run
        self.layout = layout_of(run)
        sizes = (30, 30, 30, size)
        self.hospitals = []
        for number, records in enumerate(sizes):
            data = hospital_data(records, records // 5, records // 5, seed=number)
            ledger = Ledger.open(folder / str(number), data.fingerprint)
            random = Keystream(bytes([seed, number]) + bytes(30)).draw
            self.hospitals.append(Contributor(run, data, ledger, POLICY, random, folder))
        self.round_number = 0

    def sum(self, cohort: int, release: int | None = None) -> Any:  # noqa: ANN401 - an array of the ring
        """Return the sum of a round's vectors over the first hospitals; the last is the victim."""
        self.round_number += 1
        plan = evaluation_plan_of(self.run)
        question = None
        if release is not None and plan is not None:
            edges = plan.layout(plan.release(release)).edges
            question = Question(release, tuple(tuple(np.linspace(-1, 1, count).tolist()) for count in edges))
        model = first_model()
        fewest = fewest_survivors(self.run, cohort, trains=True, measures=question is not None)
        terms = RoundTerms(
            purpose=Purpose.TRAIN, model_hash=hash_model(model), fewest_survivors=fewest, question=question
        )
        head = self.layout.length - self.layout.parameters
        total = np.zeros(self.layout.length, self.layout.dtype)
        for hospital in self.hospitals[:cohort]:
            vector = hospital.contribute(self.round_number, terms, model, cohort=cohort).vector
            total[:head].view(np.uint32)[:] += vector[:head].view(np.uint32)
            total[head:] += vector[head:]
        return total

    def difference(self, release: int | None = None) -> DecodedSum:
        """Return what the two sums differ in, read as one hospital's vector."""
        larger, smaller = self.sum(WITH, release), self.sum(WITHOUT, release)
        head = self.layout.length - self.layout.parameters
        result = larger - smaller
        result[:head].view(np.uint32)[:] = larger[:head].view(np.uint32) - smaller[:head].view(np.uint32)
        return self.layout.decode(result, 1)


MODES: dict[str, dict[str, Any]] = {"local": {}, "distributed": {"mode": "distributed"}, "none": {"mode": "none"}}


@pytest.mark.parametrize("mode", MODES)
def test_the_difference_states_what_the_hospital_states_whatever_it_has(mode: str, tmp_path: Path) -> None:
    found = set()
    with quick_accounting():
        for size in (20, 21, 30, 60):
            room = Room(tmp_path / str(size), described(1, HOSPITALS, privacy=MODES[mode]), size)
            for release in (0, None):
                tail = room.difference(release).tail
                found.add((release, tail.weight, tail.validation_units, tail.test_units))
    assert found == {(0, 20, 6, 0), (None, 20, 0, 0)}


@pytest.mark.parametrize("mode", MODES)
def test_the_difference_of_counts_carries_the_noise_of_both_sums(mode: str, tmp_path: Path) -> None:
    run = described(1, HOSPITALS, privacy=MODES[mode], evaluation={"repeats": 20})
    plan = evaluation_plan_of(run)
    assert plan is not None
    asked = plan.final_validation
    layout = plan.layout(asked)
    with quick_accounting():
        room = Room(tmp_path, run, 30)
        drawn = np.array([room.difference(asked.number).tail.entries[: layout.length] for _ in range(10)])
    # The hospital's counts are the same ten times over; what varies is noise, of more than a whole sum's.
    least = plan.noise_multiplier(asked) * plan.norm_bound
    assert release_mechanism(run, plan, asked).norm_bound == plan.norm_bound
    assert np.sqrt(drawn.var(axis=0, ddof=1).mean()) > least
    # Six records could move an entry by 6 S at most; what the server sees is that, under this much noise.
    assert least > 3 * plan.norm_bound


@pytest.mark.parametrize("mode", ["local", "distributed"])
def test_the_difference_of_changes_carries_a_full_share_of_training_noise(mode: str, tmp_path: Path) -> None:
    run = described(1, HOSPITALS, privacy=MODES[mode])
    with quick_accounting():
        room = Room(tmp_path, run, 30)
        first, second = (room.difference().residues.astype(np.float64) for _ in range(2))
    noise = (first - second).std() / np.sqrt(2)
    if mode == "local":
        # σC over the expected batch, of the hospital itself, whoever else knows what; the others' comes on top.
        steps = room.hospitals[-1]._training
        assert isinstance(steps, NoisySteps)
        one = steps.noise_multiplier * run.privacy.max_grad_norm / (run.training.sample_rate * 20)
        step = room.layout.step
        assert noise * step / 20 > 0.95 * run.training.learning_rate * one  # 20 is the hospital's weight.
    else:
        plan = room.hospitals[-1]._training
        assert isinstance(plan, NoisySum)
        assert noise > 0.95 * plan.noise.noise_multiplier * plan.noise.norm_bound


def test_in_mode_none_the_difference_is_the_hospitals_own_change_as_documented(tmp_path: Path) -> None:
    """Not a promise that is kept but one that is not made: mode none needs ``hospital.allow_no_privacy``."""
    run = described(1, HOSPITALS, privacy=MODES["none"])
    with quick_accounting():
        room = Room(tmp_path, run, 30)
        seen = room.difference().residues.astype(np.float64)
        own = room.layout.decode(_alone(room), 1).residues.astype(np.float64)
    assert np.array_equal(seen, own)
    assert own.any()


def _alone(room: Room) -> Any:  # noqa: ANN401 - an array of the ring
    model = first_model()
    terms = RoundTerms(purpose=Purpose.TRAIN, model_hash=hash_model(model), fewest_survivors=0)
    return room.hospitals[-1].contribute(99, terms, model, cohort=WITH).vector
