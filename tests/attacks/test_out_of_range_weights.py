"""A hospital that claims more records than it may, to drown the others; its vector is masked, so only sums can tell."""

import os

import numpy as np
import pytest

from common.config import Config
from common.run.vector import Tail, VectorLayout, WeightRangeError
from common.secagg.masked_input import MaskedSum
from common.secagg.parameters import Vector
from tests.support.parties import TERMS, Consortium

PARAMETERS = 20
ENTRIES = 6
LIAR = "hospital-2"


@pytest.fixture
def layout() -> VectorLayout:
    return VectorLayout.for_run(Config().aggregation, ENTRIES, parameters=PARAMETERS, hospitals=4)


def encoded(layout: VectorLayout, weight: int) -> Vector:
    tail = Tail(weight, 5, 5, np.zeros(ENTRIES, np.int64))
    return layout.encode(np.full(PARAMETERS, 0.01, np.float32), tail, os.urandom)


@pytest.mark.parametrize("weight", [0, -1, 4097, 2**31])
def test_a_hospital_asked_to_send_an_out_of_range_weight_refuses(layout: VectorLayout, weight: int) -> None:
    with pytest.raises(WeightRangeError, match="weight"):
        encoded(layout, weight)


def test_a_weight_that_no_honest_sum_can_have_is_refused_after_unmasking(layout: VectorLayout) -> None:
    """Nobody can be named: each vector stays hidden, even the liar's."""
    consortium = Consortium(4, vector_length=layout.length, counts_length=layout.counts_length)
    vectors = {name: encoded(layout, layout.max_weight) for name in consortium.names}
    forged = vectors[LIAR].copy()
    consortium.run.segments(forged).counts[0] += np.uint32(1)
    vectors[LIAR] = forged
    total = consortium.masked_sum(vectors=vectors)
    summed = consortium.unmask(total, consortium.unmasking_request(total)).total
    with pytest.raises(WeightRangeError, match="total weight"):
        layout.decode(summed, 4)


def test_honest_weights_up_to_the_largest_come_through(layout: VectorLayout) -> None:
    consortium = Consortium(4, vector_length=layout.length, counts_length=layout.counts_length)
    vectors = {name: encoded(layout, layout.max_weight) for name in consortium.names}
    routed = consortium.routed()
    total = MaskedSum(routed, TERMS)
    for name in consortium.names:
        total.add(name, *consortium[name].mask(routed.request_for(name, TERMS), vectors[name]))
    decoded = layout.decode(consortium.unmask(total, consortium.unmasking_request(total)).total, 4)
    assert decoded.tail.weight == 4 * layout.max_weight
    assert np.allclose(decoded.mean_delta, 0.01, atol=layout.step / layout.max_weight)
