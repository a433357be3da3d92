"""Lies about what a model follows from: what a server that chooses the model sends in the place of a request.

Each is tried against an agent in one process and, by ``tests/e2e/lying_serverapp.py``, against a deployed hospital.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from common.run.basis import Basis, Evidence
from common.run.messages import MaskRequest, ProvedMaskRequest, Request
from common.run.round_terms import ProvedTerms, RoundTerms
from common.secagg import messages as secagg
from common.secagg.errors import SERVER, Place
from common.secagg.phases import Phase

LIE = "lie"
"""The file in a deployed server's state that bids it tell one."""

VICTIM = "hospital-1"
"""Whom a deployed server lies to."""

WEIGHT = 25_842
"""Where the weight stands in a proved sum: behind the model's parameters, before ρ."""

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
