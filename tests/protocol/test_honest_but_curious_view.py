"""What the strongest honest-but-curious server sees: everything it may see, but no hospital's vector.

The server plays the protocol to the letter with one hospital on its side and one dropped out. It rebuilds every secret
it is entitled to and takes off every mask it can. What is left of any set of honest hospitals' vectors, but all of them
together, must be uniform, whatever the vectors are.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import chi2

from common.secagg.binding import round_context
from common.secagg.keys import agree, derive, pairwise_seed_info, self_mask_info
from common.secagg.masked_input import MaskedSum
from common.secagg.masks import Mask, apply_masks
from common.secagg.parameters import Adversary, Segment, Vector
from common.secagg.shamir import rebuild
from tests.support.parties import TERMS, Consortium, sent

LENGTH = 1 << 17
BINS = 256
COLLUDING, DROPPED = "hospital-1", "hospital-6"
SIGNIFICANCE = 1e-6
"""Keys come from a fixed seed, so a test that passes once passes always; a biased mask gives a far smaller p-value."""


@dataclass(frozen=True)
class View:
    """Honest survivors' vectors, and what the server is left with of each."""

    vectors: dict[str, Vector]
    stripped: dict[str, Vector]

    def left_of(self, hospitals: tuple[str, ...]) -> Vector:
        """Return the sum of what is left of these hospitals' vectors."""
        total: Vector = np.zeros(LENGTH, "<u2")
        for hospital in hospitals:
            total += self.stripped[hospital]
        return total


def telling_vectors(consortium: Consortium) -> dict[str, Vector]:
    """Vectors as far from uniform as can be: constants and a ramp."""
    shapes = [np.zeros(LENGTH, "<u2"), np.full(LENGTH, 7, "<u2"), np.arange(LENGTH).astype("<u2") // np.uint16(256)]
    return {name: shapes[index % len(shapes)] for index, name in enumerate(consortium.names)}


def uniformity(vector: Vector) -> float:
    """Return the smaller p-value of chi-square on the high and on the low byte."""
    p_values = []
    for byte in (vector >> np.uint16(8), vector & np.uint16(255)):
        found = np.bincount(byte, minlength=BINS)
        expected = len(vector) / BINS
        p_values.append(chi2.sf(((found - expected) ** 2 / expected).sum(), BINS - 1))
    return float(min(p_values))


@pytest.fixture(scope="module", params=list(Adversary))
def view(request: pytest.FixtureRequest) -> View:
    consortium = Consortium(6, seed=11, vector_length=LENGTH, adversary=request.param)
    vectors = telling_vectors(consortium)
    routed = consortium.routed()
    total, received = MaskedSum(routed, TERMS), {}
    for name in consortium.names:
        if name != DROPPED:
            message, masked = consortium[name].mask(sent(routed.request_for(name, TERMS)), vectors[name])
            total.add(name, message, masked)
            received[name] = masked
    unmasking_request = consortium.unmasking_request(total)
    revealed = {name: consortium[name].reveal(unmasking_request) for name in unmasking_request.survivors}
    context = round_context(consortium.run, 1)
    public = {keys.hospital: keys.masking_key for keys in routed.directory.keys}

    def rebuilt(owner: str) -> bytes:
        held = {
            routed.graph.points[sender]: share.share
            for sender, message in revealed.items()
            for share in (*message.self_mask_shares, *message.masking_key_shares)
            if share.owner == owner
        }
        secret = rebuild(dict(list(held.items())[: routed.graph.share_threshold]))
        assert secret is not None
        return secret

    known_keys = {DROPPED: rebuilt(DROPPED), COLLUDING: consortium[COLLUDING].keys[1].masking_key}
    stripped = {}
    for name, masked in received.items():
        if name == COLLUDING:
            continue
        masks = [Mask(derive(rebuilt(name), self_mask_info(context, name, Segment.CHANGE)), subtract=True)]
        for peer, key in known_keys.items():
            info = pairwise_seed_info(context, total.cohort_hash, total.request_hash, (name, peer), Segment.CHANGE)
            masks.append(Mask(agree(key, public[name], info), subtract=name < peer))
        stripped[name] = masked.copy()
        apply_masks(stripped[name], masks)
    return View(vectors, stripped)


def test_any_but_all_honest_hospitals_together_leave_uniform_noise(view: View) -> None:
    honest = tuple(view.stripped)
    assert len(honest) == 4
    for size in range(1, len(honest)):
        for some in combinations(honest, size):
            assert uniformity(view.left_of(some)) > SIGNIFICANCE, some


def test_what_is_left_of_one_hospital_does_not_follow_its_vector(view: View) -> None:
    for name, left in view.stripped.items():
        assert uniformity(left - view.vectors[name]) > SIGNIFICANCE, name


def test_all_honest_hospitals_together_leave_exactly_their_sum(view: View) -> None:
    """The control: the view is the real one, nothing is masked but what must be, and the statistic can tell."""
    honest = tuple(view.stripped)
    plain = sum((view.vectors[name] for name in honest), np.zeros(LENGTH, "<u2"))
    left = view.left_of(honest)
    assert np.array_equal(left, plain)
    assert uniformity(left) < SIGNIFICANCE
