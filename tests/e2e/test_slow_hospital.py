"""A hospital on a machine ten times slower: a patient consortium waits for it, an impatient one goes on by name."""

from pathlib import Path

import pytest

from common.config import replace
from common.secagg.phases import Phase
from common.telemetry.events import AttackRefused, Dropout
from tests.e2e.slowing import slowed
from tests.support.deployed import CONFIG, deployed_in

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SLOW = "hospital-3"
TIMES = 10.0
PATIENT = replace(CONFIG, transport={"straggler_seconds": 30.0})
IMPATIENT = replace(
    CONFIG, training={"local_epochs": 20}, transport={"straggler_seconds": 1.0, "straggler_factor": 2.0}
)
"""Training takes most of a round, and a straggler gets twice as long as the others."""


@pytest.mark.slow
def test_a_patient_consortium_has_a_hospital_ten_times_slower_in_its_sums(tmp_path: Path) -> None:
    with deployed_in(tmp_path / "run", PATIENT) as deployed:
        deployed.everyone_takes_part()
        with slowed(deployed.pid(SLOW), TIMES):
            first = deployed.latest_sum() + 2  # The round in hand began before.
            deployed.wait(lambda: deployed.latest_sum() > first, "the run must go on")
        assert all(deployed.sums()[number] == set(deployed.sizes) for number in (first, first + 1))


def test_an_impatient_one_goes_on_without_it_by_name_until_it_is_fast_enough(tmp_path: Path) -> None:
    with deployed_in(tmp_path / "run", IMPATIENT) as deployed:
        deployed.everyone_takes_part()
        with slowed(deployed.pid(SLOW), TIMES):
            seen = len(deployed.events)

            def dropouts() -> list[Dropout]:
                return [event for event in deployed.events[seen:] if isinstance(event, Dropout)]

            deployed.wait(dropouts, "the slow hospital must be counted as dropped")
            dropped = dropouts()[0]
            assert (dropped.hospital, dropped.phase) == (SLOW, Phase.MASKED_INPUT)
            deployed.wait(lambda: deployed.latest_sum() > dropped.round + 3, "the run must go on")
        assert deployed.sums()[dropped.round] == set(deployed.sizes) - {SLOW}
        deadline = IMPATIENT.transport.exchange_deadline_seconds
        assert all(exchange.seconds < deadline for exchange in deployed.exchanges(Phase.MASKED_INPUT).values())
        deployed.everyone_takes_part()
        assert not [event for event in deployed.events if isinstance(event, AttackRefused)]
