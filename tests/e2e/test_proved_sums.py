"""Proved sums in a deployment: a server that chooses the model is refused by name, over Flower and real processes."""

from collections.abc import Iterator

import pytest

from common.config import replace
from common.telemetry.events import AttackRefused, Event, Refusal
from tests.support.deployed import CONFIG, Deployed, deployed_in
from tests.support.sum_lies import LIE, LIES, VICTIM

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

PROVED = replace(CONFIG, aggregation={"proved_sums": True, "most_void_rounds": 1000})

FAST = (
    "a sum with a unit more",
    "a sum without one survivor",
    "two commitments swapped",
    "another optimiser's state",
    "another model",
    "the model of the seed again, with another's hash",
)
CODES = {
    **{lie: code for lie, (_, code) in LIES.items()},
    # By the time that it is told, this hospital has followed a sum, and knows more than the model of the seed.
    "the model of the seed again, with another's hash": "stale_model",
}
NOT_OF_THIS_MODEL = ("a sum with another weight", "a sum with other randomness")
"""They bend an entry whose place is that of another model."""
SLOW = tuple(lie for lie in LIES if lie not in FAST + NOT_OF_THIS_MODEL)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("proved") / "run"
    with deployed_in(folder, PROVED, server="tests.e2e.lying_server") as running:
        yield running


def refusals(events: list[Event]) -> list[AttackRefused | Refusal]:
    return [event for event in events if isinstance(event, AttackRefused | Refusal)]


def test_an_honest_run_goes_on_without_a_refusal(deployed: Deployed) -> None:
    for _ in range(3):
        deployed.everyone_takes_part()
    assert not refusals(deployed.events)


@pytest.mark.parametrize("lie", [*FAST, *(pytest.param(lie, marks=pytest.mark.slow) for lie in SLOW)])
def test_a_lie_is_refused_by_name_and_the_hospital_follows_again(deployed: Deployed, lie: str) -> None:
    deployed.everyone_takes_part()
    seen = len(deployed.events)
    order = deployed.deployment.consortium.server_state / LIE
    order.write_text(lie)
    deployed.wait(lambda: refusals(deployed.events[seen:]), f"{VICTIM} must refuse {lie}")
    order.unlink()
    told = refusals(deployed.events[seen:])[0]
    assert (told.hospital, told.code) == (VICTIM, CODES[lie])
    deployed.wait(lambda: told.round in deployed.sums(), "the round must have a sum without the one that was lied to")
    assert deployed.sums()[told.round] == set(deployed.sizes) - {VICTIM}
    deployed.everyone_takes_part()
