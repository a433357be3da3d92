"""A server that hands out another model than the agreed one plus proved sums; the real agent refuses, by name.

One run is overheard up to a request, which its hospital never answers. Then the lying server sends it bent. A refusal
changes nothing at the hospital, so the same one is lied to again and again, and answers the honest request at last.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from client.proved_model import _Remembered
from common.models.seeded import seeded_model
from common.run.messages import (
    ConsistencyReply,
    ConsistencyRequest,
    KeysRequest,
    ProvedConsistencyRequest,
    ProvedMaskReply,
    ProvedMaskRequest,
    Request,
    UnmaskAllRequest,
    phase_of,
)
from common.run.round_terms import RoundTerms
from common.secagg import messages as secagg
from deploy.experiment.consortium import Loss
from tests.support.proving_run import NAME, Array, Heard, ProvingRun, proving
from tests.support.small_consortium import HOSPITALS, POLICY, Dealt
from tests.support.sum_lies import (
    LIES,
    LIMITS,
    PLACE,
    WEIGHT,
    flipped,
    unsigned,
    with_evidence,
    with_terms,
    with_views,
)


def overheard(
    dealt: Dealt,
    folder: Path,
    phase: str,
    round_number: int,
    missing: str = "",
    **changes: Any,  # noqa: ANN401 - keys of sections
) -> ProvingRun:
    """Return a run whose hospital-1 is gone from an exchange on, with what it was sent there; one may be missing."""
    made = proving(dealt, folder, experiment={"rounds": max(2, round_number)}, **changes)
    made.listen()

    def line(hospital: str, request: Request) -> Loss | None:
        if hospital == missing and phase_of(request) == "masked_input":
            return Loss.OF_REQUEST
        if hospital == NAME and (request.round_number, phase_of(request)) == (round_number, phase):
            gone.append(request)
        return Loss.OF_REQUEST if hospital == NAME and gone else None

    gone: list[Request] = []
    made.consortium.transport.line = line
    made.run().train()
    assert gone
    return made


@pytest.fixture(scope="module")
def second(dealt: Dealt, tmp_path_factory: pytest.TempPathFactory) -> ProvingRun:
    """Return a run whose hospital-1 has opened the sum of round 1, and was asked for a vector in round 2."""
    return overheard(dealt, tmp_path_factory.mktemp("second"), "masked_input", 2)


@pytest.fixture(scope="module")
def first(dealt: Dealt, tmp_path_factory: pytest.TempPathFactory) -> ProvingRun:
    return overheard(dealt, tmp_path_factory.mktemp("first"), "masked_input", 1)


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_bends_what_a_model_follows_from_is_refused_by_name(second: ProvingRun, lie: str) -> None:
    heard = honest(second)
    bend, code = LIES[lie]
    booked = len(second.booked(NAME))
    assert heard.array is not None
    bent, array = bend(heard.request, heard.array)  # type: ignore[arg-type]
    refused = second.refusal(bent, array)
    assert refused.code == code, refused.reason
    assert refused.is_attack or code == "run"
    assert len(second.booked(NAME)) == booked


def honest(made: ProvingRun) -> Heard:
    return made.first(ProvedMaskRequest, 2)


def test_the_honest_request_is_answered_after_a_lie(dealt: Dealt, tmp_path: Path) -> None:
    made = overheard(dealt, tmp_path, "masked_input", 2)
    heard = honest(made)
    made.refusal(*LIES["a sum with a unit more"][0](heard.request, heard.array))  # type: ignore[arg-type]
    reply, vector = made.agent.answer(heard.request, heard.array)
    assert isinstance(reply, ProvedMaskReply)
    assert vector is not None
    assert len(made.booked(NAME)) == 2


def test_a_first_model_that_is_not_the_seeds_is_refused(first: ProvingRun) -> None:
    asked = first.first(ProvedMaskRequest, 1).request
    assert isinstance(asked, ProvedMaskRequest)
    bent = with_terms(asked, lambda terms: msgspec.structs.replace(terms, state_hash=bytes(32)))
    assert first.refusal(bent).code == "initial_model"
    assert not first.booked(NAME)


def test_a_sum_that_was_opened_cannot_be_passed_over_beyond_the_limit(dealt: Dealt, tmp_path: Path) -> None:
    """The server withholds the sum of round 1 and goes on from the seed's model, which no limit allows here."""
    made = overheard(dealt, tmp_path, "masked_input", 2, aggregation={"most_void_rounds": 0})
    assert made.refusal(seeds_again(made)).code == "too_many_void_rounds"


def seeds_again(made: ProvingRun) -> ProvedMaskRequest:
    """Return a request of round 2 for the model of the seed, as if no sum had been opened."""
    begun, heard = made.first(ProvedMaskRequest, 1).request, honest(made)
    assert isinstance(begun, ProvedMaskRequest)
    assert isinstance(heard.request, ProvedMaskRequest)
    inner = secagg.decode(begun.request, secagg.MaskedInputRequest, LIMITS, PLACE)
    seeds = RoundTerms.decode(inner.terms)
    return with_terms(with_evidence(heard.request, lambda _: None), lambda _: seeds)


def test_a_late_joiner_believes_neither_an_unsigned_state_nor_too_few(dealt: Dealt, tmp_path: Path) -> None:
    made = overheard(dealt, tmp_path, "masked_input", 2)
    restarted_without(made, "proved-*")
    # What it is sent as a late joiner: model and state of before, then the sum. Here the sum alone, and then a lie.
    heard = honest(made)
    assert isinstance(heard.request, ProvedMaskRequest)
    assert heard.array is not None
    assert made.refusal(heard.request, heard.array).code in {"stale_model", "run"}
    state = dealt_model(made)
    whole = np.concatenate([state, heard.array])
    for bent, code in (
        ((heard.request, np.concatenate([state + np.float32(1), heard.array])), "stale_model"),
        ((few(heard.request), whole), "stale_model"),
        ((with_views(heard.request, unsigned), whole), "unsigned_commitment"),
    ):
        refused = answer_as_joiner(made, *bent)
        assert refused == code
    assert answer_as_joiner(made, heard.request, whole) == ""


def three_rounds(dealt: Dealt, folder: Path) -> tuple[ProvingRun, Heard, Heard]:
    """Return a run with what hospital-1 was sent in rounds 2 and 3, the latter unanswered; no sum may be withheld."""
    made = overheard(dealt, folder, "masked_input", 3, aggregation={"most_void_rounds": 0})
    return made, made.first(ProvedMaskRequest, 2), made.first(ProvedMaskRequest, 3)


def restarted_without(made: ProvingRun, lost: str) -> None:
    """Start hospital-1 again without some of the files of its model."""
    for path in (made.folder / NAME).glob(lost):
        path.unlink()
    made.consortium.restart(NAME)
    rejoin(made)


def stale(made: ProvingRun, older: Heard) -> tuple[ProvedMaskRequest, Array]:
    """Return the request of round 2 as if it were that of round 4: a world in which round 2 has not been."""
    assert isinstance(older.request, ProvedMaskRequest)
    assert older.array is not None
    whole = np.concatenate([dealt_model(made), older.array])
    return msgspec.structs.replace(older.request, round_number=4), whole


def test_a_late_joiner_is_not_given_the_sum_of_an_earlier_round_in_the_place_of_the_last(
    dealt: Dealt, tmp_path: Path
) -> None:
    """The server shows a hospital that lost its disk what round 1 gave, in round 3, as if round 2 had not been."""
    made, older, newest = three_rounds(dealt, tmp_path)
    restarted_without(made, "proved-*")
    assert isinstance(newest.request, ProvedMaskRequest)
    basis, whole = stale(made, older)
    mixed = msgspec.structs.replace(newest.request, basis=basis.basis)
    assert answer_as_joiner(made, mixed, whole) == "model_does_not_follow"


def test_a_hospital_that_has_followed_a_later_sum_is_not_put_back(dealt: Dealt, tmp_path: Path) -> None:
    made, older, newest = three_rounds(dealt, tmp_path)
    assert isinstance(newest.request, ProvedMaskRequest)
    assert newest.array is not None
    assert answer_as_joiner(made, newest.request, newest.array) == ""
    assert answer_as_joiner(made, *stale(made, older)) == "stale_model"


def void_rounds(made: ProvingRun) -> tuple[int, ...]:
    proved = made.agent._proved
    assert proved is not None
    assert proved._held is not None
    return proved._held.lineage.void_rounds


def test_a_hospital_whose_model_was_removed_still_knows_which_rounds_are_void(dealt: Dealt, tmp_path: Path) -> None:
    """Models of older runs are removed. A server must not win back the sums that it may withhold by other runs."""
    made = overheard(dealt, tmp_path, "masked_input", 3)
    older = made.first(ProvedMaskRequest, 2)
    assert answer_as_joiner(made, *stale(made, older)) == ""
    assert void_rounds(made) == (2,)
    restarted_without(made, "proved-*.model")
    assert answer_as_joiner(made, *stale(made, older)) == ""
    assert void_rounds(made) == (2,)


def test_nor_does_it_forget_them_where_it_begins_from_the_seed_again(dealt: Dealt, tmp_path: Path) -> None:
    made = overheard(dealt, tmp_path, "masked_input", 2)
    withheld = seeds_again(made)
    assert answer_as_joiner(made, withheld, np.zeros(0, np.float32)) == ""
    restarted_without(made, "proved-*.model")
    assert answer_as_joiner(made, withheld, np.zeros(0, np.float32)) == ""
    assert void_rounds(made) == (1,)


def test_models_of_older_runs_are_removed_and_what_is_known_of_them_is_not(dealt: Dealt, tmp_path: Path) -> None:
    made = overheard(dealt, tmp_path, "masked_input", 2)
    (own,) = (tmp_path / NAME).glob("proved-*.json")
    runs = [f"{number:032x}" for number in range(6)]
    for age, run in enumerate(runs, start=1):
        for path in (own.with_name(f"proved-{run}.json"), own.with_name(f"proved-{run}-{'a' * 16}.model")):
            path.write_bytes(b"")
            os.utime(path, (age, age))
    heard = honest(made)
    assert isinstance(heard.request, ProvedMaskRequest)
    assert heard.array is not None
    assert answer_as_joiner(made, heard.request, heard.array) == ""
    assert len(list(own.parent.glob("proved-*.json"))) == len(runs) + 1
    kept = {path.stem.split("-")[1] for path in own.parent.glob("proved-*.model")}
    assert kept == {own.stem.split("-")[1], *runs[3:]}


def test_a_hospital_whose_model_was_lost_goes_back_behind_no_sum_that_it_knew(dealt: Dealt, tmp_path: Path) -> None:
    """The power failed before the model was on the disk, and the small file was.

    Void rounds count, and the server can neither begin again from the seed nor from an older sum that the run's own
    limit would still allow.
    """
    made = overheard(dealt, tmp_path, "masked_input", 3, aggregation={"most_void_rounds": 5})
    (file,) = (tmp_path / NAME).glob("proved-*.json")
    told = json.loads(file.read_text())
    assert told["followed"] == 1  # Round 2 was opened, and its sum never came.
    file.write_text(json.dumps({**told, "void_rounds": [8, 9]}))
    (arrays,) = (tmp_path / NAME).glob("proved-*.model")
    arrays.unlink()
    made.consortium.restart(NAME)
    rejoin(made)
    first, second, third = (made.first(ProvedMaskRequest, number) for number in (1, 2, 3))
    seed = dealt_model(made)
    assert answer_as_joiner(made, first.request, seed) == "stale_model"
    assert second.array is not None
    assert third.array is not None
    assert answer_as_joiner(made, second.request, np.concatenate([seed, second.array])) == "stale_model"
    held = made.agent._proved
    assert held is not None
    assert held._remembered == _Remembered(2, (8, 9))


def rejoin(made: ProvingRun) -> None:
    """Let the restarted hospital join its run again."""
    begun = next(heard.request for heard in made.heard if isinstance(heard.request, KeysRequest))
    assert isinstance(begun, KeysRequest)
    made.agent.answer(KeysRequest(run_description=begun.run_description, round_number=1000), None)


def dealt_model(made: ProvingRun) -> Array:
    proved = made.agent._proved
    assert proved is not None
    return seeded_model(proved._description)


def answer_as_joiner(made: ProvingRun, request: Request, array: Array) -> str:
    """Return the code with which the hospital's own model refuses what it is shown, or nothing."""
    proved = made.agent._proved
    assert proved is not None
    assert isinstance(request, ProvedMaskRequest)
    inner = secagg.decode(request.request, secagg.MaskedInputRequest, LIMITS, PLACE)
    try:
        proved.model_for(request.round_number, RoundTerms.decode(inner.terms), request.basis, array)
    except Exception as error:  # noqa: BLE001 - its name is looked at
        return str(getattr(error, "code", type(error).__name__))
    return ""


def few(request: ProvedMaskRequest) -> ProvedMaskRequest:
    """Show two signed views of four."""
    return with_views(request, lambda views: views[:2])


def test_a_sum_is_opened_only_for_hashes_of_commitments_that_their_hospitals_signed(
    dealt: Dealt, tmp_path: Path
) -> None:
    made = overheard(dealt, tmp_path, "full_unmasking", 1)
    request = made.first(UnmaskAllRequest, 1).request
    assert isinstance(request, UnmaskAllRequest)
    shown = secagg.decode(request.request, secagg.FullUnmaskingRequest, LIMITS, PLACE)
    one, *rest = shown.views
    other = replace(shown, views=(replace(one, commitment=flipped(one.commitment)), *rest))
    bent = msgspec.structs.replace(request, request=secagg.encode(other))
    # A request to open takes the round's slot, good or bad; what is refused opened nothing, and is not void either.
    assert made.refusal(bent).code == "unsigned_commitment"
    proved = made.agent._proved
    assert proved is not None
    assert proved._held is not None
    assert proved._held.opened is None


def test_survivors_are_signed_only_with_their_commitments_at_hand(dealt: Dealt, tmp_path: Path) -> None:
    made = overheard(dealt, tmp_path, "consistency_check", 1, missing="hospital-4")
    request = made.first(ProvedConsistencyRequest, 1).request
    assert isinstance(request, ProvedConsistencyRequest)
    bare = ConsistencyRequest(run_id=request.run_id, round_number=1, survivors=request.survivors)
    assert made.refusal(bare).code == "truncated_message"
    shown = secagg.decode(request.views, secagg.FullUnmaskingRequest, LIMITS, PLACE)
    for views, code in (
        (shown.views[1:], "missing_commitment"),
        ((replace(shown.views[1], hospital=shown.views[0].hospital), *shown.views[1:]), "unsigned_commitment"),
    ):
        bent = msgspec.structs.replace(request, views=secagg.encode(replace(shown, views=views)))
        assert made.refusal(bent).code == code
    assert isinstance(made.agent.answer(request, None)[0], ConsistencyReply)


def test_the_weight_stands_where_it_is_lied_about(second: ProvingRun) -> None:
    heard = honest(second)
    assert heard.array is not None
    assert heard.array.view(np.uint16)[WEIGHT] == len(HOSPITALS) * POLICY.stated_training_units
