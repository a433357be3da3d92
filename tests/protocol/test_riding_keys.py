"""Keys of the next round ride on this one; who missed them catches up, who never shared stays out."""

import numpy as np
import pytest

from common.secagg.advertise_keys import collect
from common.secagg.masked_input import MaskedSum
from common.secagg.share_keys import route
from tests.support.parties import TERMS, Consortium, sent

AWAY, FORGETFUL = "hospital-5", "hospital-4"


@pytest.fixture
def consortium() -> Consortium:
    return Consortium(5)


def test_keys_ride_on_the_round_before_and_a_hospital_that_was_away_catches_up(consortium: Consortium) -> None:
    routed = consortium.routed(round_number=1, lost=(AWAY,))
    total = MaskedSum(routed, TERMS)
    vectors = {name: consortium.vector() for name in consortium.names}
    next_keys = {}
    for name in routed.cohort:
        message, masked = consortium[name].mask(sent(routed.request_for(name, TERMS)), vectors[name])
        next_keys[name] = sent(consortium[name].advertise(2))
        total.add(name, message, masked)
    # The one that is back answers an explicit request while the others' answers carry theirs.
    next_keys[AWAY] = sent(consortium[AWAY].advertise(2))
    directory = sent(collect(consortium.run, 2, next_keys).directory)
    request = consortium.unmasking_request(total)
    next_shares = {name: sent(consortium[name].share(directory)) for name in consortium.names if name != FORGETFUL}
    first = consortium.unmask(total, request).total
    assert np.array_equal(first, sum((vectors[name] for name in routed.cohort), np.zeros_like(first)))

    routed = route(consortium.run, directory, next_shares)
    assert AWAY in routed.cohort
    assert FORGETFUL not in routed.cohort, "it advertised and never shared"
    total = MaskedSum(routed, TERMS)
    for name in routed.cohort:
        total.add(name, *consortium[name].mask(routed.request_for(name, TERMS), vectors[name]))
    second = consortium.unmask(total, consortium.unmasking_request(total)).total
    assert np.array_equal(second, sum((vectors[name] for name in routed.cohort), np.zeros_like(second)))


def test_every_round_has_keys_of_its_own(consortium: Consortium) -> None:
    first, second = consortium.directory(1), consortium.directory(2)
    keys = [key for entry in (*first.keys, *second.keys) for key in (entry.encryption_key, entry.masking_key)]
    assert len(set(keys)) == len(keys)
