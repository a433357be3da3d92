"""Frames between a hospital's relay and its agent: whole or not at all, and an agent outlives its relays."""

import contextlib
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from client import handover
from client.handover import SOCKET_FILE, AgentDoor, Parts, connect, receive, send, whole_array
from common.errors import RunError


def echo(message: bytes, array_bytes: int, array: Iterator[memoryview]) -> tuple[bytes, Parts]:
    """Return what was given, the array twice."""
    whole = b"".join(array)
    assert len(whole) == array_bytes
    return message[::-1], (whole, memoryview(whole))


@contextmanager
def answering(folder: Path, answer: handover.Answer = echo) -> Iterator[AgentDoor]:
    with AgentDoor(folder) as door:
        thread = threading.Thread(target=door.serve, args=(answer,))
        thread.start()
        try:
            yield door
        finally:
            door.stop()
            thread.join(30)
            assert not thread.is_alive()


@pytest.mark.parametrize("length", [0, 1, 3 * 2**20 + 5])
def test_a_message_and_its_array_cross_both_ways(tmp_path: Path, length: int) -> None:
    array = np.arange(length, dtype=np.uint8)
    with answering(tmp_path), connect(tmp_path) as relay:
        for message in (b"", b"request", b"x" * 100_000):
            send(relay, message, (array[: length // 2].data, array[length // 2 :].data))
            frame = receive(relay)
            assert (frame.message, frame.is_fault) == (message[::-1], False)
            assert whole_array(relay, frame.array_bytes) == array.tobytes() * 2


def test_what_fails_is_told_by_its_kind_and_the_next_request_is_answered(tmp_path: Path) -> None:
    def answer(message: bytes, array_bytes: int, array: Iterator[memoryview]) -> tuple[bytes, Parts]:
        if message == b"bad":
            raise ValueError("patient 4711")
        return echo(message, array_bytes, array)

    with answering(tmp_path, answer), connect(tmp_path) as relay:
        send(relay, b"bad", (bytes(3 * 2**20),))
        frame = receive(relay)
        assert (frame.message, frame.is_fault) == (b"internal error at the hospital: ValueError", True)
        send(relay, b"good")
        assert receive(relay).message == b"doog"


def test_an_agent_answers_the_relay_that_comes_after_one_that_was_killed(tmp_path: Path) -> None:
    begun, over = threading.Event(), threading.Event()

    def slow(message: bytes, array_bytes: int, array: Iterator[memoryview]) -> tuple[bytes, Parts]:
        if message == b"slow":
            begun.set()
            assert over.wait(30)
        return echo(message, array_bytes, array)

    with answering(tmp_path, slow):
        killed = connect(tmp_path)
        send(killed, b"slow")
        assert begun.wait(30)
        killed.close()
        with connect(tmp_path) as relay:
            send(relay, b"again")
            over.set()
            assert receive(relay).message == b"niaga"


def test_who_only_connects_disturbs_nobody(tmp_path: Path) -> None:
    """A container's health is checked so."""
    with answering(tmp_path), connect(tmp_path) as relay:
        for _ in range(40):
            connect(tmp_path).close()
        send(relay, b"request")
        assert receive(relay).message == b"tseuqer"


@pytest.mark.parametrize(
    "noise", [b"GET / HTTP/1.1\r\n\r\n", b"CFM1" + b"\xff" * 12, b"CFX1" + bytes(12)], ids=["http", "long", "kind"]
)
def test_what_is_no_frame_ends_its_connection_alone(tmp_path: Path, noise: bytes) -> None:
    with answering(tmp_path), connect(tmp_path) as other, connect(tmp_path) as relay:
        other.sendall(noise)
        with contextlib.suppress(ConnectionResetError):
            assert other.recv(1) == b""
        send(relay, b"request")
        assert receive(relay).message == b"tseuqer"


def test_half_a_frame_is_none() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(b"CFM1" + bytes(5))
        with pytest.raises(EOFError):
            receive(ours)


def test_frames_of_another_version_are_refused_in_words() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"CFM2" + bytes(12))
        with pytest.raises(RunError, match="of one version"):
            receive(ours)


def test_the_socket_is_for_the_agents_user_and_the_relays_group_alone(tmp_path: Path) -> None:
    deep = tmp_path / ("long" * 30)
    deep.mkdir()
    with answering(deep):
        assert stat.S_IMODE((deep / SOCKET_FILE).stat().st_mode) == 0o660
        connect(deep).close()
    with pytest.raises(ConnectionRefusedError):
        connect(deep)
    with answering(deep):  # What an agent that was killed has left is no obstacle.
        connect(deep).close()
