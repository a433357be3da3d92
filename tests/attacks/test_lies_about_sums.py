"""A server, alone or with a colluding hospital, tries to hand out another sum than that of the survivors' vectors."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from common.proved_sums.commitment import commit, from_bytes, open_sum, to_bytes
from common.proved_sums.errors import (
    CommitmentBytesError,
    FalseSumError,
    MissingCommitmentError,
    SumBoundError,
    SumShapeError,
    UnexpectedCommitmentError,
    UnsignedCommitmentError,
)
from common.proved_sums.expansion import matrix_key
from common.proved_sums.proof import committed_group, prove, verify_sum
from common.secagg import full_unmasking, masked_input
from common.secagg.errors import (
    SERVER,
    CommitmentHashError,
    NonCanonicalMessageError,
    ParameterError,
    Place,
    ReplayedMessageError,
    VectorHashError,
    ViewSignatureError,
    WrongRoundError,
    WrongRunError,
)
from common.secagg.messages import Limits, OpenedCommitment, SealedCommitment, SumProof, decode, encode
from common.secagg.parameters import Adversary, Vector
from common.secagg.phases import Phase
from common.secagg.sealed_commitment import commitment_hash, unseal
from tests.support.parties import TERMS, sent
from tests.support.proved_rounds import ENTRIES, ProvedConsortium, ProvedRound, resigned, signed_view

VICTIM, PEER, OTHER, COLLUDER = (f"hospital-{number}" for number in range(1, 5))
PLACE = Place(VICTIM, 1, Phase.FULL_UNMASKING)


@pytest.fixture(scope="module")
def honest() -> ProvedRound:
    """Return a round of four hospitals in which nobody lies."""
    return ProvedConsortium(4).play()


@pytest.fixture(scope="module")
def later(honest: ProvedRound) -> ProvedRound:
    return honest.consortium.play(2)


def with_commitment(proof: SumProof, hospital: str, value: bytes) -> SumProof:
    changed = [replace(each, commitment=value) if each.hospital == hospital else each for each in proof.commitments]
    return replace(proof, commitments=tuple(changed))


# What holds


@pytest.mark.parametrize("modulus_bits", [16, 32])
def test_every_hospital_gets_the_sum_of_all_vectors_over_the_integers(modulus_bits: int) -> None:
    played = ProvedConsortium(3, seed=4, modulus_bits=modulus_bits).play()
    for name in played.total.survivors:
        assert played.verify(name).tolist() == played.plain()


def test_a_sum_without_those_who_dropped_out_is_proved_too() -> None:
    played = ProvedConsortium(5).play(lost=("hospital-2",))
    assert "hospital-2" not in played.groups
    assert played.verify(VICTIM).tolist() == played.plain()


def test_a_survivor_that_vanishes_before_its_last_reply_does_not_spoil_the_proof() -> None:
    played = ProvedConsortium(5).play(silent=("hospital-5",))
    assert "hospital-5" in played.total.survivors
    assert played.verify(VICTIM).tolist() == played.plain()


def test_the_download_is_the_width_of_the_ring(honest: ProvedRound) -> None:
    assert honest.sum.nbytes == 2 * (ENTRIES + honest.parameters.randomness)
    assert len(encode(honest.proof)) < 4 * (honest.parameters.commitment_bytes + 64) + 40


# Another sum


def plus(total: Vector, place: int, amount: int) -> Vector:
    changed = total.copy()
    changed[place] += np.array(amount % 2**16, total.dtype)
    return changed


@pytest.mark.parametrize("place", [0, ENTRIES - 1, ENTRIES, -1])
@pytest.mark.parametrize("amount", [1, -1, 2**15, 4096])
def test_a_sum_that_differs_by_a_unit_is_refused(honest: ProvedRound, place: int, amount: int) -> None:
    with pytest.raises((FalseSumError, SumBoundError)):
        honest.verify(VICTIM, total=plus(honest.sum, place, amount))


def test_a_sum_of_the_servers_own_choice_is_refused(honest: ProvedRound) -> None:
    chosen = np.zeros_like(honest.sum)
    with pytest.raises(FalseSumError):
        honest.verify(VICTIM, total=chosen)


def test_a_sum_plus_q_or_plus_r_is_the_same_residue_or_no_sum_of_this_ring(honest: ProvedRound) -> None:
    wide = honest.sum.view("<i2").astype(np.int64)
    for added in (honest.parameters.lattice.modulus, 2**16):
        moved = wide.copy()
        moved[3] += added
        with pytest.raises(SumShapeError, match="of uint16"):
            honest.verify(VICTIM, total=moved.view(np.uint64))
    moved = wide.copy()
    moved[3] += 2**16
    assert (moved.astype(np.uint16) == honest.sum).all()


def test_an_entry_beyond_the_bound_is_refused_before_anything_is_computed(honest: ProvedRound) -> None:
    beyond = honest.sum.copy()
    beyond[5] = 2**15
    with pytest.raises(SumBoundError, match="32767"):
        honest.verify(VICTIM, total=beyond)


def test_a_sum_that_holds_the_bound_itself_is_not_refused_for_it(honest: ProvedRound) -> None:
    for edge in (2**15 - 1, 2**15 + 1):
        at_the_edge = honest.sum.copy()
        at_the_edge[5] = edge
        with pytest.raises(FalseSumError):
            honest.verify(VICTIM, total=at_the_edge)


@pytest.mark.parametrize(
    "shape",
    [
        lambda total: total[:-1],
        lambda total: np.append(total, total[:1]),
        lambda total: total.reshape(2, -1),
        lambda total: total.astype(np.uint32),
        lambda total: total.view(np.int16),
        lambda total: total.astype(np.float32),
    ],
)
def test_an_array_of_another_shape_or_type_is_refused(honest: ProvedRound, shape: Callable[[Vector], Vector]) -> None:
    with pytest.raises(SumShapeError):
        honest.verify(VICTIM, total=shape(honest.sum))


# Another group


def test_a_sum_without_one_survivor_is_refused_even_with_the_commitments_that_fit_it(honest: ProvedRound) -> None:
    left_out = honest.changes[COLLUDER].view(np.uint16)
    without = honest.sum.copy()
    without[:ENTRIES] -= left_out
    fitting = replace(honest.proof, commitments=honest.proof.commitments[:-1])
    with pytest.raises(MissingCommitmentError) as refusal:
        honest.verify(VICTIM, fitting, without)
    assert refusal.value.hospital == COLLUDER


def test_a_commitment_twice_is_refused_as_bytes_and_as_a_message(honest: ProvedRound) -> None:
    twice = replace(honest.proof, commitments=(*honest.proof.commitments[:1], *honest.proof.commitments))
    with pytest.raises(UnexpectedCommitmentError) as refusal:
        verify_sum(honest.groups[VICTIM], honest.parameters, twice, honest.sum)
    assert refusal.value.hospital == VICTIM
    good = encode(honest.proof)
    head = len(good) - sum(2 + len(each.hospital) + 2 + len(each.commitment) for each in honest.proof.commitments)
    entry = 2 + len(VICTIM) + 2 + honest.parameters.commitment_bytes
    doubled = good[: head - 2] + (5).to_bytes(2, "big") + good[head : head + entry] + good[head:]
    with pytest.raises(NonCanonicalMessageError):
        decode(doubled, SumProof, Limits(5), PLACE)


def test_a_commitment_of_nobody_in_the_sum_is_refused(honest: ProvedRound) -> None:
    stranger = OpenedCommitment("hospital-9", honest.values[PEER])
    with pytest.raises(UnexpectedCommitmentError):
        honest.verify(VICTIM, prove(honest.run, 1, (*honest.proof.commitments, stranger)))


def test_a_sum_that_counts_one_survivor_twice_is_refused(honest: ProvedRound) -> None:
    doubled = honest.sum.copy()
    doubled[:ENTRIES] += honest.changes[PEER].view(np.uint16)
    with pytest.raises(FalseSumError):
        honest.verify(VICTIM, total=doubled)


# Another commitment


def test_commitments_of_two_hospitals_that_are_swapped_are_refused(honest: ProvedRound) -> None:
    swapped = with_commitment(with_commitment(honest.proof, PEER, honest.values[OTHER]), OTHER, honest.values[PEER])
    with pytest.raises(CommitmentHashError) as refusal:
        honest.verify(VICTIM, swapped)
    assert refusal.value.hospital == PEER


def test_the_hospitals_own_commitment_cannot_be_replaced(honest: ProvedRound) -> None:
    with pytest.raises(CommitmentHashError) as refusal:
        honest.verify(VICTIM, with_commitment(honest.proof, VICTIM, honest.values[PEER]))
    assert refusal.value.hospital == VICTIM


def test_a_commitment_of_an_earlier_round_is_refused(honest: ProvedRound, later: ProvedRound) -> None:
    with pytest.raises(CommitmentHashError):
        later.verify(VICTIM, with_commitment(later.proof, PEER, honest.values[PEER]))


def test_a_proof_of_another_round_or_run_is_refused(honest: ProvedRound, later: ProvedRound) -> None:
    with pytest.raises(ReplayedMessageError):
        later.verify(VICTIM, honest.proof)
    with pytest.raises(WrongRoundError):
        honest.verify(VICTIM, later.proof)
    with pytest.raises(WrongRunError):
        honest.verify(VICTIM, replace(honest.proof, run_id="f" * 32))


def test_a_hash_that_was_signed_for_another_view_is_no_hash_of_this_one(
    honest: ProvedRound, later: ProvedRound
) -> None:
    view, value = honest.total.views[PEER], honest.values[PEER]
    assert commitment_hash(honest.run, view, PEER, value) == view.commitment
    others = [
        commitment_hash(honest.run, later.total.views[PEER], PEER, value),
        commitment_hash(honest.run, replace(view, request_hash=bytes(32)), PEER, value),
        commitment_hash(honest.run, replace(view, cohort_hash=bytes(32)), PEER, value),
        commitment_hash(honest.run, replace(view, directory_hash=bytes(32)), PEER, value),
        commitment_hash(replace(honest.run, run_id="f" * 32), replace(view, run_id="f" * 32), PEER, value),
        commitment_hash(honest.run, view, OTHER, value),
    ]
    assert view.commitment not in others
    # What is a hospital's own in a view does not count: everybody computes the same from its own view.
    assert commitment_hash(honest.run, honest.total.views[OTHER], PEER, value) == view.commitment


def test_a_commitment_whose_hash_nobody_signed_is_refused_before_a_share_is_revealed(honest: ProvedRound) -> None:
    unsigned = replace(signed_view(honest.total.views[COLLUDER]), commitment=bytes(32))
    with pytest.raises(UnsignedCommitmentError) as refusal:
        honest.group_of(VICTIM, honest.views({COLLUDER: unsigned}))
    assert refusal.value.hospital == COLLUDER
    empty = resigned(honest.consortium, honest.total.views[COLLUDER], commitment=b"")
    with pytest.raises(UnsignedCommitmentError):
        honest.group_of(VICTIM, honest.views({COLLUDER: empty}))


def test_a_hospital_does_not_open_a_sum_whose_views_have_no_commitment(honest: ProvedRound) -> None:
    request = full_unmasking.request_all(honest.total)
    bare = resigned(honest.consortium, honest.total.views[COLLUDER], commitment=b"")
    shown = replace(request, views=(*request.views[:-1], bare))
    with pytest.raises(ViewSignatureError, match="32 bytes"):
        honest.consortium[VICTIM].reveal_all(sent(shown))


def test_a_view_of_each_survivor_must_be_shown_and_no_other(honest: ProvedRound) -> None:
    views = honest.views()
    with pytest.raises(MissingCommitmentError):
        honest.group_of(VICTIM, views[:-1])
    with pytest.raises(UnexpectedCommitmentError):
        honest.group_of(VICTIM, (*views, views[0]))
    stranger = replace(views[0], hospital="hospital-9")
    with pytest.raises(UnexpectedCommitmentError):
        honest.group_of(VICTIM, (*views, stranger))
    with pytest.raises(UnexpectedCommitmentError):
        committed_group(honest.run, honest.total.views[VICTIM], (stranger,), ("hospital-9",), PLACE)


def test_a_hospitals_own_view_must_be_the_one_that_it_signed(honest: ProvedRound) -> None:
    # With its identity key stolen, or by its own defect: another view under its name, well signed.
    other = resigned(honest.consortium, honest.total.views[VICTIM], commitment=bytes(32))
    with pytest.raises(UnsignedCommitmentError, match="own"):
        honest.group_of(VICTIM, honest.views({VICTIM: other}))


def test_a_commitment_that_opens_its_hash_but_is_no_commitment_names_its_owner(honest: ProvedRound) -> None:
    for value in (b"", honest.values[COLLUDER][:-4], b"\xff" * honest.parameters.commitment_bytes):
        view = honest.total.views[COLLUDER]
        signed = resigned(honest.consortium, view, commitment=commitment_hash(honest.run, view, COLLUDER, value))
        group = honest.group_of(VICTIM, honest.views({COLLUDER: signed}))
        with pytest.raises(CommitmentBytesError) as refusal:
            verify_sum(group, honest.parameters, with_commitment(honest.proof, COLLUDER, value), honest.sum)
        assert refusal.value.hospital == COLLUDER


# A commitment that is chosen after the others


def test_the_rushing_colluder_is_refused_because_its_hash_came_first(honest: ProvedRound) -> None:
    # With the server it wants every hospital to accept ``chosen``: C_c = A chosen - Σ C of the others.
    parameters, key = honest.parameters, matrix_key(honest.run, honest.parameters)
    chosen = np.resize(np.array([7, -7], np.int16), parameters.length)
    wanted = open_sum(key, parameters, chosen)
    others = [from_bytes(parameters, honest.values[name], PLACE, name) for name in (VICTIM, PEER, OTHER)]
    rushed = to_bytes(
        parameters,
        [(value - sum(column)) % parameters.lattice.modulus
         for value, column in zip(wanted, zip(*others, strict=True), strict=True)],
    )  # fmt: skip
    proof = with_commitment(honest.proof, COLLUDER, rushed)
    with pytest.raises(CommitmentHashError) as refusal:
        honest.verify(VICTIM, proof, chosen.view(np.uint16))
    assert refusal.value.hospital == COLLUDER
    # It is its hash alone that stops it: had it been able to sign this one, the sum would be taken.
    view = honest.total.views[COLLUDER]
    late = resigned(honest.consortium, view, commitment=commitment_hash(honest.run, view, COLLUDER, rushed))
    group = honest.group_of(VICTIM, honest.views({COLLUDER: late}))
    assert verify_sum(group, parameters, proof, chosen.view(np.uint16)).total.tolist() == chosen[:ENTRIES].tolist()


def test_what_travels_with_a_vector_tells_nothing_of_the_commitment_before_the_seed_is_rebuilt(
    honest: ProvedRound,
) -> None:
    sealed = honest.total.sealed[PEER]
    assert sealed.ciphertext != honest.values[PEER]
    seed = honest.consortium[PEER].shared[1].self_mask_seed
    with pytest.raises(CommitmentHashError):
        unseal(honest.run, honest.total.views[PEER], bytes(32), sealed)
    assert unseal(honest.run, honest.total.views[PEER], seed, sealed).commitment == honest.values[PEER]
    pads = {
        bytes(a ^ b for a, b in zip(each.total.sealed[name].ciphertext, each.values[name], strict=True))
        for each in (honest, ProvedConsortium(4, seed=9).play())
        for name in (VICTIM, PEER)
    }
    assert len(pads) == 4


def test_one_who_copies_anothers_commitment_is_found_out_because_the_name_is_in_the_hash(honest: ProvedRound) -> None:
    copied = resigned(honest.consortium, honest.total.views[COLLUDER], commitment=honest.total.views[VICTIM].commitment)
    group = honest.group_of(VICTIM, honest.views({COLLUDER: copied}))
    with pytest.raises(CommitmentHashError) as refusal:
        verify_sum(group, honest.parameters, with_commitment(honest.proof, COLLUDER, honest.values[VICTIM]), honest.sum)
    assert refusal.value.hospital == COLLUDER


def test_a_vector_that_is_not_what_was_committed_to_voids_the_sum_and_cannot_plant_another() -> None:
    consortium = ProvedConsortium(4)
    routed = consortium.routed()
    played = ProvedRound(consortium, 1, masked_input.MaskedSum(routed, TERMS))
    for name in routed.cohort:
        change = consortium.change()
        commitment = commit(consortium.key, consortium.parameters, change, consortium.source.randbytes)
        sent_change = change if name != COLLUDER else consortium.change()
        hospital = consortium[name]
        hospital.masked[1], message, masked = masked_input.mask(
            hospital.shared[1],
            hospital.identity,
            sent(routed.request_for(name, TERMS)),
            consortium.whole(sent_change, commitment),
            commitment=commitment.value,
        )
        played.changes[name] = sent_change
        played.total.add(name, message, masked, hospital.masked[1].sealed)
    played.open()
    with pytest.raises(FalseSumError):
        played.verify(VICTIM)


# The server's own checks


def test_the_server_names_who_sent_a_commitment_that_does_not_open_its_hash() -> None:
    consortium = ProvedConsortium(4)
    played = consortium.play()
    routed = consortium.routed(2)
    total = masked_input.MaskedSum(routed, TERMS)
    for name in routed.cohort:
        hospital, change = consortium[name], consortium.change()
        commitment = commit(consortium.key, consortium.parameters, change, consortium.source.randbytes)
        hospital.masked[2], message, masked = masked_input.mask(
            hospital.shared[2], hospital.identity, sent(routed.request_for(name, TERMS)),
            consortium.whole(change, commitment), commitment=commitment.value,
        )  # fmt: skip
        sealed = hospital.masked[2].sealed
        assert sealed is not None
        if name == COLLUDER:  # It seals another commitment than it signs the hash of.
            sealed = replace(sealed, ciphertext=bytes(len(sealed.ciphertext)))
            message = replace(message, vector_hash=masked_input.vector_hash(masked, sealed), signature=b"")
            message = replace(
                message, signature=hospital.identity.sign(masked_input.signed_part(consortium.run, message))
            )
            hospital.masked[2] = replace(hospital.masked[2], view=message)
        total.add(name, message, masked, sealed)
    unmasked = consortium.unmask_all(total)
    assert [(type(error), error.hospital) for error in unmasked.refusals] == [(CommitmentHashError, COLLUDER)]
    assert [each.hospital for each in unmasked.commitments] == [VICTIM, PEER, OTHER]
    assert len(played.unmasked.commitments) == 4


def test_a_sealed_commitment_that_is_altered_on_its_way_is_refused_with_the_vector(honest: ProvedRound) -> None:
    # So a server cannot say that a hospital had sent it so: its hash is under the hospital's signature.
    consortium = ProvedConsortium(4, seed=2)
    routed = consortium.routed()
    commitment = commit(consortium.key, consortium.parameters, consortium.change(), consortium.source.randbytes)
    hospital = consortium[VICTIM]
    state, message, masked = masked_input.mask(
        hospital.shared[1], hospital.identity, sent(routed.request_for(VICTIM, TERMS)),
        consortium.whole(consortium.change(), commitment), commitment=commitment.value,
    )  # fmt: skip
    assert state.sealed is not None
    total = masked_input.MaskedSum(routed, TERMS)
    with pytest.raises(VectorHashError):
        total.add(VICTIM, message, masked, replace(state.sealed, ciphertext=bytes(4096)))
    with pytest.raises(CommitmentHashError, match="must come with a vector"):
        total.add(VICTIM, message, masked)
    with pytest.raises(ReplayedMessageError):
        total.add(VICTIM, message, masked, SealedCommitment(consortium.run.run_id, 0, VICTIM, b""))
    total.add(VICTIM, message, masked, state.sealed)
    assert honest.run.proves_sums


def test_a_commitment_comes_where_sums_are_proved_and_nowhere_else() -> None:
    consortium = ProvedConsortium(3)
    routed = consortium.routed()
    hospital = consortium[VICTIM]
    vector = np.zeros(consortium.run.vector_length, np.uint16)
    with pytest.raises(CommitmentHashError, match="committed to"):
        masked_input.mask(hospital.shared[1], hospital.identity, routed.request_for(VICTIM, TERMS), vector)
    assert SERVER not in consortium.names


def test_sums_are_proved_in_runs_against_an_active_server_alone(honest: ProvedRound) -> None:
    with pytest.raises(ParameterError, match="active server alone"):
        replace(honest.run, adversary=Adversary.SEMI_HONEST)
