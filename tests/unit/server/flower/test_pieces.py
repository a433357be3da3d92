"""Pieces of arrays between a ServerApp and its SuperLink: what is stored, what is refused, who may connect."""

import socket
import stat
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from common.errors import RunError
from common.files import socket_name
from common.flower.waits import PIECE_BYTES
from server.flower.pieces import SOCKET_FILE, LocalPieces, serve_pieces


class Store:
    """A SuperLink's objects: two are announced, and one of them is refused in an error."""

    def __init__(self) -> None:
        self.held: dict[tuple[int, str], bytes] = {}

    def store_object(self, run_id: int, session_id: str, object_id: str, object_content: bytes) -> bool:
        if object_id == "another hash":
            raise ValueError("Object ID does not match content hash")
        if session_id != "session":
            return False
        self.held[run_id, object_id] = object_content
        return True

    def get_object(self, run_id: int, object_id: str) -> bytes | None:
        return self.held.get((run_id, object_id))


@pytest.fixture
def pieces(tmp_path: Path) -> LocalPieces:
    serve_pieces(tmp_path, Store())
    return LocalPieces(tmp_path)


def test_a_piece_comes_back_as_it_was_put(pieces: LocalPieces) -> None:
    longest = bytes(range(256)) * (PIECE_BYTES // 256) + b"ArrayChunk  1048576\0"
    pieces.put(7, "session", "one", longest)
    pieces.put(7, "session", "two", b"2")
    assert pieces.get(7, "one") == longest
    assert pieces.get(7, "two") == b"2"


def test_what_is_not_there_is_empty(pieces: LocalPieces) -> None:
    pieces.put(7, "session", "one", b"1")
    assert pieces.get(8, "one") == b""
    assert pieces.get(7, "another") == b""


@pytest.mark.parametrize(("session", "name"), [("another session", "one"), ("session", "another hash")])
def test_what_the_superlink_refuses_ends_the_exchange_and_not_the_connection(
    pieces: LocalPieces, session: str, name: str
) -> None:
    with pytest.raises(RunError, match="must take the pieces of a model"):
        pieces.put(7, session, name, b"1")
    pieces.put(7, "session", "one", b"1")
    assert pieces.get(7, "one") == b"1"


def test_a_piece_that_is_too_long_is_not_held_and_the_next_call_connects_again(pieces: LocalPieces) -> None:
    with pytest.raises(RunError, match="must take and give pieces of arrays"):
        pieces.put(7, "session", "one", bytes(PIECE_BYTES + 2048))
    pieces.put(7, "session", "one", b"1")
    assert pieces.get(7, "one") == b"1"


def test_a_caller_that_hangs_up_in_the_middle_leaves_the_others_served(pieces: LocalPieces, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as connecting:
        with socket_name(tmp_path / SOCKET_FILE) as name:
            connecting.connect(name)
        connection = Connection(connecting.detach())
    connection.send_bytes(b'{"run": 7, "session": "session", "name": "one"}')
    connection.close()
    pieces.put(7, "session", "two", b"2")
    assert pieces.get(7, "one") == b""
    assert pieces.get(7, "two") == b"2"


def test_no_superlink_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"must take and give pieces of arrays, got: .*No such file"):
        LocalPieces(tmp_path).get(7, "one")


def test_the_socket_is_its_owners_alone_and_replaces_one_that_was_left(tmp_path: Path) -> None:
    for _ in range(2):
        serve_pieces(tmp_path, Store())
        assert stat.S_IMODE((tmp_path / SOCKET_FILE).stat().st_mode) == 0o600
    LocalPieces(tmp_path).put(7, "session", "one", b"1")
