"""``confide hospital report``: how good each round's model is on this hospital's own records; nothing leaves it.

With ``--alone``, whether joining paid: :mod:`deploy.hospital.alone`.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from client.own_results import OWN_RESULTS_FILE, OwnResult, read
from client.subgroups import GroupResult
from common.errors import RunError
from common.evaluation import METRICS
from common.evaluation.metrics import WHERE_NARROW
from common.run.guarantee import shown_epsilon
from deploy.command import WIDTH, command, state_option
from deploy.hospital.model import chosen_run

COLUMNS = tuple(METRICS)

_WIDTH_ON_PIPE = 120

FEWEST = 10
"""Fewer records of a kind give no share worth reading: each one would move it by ten points or more."""

_NARROW = 110
"""In a narrower terminal fewer figures are shown, with their digits, and not all with a part of them."""


@command(
    "report",
    "Show how good the model is on this hospital's own records. The figures are exact counts and stay here.\n\n"
    "With --alone, compare a finished run's model, as received, with models of this hospital's own records alone by "
    "the run's recipe, trained now: without noise, and with the run's ε. They are not kept, and nothing is sent or "
    "booked.",
    "./confide hospital report --state /srv/confide\n./confide hospital report --state /srv/confide --alone",
)
@state_option("hospital")
@click.option("--run", "asked", show_default="the last run", metavar="ID", help="A run's identifier, or how it begins.")
@click.option("--alone", is_flag=True, help="Train on this hospital's own records alone, and say if joining paid.")
def main(*, state: Path, asked: str | None, alone: bool) -> int:
    """Print the results of one run, or whether joining it paid.

    Raises:
        RunError: the hospital has no result yet, or none of the run asked for.
        ConfideError: as :func:`deploy.hospital.alone.compare_alone`.
    """
    if alone:
        return _show_alone(state, asked)
    results = _of_one_run(read(state / OWN_RESULTS_FILE), asked)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_ON_PIPE)
    columns = columns_in(console)
    console.print(table_of(results, columns))
    if columns != COLUMNS:
        left = ", ".join(name for name in COLUMNS if name not in columns)
        console.print(f"A terminal of {_NARROW} columns shows more: {left}.", highlight=False)
    last = results[-1]
    console.print(
        f"Each row is the model that entered the round, on this hospital's own {last.records} test records, at the "
        f"threshold that its own validation part gives. With this many records an accuracy of {_number(last.accuracy)} "
        f"is known to about ±{_half_width(last):.2f} (95 %).",
        highlight=False,
    )
    compared = next((result.alone for result in reversed(results) if result.alone is not None), None)
    if compared is not None:
        console.print(
            f"Against this hospital's model of its own records alone, as the run asked once: of {compared.records} "
            f"test records the run's model was right of {compared.together:.3f}, its own of {compared.alone:.3f}. The "
            "consortium sees the difference over all hospitals together, with noise.",
            highlight=False,
        )
    if last.groups:
        console.print(groups_of(last.groups, last.round))
        console.print(
            f"A share of fewer than {FEWEST} records is not shown. Groups that differ by less than their sizes allow "
            "differ by chance; a group that is missing here is one the model was never tried on.",
            highlight=False,
        )
    console.print(
        "These figures stay in this hospital: nobody else sees them, and no noise covers them. They are exact counts: "
        "not differentially private. What the consortium sees is the sum of all hospitals' counts, with noise unless a "
        "run asks for exact counts and this hospital agrees.",
        highlight=False,
    )
    return 0


def _show_alone(state: Path, asked: str | None) -> int:
    from deploy.hospital.alone import compare_alone, show  # Only where it is asked for: it brings PyTorch.

    received = chosen_run(state, asked, "--run")
    found = compare_alone(state, received, FEWEST, Console(stderr=True))
    show(found, Console(width=None if sys.stdout.isatty() else WIDTH))
    return 0


def columns_in(console: Console) -> tuple[str, ...]:
    """Return the figures that fit a terminal with all their digits."""
    return COLUMNS if console.width >= _NARROW else WHERE_NARROW


def table_of(results: Sequence[OwnResult], columns: Sequence[str] = COLUMNS) -> Table:
    """Return one row for each round."""
    table = Table(title=f"run {results[-1].run_id[:12]}", title_justify="left")
    for name in ("round", *columns, "ε spent"):
        table.add_column(name, justify="right")
    for result in results:
        measures = (_number(getattr(result, name)) for name in columns)
        table.add_row(str(result.round), *measures, shown_epsilon(result.epsilon_spent))
    return table


def groups_of(groups: Sequence[GroupResult], round_number: int) -> Table:
    """Return one row for each group of the test records, with the shares that enough records stand behind."""
    table = Table(title=f"for whom it works: the model of round {round_number}", title_justify="left")
    for name in ("group", "records", "sick", "found", "specificity", "auc"):
        table.add_column(name, justify="left" if name == "group" else "right")
    trait = ""
    for group in groups:
        if trait not in {"", group.trait}:
            table.add_section()
        trait = group.trait
        others = group.records - group.sick
        shown = (
            group.recall if group.sick >= FEWEST else math.nan,
            group.specificity if others >= FEWEST else math.nan,
            group.auc if min(group.sick, others) >= FEWEST else math.nan,
        )
        table.add_row(f"{trait}: {group.group}", str(group.records), str(group.sick), *map(_number, shown))
    return table


def _of_one_run(results: Sequence[OwnResult], asked: str | None) -> list[OwnResult]:
    if not results:
        raise RunError("this hospital has no results yet; they are written from its first round on")
    run_id = results[-1].run_id if asked is None else asked
    chosen = [result for result in results if result.run_id.startswith(run_id)]
    if not chosen:
        known = ", ".join(dict.fromkeys(result.run_id[:12] for result in results))
        raise RunError(f"--run must be one of this hospital's runs ({known}), got {asked}")
    return chosen


def _half_width(result: OwnResult) -> float:
    """Return half the width of the 95 % normal interval of an accuracy; NaN without records."""
    if not result.records or math.isnan(result.accuracy):
        return math.nan
    return 1.96 * math.sqrt(max(result.accuracy * (1.0 - result.accuracy), 1.0 / result.records) / result.records)


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
