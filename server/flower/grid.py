"""Carries the protocol's messages from within a ServerApp; the modules of this folder alone use Flower's private names.

A message of ours lies in Flower's as ``common/flower/carried.py`` says. The ServerApp speaks the SuperLink's Runtime
API itself, by the client of Flower's grid: Flower's own grid would send each message in several objects, keep all
pieces of an array until the last is sent, and end with an error where one hospital's reply cannot be read. Pieces of
long arrays pass by ``pieces.py``.
"""

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import httpx
import numpy.typing as npt
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    Message,
    Metadata,
    ObjectTree,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.recorddict_pb2 import ConfigRecord, ConfigRecordValue, RecordDict, StringList
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PushAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.protobuf.client import ProtobufClient, ProtobufRequestContext

from common.errors import OtherVersionError, RunError
from common.flower.carried import (
    ARRAY,
    BODY,
    LONGEST_WHOLE_BYTES,
    MESSAGE,
    MOST_PIECES,
    PIECES,
    Piece,
    array_head,
    part_of,
)
from common.flower.seam import replace_in
from common.flower.waits import poll_pause
from common.run.flat_model import FlatModel, stretches
from common.run.messages import decode_reply, join_array, phase_of
from server.flower.pieces import Pieces
from server.transport import Incoming, Outgoing, Patience

_MOST_WHOLE_BYTES = 16 * 2**20
"""Models inside messages, those of all hospitals together: a SuperLink holds them until they are answered."""

_CALL_BYTES = 4 * 2**20
"""Messages pushed in one call stay below this, or are one."""

_LOST = frozenset({ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE})
"""What a SuperLink answers for a node that is gone together with the message it had fetched."""

_UNREADABLE = "the reply cannot be read"


def let_responses_go() -> None:
    """Let each response of this process's calls to the SuperLink go with its last user.

    httpx's responses refer to themselves through their stream, which has been read by then, and keep a piece in memory
    until the garbage collector runs.
    """
    send = ProtobufClient._send  # noqa: SLF001 - each request goes by it

    def send_and_let_go(
        client: ProtobufClient, context: ProtobufRequestContext, *, stream: bool = False
    ) -> httpx.Response:
        response: httpx.Response = send(client, context, stream=stream)
        if not stream:
            response.stream = httpx.ByteStream(b"")
        return response

    replace_in(ProtobufClient, "_send", send_and_let_go, used_by=ProtobufClient._unary_unary)  # noqa: SLF001 - which calls it


class GridTransport:
    """Carries requests to SuperNodes and replies back.

    Args:
        grid: Flower's, of the ServerApp.
        poll_seconds: between two polls for replies, each of which waits a moment for one.
        pieces: of long arrays, at the SuperLink.
    """

    def __init__(self, grid: Grid, poll_seconds: float, pieces: Pieces) -> None:
        self._grid = grid
        self._pieces = pieces
        self._poll_seconds = poll_seconds
        self._node = Node(node_id=SUPERLINK_NODE_ID)

    def online(self) -> dict[int, str]:
        """Return the SuperNodes that are connected now, and the hospital each was registered for."""
        return {node.node_id: node.name for node in self._grid.get_nodes()}

    def exchange(
        self, outgoing: Mapping[int, Outgoing], patience: Patience, reply_array_bytes: int
    ) -> Iterator[Incoming]:
        """Send one request to each node and yield the replies as they arrive, until all did or patience ends.

        Args:
            outgoing: node to request.
            patience: says when to stop waiting.
            reply_array_bytes: of the array one reply may carry. Each must be let go before the next one is asked for,
                or two are in memory.
        """
        sent = self._push(outgoing, patience.longest_seconds)
        last_reply = time.monotonic()
        while sent and not patience.is_over():
            asked = time.monotonic()
            response = self._client.PullMessages(PullAppMessagesRequest(message_ids=list(sent)))
            for reply in response.messages_list:
                node = sent.pop(reply.metadata.reply_to_message_id, None)
                if node is None:
                    continue
                if is_lost(reply):
                    patience.gone(node)
                    continue
                patience.answered(node)
                yield self._read(node, reply, reply_array_bytes)
            if response.messages_list:
                last_reply = time.monotonic()
            elif sent and time.monotonic() - asked < self._poll_seconds:
                time.sleep(poll_pause(time.monotonic() - last_reply, self._poll_seconds))

    @property
    def _client(self) -> Any:  # noqa: ANN401 - Flower's RuntimeHttpClient, whose methods it makes up
        return self._grid._runtime_client  # type: ignore[attr-defined]  # noqa: SLF001 - see the module's docstring

    @property
    def _run(self) -> int:
        return int(self._grid.run.run_id)

    def _push(self, outgoing: Mapping[int, Outgoing], lifetime_seconds: float) -> dict[str, int]:
        """Send requests; return the node of each message that a SuperLink took.

        A model that goes to many nodes in pieces is read once to name them, and once to send them.
        """
        models = {id(item.model): item.model for item in outgoing.values() if item.model is not None}
        whole_bytes = sum(4 * len(item.model) for item in outgoing.values() if item.model is not None)
        carried = {key: _carried(model, whole_bytes) for key, model in models.items()}
        sent: dict[str, int] = {}
        batch: list[tuple[int, Message, Sequence[Piece]]] = []
        waiting_bytes = 0
        for node, item in outgoing.items():
            values, pieces = ({}, ()) if item.model is None else carried[id(item.model)]
            message = request_message(self._run, node, item, lifetime_seconds, values)
            if batch and waiting_bytes + message.ByteSize() > _CALL_BYTES:
                sent |= self._push_batch(batch)
                batch, waiting_bytes = [], 0
            batch.append((node, message, pieces))
            waiting_bytes += message.ByteSize()
        return sent | (self._push_batch(batch) if batch else {})

    def _push_batch(self, batch: Sequence[tuple[int, Message, Sequence[Piece]]]) -> dict[str, int]:
        trees = [
            ObjectTree(
                object_id=message.metadata.message_id, children=[ObjectTree(object_id=name) for name in _names(pieces)]
            )
            for _, message, pieces in batch
        ]
        messages = [message for _, message, _ in batch]
        response = self._client.PushMessages(PushAppMessagesRequest(messages_list=messages, message_object_trees=trees))
        by_name = {piece.name: piece for _, _, pieces in batch for piece in pieces}
        for name in response.objects_to_push:
            self._pieces.put(self._run, response.session_id, name, by_name[name].content())
        return {name: node for name, (node, _, _) in zip(response.message_ids, batch, strict=True) if name}

    def _read(self, node: int, reply: Message, longest_bytes: int) -> Incoming:
        incoming = incoming_of(node, reply, longest_bytes, self._pull)
        if _pieces_of(reply):
            self._client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(
                    node=self._node, run_id=self._run, message_object_id=reply.metadata.message_id
                )
            )
        return incoming

    def _pull(self, name: str) -> memoryview:
        """Return the part of an array that an object holds.

        Raises:
            ValueError: the object is not there, or is another one.
        """
        content = self._pieces.get(self._run, name)
        if not content:
            raise ValueError("a part of its array is missing")
        return part_of(content)


def _names(pieces: Sequence[Piece]) -> list[str]:
    """Return the names of pieces, those of equal ones once."""
    return list(dict.fromkeys(piece.name for piece in pieces))


def _carried(model: FlatModel, whole_bytes: int) -> tuple[dict[str, ConfigRecordValue], Sequence[Piece]]:
    """Return a model as it lies in a message, and the pieces that travel beside it.

    Args:
        model: that goes to hospitals.
        whole_bytes: of all models that would travel inside messages of this exchange.
    """
    head = array_head(model[:0].dtype, len(model))
    if 4 * len(model) <= LONGEST_WHOLE_BYTES and whole_bytes <= _MOST_WHOLE_BYTES:
        return {ARRAY: ConfigRecordValue(bytes=head + model[:].tobytes())}, ()
    pieces = [Piece(lambda: head), *(Piece(partial(_stretch, model, part)) for part in stretches(len(model)))]
    return {PIECES: ConfigRecordValue(string_list=StringList(vals=[piece.name for piece in pieces]))}, pieces


def _stretch(model: FlatModel, part: slice) -> memoryview:
    return model[part].data.cast("B")


def request_message(
    run: int, node: int, item: Outgoing, lifetime_seconds: float, values: Mapping[str, ConfigRecordValue]
) -> Message:
    """Return the message that carries a request, and ``values`` beside it."""
    both = {MESSAGE: ConfigRecordValue(bytes=item.encoded), **values}
    items = [ConfigRecord.Item(key=key, value=value) for key, value in both.items()]
    return Message(
        metadata=Metadata(
            run_id=run,
            message_id=hashlib.sha256(secrets.token_bytes(32)).hexdigest(),
            src_node_id=SUPERLINK_NODE_ID,
            dst_node_id=node,
            group_id=phase_of(item.request),
            message_type="train",
            created_at=time.time(),
            ttl=lifetime_seconds,
        ),
        content=RecordDict(items=[RecordDict.Item(key=BODY, config_record=ConfigRecord(items=items))]),
    )


def is_lost(reply: Message) -> bool:
    """Say whether a SuperLink says that the node and its reply are gone."""
    return reply.HasField("error") and reply.error.code in _LOST


def _values_of(reply: Message) -> dict[str, ConfigRecordValue]:
    values: dict[str, ConfigRecordValue] = {}
    for item in reply.content.items:
        if item.key == BODY:
            values = {each.key: each.value for each in item.config_record.items}
    return values


def _pieces_of(reply: Message) -> list[str]:
    values = _values_of(reply)
    return list(values[PIECES].string_list.vals) if PIECES in values else []


def incoming_of(node: int, reply: Message, longest_bytes: int, pull: Callable[[str], memoryview]) -> Incoming:
    """Return what a hospital sent, or in words why it is no reply.

    Args:
        node: that sent it.
        reply: of Flower's.
        longest_bytes: that its array may have.
        pull: returns the part of an array that an object holds.
    """
    if reply.HasField("error"):
        return Incoming(node, None, None, reply.error.reason or "no reason given", 0)
    values = _values_of(reply)
    if MESSAGE not in values or not values[MESSAGE].HasField("bytes"):
        return Incoming(node, None, None, "the reply carries no message", 0)
    encoded = values[MESSAGE].bytes
    try:
        message = decode_reply(encoded)
        array = _array(values, longest_bytes, pull)
    except OtherVersionError as error:
        return Incoming(node, None, None, str(error), 0, error.code)
    except (RunError, ValueError) as error:
        return Incoming(node, None, None, f"{_UNREADABLE}: {error}", 0)
    return Incoming(node, message, array, None, len(encoded) + (0 if array is None else array.nbytes))


def _array(
    values: Mapping[str, ConfigRecordValue], longest_bytes: int, pull: Callable[[str], memoryview]
) -> npt.NDArray[Any] | None:
    if ARRAY in values and PIECES in values:
        raise RunError("one array must come with a reply, got 2")
    if ARRAY in values:
        return join_array([values[ARRAY].bytes], longest_bytes)
    if PIECES not in values:
        return None
    names = values[PIECES].string_list.vals
    if len(names) > MOST_PIECES:
        raise RunError(f"an array must have {MOST_PIECES} pieces at most, got {len(names)}")
    return join_array((pull(name) for name in names), longest_bytes)
