"""A deployed hospital sends forty times its change: it is named in its round by everybody, and the run goes on."""

import json
from collections.abc import Iterator

import pytest

from common.audit.chain import AUDIT_FILE
from common.config import replace
from common.telemetry.events import AttackRefused
from tests.support.deployed import CONFIG, Deployed, deployed_in
from tests.support.garbles import ORDER, Garble

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

CHEAT = "hospital-2"

DISPUTED = replace(
    CONFIG,
    experiment={"rounds": 300},
    privacy={"mode": "local", "accountant": "rdp"},
    training={"sample_rate": 0.5},
    aggregation={"proved_sums": True, "norm_bound": 2.0, "disputes": True},
    hospital={"allow_disputes": True},
)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("disputes") / "run"
    with deployed_in(folder, DISPUTED, modules={CHEAT: "tests.e2e.garbling_hospital"}) as running:
        yield running


def refused(deployed: Deployed) -> list[AttackRefused]:
    return [event for event in deployed.events if isinstance(event, AttackRefused)]


def named(deployed: Deployed, hospital: str) -> list[tuple[int, str, str]]:
    lines = (deployed.members[hospital].state / AUDIT_FILE).read_text().splitlines()
    bodies = [json.loads(line)["body"] for line in lines]
    return [(body["round_number"], body["hospital"], body["fault"]) for body in bodies if body["kind"] == "named"]


def test_forty_times_a_change_is_named_by_everybody_and_the_run_goes_on(deployed: Deployed) -> None:
    deployed.everyone_takes_part()
    assert refused(deployed) == []
    order = deployed.members[CHEAT].state / ORDER
    order.write_text(Garble.SIGNED_SCALED)
    deployed.wait(lambda: any(event.code == "cheat_found" for event in refused(deployed)), "the cheat must be named")
    order.unlink()  # Behaving again does not bring it back.
    (found,) = [event for event in refused(deployed) if event.code == "cheat_found"]
    assert found.hospital == CHEAT
    assert {(event.round, event.code) for event in refused(deployed)} == {
        (found.round, "sum_norm"),
        (found.round, "cheat_found"),
    }
    others = set(deployed.sizes) - {CHEAT}
    deployed.wait(lambda: deployed.latest_sum() > found.round + 4, "the run must go on")
    assert all(hospitals == others for number, hospitals in deployed.sums().items() if number > found.round)
    for hospital in deployed.sizes:
        assert named(deployed, hospital) == [(found.round, CHEAT, "length")]
