"""Who a run trains on is counted once before round 1, on real processes, and told by command, report and ledger."""

from pathlib import Path

import pytest

from common.settings import SERVER_SETTINGS_FILE, ServerSettings, free_port
from common.telemetry.events import Counted, RoundDone
from tests.support.consortium import Consortium

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

HOSPITALS = ("st-anne", "st-john", "st-mary")
EPSILON = 0.5


def test_who_is_trained_on_is_counted_before_training_and_nothing_suppressed_is_shown_as_0(tmp_path: Path) -> None:
    asked = (f"evaluation.statistics_epsilon={EPSILON}", f"hospital.allow_statistics_epsilon={EPSILON}")
    consortium = Consortium(tmp_path, len(HOSPITALS), asked)
    ports = ("--fleet-port", str(free_port()), "--enrolment-port", str(free_port()), "--runtime-port", str(free_port()))
    try:
        consortium.start_server(["127.0.0.1"], ports)
        for name in HOSPITALS:
            consortium.join(name, consortium.invite(name), ("--runtime-port", str(free_port())))
        consortium.wait_for_rounds(2, len(HOSPITALS), 300)
        events = consortium.events()
        (counted,) = [event for event in events if isinstance(event, Counted)]
        first = next(event for event in events if isinstance(event, RoundDone))
        assert events.index(counted) < events.index(first)
        assert 0 < counted.epsilon <= EPSILON
        assert {"class", "view", "sex", "age in years"} <= counted.tables.keys()
        bins = [count for table in counted.tables.values() for count in table.values()]
        assert None in bins  # Shards say nothing of sex and age, so most of these bins are noise.
        assert all(count is None or count >= counted.least for count in bins)
        run = ServerSettings.read(consortium.state / SERVER_SETTINGS_FILE).run
        shown = consortium.deploy("statistics", str(run))
        assert "suppressed (below" in shown
        assert "that is not 0" in " ".join(shown.split())
        assert " 0 (" not in shown
        for name in HOSPITALS:
            ledger = consortium.deploy("hospital", "ledger", "show", "--state", str(consortium.hospital_state(name)))
            assert "statistics spent: ε = 0.5" in ledger or "statistics spent: ε = 0.4" in ledger
    finally:
        consortium.stop()
