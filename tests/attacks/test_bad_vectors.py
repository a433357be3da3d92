"""Hospitals that send vectors the sum must not take, or at a time it must not take them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.secagg.errors import (
    DuplicateMaskedInputError,
    ImpersonationError,
    LateMaskedInputError,
    NotInCohortError,
    ReplayedMessageError,
    SecAggError,
    UnknownHospitalError,
    VectorLengthError,
    VectorRingError,
    WrongRunError,
)
from common.secagg.masked_input import MaskedSum
from common.secagg.messages import MaskedInput
from common.secagg.parameters import Vector
from common.secagg.phases import Phase
from tests.support.parties import TERMS, Consortium

SENDER, LAST = "hospital-1", "hospital-5"


@pytest.fixture
def consortium() -> Consortium:
    return Consortium(5)


def masked_by(consortium: Consortium, name: str = SENDER) -> tuple[MaskedSum, MaskedInput, Vector]:
    routed = consortium.routed()
    message, masked = consortium[name].mask(routed.request_for(name, TERMS), consortium.vector())
    return MaskedSum(routed, TERMS), message, masked


def assert_not_added(
    total: MaskedSum, message: MaskedInput, vector: NDArray[Any], error: type[SecAggError], sender: str = SENDER
) -> None:
    before, who = total.total.copy(), total.submitted
    with pytest.raises(error) as refusal:
        total.add(sender, message, vector)
    assert refusal.type is error
    assert (refusal.value.place.phase, refusal.value.hospital) == (Phase.MASKED_INPUT, sender)
    assert np.array_equal(total.total, before)
    assert total.submitted == who


def test_a_vector_of_the_wrong_length_is_refused(consortium: Consortium) -> None:
    total, message, masked = masked_by(consortium)
    assert_not_added(total, message, masked[:-1], VectorLengthError)
    assert_not_added(total, message, np.append(masked, masked[:1]), VectorLengthError)
    assert_not_added(total, replace(message, vector_length=15), masked[:-1], VectorLengthError)


def test_a_vector_of_another_ring_is_refused(consortium: Consortium) -> None:
    total, message, masked = masked_by(consortium)
    assert_not_added(total, message, masked.astype(np.uint32), VectorRingError)
    assert_not_added(total, message, masked.astype(np.float32), VectorRingError)
    assert_not_added(total, message, masked.astype(">u2"), VectorRingError)
    assert_not_added(total, message, masked.reshape(4, 4), VectorRingError)
    assert_not_added(total, replace(message, modulus_bits=32), masked, VectorRingError)


def test_a_second_vector_is_refused(consortium: Consortium) -> None:
    total, message, masked = masked_by(consortium)
    total.add(SENDER, message, masked)
    assert_not_added(total, message, masked, DuplicateMaskedInputError)


def test_a_vector_that_comes_after_its_owner_was_declared_dropped_is_refused(consortium: Consortium) -> None:
    """Its masks are about to be revealed: with them, and the vector, the server would see it bare."""
    routed = consortium.routed()
    total = MaskedSum(routed, TERMS)
    late = consortium[LAST].mask(routed.request_for(LAST, TERMS), consortium.vector())
    for name in consortium.names[:4]:
        total.add(name, *consortium[name].mask(routed.request_for(name, TERMS), consortium.vector()))
    assert total.close().dropped == (LAST,)
    assert_not_added(total, *late, LateMaskedInputError, sender=LAST)


def test_a_vector_from_outside_the_cohort_is_refused(consortium: Consortium) -> None:
    routed = consortium.routed(lost=(LAST,))
    total = MaskedSum(routed, TERMS)
    message, masked = consortium[SENDER].mask(routed.request_for(SENDER, TERMS), consortium.vector())
    assert_not_added(total, replace(message, hospital=LAST), masked, NotInCohortError, sender=LAST)


def test_a_vector_from_outside_the_roster_is_refused(consortium: Consortium) -> None:
    total, message, masked = masked_by(consortium)
    assert_not_added(total, replace(message, hospital="ghost"), masked, UnknownHospitalError, sender="ghost")


def test_a_vector_sent_for_another_hospital_is_refused(consortium: Consortium) -> None:
    total, message, masked = masked_by(consortium)
    assert_not_added(total, message, masked, ImpersonationError, sender=LAST)


def test_a_vector_replayed_from_an_earlier_round_is_refused(consortium: Consortium) -> None:
    _, message, masked = masked_by(consortium)
    assert_not_added(MaskedSum(consortium.routed(2), TERMS), message, masked, ReplayedMessageError)


def test_a_vector_of_another_run_is_refused(consortium: Consortium) -> None:
    total, message, masked = masked_by(consortium)
    assert_not_added(total, replace(message, run_id="f" * 32), masked, WrongRunError)


def test_a_hospital_refuses_to_mask_a_vector_that_is_not_of_the_run(consortium: Consortium) -> None:
    routed = consortium.routed()
    request = routed.request_for(SENDER, TERMS)
    for vector, error in (
        (np.zeros(15, np.uint16), VectorLengthError),
        (np.zeros(16, np.uint32), VectorRingError),
        (np.zeros((4, 4), np.uint16), VectorRingError),
    ):
        with pytest.raises(error):
            consortium[SENDER].mask(request, vector)
