"""Following a run by its events, live or afterwards."""

import math
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.errors import RunError
from common.telemetry.events import (
    EVENTS_FILE,
    AttackRefused,
    Compared,
    Counted,
    Dropout,
    Evaluated,
    Event,
    EventFile,
    Exchange,
    Refusal,
    RoundDone,
    RunFinished,
    RunStarted,
    SpreadTold,
)

_ROUNDS_FOR_RATE = 6
"""Rounds whose time says how long the next ones take: the first one of a run is slower."""

POLL_SECONDS = 0.25
"""The time between two polls of a growing file: soon enough for an eye, and a `read` that finds nothing is cheap.
Notifications of the kernel (inotify) would save even that, but do not cross a bind mount into a container."""


def follow(path: Path, stop: threading.Event, look_seconds: float = POLL_SECONDS) -> Iterator[Event]:
    """Yield a run's events from its first on, waiting for further ones until the run has finished.

    Args:
        path: ``events.jsonl``; need not exist yet.
        stop: ends the waiting from another thread or a signal handler; what is already written is still yielded.
        look_seconds: between two polls of a file that has not grown.

    Raises:
        RunError: the file cannot be read, or a line breaks the format.
    """
    file = EventFile(path)
    while True:
        last_look = stop.is_set()
        for event in file.read_new():
            yield event
            if isinstance(event, RunFinished):
                return
        if last_look:
            return
        stop.wait(look_seconds)


@dataclass(frozen=True)
class RunHistory:
    """What the events of one run say, in order."""

    started: RunStarted
    """The run's first start: a resumed run keeps its first description."""
    resumed_from: tuple[int, ...]
    """The round that each resumption continued from."""
    rounds: tuple[RoundDone, ...]
    """One for each finished training step, in the order of ``step``."""
    exchanges: tuple[Exchange, ...]
    dropouts: tuple[Dropout, ...]
    refusals: tuple[Refusal, ...]
    attacks: tuple[AttackRefused, ...]
    finished: RunFinished | None
    """None while the run is active, or when its server was stopped for good."""
    evaluated: Evaluated | None = None
    """The last measurement of the test parts, whatever came of it; see :attr:`tested`."""
    counted: Counted | None = None
    """Who was trained on; None where nobody asked, or no round that asked gave a sum."""
    told_against_alone: Compared | None = None
    """The last comparison with hospitals' own models, of whatever model; see :attr:`compared`."""
    told_spread: SpreadTold | None = None
    """The last word on how far hospitals' own AUC lie apart, of whatever model; see :attr:`spread`."""

    @classmethod
    def of(cls, events: Iterable[Event]) -> "RunHistory":
        """Gather events; of a step that was measured twice (again after a resumption) the last one counts.

        Raises:
            RunError: no event says that a run has started.
        """
        told = tuple(events)
        starts = [event for event in told if isinstance(event, RunStarted)]
        if not starts:
            raise RunError("a run's events must hold a run_started, got none: has the run begun?")
        rounds = {event.step: event for event in told if isinstance(event, RoundDone)}
        return cls(
            started=starts[0],
            resumed_from=tuple(start.resumed_from_round for start in starts[1:]),
            rounds=tuple(rounds[step] for step in sorted(rounds)),
            exchanges=tuple(event for event in told if isinstance(event, Exchange)),
            dropouts=tuple(event for event in told if isinstance(event, Dropout)),
            refusals=tuple(event for event in told if isinstance(event, Refusal)),
            attacks=tuple(event for event in told if isinstance(event, AttackRefused)),
            finished=next((event for event in reversed(told) if isinstance(event, RunFinished)), None),
            evaluated=next((event for event in reversed(told) if isinstance(event, Evaluated)), None),
            counted=next((event for event in reversed(told) if isinstance(event, Counted)), None),
            told_against_alone=next((event for event in reversed(told) if isinstance(event, Compared)), None),
            told_spread=next((event for event in reversed(told) if isinstance(event, SpreadTold)), None),
        )

    @classmethod
    def read(cls, run: Path) -> "RunHistory":
        """Read the run in folder ``run``.

        Raises:
            RunError: there is no run in the folder, or its events break the format.
        """
        if not (run / EVENTS_FILE).is_file():
            raise RunError(f"{run} must be the folder of a run, with its {EVENTS_FILE}; there is none")
        return cls.of(EventFile(run / EVENTS_FILE).read_new())

    @property
    def measured(self) -> tuple[RoundDone, ...]:
        """The rounds whose model was measured: in a long run not every one is."""
        return tuple(done for done in self.rounds if done.part != "none")

    @property
    def seconds_left(self) -> float:
        """About how long the rounds that remain take, by the time that the last ones took; measuring not counted."""
        if not self.rounds:
            return math.nan
        done = self.rounds[-_ROUNDS_FOR_RATE:]
        each = done[-1].seconds
        if len(done) > 1:
            each = max(0.0, (done[-1].time - done[0].time) / (done[-1].step - done[0].step))
        return each * (self.started.rounds - done[-1].step)

    @property
    def compared(self) -> Compared | None:
        """How the run's last model did against hospitals' own; None where that was not asked, or not told."""
        told = self.told_against_alone
        return told if told is not None and self.rounds and told.step == self.rounds[-1].step else None

    @property
    def spread(self) -> SpreadTold | None:
        """How far hospitals' own AUC of the last model lie apart; None where that was not asked, or not told."""
        told = self.told_spread
        return told if told is not None and self.rounds and told.step == self.rounds[-1].step else None

    @property
    def training_epsilon(self) -> float:
        """The most that a hospital has spent on training, its model alone included; NaN without privacy."""
        spent = self.rounds[-1].epsilon if self.rounds else math.nan
        compared = self.compared
        return spent if compared is None else max(spent, *compared.epsilon_spent.values(), 0.0)

    @property
    def test_epsilon(self) -> float:
        """What the run's questions have cost each test record; NaN where none was answered, or counts are exact."""
        told = [event.epsilon for event in (self.tested, self.compared, self.spread) if event is not None]
        return max((spent for spent in told if not math.isnan(spent)), default=math.nan)

    @property
    def test_claim(self) -> str:
        """What that ε means, in the run's own words; empty where there is none."""
        told = [event for event in (self.tested, self.compared, self.spread) if event is not None]
        return told[-1].claim if told else ""

    @property
    def tested(self) -> Evaluated | None:
        """How good the run's last model is on the pooled test parts; None where that was not measured."""
        told = self.evaluated
        is_of_last = told is not None and bool(self.rounds) and told.step == self.rounds[-1].step
        return told if told is not None and is_of_last and not math.isnan(told.accuracy) else None

    @property
    def why_not_tested(self) -> str:
        """Why there is no figure of the test parts; empty where there is."""
        if self.tested is not None:
            return ""
        if not self.rounds:
            return "no round was finished"
        if self.finished is None:
            return "the run has not ended"
        refused = [item for item in self.refusals if item.round > self.rounds[-1].round]
        why = f": {refused[-1].hospital} refused, because {refused[-1].reason}" if refused else ""
        return f"no round that asks the test parts gave a result{why}"
