"""A server computes how many records a hospital has from two values of ε that it reports.

At 30890c7 (mode local), hospitals of 60, 61, 65 and 100 records reported (2.823, 3.994), (2.829, 3.995),
(2.818, 3.991) and (2.926, 3.997) after two rounds: a pair each of its own.
"""

from pathlib import Path
from typing import Any

import pytest

from common.config import HospitalConfig
from common.run.messages import EpsilonReport, MaskReply
from common.run.round_terms import Purpose
from tests.support.twins import Led, Twins, described, hospital_data, quick_accounting

POLICY = HospitalConfig(delta=1e-3, stated_training_units=20, stated_validation_units=6, stated_test_units=6)
SIZES = (20, 21, 25, 33, 60, 61, 100)


class Listening(Led):
    """Keeps every ε that a hospital reports."""

    reports: list[EpsilonReport]

    def ask(self, *arguments: Any) -> Any:  # noqa: ANN401 - as Led's
        answer = super().ask(*arguments)
        if isinstance(answer[0], MaskReply) and answer[0].epsilon is not None:
            self.reports.append(answer[0].epsilon)
        return answer


@pytest.mark.parametrize("changes", [{}, {"training": {"local_epochs": 3}}, {"privacy": {"mode": "distributed"}}])
def test_every_number_of_records_reports_the_same_epsilon(changes: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    told = set()
    with quick_accounting():
        for size in SIZES:
            data = hospital_data(size), hospital_data(size + 1)
            twins = Twins(tmp_path / str(size), 1, POLICY, data)
            server = Listening(twins, described(1, **changes))
            server.reports = []
            for _ in range(2):
                assert server.lead(Purpose.TRAIN) is None
            twins.close()
            assert len(server.reports) == 2
            told.add(tuple(server.reports))
    assert len(told) == 1  # One answer for all sizes: a guess among them is right as often as one made before the run.
