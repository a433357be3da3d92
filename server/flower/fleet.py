"""Where our SuperLink differs from Flower's: it lets restarted SuperNodes in, and they need not poll it.

A hospital's clock may be off by minutes: Flower turns a SuperNode away whose clock is 5 s ahead of the SuperLink's.

A SuperNode of Flower's polls for a message again and again, and each poll costs the SuperLink the check of a signature:
with 32 hospitals it did little else. Here a poll is answered when a message is there, whole, or after seconds. The
ServerApp's poll for replies likewise. A message that carries its content itself (``common/flower/carried.py``) needs no
object of its own. ``change_superlink`` changes the SuperLink in whose process it is called.
"""

import importlib
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from flwr.app import Message
from flwr.common.constant import PUBLIC_KEY_HEADER
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
)
from flwr.proto.message_pb2 import ObjectTree
from flwr.server.superlink.fleet.grpc_rere import node_auth_server_interceptor
from flwr.server.superlink.fleet.grpc_rere.fleet_servicer import FleetServicer
from flwr.server.superlink.linkstate import InMemoryLinkState

from common.flower.carried import LONGEST_CALL_BYTES
from common.flower.leaving import LEAVES
from common.flower.seam import replace_in
from server.flower.pieces import serve_pieces
from server.members.departures import Departures

_LONGEST_POLL_SECONDS = 5.0
"""How long a poll may wait when there is no message: less than the time after which anything on the way may drop it."""

_CLOCKS_APART_SECONDS = 300
"""A SuperNode signs the time with each call, and the signature is valid for this long; Flower allows a clock to be that
much behind and 5 s ahead, so that all hospitals would be turned away when the server's clock is set back by more. The
signature travels inside TLS, where nobody sees it to replay it."""

_LONGEST_REPLY_POLL_SECONDS = 0.25
"""How long the ServerApp's poll for replies may wait: by so much an exchange may last longer than its patience."""

_REPLIES_AT_ONCE = 16
"""The most replies in the answer to one poll: the ServerApp's memory does not grow with the hospitals."""

_SESSION_SECONDS = 10.0
"""Whoever begins to send objects has named them all long before."""

_MOST_WAITING = 500
"""The most polls that wait at once, half of the calls that Flower serves at once; others are answered at once."""


@dataclass
class _Mailbox:
    """What is on its way to one SuperNode."""

    changed: threading.Condition
    missing: set[str] = field(default_factory=set)
    """Objects of its latest message that are not here yet."""
    may_hold: bool = False
    """Whether a message has become whole since the last poll found none."""
    connection: int = 0
    """Counts the node's connections; only the latest gets messages."""


class Deliveries:
    """Knows for which SuperNodes a message is here with all its objects, and lets them wait for one.

    Flower lists a message before its objects have come: a SuperNode that fetched it then would ask for each of them
    until it is there.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._mailboxes: dict[int, _Mailbox] = {}
        self._awaiting: dict[str, set[int]] = {}
        """Nodes by object that is missing."""
        self._waiting = 0

    def expect(self, node: int, missing: Collection[str]) -> None:
        """Note a message for ``node`` of which the objects ``missing`` are still to come.

        A node gets one message at a time: an earlier one that has not become whole never will.
        """
        with self._lock:
            mailbox = self._mailbox(node)
            for name in mailbox.missing.difference(missing):
                self._awaiting[name].discard(node)
            mailbox.missing = set(missing)
            for name in missing:
                self._awaiting.setdefault(name, set()).add(node)
            self._announce(mailbox)

    def arrived(self, name: str) -> None:
        """Note that an object is here."""
        with self._lock:
            for node in self._awaiting.pop(name, ()):
                mailbox = self._mailboxes[node]
                mailbox.missing.discard(name)
                self._announce(mailbox)

    def connected(self, node: int) -> None:
        """Turn away a poll that still waits for ``node``, which has connected again."""
        with self._lock:
            mailbox = self._mailbox(node)
            mailbox.connection += 1
            mailbox.changed.notify_all()

    def look(self, node: int, context: grpc.ServicerContext) -> bool:
        """Wait until a message may be here for ``node``, for seconds at most.

        Returns:
            False if the caller must get none: it is gone, or not the node's latest connection.
        """
        with self._lock:
            mailbox = self._mailbox(node)
            connection = mailbox.connection
            if self._waiting < _MOST_WAITING and context.add_callback(partial(self._wake, mailbox)):
                self._waiting += 1
                mailbox.changed.wait_for(
                    lambda: mailbox.may_hold or mailbox.connection != connection or not context.is_active(),
                    _LONGEST_POLL_SECONDS,
                )
                self._waiting -= 1
            if mailbox.connection != connection or not context.is_active():
                return False
            mailbox.may_hold = False
            return True

    def found(self, node: int) -> None:
        """Note that a poll has found a message, and that there is another."""
        with self._lock:
            self._mailbox(node).may_hold = True

    def _mailbox(self, node: int) -> _Mailbox:
        return self._mailboxes.setdefault(node, _Mailbox(threading.Condition(self._lock)))

    def _announce(self, mailbox: _Mailbox) -> None:
        if not mailbox.missing:
            mailbox.may_hold = True
            mailbox.changed.notify_all()

    def _wake(self, mailbox: _Mailbox) -> None:
        with self._lock:
            mailbox.changed.notify_all()


class Replies:
    """Knows of which replies a part is still to come, and lets the ServerApp wait for one that is whole."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._missing: dict[str, set[str]] = {}
        """Request to the objects of its reply that are not here yet."""

    def expect(self, request: str, missing: Collection[str]) -> None:
        """Note the reply to a request, of which the objects ``missing`` are still to come."""
        with self._changed:
            if missing:
                self._missing[request] = set(missing)
            self._changed.notify_all()

    def arrived(self, name: str) -> None:
        """Note that an object is here."""
        with self._changed:
            for request in [request for request, missing in self._missing.items() if name in missing]:
                self._missing[request].discard(name)
                if not self._missing[request]:
                    del self._missing[request]
                    self._changed.notify_all()

    def forget(self, requests: Collection[str]) -> None:
        """Note that nobody waits for these replies any more."""
        with self._changed:
            for request in requests:
                self._missing.pop(request, None)

    def incomplete(self) -> set[str]:
        """Return the requests to whose replies a part is still to come."""
        with self._changed:
            return set(self._missing)

    def wait(self, is_there: Callable[[set[str]], bool]) -> set[str]:
        """Wait until a reply is there, for a moment at most; return what :meth:`incomplete` does.

        Args:
            is_there: says whether one is, given the requests whose replies are not whole.
        """
        with self._changed:
            self._changed.wait_for(lambda: is_there(set(self._missing)), _LONGEST_REPLY_POLL_SECONDS)
            return set(self._missing)


def change_superlink(folder: Path) -> None:
    """Let restarted SuperNodes in, and answer a poll for a message when there is one.

    Args:
        folder: the server's state folder, for the socket over which the ServerApp hands over pieces of arrays, and for
            who has left.
    """
    deliveries, replies = Deliveries(), Replies()
    factory = importlib.import_module("flwr.server.superlink.linkstate.linkstate_factory")
    state = _state(deliveries, replies, folder)
    replace_in(factory, "InMemoryLinkState", state, used_by=factory.LinkStateFactory.state)
    superlink = importlib.import_module("flwr.superlink.cli.flower_superlink")
    servicer = _servicer(deliveries, replies, Departures(folder))
    start = vars(superlink)["_run_fleet_api_grpc_rere"]
    replace_in(superlink, "FleetServicer", servicer, used_by=start)
    replace_in(superlink, "GRPC_MAX_MESSAGE_LENGTH", LONGEST_CALL_BYTES, used_by=start)
    check = node_auth_server_interceptor.NodeAuthServerInterceptor.intercept_service
    replace_in(node_auth_server_interceptor, "MIN_TIMESTAMP_DIFF", -_CLOCKS_APART_SECONDS, used_by=check)
    replace_in(node_auth_server_interceptor, "MAX_TIMESTAMP_DIFF", _CLOCKS_APART_SECONDS, used_by=check)


class State(InMemoryLinkState):
    """What a SuperLink knows of messages and objects; made for one SuperLink by :func:`_state`."""

    deliveries: Deliveries
    replies: Replies
    sessions: deque[tuple[float, str]]
    """When each session began."""
    read: list[str]
    """Replies without pieces that the ServerApp has been given."""
    folder: Path
    """For the socket of pieces."""

    def __init__(self, *flowers: Any, **own: Any) -> None:  # noqa: ANN401 - Flower's
        super().__init__(*flowers, **own)
        serve_pieces(self.folder, self)

    def start_session(self, run_id: int) -> str:
        """Begin a session; forget those that lack nothing: Flower does when the last object comes, and only then."""
        session: str = super().start_session(run_id)
        with self._lock_object_push_sessions:
            self.sessions.append((time.monotonic(), session))
            while self.sessions and self.sessions[0][0] < time.monotonic() - _SESSION_SECONDS:
                name = self.sessions.popleft()[1]
                old = self._object_push_sessions.get(name)
                if old is not None and not old.pending_object_ids:
                    self._cleanup_push_session(name, cleanup_messages=False)
        return session

    def store_message_and_object_tree(
        self, message: Message, object_tree: ObjectTree, session_id: str
    ) -> tuple[bool, list[str]]:
        """Store a message; one that carries its content is not asked for as an object."""
        with self.lock:  # A reply that is seen before what of it is still to come is noted would pass for whole.
            stored, missing = super().store_message_and_object_tree(message, object_tree, session_id)
            if not stored:
                return stored, missing
            if message.has_error() or message.content:
                missing = [name for name in missing if name != object_tree.object_id]
                with self._lock_object_push_sessions:
                    self._object_push_sessions[session_id].pending_object_ids.discard(object_tree.object_id)
            request = message.metadata.reply_to_message_id
            if request:
                self.object_store.delete(request)
                self.replies.expect(request, missing)
            else:
                self.deliveries.expect(message.metadata.dst_node_id, missing)
        return stored, missing

    def store_object(self, run_id: int, session_id: str, object_id: str, object_content: bytes) -> bool:
        """Store an object, and tell whoever waits for it."""
        stored: bool = super().store_object(run_id, session_id, object_id, object_content)
        if stored:
            self.deliveries.arrived(object_id)
            self.replies.arrived(object_id)
        return stored

    def get_message_res(self, message_ids: set[str], run_id: int) -> list[Message]:
        """Wait a moment for replies, and return some of those that are whole."""
        while self.read:
            self.object_store.delete(self.read.pop())
        asked = _worth_asking(message_ids, self.message_ins_id_to_message_res_id, self.replies)
        with self.lock:
            # Of those that had no reply a part of one may have come since.
            found: list[Message] = super().get_message_res(asked - self.replies.incomplete(), run_id)
        # Whoever asked reads each reply's tree once more; a reply without pieces is used up with that.
        names = [message.metadata.message_id for message in found]
        self.read.extend(
            name for name in names if name in self.object_store and not self.object_store.get_object_tree(name).children
        )
        return found

    def delete_messages(self, message_ins_ids: set[str]) -> None:
        """Delete requests with their replies, and the requests' objects."""
        super().delete_messages(message_ins_ids)
        for name in message_ins_ids:
            self.object_store.delete(name)
        self.replies.forget(message_ins_ids)


def _state(deliveries: Deliveries, replies: Replies, folder: Path) -> type[State]:
    facts = {
        "folder": folder,
        "deliveries": deliveries,
        "replies": replies,
        "sessions": deque[tuple[float, str]](),
        "read": list[str](),
    }
    return type("State", (State,), facts)


def _worth_asking(requests: Collection[str], answered: Collection[str], replies: Replies) -> set[str]:
    """Wait for a whole reply; return the requests that have one, some of them, and those that have none at all."""
    incomplete = replies.wait(lambda parted: any(name in answered and name not in parted for name in requests))
    whole = [name for name in requests if name in answered and name not in incomplete]
    return {*whole[:_REPLIES_AT_ONCE], *(name for name in requests if name not in answered)}


def _servicer(deliveries: Deliveries, replies: Replies, departures: Departures) -> type[FleetServicer]:
    class Servicer(FleetServicer):
        def ActivateNode(  # noqa: N802 - as Flower's
            self, request: ActivateNodeRequest, context: grpc.ServicerContext
        ) -> ActivateNodeResponse:
            # Flower checks the signature of the key in the metadata, which need not be the one in the request.
            if dict(context.invocation_metadata()).get(PUBLIC_KEY_HEADER) == request.public_key:
                _let_in(self.state_factory.state(), request.public_key, deliveries, replies)
            response = super().ActivateNode(request, context)
            if name := _name_of(self.state_factory.state(), response.node_id):
                departures.forget(name)
            return response

        def DeactivateNode(self, request: DeactivateNodeRequest, context: grpc.ServicerContext) -> Any:  # noqa: ANN401, N802 - as Flower's
            # Noted first, so that whoever sees the node gone finds out why. Flower has checked whose node it is.
            leaves = LEAVES in dict(context.invocation_metadata())
            if leaves and (name := _name_of(self.state_factory.state(), request.node_id)):
                departures.note(name)
            return super().DeactivateNode(request, context)

        def PullMessages(  # noqa: N802 - as Flower's
            self, request: PullMessagesRequest, context: grpc.ServicerContext
        ) -> PullMessagesResponse:
            node = request.node.node_id
            if not deliveries.look(node, context):
                return PullMessagesResponse()
            response = super().PullMessages(request, context)
            if response.messages_list and _has_another(self.state_factory.state(), node):
                deliveries.found(node)
            return response

    return Servicer


def _name_of(state: Any, node: int) -> str:  # noqa: ANN401 - Flower's InMemoryLinkState
    """Return the hospital that a node was registered for; empty where there is none."""
    return next((str(found.name) for found in state.get_node_info(node_ids=[node])), "")


def _has_another(state: Any, node: int) -> bool:  # noqa: ANN401 - Flower's InMemoryLinkState
    """Say whether there is a message for a node that it has not fetched."""
    with state.lock:
        return any(
            message.metadata.dst_node_id == node and not message.metadata.delivered_at
            for message in state.message_ins_store.values()
        )


def _let_in(state: Any, key: bytes, deliveries: Deliveries, replies: Replies) -> None:  # noqa: ANN401 - Flower's
    """Let a SuperNode connect although the SuperLink holds it to be connected already.

    Flower 1.39 refuses a node's key until its last heartbeat has lapsed, 20 s at the least, so a hospital that was
    killed and has started again would miss all rounds until then. The caller has proved by a signature that it
    holds the key: the one that was connected before is gone, and so is what it had fetched and not answered. Those
    messages are deleted, so that the exchange need not wait for their replies.
    """
    node = state.get_node_id_by_public_key(key)
    if node is None:
        return
    deliveries.connected(node)
    if state.deactivate_node(node):
        state.delete_messages(_unanswered(state, node, replies.incomplete()))


def _unanswered(state: Any, node: int, incomplete: set[str]) -> set[str]:  # noqa: ANN401 - Flower's InMemoryLinkState
    """Return the messages that a node has fetched and not replied to, or not with all of its reply."""
    with state.lock:
        return {
            message_id
            for message_id, message in state.message_ins_store.items()
            if message.metadata.dst_node_id == node
            and message.metadata.delivered_at
            and (message_id in incomplete or message_id not in state.message_ins_id_to_message_res_id)
        }
