"""Whole rounds over a k-regular graph: the same phases, fewer neighbours, the same exact sum."""

import random

import numpy as np
import pytest

from common.secagg.masked_input import MaskedSum
from common.secagg.parameters import Adversary, GraphParameters
from tests.support.parties import TERMS, Consortium, sent

SMALL = GraphParameters(complete_up_to=8, colluding=0.05, security_bits=3, grinding_bits=0, correctness_bits=4)
"""Weak parameters, so that the graph is sparse at a size that is quick to run."""


@pytest.mark.parametrize("adversary", list(Adversary))
@pytest.mark.parametrize("seed", range(5))
def test_the_sum_over_a_sparse_graph_is_exact_with_a_tenth_dropping_out(adversary: Adversary, seed: int) -> None:
    source = random.Random(seed)  # noqa: S311 - repeatable
    consortium = Consortium(24, seed, adversary=adversary, graph=SMALL)
    unshared, unmasked, silent = source.sample(consortium.names, 3)
    vectors = {name: consortium.vector() for name in consortium.names}
    routed = consortium.routed(lost=(unshared,))
    assert all(len(near) < len(consortium.names) - 1 for near in routed.graph.by_hospital.values())
    total = MaskedSum(routed, TERMS)
    for name in routed.cohort:
        if name != unmasked:
            message, masked = consortium[name].mask(sent(routed.request_for(name, TERMS)), vectors[name])
            total.add(name, sent(message), masked)
    request = consortium.unmasking_request(total)
    result = consortium.unmask(total, request, lost=(silent,))
    plain = sum((vectors[name] for name in total.survivors), np.zeros(consortium.run.vector_length, "<u2"))
    assert result.refusals == ()
    assert np.array_equal(result.total, plain)


@pytest.mark.slow
@pytest.mark.parametrize("adversary", list(Adversary))
def test_the_stated_parameters_carry_a_round_of_hundreds(adversary: Adversary) -> None:
    consortium = Consortium(160, adversary=adversary)
    lost = consortium.names[::12]
    vectors = {name: consortium.vector() for name in consortium.names}
    total = consortium.masked_sum(lost=lost, vectors=vectors)
    result = consortium.unmask(total, consortium.unmasking_request(total))
    plain = sum((vectors[name] for name in total.survivors), np.zeros(consortium.run.vector_length, "<u2"))
    assert np.array_equal(result.total, plain)
