"""A server that asks hospitals of one round for different things, so that one's vector stands out in the sum.

Train at one hospital and let the rest send zeros: if the masks cancel, the sum is that hospital's update.
"""

import random
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.secagg.consistency_check import collect
from common.secagg.errors import RequestHashError, TooFewSignaturesError
from common.secagg.masked_input import MaskedSum
from common.secagg.messages import UnmaskingRequest
from common.secagg.parameters import Adversary, Vector
from common.secagg.unmasking import unmask
from tests.support.parties import RUN_ID, TERMS, Consortium, plain_sum

VICTIM = "hospital-1"


def masked_under(consortium: Consortium, shown: dict[str, bytes]) -> tuple[MaskedSum, dict[str, Vector]]:
    """Return the sum of what hospitals that were each shown its own terms have masked, and their plain vectors.

    The server adds every vector whatever it says; an honest one would refuse those of other terms.
    """
    routed = consortium.routed()
    total, vectors = MaskedSum(routed, TERMS), {name: consortium.vector() for name in consortium.names}
    for name in consortium.names:
        message, masked = consortium[name].mask(routed.request_for(name, shown[name]), vectors[name])
        consortium.run.add(total.total, masked)
        total.views[name] = message
    return total, vectors


def is_sum_of_any(consortium: Consortium, found: Vector, vectors: dict[str, Vector]) -> bool:
    """Say whether either segment is the sum of those of some hospitals."""
    names = tuple(vectors)
    subsets = chain.from_iterable(combinations(names, size) for size in range(1, len(names) + 1))
    sums = (plain_sum(consortium.run, (vectors[name] for name in some)) for some in subsets)
    segments = consortium.run.segments
    return any(
        np.array_equal(part, of_sum)
        for some_sum in sums
        for part, of_sum in zip(segments(found), segments(some_sum), strict=True)
    )


@pytest.mark.parametrize("position", range(len(TERMS)))
def test_terms_that_differ_in_any_byte_at_one_hospital_get_no_share_of_anybody(position: int) -> None:
    consortium = Consortium(5)
    other = TERMS[:position] + bytes([TERMS[position] ^ 1]) + TERMS[position + 1 :]
    total, _ = masked_under(consortium, {name: other if name == VICTIM else TERMS for name in consortium.names})
    survivors = total.close()
    signatures = {name: consortium[name].sign(survivors) for name in survivors.survivors}
    request = UnmaskingRequest(RUN_ID, 1, survivors.survivors, (), tuple(signatures[name] for name in consortium.names))
    for name in consortium.names:
        with pytest.raises(RequestHashError):
            consortium[name].reveal(request)
    signed = collect(total, signatures)
    assert [type(refusal) for refusal in signed.refusals] == [RequestHashError]


def test_hospitals_of_either_half_get_fewer_than_t_signatures() -> None:
    consortium = Consortium(6)
    half = consortium.names[:3]
    total, _ = masked_under(consortium, {name: b"zeros" if name in half else TERMS for name in consortium.names})
    survivors = total.close()
    signatures = {name: consortium[name].sign(survivors) for name in consortium.names}
    with pytest.raises(TooFewSignaturesError):
        collect(total, signatures)
    for side in (half, consortium.names[3:]):
        request = UnmaskingRequest(RUN_ID, 1, consortium.names, (), tuple(signatures[name] for name in side))
        with pytest.raises(TooFewSignaturesError):
            consortium[side[0]].reveal(request)


@given(st.integers(0, 2**32), st.sampled_from((16, 32)))
@settings(max_examples=60)
def test_what_a_liar_unmasks_with_every_share_it_could_want_is_no_sum_of_vectors(seed: int, bits: int) -> None:
    """The masks alone hold, without the signatures: a semi-honest run, whose hospitals reveal what they are asked."""
    source = random.Random(seed)  # noqa: S311 - repeatable
    # At least four elements of each segment, so that chance gives a sum of vectors in 2^-64 of cases.
    consortium = Consortium(
        source.randint(3, 6), seed, adversary=Adversary.SEMI_HONEST, modulus_bits=bits, vector_length=16,
        counts_length=4,
    )  # fmt: skip
    others = source.sample(consortium.names, source.randint(1, len(consortium.names) - 1))
    shown = {name: source.randbytes(source.randint(0, 40)) if name in others else TERMS for name in consortium.names}
    total, vectors = masked_under(consortium, shown)
    total.close()
    request = UnmaskingRequest(RUN_ID, 1, consortium.names, (), ())
    revealed = {name: consortium[name].reveal(request) for name in consortium.names}
    found = unmask(total, revealed).total
    assert not is_sum_of_any(consortium, found, vectors)


def test_the_same_liars_sum_is_exact_once_it_shows_everyone_the_same() -> None:
    """Or the test above would hold for a harness that never unmasks anything."""
    consortium = Consortium(4, adversary=Adversary.SEMI_HONEST, vector_length=16, counts_length=4)
    total, vectors = masked_under(consortium, dict.fromkeys(consortium.names, TERMS))
    total.close()
    request = UnmaskingRequest(RUN_ID, 1, consortium.names, (), ())
    revealed = {name: consortium[name].reveal(request) for name in consortium.names}
    found = unmask(total, revealed).total
    assert np.array_equal(found, plain_sum(consortium.run, vectors.values()))
    assert is_sum_of_any(consortium, found, vectors)
