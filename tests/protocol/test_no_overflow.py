"""Extremes of every element, from every hospital, through the whole protocol: the sum is the one over the integers."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import Config
from common.evaluation import EvaluationCounts
from common.vector import VectorLayout
from tests.protocol.parties import Consortium

PARAMETERS = 6


def layout_for(hospitals: int, bits: int) -> VectorLayout:
    config = Config()
    aggregation = config.aggregation.model_copy(update={"modulus_bits": bits})
    return VectorLayout.for_run(aggregation, config.evaluation, parameters=PARAMETERS, classes=2, hospitals=hospitals)


@pytest.mark.parametrize("bits", [16, 32])
@given(st.integers(3, 7), st.lists(st.sampled_from((-1e9, -1.0, 0.0, 1.0, 1e9)), min_size=7, max_size=7))
@settings(max_examples=12, deadline=None)
def test_extremes_never_overflow_the_ring(bits: int, hospitals: int, scales: list[float]) -> None:
    layout = layout_for(hospitals, bits)
    consortium = Consortium(hospitals, modulus_bits=bits, vector_length=layout.length)
    counts = EvaluationCounts.zero(layout.evaluation)
    vectors, integers = {}, np.zeros(PARAMETERS, np.int64)
    for name, scale in zip(consortium.names, scales, strict=False):
        change = np.full(PARAMETERS, scale * layout.update_bound, np.float32)
        vectors[name] = layout.encode(change, layout.max_weight, counts, os.urandom)
        integers += vectors[name][:PARAMETERS].view(f"<i{bits // 8}")
    total = consortium.masked_sum(vectors=vectors)
    decoded = layout.decode(consortium.unmask(total, consortium.unmasking_request(total)).total, hospitals)
    assert decoded.total_weight == hospitals * layout.max_weight
    assert np.allclose(decoded.mean_delta, integers * layout.step / decoded.total_weight, rtol=1e-6)
