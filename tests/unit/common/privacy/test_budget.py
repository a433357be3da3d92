"""What a booking costs by a hospital's own policy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import HospitalConfig, PrivacyUnit
from common.errors import PrivacyError
from common.privacy.accounting import for_a_group
from common.privacy.budget import Account, Booking, BudgetPolicy
from tests.support.published import gaussian

EVENT = gaussian(2.0, 0.1, 3)
colluders = st.none() | st.integers(0, 5)
units = st.sampled_from(PrivacyUnit)


def booking(unit: PrivacyUnit = PrivacyUnit.RECORD, colluders: int | None = 0) -> Booking:
    return Booking(Account.TRAINING, EVENT, unit, colluders, 1e-5)


@given(units, colluders, units, st.integers(0, 5), st.none() | st.integers(1, 50))
def test_what_promises_less_than_the_policy_is_converted_or_refused_and_all_else_counts_as_it_is(
    unit: PrivacyUnit, withstands: int | None, wanted: PrivacyUnit, against: int, most: int | None
) -> None:
    policy = BudgetPolicy(10.0, 1e-5, wanted, against, most)
    weaker_adversary = withstands is not None and withstands < against
    weaker_unit = wanted is PrivacyUnit.PATIENT and unit is PrivacyUnit.RECORD
    if weaker_adversary or (weaker_unit and most is None):
        with pytest.raises(PrivacyError, match=r"its operator (lowers|states) hospital\."):
            policy.event_of(booking(unit, withstands))
        return
    expected = for_a_group(EVENT, most) if weaker_unit and most is not None else EVENT
    assert policy.event_of(booking(unit, withstands)) == expected


def test_a_policy_is_what_the_hospital_configures_for_the_account() -> None:
    hospital = HospitalConfig(
        epsilon_budget=7.0,
        evaluation_epsilon_budget=2.0,
        allow_statistics_epsilon=0.5,
        delta=1e-6,
        unit=PrivacyUnit.PATIENT,
        min_colluders=2,
    )
    training, validation, test, statistics = (BudgetPolicy.of(hospital, account) for account in Account)
    assert statistics == BudgetPolicy(0.5, 1e-6, PrivacyUnit.PATIENT, 2)
    assert BudgetPolicy.of(HospitalConfig(), Account.STATISTICS).budget == 0.0
    assert training == BudgetPolicy(7.0, 1e-6, PrivacyUnit.PATIENT, 2)
    assert validation == test == BudgetPolicy(2.0, 1e-6, PrivacyUnit.PATIENT, 2)
    stated = HospitalConfig(most_records_per_patient=7)
    assert BudgetPolicy.of(stated, Account.TEST).most_records_per_patient == 7


@pytest.mark.parametrize(
    ("colluders", "delta", "message"),
    [(-1, 1e-5, "colluders"), (1024, 1e-5, "colluders"), (True, 1e-5, "colluders"), (0, 0.0, "δ"), (0, 1.0, "δ")],
)
def test_a_booking_that_means_nothing_is_never_made(colluders: int, delta: float, message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        Booking(Account.TEST, EVENT, PrivacyUnit.RECORD, colluders, delta)


@pytest.mark.parametrize(
    ("delta", "min_colluders", "most"), [(0.0, 0, None), (float("nan"), 0, None), (1e-5, -1, None), (1e-5, 0, 0)]
)
def test_a_policy_that_means_nothing_is_never_made(delta: float, min_colluders: int, most: int | None) -> None:
    with pytest.raises(PrivacyError, match="must be"):
        BudgetPolicy(1.0, delta, PrivacyUnit.RECORD, min_colluders, most)


@pytest.mark.parametrize(
    ("withstands", "words"),
    [
        (None, "everyone"),
        (0, "the server alone"),
        (1, "the server with 1 hospital"),
        (3, "the server with 3 hospitals"),
    ],
)
def test_the_adversary_of_a_booking_is_said_in_words(withstands: int | None, words: str) -> None:
    assert booking(colluders=withstands).adversary() == words
