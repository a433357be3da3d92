"""A deployed hospital that cheats is named in its round by everybody, and a server that lies names nobody.

Who is named is out of the rest of its run, so each cheat has a deployment of its own.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.audit.chain import AUDIT_FILE
from common.telemetry.events import AttackRefused
from tests.support.deployed import DISPUTED, Deployed, deployed_in
from tests.support.dispute_lies import BEND_LATE, CLAIM, FRAME, FRAMED, WITHHOLD
from tests.support.garbles import ORDER, Garble
from tests.support.sum_lies import LIE, VICTIM

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

CHEAT = "hospital-2"


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[Deployed]:
    garbling = {CHEAT: "tests.e2e.garbling_hospital"}
    with deployed_in(tmp_path / "run", DISPUTED, modules=garbling, server="tests.e2e.lying_server") as running:
        yield running


def refused(deployed: Deployed) -> list[AttackRefused]:
    return [event for event in deployed.events if isinstance(event, AttackRefused)]


def kinds(deployed: Deployed, hospital: str) -> list[str]:
    lines = (deployed.members[hospital].state / AUDIT_FILE).read_text().splitlines()
    return [json.loads(line)["body"]["kind"] for line in lines]


def named(deployed: Deployed, hospital: str) -> list[tuple[int, str, str]]:
    lines = (deployed.members[hospital].state / AUDIT_FILE).read_text().splitlines()
    bodies = [json.loads(line)["body"] for line in lines]
    return [(body["round_number"], body["hospital"], body["fault"]) for body in bodies if body["kind"] == "named"]


def found(deployed: Deployed, garble: Garble) -> AttackRefused:
    """Let the cheat cheat until it is named, and behave again, which does not bring it back."""
    deployed.everyone_takes_part()
    assert refused(deployed) == []
    order = deployed.members[CHEAT].state / ORDER
    order.write_text(garble)
    deployed.wait(lambda: any(event.code == "cheat_found" for event in refused(deployed)), "the cheat must be named")
    order.unlink()
    (event,) = [event for event in refused(deployed) if event.code == "cheat_found"]
    assert event.hospital == CHEAT
    return event


def goes_on_without_it(deployed: Deployed, cheated: AttackRefused) -> None:
    others = set(deployed.sizes) - {CHEAT}
    deployed.wait(lambda: deployed.latest_sum() > cheated.round + 4, "the run must go on")
    assert all(hospitals == others for number, hospitals in deployed.sums().items() if number > cheated.round)


CHEATS = [
    (Garble.SIGNED_SCALED, "sum_norm", {"length"}),
    pytest.param(Garble.SIGNED_TEN, "sum_norm", {"length"}, marks=pytest.mark.slow),
    pytest.param(Garble.SIGNED_TWENTY, "sum_norm", {"length"}, marks=pytest.mark.slow),
    pytest.param(Garble.SIGNED_THOUSAND, "sum_norm", {"length"}, marks=pytest.mark.slow),
    pytest.param(Garble.SIGNED_FLIPPED, "sum_norm", {"length"}, marks=pytest.mark.slow),
    pytest.param(Garble.SIGNED_NOISE, None, {"entry", "other_vector"}, marks=pytest.mark.slow),
    pytest.param(Garble.OTHER_VECTOR, "false_sum", {"other_vector"}, marks=pytest.mark.slow),
    pytest.param(Garble.BAD_COMMITMENT, "commitment_bytes", {"no_commitment"}, marks=pytest.mark.slow),
    pytest.param(Garble.SCALED_AND_OTHER_KEY, "sum_norm", {"other_key"}, marks=pytest.mark.slow),
    pytest.param(Garble.SCALED_AND_SILENT, "sum_norm", {"not_opened"}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("garble", "code", "faults"), CHEATS)
def test_a_cheat_is_named_by_everybody_and_the_run_goes_on(
    deployed: Deployed, garble: Garble, code: str | None, faults: set[str]
) -> None:
    cheated = found(deployed, garble)
    assert {event.round for event in refused(deployed)} == {cheated.round}
    is_silent = garble is Garble.SCALED_AND_SILENT
    # A cheat that shows nothing refuses the verdict, too. What the server refuses of another is told about the cheat.
    told = {event.code for event in refused(deployed) if not (is_silent and event.hospital == CHEAT)}
    codes = told - {"cheat_found"}
    assert codes == {code} or (code is None and codes <= {"sum_bound", "false_sum", "implausible_sum"})
    goes_on_without_it(deployed, cheated)
    finders = set(deployed.sizes) - ({CHEAT} if is_silent else set())
    found_by_all = {tuple(named(deployed, hospital)) for hospital in finders}
    assert len(found_by_all) == 1
    (((number, hospital, fault),),) = found_by_all
    assert (number, hospital) == (cheated.round, CHEAT)
    assert fault in faults
    shown = {hospital for hospital in deployed.sizes if kinds(deployed, hospital).count("shown")}
    assert shown == (set() if garble is Garble.BAD_COMMITMENT else set(deployed.sizes))


def bid(deployed: Deployed, lie: str) -> Path:
    order = deployed.deployment.consortium.server_state / LIE
    order.write_text(lie)
    return order


def test_a_server_that_says_a_sum_fails_gets_no_honest_hospital_to_show_anything(deployed: Deployed) -> None:
    deployed.everyone_takes_part()
    order = bid(deployed, CLAIM)

    def refusing() -> set[str]:
        return {event.hospital or "" for event in refused(deployed) if event.code == "unfounded_dispute"}

    deployed.wait(lambda: refusing() == set(deployed.sizes), "everybody must refuse")
    order.unlink()
    number = deployed.latest_sum()
    deployed.wait(lambda: deployed.latest_sum() > number, "the run must go on, whomever the server leaves out now")
    for hospital in deployed.sizes:
        assert "refused" in kinds(deployed, hospital)
        assert not {"shown", "named"} & set(kinds(deployed, hospital))


@pytest.mark.slow
def test_a_server_cannot_frame_a_hospital_with_a_key_that_it_made_up(deployed: Deployed) -> None:
    bid(deployed, FRAME)
    cheated = found(deployed, Garble.SIGNED_SCALED)
    goes_on_without_it(deployed, cheated)
    assert {tuple(named(deployed, hospital)) for hospital in (VICTIM, "hospital-3", FRAMED)} == {
        ((cheated.round, CHEAT, "length"),)
    }


@pytest.mark.slow
def test_a_hospital_from_which_a_verdict_was_withheld_finds_the_cheat_with_the_next_request(deployed: Deployed) -> None:
    bid(deployed, WITHHOLD)
    cheated = found(deployed, Garble.SIGNED_SCALED)
    goes_on_without_it(deployed, cheated)
    told = {tuple(named(deployed, hospital)) for hospital in deployed.sizes if hospital != CHEAT}
    assert told == {((cheated.round, CHEAT, "length"),)}


@pytest.mark.slow
def test_evidence_that_a_server_has_bent_is_refused_later_and_names_nobody(deployed: Deployed) -> None:
    bid(deployed, BEND_LATE)
    cheated = found(deployed, Garble.SIGNED_SCALED)

    def refusals() -> set[str]:
        return {event.code for event in refused(deployed) if event.hospital == VICTIM}

    deployed.wait(refusals, f"{VICTIM} must refuse the evidence")
    assert refusals() == {"dispute_evidence"}
    goes_on_without_it(deployed, cheated)
    assert named(deployed, VICTIM) == []
    assert named(deployed, FRAMED) == [(cheated.round, CHEAT, "length")]
