"""Whether a run's events say of it what its audit chain does, as far as the chain can tell.

A hospital makes its report of a received run from the events. An ε, a mode or a caveat that was changed in them would
stand in the hospital's own words. The chain has the terms, who was in each sum, and the ε that each hospital reported.
How good the model is, the chain does not have: these figures are the server's word, and so are the seconds. Sentences
in the events are not compared, since another release may word them otherwise; a report makes its own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common.audit.entries import Summed
from common.config import RunDescription, task_of
from common.errors import AuditError, RunError
from common.telemetry.events import (
    EVENTS_FILE,
    Compared,
    Evaluated,
    Event,
    RoundDone,
    RunFinished,
    RunStarted,
    SpreadTold,
    parse_event,
)

LONGEST_LINE_BYTES = 16 * 2**20
"""The longest line: room for a round's figures of every hospital that a run can have."""

_SECTIONS = ("experiment", "model", "training", "aggregation", "graph", "privacy", "evaluation")
"""The sections of a configuration that hospitals agree to."""


@dataclass(frozen=True)
class Chained:
    """What an audit chain says of a run.

    Attributes:
        terms: every description under which it went on, by its hash in hexadecimal.
        data_set: its name.
        sums: round number to the round that gave a sum.
        steps: how many steps of training it ended with; None where it has not ended.
    """

    terms: Mapping[str, RunDescription]
    data_set: str
    sums: Mapping[int, Summed] = field(repr=False)
    steps: int | None


def check_told(events: Path, chained: Chained) -> bool:
    """Compare a run's events with its chain, a line at a time.

    Args:
        events: ``events.jsonl``.
        chained: the same run's.

    Returns:
        Whether the server holds the authority's key, as the run's first start says.

    Raises:
        AuditError: an event says something else than the chain; the message names its line.
        OSError: the file cannot be read.
    """
    first: RunStarted | None = None
    terms: RunDescription | None = None
    for place, event in _events(events):
        match event:
            case RunStarted():
                terms = _check_start(event, chained, place)
                first = first or event
            case RoundDone():
                _check_round(event, chained.sums.get(event.round), place)
            case Compared() | SpreadTold():
                summed = chained.sums.get(event.round)
                if summed is None:
                    raise AuditError(f"{place}: round must be one that the chain has a sum of, got {event.round}")
                if isinstance(event, SpreadTold):
                    _require(event.hospitals == len(summed.survivors), place, "hospitals")
                    continue
                _require(event.epsilon_spent == summed.epsilon, place, "epsilon_spent")
            case Evaluated() if terms is not None:
                _require(event.exact == terms.evaluation.exact, place, "exact")
            case RunFinished() if chained.steps is not None:
                _require(event.rounds_done <= chained.steps, place, "rounds_done")
            case _:
                pass
    if first is None:
        raise AuditError(f"{EVENTS_FILE}: must say how the run began")
    return first.authority_on_server


def _events(path: Path) -> Iterator[tuple[str, Event]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE_BYTES + 1):
            number += 1
            place = f"{EVENTS_FILE}, line {number}"
            if len(line) > LONGEST_LINE_BYTES:
                raise AuditError(f"{place}: must have at most {LONGEST_LINE_BYTES} bytes")
            try:
                event = parse_event(line)
            except RunError as error:
                raise AuditError(f"{place}: {error}") from None
            if event is not None:
                yield place, event


def _check_start(started: RunStarted, chained: Chained, place: str) -> RunDescription:
    terms = chained.terms.get(started.config_hash)
    if terms is None:
        raise AuditError(f"{place}: config_hash must be that of terms which the chain records")
    due = {
        "run_id": terms.run_id,
        "data_set": chained.data_set,
        "task": terms.experiment.task,
        "rounds": terms.experiment.rounds,
        "hospitals": tuple(sorted(terms.roster)),
    }
    for key, value in due.items():
        _require(getattr(started, key) == value, place, key)
    described = started.config.model_copy(update={"aggregation": started.config.aggregation.as_described()})
    for section in _SECTIONS:
        _require(getattr(described, section) == getattr(terms, section), place, f"config.{section}")
    # A preset's section says nothing; what it implies follows from the name, which was compared.
    _require(
        started.config.task.is_preset or task_of(started.config, terms.classes) == terms.task, place, "config.task"
    )
    _require(started.terms.is_preset or started.terms == terms.task, place, "terms")
    return terms


def _check_round(done: RoundDone, summed: Summed | None, place: str) -> None:
    if summed is None:
        raise AuditError(f"{place}: round must be one that the chain has a sum of, got {done.round}")
    _require(done.epsilon_spent == summed.epsilon, place, "epsilon_spent")
    _require(done.hospitals == len(summed.survivors), place, "hospitals")
    if summed.epsilon:
        _require(done.epsilon == max(summed.epsilon.values()), place, "epsilon")


def _require(holds: bool, place: str, key: str) -> None:
    if not holds:
        raise AuditError(f"{place}: {key} must be what the chain says, got something else")
