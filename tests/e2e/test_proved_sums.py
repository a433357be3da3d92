"""Proved sums in a deployment: a server that chooses the model is refused by name, over Flower and real processes."""

from collections.abc import Iterator
from functools import partial

import pytest

from common.audit.chain import AUDIT_FILE
from common.config import replace
from common.secagg.phases import Phase
from common.telemetry.events import AttackRefused, Dropout, Event, Refusal
from tests.support.deployed import CONFIG, Deployed, deployed_in, start_anew
from tests.support.garbles import ORDER, Garble
from tests.support.sum_lies import LIE, LIES, REMEMBERING, TO_JOINERS, UNSIGNED_HASH, VICTIM, WITHHELD

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

PROVED = replace(CONFIG, aggregation={"proved_sums": True})
VANISHING = "hospital-2"

FAST = (
    "a sum with a unit more",
    "a sum without one survivor",
    "two commitments swapped",
    "another optimiser's state",
    "another model",
    "the model of the seed again, with another's hash",
)
CODES = {
    **{lie: code for lie, (_, code) in (LIES | REMEMBERING).items()},
    # By the time that it is told, this hospital has followed a sum, and knows more than the model of the seed.
    "the model of the seed again, with another's hash": "stale_model",
}
NOT_OF_THIS_MODEL = ("a sum with another weight", "a sum with other randomness")
"""They bend an entry whose place is that of another model."""
SLOW = (*(lie for lie in LIES if lie not in FAST + NOT_OF_THIS_MODEL), *REMEMBERING)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("proved") / "run"
    garbling = {VANISHING: "tests.e2e.garbling_hospital"}
    with deployed_in(folder, PROVED, modules=garbling, server="tests.e2e.lying_server") as running:
        yield running


def refusals(events: list[Event]) -> list[AttackRefused | Refusal]:
    return [event for event in events if isinstance(event, AttackRefused | Refusal)]


def test_an_honest_run_goes_on_without_a_refusal(deployed: Deployed) -> None:
    for _ in range(3):
        deployed.everyone_takes_part()
    assert not refusals(deployed.events)


def refused(deployed: Deployed, lie: str, number: int = 1) -> AttackRefused | Refusal:
    """Let the server lie until its victim has refused so many times; return the last refusal."""
    deployed.everyone_takes_part()
    seen = len(deployed.events)
    order = deployed.deployment.consortium.server_state / LIE
    order.write_text(lie)
    deployed.wait(lambda: len(refusals(deployed.events[seen:])) >= number, f"{VICTIM} must refuse {lie}")
    order.unlink()
    told = refusals(deployed.events[seen:])[:number]
    assert {event.hospital for event in told} == {VICTIM}
    return told[-1]


def chain(deployed: Deployed, kind: str) -> int:
    """Return how many entries of a kind the victim's audit chain has."""
    return (deployed.members[VICTIM].state / AUDIT_FILE).read_text().count(f'"kind":"{kind}"')


@pytest.mark.parametrize("lie", [*FAST, *(pytest.param(lie, marks=pytest.mark.slow) for lie in SLOW)])
def test_a_lie_is_refused_by_name_and_the_hospital_follows_again(deployed: Deployed, lie: str) -> None:
    told = refused(deployed, lie)
    assert told.code == CODES[lie]
    deployed.wait(lambda: told.round in deployed.sums(), "the round must have a sum without the one that was lied to")
    assert deployed.sums()[told.round] == set(deployed.sizes) - {VICTIM}
    deployed.everyone_takes_part()


@pytest.mark.parametrize("lie", [pytest.param(lie, marks=pytest.mark.slow) for lie in TO_JOINERS])
def test_a_late_joiner_refuses_a_lie_and_joins_with_the_truth(deployed: Deployed, lie: str) -> None:
    """Its first refusal is of a sum, without which it must join late in the next round."""
    assert refused(deployed, lie, number=2).code == TO_JOINERS[lie][1]
    deployed.everyone_takes_part()


def test_a_commitments_hash_that_its_hospital_did_not_sign_opens_nothing(deployed: Deployed) -> None:
    told = refused(deployed, UNSIGNED_HASH)
    assert told.code == "unsigned_commitment"
    deployed.wait(lambda: told.round in deployed.sums(), "the others must open the sum")
    assert deployed.sums()[told.round] == set(deployed.sizes)
    deployed.everyone_takes_part()


def test_a_first_model_that_is_not_the_seeds_is_refused_by_a_hospital_that_begins_anew(deployed: Deployed) -> None:
    deployed.everyone_takes_part()
    seen, state = len(deployed.events), deployed.members[VICTIM].state
    order = deployed.deployment.consortium.server_state / LIE
    deployed.deployment.supervisor.stop([VICTIM])
    for kept in state.glob("proved-*"):
        kept.unlink()
    order.write_text("the model of the seed again, with another's hash")
    start_anew(deployed.deployment, VICTIM)

    def codes() -> set[str]:
        return {event.code for event in refusals(deployed.events[seen:]) if event.hospital == VICTIM}

    deployed.wait(lambda: "initial_model" in codes(), f"{VICTIM} must refuse the model")
    order.unlink()
    deployed.everyone_takes_part()


def test_a_survivor_that_vanishes_before_its_last_reply_spoils_no_proof(deployed: Deployed) -> None:
    deployed.everyone_takes_part()
    seen = len(deployed.events)
    order = deployed.members[VANISHING].state / ORDER
    order.write_text(Garble.NO_LAST_REPLY)

    def vanished() -> list[Refusal | Dropout]:
        return [
            event
            for event in deployed.events[seen:]
            if isinstance(event, Refusal | Dropout) and event.hospital == VANISHING
        ]

    deployed.wait(vanished, f"{VANISHING} must not answer")
    order.unlink()
    number = vanished()[0].round
    deployed.wait(lambda: deployed.latest_sum() > number, "the run must go on")
    assert number in deployed.exchanges(Phase.FULL_UNMASKING)
    assert deployed.sums()[number] == set(deployed.sizes)
    assert not [event for event in deployed.events[seen:] if isinstance(event, AttackRefused)]
    deployed.everyone_takes_part()


def is_void_so_often(deployed: Deployed, number: int) -> bool:
    return chain(deployed, "passed") == number


def test_sums_are_withheld_as_often_as_a_run_allows_and_no_more(deployed: Deployed) -> None:
    """It is last: no further sum may be withheld from this hospital."""
    order, allowed = deployed.deployment.consortium.server_state / LIE, len(deployed.sizes) - 1
    for number in range(1, allowed + 1):
        deployed.everyone_takes_part()
        assert chain(deployed, "passed") == number - 1
        order.write_text(WITHHELD)
        deployed.wait(partial(is_void_so_often, deployed, number), "the round must be void")
        order.unlink()
    assert refused(deployed, WITHHELD).code == "too_many_void_rounds"
    assert chain(deployed, "passed") == allowed
    deployed.everyone_takes_part()
