"""A container finds out its number by the engine's DNS, and from nothing else."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from deploy.containers import replica
from deploy.containers.replica import name_of, number_in

NAME = "confide-hospital-3.confide_consortium"


@contextmanager
def resolver(answer: Callable[[bytes], bytes]) -> Iterator[tuple[str, int]]:
    """Answer each question over UDP."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.bind(("127.0.0.1", 0))

        def serve() -> None:
            try:
                while True:
                    question, asked_by = line.recvfrom(4096)
                    line.sendto(answer(question), asked_by)
            except OSError:
                return

        threading.Thread(target=serve, daemon=True).start()
        yield line.getsockname()


def pointing(name: str, kind: int = 12) -> Callable[[bytes], bytes]:
    """Return what answers a question with one record, whose own name is the question's by a pointer."""

    def answer(question: bytes) -> bytes:
        encoded = b"".join(bytes((len(label),)) + label.encode() for label in name.split(".")) + b"\0"
        record = b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 600, len(encoded)) + encoded
        return question[:2] + struct.pack(">HHHHH", 0x8180, 1, 1, 0, 0) + question[12:] + record

    return answer


def test_the_engine_names_a_container_by_its_address() -> None:
    asked: list[bytes] = []

    def answer(question: bytes) -> bytes:
        asked.append(question)
        return pointing(NAME)(question)

    with resolver(answer) as address:
        assert name_of("172.18.0.7", address) == NAME
    assert b"\x017\x010\x0218\x03172\x07in-addr\x04arpa\0" in asked[0]


@pytest.mark.parametrize(
    "answer",
    [
        lambda question: question[:2] + struct.pack(">HHHHH", 0x8183, 1, 0, 0, 0) + question[12:],  # no such name
        lambda question: bytes((question[0] ^ 1,)) + pointing(NAME)(question)[1:],
        pointing(NAME, kind=1),
        lambda question: pointing(NAME)(question)[:-8],
        lambda question: pointing(NAME)(question)[:-1] + b"\xc0",
        lambda question: question[:2] + struct.pack(">HHHHH", 0x8180, 1, 1, 0, 0) + question[12:] + b"\xc0\x0c" * 200,
        lambda question: question[:2] + struct.pack(">HHHHH", 0x8180, 1, 1, 0, 0) + question[12:] + b"\xc0\x22" * 9,
        lambda _question: b"",
    ],
)
def test_an_answer_that_names_nobody_gives_no_number(answer: Callable[[bytes], bytes]) -> None:
    with resolver(answer) as address:
        assert name_of("172.18.0.7", address) is None


def test_a_resolver_that_does_not_answer_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "_SECONDS", 0.05)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        assert name_of("172.18.0.7", silent.getsockname()) is None


@pytest.mark.parametrize(
    ("container", "number"),
    [
        ("confide-hospital-3.confide_consortium", 3),
        ("confide-test-0a1b-hospital-12.net", 12),
        ("confide_hospital_2.net", 2),
        ("hospital-1", 1),
        ("confide-hospital-0.net", None),
        ("confide-hospital-x.net", None),
        ("confide-nohospital-3.net", None),
        ("cafe", None),
        ("", None),
    ],
)
def test_the_number_stands_at_the_end_of_the_containers_name(container: str, number: int | None) -> None:
    assert number_in(container, "hospital") == number
