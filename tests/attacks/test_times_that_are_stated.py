"""A server reads how much data a hospital has from when its vector, its chain's line or its ledger's statement comes.

With ``hospital.answer_seconds`` a hospital states a time, and nothing of a vector that bears a time is made before it.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from client.agent import HospitalAgent
from common.audit.entries import Contributed
from common.config import HospitalConfig
from common.run.round_terms import Purpose
from common.secagg.masks import Mask
from tests.support.twins import Led, Twins, described, hospital_data, quick_accounting

STATED = 30.0
POLICY = HospitalConfig(
    delta=1e-3,
    stated_training_units=20,
    stated_validation_units=6,
    stated_test_units=6,
    answer_seconds=STATED,
)


class Clock:
    """A hospital's clock, on which a vector takes as long as the test says and nothing else takes any time."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.seen: list[tuple[str, float]] = []
        """What others see of a vector, and when it was made."""

    def lead(self, agent: HospitalAgent, takes: float) -> None:
        """Make an agent live by this clock."""
        here = agent._here

        def masked(segment: Any, masks: Sequence[Mask]) -> None:  # noqa: ANN401 - an array of a ring
            self.seconds += takes / 2  # There are two segments.
            here.apply_masks(segment, masks)

        def pause(seconds: float) -> None:
            self.seconds += seconds

        def record(entry: Any) -> None:  # noqa: ANN401 - as the real one
            if isinstance(entry, Contributed):
                self.seen.append(("chain", self.seconds))
            here.record(entry)

        def stated(*_: Any) -> None:  # noqa: ANN401 - as the real one
            self.seen.append(("ledger", self.seconds))

        agent._here = dataclasses.replace(
            here,
            apply_masks=masked,
            clock=lambda: self.seconds,
            pause=pause,
            record=record,
        )
        agent._state_ledger = stated  # type: ignore[assignment,method-assign]


@pytest.mark.parametrize("takes", [(1.0, 20.0), (29.0, 2.0)])
def test_whatever_a_vector_takes_nothing_of_it_is_seen_before_the_stated_time(
    takes: tuple[float, float], tmp_path: Path
) -> None:
    with quick_accounting():
        twins = Twins(tmp_path, 1, POLICY, (hospital_data(24), hospital_data(25)))
        server = Led(twins, described(1))
        clocks = [Clock() for _ in twins.pair]
        for twin, clock, seconds in zip(twins.pair, clocks, takes, strict=True):
            clock.lead(twin.agent, seconds)
        assert server.lead(Purpose.TRAIN) is None
        twins.close()
    for clock in clocks:
        of_the_vector = [(what, when) for what, when in clock.seen if when]
        assert of_the_vector == [("ledger", STATED), ("chain", STATED)]
        assert clock.seconds == STATED  # The reply.


def test_without_a_stated_time_a_vector_leaves_when_it_is_made(tmp_path: Path) -> None:
    with quick_accounting():
        policy = POLICY.model_copy(update={"answer_seconds": 0.0})
        twins = Twins(tmp_path, 1, policy, (hospital_data(24), hospital_data(25)))
        server = Led(twins, described(1))
        clock = Clock()
        clock.lead(twins.pair[0].agent, 20.0)
        assert server.lead(Purpose.TRAIN) is None
        twins.close()
    assert clock.seconds == 20.0
