"""Extremes of every element, from every hospital, through the whole protocol: the sum is the one over the integers."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import Config
from common.run.vector import Tail, VectorLayout
from tests.support.parties import Consortium

PARAMETERS = 6
ENTRIES = 4


def layout_for(hospitals: int, bits: int) -> VectorLayout:
    aggregation = Config().aggregation.model_copy(update={"modulus_bits": bits})
    return VectorLayout.for_run(aggregation, ENTRIES, parameters=PARAMETERS, hospitals=hospitals)


@pytest.mark.parametrize("bits", [16, 32])
@given(st.integers(3, 7), st.lists(st.sampled_from((-1e9, -1.0, 0.0, 1.0, 1e9)), min_size=7, max_size=7))
@settings(max_examples=12)
def test_extremes_never_overflow_the_ring(bits: int, hospitals: int, scales: list[float]) -> None:
    layout = layout_for(hospitals, bits)
    consortium = Consortium(
        hospitals, modulus_bits=bits, vector_length=layout.length, counts_length=layout.counts_length
    )
    # Sums of counts beyond 16 bits, and of either sign.
    tail = Tail(layout.max_weight, 9, 9, np.array([2**28 // hospitals, -(2**28), 70_000, -1]))
    vectors, integers = {}, np.zeros(PARAMETERS, np.int64)
    for name, scale in zip(consortium.names, scales, strict=False):
        change = np.full(PARAMETERS, scale * layout.update_bound, np.float32)
        vectors[name] = layout.encode(change, tail, os.urandom)
        integers += vectors[name][-PARAMETERS:].view(f"<i{bits // 8}")
    total = consortium.masked_sum(vectors=vectors)
    decoded = layout.decode(consortium.unmask(total, consortium.unmasking_request(total)).total, hospitals)
    assert decoded.tail.weight == hospitals * layout.max_weight
    assert decoded.tail.entries.tolist() == (hospitals * tail.entries).tolist()
    assert np.allclose(decoded.mean_delta, integers * layout.step / decoded.tail.weight, rtol=1e-6)
