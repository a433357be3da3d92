"""A server, or a hospital, tries to abuse a dispute: to see a change that nobody has to show, to frame, to get away."""

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from common.proved_sums.commitment import Centred, Commitment, commit, from_bytes
from common.proved_sums.dispute import Fault, early_faults, require_fault, sum_fault, vector_fault, verdict
from common.secagg import disputes
from common.secagg.advertise_keys import verify
from common.secagg.binding import round_context
from common.secagg.errors import (
    DisputeEvidenceError,
    KeySignatureError,
    ParameterError,
    Place,
    ReplayedMessageError,
    UnfoundedDisputeError,
    WrongRoundError,
    WrongRunError,
)
from common.secagg.keys import Agreements, Committed, pairwise_seed_info
from common.secagg.keys import commit as commit_to_secret
from common.secagg.masked_input import array_hash, disputable_hash
from common.secagg.masking_keys import derived_key, public_by_hospital
from common.secagg.masks import Mask, apply_masks
from common.secagg.messages import Dispute, DroppedKey
from common.secagg.parameters import GraphParameters, Segment, Vector
from common.secagg.phases import Phase
from tests.support.disputed_rounds import (
    LIMBS,
    LONGEST,
    MOST_WEIGHT,
    Cheat,
    DisputedConsortium,
    DisputedPlay,
    resigned,
)
from tests.support.parties import Consortium
from tests.support.proved_rounds import ENTRIES, ProvedConsortium

VICTIM, PEER, OTHER, CHEAT = (f"hospital-{number}" for number in range(1, 5))


def scaled(factor: float) -> Cheat:
    """Return a cheat that commits honestly to its change times a factor, as far as the entries reach."""

    def cheat(of: DisputedConsortium, honest: Centred) -> tuple[Centred, Centred]:
        reach, made = of.rules.largest_entry, honest.astype(np.float64)
        made[:-LIMBS] = np.clip(made[:-LIMBS] * factor, -reach, reach)
        return made.astype(honest.dtype), made.astype(honest.dtype)

    return cheat


def other_vector(change: Callable[[Centred], Centred]) -> Cheat:
    """Return a cheat with a good commitment and another vector."""
    return lambda _, honest: (honest, change(honest))


def other_commitment(change: Callable[[Centred], Centred]) -> Cheat:
    """Return a cheat with a good vector and another commitment."""
    return lambda _, honest: (change(honest), honest)


def garbage(of: DisputedConsortium, honest: Centred) -> tuple[Centred, Centred]:
    noise = np.frombuffer(of.source.randbytes(honest.nbytes), honest.dtype)
    return honest, noise


def committed_garbage(of: DisputedConsortium, honest: Centred) -> tuple[Centred, Centred]:
    noise = np.frombuffer(of.source.randbytes(honest.nbytes), honest.dtype)
    return noise, noise


def weighing(weight: int) -> Cheat:
    def cheat(of: DisputedConsortium, honest: Centred) -> tuple[Centred, Centred]:
        bits, made = of.rules.weight_limb_bits, honest.copy()
        made[-LIMBS:] = (weight & ((1 << bits) - 1), weight >> bits)
        return made, made

    return cheat


def moved(by: int) -> Callable[[Centred], Centred]:
    def change(honest: Centred) -> Centred:
        made = honest.copy()
        made[0] += by
        return made

    return change


CHEATS: dict[str, tuple[Cheat, set[Fault]]] = {
    "twenty times": (scaled(20), {Fault.LENGTH}),
    "forty times": (scaled(40), {Fault.LENGTH}),
    "a thousand times": (scaled(1000), {Fault.LENGTH}),
    "minus forty times": (scaled(-40), {Fault.LENGTH}),
    "a good commitment and a vector with the other sign": (other_vector(lambda honest: -honest), {Fault.OTHER_VECTOR}),
    "a good commitment and a vector with a unit more": (other_vector(moved(1)), {Fault.OTHER_VECTOR}),
    "a good vector and a commitment to a unit more": (other_commitment(moved(1)), {Fault.OTHER_VECTOR}),
    "garbage": (garbage, {Fault.ENTRY, Fault.OTHER_VECTOR}),
    "garbage that is committed to": (committed_garbage, {Fault.ENTRY, Fault.LENGTH}),
    "a weight far beyond what there may be": (weighing(MOST_WEIGHT * 9), {Fault.WEIGHT}),
}


@pytest.fixture(scope="module")
def honest() -> DisputedPlay:
    """Return a round of four hospitals in which nobody cheats."""
    return DisputedConsortium(4).dispute()


@pytest.fixture(scope="module")
def cheated() -> DisputedPlay:
    """Return one in which the fourth sends forty times its change."""
    return DisputedConsortium(4, cheats={CHEAT: scaled(40)}).dispute()


# Who cheats is named


@pytest.mark.parametrize("hospitals", [4, 8])
@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_is_named_by_everybody_and_nobody_else_is(name: str, hospitals: int) -> None:
    cheat, faults = CHEATS[name]
    play = DisputedConsortium(hospitals, seed=3, cheats={CHEAT: cheat}).dispute()
    opened = {each: play.answer(each) for each in play.names}
    found = play.verdicts(opened)
    assert set(found) == {CHEAT}
    assert found[CHEAT] in faults


@pytest.mark.parametrize("lost", [(PEER,), (OTHER,)])
def test_a_cheat_is_named_in_a_round_in_which_somebody_dropped_out(lost: tuple[str, ...]) -> None:
    play = DisputedConsortium(5, cheats={CHEAT: scaled(40)}).dispute(lost)
    assert set(play.verdicts({each: play.answer(each) for each in play.names})) == {CHEAT}


def test_several_cheats_are_all_named() -> None:
    cheats = {CHEAT: scaled(100), PEER: garbage}
    play = DisputedConsortium(8, cheats=cheats).dispute()
    assert set(play.verdicts({each: play.answer(each) for each in play.names})) == {CHEAT, PEER}


def test_in_the_wide_ring_it_is_the_same() -> None:
    play = DisputedConsortium(4, modulus_bits=32, cheats={CHEAT: scaled(1000)}).dispute()
    assert play.verdicts({each: play.answer(each) for each in play.names}) == {CHEAT: Fault.LENGTH}


def test_a_cheat_that_shows_another_key_is_named_for_it(cheated: DisputedPlay) -> None:
    opened = {name: cheated.answer(name) for name in cheated.names}
    opened[CHEAT] = resigned(cheated, opened[CHEAT], change_key=bytes(range(32)))
    assert cheated.verdicts(opened) == {CHEAT: Fault.OTHER_KEY}


def test_a_cheat_that_shows_nothing_is_named_because_nobody_else_is_at_fault(cheated: DisputedPlay) -> None:
    opened = {name: cheated.answer(name) for name in cheated.names if name != CHEAT}
    assert cheated.verdicts(opened) == {CHEAT: Fault.NOT_OPENED}


def test_nobody_is_named_for_silence_where_a_third_showed_nothing() -> None:
    play = DisputedConsortium(6, cheats={CHEAT: scaled(60)}).dispute()
    opened = {name: play.answer(name) for name in play.names if name not in (CHEAT, PEER)}
    assert play.verdicts(opened) == {}
    opened[PEER] = play.answer(PEER)
    assert play.verdicts(opened) == {CHEAT: Fault.NOT_OPENED}


def test_who_merely_did_not_answer_is_not_named_where_somebody_is_found(cheated: DisputedPlay) -> None:
    opened = {name: cheated.answer(name) for name in cheated.names if name != PEER}
    assert cheated.verdicts(opened) == {CHEAT: Fault.LENGTH}


def test_a_commitment_that_is_not_what_was_signed_is_named_before_anybody_shows_anything(honest: DisputedPlay) -> None:
    shown = honest.check(VICTIM)
    without = replace(shown, commitments={name: shown.commitments[name] for name in (VICTIM, PEER, OTHER)})
    assert early_faults(honest.rules, without) == {CHEAT: Fault.NO_COMMITMENT}
    short = replace(shown, commitments={**shown.commitments, CHEAT: shown.commitments[CHEAT][:-4]})
    assert early_faults(honest.rules, short) == {CHEAT: Fault.NO_COMMITMENT}
    assert verdict(honest.rules, short, ()) == {CHEAT: Fault.NO_COMMITMENT}
    assert early_faults(honest.rules, shown) == {}


def test_a_commitment_under_another_seed_than_was_signed_does_not_open(honest: DisputedPlay) -> None:
    # What was sealed is under the view's hash, and so is the commitment to b_u: the cheat alone can make them disagree.
    kept = honest.kept[VICTIM]
    vector, change = honest.shown.vectors[3], honest.changes.reshape(4, -1)[3]
    sealed = bytes([vector.sealed[0] ^ 1]) + vector.sealed[1:]
    hashed = disputable_hash(sealed, vector.self_mask_commitment, vector.counts_hash, array_hash(change))
    views = {**kept.round.views, CHEAT: replace(kept.round.views[CHEAT], vector_hash=hashed)}
    shown = replace(honest.shown, vectors=(*honest.shown.vectors[:3], replace(vector, sealed=sealed)))
    place = Place(VICTIM, 1, Phase.DISPUTE)
    checked = disputes.check(replace(kept.round, views=views), shown, honest.changes, place)
    assert early_faults(honest.rules, checked) == {CHEAT: Fault.NO_COMMITMENT}


# Nobody shows a change without a reason


def test_a_server_that_claims_a_failure_where_there_is_none_gets_nothing(honest: DisputedPlay) -> None:
    for name in honest.names:
        with pytest.raises(UnfoundedDisputeError):
            honest.answer(name)


def with_vector(shown: Dispute, position: int, **changes: bytes) -> Dispute:
    vectors = list(shown.vectors)
    vectors[position] = replace(vectors[position], **changes)  # type: ignore[arg-type]
    return replace(shown, vectors=tuple(vectors))


@pytest.mark.parametrize("field", ["sealed", "self_mask_commitment", "counts_hash", "self_mask_seed"])
@pytest.mark.parametrize("position", range(4))
def test_a_server_that_shows_another_seed_or_commitment_gets_nothing(
    honest: DisputedPlay, field: str, position: int
) -> None:
    value = getattr(honest.shown.vectors[position], field)
    lie = with_vector(honest.shown, position, **{field: bytes([value[0] ^ 1]) + value[1:]})
    with pytest.raises(DisputeEvidenceError) as refusal:
        honest.answer(VICTIM, lie)
    assert refusal.value.hospital == honest.names[position]


def test_a_server_that_shows_another_seed_with_a_commitment_to_it_gets_nothing(honest: DisputedPlay) -> None:
    """Else it could strip an honest change by another stream, and have its hospital found at fault."""
    seed, context = bytes(range(32)), round_context(honest.consortium.run, 1)
    promised = commit_to_secret(context, Committed.SELF_MASK_SEED, PEER, PEER, seed)
    lie = with_vector(honest.shown, 1, self_mask_seed=seed, self_mask_commitment=promised)
    with pytest.raises(DisputeEvidenceError, match="as its hospital signed it") as refusal:
        honest.answer(VICTIM, lie)
    assert refusal.value.hospital == PEER


def test_a_server_that_alters_or_swaps_masked_changes_gets_nothing(honest: DisputedPlay) -> None:
    altered = honest.changes.copy()
    altered[5] += 1
    swapped = np.concatenate(honest.changes.reshape(4, -1)[[1, 0, 2, 3]])
    for changes in (altered, swapped):
        with pytest.raises(DisputeEvidenceError):
            honest.answer(VICTIM, changes=changes)
    for changes in (honest.changes[:-1], honest.changes.astype(np.uint32), honest.changes.reshape(4, -1)):
        with pytest.raises(DisputeEvidenceError, match="must come with"):
            honest.answer(VICTIM, changes=changes)


def test_a_server_that_shows_another_rounds_vectors_gets_nothing(honest: DisputedPlay) -> None:
    consortium = honest.consortium
    assert isinstance(consortium, DisputedConsortium)
    later = consortium.dispute(round_number=2)
    with pytest.raises(ReplayedMessageError):
        later.answer(VICTIM, honest.shown, honest.changes)
    with pytest.raises(WrongRoundError):
        honest.answer(VICTIM, later.shown, later.changes)
    renumbered = replace(honest.shown, round_number=2)
    with pytest.raises(DisputeEvidenceError):
        later.answer(VICTIM, renumbered, honest.changes)
    with pytest.raises(WrongRunError):
        honest.answer(VICTIM, replace(honest.shown, run_id="f" * 32))


def test_a_server_that_leaves_a_survivor_out_or_adds_one_gets_nothing(honest: DisputedPlay) -> None:
    rows = honest.changes.reshape(4, -1)
    for position in range(4):
        vectors = tuple(each for number, each in enumerate(honest.shown.vectors) if number != position)
        with pytest.raises(DisputeEvidenceError, match="each survivor"):
            honest.answer(VICTIM, replace(honest.shown, vectors=vectors), np.delete(rows, position, 0).ravel())
    stranger = replace(honest.shown.vectors[3], hospital="hospital-9")
    with pytest.raises(DisputeEvidenceError, match="each survivor"):
        honest.answer(VICTIM, replace(honest.shown, vectors=(*honest.shown.vectors, stranger)))


def test_a_server_that_shows_another_key_of_a_dropped_hospital_gets_nothing() -> None:
    play = DisputedConsortium(5).dispute((PEER,))
    with pytest.raises(UnfoundedDisputeError):
        play.answer(VICTIM)
    (dropped,) = play.shown.dropped
    lie = replace(play.shown, dropped=(replace(dropped, change_key=bytes(range(32))),))
    with pytest.raises(DisputeEvidenceError, match="advertised") as refusal:
        play.answer(VICTIM, lie)
    assert refusal.value.hospital == PEER
    with pytest.raises(DisputeEvidenceError, match="dropped out"):
        play.answer(VICTIM, replace(play.shown, dropped=()))


def test_a_survivors_own_key_is_no_dropped_hospitals(honest: DisputedPlay, cheated: DisputedPlay) -> None:
    key = cheated.opened()[PEER].change_key
    lie = replace(honest.shown, dropped=(DroppedKey(PEER, key),))
    with pytest.raises(DisputeEvidenceError, match="dropped out"):
        honest.answer(VICTIM, lie)


# Nobody can be framed


def test_what_a_server_makes_up_about_a_hospital_blames_nobody(cheated: DisputedPlay) -> None:
    opened = {name: cheated.answer(name) for name in cheated.names}
    forged = replace(opened[PEER], change_key=bytes(range(32)))
    for lie in (forged, replace(forged, signature=b""), replace(opened[OTHER], hospital=PEER)):
        assert cheated.verdicts({**opened, PEER: lie}) == {CHEAT: Fault.LENGTH}
    assert cheated.verdict(VICTIM, {**opened, PEER: replace(opened[PEER], round_number=2)}) == {CHEAT: Fault.LENGTH}


def test_a_key_that_was_shown_in_another_round_blames_nobody(cheated: DisputedPlay) -> None:
    consortium = cheated.consortium
    assert isinstance(consortium, DisputedConsortium)
    later = consortium.dispute(round_number=3)
    opened = {name: cheated.answer(name) for name in cheated.names}
    replayed = {**opened, PEER: later.opened()[PEER]}
    renumbered = {**opened, PEER: replace(later.opened()[PEER], round_number=1)}
    for lie in (replayed, renumbered):
        assert cheated.verdicts(lie) == {CHEAT: Fault.LENGTH}


def frames(seed: int, hospitals: int, colluders: int) -> None:
    """Let colluders with the server do anything that they can sign, and see that nobody honest is found at fault."""
    source = random.Random(seed)  # noqa: S311 - repeatable
    names = [f"hospital-{number}" for number in range(1, hospitals + 1)]
    cheats = {name: source.choice(list(CHEATS.values()))[0] for name in source.sample(names, colluders)}
    play = DisputedConsortium(hospitals, seed, cheats=cheats).dispute()
    opened = play.opened()
    for cheat in cheats:
        match source.randrange(4):
            case 0:
                del opened[cheat]
            case 1:
                opened[cheat] = resigned(play, opened[cheat], change_key=source.randbytes(32))
            case 2:  # Another hospital's key, under its own name.
                other = source.choice(sorted(set(names) - set(cheats)))
                key = play.opened()[other].change_key
                opened[cheat] = resigned(play, opened[cheat], change_key=key)
    honest = sorted(set(names) - set(cheats))
    found = play.verdict(source.choice(honest), opened)
    assert found
    assert set(found) <= set(cheats)


@pytest.mark.parametrize("seed", range(12))
def test_colluders_cannot_have_an_honest_hospital_found_at_fault(seed: int) -> None:
    frames(seed, 7, 2)


@pytest.mark.slow
def test_colluders_cannot_in_a_thousand_rounds() -> None:
    for seed in range(100, 1100):
        frames(seed, 4 + seed % 5, 1)


def honest_rounds(number: int) -> int:
    named = 0
    for seed in range(number):
        play = DisputedConsortium(4 + seed % 3, seed).dispute(("hospital-2",) if seed % 7 == 6 else ())
        shown = play.check(VICTIM)
        assert early_faults(play.rules, shown) == {}
        with pytest.raises(UnfoundedDisputeError):
            require_fault(play.rules, shown, Place(VICTIM, 1, Phase.DISPUTE))
        named += len(verdict(play.rules, shown, play.opened().values()))
    return named


def test_in_honest_rounds_nobody_is_named() -> None:
    assert honest_rounds(21) == 0


@pytest.mark.slow
def test_in_thousands_of_honest_rounds_nobody_is_named() -> None:
    assert honest_rounds(3000) == 0


# An opening always names somebody


def added(vectors: list[Vector]) -> Vector:
    total = np.zeros(len(vectors[0]), np.uint16)
    for vector in vectors:
        total += vector
    return total


@pytest.mark.parametrize("seed", range(40))
def test_where_each_vector_passes_the_sum_passes(honest: DisputedPlay, seed: int) -> None:
    """By linearity and the triangle inequality; vectors at the very bounds are among those that are tried."""
    source, rules, of = random.Random(seed), honest.rules, honest.consortium  # noqa: S311 - repeatable
    commitments, vectors = [], []
    direction = np.array([source.gauss(0, 1) for _ in range(ENTRIES - LIMBS)])
    direction /= np.linalg.norm(direction)
    for _ in range(4):
        length = LONGEST * source.choice((0.9, 0.999, 1.0, 1.001, 1.2))
        weight = source.choice((0, 1, 2, MOST_WEIGHT, MOST_WEIGHT + 1))
        limbs = (weight & ((1 << rules.weight_limb_bits) - 1), weight >> rules.weight_limb_bits)
        entries = np.concatenate([np.rint(direction * length), limbs]).astype(np.int16)
        entries[0] = source.choice((entries[0], entries[0], rules.largest_entry))
        made = commit(of.key, rules.proof, entries, of.source.randbytes)
        whole = np.concatenate([entries, made.randomness]).view(np.uint16)
        whole[1] += source.choice((0, 0, 0, 1))
        vectors.append(whole)
        commitments.append(from_bytes(rules.proof, made.value, Place(VICTIM, 1, Phase.VERDICT), VICTIM))
    total = added(vectors)
    faults = [vector_fault(rules, of.key, *each) for each in zip(commitments, vectors, strict=True)]
    if sum_fault(rules, of.key, commitments, total) is not None:
        assert any(faults)


def test_four_vectors_at_the_very_bound_pass_and_so_does_their_sum(honest: DisputedPlay) -> None:
    rules, of = honest.rules, honest.consortium
    entries = np.zeros(ENTRIES, np.int16)
    entries[0], entries[-LIMBS] = int(LONGEST) - 1, 1
    made = commit(of.key, rules.proof, entries, of.source.randbytes)
    value = from_bytes(rules.proof, made.value, Place(VICTIM, 1, Phase.VERDICT), VICTIM)
    whole = np.concatenate([entries, made.randomness]).view(np.uint16)
    assert vector_fault(rules, of.key, value, whole) is None
    assert sum_fault(rules, of.key, [value] * 4, added([whole] * 4)) is None


# Counts are never opened


def pairwise_stream(play: DisputedPlay, private: bytes, segment: Segment) -> np.ndarray:
    """Return the sum of the victim's pairwise masks of its counts, as they would be with these keys."""
    run, state, view = play.consortium.run, play.consortium[VICTIM].shared[1], play.consortium[VICTIM].masked[1].view
    public = public_by_hospital(state.directory, segment)
    made = np.zeros(run.counts_length, np.uint32)
    for peer in (PEER, OTHER, CHEAT):
        pair, counts = (VICTIM, peer), Segment.COUNTS
        info = pairwise_seed_info(round_context(run, 1), view.cohort_hash, view.request_hash, pair, counts)
        apply_masks(made, [Mask(Agreements(private).agree(public[peer], info), subtract=peer < VICTIM)])
    return made


def test_what_is_shown_takes_no_mask_off_the_counts(cheated: DisputedPlay) -> None:
    run, state = cheated.consortium.run, cheated.consortium[VICTIM].shared[1]
    with derived_key(run, 1, VICTIM, state.keys.masking_key, Segment.COUNTS) as private:
        real = pairwise_stream(cheated, private, Segment.COUNTS)
        assert (real == pairwise_stream(cheated, private, Segment.COUNTS)).all()
    shown = cheated.opened()[VICTIM].change_key
    for segment in Segment:
        assert (real != pairwise_stream(cheated, shown, segment)).all()


def test_a_dispute_shows_changes_alone(cheated: DisputedPlay) -> None:
    run, length = cheated.consortium.run, cheated.kept[VICTIM].round.change_length
    assert length + run.counts_length * 2 == run.vector_length
    assert cheated.changes.shape == (4 * length,)
    assert len(disputes.strip(cheated.check(PEER), cheated.opened()[VICTIM])) == length


def test_twins_that_differ_in_their_counts_show_and_find_the_same() -> None:
    """Two consortia whose hospitals count something else: what is shown of changes is the same, byte for byte."""
    plays = []
    for counts in (b"\0", b"\7"):
        consortium = DisputedConsortium(4, cheats={CHEAT: scaled(40)})
        whole = consortium.whole

        def counting(
            change: Centred,
            commitment: Commitment,
            whole: Callable[[Centred, Commitment], Vector] = whole,
            counts: bytes = counts,
        ) -> Vector:
            vector = whole(change, commitment)
            vector[:4] = np.frombuffer(counts * 8, np.uint16)
            return vector

        consortium.whole = counting  # type: ignore[method-assign]
        plays.append(consortium.dispute())
    one, other = plays
    assert (one.changes == other.changes).all()
    assert one.opened().keys() == other.opened().keys()
    for name in one.names:
        assert one.opened()[name].change_key == other.opened()[name].change_key
    assert one.verdicts(one.opened()) == other.verdicts(other.opened())
    hashes = [[each.counts_hash for each in play.shown.vectors] for play in plays]
    assert hashes[0] != hashes[1]


# Runs without disputes


def test_runs_without_disputes_have_no_second_key_and_keep_none() -> None:
    played = ProvedConsortium(4).play()
    consortium = played.consortium
    assert consortium[VICTIM].masked[1].change_key is None
    assert disputes.keep(consortium[VICTIM].masked[1], played.views()) is None
    assert played.total.changes == {}
    assert (dict(played.unmasked.self_mask_seeds), dict(played.unmasked.dropped_keys)) == ({}, {})


def test_keys_of_the_other_kind_are_refused() -> None:
    plain, disputed = ProvedConsortium(4), DisputedConsortium(4)
    place = Place(VICTIM, 1, Phase.SHARE_KEYS)
    with pytest.raises(KeySignatureError, match="have one for changes"):
        verify(disputed.run, 1, plain[PEER].advertise(1), place, PEER)
    with pytest.raises(KeySignatureError, match="none elsewhere"):
        verify(plain.run, 1, disputed[PEER].advertise(1), place, PEER)


def test_disputes_are_for_runs_that_prove_their_sums_and_mask_everybody_with_everybody() -> None:
    with pytest.raises(ParameterError, match="disputes must be in runs that prove their sums"):
        Consortium(4, disputes=True)
    with pytest.raises(ParameterError, match="got 5 on the roster"):
        Consortium(5, disputes=True, proves_sums=True, graph=GraphParameters(complete_up_to=4))


# Secrets


def test_the_key_of_a_change_is_of_memory_of_its_own_and_is_erased() -> None:
    play = DisputedConsortium(4, cheats={CHEAT: scaled(40)}).dispute()
    state = play.consortium[VICTIM].masked[1]
    key, opened = play.kept[VICTIM].change_key, play.answer(VICTIM)
    state.erase()
    assert not any(state.change_key or b"")
    assert any(key)
    play.kept[VICTIM].erase()
    assert not any(key)
    assert any(opened.change_key)
