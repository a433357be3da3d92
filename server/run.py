"""A whole run on the server: wait for hospitals, round after round, checkpoint, measure, finish."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from common.audit_chain import Record, discard
from common.audit_entries import Began, Finished, Stepped, Summed
from common.config import AggregationMode, Config, PrivacyMode, RunDescription
from common.errors import RunError
from common.evaluation import EvaluationCounts, Metrics, metrics
from common.events import COMPLETED, Event, RoundDone, RoundTime, RunFinished, RunStarted
from common.flat_model import hash_model, stretches
from common.messages import EpsilonReport
from common.privacy.accounting import Accountant
from common.privacy.calibration import noise_multiplier
from common.run_terms import aggregation_of, claims_of, layout_for, layout_of, mechanism_of, protocol_parameters
from common.secagg.errors import SERVER, ImplausibleSumError, Place, SecAggError
from common.secagg.masks import MaskApplier, apply_masks
from common.secagg.phases import Phase
from server.checkpoints import Checkpoint, CheckpointStore
from server.conversation import Conversation
from server.rounds import Aggregation, PlainAggregation, RoundSum, SecureAggregation
from server.strategies import Strategy, mean_change, strategy_for

_RESERVED_ROUNDS = 64
"""Round numbers are reserved in blocks, written with a checkpoint before the first is used, so that a restarted server
never asks for a number that hospitals have answered."""

_MOST_FAILURES = 5
"""In a row; then the run ends with the model it has."""

_NEVER_AGAIN = frozenset({"policy", "config", "data", "ledger", "privacy", "identity", "weight_range"})
"""Refusals that a hospital will not take back in this run."""

_SPENT = "budget_exceeded"
"""The refusal of a hospital that still evaluates, but trains no more."""

_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class RunPlan:
    """What a run is started with.

    Attributes:
        config: the consortium's.
        description: what hospitals agree to.
        data_set: its name, for every output.
        roster_keys: hospital to raw Ed25519 public key, already verified against the authority.
        apply_masks: takes the masks off a sum.
        newest: returns the plan for the members of now: who has joined, was revoked or has a new certificate. Asked
            before each round; by default the members stay the same.
    """

    config: Config
    description: RunDescription
    data_set: str
    roster_keys: dict[str, bytes] = field(repr=False)
    apply_masks: MaskApplier = apply_masks
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
                "the last checkpoint must tell of its step; remove it, and the run goes on from the one before"
            ) from None


@dataclass(frozen=True)
class _Decoded:
    """What a round's sum says: the mean change of the model, a stretch at a time, and how good the model is."""

    change: Callable[[slice], npt.NDArray[np.float32]]
    counts: EvaluationCounts


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
        self._mechanism = mechanism_of(plan.description)
        self._aggregation = _aggregation(plan, conversation)
        self._strategy: Strategy = strategy_for(
            plan.description.aggregation,
            plan.description.training,
            plan.description.privacy,
            self._layout.parameters,
        )
        self._retired: dict[str, str] = {}
        self._pending: _Step | None = None
        self._checkpoint = self._first_checkpoint()
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

    def train(self) -> str:
        """Run to the end; returns why it ended, which is :data:`COMPLETED` when every round was trained.

        Raises:
            RunError: the disk refuses, or a checkpoint cannot be read.
        """
        self._say_started()
        rounds = self._plan.description.experiment.rounds
        reason = COMPLETED
        while self._checkpoint.step < rounds:
            ended = self._attempt(train=True)
            if ended is not None:
                reason = ended
                break
        if self._checkpoint.measured_step < self._checkpoint.step:
            self._attempt(train=False)
        if self._checkpoint.measured_step < self._checkpoint.step:
            self._measure(None)
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

    def _attempt(self, *, train: bool) -> str | None:
        """Try rounds until one succeeds; returns why none can any more, None after a success."""
        for failures in range(1, _MOST_FAILURES + 1):
            self._follow_members()
            hospitals = self._await_hospitals(train=train)
            if isinstance(hospitals, str):
                return hospitals
            try:
                self._one_round(hospitals, train=train)
            except SecAggError as error:
                # Hospitals may have sent keys for the next number already, and send none for it twice.
                self._round += 1
                self._note_refusals()
                problem = str(error)
                self._round += 1  # Some have given keys for the number after this one, and give none a second time.
                time.sleep(min(_LOOK_SECONDS * 2**failures, 2.0))
            else:
                self._note_refusals()
                return None
        return f"{_MOST_FAILURES} rounds in a row failed; the last: {problem}"

    def _follow_members(self) -> None:
        """Go on under a new description when the members have changed; no key made under the old one is used again."""
        plan = self._plan.newest(self._plan)
        if plan.description == self._plan.description:
            return
        self._plan = plan
        self._layout = layout_of(plan.description)
        self._aggregation = _aggregation(plan, self._conversation)
        self._round += 1  # Keys for the next number rode on the last round, and nobody gives any for it again.
        self._say_started()

    def _one_round(self, hospitals: frozenset[str], *, train: bool) -> None:
        number = self._next_number()
        self._conversation.begin_round()
        started = time.monotonic()
        summed = self._aggregation.aggregate(
            number,
            hospitals,
            self._checkpoint.model,
            train=train,
            next_round=number + 1 if train else None,
        )
        decoded = self._decode(number, summed)
        self._record_sum(number, summed, train=train)
        seconds = time.monotonic() - started
        self._measure(metrics(decoded.counts))
        if train:
            self._take_step(number, summed, decoded, seconds)
        else:
            self._save()

    def _record_sum(self, number: int, summed: RoundSum, *, train: bool) -> None:
        self._record(
            Summed(
                run_id=self._plan.description.run_id,
                round_number=number,
                train=train,
                model_hash=hash_model(self._checkpoint.model).hex(),
                survivors=summed.survivors,
                signatures={name: encoded.hex() for name, encoded in summed.signatures.items()},
                epsilon={name: told.spent for name, told in summed.epsilon.items()},
            )
        )

    def _decode(self, number: int, summed: RoundSum) -> "_Decoded":
        """Read the sum; one that honest hospitals cannot have costs the round and not the run."""
        hospitals, mechanism = len(summed.survivors), self._mechanism
        try:
            if mechanism is None:
                mean = self._layout.decode(summed.total, hospitals)
                mean.counts.check()
                return _Decoded(mean.mean_of, mean.counts)
            integers = self._layout.decode_integers(summed.total, hospitals)
            integers.counts.check()
        except RunError as error:
            refusal = ImplausibleSumError(Place(SERVER, number, Phase.UNMASKING), str(error))
            self._conversation.refused_by_server((refusal,))
            raise refusal from None
        return _Decoded(
            lambda stretch: mean_change(mechanism.decode(integers.total_of(stretch)), integers.total_weight),
            integers.counts,
        )

    def _take_step(self, number: int, summed: RoundSum, decoded: "_Decoded", seconds: float) -> None:
        """Make the next model and write it, a stretch at a time: neither it nor the one before is in memory."""
        tally = self._conversation.tally
        busy = summed.training_seconds + summed.masking_seconds
        moving = max(0.0, tally.seconds - busy)
        self._pending = _Step(
            round_number=number,
            hospitals=len(summed.survivors),
            seconds=seconds,
            upload_bytes=tally.upload_bytes,
            parts=RoundTime(
                training=summed.training_seconds,
                masking=summed.masking_seconds,
                moving=moving,
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

    def _measure(self, measured: Metrics | None) -> None:
        """Report the last step with the metrics of its model, undefined ones when nobody could measure it."""
        if self._pending is None:  # The initial model is nobody's step.
            return
        pending, self._pending = self._pending, None
        spent = {name: report.spent for name, report in pending.epsilon.items()}
        self._report(
            RoundDone(
                time=time.time(),
                round=pending.round_number,
                step=self._checkpoint.step,
                **measures(measured),
                epsilon=max(spent.values(), default=math.nan),
                epsilon_spent=spent,
                epsilon_budget={name: report.budget for name, report in pending.epsilon.items()},
                hospitals=pending.hospitals,
                seconds=pending.seconds,
                upload_bytes=pending.upload_bytes,
                seconds_by_part=pending.parts,
            )
        )
        numbers = dict(self._checkpoint.numbers)
        if measured is not None and not math.isnan(measured.threshold):  # with more than two classes there is none
            numbers["threshold"] = measured.threshold
        self._checkpoint = replace(self._checkpoint, measured_step=self._checkpoint.step, numbers=numbers)

    def _await_hospitals(self, *, train: bool) -> frozenset[str] | str:
        """Return who may take part once there are enough and their number holds still; a reason when that is over."""
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
            time.sleep(_LOOK_SECONDS)

    def _allowed(self, *, train: bool) -> frozenset[str]:
        gone = {name for name, code in self._retired.items() if train or code != _SPENT}
        return frozenset(self._plan.description.roster) - gone

    def _too_few(self, allowed: frozenset[str], least: int) -> str:
        reasons = "; ".join(f"{name}: {code}" for name, code in sorted(self._retired.items()))
        return f"{len(allowed)} of at least {least} hospitals are left after refusals ({reasons})"

    def _note_refusals(self) -> None:
        for name, refused in self._conversation.tally.refused.items():
            if refused.code in _NEVER_AGAIN or refused.code == _SPENT:
                self._retired[name] = refused.code

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
        return replace(self._checkpoint, round_number=self._reserved, strategy=self._strategy.state(), numbers=numbers)

    def _say_started(self) -> None:
        description = self._plan.description
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
                resumed_from_round=self._checkpoint.step,
            )
        )


def describe(
    config: Config,
    run_id: str,
    classes: tuple[str, ...],
    channels: int,
    roster: dict[str, str],
    parameters: int | None = None,
) -> RunDescription:
    """Return the description of a run that a consortium's configuration asks for.

    Args:
        config: the consortium's.
        run_id: 32 hexadecimal digits.
        classes: of the task.
        channels: of an image.
        roster: hospital name to PEM identity certificate.
        parameters: of the model; by default it is made to count them, which takes PyTorch.

    Raises:
        ConfigError: there is no such model, or the ring is too small for so many hospitals.
        PrivacyError: no noise reaches the target ε of mode ``distributed``.
    """
    agreed = config.model_copy(update={"aggregation": aggregation_of(config)})
    layout = layout_for(
        agreed.model,
        agreed.aggregation,
        config.evaluation,
        classes=len(classes),
        channels=channels,
        hospitals=len(roster),
        parameters=parameters,
    )
    return RunDescription.of(
        agreed,
        run_id=run_id,
        classes=classes,
        channels=channels,
        vector_length=layout.length,
        roster=roster,
        noise_multiplier=_noise_multiplier(config),
    )


def _noise_multiplier(config: Config) -> float | None:
    """Return the noise of mode ``distributed`` that brings a run of all its rounds to its target ε."""
    privacy = config.privacy
    if privacy.mode is not PrivacyMode.DISTRIBUTED:
        return None
    rate, rounds = config.training.sample_rate, config.experiment.rounds
    return noise_multiplier(privacy.target_epsilon, privacy.delta, rate, rounds, Accountant(privacy.accountant))


def _aggregation(plan: RunPlan, conversation: Conversation) -> Aggregation:
    description = plan.description
    parameters = protocol_parameters(description, plan.roster_keys, description.aggregation.min_hospitals)
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
