"""A hospital is killed or stalled at points of a deployed round: the sum is the survivors', and it comes back."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.processes import children_of
from common.secagg.phases import Phase
from common.telemetry.events import AttackRefused, Dropout
from tests.support.deployed import Deployed, deployed_in

FLOWER_HEARTBEAT_SECONDS = 60.0


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    with deployed_in(tmp_path_factory.mktemp("kills") / "run") as running:
        yield running


AFTER_ITS_VECTOR = {
    (Phase.MASKED_INPUT, "after"),
    (Phase.FULL_UNMASKING, "during"),
}
FAST = [(Phase.MASKED_INPUT, "during")]
SLOW = [
    (Phase.FULL_UNMASKING, "during"),
    # After one exchange is before the next; after the last one of a round is before the first of the next round.
    (Phase.FULL_UNMASKING, "after"),
    (Phase.MASKED_INPUT, "after"),
]


@pytest.mark.e2e
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("phase", "moment"), [*FAST, *(pytest.param(*point, marks=pytest.mark.slow) for point in SLOW)]
)
def test_a_killed_hospital_costs_a_round_nothing_but_itself(deployed: Deployed, phase: Phase, moment: str) -> None:
    deployed.everyone_takes_part()
    others, victim = frozenset(["hospital-1", "hospital-2", "hospital-3"]), "hospital-4"
    number = deployed.reach(victim, phase, moment)
    deployed.kill(victim)
    number += (phase, moment) == (Phase.FULL_UNMASKING, "after")
    deployed.wait(lambda: deployed.latest_sum() > number, "the run must go on")
    sums = deployed.sums()
    assert sums[number] == (others | {victim} if (phase, moment) in AFTER_ITS_VECTOR else others)
    assert sums[deployed.latest_sum()] == others
    deployed.revive()


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("process", ["client.resident", "client.flower.supernode"])
def test_a_hospital_starts_its_killed_process_again_by_itself(deployed: Deployed, process: str) -> None:
    deployed.everyone_takes_part()
    victim = "hospital-2"
    processes = children_of(deployed.pid(victim))
    number = deployed.reach(victim, Phase.MASKED_INPUT, "during")
    os.kill(next(pid for pid, command in processes.items() if process in command), signal.SIGKILL)
    deployed.wait(lambda: deployed.latest_sum() >= number, "the run must go on")
    if process == "client.resident":
        assert deployed.sums()[number] == set(deployed.sizes) - {victim}
    deployed.everyone_takes_part()


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_a_hospital_that_stalls_has_dropped_out_long_before_flower_notices(deployed: Deployed) -> None:
    deployed.everyone_takes_part()
    victim = "hospital-3"
    stalled = [deployed.pid(victim), *children_of(deployed.pid(victim))]
    number = deployed.reach(victim, Phase.MASKED_INPUT, "during")
    for pid in stalled:
        os.kill(pid, signal.SIGSTOP)
    try:
        deployed.wait(lambda: deployed.latest_sum() > number, "the run must go on")
    finally:
        for pid in stalled:
            os.kill(pid, signal.SIGCONT)
    exchange = deployed.exchanges(Phase.MASKED_INPUT)[number]
    assert exchange.missing == (victim,)
    assert exchange.seconds < FLOWER_HEARTBEAT_SECONDS / 2
    assert any(isinstance(event, Dropout) and event.hospital == victim for event in deployed.events)
    assert deployed.sums()[number] == set(deployed.sizes) - {victim}
    # Its late vector is of a round that is over; it takes part again and nobody has refused anything.
    deployed.everyone_takes_part()
    assert not [event for event in deployed.events if isinstance(event, AttackRefused)]


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("phase", [Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS])
def test_a_hospital_killed_while_the_first_keys_are_exchanged_joins_later(tmp_path: Path, phase: Phase) -> None:
    with deployed_in(tmp_path / "run") as deployed:
        deployed.reach("hospital-1", phase, "during")
        deployed.kill("hospital-1")
        deployed.wait(lambda: deployed.latest_sum() > 0, "the run must begin without it")
        assert next(iter(deployed.sums().values())) == {"hospital-2", "hospital-3", "hospital-4"}
        deployed.revive()
