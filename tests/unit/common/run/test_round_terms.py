"""The canonical request of a round: one encoding, and each field of it in the hash that masks are made from."""

from typing import Any

import msgspec
import pytest

from common.errors import RunError
from common.evaluation.question import Question
from common.run.round_terms import Purpose, RoundTerms
from common.secagg.binding import request_hash

QUESTION = Question(release=3, edges=((-1.0, 0.0, 1.0), (0.5,)))
TERMS = RoundTerms(purpose=Purpose.TRAIN, model_hash=bytes(32), fewest_survivors=3, question=QUESTION)
OTHER: dict[str, Any] = {
    "purpose": Purpose.EVALUATE,
    "model_hash": bytes([1]) + bytes(31),
    "fewest_survivors": 2,
    "question": None,
    "version": 2,
}
OTHER_QUESTIONS: dict[str, Any] = {"release": 4, "edges": ((-1.0, 0.0, 1.0), (0.25,))}


@pytest.mark.parametrize("terms", [TERMS, msgspec.structs.replace(TERMS, question=None, purpose=Purpose.EVALUATE)])
def test_terms_read_back(terms: RoundTerms) -> None:
    assert RoundTerms.decode(terms.encode()) == terms


@pytest.mark.parametrize("field", RoundTerms.__struct_fields__)
def test_each_field_of_the_terms_is_in_the_hash_of_the_request(field: str) -> None:
    other = msgspec.structs.replace(TERMS, **{field: OTHER[field]})
    assert request_hash(other.encode()) != request_hash(TERMS.encode())


@pytest.mark.parametrize("field", Question.__struct_fields__)
def test_each_field_of_the_question_is_in_the_hash_of_the_request(field: str) -> None:
    question = msgspec.structs.replace(QUESTION, **{field: OTHER_QUESTIONS[field]})
    other = msgspec.structs.replace(TERMS, question=question)
    assert request_hash(other.encode()) != request_hash(TERMS.encode())


def test_every_truncation_and_trailing_byte_is_refused() -> None:
    encoded = TERMS.encode()
    for bad in (*(encoded[:length] for length in range(len(encoded))), encoded + b"\0"):
        with pytest.raises(RunError):
            RoundTerms.decode(bad)


def test_another_encoding_of_the_same_terms_is_refused() -> None:
    encoded = TERMS.encode()
    assert encoded[0] == 0x95
    with pytest.raises(RunError, match="one encoding"):
        RoundTerms.decode(b"\xdc\x00\x05" + encoded[1:])


def test_another_version_is_refused() -> None:
    with pytest.raises(RunError, match="version 1"):
        RoundTerms.decode(msgspec.structs.replace(TERMS, version=2).encode())
