"""The table a person watches while a run goes on."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from common.events import AttackRefused, Dropout, Event, HospitalLost, Refusal, RoundDone, RunFinished, RunStarted
from common.guarantee import Guarantee, caveats, shown_epsilon

HEADINGS = (
    "round", "accuracy", "precision", "recall", "F1", "AUC", "loss", "ε of budget", "hospitals", "seconds",
)  # fmt: skip

LINES_AROUND_TABLE = 14
"""Of the terminal, kept for headings, caveats and notes; the table shows the rounds that fit into the others."""

NOTES_SHOWN = 4

_WIDTHS = (6, 8, 9, 6, 6, 6, 6, 16, 9, 7)
"""Of the columns on a pipe, where nobody knows the rows to come."""


class LiveTable:
    """Shows a run: a table that redraws itself on a terminal, one line a round on a pipe.

    ::

        with LiveTable() as table:
            table.starting("starting 4 hospitals")
            for event in follow(...):
                table.show(event)
            table.finish(files)

    Args:
        console: where to; standard output when left out.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._started: RunStarted | None = None
        self._rounds: dict[int, RoundDone] = {}
        self._notes: list[str] = []
        self._progress: str | None = None
        self._spinner = Spinner("dots", style="dim")  # one object, or each redraw would start it anew
        self._live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=4)

    def __enter__(self) -> Self:
        """Start drawing."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the last picture on the screen."""
        self._progress = None
        self._live.stop()

    def starting(self, message: str) -> None:
        """Say what is being waited for."""
        self._progress = message
        self._print_on_pipe(f"{message} …")

    def show(self, event: Event) -> None:
        """Take in the next event."""
        match event:
            case RunStarted():
                self._start(event)
            case RoundDone():
                self._add(event)
            case HospitalLost():
                self._note(f"{event.hospital} is gone")
            case Dropout():
                self._note(f"round {event.round}: {event.hospital} dropped out at {event.phase}")
            case Refusal():
                self._note(f"round {event.round}: {event.hospital} refuses: {event.reason}")
            case AttackRefused():
                self._note(f"round {event.round}: {event.hospital} refused an attack: {event.code}")
            case RunFinished():
                self._progress = None
            case _:
                pass

    def finish(self, files: Sequence[Path], state: str = "finished") -> None:
        """End with how good the model is, what it cost, and the files written.

        Args:
            files: in the order to name them.
            state: why the run ended.
        """
        self._progress = None
        self._live.stop()
        print_summary(self._console, self._started, [*self._rounds.values()], files, state)

    def _start(self, event: RunStarted) -> None:
        again = self._started is not None
        self._started = event
        self._progress = f"round 1 of {event.rounds} is under way"
        if again:
            self._note(f"the run goes on from round {event.resumed_from_round}")
            return
        self._print_on_pipe(_title(event))
        for caveat in caveats(event.config, event.data_set):
            self._print_on_pipe(f"NOTE: {caveat}")
        self._print_on_pipe(Guarantee.of(event.config).of_epsilon())
        self._print_on_pipe("  ".join(heading.rjust(width) for heading, width in zip(HEADINGS, _WIDTHS, strict=True)))

    def _add(self, done: RoundDone) -> None:
        self._rounds[done.step] = done
        self._print_on_pipe("  ".join(cell.rjust(width) for cell, width in zip(_cells(done), _WIDTHS, strict=True)))
        if self._started is not None and done.step < self._started.rounds:
            self._progress = f"round {done.step + 1} of {self._started.rounds} is under way"

    def _note(self, note: str) -> None:
        self._notes.append(note)
        self._print_on_pipe(note)

    def _print_on_pipe(self, line: str) -> None:
        if not self._console.is_terminal:
            # A line of a log is never wrapped: whoever reads it has a width of their own.
            self._console.print(line, soft_wrap=True, markup=False, highlight=False)
            self._console.file.flush()

    def _draw(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self._started is not None:
            parts += [_banner(self._started), self._table(self._started)]
        parts += [Text(note, style="yellow") for note in self._notes[-NOTES_SHOWN:]]
        if self._progress is not None:
            self._spinner.update(text=Text(self._progress, style="dim"))
            parts.append(self._spinner)
        return Group(*parts)

    def _table(self, started: RunStarted) -> Table:
        table = Table(title=_title(started), caption=Guarantee.of(started.config).of_epsilon(), title_justify="left")
        for heading in HEADINGS:
            table.add_column(heading, justify="right", no_wrap=True)
        steps = sorted(self._rounds)
        hidden = max(0, len(steps) - max(3, self._console.height - LINES_AROUND_TABLE))
        if hidden:
            table.add_row(f"1–{steps[hidden - 1]}", "in metrics.csv", *("…" for _ in HEADINGS[2:]), style="dim")
        for step in steps[hidden:]:
            table.add_row(*_cells(self._rounds[step]))
        return table


def print_summary(
    console: Console, started: RunStarted | None, rounds: Sequence[RoundDone], files: Sequence[Path], state: str
) -> None:
    """Print how a run ended: its last metrics, ε with all it must be shown with, caveats, and the files written."""
    lines = [Text(f"Run ended: {state}", style="bold")]
    if started is not None and rounds:
        last = max(rounds, key=lambda done: done.step)
        lines += [
            Text(
                f"{_title(started)}: after {last.step} of {started.rounds} rounds AUC {_shown(last.auc)}, "
                f"accuracy {_shown(last.accuracy)}, F1 {_shown(last.f1)} on the hospitals' pooled test parts"
            ),
            Text(f"Privacy spent: {_epsilon(last)}; {Guarantee.of(started.config).of_epsilon()}"),
        ]
    if started is not None:
        lines += [Text(f"NOTE: {caveat}", style="bold yellow") for caveat in caveats(started.config, started.data_set)]
    lines += [Text(f"  {file}") for file in files]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)


def _banner(started: RunStarted) -> RenderableType:
    admitted = caveats(started.config, started.data_set)
    if not admitted:
        return Text()
    return Panel(Text("\n".join(admitted), style="bold yellow"), border_style="yellow", expand=False)


def _title(started: RunStarted) -> str:
    return f"{started.task} on {started.data_set}, {len(started.hospitals)} hospitals, run {started.run_id[:8]}"


def _cells(done: RoundDone) -> tuple[str, ...]:
    measures = (done.accuracy, done.precision, done.recall, done.f1, done.auc, done.loss)
    return (
        str(done.step),
        *(_shown(value) for value in measures),
        _epsilon(done),
        str(done.hospitals),
        f"{done.seconds:.1f}",
    )


def _epsilon(done: RoundDone) -> str:
    """Return the largest ε spent, of the budget of the hospital that spent it."""
    if not math.isfinite(done.epsilon):
        return "∞"
    most = max(done.epsilon_spent, key=done.epsilon_spent.__getitem__, default=None)
    budget = done.epsilon_budget.get(most, math.nan) if most is not None else math.nan
    return shown_epsilon(done.epsilon) + (f" of {budget:.2f}" if math.isfinite(budget) else "")


def _shown(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
