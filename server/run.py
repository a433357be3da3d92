"""A whole run on the server: wait for hospitals, round after round, checkpoint, measure, finish."""

import math
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from common.audit.chain import Record, discard
from common.audit.entries import Began, Finished, Stepped, Summed
from common.config import AggregationMode, Config, RunDescription
from common.errors import EvaluationSpentError, RunError
from common.evaluation import Metrics
from common.evaluation.plan import Part
from common.privacy.mechanism import mechanism_of
from common.run.flat_model import hash_model, stretches
from common.run.messages import EpsilonReport
from common.run.round_terms import Purpose
from common.run.terms import (
    claims_of,
    evaluation_claim,
    evaluation_plan_of,
    layout_of,
    protocol_parameters,
    statistics_claim,
)
from common.secagg.errors import SERVER, ImplausibleSumError, Place, SecAggError
from common.secagg.masks import MaskApplier, apply_masks
from common.secagg.phases import Phase
from common.telemetry.events import COMPLETED, Counted, Evaluated, Event, RoundDone, RoundTime, RunFinished, RunStarted
from server.checkpoints import Checkpoint, CheckpointStore
from server.conversation import Conversation
from server.measurement import ExactMeasurements, PlannedMeasurements, Reading, measurements_of
from server.rounds import Aggregation, Asked, PlainAggregation, RoundSum, SecureAggregation
from server.strategies import Strategy, strategy_for

_RESERVED_ROUNDS = 64
"""Round numbers are reserved in blocks, written with a checkpoint before the first is used, so that a restarted server
never asks for a number that hospitals have answered."""

_MOST_FAILURES = 5
"""The most rounds that fail in a row; then the run ends with the model it has."""

_NEVER_AGAIN = frozenset({"policy", "config", "data", "ledger", "privacy", "identity", "weight_range"})
"""Refusals that a hospital will not take back in this run."""

_SPENT = "budget_exceeded"
"""The refusal of a hospital that still evaluates, but trains no more."""

_EVALUATION = "evaluation"
"""The name of the record of evaluations in a checkpoint."""

_POLL_SECONDS = 0.1


def new_run_id() -> str:
    """Return 32 random hexadecimal digits."""
    return secrets.token_hex(16)


@dataclass(frozen=True)
class RunPlan:
    """What a run is started with.

    Attributes:
        config: the consortium's.
        description: what hospitals agree to.
        data_set: its name, for every output.
        roster_keys: hospital to raw Ed25519 public key, already verified against the authority.
        apply_masks: takes the masks off a sum.
        absent: who of the roster cannot take part now: its certificate has expired, or the server has cut it off.
        consortium: how many members the authority's list names; None where the roster names them all.
        authority_on_server: the server holds the authority's key, which every output says.
        newest: returns the plan for the members of now: who has joined, was revoked or has a new certificate. Asked
            before each round; by default the members stay the same.
    """

    config: Config
    description: RunDescription
    data_set: str
    roster_keys: dict[str, bytes] = field(repr=False)
    apply_masks: MaskApplier = apply_masks
    absent: frozenset[str] = frozenset()
    consortium: int | None = None
    authority_on_server: bool = False
    newest: "Callable[[RunPlan], RunPlan]" = lambda plan: plan


@dataclass
class _Step:
    """A finished training step whose model is measured in the next round."""

    round_number: int
    hospitals: int
    seconds: float
    upload_bytes: int
    parts: RoundTime
    epsilon: dict[str, EpsilonReport]

    def as_numbers(self) -> dict[str, Any]:
        return {
            "round_number": self.round_number,
            "hospitals": self.hospitals,
            "seconds": self.seconds,
            "upload_bytes": self.upload_bytes,
            "parts": self.parts.model_dump(),
            "epsilon": {name: [report.spent, report.budget] for name, report in self.epsilon.items()},
        }

    @classmethod
    def from_numbers(cls, numbers: Any) -> "_Step":  # noqa: ANN401 - whatever stands in a file
        try:
            epsilon = {name: EpsilonReport(spent, budget) for name, (spent, budget) in numbers["epsilon"].items()}
            return cls(**{**numbers, "parts": RoundTime.model_validate(numbers["parts"]), "epsilon": epsilon})
        except (AttributeError, LookupError, TypeError, ValueError):
            raise RunError(
                "the newest checkpoint lacks the record of its last step; "
                "delete that file to resume from the previous one"
            ) from None


@dataclass(frozen=True)
class _Decoded:
    """What a round's sum says: the mean change of the model, a stretch at a time, and how good the model is."""

    change: Callable[[slice], npt.NDArray[np.float32]]
    reading: Reading


class Run:
    """Trains a model with the hospitals that are there, from the last checkpoint on."""

    def __init__(
        self,
        plan: RunPlan,
        conversation: Conversation,
        store: CheckpointStore,
        report: Callable[[Event], None],
        record: Record = discard,
    ) -> None:
        self._plan = plan
        self._conversation = conversation
        self._store = store
        self._report = report
        self._record = record
        self._layout = layout_of(plan.description)
        self._decoded = mechanism_of(plan.description).decoder(plan.description, self._layout.parameters)
        self._aggregation = _aggregation(plan, conversation)
        self._strategy: Strategy = strategy_for(
            plan.description.aggregation,
            plan.description.training,
            plan.description.privacy,
            self._layout.parameters,
        )
        self._retired: dict[str, str] = {}
        self._pending: _Step | None = None
        self._tested: Reading | None = None
        self._checkpoint = self._first_checkpoint()
        self._measurements = self._measurements_from(self._checkpoint)
        self._round = self._checkpoint.round_number
        self._reserved = self._checkpoint.round_number

    def _first_checkpoint(self) -> Checkpoint:
        found = self._store.latest(self._plan.description.run_id)
        if found is None:
            from server.initial_model import first_checkpoint  # It brings PyTorch, which a ServerApp does without.

            return self._store.save(first_checkpoint(self._plan.description))
        self._strategy.restore(dict(found.strategy))
        if "pending" in found.numbers:
            self._pending = _Step.from_numbers(found.numbers["pending"])
        return found

    def _measurements_from(self, checkpoint: Checkpoint) -> ExactMeasurements | PlannedMeasurements:
        return measurements_of(self._plan.description, self._layout, checkpoint.numbers.get(_EVALUATION, {}))

    def train(self) -> str:
        """Run to the end; returns why it ended, which is :data:`COMPLETED` when every round was trained.

        Raises:
            RunError: the disk refuses, or a checkpoint cannot be read.
        """
        self._say_started()
        rounds = self._plan.description.experiment.rounds
        reason = COMPLETED
        if self._checkpoint.step == 0:
            self._attempt(self._to_count)
        while self._checkpoint.step < rounds:
            ended = self._attempt(self._to_train)
            if ended is not None:
                reason = ended
                break
        if self._checkpoint.step:
            self._measure_last_model()
        self._record(
            Finished(
                run_id=self._plan.description.run_id,
                reason=reason,
                steps=self._checkpoint.step,
                model_hash=hash_model(self._checkpoint.model).hex(),
                threshold=self._checkpoint.numbers.get("threshold"),
            )
        )
        self._report(RunFinished(time=time.time(), reason=reason, rounds_done=self._checkpoint.step))
        return reason

    def _to_count(self) -> Asked | None:
        question = self._measurements.before_training()
        return None if question is None else Asked(Purpose.EVALUATE, question)

    def _to_train(self) -> Asked:
        return Asked(Purpose.TRAIN, self._measurements.while_training(self._checkpoint.step))

    def _measure_last_model(self) -> None:
        """Measure the model that training ended with: on validation records, and then once on test records.

        Exact counts come with any round, and are of both parts at once.
        """
        self._tested = None
        if self._checkpoint.measured_step < self._checkpoint.step:
            self._attempt(lambda: self._to_evaluate(Part.VALIDATION))
        if self._checkpoint.measured_step < self._checkpoint.step:
            self._measure(Reading())
        if not self._measurements.exact:
            self._attempt(lambda: self._to_evaluate(Part.TEST))
        self._say_tested()

    def _to_evaluate(self, part: Part) -> Asked | None:
        question = self._measurements.of_last_model(part)
        return None if question is None and not self._measurements.exact else Asked(Purpose.EVALUATE, question)

    def _attempt(self, to_ask: Callable[[], Asked | None]) -> str | None:
        """Try rounds until one succeeds; return why no round can any more, None after a success.

        Args:
            to_ask: returns what the next round is for; None when nothing can be asked any more.
        """
        for failures in range(1, _MOST_FAILURES + 1):
            self._follow_members()
            asked = to_ask()
            if asked is None:
                return "the evaluation plan allows no further release"
            hospitals = self._await_hospitals(train=asked.purpose is Purpose.TRAIN)
            if isinstance(hospitals, str):
                return hospitals
            try:
                self._one_round(hospitals, asked)
            except SecAggError as error:
                self._note_refusals()
                problem = str(error)
                # Hospitals may have sent keys for the next number already, and send none for it twice.
                self._round += 1
                time.sleep(min(_POLL_SECONDS * 2**failures, 2.0))
            else:
                self._note_refusals()
                return None
        return f"{_MOST_FAILURES} rounds in a row failed; the last: {problem}"

    def _follow_members(self) -> None:
        """Continue under a new description when the members have changed; keys made under the old one are dropped."""
        plan = self._plan.newest(self._plan)
        is_same = plan.description == self._plan.description
        self._plan = plan
        if is_same:
            return
        self._layout = layout_of(plan.description)
        kept = replace(self._checkpoint, numbers={_EVALUATION: self._measurements.to_numbers()})
        self._measurements = self._measurements_from(kept)
        self._aggregation = _aggregation(plan, self._conversation)
        self._round += 1  # Keys for the next number rode on the last round, and nobody gives any for it again.
        self._say_started()

    def _one_round(self, hospitals: frozenset[str], asked: Asked) -> None:
        number, trains = self._next_number(), asked.purpose is Purpose.TRAIN
        self._conversation.begin_round()
        started = time.monotonic()
        summed = self._aggregation.aggregate(
            number,
            hospitals,
            self._checkpoint.model,
            asked,
            next_round=number + 1 if trains else None,
        )
        decoded = self._decode(number, summed)
        self._record_sum(number, summed)
        seconds = time.monotonic() - started
        self._say_counted(decoded.reading)
        self._measure(decoded.reading)
        if trains:
            self._take_step(number, summed, decoded, seconds)
        else:
            self._save()

    def _record_sum(self, number: int, summed: RoundSum) -> None:
        self._record(
            Summed(
                run_id=self._plan.description.run_id,
                round_number=number,
                train=summed.terms.trains,
                model_hash=summed.terms.model_hash.hex(),
                terms=summed.terms.encode().hex(),
                survivors=summed.survivors,
                signatures={name: encoded.hex() for name, encoded in summed.signatures.items()},
                views={name: encoded.hex() for name, encoded in summed.views.items()},
                epsilon={name: told.spent for name, told in summed.epsilon.items()},
            )
        )

    def _decode(self, number: int, summed: RoundSum) -> "_Decoded":
        """Read the sum; one that honest hospitals cannot have costs the round and not the run."""
        hospitals = len(summed.survivors)
        try:
            decoded = self._layout.decode(summed.total, hospitals)
            reading = self._measurements.read(decoded.tail, summed.cohort, hospitals, summed.terms.question)
        except RunError as error:
            refusal = ImplausibleSumError(Place(SERVER, number, Phase.UNMASKING), str(error))
            self._conversation.refused_by_server((refusal,))
            raise refusal from None
        return _Decoded(self._decoded(decoded), reading)

    def _take_step(self, number: int, summed: RoundSum, decoded: "_Decoded", seconds: float) -> None:
        """Make the next model and write it, a stretch at a time: neither it nor the one before is in memory."""
        tally = self._conversation.tally
        self._pending = _Step(
            round_number=number,
            hospitals=len(summed.survivors),
            seconds=seconds,
            upload_bytes=tally.upload_bytes,
            parts=RoundTime(
                training=summed.training_seconds,
                moving=max(0.0, tally.seconds - summed.training_seconds),
                waiting=max(0.0, seconds - tally.seconds),
            ),
            epsilon=summed.epsilon,
        )
        self._checkpoint = replace(self._checkpoint, step=self._checkpoint.step + 1)
        draft = self._store.draft(self._to_save(), self._stepped(decoded))
        self._record(
            Stepped(
                run_id=self._plan.description.run_id,
                round_number=number,
                step=self._checkpoint.step,
                model_hash=hash_model(draft.checkpoint.model).hex(),
            )
        )
        self._checkpoint = self._store.publish(draft)

    def _stepped(self, decoded: "_Decoded") -> Iterator[npt.NDArray[np.float32]]:
        model = self._checkpoint.model
        for stretch in stretches(len(model)):
            yield self._strategy.step(model[stretch], decoded.change(stretch), stretch.start)

    def _measure(self, reading: Reading) -> None:
        """Report the last step with the measures of its model, undefined ones when nobody measured it."""
        if reading.part == "test":
            self._tested = reading
        if reading.measured is not None and not math.isnan(reading.measured.threshold):
            # With more than two classes there is none.
            numbers = {**self._checkpoint.numbers, "threshold": reading.measured.threshold}
            self._checkpoint = replace(self._checkpoint, numbers=numbers)
        if self._pending is None:  # The initial model is nobody's step; nor is a second measurement of the last one.
            return
        pending, self._pending = self._pending, None
        spent = {name: report.spent for name, report in pending.epsilon.items()}
        self._report(
            RoundDone(
                time=time.time(),
                round=pending.round_number,
                step=self._checkpoint.step,
                **measures(reading.measured),
                part=reading.part,
                intervals=dict(reading.intervals),
                evaluation_epsilon=reading.epsilon,
                epsilon=max(spent.values(), default=math.nan),
                epsilon_spent=spent,
                epsilon_budget={name: report.budget for name, report in pending.epsilon.items()},
                hospitals=pending.hospitals,
                seconds=pending.seconds,
                upload_bytes=pending.upload_bytes,
                seconds_by_part=pending.parts,
            )
        )
        self._checkpoint = replace(self._checkpoint, measured_step=self._checkpoint.step)

    def _say_counted(self, reading: Reading) -> None:
        """Report who the run trains on, where this round has told it."""
        told = reading.statistics
        if told is None:
            return
        self._report(
            Counted(
                time=time.time(),
                tables={table.name: {each.name: each.count for each in table.bins} for table in told.tables},
                units=told.units,
                deviation=told.deviation,
                least=told.least,
                epsilon=reading.epsilon,
                claim=statistics_claim(self._plan.description, reading.epsilon),
            )
        )

    def _say_tested(self) -> None:
        """Report how good the run's last model is on the test part, if that could be measured."""
        description, tested = self._plan.description, self._tested
        if tested is None:
            return
        measured = tested.measured
        self._report(
            Evaluated(
                time=time.time(),
                step=self._checkpoint.step,
                exact=self._measurements.exact,
                records=0 if measured is None else measured.records,
                **measures(measured),
                threshold=math.nan if measured is None else measured.threshold,
                intervals=dict(tested.intervals),
                noise=dict(tested.noise),
                epsilon=tested.epsilon,
                claim=evaluation_claim(description, tested.epsilon),
            )
        )

    def _await_hospitals(self, *, train: bool) -> frozenset[str] | str:
        """Return who may take part once enough are there and their number is stable, or why no run can start."""
        transport, least = self._plan.config.transport, self._plan.description.aggregation.min_hospitals
        allowed = self._allowed(train=train)
        if len(allowed) < least:
            return self._too_few(allowed, least)
        give_up = time.monotonic() + transport.start_deadline_seconds
        stable_since, last = time.monotonic(), frozenset[str]()
        while True:
            online = self._conversation.online() & allowed
            now = time.monotonic()
            if online != last:
                stable_since, last = now, online
            is_first = self._round == self._checkpoint.round_number
            everyone = len(online) >= min(self._plan.description.experiment.num_clients, len(allowed))
            still = now - stable_since >= transport.roster_stable_seconds
            if len(online) >= least and (everyone or still or not is_first):
                return allowed
            if now > give_up:
                return f"only {len(online)} of at least {least} hospitals were online within the deadline"
            time.sleep(_POLL_SECONDS)

    def _allowed(self, *, train: bool) -> frozenset[str]:
        gone = {name for name, code in self._retired.items() if train or code != _SPENT}
        return frozenset(self._plan.description.roster) - gone - self._plan.absent

    def _too_few(self, allowed: frozenset[str], least: int) -> str:
        reasons = "; ".join(f"{name}: {code}" for name, code in sorted(self._retired.items()))
        return f"{len(allowed)} of at least {least} hospitals are left after refusals ({reasons})"

    def _note_refusals(self) -> None:
        for name, refused in self._conversation.tally.refused.items():
            if refused.code in _NEVER_AGAIN or refused.code == _SPENT:
                self._retired[name] = refused.code
            if refused.code == EvaluationSpentError.code:
                self._measurements.spent()

    def _next_number(self) -> int:
        self._round += 1
        if self._round + 1 > self._reserved:
            self._reserved = self._round + _RESERVED_ROUNDS
            self._save()
        return self._round

    def _save(self) -> None:
        self._checkpoint = self._store.save(self._to_save())

    def _to_save(self) -> Checkpoint:
        numbers = {key: value for key, value in self._checkpoint.numbers.items() if key != "pending"}
        if self._pending is not None:
            numbers["pending"] = self._pending.as_numbers()
        numbers[_EVALUATION] = self._measurements.to_numbers()
        return replace(self._checkpoint, round_number=self._reserved, strategy=self._strategy.state(), numbers=numbers)

    def _say_started(self) -> None:
        description = self._plan.description
        plan = evaluation_plan_of(description)
        self._record(
            Began(
                run_id=description.run_id,
                description=description.canonical_json().decode(),
                data_set=self._plan.data_set,
                step=self._checkpoint.step,
                model_hash=hash_model(self._checkpoint.model).hex(),
            )
        )
        self._report(
            RunStarted(
                time=time.time(),
                run_id=description.run_id,
                data_set=self._plan.data_set,
                task=description.experiment.task,
                rounds=description.experiment.rounds,
                hospitals=tuple(sorted(description.roster)),
                config=self._plan.config,
                config_hash=description.hash().hex(),
                claims=tuple(str(claim) for claim in claims_of(description)),
                evaluation_plan=() if plan is None else plan.describe(),
                authority_on_server=self._plan.authority_on_server,
                resumed_from_round=self._checkpoint.step,
            )
        )


def _aggregation(plan: RunPlan, conversation: Conversation) -> Aggregation:
    description = plan.description
    least = description.aggregation.min_hospitals
    parameters = protocol_parameters(description, plan.roster_keys, least, plan.consortium)
    if description.aggregation.mode is AggregationMode.PLAIN:
        return PlainAggregation(description, parameters, conversation)
    return SecureAggregation(description, parameters, conversation, plan.apply_masks)


def measures(measured: Metrics | None) -> dict[str, Any]:
    """Return the fields of an event that say how good a model is; undefined ones where nobody could measure it."""
    names = ("accuracy", "precision", "recall", "f1", "specificity", "auc", "loss", "kappa", "ece")
    if measured is None:
        return dict.fromkeys(names, math.nan)
    return {
        **{name: getattr(measured, name) for name in names},
        "confusion": tuple(tuple(int(count) for count in row) for row in measured.confusion),
        "roc": measured.roc or None,
    }
