"""``confide dev bench disputes``: how long a deployed round with a dispute takes, against rounds without one.

Server and hospitals are processes of their own on loopback. One hospital behaves for some rounds, then sends forty
times its change, and is named: that ends its part in the run, so each repetition is a deployment of its own. What is
compared is of one run: the round of the dispute with the rounds before it. Seconds are of the wall clock.
"""

import itertools
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from common.errors import RunError
from common.provenance import machine, versions
from common.secagg.phases import Phase
from common.telemetry.events import AttackRefused, Event, Exchange, RoundDone
from deploy.command import command, json_file_option
from deploy.json_report import write_json_report
from tests.support.deployed import DISPUTED, Deployed, deployed_in
from tests.support.garbles import ORDER, Garble

CHEAT = "hospital-2"

FIRST = 2
"""Rounds that are left out: in the first hospitals read their data and exchange keys."""

AFTER = 2
"""Rounds that are waited for after the one with the dispute."""


@dataclass(frozen=True)
class DisputeCost:
    """What one dispute of one run took, in seconds of the wall clock and bytes to all hospitals together."""

    plain_rounds: int
    plain_seconds: float
    """From the end of a round to the end of the next one, without a dispute; the median of those before it."""
    disputed_seconds: float
    """The same of the round with the dispute, to the end of the verdict."""
    disputed_to_plain: float
    dispute_seconds: float
    """The seconds of its exchange alone."""
    verdict_seconds: float
    """Likewise."""
    next_to_plain: float
    """The round after it, whose keys are exchanged anew, against one without a dispute."""
    download_bytes: int
    """What both exchanges sent to the hospitals."""


@command(
    "disputes",
    "Measure how long a deployed round with a dispute takes, against rounds without one.",
    "./confide dev bench disputes --repeat 3",
)
@click.option("--rounds", type=int, default=10, metavar="N", help="Rounds before the cheat begins.")
@click.option("--repeat", type=int, default=1, metavar="N", help="Deployments, each with one dispute.")
@json_file_option()
def main(rounds: int, repeat: int, json_file: Path | None) -> int:
    """Measure, print, and write JSON where asked."""
    if rounds < 1 or repeat < 1:
        raise RunError(f"--rounds and --repeat must be at least 1, got {rounds} and {repeat}")
    costs = []
    for number in range(1, repeat + 1):
        cost = measure(rounds)
        costs.append(cost)
        told = "  ".join(f"{name} {value:.4g}" for name, value in asdict(cost).items())
        print(f"dispute {number}: {told}", flush=True)
    ratio = statistics.median(cost.disputed_to_plain for cost in costs)
    print(f"a round with a dispute takes {ratio:.2f} times one without (median of {repeat})")
    if json_file is not None:
        facts: dict[str, Any] = {
            "disputes": [asdict(cost) for cost in costs],
            "disputed_to_plain": ratio,
            "hospitals": DISPUTED.experiment.num_clients,
            "machine": machine(),
            "versions": versions(),
            "commit": versions()["commit"],
        }
        write_json_report(json_file, facts)
    return 0


def measure(rounds: int) -> DisputeCost:
    """Deploy a run, let one hospital cheat after some rounds, and return what the dispute cost."""
    with tempfile.TemporaryDirectory() as folder:
        garbling = {CHEAT: "tests.e2e.garbling_hospital"}
        with deployed_in(Path(folder) / "run", DISPUTED, modules=garbling) as deployed:
            deployed.everyone_takes_part()
            begun = len(ended(deployed.events))
            deployed.wait(lambda: len(ended(deployed.events)) >= begun + FIRST + rounds, "rounds must end")
            (deployed.members[CHEAT].state / ORDER).write_text(Garble.SIGNED_SCALED)
            deployed.wait(lambda: named(deployed), "the cheat must be named")
            seen = len(ended(deployed.events))
            deployed.wait(lambda: len(ended(deployed.events)) >= seen + AFTER, "the run must go on")
            return cost_of(deployed.events, begun + FIRST)


def named(deployed: Deployed) -> list[AttackRefused]:
    return [event for event in deployed.events if isinstance(event, AttackRefused) and event.code == "cheat_found"]


def ended(events: Sequence[Event]) -> list[float]:
    """Return when each round ended that gave a step."""
    return [event.time for event in events if isinstance(event, RoundDone)]


def cost_of(events: Sequence[Event], first: int) -> DisputeCost:
    """Return what the one dispute among a run's events cost.

    Args:
        events: of the run.
        first: how many rounds of it are left out.
    """
    dispute, verdict = (
        next(event for event in events if isinstance(event, Exchange) and event.phase == phase)
        for phase in (Phase.DISPUTE.value, Phase.VERDICT.value)
    )
    before = [time for time in ended(events) if time < dispute.time][first:]
    after = [time for time in ended(events) if time > verdict.time]
    plain = statistics.median(later - earlier for earlier, later in itertools.pairwise(before))
    disputed = verdict.time - before[-1]
    return DisputeCost(
        plain_rounds=len(before) - 1,
        plain_seconds=plain,
        disputed_seconds=disputed,
        disputed_to_plain=disputed / plain,
        dispute_seconds=dispute.seconds,
        verdict_seconds=verdict.seconds,
        next_to_plain=(after[0] - verdict.time) / plain,
        download_bytes=dispute.download_bytes + verdict.download_bytes,
    )
