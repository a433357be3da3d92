"""What a run reports about itself: events for whoever watches it, entries of the audit record for whoever checks it."""

import math
import time
from collections.abc import Callable
from typing import Any

from common.audit.chain import Record
from common.audit.entries import Began, Centred, Finished, Named, Proved, Stepped, Summed
from common.evaluation import METRICS, Metrics
from common.evaluation.metrics import UNDEFINED
from common.run.flat_model import FlatModel, hash_model
from common.run.terms import claims_of, evaluation_claim, evaluation_plan_of, statistics_claim
from common.telemetry.events import Compared, Counted, Evaluated, Event, RoundDone, RunFinished, RunStarted, SpreadTold
from server.checkpoints import Checkpoint
from server.measurement import Reading
from server.progress import PendingStep
from server.proved_sums import KeptSum
from server.rounds import RoundSum
from server.run_plan import RunPlan


class RunJournal:
    """Reports events and records entries, each from what it is about.

    Args:
        run_id: of the run.
        report: takes events.
        record: takes entries of the audit record.
    """

    def __init__(self, run_id: str, report: Callable[[Event], None], record: Record) -> None:
        self._run_id = run_id
        self._report = report
        self._record = record

    def began(self, plan: RunPlan, checkpoint: Checkpoint) -> None:
        """Tell that the run begins, goes on after an interruption, or goes on with other members."""
        description = plan.description
        evaluation = evaluation_plan_of(description)
        self._record(
            Began(
                run_id=self._run_id,
                description=description.canonical_json().decode(),
                data_set=plan.data_set,
                step=checkpoint.step,
                model_hash=hash_model(checkpoint.model).hex(),
            )
        )
        self._report(
            RunStarted(
                time=time.time(),
                run_id=self._run_id,
                data_set=plan.data_set,
                task=description.experiment.task,
                terms=description.task,
                rounds=description.experiment.rounds,
                hospitals=tuple(sorted(description.roster)),
                config=plan.config,
                config_hash=description.hash().hex(),
                claims=tuple(str(claim) for claim in claims_of(description)),
                evaluation_plan=() if evaluation is None else evaluation.describe(),
                authority_on_server=plan.authority_on_server,
                resumed_from_round=checkpoint.step,
            )
        )

    def summed(self, number: int, summed: RoundSum) -> None:
        """Record the sum of a round, with what its survivors signed."""
        self._record(
            Summed(
                run_id=self._run_id,
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

    def proved(self, kept: KeptSum) -> None:
        """Record what proves the sum of a round that changes the model."""
        self._record(
            Proved(
                run_id=self._run_id,
                round_number=kept.evidence.round_number,
                evidence_hash=kept.evidence_hash,
                sum_hash=kept.sum_hash,
            )
        )

    def named(self, number: int, hospital: str, fault: str, evidence: str) -> None:
        """Record that a hospital was found to have cheated."""
        self._record(Named(run_id=self._run_id, round_number=number, hospital=hospital, fault=fault, evidence=evidence))

    def stepped(self, number: int, step: int, model: FlatModel) -> None:
        """Record the model that a training step made."""
        self._record(Stepped(run_id=self._run_id, round_number=number, step=step, model_hash=hash_model(model).hex()))

    def centred(self, number: int, model: FlatModel) -> None:
        """Record the model that the mean of features has given its centre."""
        self._record(Centred(run_id=self._run_id, round_number=number, model_hash=hash_model(model).hex()))

    def measured(self, step: int, pending: PendingStep, reading: Reading) -> None:
        """Report a finished step with the measures of its model, undefined ones when nobody measured it."""
        spent = {name: spent for name, (spent, _) in pending.epsilon.items()}
        self._report(
            RoundDone(
                time=time.time(),
                round=pending.round_number,
                step=step,
                **measures(reading.measured),
                part=reading.part,
                intervals=dict(reading.intervals),
                evaluation_epsilon=reading.epsilon,
                epsilon=max(spent.values(), default=math.nan),
                epsilon_spent=spent,
                epsilon_budget={name: budget for name, (_, budget) in pending.epsilon.items()},
                hospitals=pending.hospitals,
                seconds=pending.seconds,
                upload_bytes=pending.upload_bytes,
                seconds_by_part=pending.parts,
            )
        )

    def counted(self, plan: RunPlan, reading: Reading) -> None:
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
                claim=statistics_claim(plan.description, reading.epsilon),
            )
        )

    def compared(self, plan: RunPlan, number: int, step: int, reading: Reading, summed: RoundSum) -> None:
        """Report how the last model did against those of single hospitals, where this round has told it."""
        gain = reading.gain
        if gain is None:
            return
        of_class = tuple(zip(plan.description.classes, gain.recalls, gain.ends_of_recalls, strict=True))
        self._report(
            Compared(
                time=time.time(),
                round=number,
                step=step,
                records=gain.units,
                accuracy=gain.accuracy,
                interval=gain.ends,
                noise=gain.noise,
                disagree=gain.disagree,
                recalls={name: value for name, value, _ in of_class},
                recall_intervals={name: ends for name, value, ends in of_class if not math.isnan(value)},
                epsilon=reading.epsilon,
                epsilon_spent={name: told.spent for name, told in summed.epsilon.items()},
                claim=evaluation_claim(plan.description, reading.epsilon),
            )
        )

    def spread(self, plan: RunPlan, number: int, step: int, reading: Reading) -> None:
        """Report how far hospitals' own AUC lie apart, where this round has told it."""
        told = reading.spread
        if told is None:
            return
        self._report(
            SpreadTold(
                time=time.time(),
                round=number,
                step=step,
                hospitals=told.hospitals,
                records=reading.units,
                counted=told.counted,
                counted_interval=told.counted_ends,
                quartiles=told.quartiles,
                intervals=told.ends,
                needed=told.needed,
                epsilon=reading.epsilon,
                claim=evaluation_claim(plan.description, reading.epsilon),
            )
        )

    def tested(self, plan: RunPlan, step: int, reading: Reading, *, exact: bool) -> None:
        """Report how good the run's last model is on the test part."""
        measured = reading.measured
        self._report(
            Evaluated(
                time=time.time(),
                step=step,
                exact=exact,
                records=0 if measured is None else measured.records,
                **measures(measured),
                threshold=math.nan if measured is None else measured.threshold,
                intervals=dict(reading.intervals),
                noise=dict(reading.noise),
                epsilon=reading.epsilon,
                claim=evaluation_claim(plan.description, reading.epsilon),
                each=dict(zip(plan.description.classes, reading.each, strict=False)),
            )
        )

    def finished(self, reason: str, checkpoint: Checkpoint) -> None:
        """Tell why the run ended, and with which model."""
        self._record(
            Finished(
                run_id=self._run_id,
                reason=reason,
                steps=checkpoint.step,
                model_hash=hash_model(checkpoint.model).hex(),
                threshold=checkpoint.progress.threshold,
                thresholds=checkpoint.progress.thresholds,
                temperature=checkpoint.progress.temperature,
                prevalence=checkpoint.progress.prevalence,
            )
        )
        self._report(RunFinished(time=time.time(), reason=reason, rounds_done=checkpoint.step))


def measures(measured: Metrics | None) -> dict[str, Any]:
    """Return the fields of an event that say how good a model is; undefined ones where nobody could measure it."""
    if measured is None:
        return dict(UNDEFINED)
    return {
        **{name: getattr(measured, name) for name in METRICS},
        "confusion": tuple(tuple(int(count) for count in row) for row in measured.confusion),
        "roc": measured.roc or None,
        "scores": measured.scores,
    }
