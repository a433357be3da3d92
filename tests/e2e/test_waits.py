"""Flower's waits are shortened in what is deployed: an exchange is over long before Flower alone would look for it."""

import pytest

from common.secagg.phases import Phase
from tests.support.deployed import Deployed

FLOWER_LOOKS_EVERY_SECONDS = 3.0
"""By itself, a SuperNode that has found no message polls for the next one after this time."""

ROUNDS = 5


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_small_exchanges_end_before_flower_alone_would_look_for_them(deployed: Deployed) -> None:
    deployed.everyone_takes_part()
    first = deployed.latest_sum()
    deployed.wait(lambda: deployed.latest_sum() >= first + ROUNDS, "rounds must go on")
    # The last exchange of a round: all open the sum, or, where one is missing, reveal shares.
    last = {**deployed.exchanges(Phase.UNMASKING), **deployed.exchanges(Phase.FULL_UNMASKING)}
    seconds = [exchange.seconds for number, exchange in last.items() if number > first]
    assert len(seconds) >= ROUNDS
    # With Flower's own waits not one would be shorter; a busy machine may draw out some of them.
    assert min(seconds) < FLOWER_LOOKS_EVERY_SECONDS / 2, seconds
