"""A whole run on the server: round after round, checkpoint, measure, finish.

Who takes part is :mod:`server.waiting`; what the run reports about itself is :mod:`server.run_record`.
"""

import logging
import math
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from common.audit.chain import Record, discard
from common.config import AggregationMode
from common.errors import RunError
from common.evaluation.plan import Part
from common.privacy.mechanism import LARGEST_MEAN_ERROR, SummedMean, error_of_mean, mechanism_of
from common.proved_sums.errors import CommitmentError, SumError
from common.run.flat_model import stretches
from common.run.round_terms import Purpose
from common.run.strategies import Strategy, strategy_for
from common.run.terms import (
    layout_of,
    protocol_parameters,
)
from common.run.vector import DecodedSum
from common.secagg.errors import SERVER, CheatFoundError, ImplausibleSumError, Place, SecAggError
from common.secagg.parameters import RunParameters
from common.secagg.phases import Phase
from common.telemetry.events import COMPLETED, STOPPED, Event, RoundTime
from server.checkpoints import Checkpoint, CheckpointStore
from server.conversation import Conversation
from server.measurement import ExactMeasurements, PlannedMeasurements, Reading, measurements_of
from server.progress import PendingStep, RunProgress
from server.proved_sums import SUMS_FOLDER, SumStore
from server.rounds import Aggregation, Asked, Following, PlainAggregation, RoundSum, SecureAggregation
from server.run_plan import RunPlan
from server.run_record import RunJournal
from server.suspects import Suspects
from server.waiting import POLL_SECONDS, Attendance

_LOG = logging.getLogger("confide.server")

_RESERVED_ROUNDS = 64
"""Round numbers are reserved in blocks, written with a checkpoint before the first is used, so that a restarted server
never asks for a number that hospitals have answered."""

_SPOILING = (ImplausibleSumError, SumError, CommitmentError)
"""What somebody in a sum can do to it behind its mask."""

_MOST_FAILURES = 5
"""The most rounds that fail in a row; then the run ends with the model it has."""


def new_run_id() -> str:
    """Return 32 random hexadecimal digits."""
    return secrets.token_hex(16)


@dataclass(frozen=True)
class _Decoded:
    """What a round's sum says: the mean change of the model, a stretch at a time, and how good the model is.

    ``stated`` are the training units that its hospitals state, together.
    """

    change: Callable[[slice], npt.NDArray[np.float32]]
    reading: Reading
    stated: int


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
        self._record = RunJournal(plan.description.run_id, report, record)
        self._attendance = Attendance(conversation)
        self._layout = layout_of(plan.description)
        self._mechanism = mechanism_of(plan.description)
        self._decoded = self._mechanism.decoder(plan.description, self._layout.parameters)
        self._parameters = _parameters(plan)
        self._aggregation = _aggregation(plan, conversation, self._parameters)
        self._suspects, self._told_left_out = Suspects(), frozenset[str]()
        self._strategy: Strategy = strategy_for(
            plan.description.aggregation,
            plan.description.training,
            plan.description.privacy,
            self._layout.parameters,
        )
        self._tested: Reading | None = None
        self._sums = SumStore(store.run_folder / SUMS_FOLDER)
        self._answered = frozenset[str]()
        """Who has sent a vector for a model that follows from the last proved sum."""
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
        return found

    def _measurements_from(self, checkpoint: Checkpoint) -> ExactMeasurements | PlannedMeasurements:
        return measurements_of(self._plan.description, self._layout, checkpoint.progress.evaluation)

    def train(self) -> str:
        """Run to the end; returns why it ended: :data:`COMPLETED` when every round was trained, or :data:`STOPPED`.

        Raises:
            RunError: the disk refuses, or a checkpoint cannot be read.
        """
        self._record.began(self._plan, self._checkpoint)
        rounds = self._plan.description.experiment.rounds
        reason = COMPLETED
        for to_ask in self._before_training():
            if not self._plan.must_stop():  # What is not asked for costs nobody anything.
                self._attempt(to_ask)
        while self._checkpoint.step < rounds:
            ended = STOPPED if self._plan.must_stop() else self._attempt(self._to_train)
            if ended is not None:
                reason = ended
                break
        if self._checkpoint.step and reason != STOPPED:  # It may go on, and the last model is measured once.
            self._measure_last_model()
        self._record.finished(reason, self._checkpoint)
        return reason

    def _before_training(self) -> Iterator[Callable[[], Asked | None]]:
        """Return what is asked for once, before the first step; what a run that goes on knows already asks nothing."""
        description = self._plan.description
        if self._checkpoint.step == 0 and description.evaluation.statistics_epsilon:
            yield self._to_count
        if self._checkpoint.step == 0 and description.privacy.mean_share:
            yield self._to_centre

    def _to_count(self) -> Asked | None:
        question = self._measurements.before_training()
        return None if question is None else Asked(Purpose.EVALUATE, question)

    def _to_centre(self) -> Asked | None:
        return None if self._checkpoint.progress.centred else Asked(Purpose.MEAN)

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
        if self._plan.description.privacy.alone_share:
            self._attempt(self._to_compare)
        if self._plan.description.evaluation.spread_share:
            self._attempt(self._to_spread)

    def _say_tested(self) -> None:
        """Report how good the run's last model is on the test part, if that could be measured."""
        if self._tested is not None:
            self._record.tested(self._plan, self._checkpoint.step, self._tested, exact=self._measurements.exact)

    def _to_compare(self) -> Asked | None:
        question = self._measurements.against_alone()
        return None if question is None else Asked(Purpose.EVALUATE, question)

    def _to_spread(self) -> Asked | None:
        question = self._measurements.spread()
        return None if question is None else Asked(Purpose.EVALUATE, question)

    def _to_evaluate(self, part: Part) -> Asked | None:
        question = self._measurements.of_last_model(part)
        return None if question is None and not self._measurements.exact else Asked(Purpose.EVALUATE, question)

    def _attempt(self, to_ask: Callable[[], Asked | None]) -> str | None:
        """Try rounds until one succeeds; return why no round can any more, None after a success.

        Args:
            to_ask: returns what the next round is for; None when nothing can be asked any more.
        """
        failures = 0
        while failures < _MOST_FAILURES:
            self._follow_members()
            asked = to_ask()
            if asked is None:
                return "the evaluation plan allows no further release"
            hospitals = self._attendance.wait(
                self._plan,
                train=asked.reads_training_records,
                is_first=self._round == self._checkpoint.round_number,
            )
            if isinstance(hospitals, str):
                return hospitals
            able = self._able_to_follow(hospitals) - self._checkpoint.progress.named.keys()
            named = len(self._checkpoint.progress.named)
            try:
                self._one_round(able - self._left_out(able), asked)
            except SecAggError as error:
                self._note_refusals()
                problem = str(error)
                self._pass_over_number()
                # A spoilt sum says something new of who is to blame, so there are only so many.
                is_new = len(self._checkpoint.progress.named) > named
                if not (isinstance(error, _SPOILING) and (is_new or self._left_out(able))):
                    failures += 1
                time.sleep(min(POLL_SECONDS * 2**failures, 2.0))
            else:
                self._note_refusals()
                return None
        return f"{_MOST_FAILURES} rounds in a row failed; the last: {problem}"

    def _left_out(self, hospitals: frozenset[str]) -> frozenset[str]:
        """Return whom the next round goes without, as they may have spoilt sums; say so when it changes."""
        run, least = self._parameters, self._plan.description.aggregation.min_hospitals
        out = self._suspects.left_out(hospitals, lambda number: number >= max(least, run.threshold(number)))
        if out != self._told_left_out:
            self._told_left_out = out
            _LOG.warning(
                "sums were spoilt by somebody that masks hide; the next rounds go without %s, which may be wrong",
                ", ".join(sorted(out)) or "nobody",
            )
        return out

    def _spoilt(self, summed: RoundSum, error: SecAggError) -> SecAggError:
        """Note that somebody in a sum has spoilt it, and report it.

        Who is at fault for a commitment is known: a hospital signs what opens it, and an honest one's opens.
        """
        self._conversation.refused_by_server((error,))
        if summed.named:
            self._name(error.place, summed)
            return error
        named = error.hospital if isinstance(error, CommitmentError) else None
        self._suspects.spoilt(frozenset(summed.survivors if named is None else (named,)))
        return error

    def _name(self, place: Place, summed: RoundSum) -> None:
        """Leave out of the rest of the run, also after a restart, whom a dispute has named."""
        for hospital, fault in sorted(summed.named.items()):
            what = f"its vector must be what it committed to, and no longer than the run allows, got {fault}"
            self._conversation.refused_by_server((CheatFoundError(place, what, hospital),))
            self._record.named(place.round_number, hospital, fault, summed.dispute_evidence)
            _LOG.warning("round %d: %s has cheated (%s), and is out of the run", place.round_number, hospital, fault)
        named = {**self._checkpoint.progress.named, **{name: str(fault) for name, fault in summed.named.items()}}
        progress = self._checkpoint.progress.model_copy(update={"named": named})
        self._checkpoint = replace(self._checkpoint, progress=progress)
        self._save()

    def _follow_members(self) -> None:
        """Continue under a new description when the members have changed; keys made under the old one are dropped."""
        plan = self._plan.newest(self._plan)
        is_same = plan.description == self._plan.description
        self._plan = plan
        if is_same:
            return
        self._layout = layout_of(plan.description)
        progress = RunProgress(evaluation=self._measurements.progress())
        kept = replace(self._checkpoint, progress=progress)
        self._measurements = self._measurements_from(kept)
        self._parameters = _parameters(plan)
        self._aggregation = _aggregation(plan, self._conversation, self._parameters)
        self._pass_over_number()
        self._record.began(self._plan, self._checkpoint)

    def _able_to_follow(self, hospitals: frozenset[str]) -> frozenset[str]:
        """Leave out who cannot know the model yet: it became a member after the last sum was proved."""
        proved = self._checkpoint.progress.proved
        if proved is None or self._sums.config_hash(proved) == self._plan.description.hash():
            return hospitals
        return hospitals & self._following().knowing

    def _following(self) -> Following:
        progress, state = self._checkpoint.progress, self._strategy.state()
        return self._sums.following(progress.proved, self._checkpoint.model, state, self._answered)

    def _one_round(self, hospitals: frozenset[str], asked: Asked) -> None:
        number, another_follows = self._next_number(), asked.reads_training_records
        self._conversation.begin_round()
        started = time.monotonic()
        summed = self._aggregation.aggregate(
            number,
            hospitals,
            self._checkpoint.model,
            asked,
            next_round=number + 1 if another_follows else None,
            following=self._following() if self._plan.description.aggregation.proved_sums else None,
        )
        self._answered |= summed.answered
        if summed.spoilt is not None:
            raise self._spoilt(summed, summed.spoilt)
        decoded = self._decode(number, summed)
        self._record.summed(number, summed)
        self._keep_proof(summed)
        seconds = time.monotonic() - started
        self._record.counted(self._plan, decoded.reading)
        self._record.compared(self._plan, number, self._checkpoint.step, decoded.reading, summed)
        self._record.spread(self._plan, number, self._checkpoint.step, decoded.reading)
        self._measure(decoded.reading)
        match asked.purpose:
            case Purpose.TRAIN:
                self._take_step(number, summed, decoded, seconds)
            case Purpose.MEAN:
                self._take_centre(number, summed, decoded)
            case Purpose.EVALUATE:
                self._save()

    def _keep_proof(self, summed: RoundSum) -> None:
        """Put a proved sum where hospitals and ``audit verify`` get it from, before a step is taken."""
        if summed.evidence is None:
            return
        total = self._layout.proved_part(summed.total)
        self._record.proved(self._sums.keep(summed.evidence, total, self._checkpoint))
        progress = self._checkpoint.progress.model_copy(update={"proved": summed.evidence.round_number})
        self._checkpoint = replace(self._checkpoint, progress=progress)
        self._answered = frozenset()

    def _decode(self, number: int, summed: RoundSum) -> "_Decoded":
        """Read the sum; one that honest hospitals cannot have costs the round and not the run."""
        hospitals = len(summed.survivors)
        try:
            decoded = self._layout.decode(summed.total, hospitals)
            stated = decoded.tail.weight
            reading = self._read(decoded, summed)
        except RunError as error:
            refusal = ImplausibleSumError(Place(SERVER, number, Phase.UNMASKING), str(error))
            raise self._spoilt(summed, refusal) from None
        read = self._decoded
        if summed.terms.purpose is Purpose.MEAN:
            read = self._mechanism.mean_decoder(self._plan.description, self._layout.parameters)
        return _Decoded(read(decoded), reading, stated)

    def _read(self, decoded: DecodedSum, summed: RoundSum) -> Reading:
        """Read how good the model is from a sum.

        Counts are in no proof, and no dispute opens them. So in a run that has disputes counts that no honest hospitals
        have cost the measurement of a model, and not its step.
        """
        try:
            return self._measurements.read(decoded.tail, summed.cohort, len(summed.survivors), summed.terms.question)
        except RunError as error:
            if summed.evidence is None or not self._plan.description.aggregation.disputes:
                raise
            _LOG.warning("the counts of this round are none that hospitals can have, and measure nothing: %s", error)
            return Reading()

    def _take_step(self, number: int, summed: RoundSum, decoded: "_Decoded", seconds: float) -> None:
        """Make the next model and write it, a stretch at a time: neither it nor the one before is in memory."""
        tally = self._conversation.tally
        pending = PendingStep(
            round_number=number,
            hospitals=len(summed.survivors),
            seconds=seconds,
            upload_bytes=tally.upload_bytes,
            parts=RoundTime(
                training=summed.training_seconds,
                moving=max(0.0, tally.seconds - summed.training_seconds),
                waiting=max(0.0, seconds - tally.seconds),
            ),
            epsilon=PendingStep.reports(summed.epsilon),
        )
        progress = self._checkpoint.progress.model_copy(update={"pending": pending})
        self._checkpoint = replace(self._checkpoint, step=self._checkpoint.step + 1, progress=progress)
        draft = self._store.draft(self._to_save(), self._stepped(decoded))
        self._record.stepped(number, self._checkpoint.step, draft.checkpoint.model)
        self._checkpoint = self._store.publish(draft)

    def _take_centre(self, number: int, summed: RoundSum, decoded: "_Decoded") -> None:
        """Put the mean of features into the model, unless its noise is too large for it to be of use.

        Whether it is follows from what is public: the noise, and how many units the hospitals state. It is no step of
        training, so no strategy has a part in it.
        """
        public = SummedMean(summed.cohort, len(summed.survivors), decoded.stated)
        model = self._checkpoint.model
        deviation = self._mechanism.deviation_of_mean(self._plan.description, self._layout.parameters, public)
        # The model's trained part is all zeros in such a sum, so what is not zero is the centre.
        width = sum(int(np.count_nonzero(decoded.change(stretch))) for stretch in stretches(len(model)))
        error = error_of_mean(deviation, width)
        is_used = error <= LARGEST_MEAN_ERROR
        _LOG.info(
            "the mean of features %s: the expected norm of its noise is %.3f, at most %g is of use",
            "is in the model" if is_used else "is left out", error, LARGEST_MEAN_ERROR,
        )  # fmt: skip
        progress = self._checkpoint.progress.model_copy(update={"centred": True})
        self._checkpoint = replace(self._checkpoint, progress=progress)
        if not is_used:
            self._save()
            return
        centred = (model[stretch] + decoded.change(stretch) for stretch in stretches(len(model)))
        draft = self._store.draft(self._to_save(), centred)
        self._record.centred(number, draft.checkpoint.model)
        self._checkpoint = self._store.publish(draft)

    def _stepped(self, decoded: "_Decoded") -> Iterator[npt.NDArray[np.float32]]:
        model = self._checkpoint.model
        for stretch in stretches(len(model)):
            yield self._strategy.step(model[stretch], decoded.change(stretch), stretch.start)

    def _measure(self, reading: Reading) -> None:
        """Report the last step with the measures of its model, undefined ones when nobody measured it."""
        if reading.part == "test":
            self._tested = reading
        progress = self._checkpoint.progress
        if reading.measured is not None and not math.isnan(reading.measured.threshold):
            # With more than two classes there is none.
            progress = progress.model_copy(update={"threshold": reading.measured.threshold})
        fixes_temperature = reading.part == "validation" or self._measurements.exact
        if reading.measured is not None and fixes_temperature and not math.isnan(reading.measured.temperature):
            fixed = {name: getattr(reading.measured, name) for name in ("temperature", "prevalence")}
            progress = progress.model_copy(update=fixed)
        thresholds = tuple(figures.threshold for figures in reading.each)
        if thresholds and not any(map(math.isnan, thresholds)):
            progress = progress.model_copy(update={"thresholds": thresholds})
        pending = progress.pending
        if pending is not None:  # The initial model is nobody's step; nor is a second measurement of the last one.
            self._record.measured(self._checkpoint.step, pending, reading)
            progress = progress.model_copy(update={"pending": None})
            self._checkpoint = replace(self._checkpoint, measured_step=self._checkpoint.step)
        self._checkpoint = replace(self._checkpoint, progress=progress)

    def _note_refusals(self) -> None:
        if self._attendance.note_refusals():
            self._measurements.spent()

    def _pass_over_number(self) -> None:
        """Leave out the number after the last one: keys for it rode on that round, and nobody sends them twice."""
        self._round += 1

    def _next_number(self) -> int:
        self._round += 1
        if self._round + 1 > self._reserved:
            self._reserved = self._round + _RESERVED_ROUNDS
            self._save()
        return self._round

    def _save(self) -> None:
        self._checkpoint = self._store.save(self._to_save())

    def _to_save(self) -> Checkpoint:
        progress = self._checkpoint.progress.model_copy(update={"evaluation": self._measurements.progress()})
        return replace(
            self._checkpoint, round_number=self._reserved, strategy=self._strategy.state(), progress=progress
        )


def _parameters(plan: RunPlan) -> RunParameters:
    least = plan.description.aggregation.min_hospitals
    return protocol_parameters(plan.description, plan.roster_keys, least, plan.consortium)


def _aggregation(plan: RunPlan, conversation: Conversation, parameters: RunParameters) -> Aggregation:
    description = plan.description
    if description.aggregation.mode is AggregationMode.PLAIN:
        return PlainAggregation(description, parameters, conversation)
    return SecureAggregation(description, parameters, conversation, plan.apply_masks)
