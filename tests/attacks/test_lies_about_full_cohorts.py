"""A server that says that nobody is missing: hospitals open the sum at once only with everyone's view of the round."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.secagg import full_unmasking, masked_input, shamir
from common.secagg.binding import round_context
from common.secagg.errors import (
    ConfigHashError,
    DirectoryMismatchError,
    ImpersonationError,
    NotInCohortError,
    Place,
    ReplayedMessageError,
    SecAggError,
    TooFewHospitalsError,
    TooFewSharesError,
    TooFewSignaturesError,
    UnknownPhaseError,
    VectorHashError,
    ViewSignatureError,
    WrongRunError,
)
from common.secagg.keys import Agreements, derive, pairwise_seed_info, self_mask_info
from common.secagg.masked_input import MaskedSum
from common.secagg.masks import Mask, apply_masks
from common.secagg.messages import (
    FullUnmaskingRequest,
    MaskedInput,
    MaskedInputRequest,
    SignedView,
    SurvivorList,
    UnmaskingRequest,
    UnmaskingShares,
)
from common.secagg.parameters import Adversary, GraphParameters, Segment, Vector
from common.secagg.phases import Phase
from tests.support.parties import RUN_ID, TERMS, Consortium, sent

VICTIM, PEER = "hospital-1", "hospital-2"


@pytest.fixture
def consortium() -> Consortium:
    """Five hospitals that have masked; the threshold is four."""
    return Consortium(5)


@pytest.fixture
def total(consortium: Consortium) -> MaskedSum:
    return consortium.masked_sum()


def request_of(total: MaskedSum, **others: SignedView | None) -> FullUnmaskingRequest:
    """Return what an honest server asks, with some views replaced, or left out where they are None."""
    views = {name: SignedView.of(view) for name, view in total.views.items()}
    for name, other in others.items():
        hospital = name.replace("_", "-")
        del views[hospital]
        if other is not None:
            views[hospital] = other
    return FullUnmaskingRequest(RUN_ID, 1, tuple(views[name] for name in sorted(views)))


def signed_by(consortium: Consortium, name: str, view: MaskedInput) -> SignedView:
    """Let a hospital sign any view, whatever it was shown."""
    signature = consortium[name].identity.sign(masked_input.signed_part(consortium.run, view))
    return SignedView(name, view.vector_hash, view.commitment, signature)


def assert_nothing_revealed(
    consortium: Consortium, request: FullUnmaskingRequest, error: type[SecAggError], about: str = PEER
) -> None:
    with pytest.raises(error) as refusal:
        consortium[VICTIM].reveal_all(request)
    assert refusal.type is error
    assert (refusal.value.place.party, refusal.value.place.phase) == (VICTIM, Phase.FULL_UNMASKING)
    assert refusal.value.hospital == about


def test_a_hospital_reveals_shares_of_everyones_own_mask_and_of_no_masking_key(
    consortium: Consortium, total: MaskedSum
) -> None:
    for name in consortium.names:
        revealed = consortium[name].reveal_all(sent(request_of(total)))
        held = consortium[name].masked[1].shares
        assert [share.owner for share in revealed.self_mask_shares] == list(consortium.names)
        assert all(share.share == held[share.owner].self_mask for share in revealed.self_mask_shares)
        assert revealed.masking_key_shares == ()


@pytest.mark.parametrize("missing", ["hospital_1", "hospital_2", "hospital_5"])
def test_one_view_fewer_than_the_cohort_is_refused(consortium: Consortium, total: MaskedSum, missing: str) -> None:
    """Four have signed, which is the threshold, and is not enough."""
    request = sent(request_of(total, **{missing: None}))
    assert_nothing_revealed(consortium, request, TooFewSignaturesError, about=missing.replace("_", "-"))


def test_one_view_twice_counts_once(consortium: Consortium, total: MaskedSum) -> None:
    request = request_of(total, hospital_5=None)
    doubled = replace(request, views=(*request.views, request.views[1]))
    assert_nothing_revealed(consortium, doubled, TooFewSignaturesError, about="hospital-5")


OTHER: dict[str, Any] = {
    "run_id": "f" * 32,
    "round_number": 2,
    "config_hash": bytes(32),
    "directory_hash": bytes(32),
    "cohort_hash": bytes(32),
    "request_hash": bytes(32),
    "modulus_bits": 32,
    "vector_length": 17,
}


def test_the_fields_of_a_view_that_all_must_share_are_all_looked_at() -> None:
    own = {"hospital", "vector_hash", "commitment", "signature"}
    assert OTHER.keys() == set(MaskedInput.__dataclass_fields__) - own


@pytest.mark.parametrize("field", OTHER)
def test_a_peer_that_was_shown_anything_else_is_found_out(consortium: Consortium, total: MaskedSum, field: str) -> None:
    """Its signature is genuine, over what it was shown: another model or purpose, cohort, directory, run or round."""
    other = replace(total.views[PEER], **{field: OTHER[field]}, signature=b"")
    request = request_of(total, hospital_2=signed_by(consortium, PEER, other))
    assert_nothing_revealed(consortium, request, ViewSignatureError)


def test_a_peers_view_of_another_vector_than_it_signed_is_refused(consortium: Consortium, total: MaskedSum) -> None:
    view = total.views[PEER]
    request = request_of(total, hospital_2=SignedView(PEER, bytes(32), b"", view.signature))
    assert_nothing_revealed(consortium, request, ViewSignatureError)


def test_a_forged_view_is_refused(consortium: Consortium, total: MaskedSum) -> None:
    view, mine = total.views[PEER], total.views[VICTIM]
    for signature in (bytes(64), b"", mine.signature):
        request = request_of(total, hospital_2=SignedView(PEER, view.vector_hash, b"", signature))
        assert_nothing_revealed(consortium, request, ViewSignatureError)


def test_a_hospital_that_signs_for_another_is_found_out(consortium: Consortium, total: MaskedSum) -> None:
    unsigned = replace(total.views[PEER], signature=b"")
    forged = replace(signed_by(consortium, "hospital-3", unsigned), hospital=PEER)
    assert_nothing_revealed(consortium, request_of(total, hospital_2=forged), ViewSignatureError)


def test_a_commitment_where_there_is_none_yet_is_refused_also_when_it_is_signed(
    consortium: Consortium, total: MaskedSum
) -> None:
    committed = replace(total.views[PEER], commitment=bytes(32), signature=b"")
    request = request_of(total, hospital_2=signed_by(consortium, PEER, committed))
    assert_nothing_revealed(consortium, request, ViewSignatureError)


def test_a_view_of_somebody_outside_the_cohort_is_refused(consortium: Consortium, total: MaskedSum) -> None:
    stray = replace(request_of(total).views[1], hospital="hospital-9")
    request = request_of(total)
    with_stray = replace(request, views=(*request.views, stray))
    assert_nothing_revealed(consortium, with_stray, NotInCohortError, about="hospital-9")


def test_a_request_of_another_round_or_run_is_refused(consortium: Consortium, total: MaskedSum) -> None:
    consortium.masked_sum(round_number=2)
    consortium[VICTIM].masked[1] = consortium[VICTIM].masked[2]
    assert_nothing_revealed(consortium, request_of(total), ReplayedMessageError, about=VICTIM)
    foreign = replace(request_of(total), run_id="f" * 32, round_number=2)
    consortium[VICTIM].masked[2] = consortium[VICTIM].masked[1]
    assert_nothing_revealed(consortium, foreign, WrongRunError, about=VICTIM)


def test_views_of_an_earlier_round_are_refused(consortium: Consortium, total: MaskedSum) -> None:
    earlier = request_of(total)
    later = consortium.masked_sum(round_number=2)
    replayed = replace(request_of(later, hospital_2=earlier.views[1]), round_number=2)
    assert_nothing_revealed(consortium, replayed, ViewSignatureError)


def test_a_semi_honest_run_has_no_such_exchange() -> None:
    """Its threshold is too low for two endings of a round."""
    consortium = Consortium(5, adversary=Adversary.SEMI_HONEST)
    total = consortium.masked_sum()
    assert not full_unmasking.is_full(total)
    assert_nothing_revealed(consortium, request_of(total), UnknownPhaseError, about=VICTIM)


def test_a_cohort_that_differs_for_one_hospital_leaves_the_server_without_a_share(consortium: Consortium) -> None:
    routed = consortium.routed()
    shorter = tuple(name for name in consortium.names if name != "hospital-5")
    views = {}
    for name in consortium.names:
        asked = routed.request_for(name, TERMS)
        if name == VICTIM:
            inbox = tuple(share for share in asked.inbox if share.dealer in shorter)
            asked = MaskedInputRequest(RUN_ID, 1, TERMS, shorter, inbox)
        view, _ = consortium[name].mask(sent(asked), consortium.vector())
        views[name] = SignedView(name, view.vector_hash, view.commitment, view.signature)
    for name in consortium.names:
        cohort = shorter if name == VICTIM else consortium.names
        request = FullUnmaskingRequest(RUN_ID, 1, tuple(views[each] for each in cohort))
        with pytest.raises(ViewSignatureError):
            consortium[name].reveal_all(request)


# ---------------------------------------------------------------------------------------------------------------------
# At the server


def refused_by_server(consortium: Consortium, error: type[SecAggError], **changes: Any) -> None:  # noqa: ANN401
    """Assert that a vector whose view has other fields, signed or not, is not added."""
    routed = consortium.routed()
    total = MaskedSum(routed, TERMS)
    view, masked = consortium[PEER].mask(routed.request_for(PEER, TERMS), consortium.vector())
    bent = replace(view, **changes)
    if "signature" not in changes:
        signature = consortium[PEER].identity.sign(masked_input.signed_part(consortium.run, bent))
        bent = replace(bent, signature=signature)
    with pytest.raises(error) as refusal:
        total.add(PEER, bent, masked)
    assert refusal.type is error
    assert refusal.value.hospital == PEER
    assert not total.total.any()
    assert total.submitted == frozenset()
    total.add(PEER, view, masked)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"signature": bytes(64)}, ViewSignatureError),
        ({"signature": b""}, ViewSignatureError),
        ({"commitment": bytes(32)}, ViewSignatureError),
        ({"vector_hash": bytes(32)}, VectorHashError),
        ({"directory_hash": bytes(32)}, DirectoryMismatchError),
        ({"config_hash": bytes(32)}, ConfigHashError),
        ({"hospital": "hospital-3"}, ImpersonationError),
    ],
    ids=str,
)
def test_a_view_that_is_not_the_rounds_is_refused_by_the_server_with_its_vector(
    consortium: Consortium, changes: dict[str, Any], error: type[SecAggError]
) -> None:
    refused_by_server(consortium, error, **changes)


def test_a_vector_that_was_changed_on_its_way_is_refused_by_the_server(consortium: Consortium) -> None:
    routed = consortium.routed()
    total = MaskedSum(routed, TERMS)
    view, masked = consortium[PEER].mask(routed.request_for(PEER, TERMS), consortium.vector())
    masked[3] += 1
    with pytest.raises(VectorHashError):
        total.add(PEER, view, masked)
    assert not total.total.any()


def test_a_sum_without_somebody_is_not_opened_at_once(consortium: Consortium) -> None:
    total = consortium.masked_sum(lost=("hospital-3",))
    assert not full_unmasking.is_full(total)
    with pytest.raises(TooFewHospitalsError, match="all 5 of the cohort must submit a vector, got 4"):
        full_unmasking.request_all(total)


def test_fewer_answers_than_the_threshold_open_nothing(consortium: Consortium, total: MaskedSum) -> None:
    masked = total.total.copy()
    with pytest.raises(TooFewSharesError):
        consortium.unmask_all(total, lost=("hospital-4", "hospital-5"))
    assert np.array_equal(total.total, masked)


# ---------------------------------------------------------------------------------------------------------------------
# The attack on a sparse graph that a threshold of signatures would allow


class SparseAttack:
    """96 hospitals, none of which colludes, and a server that wants one vector, P's.

    Everybody but P masks for A, all of them. P is shown B, which lacks those of its neighbours that are not in K, the
    twelve that are farthest from it on the circle. All but P and K then sign that K dropped out, and reveal for it. K
    and P are told that nobody is missing.
    """

    def __init__(self) -> None:
        self.consortium = Consortium(96, graph=GraphParameters(colluding=0), vector_length=24, counts_length=4)
        routed = self.consortium.routed()
        self.graph, self.everybody = routed.graph, self.consortium.names
        self.victim = VICTIM
        near = self.graph.by_hospital[self.victim]
        assert (len(near), self.graph.share_threshold, routed.directory.threshold) == (22, 13, 65)
        self.kept = self._farthest(near)
        self.shorter = tuple(name for name in self.everybody if name not in near or name in self.kept)
        self.vector = self.consortium.vector()
        self.views: dict[str, MaskedInput] = {}
        for name in self.everybody:
            asked = routed.request_for(name, TERMS)
            if name == self.victim:
                inbox = tuple(share for share in asked.inbox if share.dealer in self.shorter)
                asked = MaskedInputRequest(RUN_ID, 1, TERMS, self.shorter, inbox)
            vector = self.vector if name == self.victim else self.consortium.vector()
            self.views[name], masked = self.consortium[name].mask(asked, vector)
            if name == self.victim:
                self.masked = masked
        self.public = {keys.hospital: keys.masking_key for keys in routed.directory.keys}
        self.revealed: dict[str, UnmaskingShares] = {}

    def _farthest(self, near: tuple[str, ...]) -> frozenset[str]:
        """Return those neighbours of the victim that share the fewest other neighbours with it, six on either side."""
        own = {self.victim, *near}
        distance = {name: len(own.difference(self.graph.by_hospital[name], (name,))) for name in near}
        return frozenset(sorted(near, key=distance.__getitem__)[-12:])

    def sign_and_reveal(self) -> None:
        """Have all but the victim and K sign that K dropped out, and reveal for it: three exchanges, no rule broken."""
        survivors = tuple(name for name in self.everybody if name not in self.kept)
        told = SurvivorList(RUN_ID, 1, survivors, tuple(sorted(self.kept)))
        signers = [name for name in survivors if name != self.victim]
        signatures = tuple(self.consortium[name].sign(told) for name in signers)
        request = UnmaskingRequest(RUN_ID, 1, told.survivors, told.dropped, signatures)
        wanted = {near for name in (self.victim, *self.kept) for near in self.graph.by_hospital[name]}
        for name in wanted.intersection(signers):
            self.revealed[name] = self.consortium[name].reveal(request)

    def request_to(self, name: str) -> FullUnmaskingRequest:
        """Return the request to open the sum over everybody whom a hospital masked for."""
        cohort = self.shorter if name == self.victim else self.everybody
        views = (self.views[each] for each in cohort)
        return FullUnmaskingRequest(
            RUN_ID, 1, tuple(SignedView(each.hospital, each.vector_hash, b"", each.signature) for each in views)
        )

    def secret(self, owner: str, *, of_key: bool) -> bytes | None:
        """Rebuild a hospital's b, or its masking key, if enough shares of it were revealed."""
        shares = {
            self.graph.points[sender]: share.share
            for sender, message in self.revealed.items()
            for share in (message.masking_key_shares if of_key else message.self_mask_shares)
            if share.owner == owner
        }
        if len(shares) < self.graph.share_threshold:
            return None
        return shamir.rebuild(dict(sorted(shares.items())[: self.graph.share_threshold]))

    def unmasked(self) -> Vector | None:
        """Return the victim's vector, if everything on it is known."""
        seed, run = self.secret(self.victim, of_key=False), self.consortium.run
        keys = {name: self.secret(name, of_key=True) for name in self.kept}
        if seed is None or not all(keys.values()):
            return None
        context = round_context(run, 1)
        opened, view = self.masked.copy(), self.views[self.victim]
        for segment, part in zip(Segment, run.segments(opened), strict=True):
            masks = [Mask(derive(seed, self_mask_info(context, self.victim, segment)), subtract=True)]
            for name, key in keys.items():
                assert key is not None
                info = pairwise_seed_info(context, view.cohort_hash, view.request_hash, (self.victim, name), segment)
                agreed = Agreements(key).agree(self.public[self.victim], info)
                masks.append(Mask(agreed, subtract=self.victim < name))
            apply_masks(part, masks)
        return opened


@pytest.fixture(scope="module")
def sparse() -> SparseAttack:
    attack = SparseAttack()
    attack.sign_and_reveal()
    return attack


def opened_by(attack: SparseAttack, names: Iterable[str]) -> dict[str, UnmaskingShares]:
    return {name: full_unmasking.shares_for_all(attack.consortium[name].masked[1]) for name in names}


def test_in_a_sparse_graph_everybody_whom_the_attack_needs_refuses_to_open(sparse: SparseAttack) -> None:
    for name in (*sparse.kept, sparse.victim):
        with pytest.raises(ViewSignatureError) as refusal:
            sparse.consortium[name].reveal_all(sent(sparse.request_to(name)))
        assert refusal.value.place.party == name
    # Between K and the victim, each saw a view that the other did not sign.
    assert sparse.unmasked() is None
    assert sparse.secret(sparse.victim, of_key=False) is None
    assert all(sparse.secret(name, of_key=True) is not None for name in sparse.kept)


def test_a_threshold_of_views_would_be_there_and_would_open_the_victims_vector(sparse: SparseAttack) -> None:
    """What was refused above is what the whole attack hangs on: with it one hospital's vector is read exactly."""
    for name in (*sparse.kept, sparse.victim):
        state, request = sparse.consortium[name].masked[1], sparse.request_to(name)
        good = 0
        for signed in request.views:
            view = signed.within(state.view)
            try:
                masked_input.verify_view(state.run, view, Place(name, 1, Phase.FULL_UNMASKING))
            except ViewSignatureError:
                continue
            good += 1
        assert good >= state.threshold or name == sparse.victim
        if name != sparse.victim:
            assert good == len(sparse.everybody) - 1
    before = dict(sparse.revealed)
    try:
        sparse.revealed.update(opened_by(sparse, sparse.kept))
        opened = sparse.unmasked()
    finally:
        sparse.revealed = before
    assert opened is not None
    assert np.array_equal(opened, sparse.vector)
