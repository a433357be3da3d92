"""What a hospital puts into its vector, what it books for it, and in which order."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import client.contribution as module
from client.contribution import Contribution, Contributor
from client.data.hospital_data import HospitalData, HospitalRecords
from client.ledger.ledger import Ledger, export
from client.own_threshold import SCALE
from client.training import LocalUpdate, TrainingData, feature_mean, train_locally
from common.config import HospitalConfig, RunDescription
from common.errors import BudgetExceededError, EvaluationSpentError, RunError
from common.evaluation import site_spread
from common.evaluation.plan import EvaluationPlan
from common.evaluation.question import Question
from common.evaluation.site_spread import Cases
from common.evaluation.statistics import TRAITS, unknown_traits
from common.keystream import Keystream
from common.privacy.accounting import Accountant, epsilon
from common.privacy.distributed import DistributedMechanism
from common.privacy.mechanism import LocalNoise, mechanism_of
from common.run.flat_model import hash_model
from common.run.round_terms import Purpose, RoundTerms
from common.run.terms import describe, fewest_survivors, layout_of, release_mechanism
from common.run.vector import Tail
from common.secagg.binding import bound_hash
from server.initial_model import initial_model
from tests.support.small_consortium import RUN_ID, Dealt, small, willing

COHORT = 4
STATED = {"stated_training_units": 40, "stated_validation_units": 7, "stated_test_units": 9}
HELD = {"train": 55, "validation": 11, "test": 13}
"""More than is stated, and numbers that nothing else has."""


def records(count: int, per_patient: int = 1) -> HospitalRecords:
    generator = np.random.default_rng(count)
    images = generator.integers(0, 256, (count, 1, 28, 28)).astype(np.uint8)
    return HospitalRecords(images, np.arange(count) % 2, np.arange(count) // per_patient)


def women_and_men(count: int) -> npt.NDArray[np.uint8]:
    traits = unknown_traits(count)
    traits[:, [name for name, _ in TRAITS].index("sex")] = np.where(np.arange(count) < count // 2, 1, 2)
    return traits


@pytest.fixture(scope="module")
def description(dealt: Dealt, tmp_path_factory: pytest.TempPathFactory) -> RunDescription:
    made = small(dealt, tmp_path_factory.mktemp("described"))
    return describe(made.config, RUN_ID, dealt.data.classes, dealt.data.channels, made.consortium.roster)


class Hospital:
    """One hospital's contributor with a ledger of its own, and randomness that a seed repeats."""

    def __init__(
        self,
        run: RunDescription,
        folder: Path,
        seed: int = 1,
        *,
        per_patient: int = 1,
        sexes: bool = False,
        **policy: Any,  # noqa: ANN401
    ) -> None:
        self.run, self.folder = run, folder / f"ledger-{seed}"
        parts = {name: records(count, per_patient) for name, count in HELD.items()}
        if sexes:
            parts["test"] = replace(parts["test"], traits=women_and_men(HELD["test"]))
        data = HospitalData(parts["train"], parts["validation"], parts["test"], bytes(32))
        self.policy: HospitalConfig = willing(**{**STATED, **policy})
        source = Keystream(bound_hash("test", bytes([seed])))
        ledger = Ledger.open(self.folder, data.fingerprint)
        self.contributor = Contributor(run, data, ledger, self.policy, source.draw, folder / "cache")
        self.model = initial_model(run)
        assert self.contributor.plan is not None
        self.plan: EvaluationPlan = self.contributor.plan

    def terms(self, release: int | None = None, *, trains: bool = True) -> RoundTerms:
        question = None
        if release is not None:
            edges = self.plan.layout(self.plan.releases[release]).edges
            question = Question(release=release, edges=tuple(tuple(map(float, range(each))) for each in edges))
        fewest = fewest_survivors(self.run, COHORT, trains=trains, measures=question is not None)
        purpose = Purpose.TRAIN if trains else Purpose.EVALUATE
        return RoundTerms(
            purpose=purpose, model_hash=hash_model(self.model), fewest_survivors=fewest, question=question
        )

    def contribute(self, release: int | None = None, *, trains: bool = True) -> Contribution:
        return self.contributor.contribute(1, self.terms(release, trains=trains), self.model, cohort=COHORT)

    def tail(self, contribution: Contribution) -> Tail:
        return self.contributor.layout.decode(contribution.vector, 1).tail

    def booked(self) -> list[dict[str, Any]]:
        return [entry["booking"] for entry in export(self.folder)["entries"] if entry["kind"] == "spent"]


Heard = list[tuple[dict[str, Any], LocalUpdate]]


def listen(monkeypatch: pytest.MonkeyPatch, before: Callable[[], None] = lambda: None) -> Heard:
    """Return every later call of the training, with what it was given and what came of it."""
    heard: Heard = []

    def listened(*given: Any, expected_units: float, device: torch.device) -> LocalUpdate:  # noqa: ANN401 - passed on
        before()
        update = train_locally(*given, expected_units=expected_units, device=device)
        heard.append(({"sigma": given[4].noise_multiplier, "expected": expected_units}, update))
        return update

    monkeypatch.setattr(module, "train_locally", listened)
    return heard


def test_what_a_round_costs_is_booked_before_the_first_gradient(
    description: RunDescription, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = Hospital(description, tmp_path)
    seen: list[list[str]] = []
    listen(monkeypatch, lambda: seen.append([each["account"] for each in hospital.booked()]))
    hospital.contribute()
    assert seen == [["training"]]
    assert len(hospital.booked()) == 1


def test_what_is_booked_is_what_the_training_does(
    description: RunDescription, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = Hospital(description, tmp_path)
    ((given, update),) = _after(listen(monkeypatch), hospital)
    (booking,) = hospital.booked()
    event = booking["event"]
    assert event["sample_rate"] == description.training.sample_rate
    assert event["steps"] == update.steps == LocalNoise(description.privacy).schedule(description.training).steps
    assert event["noise_multiplier"] == given["sigma"]


def _after(heard: Heard, hospital: Hospital) -> Heard:
    hospital.contribute()
    return heard


def test_what_stands_beside_the_change_is_what_the_policy_states(
    description: RunDescription, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = Hospital(description, tmp_path)
    heard = listen(monkeypatch)
    tail = hospital.tail(hospital.contribute(0))
    assert (tail.weight, tail.validation_units, tail.test_units) == (40, 7, 0)
    assert heard[0][0]["expected"] == 40 * description.training.sample_rate
    final = hospital.tail(hospital.contribute(len(hospital.plan.releases) - 1, trains=False))
    assert (final.weight, final.validation_units, final.test_units) == (40, 0, 9)


def test_a_patient_costs_no_more_than_the_number_of_records_by_which_the_policy_converts(
    description: RunDescription, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[TrainingData] = []

    def listened(model: object, start: object, data: TrainingData, *rest: Any, **named: Any) -> LocalUpdate:  # noqa: ANN401
        trained.append(data)
        return train_locally(model, start, data, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "train_locally", listened)
    policy: dict[str, Any] = {"unit": "patient", "most_records_per_patient": 2, "epsilon_budget": 1000.0}
    hospital = Hospital(description, tmp_path, per_patient=3, **policy)
    contribution = hospital.contribute()
    assert torch.bincount(trained[0].patients).max() == 2
    assert any("most_records_per_patient" in note for note in contribution.notes)
    assert hospital.tail(contribution).weight == STATED["stated_training_units"]


def test_evaluation_carries_fresh_noise_of_the_stated_size_in_every_release(
    description: RunDescription, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = Hospital(description, tmp_path), Hospital(description, tmp_path, seed=2)
    monkeypatch.setattr(module, "answer", lambda plan, *_: np.zeros(plan.length, np.int64))
    for release in one.plan.releases:
        noise = one.tail(one.contribute(release.number, trains=False)).entries
        variance = release_mechanism(description, one.plan, release).share_variance(COHORT)
        assert 0.2 < np.square(noise / math.sqrt(variance)).mean() < 3.0
        assert (noise != other.tail(other.contribute(release.number, trains=False)).entries).any()
    accounts = [release.part.value for release in one.plan.releases]
    assert [each["account"] for each in one.booked()] == accounts


def test_a_part_whose_budget_is_spent_adds_noise_alone_and_training_goes_on(
    description: RunDescription, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = Hospital(description, tmp_path, evaluation_epsilon_budget=1e-6)

    def looked(*_: object) -> None:
        raise AssertionError("the records of a part whose budget is spent were looked at")

    monkeypatch.setattr(module, "answer", looked)
    tail = hospital.tail(hospital.contribute(0))
    assert (tail.weight, tail.validation_units) == (40, 0)
    assert tail.entries.any()
    assert [each["account"] for each in hospital.booked()] == ["training"]


def asking_for_spread(
    description: RunDescription,
    folder: Path,
    **policy: Any,  # noqa: ANN401
) -> tuple[Hospital, Callable[[Purpose], RoundTerms]]:
    """Return a hospital of a run that asks how far hospitals' own AUC lie apart, and the terms of such a round."""
    asked = description.evaluation.model_copy(update={"spread_share": 0.3})
    hospital = Hospital(description.model_copy(update={"evaluation": asked}), folder, **policy)
    spread = hospital.plan.spread
    assert spread is not None

    def terms(purpose: Purpose) -> RoundTerms:
        trains = purpose is Purpose.TRAIN
        fewest = fewest_survivors(hospital.run, COHORT, trains=trains, measures=True)
        return RoundTerms(
            purpose=purpose,
            model_hash=hash_model(hospital.model),
            fewest_survivors=fewest,
            question=Question(spread.number, ()),
        )

    return hospital, terms


def test_a_hospital_tells_the_spread_at_the_cost_of_its_share_and_only_without_training(
    description: RunDescription, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital, terms = asking_for_spread(description, tmp_path)
    monkeypatch.setattr(site_spread, "CASES", Cases(0, 1))
    monkeypatch.setattr(DistributedMechanism, "noise_share", lambda self, *_: np.zeros(self.dimension, np.int64))
    with pytest.raises(RunError, match="in a round without training"):
        hospital.contributor.contribute(1, terms(Purpose.TRAIN), hospital.model, cohort=COHORT)
    assert hospital.booked() == []
    tail = hospital.tail(hospital.contributor.contribute(1, terms(Purpose.EVALUATE), hospital.model, cohort=COHORT))
    assert (tail.validation_units, tail.test_units) == (0, 9)
    assert tail.entries[site_spread.length_of() - 1] == round(site_spread.PER_HOSPITAL * site_spread.CASES.scale)
    assert not tail.entries[site_spread.length_of() :].any()
    (booked,) = hospital.booked()
    assert booked["account"] == "test"
    spread = hospital.plan.spread
    assert spread is not None
    due = release_mechanism(hospital.run, hospital.plan, spread).event(1.0)
    assert booked["event"]["noise_multiplier"] == due.noise_multiplier


def test_a_hospital_whose_budget_for_it_is_spent_adds_noise_alone_and_states_no_units(
    description: RunDescription, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital, terms = asking_for_spread(description, tmp_path, evaluation_epsilon_budget=1e-6)

    def looked(*_: object) -> None:
        raise AssertionError("the records of a part whose budget is spent were looked at")

    monkeypatch.setattr(module, "answer_spread", looked)
    tail = hospital.tail(hospital.contributor.contribute(1, terms(Purpose.EVALUATE), hospital.model, cohort=COHORT))
    assert (tail.validation_units, tail.test_units) == (0, 0)
    assert tail.entries.any()
    assert hospital.booked() == []


def test_terms_that_allow_a_sum_with_too_little_noise_are_refused(description: RunDescription, tmp_path: Path) -> None:
    hospital = Hospital(description, tmp_path)
    honest = hospital.terms(0)
    for fewest in (0, honest.fewest_survivors - 1):
        weaker = RoundTerms(
            purpose=honest.purpose, model_hash=honest.model_hash, fewest_survivors=fewest, question=honest.question
        )
        with pytest.raises(RunError, match="must be over at least"):
            hospital.contributor.contribute(1, weaker, hospital.model, cohort=COHORT)
    assert hospital.booked() == []


def test_two_rounds_of_one_model_share_no_randomness_under_privacy(description: RunDescription, tmp_path: Path) -> None:
    hospital = Hospital(description, tmp_path)
    first, second = (hospital.contributor.layout.decode(hospital.contribute().vector, 1).mean_delta for _ in range(2))
    assert (first != second).mean() > 0.5


def test_a_release_is_made_as_often_as_the_run_allows(description: RunDescription, tmp_path: Path) -> None:
    hospital = Hospital(description, tmp_path)
    for _ in range(1 + description.evaluation.repeats):
        hospital.contribute(0, trains=False)
    booked = hospital.booked()
    with pytest.raises(EvaluationSpentError):
        hospital.contribute(0, trains=False)
    assert hospital.booked() == booked


def test_training_that_fails_gives_a_valid_vector(
    description: RunDescription, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = Hospital(description, tmp_path)

    def failing(
        model: Any,  # noqa: ANN401 - passed on
        start: Any,  # noqa: ANN401
        data: TrainingData,
        *rest: Any,  # noqa: ANN401
        expected_units: float,
        device: torch.device,
    ) -> LocalUpdate:
        if len(data):
            raise RuntimeError("one record of this hospital's cannot be trained on")
        return train_locally(model, start, data, *rest, expected_units=expected_units, device=device)

    monkeypatch.setattr(module, "train_locally", failing)
    made = hospital.contribute()
    assert made.vector.shape == (description.vector_length,)
    assert hospital.contributor.layout.decode(made.vector, 1).mean_delta.any()  # Noise, as ever.


def test_figures_that_cannot_be_made_of_scores_are_not_told_to_the_server(
    description: RunDescription, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:  # noqa: ANN401
        raise ZeroDivisionError

    monkeypatch.setattr(module, "metrics", failing)
    made = Hospital(description, tmp_path).contribute(1)
    assert made.vector.shape == (description.vector_length,)
    assert made.own is None


def test_a_hospitals_own_figures_say_for_whom_the_model_works(description: RunDescription, tmp_path: Path) -> None:
    hospital = Hospital(description, tmp_path, sexes=True)
    groups = {group.group: group for group in hospital.contribute(1).groups}
    assert set(groups) == {"female", "male"}
    assert sum(group.records for group in groups.values()) == HELD["test"]
    assert all(0 < group.sick < group.records for group in groups.values())
    assert Hospital(description, tmp_path / "not known").contribute(1).groups == ()


def test_who_is_trained_on_is_not_asked_in_a_round_that_trains(dealt: Dealt, tmp_path: Path) -> None:
    made = small(dealt, tmp_path / "run", evaluation={"statistics_epsilon": 0.5})
    run = describe(made.config, RUN_ID, dealt.data.classes, dealt.data.channels, made.consortium.roster)
    hospital = Hospital(run, tmp_path)
    statistics = hospital.plan.statistics
    assert statistics is not None
    asked = RoundTerms(
        purpose=Purpose.TRAIN,
        model_hash=hash_model(hospital.model),
        fewest_survivors=fewest_survivors(run, COHORT, trains=True, measures=True),
        question=Question(release=statistics.number, edges=()),
    )
    with pytest.raises(RunError, match="in a round without training"):
        hospital.contributor.check(asked, COHORT)


def on_features(dealt: Dealt, folder: Path, mean_share: float) -> RunDescription:
    made = small(dealt, folder, model={"name": "scattering_linear"}, privacy={"mean_share": mean_share})
    return describe(made.config, RUN_ID, dealt.data.classes, dealt.data.channels, made.consortium.roster)


@pytest.mark.parametrize(("stated", "counted"), [(40, 40), (60, HELD["train"])])
def test_a_mean_of_features_is_over_at_most_what_is_stated_and_divided_by_that(
    dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: int, counted: int
) -> None:
    run = on_features(dealt, tmp_path / "run", 0.1)
    hospital, heard = Hospital(run, tmp_path, stated_training_units=stated), []
    real = feature_mean

    def listened(model: Any, data: TrainingData, plan: Any, divisor: float, random: Any) -> Any:  # noqa: ANN401
        heard.append((len(data), divisor))
        return real(model, data, plan, divisor, random)

    monkeypatch.setattr(module, "feature_mean", listened)
    terms = RoundTerms(purpose=Purpose.MEAN, model_hash=hash_model(hospital.model), fewest_survivors=0)
    hospital.contributor.contribute(1, terms, hospital.model, cohort=COHORT)
    assert heard == [(counted, stated)]


def test_a_runs_planned_end_counts_the_mean_of_features(dealt: Dealt, tmp_path: Path) -> None:
    run = on_features(dealt, tmp_path / "run", 0.5)
    delta, accountant = run.privacy.delta, Accountant(run.privacy.accountant)
    step = mechanism_of(run).plan(run, layout_of(run).parameters).event
    assert step is not None
    alone = epsilon([replace(step, steps=step.steps * run.experiment.rounds)], delta, accountant)
    between = (alone + run.privacy.target_epsilon) / 2
    assert alone < 0.9 * run.privacy.target_epsilon
    with pytest.raises(BudgetExceededError, match="planned end"):
        Hospital(run, tmp_path, delta=delta, epsilon_budget=between).contributor.check_planned_end()
    Hospital(run, tmp_path, 2, delta=delta, epsilon_budget=4.01).contributor.check_planned_end()


@pytest.mark.parametrize(("mode", "is_noisy"), [("local", True), ("none", False)])
def test_the_answers_about_a_hospitals_own_threshold_have_the_noise_that_is_booked(
    dealt: Dealt, tmp_path: Path, mode: str, is_noisy: bool
) -> None:
    made = small(dealt, tmp_path, privacy={"mode": mode, "alone_share": 0.5})
    run = describe(made.config, RUN_ID, dealt.data.classes, dealt.data.channels, made.consortium.roster)
    noise = Hospital(run, tmp_path).contributor._noise_of_threshold()
    drawn, event = [noise() for _ in range(2000)], mechanism_of(run).threshold_alone(run)
    assert (event is not None) == is_noisy
    booked = 0.0 if event is None else event.noise_multiplier * SCALE
    assert np.std(drawn) == pytest.approx(booked, rel=0.1)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_part_without_records_has_copies_of_none(dealt: Dealt, tmp_path: Path, part: str) -> None:
    made = small(
        dealt,
        tmp_path,
        model={"name": "scattering_linear"},
        training={"copies": 2, "warp": "chest"},
        privacy={"mean_share": 0.1},
    )
    run = describe(made.config, RUN_ID, dealt.data.classes, dealt.data.channels, made.consortium.roster)
    parts = {name: records(0 if name == part else 6) for name in HELD}
    ledger = Ledger.open(tmp_path / "ledger", bytes(32))
    random = Keystream(bound_hash("test", b"1")).draw
    data = HospitalData(parts["train"], parts["validation"], parts["test"], bytes(32))
    contributor = Contributor(run, data, ledger, willing(**STATED), random, tmp_path / "cache")
    model = initial_model(run)
    for purpose in (Purpose.MEAN, Purpose.TRAIN):
        fewest = fewest_survivors(run, COHORT, trains=True, measures=False)
        terms = RoundTerms(purpose=purpose, model_hash=hash_model(model), fewest_survivors=fewest)
        assert contributor.contribute(1, terms, model, cohort=COHORT).vector.shape == (run.vector_length,)
