"""Whoever can write a hospital's disk puts its ledger back, or removes it, so that its budget is spent twice.

At 30890c7 with the agent's own audit chain beside it, a ledger put back was taken for the real one (3.994 was
reported again after a third round), and so was none at all (2.823 after the fourth).
"""

import shutil
from pathlib import Path
from typing import Any

import pytest

from client.ledger.ledger import LEDGER_FOLDER
from common.config import HospitalConfig
from common.run.round_terms import Purpose
from tests.support.twins import Led, Twins, described, hospital_data, quick_accounting

POLICY = HospitalConfig(
    delta=1e-3, stated_training_units=20, stated_validation_units=6, stated_test_units=6, allow_no_privacy=True
)


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize("changes", [{}, {"privacy": {"mode": "distributed"}}, {"privacy": {"mode": "none"}}])
def test_a_ledger_put_back_or_removed_stops_the_agent(
    changes: dict[str, dict[str, Any]], removed: bool, tmp_path: Path
) -> None:
    with quick_accounting():
        twins = Twins(tmp_path, 1, POLICY, (hospital_data(24), hospital_data(25)))
        server = Led(twins, described(1, **changes))
        assert server.lead(Purpose.TRAIN, release=0) is None
        ledgers = [twin.state / LEDGER_FOLDER for twin in twins.pair]
        for ledger in ledgers:
            shutil.copytree(ledger, ledger.with_name("kept"))
        assert server.lead(Purpose.TRAIN, release=1) is None
        for ledger in ledgers:
            shutil.rmtree(ledger)
            if not removed:
                ledger.with_name("kept").rename(ledger)
        twins.restart()
        server.run(described(2, **changes))
        refused = server.lead(Purpose.TRAIN)
        assert refused is not None
        assert refused.code == "ledger"
        assert refused.reason == "this hospital's records do not let it take part; its operator knows why"
        assert server.finished == 2


def test_a_ledger_that_nobody_touched_does_not_stop_it(tmp_path: Path) -> None:
    with quick_accounting():
        twins = Twins(tmp_path, 1, POLICY, (hospital_data(24), hospital_data(25)))
        server = Led(twins, described(1))
        assert server.lead(Purpose.TRAIN) is None
        twins.restart()
        server.run(described(2))
        assert server.lead(Purpose.TRAIN) is None
        assert server.finished == 2
