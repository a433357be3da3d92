"""A disk fills up under a deployment: whoever cannot write says so and does nothing, and space lets all go on."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from client.ledger.ledger import LEDGER_FOLDER
from common.config import replace
from common.processes import EXIT_REFUSED
from common.settings import CHECKPOINTS_FOLDER
from common.telemetry.events import Refusal, RunFinished, RunStarted
from deploy.demo.loopback import SERVER
from tests.e2e.small_disk import full, small_disk
from tests.support.deployed import CONFIG, PATIENCE_SECONDS, Deployed, deployed_in

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

VICTIM = "hospital-4"
UNNOTED = f"{VICTIM} could not note its answer on disk; it does not answer"
UNRECORDED = "this hospital's records do not let it take part; its operator knows why"
"""What the server hears; why is for the hospital's operator."""
PRIVATE = replace(
    CONFIG, privacy={"mode": "local", "target_epsilon": 8.0, "delta": 1.0e-3}, hospital={"epsilon_budget": 100.0},
    experiment={"rounds": 1000},
)  # fmt: skip


def refusal(deployed: Deployed, seen: int) -> Refusal:
    """Wait for what the victim says after the first ``seen`` events."""

    def said() -> list[Refusal]:
        return [event for event in deployed.events[seen:] if isinstance(event, Refusal)]

    deployed.wait(said, f"{VICTIM} must refuse")
    assert said()[0].hospital == VICTIM
    return said()[0]


def own_log(deployed: Deployed) -> str:
    return (deployed.members[VICTIM].logs / "agent.log").read_text()


def wait_for_the_end_of_the_server(deployed: Deployed, fill: Callable[[], None]) -> None:
    """Wait on a full disk: a server that removes an old checkpoint would have room for a new one."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while SERVER not in deployed.deployment.supervisor.ended():
        fill()
        assert time.monotonic() < give_up, "the server must end"
        time.sleep(0.1)


def test_a_hospital_with_a_full_disk_refuses_by_name_and_comes_back_with_space(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with small_disk(folder / "consortium" / VICTIM, 64) as disk, deployed_in(folder) as deployed:
        deployed.everyone_takes_part()
        seen = len(deployed.events)
        with full(disk):
            told = refusal(deployed, seen)
            # Its note of the answer or its audit chain, whichever it wrote next; each is written before it answers.
            assert told.reason == {"run": UNNOTED, "audit": UNRECORDED}[told.code]
            assert "No space left on device" in own_log(deployed)
            deployed.wait(lambda: deployed.latest_sum() > told.round, "the run must go on")
            assert deployed.sums()[deployed.latest_sum()] == set(deployed.sizes) - {VICTIM}
        deployed.everyone_takes_part()


@pytest.mark.slow
def test_a_hospital_whose_ledger_cannot_be_written_trains_no_more_and_the_others_do(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ledger = folder / "consortium" / VICTIM / LEDGER_FOLDER
    with small_disk(ledger, 4) as disk, deployed_in(folder, PRIVATE) as deployed:
        deployed.everyone_takes_part()
        seen = len(deployed.events)
        with full(disk):
            told = refusal(deployed, seen)
            assert (told.code, told.reason) == ("ledger", UNRECORDED)
            assert "training stops without it" in own_log(deployed)
            deployed.wait(lambda: deployed.latest_sum() > told.round, "the run must go on")
            assert deployed.sums()[deployed.latest_sum()] == set(deployed.sizes) - {VICTIM}


def test_a_server_that_cannot_write_a_checkpoint_ends_by_name_and_goes_on_from_the_last(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with small_disk(folder / CHECKPOINTS_FOLDER, 4) as disk, deployed_in(folder) as deployed:
        deployed.everyone_takes_part()
        with full(disk) as fill:
            wait_for_the_end_of_the_server(deployed, fill)
        (finished,) = (event for event in deployed.log.read_new() if isinstance(event, RunFinished))
        assert "a checkpoint could not be written: No space left on device" in finished.reason
        assert deployed.deployment.supervisor.exit_code(SERVER) == EXIT_REFUSED
        deployed.deployment.start_server()
        deployed.everyone_takes_part()
        resumed = [event for event in deployed.events if isinstance(event, RunStarted)][-1]
        assert resumed.resumed_from_round >= finished.rounds_done


@pytest.mark.slow
def test_a_server_on_a_disk_full_to_the_last_block_ends_and_goes_on_with_space(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with (
        small_disk(folder, 64) as disk,
        small_disk(folder / "consortium", 64),
        deployed_in(folder) as deployed,
    ):
        deployed.everyone_takes_part()
        before = deployed.latest_sum()
        with full(disk) as fill:
            wait_for_the_end_of_the_server(deployed, fill)
        assert deployed.deployment.supervisor.exit_code(SERVER) == EXIT_REFUSED
        # Whichever write came first has failed; the event itself may have had no room either.
        assert all("free space" in event.reason for event in deployed.log.read_new() if isinstance(event, RunFinished))
        deployed.deployment.start_server()
        deployed.everyone_takes_part()
        assert deployed.latest_sum() > before
