"""``python -m client.flower.supernode --relay DIR …``: this hospital's relay between the server and its agent.

It is the only user of Flower's private names on this side. To the server's SuperLink it is a SuperNode: it speaks
Flower's Fleet API, with Flower's node authentication. Where Flower's SuperNode starts applications, it hands a
request's bytes to the hospital's agent (``client/handover.py``) and sends back what the agent answers. It runs as a
user of its own where the hospital has one for it, so it gets all it needs and reads its own folder alone: no settings,
no data, no key of the hospital's but the one that its SuperNode is registered with.

A small message takes two calls, one that waits for it and one that answers; ``common/flower/carried.py`` says how a
message lies in Flower's. The next call that waits is under way before the answer has left. Pieces of arrays cross side
by side.
"""

import argparse
import contextlib
import hashlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import grpc
from flwr.cli.build import build_fab_from_disk
from flwr.client.grpc_rere_client.node_auth_client_interceptor import NodeAuthClientInterceptor
from flwr.common.constant import ErrorCode
from flwr.proto.error_pb2 import Error
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.recorddict_pb2 import ConfigRecord, ConfigRecordValue, RecordDict, StringList
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.interceptors import RuntimeVersionClientInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from client import handover
from common.errors import ConfideError, RunError
from common.flower.bundle import bundle_without_code
from common.flower.carried import (
    ARRAY,
    BODY,
    LONGEST_CALL_BYTES,
    LONGEST_WHOLE_BYTES,
    MESSAGE,
    MOST_PIECES,
    PIECES,
    Piece,
    cut,
    is_name,
    part_of,
    too_long,
)
from common.flower.leaving import LEAVES
from common.flower.waits import PIECE_BYTES
from common.identity.certificates import load_supernode_key
from common.processes import Stopping, raise_on_signals
from common.telemetry.logs import begin_logging

T = TypeVar("T")

_LOG = logging.getLogger("confide.hospital")

_HEARTBEAT_INTERVAL_SECONDS = 10
"""A SuperLink misses a SuperNode that was killed after two of these, and lets none in with its key before; the least it
accepts. With Flower's own 30 s a hospital that has restarted waits for a minute."""

_HEARTBEAT_SECONDS = 4.0
"""The time between two heartbeats."""

_POLL_SECONDS = 30.0
"""The server answers a call that waits for a message after some seconds; one that is not answered is lost."""

_CALL_SECONDS = 60.0
"""The longest that a call may take, with its repetitions; an exchange waits no longer either, by default."""

_LONGEST_PAUSE_SECONDS = 2.0
"""The longest pause between two attempts to reach the server."""

_AT_ONCE = 4
"""Pieces of an array that are under way side by side."""

_LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
"""The server was not reached, or did not answer: the call may be made again."""

_TURNED_AWAY = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


class FleetConnection:
    """A SuperNode's connection to its SuperLink.

    Args:
        address: host and port of the server's Fleet API.
        root_certificate: of the consortium's authority, PEM.
        key: that the SuperNode is registered with, an elliptic-curve private key.
        first_backoff_seconds: before a call is made again; doubles from there.
    """

    def __init__(self, address: str, root_certificate: bytes, key: Any, first_backoff_seconds: float) -> None:  # noqa: ANN401 - cryptography's
        options = (
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", LONGEST_CALL_BYTES),
            ("grpc.min_reconnect_backoff_ms", 200),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", int(1000 * _LONGEST_PAUSE_SECONDS)),
        )
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(root_certificate), options=options)
        self._stub = FleetStub(
            grpc.intercept_channel(
                channel,
                RuntimeVersionClientInterceptor(component_name="SuperNode"),
                NodeAuthClientInterceptor(key, key.public_key()),
            )
        )
        self._channel = channel
        self._public_key = public_key_to_bytes(key.public_key())
        self._first_backoff_seconds = first_backoff_seconds
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="pieces")
        self._waiting = ThreadPoolExecutor(1, thread_name_prefix="waiting")
        self._bundles: dict[int, str] = {}
        self.node = Node()

    def activate(self) -> None:
        """Tell the server that this node is there."""
        asked = ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=_HEARTBEAT_INTERVAL_SECONDS)
        self.node = Node(node_id=self._call(self._stub.ActivateNode, asked).node_id)

    def close(self, *, leaves: bool = False) -> None:
        """Tell the server that this node goes, and whether that is because the hospital was stopped."""
        said = ((LEAVES, "1"),) if leaves else ()
        with contextlib.suppress(grpc.RpcError):
            if self.node.node_id:
                self._stub.DeactivateNode(DeactivateNodeRequest(node_id=self.node.node_id), timeout=2, metadata=said)
        for threads in (self._threads, self._waiting):
            threads.shutdown(wait=False, cancel_futures=True)
        self._channel.close()

    def beat(self) -> bool:
        """Tell the server that this node is still there; return whether the server knows it.

        A server that is not reached says nothing.
        """
        asked = SendNodeHeartbeatRequest(node=self.node, heartbeat_interval=_HEARTBEAT_INTERVAL_SECONDS)
        try:
            return bool(self._stub.SendNodeHeartbeat(asked, timeout=_HEARTBEAT_SECONDS).success)
        except grpc.RpcError as error:
            if error.code() in _LOST:
                return True
            raise

    def wait(self) -> Future[tuple[Message, ObjectTree] | None]:
        """Begin to wait for the next message, with the names of its objects; None when there is none yet."""
        # A thread, because Flower's interceptors wait for what gRPC would return at once.
        return self._waiting.submit(self._wait)

    def _wait(self) -> tuple[Message, ObjectTree] | None:
        response = self._stub.PullMessages(PullMessagesRequest(node=self.node), timeout=_POLL_SECONDS)
        if not response.messages_list or not response.message_object_trees:
            return None
        return response.messages_list[0], response.message_object_trees[0]

    def bundle(self, run: int) -> str:
        """Return the SHA-256 of the bundle that a run was submitted with, as the server states it."""
        if run not in self._bundles:
            self._bundles = {run: self._call(self._stub.GetRun, GetRunRequest(node=self.node, run_id=run)).run.fab_hash}
        return self._bundles[run]

    def pull(self, run: int, names: Sequence[str]) -> list[memoryview]:
        """Return the parts of an array, in order.

        Raises:
            ValueError: an object is none, or does not come within a minute.
        """
        return list(self._threads.map(partial(self._pull_one, run), names))

    def push(self, reply: Message, pieces: Sequence[Piece]) -> None:
        """Send a reply and the pieces of its array."""
        tree = ObjectTree(
            object_id=reply.metadata.message_id, children=[ObjectTree(object_id=piece.name) for piece in pieces]
        )
        asked = PushMessagesRequest(node=self.node, messages_list=[reply], message_object_trees=[tree])
        response = self._call(self._stub.PushMessages, asked)
        missing = set(response.objects_to_push)
        send = partial(self._push_one, reply.metadata.run_id, response.session_id)
        # Equal pieces have one name.
        wanted = {piece.name: piece for piece in pieces if piece.name in missing}
        for _ in self._threads.map(send, wanted.values()):
            pass

    def _pull_one(self, run: int, name: str) -> memoryview:
        asked = PullObjectRequest(node=self.node, run_id=run, object_id=name)
        give_up, pause = time.monotonic() + _CALL_SECONDS, self._first_backoff_seconds
        while True:
            response = self._call(self._stub.PullObject, asked)
            if response.object_available:
                return part_of(response.object_content)
            if not response.object_found or time.monotonic() > give_up:
                raise ValueError("a part of an array must come with its message")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _push_one(self, run: int, session: str, piece: Piece) -> None:
        self._call(
            self._stub.PushObject,
            PushObjectRequest(
                node=self.node, run_id=run, session_id=session, object_id=piece.name, object_content=piece.content()
            ),
        )

    def _call(self, method: Callable[..., T], request: object) -> T:
        """Make a call, again while the server is not reached."""
        give_up, pause = time.monotonic() + _CALL_SECONDS, self._first_backoff_seconds
        while True:
            try:
                return method(request, timeout=_CALL_SECONDS)
            except grpc.RpcError as error:
                if error.code() not in _LOST or time.monotonic() > give_up:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


Ask = Callable[[bytes, Sequence[bytes | memoryview]], "Answered"]


class Answered:
    """What the agent made of a request.

    Args:
        message: the encoded reply, or a fault in words.
        array: the NumPy file beside it; empty for none.
    """

    def __init__(self, message: bytes, array: bytes | bytearray = b"", *, is_fault: bool = False) -> None:
        self.message = message
        self.array = array
        self.is_fault = is_fault


def ask_over(connection: socket.socket) -> Ask:
    """Return what hands a request to the agent at the other end of a connection.

    It raises :class:`EOFError` or :class:`OSError` when the agent is gone.
    """

    def ask(message: bytes, parts: Sequence[bytes | memoryview]) -> Answered:
        handover.send(connection, message, parts)
        frame = handover.receive(connection)
        return Answered(frame.message, handover.whole_array(connection, frame.array_bytes), is_fault=frame.is_fault)

    return ask


class Relay:
    """Hands each message of the server's to the agent, and its answer to the server.

    Args:
        fleet: the connection to the server.
        ask: hands a request to the agent.
        bundle: SHA-256 hex digest of the one bundle whose messages are answered; it is never fetched.
        longest_array_bytes: of the array that a request brings; a longer one is refused before any piece is fetched.
    """

    def __init__(self, fleet: FleetConnection, ask: Ask, bundle: str, longest_array_bytes: int) -> None:
        self._longest_array_bytes = longest_array_bytes
        self._fleet = fleet
        self._ask = ask
        self._bundle = bundle

    def serve(self) -> NoReturn:
        """Relay until the agent is gone, or the server turns this node away.

        Raises:
            EOFError, OSError: the agent is gone.
            grpc.RpcError: the server turns the node away, or is not reached.
        """
        waiting = self._fleet.wait()
        began, pause = time.monotonic(), _LONGEST_PAUSE_SECONDS / 16
        while True:
            try:
                received = waiting.result()
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                received = None
            else:
                if received is None and time.monotonic() - began < pause:
                    time.sleep(pause)  # The server lets only so many wait.
            reply = None if received is None else self._reply_to(*received)
            began, waiting = time.monotonic(), self._fleet.wait()
            if reply is not None:
                self._push(*reply)

    def _reply_to(self, asked: Message, tree: ObjectTree) -> tuple[Message, Sequence[Piece]] | None:
        """Return the reply to a message, or None where the message is dropped: its run has ended."""
        try:
            if self._fleet.bundle(asked.metadata.run_id) != self._bundle:
                return reply_with_error(asked, "this hospital does not answer messages of this bundle"), ()
            message, parts = self._request(asked, tree)
        except ValueError as error:
            _LOG.warning("a message is refused: %s", error)
            return reply_with_error(asked, str(error)), ()
        except grpc.RpcError as error:
            _drop(error)
            return None
        answered = self._ask(message, parts)
        if answered.is_fault:
            return reply_with_error(asked, answered.message.decode(errors="replace")), ()
        return reply_with(asked, answered.message, answered.array)

    def _request(self, asked: Message, tree: ObjectTree) -> tuple[bytes, Sequence[bytes | memoryview]]:
        message, array, names = read_request(asked)
        if not set(names) <= {child.object_id for child in tree.children}:
            raise ValueError("a part of an array must come with its message")
        # The first piece is the head alone, and the last one may be short; no piece is longer than PIECE_BYTES.
        if len(names) > 2 + self._longest_array_bytes // PIECE_BYTES:
            raise ValueError(too_long(self._longest_array_bytes))
        return message, self._fleet.pull(asked.metadata.run_id, names) if names else [array] if array else []

    def _push(self, reply: Message, pieces: Sequence[Piece]) -> None:
        try:
            self._fleet.push(reply, pieces)
        except grpc.RpcError as error:
            _drop(error)


def _drop(error: grpc.RpcError) -> None:
    """Go on after a message whose run or exchange has ended; raise what concerns the node itself."""
    if error.code() in _TURNED_AWAY:
        raise error
    _LOG.warning("a message is dropped, its exchange is over: %s", error.code().name)


def read_request(asked: Message) -> tuple[bytes, bytes, Sequence[str]]:
    """Return a message's request, a small array that comes with it, and the names of the pieces of a long one.

    Raises:
        ValueError: it carries no request.
    """
    values: dict[str, ConfigRecordValue] = {}
    for item in asked.content.items:
        if item.key == BODY:
            values = {each.key: each.value for each in item.config_record.items}
    names = list(values[PIECES].string_list.vals) if PIECES in values else []
    if MESSAGE not in values or len(names) > MOST_PIECES or not all(map(is_name, names)):
        raise ValueError("a message must carry a request; the server is of another version")
    return values[MESSAGE].bytes, values[ARRAY].bytes if ARRAY in values else b"", names


def reply_with(asked: Message, message: bytes, array: bytes | bytearray) -> tuple[Message, Sequence[Piece]]:
    """Return a reply and the pieces that a long array is cut into."""
    values = {MESSAGE: ConfigRecordValue(bytes=message)}
    pieces: Sequence[Piece] = ()
    if len(array) > LONGEST_WHOLE_BYTES:
        pieces = [Piece(partial(_itself, part)) for part in cut(memoryview(array))]
        values[PIECES] = ConfigRecordValue(string_list=StringList(vals=[piece.name for piece in pieces]))
    elif array:
        values[ARRAY] = ConfigRecordValue(bytes=bytes(array))
    items = [ConfigRecord.Item(key=key, value=value) for key, value in values.items()]
    content = RecordDict(items=[RecordDict.Item(key=BODY, config_record=ConfigRecord(items=items))])
    return Message(metadata=_reply_to(asked.metadata), content=content), pieces


def _itself(part: memoryview) -> memoryview:
    return part


def reply_with_error(asked: Message, reason: str) -> Message:
    """Return a reply that says why there is none."""
    error = Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason)
    return Message(metadata=_reply_to(asked.metadata), error=error)


def _reply_to(asked: Metadata) -> Metadata:
    """Return a reply's metadata.

    It lives as long as its request, by the server's clock: a SuperLink drops a reply that seems to be made after its
    request has expired.
    """
    return Metadata(
        run_id=asked.run_id,
        message_id=hashlib.sha256(secrets.token_bytes(32)).hexdigest(),
        src_node_id=asked.dst_node_id,
        dst_node_id=asked.src_node_id,
        reply_to_message_id=asked.message_id,
        group_id=asked.group_id,
        message_type=asked.message_type,
        created_at=asked.created_at,
        ttl=asked.ttl,
    )


def bundle_digest(scratch: Path) -> str:
    """Return the SHA-256 hex digest of the bundle without code, the only one answered.

    Args:
        scratch: a folder to lay the bundle's one file in.
    """
    return hashlib.sha256(bundle_without_code(scratch, build_fab_from_disk)).hexdigest()


def explain(error: grpc.RpcError) -> None:
    """Log why the server turns this node away, or does not answer."""
    reason = error.details() or ""
    if error.code() in _TURNED_AWAY:
        todo = "; set this machine's clock, or the server's" if "timestamp" in reason else ""
        _LOG.error("the server must let this hospital's node in, and refuses it: %s%s", reason, todo)
    else:
        _LOG.warning("the connection to the server ends: %s %s", error.code().name, reason)


def _beat_on(fleet: FleetConnection) -> None:
    """Send heartbeats; a node that the server does not know ends this process, and its supervisor starts another."""
    while True:
        time.sleep(_HEARTBEAT_SECONDS)
        try:
            known = fleet.beat()
        except grpc.RpcError as error:
            explain(error)
            known = False
        if not known:
            _LOG.warning("the server does not know this node any more; connecting again")
            sys.stderr.flush()
            os._exit(os.EX_TEMPFAIL)


def await_agent(folder: Path, seconds: float) -> socket.socket:
    """Return a connection to the agent, as soon as it listens."""
    refused: deque[OSError] = deque(maxlen=1)
    while True:
        try:
            return handover.connect(folder)
        except OSError as error:
            if not refused:
                _LOG.info("waiting for the agent: %s", error.strerror)
            refused.append(error)
        time.sleep(seconds)


def main() -> int:
    """Relay messages between the server and this hospital's agent until it is stopped."""
    parser = argparse.ArgumentParser(prog="python -m client.flower.supernode", description=__doc__)
    parser.add_argument("--relay", type=Path, required=True, help="folder with its key and certificates")
    parser.add_argument("--superlink", required=True, help="host and port of the server's Fleet API")
    parser.add_argument("--poll-seconds", type=float, required=True)
    parser.add_argument("--first-backoff-seconds", type=float, required=True)
    parser.add_argument("--longest-array-bytes", type=int, required=True)
    chosen = parser.parse_args()
    begin_logging()
    raise_on_signals()
    fleet, leaves = None, False
    try:
        key, ca = load_supernode_key(chosen.relay / "supernode.key"), (chosen.relay / "ca.pem").read_bytes()
        scratch = chosen.relay / "flower"
        scratch.mkdir(mode=0o770, exist_ok=True)
        bundle = bundle_digest(scratch)
        with await_agent(chosen.relay, chosen.poll_seconds) as agent:
            fleet = FleetConnection(chosen.superlink, ca, key, chosen.first_backoff_seconds)
            fleet.activate()
            threading.Thread(target=_beat_on, args=(fleet,), name="heartbeat", daemon=True).start()
            Relay(fleet, ask_over(agent), bundle, chosen.longest_array_bytes).serve()
    except Stopping as stopping:
        leaves = stopping.signal_number == signal.SIGTERM  # The supervisor sends SIGINT where something has failed.
        return 0
    except (EOFError, OSError, RunError) as error:
        _LOG.warning("the agent is gone: %s", error)
    except grpc.RpcError as error:
        explain(error)
    except ConfideError as error:
        _LOG.error("%s", error)
    finally:
        if fleet is not None:
            fleet.close(leaves=leaves)
    return os.EX_TEMPFAIL


if __name__ == "__main__":
    sys.exit(main())
