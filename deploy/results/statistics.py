"""``confide statistics``: who a run trains on, as its hospitals counted together under noise before round 1.

The organiser asks with ``evaluation.statistics_epsilon``, each hospital agrees with
``hospital.allow_statistics_epsilon``; without both there is nothing to show.
"""

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from common.config import Config
from common.errors import RunError
from common.run.terms import statistics_claim
from common.telemetry.events import Counted
from deploy.command import FILE, command
from deploy.results.history import RunHistory

_WIDTH_ON_PIPE = 120


@command(
    "statistics",
    "Show who a run trains on, as its hospitals counted together under noise before round 1.\n\n"
    "RUN is a run's folder; the run need not have ended. The organiser asks with evaluation.statistics_epsilon, and "
    "each hospital agrees with hospital.allow_statistics_epsilon.",
    "./confide statistics runs/0123456789ab",
)
@click.argument("run", type=FILE)
def main(run: Path) -> int:
    """Print the tables of a run.

    Raises:
        RunError: there is no run, it asked for no statistics, or no round that asked gave a sum.
    """
    history = RunHistory.read(run)
    if history.counted is None:
        if not history.started.config.evaluation.statistics_epsilon:
            raise RunError(
                "this run asked no hospital for statistics; the organiser sets evaluation.statistics_epsilon, and each "
                "hospital agrees with hospital.allow_statistics_epsilon"
            )
        raise RunError("no sum of statistics is there: the run has not come so far, or no round that asked gave a sum")
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_ON_PIPE)
    for name, bins in history.counted.tables.items():
        console.print(_table(name, bins, history.counted))
    console.print(explained(history.counted, history.started.config), highlight=False)
    return 0


def explained(counted: Counted, config: Config) -> str:
    """Say what the counts are, what suppressed means, and what they cost."""
    return (
        f"Counts over the {counted.units} training units that hospitals state, those together whose budget allowed it, "
        f"each count with noise of standard deviation {counted.deviation:.1f}. "
        f"{suppressed(counted).capitalize()} says that the count does not stand out from the noise; that is not 0. Of "
        f"more units than a hospital states, the stated number counts. Cost: "
        f"{statistics_claim(config, counted.epsilon)}."
    )


def suppressed(counted: Counted) -> str:
    """Return what stands in the place of a count that does not stand out from the noise."""
    return f"suppressed (below {max(counted.least, 1.0):.0f})"


def shown(count: float | None, counted: Counted) -> str:
    """Return a count with its 95 % interval over the noise, or that it is suppressed."""
    if count is None:
        return suppressed(counted)
    reach = 1.96 * counted.deviation
    return f"{count:.0f} ({max(0.0, count - reach):.0f} to {count + reach:.0f})"


def _table(name: str, bins: dict[str, float | None], counted: Counted) -> Table:
    table = Table(title=name, title_justify="left")
    table.add_column(name)
    table.add_column("units (95 % interval over the noise)", justify="right")
    for each, count in bins.items():
        table.add_row(each, shown(count, counted))
    return table
