"""The table a person watches during a run: each round on validation records, the last model on test records."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from common.evaluation.metrics import BY_ROUND, METRICS, SUMMARISED
from common.privacy.mechanism import mechanism_of
from common.run.guarantee import Guarantee, shown_epsilon
from common.run.words import EXACT_COUNTS, SPENT, admitted, evaluation_cost
from common.telemetry.events import (
    AttackRefused,
    Dropout,
    Evaluated,
    Event,
    HospitalLost,
    Refusal,
    RoundDone,
    RunFinished,
    RunStarted,
)
from deploy.results.against_alone import comparison_lines
from deploy.results.by_class import by_class_lines, shown_metrics
from deploy.results.history import RunHistory
from deploy.results.intervals import Interval, of_round, of_test
from deploy.results.site_spread import spread_lines
from deploy.terminal import filled

HEADINGS = (
    "round", *(METRICS[name].heading for name in BY_ROUND), "ε of budget", "hospitals", "seconds",
)  # fmt: skip

LINES_AROUND_TABLE = 20
"""The lines of the terminal that are reserved for headings, caveats and notes; the rounds fill the others."""

NOTES_SHOWN = 4

LOGS = "logs"
"""The folder of a run's logs, in its own."""

_MINUTE_SECONDS, _SHORT_SECONDS = 60, 90
_WIDTHS = (5, 10, 5, 6, 4, 10, 6, 14, 5, 6)
"""The widths of the columns on a pipe, where later rows are not known yet: 80 with the spaces between them."""

_SHORT = {"precision": "prec.", "hospitals": "hosp.", "seconds": "secs"}
"""What stands above a column that is narrower than its name."""

_DROPPED = (
    "precision", "hospitals", "seconds",
    *(METRICS[name].heading for name in reversed(BY_ROUND) if name not in ("precision", "auc")),
)  # fmt: skip
"""Columns that a narrow terminal leaves out, the first one first; AUC and ε stay."""

_WITH_INTERVAL = ("accuracy", "auc")
"""The metrics that the table prints with their uncertainty."""

_FRAME = 3
"""Characters that a table takes beside each of its cells."""

_SURE = len("0.89 ±0.03")
"""Characters kept for a figure that is printed with its uncertainty."""


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
        folder: of the run, which is named at once, with how to follow it elsewhere and where its logs are.
    """

    def __init__(self, console: Console | None = None, folder: Path | None = None) -> None:
        self._console = console or Console()
        self._folder = folder
        self._started: RunStarted | None = None
        self._events: list[Event] = []
        self._rounds: dict[int, RoundDone] = {}
        self._tested: Evaluated | None = None
        self._notes: list[str] = []
        self._progress: str | None = None
        self._spinner = Spinner("dots", style="dim")  # one object, or each redraw would start it again
        self._live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=4)

    def __enter__(self) -> Self:
        """Start drawing."""
        if self._folder is not None:
            words = f"run: {self._folder}", f"in a browser: ./confide dashboard {self._folder}"
            for line in (*words, f"logs: {self._folder / LOGS}"):
                self._console.print(line, soft_wrap=True, markup=False, highlight=False)
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

    def remember(self, message: str) -> None:
        """Say what stays on the screen to the end, above everything else."""
        self._console.print(filled(message, "  "), style="bold", highlight=False, soft_wrap=True)

    def show(self, event: Event) -> None:
        """Take in the next event."""
        self._events.append(event)
        match event:
            case RunStarted():
                self._start(event)
            case RoundDone():
                self._add(event)
            case Evaluated():
                self._test(event)
            case HospitalLost():
                self._note(f"{event.hospital} {event.why}")
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
        print_summary(self._console, RunHistory.of(self._events) if self._started else None, files, state)

    def _start(self, event: RunStarted) -> None:
        again = self._started is not None
        self._started = event
        self._progress = f"round 1 of {event.rounds} is under way"
        if again:
            self._note(f"the run continues from round {event.resumed_from_round}")
            return
        for line in event.evaluation_plan:
            self._console.print(filled(line, "  "), soft_wrap=True, markup=False, highlight=False)
        self._print_on_pipe(_title(event))
        for caveat in admitted(event):
            self._print_on_pipe(f"NOTE: {caveat}")
        self._print_on_pipe(Guarantee.of(event.config).of_epsilon())
        if mechanism_of(event.config).is_private:
            self._print_on_pipe(SPENT)
        self._print_on_pipe(_measured_on(event))
        self._print_on_pipe(_as_line([_SHORT.get(heading, heading) for heading in HEADINGS]))

    def _add(self, done: RoundDone) -> None:
        self._rounds[done.step] = done
        self._print_on_pipe(_as_line(_cells(done)))
        if self._started is not None:
            last = done.step >= self._started.rounds
            self._progress = (
                "the last model is being measured"
                if last
                else f"round {done.step + 1} of {self._started.rounds} is under way, about "
                f"{as_time(RunHistory.of(self._events).seconds_left)} left"
            )

    def _test(self, tested: Evaluated) -> None:
        """Take in the last model's figures; exact ones stand in the last round's row already."""
        if not tested.exact:
            self._tested = tested
            self._print_on_pipe(_as_line(_test_cells(tested)))

    def _note(self, note: str) -> None:
        self._notes.append(note)
        self._print_on_pipe(note)

    def _print_on_pipe(self, line: str) -> None:
        if not self._console.is_terminal:
            # A pipe has no width of its own, and what rich takes it for would cut rows in two.
            self._console.print(filled(line, "  "), soft_wrap=True, markup=False, highlight=False)
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
        table = Table(
            title=f"{_title(started)}\n{_measured_on(started)}",
            caption="\n".join(self._under_table(started)),
            title_justify="left",
            caption_justify="left",
        )
        rows = [_cells(done) for done in self._rounds.values()]
        shown = _headings_shown(self._console.width, rows, exact=started.config.evaluation.exact)
        for heading in shown:
            table.add_column(heading, justify="right", no_wrap=True)
        steps = sorted(self._rounds)
        hidden = max(0, len(steps) - max(3, self._console.height - LINES_AROUND_TABLE))
        if hidden:
            told = (f"1–{steps[hidden - 1]}", "in metrics.csv", *("…" for _ in shown[2:]))
            table.add_row(*told, style="dim")
        for step in steps[hidden:]:
            table.add_row(*_of(shown, _cells(self._rounds[step])), end_section=step == steps[-1])
        if self._tested is not None:
            table.add_row(*_of(shown, _test_cells(self._tested)), style="bold")
        return table

    def _under_table(self, started: RunStarted) -> list[str]:
        lines = [Guarantee.of(started.config).of_epsilon()]
        measured = [done for done in self._rounds.values() if done.part != "none"]
        if measured:
            lines.append(evaluation_cost(started, max(measured, key=lambda done: done.step)))
        return lines


def as_time(seconds: float) -> str:
    """Return seconds, or minutes from a minute and a half on, in words.

    >>> as_time(8.4), as_time(600)
    ('8 s', '10 min')
    """
    if seconds < _SHORT_SECONDS:
        return f"{seconds:.0f} s"
    return f"{seconds / _MINUTE_SECONDS:.0f} min"


def print_summary(console: Console, history: RunHistory | None, files: Sequence[Path], state: str) -> None:
    """Print how a run ended: its last model's figures, ε with all it must be shown with, caveats, the files written."""
    lines = [Text(f"Run ended: {state}", style="bold")]
    if history is not None and history.rounds:
        started, last = history.started, history.rounds[-1]
        told = [f"{_title(started)}: {last.step} of {started.rounds} rounds", *_final_figures(history)]
        told.append(
            f"Privacy spent: {_epsilon(last, history.training_epsilon)}; {Guarantee.of(started.config).of_epsilon()}"
        )
        if mechanism_of(started.config).is_private:
            told.append(SPENT)
        lines += [Text(filled(line, "  ")) for line in told]
    if history is not None:
        caveats = admitted(history.started)
        lines += [Text(filled(f"NOTE: {caveat}", "  "), style="bold yellow") for caveat in caveats]
    lines += [Text(f"  {file}") for file in files]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)


def _final_figures(history: RunHistory) -> list[str]:
    """Return the last model's figures on the test parts, a line each, and what they cost; or why there are none."""
    tested = history.tested
    if tested is None:
        return [f"On the hospitals' pooled test parts: not measured: {history.why_not_tested}"]
    unit = history.started.config.privacy.unit.value
    at = "" if math.isnan(tested.threshold) else ", at the threshold that validation records fixed before"
    how = EXACT_COUNTS if tested.exact else f"asked once{at}"
    lines = [f"On the hospitals' pooled test parts, {tested.records} {unit}s, {how}:"]
    lines += [
        f"  {METRICS[name].label:<20} {_final(sure)}"
        for name in SUMMARISED
        if name in shown_metrics(history.started.terms) and (sure := of_test(tested)[name]).is_told
    ]
    lines += by_class_lines(history)
    lines += comparison_lines(history)
    lines += spread_lines(history)
    if tested.exact:
        return [*lines, "  in brackets: 95 %, sampling of the records"]
    return [
        *lines,
        f"  in brackets: 95 %, sampling of {tested.records} {unit}s and privacy noise",
        f"Evaluation cost: {history.test_claim}",
    ]


def _final(sure: Interval) -> str:
    told = sure.figure
    if not math.isnan(sure.low):
        told += f"  [{sure.low:.{sure.decimals}f}, {sure.high:.{sure.decimals}f}]"
    return told if math.isnan(sure.noise) else f"{told}  noise alone ±{sure.noise:.3f}"


def _banner(started: RunStarted) -> RenderableType:
    lines = admitted(started)
    if not lines:
        return Text()
    return Panel(Text("\n".join(lines), style="bold yellow"), border_style="yellow", expand=False)


def _title(started: RunStarted) -> str:
    return f"{started.task} on {started.data_set}, {len(started.hospitals)} hospitals, run {started.run_id[:8]}"


def _measured_on(started: RunStarted) -> str:
    """Say on whose records the table's figures were measured."""
    if started.config.evaluation.exact:
        return f"each row: the pooled test parts, {EXACT_COUNTS}"
    return "each row: the pooled validation parts after that round, ± 95 %; last row: the test parts"


def _headings_shown(width: int, rows: Sequence[Sequence[str]], *, exact: bool) -> tuple[str, ...]:
    """Return the columns that fit into ``width`` characters, with the rows there are and those to come."""
    wide = [METRICS[name].heading for name in _WITH_INTERVAL]
    needed = {
        heading: max(len(heading), _SURE if heading in wide and not exact else 0, *map(len, column))
        for heading, *column in zip(HEADINGS, *rows, strict=True)
    }
    shown = list(HEADINGS)
    for heading in _DROPPED:
        if sum(needed[name] + _FRAME for name in shown) < width:
            break
        shown.remove(heading)
    return tuple(shown)


def _of(shown: Sequence[str], cells: Sequence[str]) -> list[str]:
    return [cell for heading, cell in zip(HEADINGS, cells, strict=True) if heading in shown]


def _as_line(cells: Sequence[str]) -> str:
    """Return a row for a pipe; what is wider than its column takes the room that the next ones leave."""
    line, end = "", -1
    for cell, width in zip(cells, _WIDTHS, strict=True):
        end += 1 + width
        line = f"{line} {cell}".rjust(end) if line else cell.rjust(end)
    return line


def _cells(done: RoundDone) -> tuple[str, ...]:
    return (str(done.step), *_figures(of_round(done)), _epsilon(done), str(done.hospitals), f"{done.seconds:.1f}")


def _test_cells(tested: Evaluated) -> tuple[str, ...]:
    return ("test", *_figures(of_test(tested)), "", "", "")


def _figures(sure: Mapping[str, Interval]) -> tuple[str, ...]:
    """Return the measures in the order of the columns, the two that matter most with their uncertainty."""
    return tuple(sure[name].short if name in _WITH_INTERVAL else sure[name].figure for name in BY_ROUND)


def _epsilon(done: RoundDone, spent: float | None = None) -> str:
    """Return the largest ε spent, of the budget of the hospital that spent it; ``spent``, where more came after."""
    epsilon = done.epsilon if spent is None else spent
    if not math.isfinite(epsilon):
        return "∞"
    most = max(done.epsilon_spent, key=done.epsilon_spent.__getitem__, default=None)
    budget = done.epsilon_budget.get(most, math.nan) if most is not None else math.nan
    return shown_epsilon(epsilon) + (f" of {budget:.2f}" if math.isfinite(budget) else "")
