"""``confide hospital model``: the models of finished runs that this hospital keeps, and what was verified of each."""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.kept_runs import RUNS_FOLDER, ReceivedRun, folder_of, kept_runs, refused_runs
from common.errors import RunError
from common.identity.certificates import load_certificate
from common.run.delivery import DELIVERY_FILE, Delivery, read_delivery
from common.run.words import RELATION
from common.telemetry.events import printable
from deploy.command import group, state_option
from deploy.results.model_file import ModelCard, load_model
from deploy.terminal import Fact, fact_lines

_DEFAULT_STATE = Path("hospital-state")


@group(
    "model",
    "Show the models of finished runs that this hospital has received, verified and keeps. The server signs each; the "
    "hospital compares it with its own audit chain before it keeps it.",
    "./confide hospital model list --state /srv/confide",
)
def main() -> None:
    """Hold the actions."""


@main.command("list", help="List the models, the newest last.", example="./confide hospital model list")
@state_option("hospital", _DEFAULT_STATE)
def show_all(state: Path) -> int:
    """Print one line a run; and what was refused."""
    table = Table(title="models of finished runs", title_justify="left")
    for name in ("run", "task", "steps", "received", "verified against this hospital's own chain"):
        table.add_column(name)
    kept = kept_runs(state)
    for run in kept:
        table.add_row(run.run_id[:12], escape(printable(run.task)), str(run.steps), shown_time(run.time), verified(run))
    console = Console()
    if kept:
        console.print(table)
    else:
        console.print(
            "no model yet: one comes when a run that this hospital took part in has finished", highlight=False
        )
    for run_id, refused in refused_runs(state).items():
        console.print(
            f"REFUSED {run_id[:12]}: {printable(refused.reason)}", markup=False, highlight=False, soft_wrap=True
        )
    return 0


@main.command("show", help="Show what one model is, and what was verified.", example="./confide hospital model show")
@click.argument("run", required=False)
@state_option("hospital", _DEFAULT_STATE)
def show(run: str | None, state: Path) -> int:
    """Print the model's card in words."""
    received = chosen_run(state, run)
    folder = folder_of(state, received.run_id)
    _, card = load_model(folder)
    delivery = read_delivery((folder / DELIVERY_FILE).read_bytes(), load_certificate(state / "ca.pem"))
    for line in fact_lines(_facts(received, card, delivery, folder)):
        print(printable(line))  # The server chose many of these words.
    return 0


@main.command(
    "path",
    help="Print the folder of one model, for predict, report, evidence and audit verify.",
    example="./confide hospital model path --state /srv/confide",
)
@click.argument("run", required=False)
@state_option("hospital", _DEFAULT_STATE)
def path(run: str | None, state: Path) -> int:
    """Print where a model lies."""
    print(folder_of(state, chosen_run(state, run).run_id))
    return 0


def chosen_run(state: Path, asked: str | None, named: str = "RUN") -> ReceivedRun:
    """Return the kept run that ``asked`` begins; the newest without one. ``named`` is what errors call that word.

    Raises:
        RunError: there is none, or more than one.
    """
    kept = kept_runs(state)
    if not kept:
        raise RunError(
            f"this hospital keeps no model yet; one comes into {state / RUNS_FOLDER} when a run that it took part in "
            "has finished and its server is reached"
        )
    if asked is None:
        return kept[-1]
    found = [run for run in kept if run.run_id.startswith(asked)]
    if len(found) != 1:
        known = ", ".join(run.run_id[:12] for run in kept)
        raise RunError(f"{named} must be how one of this hospital's runs begins ({known}), got {asked}")
    return found[0]


def _facts(received: ReceivedRun, card: ModelCard, delivery: Delivery, folder: Path) -> tuple[Fact, ...]:
    epsilon = card.privacy.get("epsilon")
    return (
        Fact("run", received.run_id),
        Fact("task", f"{card.task}: {', '.join(card.classes)}"),
        Fact("trained on", f"{card.data_set}, {received.steps} steps"),
        Fact("model", f"{card.architecture}, SHA-256 {card.sha256}"),
        Fact(
            "privacy",
            f"{'none' if epsilon is None else _epsilon(card.privacy)}, {card.privacy.get('adversary')}",
        ),
        Fact(
            "signed",
            f"by the consortium's server, {shown_time(delivery.time)}; chain head {delivery.chain_head[:20]}…",
        ),
        Fact("received", shown_time(received.time)),
        Fact("verified", verified(received)),
        Fact("folder", str(folder)),
        *(Fact("ATTENTION", caveat) for caveat in card.caveats),
    )


def _epsilon(privacy: Mapping[str, Any]) -> str:
    unit = privacy.get("unit", "unit")
    return f"ε = {privacy['epsilon']:g} for each {unit} ({RELATION}), δ = {privacy.get('delta')}"


def verified(run: ReceivedRun) -> str:
    """Say what was compared with this hospital's own chain."""
    if run.has_seen_model:
        seen = "the final model was here to be measured"
    else:
        seen = f"the newest model seen here is of step {run.last_step_seen} of {run.steps}"
    return f"{run.rounds} sums with its vector; {seen}"


def shown_time(seconds: float) -> str:
    """Return Unix seconds for a person."""
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC"
