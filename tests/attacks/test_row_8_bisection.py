"""A server finds how many records a hospital has, and of which class, by offering run after run.

At 30890c7 bisection over ``aggregation.max_weight`` found the 60 records of a hospital exactly, in 13 questions.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.config import HospitalConfig, RunDescription
from common.run.messages import KeysRequest
from tests.support.twins import Twins, described, hospital_data, quick_accounting

STATED = 40
PER_CLASS = 3
POLICY = HospitalConfig(
    delta=1e-6,
    stated_training_units=STATED,
    stated_units_per_class=PER_CLASS,
    stated_validation_units=6,
    stated_test_units=6,
    allow_no_privacy=True,
)
MOST = 4096


def _bent(section: str, key: str, value: Any) -> dict[str, dict[str, Any]]:  # noqa: ANN401 - of a key
    return {section: {key: value}}


QUESTIONS: dict[str, tuple[Callable[[int], dict[str, dict[str, Any]]], int | None]] = {
    # What a run asks for n, and the n from which on (or up to which) a hospital agrees; None where it always agrees.
    "max_weight": (lambda n: _bent("aggregation", "max_weight", n), STATED),
    "delta": (lambda n: _bent("privacy", "delta", min(0.09, 1 / (n + 0.5))), STATED),
    "min_records_per_class": (lambda n: _bent("experiment", "min_records_per_class", n), PER_CLASS),
    "batch_size": (lambda n: _bent("training", "batch_size", n), None),
}

SIZES = ((36, 44), (45, 60), (20, 300))

CASES = [("local", question, sizes) for question in QUESTIONS for sizes in SIZES]
# Without privacy no δ is judged, and no ε or noise follows from anything.
CASES += [
    (mode, each, SIZES[-1])
    for mode in ("distributed", "none")
    for each in QUESTIONS
    if (mode, each) != ("none", "delta")
]


class Oracle:
    """Twins of other sizes, asked whether they agree to a run."""

    def __init__(self, folder: Path, sizes: tuple[int, int]) -> None:
        first, second = sizes
        self.twins = Twins(folder, 1, POLICY, (hospital_data(first), hospital_data(second, seed=2)))
        self.asked = 0

    def agrees(self, run: RunDescription) -> bool:
        """Ask; every word of the answer is the same of both twins, or this raises."""
        self.asked += 1
        return self.twins.refusal(KeysRequest(run_description=run.canonical_json(), round_number=1)) is None


@pytest.mark.parametrize(("mode", "question", "sizes"), CASES)
def test_bisection_finds_what_the_hospital_states_whatever_it_has(
    mode: str, question: str, sizes: tuple[int, int], tmp_path: Path
) -> None:
    asked_for, stated = QUESTIONS[question]

    def changes(n: int) -> dict[str, dict[str, Any]]:
        asked = asked_for(n)
        return {**asked, "privacy": {"mode": mode, **asked.get("privacy", {})}}

    with quick_accounting():
        oracle = Oracle(tmp_path, sizes)
        low, high = 1, MOST
        at_low = oracle.agrees(described(1, **changes(low)))
        if stated is None:
            assert at_low
            assert oracle.agrees(described(2, **changes(high)))
            return
        while high - low > 1:
            middle = (low + high) // 2
            if oracle.agrees(described(oracle.asked + 1, **changes(middle))) == at_low:
                low = middle
            else:
                high = middle
        oracle.twins.close()
    # The first that is answered otherwise than 1 is: at least what is stated, or one more than it.
    assert high == (stated + 1 if question == "min_records_per_class" else stated)
    assert 10 <= oracle.asked <= 16
