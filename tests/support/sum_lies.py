"""Lies about what a model follows from: what a server that chooses the model sends in the place of a request.

Each is tried against an agent in one process and, by ``tests/e2e/lying_serverapp.py``, against a deployed hospital.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from common.proved_sums.commitment import add, from_bytes, open_sum, to_bytes
from common.proved_sums.expansion import matrix_key
from common.proved_sums.parameters import ProofParameters, parameters_for
from common.run.basis import Basis, Evidence
from common.run.messages import MaskRequest, ProvedMaskRequest, Request
from common.run.round_terms import ProvedTerms, RoundTerms
from common.secagg import messages as secagg
from common.secagg.errors import SERVER, Place
from common.secagg.parameters import RunParameters
from common.secagg.phases import Phase

LIE = "lie"
"""The file in a deployed server's state that bids it tell one."""

VICTIM = "hospital-1"
"""Whom a deployed server lies to."""

WEIGHT = 25_842
"""Where the weight stands in a proved sum: behind the model's parameters, before ρ."""

Q = parameters_for(WEIGHT + 1, 16, 4).lattice.modulus

Array = npt.NDArray[Any]

LIMITS = secagg.Limits(hospitals=4)
PLACE = Place(SERVER, 1, Phase.MASKED_INPUT)


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


def widened(words: Array) -> Array:
    """Return a sum in a ring of 32 bits, in which R is not zero."""
    entries = words.view(np.uint16).astype(np.uint32)
    entries[5] += 1 << 16
    return entries.view(np.float32)


def flipped(value: bytes) -> bytes:
    return bytes([value[0] ^ 1]) + value[1:]


def swapped(opened: tuple[secagg.OpenedCommitment, ...]) -> tuple[secagg.OpenedCommitment, ...]:
    one, other, *rest = opened
    return (replace(one, commitment=other.commitment), replace(other, commitment=one.commitment), *rest)


def with_survivor_twice(request: ProvedMaskRequest) -> ProvedMaskRequest:
    """Show the first commitment twice, which no honest encoder writes."""

    def changed(evidence: Evidence) -> Evidence:
        proof = secagg.decode(evidence.proof, secagg.SumProof, LIMITS, PLACE)
        first = proof.commitments[0]
        twice = replace(proof, commitments=(replace(first, hospital="hospital-0"), *proof.commitments))
        encoded = secagg.encode(twice).replace(b"hospital-0", first.hospital.encode())
        return msgspec.structs.replace(evidence, proof=encoded)

    return with_evidence(request, changed)


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
    "a sum with q more": (lambda asked, words: (asked, with_unit(words, 5, Q)), "false_sum"),
    "a sum with R more, in a wider ring": (lambda asked, words: (asked, widened(words)), "unusable_model"),
    "a sum that is too short": (lambda asked, words: (asked, words[:-1]), "unusable_model"),
    "a model in the place of a sum": (lambda asked, _: (asked, np.zeros(5, np.float32)), "unusable_model"),
    "no sum": (lambda asked, _: (asked, None), "unusable_model"),
    "a sum without one survivor": (
        lambda asked, words: (with_commitments(asked, lambda opened: opened[1:]), words), "missing_commitment"
    ),
    "a sum with one survivor twice": (
        lambda asked, words: (with_survivor_twice(asked), words), "non_canonical_message"
    ),
    "a sum whose commitments are not opened": (
        lambda asked, words: (with_commitments(asked, lambda _: ()), words), "missing_commitment"
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


@dataclass(frozen=True)
class Known:
    """What a lying server knows when it asks for a vector.

    Attributes:
        run: whose commitments are asked for.
        proof: how they are made.
        asked: the honest request.
        words: the sum beside it.
        whole: model and state of before, and then the sum: for a late joiner.
        asked_before: the honest request of the last round in which this hospital was asked.
        words_before: the sum beside it.
        whole_before: as above.
    """

    run: RunParameters
    proof: ProofParameters
    asked: ProvedMaskRequest
    words: Array
    whole: Array
    asked_before: ProvedMaskRequest
    words_before: Array
    whole_before: Array


def evidence_of(request: ProvedMaskRequest) -> Evidence:
    evidence = Basis.decode(request.basis).evidence
    assert evidence is not None
    return evidence


def terms_of(request: ProvedMaskRequest) -> RoundTerms:
    return RoundTerms.decode(secagg.decode(request.request, secagg.MaskedInputRequest, LIMITS, PLACE).terms)


def opened_in(request: ProvedMaskRequest) -> tuple[secagg.OpenedCommitment, ...]:
    return secagg.decode(evidence_of(request).proof, secagg.SumProof, LIMITS, PLACE).commitments


def replayed(known: Known) -> tuple[Request, Array]:
    return with_commitments(known.asked, lambda _: opened_in(known.asked_before)), known.words


def rushed(known: Known) -> tuple[Request, Array]:
    """Choose a sum, and a colluder's commitment that fits it, when those of the others are open."""
    key = matrix_key(known.run, known.proof)
    chosen = np.resize(np.array([7, -7], np.int16), known.proof.length)
    words = np.zeros_like(known.words)
    words.view(np.int16)[: len(chosen)] = chosen
    modulus = known.proof.lattice.modulus

    def rush(opened: tuple[secagg.OpenedCommitment, ...]) -> tuple[secagg.OpenedCommitment, ...]:
        *others, colluder = opened
        open_others = add(known.proof, [from_bytes(known.proof, each.commitment, PLACE, "") for each in others])
        wanted = open_sum(key, known.proof, chosen)
        fitting = [(value - other) % modulus for value, other in zip(wanted, open_others, strict=True)]
        return (*others, replace(colluder, commitment=to_bytes(known.proof, fitting)))

    return with_commitments(known.asked, rush), words


def withheld(known: Known) -> tuple[Request, Array]:
    """Go on from the model of the round before, as if the last sum had not been."""
    back = with_terms(known.asked, lambda _: terms_of(known.asked_before))
    return msgspec.structs.replace(back, basis=known.asked_before.basis), known.words_before


def other_sums_proof(known: Known) -> tuple[Request, Array]:
    return with_evidence(known.asked, lambda evidence: msgspec.structs.replace(
        evidence, proof=evidence_of(known.asked_before).proof
    )), known.words  # fmt: skip


def with_views(
    request: ProvedMaskRequest, change: Callable[[tuple[secagg.SignedView, ...]], tuple[secagg.SignedView, ...]]
) -> ProvedMaskRequest:
    def changed(evidence: Evidence) -> Evidence:
        shown = secagg.decode(evidence.views, secagg.FullUnmaskingRequest, LIMITS, PLACE)
        return msgspec.structs.replace(evidence, views=secagg.encode(replace(shown, views=change(shown.views))))

    return with_evidence(request, changed)


def unsigned(views: tuple[secagg.SignedView, ...]) -> tuple[secagg.SignedView, ...]:
    return (replace(views[0], commitment=flipped(views[0].commitment)), *views[1:])


REMEMBERING: dict[str, tuple[Callable[[Known], tuple[Request, Array]], str]] = {
    "commitments of the round before": (replayed, "commitment_hash"),
    "the proof of the round before": (other_sums_proof, "replayed_message"),
    "a commitment that is chosen after the others": (rushed, "commitment_hash"),
}
"""What a server that remembers tells a hospital that has the model of before."""

WITHHELD = "no sum, and the model of before"
"""It is no lie until it has been told more often than a run allows."""

TO_JOINERS: dict[str, tuple[Callable[[Known], tuple[Request, Array]], str]] = {
    "a state that nobody signed": (
        lambda known: (known.asked, np.concatenate([known.whole[:5] + np.float32(1), known.whole[5:]])), "stale_model"
    ),
    "a state that too few have signed": (
        lambda known: (with_views(known.asked, lambda views: views[:2]), known.whole), "stale_model"
    ),
    "a state under a view that its hospital did not sign": (
        lambda known: (with_views(known.asked, unsigned), known.whole), "unsigned_commitment"
    ),
    "the state and the sum of an earlier round": (
        lambda known: (
            msgspec.structs.replace(known.asked, basis=known.asked_before.basis), known.whole_before
        ),
        "model_does_not_follow",
    ),
}  # fmt: skip
"""What it tells a late joiner."""

UNSIGNED_HASH = "a commitment's hash that its hospital did not sign"
"""What it shows before a sum is opened."""
