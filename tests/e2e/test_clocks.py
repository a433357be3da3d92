"""Clocks of a hospital or of the server that jump while a run goes on: by name, and over when they are right again."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from common.secagg.phases import Phase
from common.telemetry.events import AttackRefused, HospitalLost
from deploy.demo.loopback import SERVER
from tests.support.deployed import CONFIG, Deployed, deployed_in, start_anew
from tests.support.shifted_clock import Clock

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

ODD = "hospital-3"
WITHIN, BEYOND = 240.0, 900.0
"""Seconds: the SuperLink allows five minutes."""
TURNED_AWAY = "set this machine's clock"


def go_by_a_clock(deployed: Deployed, name: str) -> Clock:
    """Start the server or a hospital anew, with a clock of its own, and wait until everyone takes part."""
    deployment = deployed.deployment
    clock = Clock(deployment.folder / f"{name}.clock")
    if name == SERVER:
        deployment.supervisor.stop([SERVER])
        deployment.start_server(clock.environment())
    else:
        start_anew(deployment, name, environment=clock.environment())
    deployed.everyone_takes_part()
    return clock


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[Deployed]:
    with deployed_in(tmp_path / "run") as deployed:
        deployed.everyone_takes_part()
        yield deployed
        # Whatever a clock did, no exchange waited longer than it may, by the machine's clock.
        deadline = CONFIG.transport.exchange_deadline_seconds
        for phase in (Phase.SHARE_KEYS, Phase.MASKED_INPUT, Phase.UNMASKING, Phase.FULL_UNMASKING):
            assert all(exchange.seconds < deadline + 2 for exchange in deployed.exchanges(phase).values())
        assert not [event for event in deployed.events if isinstance(event, AttackRefused)]


def turned_away(deployed: Deployed, hospital: str) -> bool:
    """Say whether a hospital's own log says that the server refuses it for its clock."""
    return TURNED_AWAY in (deployed.deployment.folder / "logs" / hospital / "supernode.log").read_text()


def everyone_else_goes_on(deployed: Deployed) -> None:
    seen = deployed.latest_sum()
    others = set(deployed.sizes) - {ODD}
    deployed.wait(
        lambda: sum(number > seen and hospitals == others for number, hospitals in deployed.sums().items()) >= 2,
        "two rounds must go on without it",
    )


@pytest.mark.parametrize("seconds", [WITHIN, -WITHIN])
def test_a_hospital_whose_clock_jumps_by_minutes_stays_in_every_sum(deployed: Deployed, seconds: float) -> None:
    clock = go_by_a_clock(deployed, ODD)
    clock.set(seconds)
    first = deployed.latest_sum() + 1
    deployed.wait(lambda: deployed.latest_sum() > first + 3, "the run must go on")
    assert all(hospitals == set(deployed.sizes) for number, hospitals in deployed.sums().items() if number >= first)


@pytest.mark.parametrize("seconds", [BEYOND, -BEYOND])
def test_one_whose_clock_jumps_further_is_turned_away_by_name_until_it_is_set(
    deployed: Deployed, seconds: float
) -> None:
    clock = go_by_a_clock(deployed, ODD)
    seen = len(deployed.events)
    clock.set(seconds)
    everyone_else_goes_on(deployed)
    deployed.wait(
        lambda: any(isinstance(event, HospitalLost) and event.hospital == ODD for event in deployed.events[seen:]),
        "the server must say that it is lost",
    )
    assert turned_away(deployed, ODD)
    clock.set(0)
    deployed.everyone_takes_part()


@pytest.mark.parametrize("seconds", [WITHIN, -WITHIN])
def test_a_run_outlives_a_servers_clock_that_jumps_by_more_than_an_exchange_may_last(
    deployed: Deployed, seconds: float
) -> None:
    assert abs(seconds) > CONFIG.transport.exchange_deadline_seconds
    clock = go_by_a_clock(deployed, SERVER)
    clock.set(seconds)
    deployed.everyone_takes_part()
    deployed.everyone_takes_part()


@pytest.mark.parametrize("seconds", [BEYOND, -BEYOND])
def test_a_servers_clock_that_jumps_further_stops_the_run_until_it_is_set(deployed: Deployed, seconds: float) -> None:
    clock = go_by_a_clock(deployed, SERVER)
    clock.set(seconds)
    deployed.wait(lambda: all(turned_away(deployed, name) for name in deployed.sizes), "every hospital must be told")
    done = deployed.latest_sum()
    clock.set(0)
    deployed.everyone_takes_part()
    assert deployed.latest_sum() > done
