"""The two parts of a vector, counts modulo 2^32 and the change modulo R, each summed exactly under masks of its own."""

import numpy as np
import pytest

from common.secagg.parameters import Adversary
from tests.support.parties import Consortium, plain_sum


@pytest.mark.parametrize("adversary", list(Adversary))
@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("counts", [0, 1, 5, 8])
def test_each_segment_sums_exactly_with_one_hospital_lost(adversary: Adversary, bits: int, counts: int) -> None:
    consortium = Consortium(5, counts, adversary=adversary, modulus_bits=bits, vector_length=16, counts_length=counts)
    vectors = {name: consortium.vector() for name in consortium.names}
    total = consortium.masked_sum(lost=("hospital-3",), vectors=vectors)
    found = consortium.unmask(total, consortium.unmasking_request(total)).total
    assert np.array_equal(found, plain_sum(consortium.run, (vectors[name] for name in total.survivors)))


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize(("each", "summed"), [(0xFFFF, 4 * 0xFFFF), (0x4000_0001, 4), (2**32 - 1, 2**32 - 4)])
def test_a_count_carries_across_the_elements_it_lies_in(bits: int, each: int, summed: int) -> None:
    """A ring of 16 bits would lose the carry from a count's low half into its high half."""
    consortium = Consortium(4, modulus_bits=bits, vector_length=12, counts_length=3)
    vector = np.zeros(12, consortium.run.dtype)
    consortium.run.segments(vector).counts[:] = each
    total = consortium.masked_sum(vectors=dict.fromkeys(consortium.names, vector))
    found = consortium.run.segments(consortium.unmask(total, consortium.unmasking_request(total)).total)
    assert found.counts.tolist() == [summed] * 3
    assert not found.change.any()


@pytest.mark.parametrize("bits", [16, 32])
def test_the_two_segments_are_masked_by_different_streams(bits: int) -> None:
    """Equal streams would show the difference of a count and the change that lies under the same part of it."""
    consortium = Consortium(4, modulus_bits=bits, vector_length=4096, counts_length=2048 * bits // 32)
    routed = consortium.routed()
    zeros = np.zeros(4096, consortium.run.dtype)
    _, masked = consortium["hospital-1"].mask(routed.request_for("hospital-1", b"terms"), zeros)
    counts, change = (part.tobytes() for part in consortium.run.segments(masked))
    assert len(counts) == len(change)
    agreeing = sum(a == b for a, b in zip(counts, change, strict=True))
    assert agreeing < len(counts) / 64, "1 in 256 bytes agree by chance"
