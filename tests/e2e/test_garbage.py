"""A hospital sends garbage for its vector in a deployment: it is named with the round, and the others' sum goes on."""

from collections.abc import Iterator

import pytest

from common.telemetry.events import AttackRefused, Dropout, Event, Refusal
from tests.support.deployed import Deployed, deployed_in
from tests.support.garbles import ORDER, Garble

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

GARBLER = "hospital-2"


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("garbage") / "run"
    with deployed_in(folder, modules={GARBLER: "tests.e2e.garbling_hospital"}) as running:
        yield running


def verdict(deployed: Deployed, garble: Garble) -> Event:
    """Let the hospital garble until the server has said what it makes of it, then be honest again."""
    deployed.everyone_takes_part()
    seen = len(deployed.events)
    order = deployed.members[GARBLER].state / ORDER
    order.write_text(garble)

    def about_it() -> list[Event]:
        return [event for event in deployed.events[seen:] if isinstance(event, AttackRefused | Refusal | Dropout)]

    deployed.wait(about_it, f"the server must say something about {garble}")
    order.unlink()
    return about_it()[0]


FAST = [
    (Garble.NOISE_FOR_MESSAGE, "Fault"),
    (Garble.ONE_SHORT, "vector_length"),
    (Garble.ARCHIVE, "Fault"),
    (Garble.NOISE_FOR_OBJECT, "Fault"),
    (Garble.NO_REPLY, "Fault"),
    (Garble.NOISE_FOR_VECTOR, "vector_hash"),
]
SLOW = [
    (Garble.NO_MESSAGE, "Fault"),
    (Garble.NO_VECTOR, "vector_length"),
    (Garble.TWO_VECTORS, "Fault"),
    (Garble.OTHER_RING, "vector_ring"),
    (Garble.NOISE_FOR_FILE, "Fault"),
    (Garble.HUGE_CLAIM, "Fault"),
]


@pytest.mark.parametrize(
    ("garble", "said"), [*FAST, *(pytest.param(*garble, marks=pytest.mark.slow) for garble in SLOW)]
)
def test_garbage_is_refused_by_name_and_the_others_sum_goes_on(deployed: Deployed, garble: Garble, said: str) -> None:
    told = verdict(deployed, garble)
    assert isinstance(told, AttackRefused | Refusal), told
    assert (told.hospital, told.code) == (GARBLER, said)
    deployed.wait(lambda: told.round in deployed.sums(), "the round must have a sum")
    assert deployed.sums()[told.round] == set(deployed.sizes) - {GARBLER}
    deployed.everyone_takes_part()


def test_noise_that_is_signed_costs_a_few_rounds_and_the_run_goes_on_without_its_hospital(deployed: Deployed) -> None:
    """Under masks nobody can say whose vector it was, so the server tries who. It is last: nobody is let in again."""
    deployed.everyone_takes_part()
    seen, others = len(deployed.events), set(deployed.sizes) - {GARBLER}
    (deployed.members[GARBLER].state / ORDER).write_text(Garble.SIGNED_NOISE)

    def spoilt() -> list[AttackRefused]:
        return [event for event in deployed.events[seen:] if isinstance(event, AttackRefused)]

    deployed.wait(spoilt, "a sum must be called implausible")
    last = spoilt()[0].round + len(deployed.sizes)
    deployed.wait(lambda: deployed.latest_sum() > last + 5, "the run must go on")
    assert {event.code for event in spoilt()} == {"implausible_sum"}
    assert len(spoilt()) <= len(deployed.sizes)
    assert all(hospitals == others for number, hospitals in deployed.sums().items() if number > last)
