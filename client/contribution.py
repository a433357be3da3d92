"""A hospital's part in a round before any mask: book the privacy, train, evaluate, encode.

**Rule.** What leaves here is the vector and one :class:`~common.run.messages.EpsilonReport`. The report, and every
refusal, is a function of the run description, the hospital's policy and what its ledger was asked to book before: never
of the data. Whatever the data are, and whatever the model does to them, the result is a valid vector. Where they fall
short of what the policy states, or cannot be used, the hospital's own operator is told, and nobody else.
"""

import bisect
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from client.data.hospital_data import HospitalData, HospitalRecords
from client.data.watch import GONE_FILE, Gone
from client.device import choose
from client.features import model_inputs
from client.ledger.ledger import Ledger
from client.own_models import RECORDS, fit_to_train
from client.own_results import AgainstAlone
from client.own_threshold import noise_of, threshold_of
from client.planned_cost import ACCOUNTS
from client.steps_alone import COHORT_OF_ONE, StepsAlone
from client.subgroups import GroupResult, by_group, decided
from client.training import (
    TrainingData,
    feature_mean,
    noisy_feature_sum,
    noisy_gradient_sum,
    scores,
    train_locally,
)
from client.warps import copies_of
from common.config import HospitalConfig, PrivacyUnit, RunDescription, TrainingConfig
from common.errors import (
    BudgetExceededError,
    ConfigError,
    DataError,
    EvaluationSpentError,
    PrivacyError,
    RunError,
)
from common.evaluation import EvaluationCounts, EvaluationShape, Metrics, count, metrics
from common.evaluation.labels import count_labels, figures_of_labels, flat_labels
from common.evaluation.plan import EVALUATED, WITHOUT_TREES, EvaluationPlan, Part, Release, ReleaseKind
from common.evaluation.question import Question
from common.evaluation.tree import (
    answer,
    answer_against_alone,
    answer_spread,
    answer_statistics,
    asked,
    decisions,
    require_edges,
)
from common.evaluation.tree import scores as scores_of
from common.keystream import SEED_BYTES, Keystream
from common.models import registry
from common.models.flat import flat_parameters
from common.models.frozen import move
from common.models.naming import BackboneModel, PackageModel, from_outside
from common.privacy.accounting import Accountant, MechanismEvent, epsilon, rounded_up
from common.privacy.budget import Account, Booking, BudgetPolicy
from common.privacy.mechanism import NoisySteps, NoisySum, PlainSteps, RoundPlan, mechanism_of
from common.run.messages import EpsilonReport
from common.run.round_terms import Purpose, RoundTerms
from common.run.terms import evaluation_plan_of, fewest_survivors, release_mechanism, verified_layout_of
from common.run.vector import Tail
from common.task import TaskKind, present, targets

_SEED_LENGTH = 8
"""The bytes that ``experiment.seed`` takes."""

OWN_BINS = 256
"""The number of bins of the score histogram behind a hospital's own figures, which stay at the hospital."""

_ROUNDING = 1e-9
"""By how much an accountant's own sums may pass a target that its inverse was solved for."""


_LOG = logging.getLogger("confide.hospital")

Array = npt.NDArray[Any]
Random = Callable[[int], bytes]


@dataclass(frozen=True)
class Contribution:
    """One hospital's vector for one round.

    Attributes:
        vector: (vector length,) of the ring, not yet masked; must not leave the hospital in mode ``secure``.
        epsilon: what the hospital has spent on training after this round; None without privacy.
        evaluation_epsilon: spent on each part so far, for the hospital's own operator.
        records_per_second: through the training steps, for the hospital's own operator; None without training.
        own: of the round's model on this hospital's own records, for its own staff; must not leave the hospital.
        groups: the same for each group of its test records.
        alone: likewise, how the run's model compared with that of its own records alone; None before that was asked.
        notes: what the hospital's operator should know; must not leave the hospital.
        gone: the images that no longer count, and why; may identify patients, and must not leave the hospital.
    """

    vector: Array = field(repr=False)
    epsilon: EpsilonReport | None
    evaluation_epsilon: dict[str, float] = field(default_factory=dict)
    records_per_second: float | None = field(default=None, repr=False)
    own: Metrics | None = field(default=None, repr=False)
    groups: tuple[GroupResult, ...] = field(default=(), repr=False)
    alone: AgainstAlone | None = field(default=None, repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False)
    gone: tuple[tuple[str, str], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class _Counted:
    """Training records as statistics count them: with the bins of their traits in the place of their images."""

    records: TrainingData = field(repr=False)
    unit: PrivacyUnit

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Return those of the records that are not gone."""
        return self.records.of_copies(self.records.labels)

    def answer(self, plan: EvaluationPlan, stated: int, seed: bytes) -> npt.NDArray[np.int64]:
        """Return the sum of the units' vectors, before noise; of more units than are stated a fixed subset counts."""
        records = self.records
        traits, units = records.take(records.here).numpy(), records.of_copies(records.units(self.unit))
        return answer_statistics(plan, self.labels, traits, units, stated, seed)


@dataclass(frozen=True)
class RecordsTrainer:
    """One round's training on some of this hospital's records, for the run's plan: the other side of ``Trainer``."""

    model: nn.Module
    start: npt.NDArray[np.float32]
    data: TrainingData
    training: TrainingConfig
    stated: int
    cohort: int
    random: Random
    device: torch.device

    def steps(self, plan: PlainSteps | NoisySteps) -> npt.NDArray[np.float32]:
        """See :class:`common.privacy.mechanism.Trainer`."""
        expected = plan.expected_batch(self.stated)
        return train_locally(
            self.model,
            self.start,
            self.data,
            self.training,
            plan,
            self.random,
            expected_units=expected,
            device=self.device,
        ).delta

    def gradient_sum(self, plan: NoisySum) -> npt.NDArray[np.int64]:
        """See :class:`common.privacy.mechanism.Trainer`."""
        return noisy_gradient_sum(self.model, self.start, self.data, plan, self.cohort, self.random, self.device).total

    def feature_mean(self, plan: PlainSteps | NoisySteps) -> npt.NDArray[np.float32]:
        """See :class:`common.privacy.mechanism.Trainer`."""
        return feature_mean(self.model, self.data, plan, self.stated, self.random)

    def feature_sum(self, plan: NoisySum) -> npt.NDArray[np.int64]:
        """See :class:`common.privacy.mechanism.Trainer`."""
        return noisy_feature_sum(self.model, self.data, plan, self.cohort, self.random)


class Contributor:
    """Does one run's work on this hospital's data.

    Args:
        run: the agreed description.
        data: of this hospital.
        ledger: of this hospital; None where nothing in the run is private.
        policy: what the hospital states, and its budgets.
        random: source of fresh bytes, ``os.urandom``.
        cache: the hospital's own folder for what is computed once from its images.

    Raises:
        PrivacyError: the run's noise does not keep the ε that it names.
        ConfigError: the description contradicts itself.
    """

    def __init__(
        self,
        run: RunDescription,
        data: HospitalData,
        ledger: Ledger | None,
        policy: HospitalConfig,
        random: Random,
        cache: Path,
    ) -> None:
        self._run = run
        self._policy = policy
        self._ledger = ledger
        self._random = random
        self._fingerprint = data.fingerprint
        self.layout = verified_layout_of(run)
        self.plan = evaluation_plan_of(run)
        self._mechanism = mechanism_of(run)
        self._accountant = Accountant(run.privacy.accountant)
        self._training = self._mechanism.plan(run, self.layout.parameters)
        self._mean = self._mechanism.mean_plan(run, self.layout.parameters)
        self._check_evaluation_noise()
        # Which units count where there are too many: a function of the run alone, so that it shows nothing about them.
        self._choice = choice_of(run)
        self._device = choose(policy.device)
        self._model = model_of(run)
        move(registry.frozen_features(run.model.architecture), self._device)

        # Copies steady the gradient and the threshold; what the model is worth is measured on the images themselves.
        copies = run.training.copies
        parts = [
            _prepared(run, name, part, number, cache)
            for name, part, number in (
                ("training", data.train, copies),
                ("validation", data.validation, copies),
                ("test", data.test, 1),
            )
        ]
        everything, self._validation, self._test = (of_stated_patients(run, policy, part) for part in parts)
        self._train = everything.limited(run.aggregation.max_weight, run.privacy.unit, self._choice)
        counted = of_stated_patients(
            run,
            policy,
            TrainingData.of(data.train.traits_or_unknown(), targets(run.task, data.train.labels), data.train.patients),
        )
        self._counted = _Counted(counted, run.privacy.unit)
        left_out = sum(map(len, parts)) - len(everything) - len(self._validation) - len(self._test)
        self._shortfall_notes = self._shortfalls(everything, left_out)
        self._test_traits = data.test.traits_or_unknown()
        self._watch, self._gone = data.watch, Gone({}, ())
        self._alone, self._alone_is_booked = self._steps_alone(), False
        self._threshold_alone: float | None = None
        self._own_alone: AgainstAlone | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what the operator should know about the data; it stays here."""
        number = len(self._gone.files)
        if not number:
            return self._shortfall_notes
        images, count = ("1 image has", "counts") if number == 1 else (f"{number} images have", "count")
        gone = (
            f"{images} been removed, damaged or changed since this run began, and no longer {count}; {GONE_FILE} in "
            "the state folder says which and how"
        )
        return (*self._shortfall_notes, gone)

    @property
    def run(self) -> RunDescription:
        """Return the agreed description."""
        return self._run

    def _check_evaluation_noise(self) -> None:
        """Refuse a plan whose releases together cost more than the ε that the run names for evaluation."""
        if self.plan is None:
            return
        evaluation, delta = self._run.evaluation, self._run.privacy.delta
        for part in Part:
            target = evaluation.statistics_epsilon if part is Part.TRAINING else evaluation.target_epsilon
            events = [self._release_event(release) for release in self.plan.everything if release.part is part]
            reached = epsilon(events, delta, self._accountant) if events else 0.0
            if reached > target + _ROUNDING:
                raise PrivacyError(
                    f"the evaluation plan must keep its target ε = {target:g} for each {part} record, "
                    f"got {rounded_up(reached):g}"
                )

    def _release_event(self, release: Release) -> MechanismEvent:
        assert self.plan is not None  # noqa: S101 - a release has a plan
        return release_mechanism(self._run, self.plan, release).event(1.0)

    def _shortfalls(self, everything: TrainingData, left_out: int) -> tuple[str, ...]:
        """Return what the operator should know about the data against what the policy states; it stays here."""
        policy, unit, found = self._policy, self._run.privacy.unit, []
        if left_out:
            found.append(
                f"hospital.most_records_per_patient states {policy.most_records_per_patient}; {left_out} further "
                "records of patients who have more are left out"
            )
        stated = {
            "training": (everything, policy.stated_training_units),
            "validation": (self._validation, policy.stated_validation_units),
            "test": (self._test, policy.stated_test_units),
        }
        for name, (part, units) in stated.items():
            there = part.count(unit)
            if there < units:
                found.append(f"hospital.stated_{name}_units states {units} {unit}s, {there} are there")
        most = self._run.aggregation.max_weight
        if everything.count(unit) > most:
            found.append(f"the run takes {most} training {unit}s of a hospital, {everything.count(unit)} are there")
        if policy.stated_units_per_class:
            labels = everything.labels.numpy()
            fewest = min(present(labels, len(self._run.classes)))
            if fewest < policy.stated_units_per_class:
                found.append(
                    f"hospital.stated_units_per_class states {policy.stated_units_per_class}, a class has {fewest}"
                )
        for note in found:
            _LOG.warning("%s; the server learns nothing of this", note)
        return tuple(found)

    def check_planned_end(self) -> None:
        """Refuse a run whose planned end would pass this hospital's budget for training, before its first round.

        A run in which this hospital has booked a round is not judged again: each further round is, by itself. The
        answer is a function of the run description, the ledger and the policy, as each round's ε is.

        Raises:
            BudgetExceededError: says what the run would bring the hospital to, and how many rounds would fit.
        """
        booking = self._training.booking(self._run.privacy.delta)
        if self._ledger is None or booking is None or self._ledger.lines(self._run.run_id, Account.TRAINING):
            return
        policy, rounds = self._budget(Account.TRAINING), self._run.experiment.rounds
        mean = None if self._mean is None else self._mean.booking(self._run.privacy.delta)
        alone = self._mechanism.bookings_alone(self._run, self.layout.parameters)

        def end(after: int) -> float:
            assert self._ledger is not None  # noqa: S101 - as above
            planned = [*alone] if mean is None else [mean, *alone]
            if after:
                planned.append(replace(booking, event=replace(booking.event, steps=booking.event.steps * after)))
            return self._ledger.with_planned(planned, policy, self._accountant)

        reached = end(rounds)
        if reached <= policy.budget:
            return
        fitting = bisect.bisect_right(range(rounds), policy.budget, key=end) - 1
        fits = f"{fitting} of its {rounds} rounds would fit" if fitting > 0 else "not one of its rounds would fit"
        raise BudgetExceededError(
            f"this run's planned end would bring this hospital to ε = {rounded_up(reached):.3f} at "
            f"δ = {policy.delta:g} for each {policy.unit} of its training data, and its budget is {policy.budget:g}; "
            f"{fits}, and `confide privacy plan --state` says which ε would. Nothing was spent"
        )

    def check(self, terms: RoundTerms, cohort: int) -> Release | None:
        """Return the release that a round's terms ask for, or refuse terms that the run does not allow.

        Raises:
            RunError: the terms ask for nothing, for a release that the plan does not have, or for a sum whose noise
                would be too little.
            EvaluationSpentError: the release was asked for as often as the run allows.
        """
        reads, measures = terms.reads_training_records, terms.question is not None
        fewest = fewest_survivors(self._run, cohort, trains=reads, measures=measures)
        if terms.fewest_survivors != fewest:
            raise RunError(
                f"this round's sum must be over at least {fewest} hospitals, its terms say {terms.fewest_survivors}"
            )
        if terms.purpose is Purpose.MEAN:
            self._check_mean(terms, cohort)
            return None
        if terms.trains:
            self._training.check_cohort(cohort)
        if terms.question is None:
            if not terms.trains and self.plan is not None:
                raise RunError("a round without training must ask for a release of the evaluation plan")
            return None
        if self.plan is None:
            raise RunError("a run with exact counts has no evaluation plan to ask from")
        release = self._asked(self.plan, terms.question)
        if release.kind in WITHOUT_TREES and terms.trains:
            raise RunError(
                "who is trained on, and how single hospitals or their models do, must be asked in a round without "
                "training"
            )
        release_mechanism(self._run, self.plan, release).share_variance(cohort)
        self._check_repeats(release)
        return release

    def _check_mean(self, terms: RoundTerms, cohort: int) -> None:
        """Refuse to tell the mean of features where the run has none, beside a question, or too often."""
        if self._mean is None:
            raise RunError("a run without privacy.mean_share must not ask for the mean of features")
        if terms.question is not None:
            raise RunError("the mean of features must be asked in a round without a question")
        self._mean.check_cohort(cohort)
        if self._ledger is None or self._mean.event is None:
            return
        repeats = self._run.evaluation.repeats
        told = self._ledger.lines(self._run.run_id, Account.TRAINING, self._mean.event)
        if told > repeats:
            raise RunError(f"the mean of features was asked for {told} times, the run allows {1 + repeats}")

    @staticmethod
    def _asked(plan: EvaluationPlan, question: Question) -> Release:
        without = {release.number: release for release in plan.everything if release.kind in WITHOUT_TREES}
        if question.release in without:
            require_edges(plan, without[question.release], question)
        else:
            asked(plan, question)
        return plan.release(question.release)

    def _check_repeats(self, release: Release) -> None:
        if self._ledger is None or self.plan is None:
            return
        alike = [
            each
            for each in self.plan.everything
            if each.part is release.part and self._release_event(each) == self._release_event(release)
        ]
        allowed = len(alike) + self._run.evaluation.repeats
        booked = self._ledger.lines(self._run.run_id, ACCOUNTS[release.part], self._release_event(release))
        if booked >= allowed:
            raise EvaluationSpentError(
                f"a release of this kind on the {release.part} part was asked for {booked} times, the run allows "
                f"{allowed}; the run continues without it"
            )

    def contribute(
        self, round_number: int, terms: RoundTerms, model: npt.NDArray[np.float32], *, cohort: int
    ) -> Contribution:
        """Return this hospital's vector for one round.

        The cost in privacy is in the ledger, durably, before the first gradient is computed.

        Args:
            round_number: of the protocol.
            terms: what the round asks for, as bound into its masks.
            model: (d,) float32, the round's global model, of any finite values.
            cohort: hospitals whose vectors are added, which together make the noise.

        Raises:
            BudgetExceededError: the round would pass this hospital's budget for training; nothing was computed.
            RunError, EvaluationSpentError: as :meth:`check`; or the model has another shape.
        """
        release, self._own_alone = self.check(terms, cohort), None
        if model.shape != (self.layout.parameters,) or model.dtype != np.float32:
            raise RunError(
                f"the model must be {self.layout.parameters} float32 numbers, got {model.shape} of {model.dtype}"
            )
        plan = self._plan_of(terms)
        report = None if plan is None else self._book_training(round_number, plan)
        answered = release is not None and self._book_release(round_number, release)
        report = self._report() if plan is None else report
        random, noise = self._source_for(model), Keystream(self._random(SEED_BYTES))
        self._leave_out_what_is_gone()
        validation, test, own, groups = self._measured(model)
        started = time.perf_counter()
        change = self._no_change() if plan is None else self._change(plan, model, cohort, random)
        rate = self._records_of_a_round() / (time.perf_counter() - started) if terms.trains else None
        if terms.trains:
            self._train_alone(StepsAlone.advance)
        tail = self._tail(terms, release, validation, test, cohort, noise, answered=answered)
        vector = (plan or self._training).encode(self.layout, change, tail, random)
        return Contribution(
            vector, report, self.evaluation_spent(), rate, own, groups, self._own_alone, self.notes, self._gone.files
        )

    def _leave_out_what_is_gone(self) -> None:
        """Let records whose images have been removed, damaged or changed since the run began count as empty ones.

        What the ledger books is the same with and without them, and so is all that leaves but the vector.
        """
        gone = self._gone if self._watch is None else self._watch.gone()
        if gone is self._gone:
            return
        self._gone = gone
        self._train = self._train.without(gone.rows["train"])
        self._counted = replace(self._counted, records=self._counted.records.without(gone.rows["train"]))
        self._validation = self._validation.without(gone.rows["val"])
        self._test = self._test.without(gone.rows["test"])
        if gone.files:
            _LOG.warning("the data: %s; the server learns nothing of this", self.notes[-1])

    def _plan_of(self, terms: RoundTerms) -> RoundPlan | None:
        """Return how this round reads training records; None where it reads none."""
        if not terms.reads_training_records:
            return None
        return self._mean if terms.purpose is Purpose.MEAN else self._training

    def _no_change(self) -> Array:
        return self._training.no_change(self.layout.parameters)

    def _change(self, plan: RoundPlan, model: npt.NDArray[np.float32], cohort: int, random: Random) -> Array:
        """Return this hospital's contribution to the model, as the run's mechanism makes it.

        When anything goes wrong with the data, it returns the change of a hospital without data, with all its noise.
        """
        try:
            return self._trained(plan, self._train, model, cohort, random)
        except Exception as error:  # noqa: BLE001 - whatever it is, stopping would show the server that it happened
            _LOG.error("training failed on this hospital's records (%s); the round goes without them", _kind(error))
            return self._trained(plan, self._train.emptied(), model, cohort, random)

    def _trained(
        self, plan: RoundPlan, data: TrainingData, model: npt.NDArray[np.float32], cohort: int, random: Random
    ) -> Array:
        stated = self._policy.stated_training_units
        if plan is self._mean:  # Of more units the sum over what is stated would be no mean.
            data = data.limited(stated, self._run.privacy.unit, self._choice)
        return plan.change(
            RecordsTrainer(self._model, model, data, self._run.training, stated, cohort, random, self._device)
        )

    def _steps_alone(self) -> StepsAlone | None:
        """Return the training on this hospital's records alone that the run compares its own with, if it does."""
        if not self._run.privacy.alone_share:
            return None
        alone, stated = self._mechanism.of_hospital_alone(), self._policy.stated_training_units
        optimiser = alone.training_alone(self._run.training)

        def trainer(weights: npt.NDArray[np.float32], most: int | None = None) -> RecordsTrainer:
            data = self._train if most is None else self._train.limited(most, self._run.privacy.unit, self._choice)
            random = self._source_for(weights)
            return RecordsTrainer(self._model, weights, data, optimiser, stated, COHORT_OF_ONE, random, self._device)

        first, of_mean = flat_parameters(self._model), partial(trainer, most=stated)
        return StepsAlone(self._run, alone, first, trainer, stated, noise=alone.is_private, of_mean=of_mean)

    def _train_alone(self, take_steps: Callable[[StepsAlone], None]) -> None:
        """Take steps on this hospital's records alone, without showing anyone whether they can be taken.

        They are spread over the run, so that no single round waits for all of them.
        """
        if self._alone is None:
            return
        try:
            take_steps(self._alone)
        except Exception as error:  # noqa: BLE001 - as in _change
            _LOG.error("training on this hospital's records alone failed (%s); its last model counts", _kind(error))

    def _decided_alone(self) -> npt.NDArray[np.int64]:
        """Return which class the model of this hospital's own records decides for of each test record."""
        assert self._alone is not None  # noqa: S101 - the run's plan has a comparison
        self._train_alone(StepsAlone.finish)
        run, train = self._run, self._train
        kind, classes = TaskKind(run.task.kind), len(run.classes)
        of_train, of_test = scores(self._model, self._alone.weights, train, self._test, classes, self._device)
        if kind is not TaskKind.BINARY:
            return decisions(kind, of_test, None)
        if self._threshold_alone is None:
            self._threshold_alone = 0.0  # If an answer fails, none is given again: that would be another release.
            self._threshold_alone = threshold_of(
                scores_of(kind, of_train)[:, 0],
                train.of_copies(train.labels),
                train.of_copies(train.units(run.privacy.unit)),
                self._policy.stated_training_units,
                self._noise_of_threshold(),
            )
        return decisions(kind, of_test, self._threshold_alone)

    def _noise_of_threshold(self) -> Callable[[], int]:
        event = self._mechanism.threshold_alone(self._run)
        if event is None:
            return lambda: 0
        mechanism, stream = noise_of(event.noise_multiplier), Keystream(self._random(SEED_BYTES))
        return lambda: int(mechanism.noise_share(COHORT_OF_ONE, stream)[0])

    def _against_alone(
        self, plan: EvaluationPlan, question: Question, test: Array, stated: int
    ) -> npt.NDArray[np.int64]:
        """Return how often the round's model is right where this hospital's own is not; of no records on a failure."""
        threshold = question.edges[0][0] if question.edges else None
        try:
            decided = decisions(plan.kind, test, threshold), self._decided_alone()
        except Exception as error:  # noqa: BLE001 - as in _change
            _LOG.error("the model of this hospital's records alone cannot be measured (%s); none count", _kind(error))
            return np.zeros(plan.length, np.int64)
        labels = self._test.of_copies(self._test.labels)
        together, alone = (float((each == labels).mean()) if len(labels) else 0.0 for each in decided)
        self._own_alone = AgainstAlone(records=len(labels), together=together, alone=alone)
        units = self._test.of_copies(self._test.units(self._run.privacy.unit))
        return answer_against_alone(plan, decided, labels, units, stated, self._choice)

    def _measured(self, model: npt.NDArray[np.float32]) -> tuple[Array, Array, Metrics | None, tuple[GroupResult, ...]]:
        """Return the model's scores on both parts, and what they say to this hospital's own staff."""
        try:
            validation, test = scores(
                self._model, model, self._validation, self._test, len(self._run.classes), self._device
            )
        except Exception as error:  # noqa: BLE001 - as in _change
            _LOG.error("the model cannot be measured on this hospital's records (%s); none count", _kind(error))
            self._validation, self._test = self._validation.emptied(), self._test.emptied()
            none = np.zeros((0, len(self._run.classes)), np.float32)
            return none, none, None, ()
        try:
            return validation, test, *self._own_figures(validation, test)
        except Exception as error:  # noqa: BLE001 - a figure for its own staff must not become a refusal
            _LOG.error("this hospital's own figures of the model cannot be computed (%s)", _kind(error))
            return validation, test, None, ()

    def _own_figures(self, validation: Array, test: Array) -> tuple[Metrics, tuple[GroupResult, ...]]:
        task = self._run.task
        if task.kind is TaskKind.MULTILABEL:
            own, labels = figures_of_labels(self._label_counts(validation, test, OWN_BINS))
            thresholds = tuple(label.threshold for label in labels)
        else:
            own = metrics(self._counts(validation, test, EvaluationShape(len(self._run.classes), OWN_BINS)))
            thresholds = (own.threshold,)
        truth = self._test.of_copies(self._test.labels)
        traits = self._test_traits[self._test.rows[self._test.here].numpy()]
        return own, by_group(traits, decided(task, test, truth, thresholds))

    def _label_counts(self, validation: Array, test: Array, bins: int) -> tuple[EvaluationCounts, ...]:
        of_validation, of_test = (part.of_copies(part.labels) for part in (self._validation, self._test))
        return count_labels((validation, of_validation), (test, of_test), bins)

    def _exact(self, validation: Array, test: Array, shape: EvaluationShape) -> npt.NDArray[np.int64]:
        if shape.labels:
            return flat_labels(self._label_counts(validation, test, shape.bins))
        return self._counts(validation, test, shape).flat()

    def _counts(self, validation: Array, test: Array, shape: EvaluationShape) -> EvaluationCounts:
        return EvaluationCounts(
            validation=count(validation, self._validation.of_copies(self._validation.labels), shape),
            test=count(test, self._test.of_copies(self._test.labels), shape),
        )

    def _tail(
        self,
        terms: RoundTerms,
        release: Release | None,
        validation: Array,
        test: Array,
        cohort: int,
        noise: Keystream,
        *,
        answered: bool,
    ) -> Tail:
        """Return what stands before the change: what the policy states, and the evaluation with its noise."""
        policy = self._policy
        if isinstance(self.layout.evaluation, EvaluationShape):
            counts = self._exact(validation, test, self.layout.evaluation)
            validation_here, test_here = len(self._validation.here), len(self._test.here)
            return Tail(policy.stated_training_units, validation_here, test_here, counts)
        entries = np.zeros(self.layout.evaluation, np.int64)
        units = dict.fromkeys(Part, 0)
        if release is not None and self.plan is not None and terms.question is not None:
            mechanism = release_mechanism(self._run, self.plan, release)
            if answered and release.kind is ReleaseKind.STATISTICS:
                units[Part.TRAINING] = policy.stated_training_units
                entries += self._counted.answer(self.plan, units[Part.TRAINING], self._choice)
            elif answered and release.kind is ReleaseKind.AGAINST_ALONE:
                units[Part.TEST] = policy.stated_test_units
                entries += self._against_alone(self.plan, terms.question, test, units[Part.TEST])
            elif answered and release.kind is ReleaseKind.SPREAD:
                units[Part.TEST] = policy.stated_test_units
                entries += answer_spread(
                    self.plan,
                    test,
                    self._test.of_copies(self._test.labels),
                    self._test.of_copies(self._test.units(self._run.privacy.unit)),
                    units[Part.TEST],
                    self._choice,
                )
            elif answered:
                is_validation = release.part is Part.VALIDATION
                part, logits = (self._validation, validation) if is_validation else (self._test, test)
                units[release.part] = policy.stated_validation_units if is_validation else policy.stated_test_units
                entries += answer(
                    self.plan,
                    terms.question,
                    logits,
                    part.of_copies(part.labels),
                    part.of_copies(part.units(self._run.privacy.unit)),
                    units[release.part],
                    self._choice,
                )
            # A hospital that has no budget left for this adds its share of the noise, and states no units.
            entries += mechanism.noise_share(cohort, noise)
        # A release asks one part alone; the training units that statistics count stand where validation units would.
        counted = units[Part.VALIDATION] + units[Part.TRAINING]
        return Tail(policy.stated_training_units, counted, units[Part.TEST], entries)

    def _records_of_a_round(self) -> float:
        """Return how many records are expected to pass through the training steps of one round."""
        return self._training.passes * len(self._train.here)

    def _source_for(self, model: npt.NDArray[np.float32]) -> Random:
        """Return the source of this round's sampling, training noise and rounding.

        It always has one seed, so the amount that is drawn, which depends on the data, shifts no later draw.
        Without privacy training has nothing to keep secret, and a change is a function of the run's seed, the data and
        the model: a baseline can be repeated, and a round that is repeated after a crash gives the same vector.
        Evaluation's noise never comes from here.
        """
        if self._mechanism.is_private:
            return Keystream(self._random(SEED_BYTES)).draw
        seed = self._run.experiment.seed.to_bytes(_SEED_LENGTH, "big")
        digest = hashlib.sha256(seed + self._fingerprint)
        digest.update(np.ascontiguousarray(model).data)  # In place: a large model is not copied for it.
        return Keystream(digest.digest()).draw

    def _book_training(self, round_number: int, plan: RoundPlan) -> EpsilonReport | None:
        booking = plan.booking(self._run.privacy.delta)
        if self._ledger is None or booking is None:
            return None
        policy = self._budget(Account.TRAINING)
        spent = self._ledger.record(self._run.run_id, round_number, booking, policy, self._accountant)
        return EpsilonReport(rounded_up(spent), policy.budget)

    def _book_release(self, round_number: int, release: Release) -> bool:
        """Book a release, if this hospital's budgets for it allow; says whether they do.

        With a comparison the model of this hospital's own records is booked, too, before anything of it leaves: once,
        as long as this process keeps the model.
        """
        if self._ledger is None:
            return False
        privacy, account = self._run.privacy, ACCOUNTS[release.part]
        bookings = [Booking(account, self._release_event(release), privacy.unit, privacy.colluders, privacy.delta)]
        of_alone = release.kind is ReleaseKind.AGAINST_ALONE and not self._alone_is_booked
        if of_alone:
            bookings += self._mechanism.bookings_alone(self._run, self.layout.parameters)
        judged = [(booking, self._budget(booking.account)) for booking in bookings]
        try:
            self._ledger.record_all(self._run.run_id, round_number, judged, self._accountant)
        except BudgetExceededError as error:
            _LOG.warning("nothing is counted of this hospital's %s records: %s", release.part, error)
            return False
        self._alone_is_booked = self._alone_is_booked or of_alone
        return True

    def _budget(self, account: Account) -> BudgetPolicy:
        return BudgetPolicy.of(self._policy, account)

    def _report(self) -> EpsilonReport | None:
        if self._ledger is None or not self._mechanism.is_private:
            return None
        policy = self._budget(Account.TRAINING)
        return EpsilonReport(rounded_up(self._ledger.spent(Account.TRAINING, policy, self._accountant)), policy.budget)

    def evaluation_spent(self) -> dict[str, float]:
        """Return what evaluations have cost each record of a part so far, for the hospital's own operator."""
        if self._ledger is None:
            return {}
        return {
            part.value: rounded_up(self._ledger.spent(ACCOUNTS[part], self._budget(ACCOUNTS[part]), self._accountant))
            for part in EVALUATED
        }


def choice_of(run: RunDescription) -> bytes:
    """Return the seed by which units are left out where there are too many: a function of the run alone."""
    return hashlib.sha256(b"confide units" + bytes.fromhex(run.run_id)).digest()


def of_stated_patients(run: RunDescription, policy: HospitalConfig, part: TrainingData) -> TrainingData:
    """Return the records by which a patient costs no more than the policy's conversion says.

    Where a run protects records and the budget protects patients, a record's cost is converted by the number of
    records that a patient has at most. So no patient may have more of them in what is used.
    """
    most = policy.most_records_per_patient
    converted = policy.unit is PrivacyUnit.PATIENT and run.privacy.unit is PrivacyUnit.RECORD
    return part.at_most_per_patient(most, choice_of(run)) if converted and most else part


def model_of(run: RunDescription) -> nn.Module:
    """Return the run's model, ready for training; one from outside is tried on made-up records first.

    Raises:
        ConfigError: it cannot be trained; whether it can depends on no record.
    """
    name, classes, size = run.model.architecture, len(run.classes), run.model.image_size
    model = registry.build(name, classes, run.channels, size, run.experiment.seed)
    match from_outside(name):
        case PackageModel():
            return fit_to_train(model, registry.input_shape(name, RECORDS, run.channels, size), classes, run.model.name)
        case BackboneModel():
            features = registry.frozen_features(name)
            if features is not None:
                features(torch.zeros(1, run.channels, size, size, dtype=torch.uint8))
    return model


def _prepared(run: RunDescription, name: str, part: HospitalRecords, copies: int, cache: Path) -> TrainingData:
    """Return a part as the model is trained or measured on it; without any record where that cannot be made.

    Size, copies and labels are a server's choice, so memory or disk that is too small, or a backbone that fails on an
    image, must not refuse a run: a server would count the records of a label by when it does.
    """
    try:
        return as_inputs(run, part, copies, cache)
    except (ConfigError, DataError, MemoryError, OSError, RuntimeError) as error:
        reason = error if isinstance(error, ConfigError | DataError) else _kind(error)
        _LOG.error(
            "the %s records must fit memory, disk and model; they do not, and none of them counts in this run: %s; the "
            "server learns nothing of this", name, reason,
        )  # fmt: skip
        return as_inputs(run, part.emptied(), copies, cache)


def as_inputs(run: RunDescription, part: HospitalRecords, copies: int, cache: Path) -> TrainingData:
    """Return a part's inputs, computed of every image that is there, also of those that the run leaves out.

    How long that takes must not show a server how many records its label map names.
    """
    pictures = copies_of(part.all_images, run.training.warp, copies, cache)
    inputs: Array = model_inputs(run.model.architecture, pictures, cache)
    if copies > 1:
        inputs = inputs.reshape(len(part.all_images), copies, inputs.shape[1])
    return TrainingData.of(inputs, targets(run.task, part.labels), part.patients, part.rows)


def _kind(error: Exception) -> str:
    """Return what kind of error it is; its words may hold the name of a file, which may be a patient's."""
    return type(error).__name__
