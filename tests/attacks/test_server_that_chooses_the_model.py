"""A server that hands out another model than the agreed one plus proved sums; the real agent refuses, by name.

One run is overheard up to a request, which its hospital never answers. Then the lying server sends it bent. A refusal
changes nothing at the hospital, so the same one is lied to again and again, and answers the honest request at last.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from common.models.seeded import seeded_model
from common.run.basis import Basis, Evidence
from common.run.messages import (
    ConsistencyReply,
    ConsistencyRequest,
    KeysRequest,
    MaskRequest,
    ProvedConsistencyRequest,
    ProvedMaskReply,
    ProvedMaskRequest,
    Request,
    UnmaskAllRequest,
    phase_of,
)
from common.run.round_terms import ProvedTerms, RoundTerms
from common.secagg import messages as secagg
from common.secagg.errors import SERVER, Place
from common.secagg.phases import Phase
from deploy.experiment.consortium import Loss
from tests.support.proving_run import NAME, Array, Heard, ProvingRun, proving
from tests.support.small_consortium import HOSPITALS, POLICY, Dealt

WEIGHT = 25_842
"""Where the weight stands in a proved sum: behind the model's parameters, before ρ."""

LIMITS = secagg.Limits(hospitals=len(HOSPITALS))
PLACE = Place(SERVER, 1, Phase.MASKED_INPUT)


def overheard(
    dealt: Dealt,
    folder: Path,
    phase: str,
    round_number: int,
    missing: str = "",
    **changes: Any,  # noqa: ANN401 - keys of sections
) -> ProvingRun:
    """Return a run whose hospital-1 is gone from an exchange on, with what it was sent there; one may be missing."""
    made = proving(dealt, folder, experiment={"rounds": 2}, **changes)
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


def with_terms(request: ProvedMaskRequest, change: Callable[[RoundTerms], RoundTerms]) -> ProvedMaskRequest:
    inner = secagg.decode(request.request, secagg.MaskedInputRequest, LIMITS, PLACE)
    terms = change(RoundTerms.decode(inner.terms))
    return msgspec.structs.replace(request, request=secagg.encode(replace(inner, terms=terms.encode())))


def with_evidence(request: ProvedMaskRequest, change: Callable[[Evidence], Evidence | None]) -> ProvedMaskRequest:
    evidence = Basis.decode(request.basis).evidence
    assert evidence is not None
    return msgspec.structs.replace(request, basis=Basis(evidence=change(evidence)).encode())


def with_commitments(
    request: ProvedMaskRequest,
    change: Callable[[tuple[secagg.OpenedCommitment, ...]], tuple[secagg.OpenedCommitment, ...]],
) -> ProvedMaskRequest:
    def changed(evidence: Evidence) -> Evidence:
        proof = secagg.decode(evidence.proof, secagg.SumProof, LIMITS, PLACE)
        bent = replace(proof, commitments=change(proof.commitments))
        return msgspec.structs.replace(evidence, proof=secagg.encode(bent))

    return with_evidence(request, changed)


def with_unit(array: Array, index: int, value: int) -> Array:
    """Return a sum that differs in one entry of the ring."""
    bent = array.copy()
    entries = bent.view(np.uint16)
    entries[index : index + 1 or None] += np.uint16(value % (1 << 16))  # Of an array, which wraps without a warning.
    return bent


def flipped(value: bytes) -> bytes:
    return bytes([value[0] ^ 1]) + value[1:]


def swapped(opened: tuple[secagg.OpenedCommitment, ...]) -> tuple[secagg.OpenedCommitment, ...]:
    one, other, *rest = opened
    return (replace(one, commitment=other.commitment), replace(other, commitment=one.commitment), *rest)


Lie = Callable[[ProvedMaskRequest, Array], tuple[Request, Array | None]]

LIES: dict[str, tuple[Lie, str]] = {
    "a sum with a unit more": (lambda asked, words: (asked, with_unit(words, 5, 1)), "false_sum"),
    "a sum with a unit less": (lambda asked, words: (asked, with_unit(words, 5, -1)), "false_sum"),
    "a sum with another weight": (lambda asked, words: (asked, with_unit(words, WEIGHT, 1)), "false_sum"),
    "a sum with other randomness": (lambda asked, words: (asked, with_unit(words, WEIGHT + 1, 1)), "false_sum"),
    "an entry that no sum has": (
        lambda asked, words: (asked, with_unit(words, 5, 0x8000 - int(words.view(np.uint16)[5]))), "sum_bound"
    ),
    "a sum with bits behind it": (lambda asked, words: (asked, with_unit(words, -1, 1)), "unusable_model"),
    "a sum that is too short": (lambda asked, words: (asked, words[:-1]), "unusable_model"),
    "a model in the place of a sum": (lambda asked, _: (asked, np.zeros(5, np.float32)), "unusable_model"),
    "no sum": (lambda asked, _: (asked, None), "unusable_model"),
    "a sum without one survivor": (
        lambda asked, words: (with_commitments(asked, lambda opened: opened[1:]), words), "missing_commitment"
    ),
    "two commitments swapped": (lambda asked, words: (with_commitments(asked, swapped), words), "commitment_hash"),
    "a commitment changed": (
        lambda asked, words: (
            with_commitments(
                asked,
                lambda opened: (replace(opened[0], commitment=flipped(opened[0].commitment)), *opened[1:]),
            ),
            words,
        ),
        "commitment_hash",
    ),
    "a stranger's commitment": (
        lambda asked, words: (
            with_commitments(asked, lambda opened: (*opened, replace(opened[0], hospital="nobody"))), words
        ),
        "unexpected_commitment",
    ),
    "another optimiser's state": (
        lambda asked, words: (
            with_terms(asked, lambda terms: msgspec.structs.replace(terms, state_hash=bytes(32))), words
        ),
        "model_does_not_follow",
    ),
    "another model": (
        lambda asked, words: (
            with_terms(asked, lambda terms: msgspec.structs.replace(terms, model_hash=bytes(32))), words
        ),
        "model_hash",
    ),
    "a model without its state": (
        lambda asked, words: (with_terms(asked, without_state), words), "unproved_model"
    ),
    "a model, as in a run without proofs": (
        lambda asked, words: (
            MaskRequest(run_id=asked.run_id, round_number=asked.round_number, request=asked.request), words
        ),
        "unproved_model",
    ),
    "the model of the seed again, with another's hash": (
        lambda asked, _: (with_evidence(asked, lambda _: None), None), "model_does_not_follow"
    ),
    "a basis of no format": (
        lambda asked, words: (msgspec.structs.replace(asked, basis=b"\x90"), words), "run"
    ),
}  # fmt: skip


def without_state(terms: RoundTerms) -> RoundTerms:
    assert isinstance(terms, ProvedTerms)
    told = msgspec.structs.asdict(terms)
    del told["state_hash"]
    return RoundTerms(**told)


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


def test_the_honest_request_is_answered_after_all_lies_and_an_older_sum_is_stale_then(
    dealt: Dealt, tmp_path: Path
) -> None:
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
    begun, heard = made.first(ProvedMaskRequest, 1).request, honest(made)
    assert isinstance(begun, ProvedMaskRequest)
    assert isinstance(heard.request, ProvedMaskRequest)
    inner = secagg.decode(begun.request, secagg.MaskedInputRequest, LIMITS, PLACE)
    seeds = RoundTerms.decode(inner.terms)
    void = with_terms(with_evidence(heard.request, lambda _: None), lambda _: seeds)
    assert made.refusal(void).code == "too_many_void_rounds"


def test_a_late_joiner_believes_neither_an_unsigned_state_nor_too_few(dealt: Dealt, tmp_path: Path) -> None:
    made = overheard(dealt, tmp_path, "masked_input", 2)
    for path in (tmp_path / NAME).glob("proved-*"):
        path.unlink()
    made.consortium.restart(NAME)
    # What it is sent as a late joiner: model and state of before, then the sum. Here the sum alone, and then a lie.
    heard = honest(made)
    assert isinstance(heard.request, ProvedMaskRequest)
    assert heard.array is not None
    rejoin(made)
    assert made.refusal(heard.request, heard.array).code in {"stale_model", "run"}
    state = dealt_model(made)
    whole = np.concatenate([state, heard.array])
    for bent, code in (
        ((heard.request, np.concatenate([state + np.float32(1), heard.array])), "stale_model"),
        ((few(heard.request), whole), "stale_model"),
        ((unsigned(heard.request), whole), "unsigned_commitment"),
    ):
        refused = answer_as_joiner(made, *bent)
        assert refused == code
    assert answer_as_joiner(made, heard.request, whole) == ""


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


def unsigned(request: ProvedMaskRequest) -> ProvedMaskRequest:
    return with_views(request, lambda views: (replace(views[0], commitment=flipped(views[0].commitment)), *views[1:]))


def with_views(
    request: ProvedMaskRequest, change: Callable[[tuple[secagg.SignedView, ...]], tuple[secagg.SignedView, ...]]
) -> ProvedMaskRequest:
    def changed(evidence: Evidence) -> Evidence:
        shown = secagg.decode(evidence.views, secagg.FullUnmaskingRequest, LIMITS, PLACE)
        return msgspec.structs.replace(evidence, views=secagg.encode(replace(shown, views=change(shown.views))))

    return with_evidence(request, changed)


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
