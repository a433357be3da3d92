"""What a run reports, as typed events: the format of ``events.jsonl``, one JSON object a line.

The server appends them (``server/events.py``); the exporter, the live table, the report and the dashboard read them.
"""

import json
import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from common.complaints import complaint
from common.config import Config, RunId
from common.errors import RunError
from common.evaluation.calibration import ROWS
from common.evaluation.metrics import ClassFigures, Figures, Measure
from common.task import MOST_CLASSES, TaskConfig

EVENTS_FILE = "events.jsonl"
"""The name of the file in a run's folder."""

COMPLETED = "completed"
"""The reason of a run that trained all its rounds."""

STOPPED = "stopped"
"""The reason of a run that its operator has stopped; it may go on."""


def printable(words: str) -> str:
    """Return words in which a space stands for each character that a terminal might take for a command."""
    return "".join(letter if letter.isprintable() else " " for letter in words)


def _square(rows: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    if any(len(row) != len(rows) for row in rows):
        raise ValueError("must have as many columns as rows")
    return rows


Time = Annotated[float, Field(allow_inf_nan=False)]
"""Seconds since the Unix epoch, by the clock of whoever writes."""

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]

MOST_COUNTED = 2**53
"""The largest count. Prometheus and other readers of JSON take a number for a float, which is not exact beyond it."""

Count = Annotated[int, Field(ge=0, le=MOST_COUNTED)]
Share = Annotated[float, Field(ge=0, le=1)]
SignedShare = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]
Deviation = Annotated[float, Field(ge=0, allow_inf_nan=False)]

Confusion = Annotated[tuple[tuple[Count, ...], ...], AfterValidator(_square), Field(max_length=MOST_CLASSES)]
"""Row: the true class, column: the predicted one."""


class _Event(BaseModel):
    # A field of a newer server is no reason to stop showing what this version knows.
    model_config = ConfigDict(extra="ignore", frozen=True)

    time: Time
    kind: str

    def to_line(self) -> str:
        r"""Return the event as strict JSON (NaN and infinity become null) on one line that ends in ``\n``."""
        return json.dumps(_finite(self.model_dump(mode="json")), separators=(",", ":"), allow_nan=False) + "\n"


class RunStarted(_Event):
    """A run begins, or continues after an interruption when ``resumed_from_round`` is above 0."""

    kind: Literal["run_started"] = "run_started"
    run_id: RunId
    data_set: str
    task: str
    terms: TaskConfig = TaskConfig()
    """What is learnt, with its classes; a preset where an earlier version wrote the event."""
    rounds: Annotated[int, Field(ge=1, le=MOST_COUNTED)]
    hospitals: tuple[str, ...]
    config: Config
    config_hash: str
    claims: tuple[str, ...] = ()
    """What each adversary learns at most from all rounds together: a whole claim on each line."""
    evaluation_plan: tuple[str, ...] = ()
    """How the ε of evaluation is shared among the run's measurements: a sentence on each line."""
    authority_on_server: bool = False
    """The server holds the authority's key, so it could sign hospitals of its own invention."""
    resumed_from_round: Count = 0


class HospitalOnline(_Event):
    """A hospital's node is connected."""

    kind: Literal["hospital_online"] = "hospital_online"
    hospital: str


class HospitalLost(_Event):
    """A hospital's node is no longer connected."""

    kind: Literal["hospital_lost"] = "hospital_lost"
    hospital: str
    left: bool = False
    """The hospital was stopped where it is, and said so; otherwise it has failed, or its line has."""

    @property
    def why(self) -> str:
        """Return what is known of it, in words for a person."""
        return "was stopped there" if self.left else "is gone without a word"


class Exchange(_Event):
    """One question to the cohort and its answers."""

    kind: Literal["exchange"] = "exchange"
    round: Count
    phase: str
    seconds: Seconds
    answered: tuple[str, ...]
    missing: tuple[str, ...] = ()
    upload_bytes: Count = 0
    """Bytes from all hospitals together to the server."""
    download_bytes: Count = 0


class Refusal(_Event):
    """A hospital refuses to continue, by its own policy or budget."""

    kind: Literal["refusal"] = "refusal"
    round: Count
    hospital: str
    reason: Annotated[str, AfterValidator(printable)]
    """A sentence for a person, in the hospital's words: a terminal takes other characters for commands."""
    code: str
    """A word from a short fixed list, fit for a Prometheus label."""


class Dropout(_Event):
    """A hospital of the cohort did not answer a phase by its deadline."""

    kind: Literal["dropout"] = "dropout"
    round: Count
    hospital: str
    phase: str


class AttackRefused(_Event):
    """A party refused a protocol message that an honest peer cannot have sent."""

    kind: Literal["attack_refused"] = "attack_refused"
    round: Count
    hospital: str
    code: str


class RoundTime(BaseModel):
    """Where the seconds of a round went, by the server's clock; hospitals report no times of their own."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    training: Seconds = 0.0
    """The exchange in which hospitals train and mask, and vectors travel."""
    moving: Seconds = 0.0
    """The other exchanges."""
    waiting: Seconds = 0.0
    """The rest."""


_Units = Annotated[float, Field(ge=0, allow_inf_nan=False)]

Scores = Annotated[tuple[tuple[Annotated[float, Field(allow_inf_nan=False)], _Units, _Units], ...],
                   Field(max_length=ROWS)]  # fmt: skip
"""How many units of each of two classes have which log-odds of the second (:mod:`common.evaluation.calibration`)."""

Interval = tuple[Measure, Measure]
"""Lower and upper end."""


class RoundDone(Figures, _Event):
    """A training step is finished and its model measured on the hospitals' pooled test parts."""

    kind: Literal["round"] = "round"
    round: Count
    step: Annotated[int, Field(ge=1, le=MOST_COUNTED)]
    """Numbers the finished training steps of a run from 1 without gaps; ``round`` also counts the failed ones."""
    epsilon: Measure
    """The largest any hospital has spent."""
    epsilon_spent: dict[str, Measure] = Field(default_factory=dict)
    epsilon_budget: dict[str, Measure] = Field(default_factory=dict)
    hospitals: Count
    seconds: Seconds
    upload_bytes: Count
    seconds_by_part: RoundTime = RoundTime()
    confusion: Confusion = ()
    roc: tuple[tuple[Share, Share], ...] | None = None
    """Points (false positive rate, true positive rate), where the task has two classes."""
    part: Literal["test", "validation", "none"] = "test"
    """Whose records the model was measured on: the test part's where counts are exact; none where the plan of
    evaluations leaves this round out, and all measures are then undefined."""
    intervals: dict[str, Interval] = Field(default_factory=dict)
    """Name of a measure to its 95 % interval, over sampling of the records and privacy noise together."""
    evaluation_epsilon: Measure = math.nan
    """What evaluations of this run have cost each record of ``part`` so far."""
    scores: Scores = ()


class Evaluated(Figures, _Event):
    """The run's last model, measured on the pooled test parts at the threshold that validation fixed."""

    kind: Literal["evaluated"] = "evaluated"
    step: Count
    exact: bool
    records: Count
    """Records, or patients, that hospitals state; where counts are exact, as counted."""
    threshold: Measure = math.nan
    confusion: Confusion = ()
    roc: tuple[tuple[Share, Share], ...] | None = None
    scores: Scores = ()
    intervals: dict[str, Interval] = Field(default_factory=dict)
    noise: dict[str, Measure] = Field(default_factory=dict)
    """Standard deviation that privacy noise alone gives a measure, by name."""
    epsilon: Measure = math.nan
    """What evaluations of this run have cost each test record; undefined where counts are exact."""
    claim: str = ""
    """That ε with its δ, unit, relation and adversary, in one sentence."""
    each: Annotated[dict[str, ClassFigures], Field(max_length=MOST_CLASSES)] = Field(default_factory=dict)
    """The figures of each class of several, or of each label, by name."""


class Counted(_Event):
    """Who the run trains on, over all hospitals together, under noise."""

    kind: Literal["counted"] = "counted"
    tables: Annotated[dict[str, dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)] | None]],
                      Field(max_length=64)]  # fmt: skip
    """The counts by table and bin; null where a count does not stand out from the noise, which is not 0."""
    units: Count
    """That the counted hospitals state to train on: records, or patients."""
    deviation: Deviation
    """Standard deviation of the noise in each count."""
    least: Deviation
    """Counts below this are suppressed."""
    epsilon: Measure
    claim: str
    """That ε with its δ, unit, relation and adversary, in one sentence."""


class Compared(_Event):
    """The run's last model against each hospital's model of its own records, over all hospitals together, under noise.

    Both decide about the test records of one hospital: of two classes at a threshold each, else for the likeliest.
    """

    kind: Literal["compared"] = "compared"
    round: Count
    """Its number in the protocol."""
    step: Count
    records: Count
    """Records, or patients, that hospitals state."""
    accuracy: SignedShare
    """The share of records of which the run's model is right, less that of which hospitals' own are."""
    interval: tuple[SignedShare, SignedShare]
    """At 95 %, over sampling of the records and privacy noise together; another training is not in it."""
    noise: Deviation
    """Standard deviation that privacy noise alone gives ``accuracy``."""
    disagree: Share
    """The share of records of which one of the two models is right and the other wrong."""
    recalls: Annotated[dict[str, Measure], Field(max_length=MOST_CLASSES)] = Field(default_factory=dict)
    """The same of the records of each class, by name; undefined where too few are known to be there."""
    recall_intervals: Annotated[dict[str, tuple[SignedShare, SignedShare]], Field(max_length=MOST_CLASSES)] = Field(
        default_factory=dict
    )
    epsilon: Measure
    """What evaluations of this run have cost each test record."""
    epsilon_spent: dict[str, Measure] = Field(default_factory=dict)
    """By hospital, what training has cost, its own model included."""
    claim: str = ""
    """The ε of evaluation with its δ, unit, relation and adversary, in one sentence."""


class SpreadTold(_Event):
    """How far hospitals' own AUC of the run's last model lie apart, over hospitals with enough cases, under noise.

    No hospital is named, and nobody sees which have enough cases of both classes to count.
    """

    kind: Literal["spread"] = "spread"
    round: Count
    """Its number in the protocol."""
    step: Count
    hospitals: Count
    """Whose vectors are in the sum, also those that do not count."""
    records: Count
    """Records, or patients, that hospitals state."""
    counted: _Units
    """How many hospitals count: one with some cases more than the least counts in part."""
    counted_interval: tuple[_Units, _Units]
    """At 95 %, over privacy noise."""
    quartiles: tuple[Measure, Measure, Measure]
    """The AUC that a quarter, a half and three quarters of hospitals are below; undefined where noise is too large."""
    intervals: tuple[Interval, Interval, Interval]
    """That of each at 95 %, over privacy noise alone; 0.5 to 1 where nothing is known."""
    needed: Count = 0
    """From how many hospitals that count in full on this noise lets quartiles be told."""
    epsilon: Measure
    """What evaluations of this run have cost each test record."""
    claim: str = ""
    """That ε with its δ, unit, relation and adversary, in one sentence."""


class RunFinished(_Event):
    """The run ends, and why."""

    kind: Literal["run_finished"] = "run_finished"
    reason: str
    rounds_done: Count


Event = (
    RunStarted | HospitalOnline | HospitalLost | Exchange | Refusal | Dropout | AttackRefused | RoundDone | Evaluated
    | Counted | Compared | SpreadTold | RunFinished
)  # fmt: skip

KINDS = frozenset(
    str(event.model_fields["kind"].default)
    for event in (
        RunStarted, HospitalOnline, HospitalLost, Exchange, Refusal, Dropout, AttackRefused, RoundDone, Evaluated,
        Counted, Compared, SpreadTold, RunFinished,
    )
)  # fmt: skip

_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def parse_event(line: str | bytes) -> Event | None:
    """Read one line of ``events.jsonl``.

    Returns:
        The event; None for a line that is torn (its writer was killed in the middle of it) or blank, and for a kind
        that a newer version of Confide writes.

    Raises:
        RunError: the line is a JSON object of a known kind that breaks the format; names the key.

    >>> parse_event('{"time": 1.0, "kind": "hospital_lost", "hospital": "hospital-2"}').hospital
    'hospital-2'
    >>> parse_event('{"time": 1.0, "kind": "hospi') is None
    True
    """
    try:
        fields: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or fields.get("kind") not in KINDS:
        return None
    try:
        return _EVENT.validate_json(line)
    except ValidationError as error:
        raise RunError(f"an event must hold to its format; {complaint(error, 'the event')}") from None


class EventFile:
    """Reads a growing ``events.jsonl`` from where the last poll ended.

    A last line without its newline is left for the next poll: its writer may not have finished it. When the file got
    shorter or was replaced (a run started again in the same folder), reading starts again from the top.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = 0
        self._offset = 0
        self._line = 0

    def read_new(self) -> list[Event]:
        """Return the events of the lines completed since the last call; none while there is no file.

        Raises:
            RunError: the file cannot be read, or a line breaks the format; names the file and line.
        """
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._inode, self._offset, self._line = status.st_ino, 0, 0
                file.seek(self._offset)
                fresh = file.read(status.st_size - self._offset)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunError(f"{self._path} must be readable: {error.strerror}") from None
        complete = fresh[: fresh.rfind(b"\n") + 1]
        lines = complete.splitlines()
        events = [self._parse(self._line + number, line) for number, line in enumerate(lines, start=1)]
        # Only now: a line that is refused is refused again at the next poll, not silently passed over.
        self._offset += len(complete)
        self._line += len(lines)
        return [event for event in events if event is not None]

    def _parse(self, number: int, line: bytes) -> Event | None:
        try:
            return parse_event(line)
        except RunError as error:
            raise RunError(f"{self._path}, line {number}: {error}") from None


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
