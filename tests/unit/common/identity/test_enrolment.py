"""Enrolment's messages are read strictly: every other byte string is one typed error."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import EnrolmentError
from common.identity import enrolment
from common.identity.enrolment import JoinedReply, JoinRequest, StandingRequest, WaitingReply

JOIN = JoinRequest(token=b"t" * 32, request=b"request", supernode=b"key")


def test_a_message_survives_its_encoding() -> None:
    assert enrolment.decode(enrolment.encode(JOIN), JoinRequest) == JOIN
    joined = JoinedReply(certificate=b"c", revocations=b"r", members=b"m", fleet_port=9092)
    assert enrolment.decode_join_reply(enrolment.encode(joined)) == joined
    assert enrolment.decode_join_reply(enrolment.encode(WaitingReply())) == WaitingReply()


@given(st.binary(max_size=400))
def test_other_bytes_are_refused(encoded: bytes) -> None:
    with pytest.raises(EnrolmentError):
        enrolment.decode(encoded, JoinRequest)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": enrolment.VERSION - 1},
        {"version": enrolment.VERSION + 1},
        {"token": b"short"},
        {"request": bytes(9000)},
        {"supernode": bytes(2000)},
        {"more": 1},
        {"type": "x"},
    ],
)
def test_a_field_of_another_version_range_or_name_is_refused(changes: dict[str, object]) -> None:
    good = {"type": "join", "version": enrolment.VERSION, "token": b"t" * 32, "request": b"r", "supernode": b"k"}
    assert isinstance(enrolment.decode(msgspec.msgpack.encode(good), JoinRequest), JoinRequest)
    fields = {**good, **changes}
    with pytest.raises(EnrolmentError):
        enrolment.decode(msgspec.msgpack.encode(fields), JoinRequest)


def test_a_message_that_is_too_long_is_refused_unread() -> None:
    with pytest.raises(EnrolmentError, match="at most 16384 bytes"):
        enrolment.decode(bytes(16_385), JoinRequest)


def test_one_message_is_not_taken_for_another() -> None:
    with pytest.raises(EnrolmentError):
        enrolment.decode(enrolment.encode(JOIN), StandingRequest)


def test_the_token_is_in_no_repr() -> None:
    assert "tttt" not in repr(JOIN)
