"""What travels is read whole or refused whole."""

import contextlib
import io
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import RunError
from common.run import messages

REQUESTS: list[messages.Request] = [
    messages.KeysRequest(run_description=b"{}", round_number=1),
    messages.SharesRequest(run_id="0" * 32, round_number=1, directory=b"d"),
    messages.MaskRequest(run_id="0" * 32, round_number=2, request=b"r", next_round=3),
    messages.ConsistencyRequest(run_id="0" * 32, round_number=2, survivors=b"s"),
    messages.UnmaskRequest(run_id="0" * 32, round_number=2, request=b"r"),
    messages.PlainRequest(run_id="0" * 32, run_description=b"{}", round_number=2, terms=b"t"),
]
REPLIES: list[messages.Reply] = [
    messages.KeysReply(hospital="st-mary", advertised=b"a"),
    messages.SharesReply(shares=b"s"),
    messages.MaskReply(
        masked=b"m",
        advertised=None,
        epsilon=messages.EpsilonReport(1.5, 10.0),
    ),
    messages.ConsistencyReply(signature=b"s", shares=b"x"),
    messages.UnmaskReply(revealed=b"r"),
    messages.PlainReply(epsilon=None),
    messages.RefusedReply(hospital="st-mary", code="budget_exceeded", reason="no budget left", is_attack=False),
]


def test_nothing_that_decides_a_vector_travels_beside_the_bound_request() -> None:
    """A field added here reaches a hospital without being in any mask: it belongs into the round's terms."""
    harmless = {
        "run_id": "must be the run that the hospital's keys of this round were made for",
        "round_number": "must be the round that the hospital's keys were made for",
        "request": "its terms, cohort, run and round are in the masks; its shares are authenticated",
        "next_round": "asks for fresh keys, on which no vector depends",
        "version": "one value is read, any other refused",
    }
    assert set(messages.MaskRequest.__struct_fields__) == harmless.keys()


@pytest.mark.parametrize("message", REQUESTS, ids=messages.phase_of)
def test_a_request_reads_back_and_is_no_reply(message: messages.Request) -> None:
    encoded = messages.encode(message)
    assert messages.decode_request(encoded) == message
    with pytest.raises(RunError):
        messages.decode_reply(encoded)


@pytest.mark.parametrize("message", REPLIES, ids=lambda message: type(message).__name__)
def test_a_reply_reads_back_and_is_no_request(message: messages.Reply) -> None:
    encoded = messages.encode(message)
    assert messages.decode_reply(encoded) == message
    with pytest.raises(RunError):
        messages.decode_request(encoded)


@pytest.mark.parametrize("message", REQUESTS, ids=messages.phase_of)
def test_every_truncation_of_a_request_is_refused(message: messages.Request) -> None:
    encoded = messages.encode(message)
    for length in range(len(encoded)):
        with pytest.raises(RunError):
            messages.decode_request(encoded[:length])


def test_trailing_bytes_are_refused() -> None:
    with pytest.raises(RunError, match="trailing"):
        messages.decode_request(messages.encode(REQUESTS[0]) + b"\0")


def test_a_message_of_another_version_is_refused() -> None:
    other = messages.KeysRequest(run_description=b"", round_number=1, version=1)
    with pytest.raises(RunError, match="version"):
        messages.decode_request(messages.encode(other))


def test_an_oversized_message_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(RunError, match="at most"):
        messages.decode_request(bytes(messages.MAXIMUM_MESSAGE_BYTES + 1))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_nothing_but_the_typed_error(encoded: bytes) -> None:
    for decode in (messages.decode_request, messages.decode_reply):
        with contextlib.suppress(RunError):
            decode(encoded)


def array_file(array: npt.NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def claiming(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def test_an_array_reads_back() -> None:
    for array in (np.arange(5, dtype=np.uint16), np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.zeros(0)):
        np.testing.assert_array_equal(messages.read_array(array_file(array)), array, strict=True)


def archive() -> bytes:
    file = io.BytesIO()
    np.savez(file, vector=np.zeros(3))
    return file.getvalue()


def with_head(head: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + (len(head) + 1).to_bytes(2, "little") + head + b"\n"


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"noise",
        archive(),
        array_file(np.zeros(3))[:-1],
        array_file(np.zeros(3)) + b"!",
        claiming((2**46,)),
        claiming((2**63, 2)),
        array_file(np.array([{"an": "object"}], dtype=object)),
        with_head(b"-" * 6500 + b"1"),
        with_head(b"{'descr': ("),
    ],
    ids=["nothing", "noise", "archive", "short", "long", "huge", "overflowing", "objects", "deep", "open"],
)
def test_what_is_not_one_whole_array_of_numbers_is_refused(encoded: bytes) -> None:
    with pytest.raises(RunError, match="an array must be one NumPy file"):
        messages.read_array(encoded)
    head, body = encoded[:96], encoded[96:]
    with pytest.raises(RunError, match="an array must be one NumPy file"):
        messages.join_array([head, body], longest_bytes=1000)


def test_an_array_in_pieces_is_the_array() -> None:
    array = np.arange(1000, dtype=np.uint16)
    encoded = array_file(array)
    pieces = [encoded[start : start + 300] for start in range(0, len(encoded), 300)]
    np.testing.assert_array_equal(messages.join_array(pieces, array.nbytes), array, strict=True)
    with pytest.raises(RunError, match="2000 bytes claimed, 1999 at most"):
        messages.join_array(pieces, array.nbytes - 1)


def test_each_piece_of_an_array_is_let_go_before_the_next_is_taken() -> None:
    class Piece(bytearray):
        """Bytes of whose end somebody hears."""

    encoded = array_file(np.arange(1000, dtype=np.uint16))
    alive: list[weakref.ref[Piece]] = []

    def pieces() -> Iterator[memoryview]:
        for start in range(0, len(encoded), 300):
            assert not any(piece() for piece in alive)
            piece = Piece(encoded[start : start + 300])
            alive.append(weakref.ref(piece))
            view = memoryview(piece)
            del piece
            yield view
            del view

    messages.join_array(pieces(), len(encoded))
    assert len(alive) > 5
