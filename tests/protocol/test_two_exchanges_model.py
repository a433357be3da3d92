"""Both endings of a round, in every mix: the server reads one sum, and no hospital loses both its secrets.

The model is ``tests/protocol/two_exchanges_model.py``. That it would find what it looks for is tested with mutants.
"""

import pytest

from common.secagg import answered_rounds
from common.secagg.parameters import RunParameters
from common.secagg.phases import Phase
from tests.protocol.two_exchanges_model import CONTRADICTION, LOSES_BOTH, TWO_SUMS, F, R, Round, S, behaviours

SMALL = [(3, 0, 3), (3, 1, 3), (4, 0, 3), (4, 1, 3), (5, 1, 4), (5, 2, 4)]
"""Hospitals, colluders and threshold: 2t > n + n_C, and no smaller t will do where there are two of a size."""


def test_the_record_lets_a_hospital_open_or_sign_and_never_both() -> None:
    assert behaviours() == {frozenset(), frozenset({F}), frozenset({S}), frozenset({S, R})}


@pytest.mark.parametrize(("hospitals", "colluders", "threshold"), SMALL)
@pytest.mark.parametrize("everyone_signs", [True, False])
def test_no_mix_of_both_endings_breaks_a_promise(
    hospitals: int, colluders: int, threshold: int, *, everyone_signs: bool
) -> None:
    """Over a complete graph F would do without signatures; a sparse one needs those of all."""
    findings = Round(hospitals, colluders, threshold, everyone_signs=everyone_signs).check()
    assert findings.broken == {}
    assert findings.with_a_sum > 0


@pytest.mark.slow
@pytest.mark.parametrize("model", [Round(5, 0, 4), Round(5, 0, 3, whole=False)], ids=str)
def test_no_mix_of_both_endings_breaks_a_promise_to_five_honest_hospitals(model: Round) -> None:
    findings = model.check()
    assert findings.broken == {}
    assert findings.with_a_sum > 0


@pytest.mark.parametrize("hospitals", [3, 4, 5])
def test_the_product_asks_for_a_threshold_that_was_looked_at(hospitals: int) -> None:
    roster = {f"hospital-{number}": bytes(32) for number in range(hospitals)}
    threshold = RunParameters("0" * 32, bytes(32), roster, 3, 16, 1).threshold(hospitals)
    assert (hospitals, (hospitals - 1) // 3, threshold) in SMALL


@pytest.mark.parametrize(("hospitals", "colluders", "threshold"), [(4, 0, 3), (4, 1, 3), (5, 1, 4)])
def test_a_record_in_which_opening_leaves_the_slot_of_signing_open_is_found(
    monkeypatch: pytest.MonkeyPatch, hospitals: int, colluders: int, threshold: int
) -> None:
    monkeypatch.setattr(answered_rounds, "_SLOTS", {})
    findings = Round(hospitals, colluders, threshold, whole=False).check()
    assert findings.broken[LOSES_BOTH] > 0
    assert findings.broken[TWO_SUMS] > 0


@pytest.mark.parametrize(("hospitals", "colluders", "threshold"), SMALL)
def test_opening_that_takes_the_slot_of_unmasking_alone_is_found(
    monkeypatch: pytest.MonkeyPatch, hospitals: int, colluders: int, threshold: int
) -> None:
    """Whoever opens reveals nothing else then, so that no sum leaks; but it may still sign, which is not allowed."""
    monkeypatch.setattr(answered_rounds, "_SLOTS", {Phase.FULL_UNMASKING: Phase.UNMASKING})
    findings = Round(hospitals, colluders, threshold).check()
    assert set(findings.broken) == {CONTRADICTION}


@pytest.mark.parametrize(("hospitals", "colluders", "threshold"), [(4, 0, 2), (3, 1, 2), (5, 1, 3)])
def test_a_threshold_one_smaller_is_found(hospitals: int, colluders: int, threshold: int) -> None:
    """2t = n + n_C: the bound is tight."""
    findings = Round(hospitals, colluders, threshold, whole=False).check()
    assert findings.broken[LOSES_BOTH] > 0
    assert findings.broken[TWO_SUMS] > 0
