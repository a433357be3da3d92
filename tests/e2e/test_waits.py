"""Flower's waits are shortened in what is deployed: an exchange is over long before Flower alone would look for it."""

from pathlib import Path

import pytest

from common.secagg.phases import Phase
from tests.support.deployed import deployed_in

FLOWER_LOOKS_EVERY_SECONDS = 3.0
"""By itself, a SuperNode that has found no message polls for the next one after this time."""

ROUNDS = 5


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_small_exchanges_end_before_flower_alone_would_look_for_them(tmp_path: Path) -> None:
    with deployed_in(tmp_path / "run") as deployed:
        deployed.everyone_takes_part()
        first = deployed.latest_sum()
        deployed.wait(lambda: deployed.latest_sum() >= first + ROUNDS, "rounds must go on")
        seconds = [
            exchange.seconds for number, exchange in deployed.exchanges(Phase.UNMASKING).items() if number > first
        ]
        assert len(seconds) >= ROUNDS
        # With Flower's own waits not one would be shorter; a busy machine may draw out some of them.
        assert min(seconds) < FLOWER_LOOKS_EVERY_SECONDS / 2, seconds
