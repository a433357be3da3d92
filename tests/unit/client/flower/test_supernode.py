"""What a hospital's relay does with a server's messages, and with a server that turns it away."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import numpy as np
import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.common.constant import HEARTBEAT_MIN_INTERVAL
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.recorddict_pb2 import ArrayRecord, ConfigRecord, ConfigRecordValue, RecordDict, StringList

from client import handover
from client.flower import supernode
from client.flower.supernode import (
    Answered,
    FleetConnection,
    Relay,
    ask_over,
    bundle_digest,
    explain,
    read_request,
    reply_with,
    reply_with_error,
)
from common.flower.bundle import bundle_without_code
from common.flower.carried import (
    LONGEST_CALL_BYTES,
    LONGEST_WHOLE_BYTES,
    MOST_PIECES,
    cut,
    longest_array_bytes,
    part_of,
)
from common.flower.leaving import LEAVES
from common.flower.waits import PIECE_BYTES
from common.identity.certificates import make_supernode_key, openssh_private
from common.processes import Stopping

NAME = "ab" * 32


class Refusal(grpc.RpcError):  # type: ignore[misc]  # gRPC has no types
    """A SuperLink's, of a call of a SuperNode's."""

    def __init__(self, code: grpc.StatusCode, details: str = "") -> None:
        super().__init__()
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


def asked(**values: ConfigRecordValue) -> Message:
    items = [ConfigRecord.Item(key=key, value=value) for key, value in values.items()]
    body = RecordDict.Item(key="body", config_record=ConfigRecord(items=items))
    metadata = Metadata(
        run_id=7, message_id=NAME, src_node_id=1, dst_node_id=5, group_id="masked_input", message_type="train",
        created_at=1000.0, ttl=60.0,
    )  # fmt: skip
    return Message(metadata=metadata, content=RecordDict(items=[body]))


def names(*given: str) -> ConfigRecordValue:
    return ConfigRecordValue(string_list=StringList(vals=given))


MESSAGE = ConfigRecordValue(bytes=b"request")


def test_the_bundle_has_one_hash_and_no_module(tmp_path: Path) -> None:
    bundle = bundle_without_code(tmp_path, build_fab_from_disk)
    assert hashlib.sha256(bundle).hexdigest() == bundle_digest(tmp_path)
    assert b".py" not in bundle.replace(b"pyproject", b"")


def test_heartbeats_are_as_rare_as_a_superlink_accepts() -> None:
    assert HEARTBEAT_MIN_INTERVAL == supernode._HEARTBEAT_INTERVAL_SECONDS > 2 * supernode._HEARTBEAT_SECONDS


def test_a_request_is_read_with_its_array_or_the_names_of_its_pieces() -> None:
    assert read_request(asked(message=MESSAGE)) == (b"request", b"", [])
    assert read_request(asked(message=MESSAGE, array=ConfigRecordValue(bytes=b"npy"))) == (b"request", b"npy", [])
    assert read_request(asked(message=MESSAGE, pieces=names(NAME, NAME))) == (b"request", b"", [NAME, NAME])


@pytest.mark.parametrize(
    "message",
    [
        Message(),
        asked(),
        asked(array=ConfigRecordValue(bytes=b"npy")),
        asked(message=MESSAGE, pieces=names("../../etc/passwd")),
        asked(message=MESSAGE, pieces=names(*[NAME] * (MOST_PIECES + 1))),
        Message(content=RecordDict(items=[RecordDict.Item(key="body", array_record=ArrayRecord())])),
    ],
)
def test_a_message_without_a_request_is_refused(message: Message) -> None:
    with pytest.raises(ValueError, match="must carry a request"):
        read_request(message)


@pytest.mark.parametrize("length", [0, 100, 5 * LONGEST_WHOLE_BYTES])
def test_a_reply_lives_as_long_as_its_request_and_carries_its_array(length: int) -> None:
    """A SuperLink drops a reply that seems to be made after its request has expired, by whatever clock."""
    array = os.urandom(length)
    reply, pieces = reply_with(asked(message=MESSAGE), b"reply", array)
    metadata = reply.metadata
    assert (metadata.created_at, metadata.ttl, metadata.run_id) == (1000.0, 60.0, 7)
    assert (metadata.src_node_id, metadata.dst_node_id, metadata.reply_to_message_id) == (5, 1, NAME)
    message, whole, named = read_request(reply)
    assert (message, named) == (b"reply", [piece.name for piece in pieces])
    assert whole + b"".join(part_of(piece.content()) for piece in pieces) == array
    assert bool(pieces) == (length > LONGEST_WHOLE_BYTES)


def test_no_two_replies_have_one_name() -> None:
    found = {reply_with_error(asked(message=MESSAGE), "no").metadata.message_id for _ in range(10)}
    assert len(found) == 10
    assert all(len(name) == 64 for name in found)


class Fleet:
    """A connection to a server that says what it is told to."""

    def __init__(self, *told: Message | Exception | None, push: Exception | None = None, has: str = "") -> None:
        self._tree = ObjectTree(object_id=NAME, children=[ObjectTree(object_id=has)] if has else [])
        self.told = list(told)
        self.pushed: list[Message] = []
        self._push = push

    def wait(self) -> Future[tuple[Message, ObjectTree] | None]:
        waited: Future[tuple[Message, ObjectTree] | None] = Future()
        told = self.told.pop(0) if self.told else Refusal(grpc.StatusCode.UNAUTHENTICATED)
        if isinstance(told, Exception):
            waited.set_exception(told)
        else:
            waited.set_result(None if told is None else (told, self._tree))
        return waited

    def bundle(self, _run: int) -> str:
        return "bundle"

    def pull(self, _run: int, _names: Sequence[str]) -> list[memoryview]:
        raise AssertionError("nothing is pulled here")

    def push(self, reply: Message, _pieces: Sequence[object]) -> None:
        if self._push is not None:
            failed, self._push = self._push, None
            raise failed
        self.pushed.append(reply)


def relayed(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, longest: int = 1000) -> list[bytes]:
    """Relay until the fleet has nothing more to say; return what the agent was asked."""
    monkeypatch.setattr(supernode, "_LONGEST_PAUSE_SECONDS", 0.001)
    heard: list[bytes] = []

    def ask(message: bytes, _parts: Sequence[object]) -> Answered:
        heard.append(message)
        return Answered(b"a fault" if message == b"bad" else b"reply", is_fault=message == b"bad")

    with pytest.raises(grpc.RpcError):
        Relay(cast("FleetConnection", fleet), ask, "bundle", longest).serve()
    return heard


def test_a_message_whose_run_has_ended_is_dropped_and_the_next_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = Refusal(grpc.StatusCode.FAILED_PRECONDITION, "the run has ended")
    fleet = Fleet(asked(message=MESSAGE), None, asked(message=MESSAGE), push=ended)
    assert relayed(fleet, monkeypatch) == [b"request", b"request"]
    assert len(fleet.pushed) == 1


def test_a_server_that_is_not_reached_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    away = Refusal(grpc.StatusCode.UNAVAILABLE)
    fleet = Fleet(away, away, asked(message=MESSAGE))
    assert relayed(fleet, monkeypatch) == [b"request"]


def test_a_fault_of_the_agents_and_a_message_without_a_request_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(asked(message=ConfigRecordValue(bytes=b"bad")), asked())
    assert relayed(fleet, monkeypatch) == [b"bad"]
    assert [reply.error.reason for reply in fleet.pushed] == [
        "a fault",
        "a message must carry a request; the server is of another version",
    ]


def test_pieces_that_did_not_come_with_the_message_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hospital asks for what the message names and for nothing else that the server has."""
    fleet = Fleet(asked(message=MESSAGE, pieces=names(NAME)))
    assert not relayed(fleet, monkeypatch)
    assert fleet.pushed[0].error.reason == "a part of an array must come with its message"


@pytest.mark.parametrize("pieces", [4, MOST_PIECES])
def test_an_array_that_is_longer_than_the_hospital_takes_is_refused_before_a_piece_is_fetched(
    pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(asked(message=MESSAGE, pieces=names(*[NAME] * pieces)), has=NAME)
    assert not relayed(fleet, monkeypatch, longest=2 * PIECE_BYTES - 1)
    assert "raise hospital.longest_vector" in fleet.pushed[0].error.reason


def test_an_array_as_long_as_the_hospital_takes_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    elements = 3 * PIECE_BYTES // 4
    model = np.zeros(elements, np.float32)
    pieces = 1 + len(list(cut(model.data.cast("B"))))
    fleet = Fleet(asked(message=MESSAGE, pieces=names(*[NAME] * pieces)), has=NAME)
    with pytest.raises(AssertionError, match="nothing is pulled"):
        relayed(fleet, monkeypatch, longest=longest_array_bytes(elements))


def test_a_node_that_is_turned_away_for_its_clock_says_so(caplog: pytest.LogCaptureFixture) -> None:
    explain(Refusal(grpc.StatusCode.UNAUTHENTICATED, "Invalid timestamp"))
    assert "refuses it: Invalid timestamp; set this machine's clock, or the server's" in caplog.text


def test_a_heartbeat_that_does_not_reach_the_server_says_nothing() -> None:
    def refused(code: grpc.StatusCode) -> FleetConnection:
        def beat(*_: object, **__: object) -> None:
            raise Refusal(code)

        fleet = object.__new__(FleetConnection)
        fleet._stub = cast("Any", SimpleNamespace(SendNodeHeartbeat=beat))
        fleet.node = Node(node_id=1)
        return fleet

    assert refused(grpc.StatusCode.UNAVAILABLE).beat()
    with pytest.raises(grpc.RpcError):
        refused(grpc.StatusCode.UNAUTHENTICATED).beat()


@pytest.mark.parametrize(("leaves", "said"), [(True, ((LEAVES, "1"),)), (False, ())])
def test_a_node_that_goes_says_whether_its_hospital_was_stopped(
    leaves: bool, said: tuple[tuple[str, str], ...]
) -> None:
    asked: list[tuple[int, object]] = []
    fleet = FleetConnection("127.0.0.1:1", b"certificate", make_supernode_key(), 0.02)

    def deactivate(request: DeactivateNodeRequest, timeout: float, metadata: object) -> None:  # noqa: ARG001 - as gRPC
        asked.append((request.node_id, metadata))

    fleet._stub = cast("Any", SimpleNamespace(DeactivateNode=deactivate))
    fleet.node = Node(node_id=7)
    fleet.close(leaves=leaves)
    assert asked == [(7, said)]


@pytest.mark.parametrize(("number", "leaves"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_a_relay_that_its_supervisor_starts_again_does_not_say_that_the_hospital_leaves(
    number: signal.Signals, leaves: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[bool] = []
    fleet = SimpleNamespace(activate=lambda: None, beat=lambda: True, close=lambda *, leaves: said.append(leaves))

    def stopped(_relay: Relay) -> None:
        raise Stopping(number)

    monkeypatch.setattr(supernode, "FleetConnection", lambda *_: fleet)
    monkeypatch.setattr(supernode, "raise_on_signals", lambda: None)
    monkeypatch.setattr(supernode, "begin_logging", lambda: None)
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(supernode, "await_agent", lambda *_: ours)
    monkeypatch.setattr(Relay, "serve", stopped)
    (tmp_path / "ca.pem").write_text("certificate")
    (tmp_path / "supernode.key").write_bytes(openssh_private(make_supernode_key()))
    words = [
        "supernode", "--relay", str(tmp_path), "--superlink", "127.0.0.1:1", "--poll-seconds", "0.05",
        "--first-backoff-seconds", "0.02", "--longest-array-bytes", "1000",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", words)
    with theirs:
        assert supernode.main() == 0
    assert said == [leaves]


def test_a_server_cannot_fill_a_relays_memory_with_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[str, int]] = []

    def channel(_address: str, _credentials: object, options: Sequence[tuple[str, int]]) -> grpc.Channel:
        kept.extend(options)
        return grpc.insecure_channel("127.0.0.1:1")

    monkeypatch.setattr(grpc, "secure_channel", channel)
    FleetConnection("127.0.0.1:1", b"certificate", make_supernode_key(), 0.02).close()
    assert dict(kept)["grpc.max_receive_message_length"] == LONGEST_CALL_BYTES


def test_a_relay_asks_over_its_connection_and_ends_with_its_agent() -> None:
    ours, theirs = socket.socketpair()
    ask = ask_over(ours)

    def agent() -> None:
        frame = handover.receive(theirs)
        array = handover.whole_array(theirs, frame.array_bytes)
        handover.send(theirs, frame.message, (bytes(array), bytes(array)))
        theirs.close()

    thread = threading.Thread(target=agent)
    thread.start()
    answered = ask(b"request", [b"one", memoryview(b"two")])
    thread.join()
    assert (answered.message, bytes(answered.array), answered.is_fault) == (b"request", b"onetwo" * 2, False)
    with ours, pytest.raises((EOFError, OSError)):
        ask(b"request", [])


def test_a_relay_without_a_readable_key_says_so_and_one_with_it_waits_for_its_agent(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("certificate")
    command = (
        sys.executable, "-m", "client.flower.supernode", "--relay", str(tmp_path), "--superlink", "127.0.0.1:1",
        "--poll-seconds", "0.05", "--first-backoff-seconds", "0.02", "--longest-array-bytes", "1000",
    )  # fmt: skip
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == os.EX_TEMPFAIL
    assert "supernode.key must be readable" in ended.stderr
    (tmp_path / "supernode.key").write_bytes(openssh_private(make_supernode_key()))
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        assert "waiting for the agent" in waiting.stderr.readline()
        waiting.terminate()
        assert waiting.wait(30) == 0
