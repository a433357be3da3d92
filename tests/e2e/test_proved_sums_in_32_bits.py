"""Proved sums in a deployment whose ring has 32 bits, as in mode ``distributed``: a lie, and what an upload costs."""

import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.config import replace
from common.proved_sums.parameters import parameters_for
from common.telemetry.events import AttackRefused, Exchange, Refusal
from tests.support.deployed import CONFIG, Deployed, deployed_in, start_anew
from tests.support.sum_lies import LIE, VICTIM, WEIGHT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

MASKED = replace(
    CONFIG,
    experiment={"rounds": 300},
    privacy={"mode": "distributed", "accountant": "rdp"},
    training={"sample_rate": 0.5},
)
PROVED = replace(MASKED, aggregation={"proved_sums": True})
ROUNDS = 3


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[Deployed]:
    with deployed_in(tmp_path / "proved", PROVED, server="tests.e2e.lying_server") as running:
        yield running


def refused(deployed: Deployed) -> set[tuple[str | None, str]]:
    return {(event.hospital, event.code) for event in deployed.events if isinstance(event, AttackRefused | Refusal)}


def test_a_lie_is_refused_and_a_hospital_that_lost_its_model_joins_again(deployed: Deployed) -> None:
    for _ in range(ROUNDS):
        deployed.everyone_takes_part()
    assert not refused(deployed)
    order = deployed.deployment.consortium.server_state / LIE
    order.write_text("a sum with a unit more")
    deployed.wait(lambda: refused(deployed), f"{VICTIM} must refuse the sum")
    order.unlink()
    assert refused(deployed) == {(VICTIM, "false_sum")}
    deployed.everyone_takes_part()
    deployed.deployment.supervisor.stop([VICTIM])
    for kept in deployed.members[VICTIM].state.glob("proved-*"):
        kept.unlink()
    start_anew(deployed.deployment, VICTIM)
    deployed.everyone_takes_part()


def uploaded(deployed: Deployed) -> float:
    """Return the bytes that one hospital sends in a round in which all take part, of several rounds the median."""
    for _ in range(ROUNDS + 1):
        deployed.everyone_takes_part()
    bytes_of: dict[int, int] = defaultdict(int)
    for event in deployed.events:
        if isinstance(event, Exchange):
            bytes_of[event.round] += event.upload_bytes
    # The keys of later rounds ride on the one before; those of the first have exchanges of their own.
    whole = [number for number, hospitals in deployed.sums().items() if hospitals == set(deployed.sizes)]
    return statistics.median(bytes_of[number] for number in whole) / len(deployed.sizes)


@pytest.mark.slow
def test_the_proof_adds_25_kilobytes_to_an_upload_at_most(tmp_path: Path) -> None:
    sent = {}
    for name, config in (("proved", PROVED), ("masked", MASKED)):
        with deployed_in(tmp_path / name, config) as running:
            sent[name] = uploaded(running)
    more = sent["proved"] - sent["masked"]
    assert parameters_for(WEIGHT, 32, 4).upload_bytes <= more <= 25_000
