"""Carries the protocol's messages from within a ServerApp; the modules of this folder alone use Flower's private names.

``tell_unreadable_replies`` changes the grid of the ServerApp in whose process it is called.
"""

import importlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.inflatable import inflatable_utils
from google.protobuf.message import DecodeError

from common.errors import OtherVersionError, RunError
from common.flower.seam import replace_in
from common.flower.waits import limit_pulls, poll_pause, shorten_backoff
from common.run.messages import decode_reply, phase_of
from server.flower.arrays import ArrivedArray, record_of
from server.transport import Incoming, Outgoing, Patience

_BATCH_BYTES = 2**20
"""Replies pulled in one call stay below this, or are one: the server's memory does not grow with the hospitals."""


_LOST = frozenset({ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE})
"""What a SuperLink answers for a node that is gone together with the message it had fetched."""


_UNREADABLE = "the reply cannot be read"


def tell_unreadable_replies() -> None:
    """Let a reply of this process's grid that Flower cannot read be an error of the hospital that sent it.

    Flower 1.39 itself ends the ServerApp, and with it the round of all hospitals; the next would end likewise. What
    was read is kept for the moment until Flower asks for it, so that no vector is built twice.
    """
    http_grid = importlib.import_module("flwr.superlink.grid.http_grid")
    pull = http_grid.pull_objects
    read: dict[str, Message] = {}

    def pull_readable(object_ids: list[str], pull_object_fn: Callable[[str], bytes]) -> dict[str, bytes]:
        contents: dict[str, bytes] = pull(object_ids=object_ids, pull_object_fn=pull_object_fn)
        message_id = object_ids[-1]
        try:
            read[message_id] = read_reply(message_id, contents)
        except RunError as error:
            raise inflatable_utils.ObjectPullError(message_id, str(error)) from None
        return contents

    user = http_grid.HttpGrid.pull_messages
    replace_in(http_grid, "pull_objects", pull_readable, used_by=user)
    replace_in(
        http_grid,
        "inflate_object_from_contents",
        lambda message_id, _contents: read.pop(message_id),
        used_by=user,
    )


def read_reply(message_id: str, contents: dict[str, bytes]) -> Message:
    """Return a hospital's reply from its objects, by their names; they are used up.

    Raises:
        RunError: Flower cannot read it, whatever that raises.
    """
    try:
        message = inflatable_utils.inflate_object_from_contents(message_id, contents)
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError,
            DecodeError) as error:  # fmt: skip
        raise RunError(f"{_UNREADABLE}: {type(error).__name__}") from None
    if not isinstance(message, Message):
        raise RunError(f"{_UNREADABLE}: it is no message")
    return message


class GridTransport:
    """Carries requests to SuperNodes and replies back, without Flower's 3 s wait and 66 s patience."""

    def __init__(self, grid: Grid, poll_seconds: float, first_backoff_seconds: float) -> None:
        shorten_backoff(inflatable_utils, first_backoff_seconds)
        self._grid = grid
        self._poll_seconds = poll_seconds

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
            reply_array_bytes: of the array one reply may carry; bounds how many are pulled at once. Each must be let
                go before the next one is asked for, or two are in memory.
        """
        lifetime = patience.longest_seconds
        sent = dict(zip(self._grid.push_messages(_messages(outgoing, lifetime)), outgoing, strict=True))
        waiting = [message_id for message_id in sent if message_id]
        at_once = max(1, _BATCH_BYTES // max(1, reply_array_bytes))
        last_reply = time.monotonic()
        while waiting and not patience.is_over():
            batch, waiting = waiting[:at_once], waiting[at_once:]
            # A node that was killed between its reply and the reply's array leaves one that never becomes whole.
            limit_pulls(inflatable_utils, patience.seconds_left())
            replies = list(self._grid.pull_messages(batch))
            answered = set()
            for reply in replies:
                answered.add(reply.metadata.reply_to_message_id)
                node = sent[reply.metadata.reply_to_message_id]
                if reply.has_error() and _is_lost(reply.error):
                    patience.gone(node)
                    continue
                patience.answered(node)
                yield incoming_of(node, reply, reply_array_bytes)
            waiting += [message_id for message_id in batch if message_id not in answered]
            if replies:
                last_reply = time.monotonic()
            elif waiting:
                pause = poll_pause(time.monotonic() - last_reply, self._poll_seconds)
                time.sleep(pause / max(1, -(-len(waiting) // at_once)))


def _messages(outgoing: Mapping[int, Outgoing], lifetime_seconds: float) -> list[Message]:
    """Wrap requests; a model that goes to many nodes is read once to name its pieces, and once to send them."""
    records: dict[int, ArrayRecord] = {}
    for item in outgoing.values():
        if item.model is not None and id(item.model) not in records:
            records[id(item.model)] = record_of(item.model)
    return [_message(node, item, records.get(id(item.model)), lifetime_seconds) for node, item in outgoing.items()]


def _message(node: int, item: Outgoing, record: ArrayRecord | None, lifetime_seconds: float) -> Message:
    content = RecordDict({"body": ConfigRecord({"message": item.encoded})})
    if record is not None:
        content["array"] = record
    return Message(
        content,
        dst_node_id=node,
        message_type=MessageType.TRAIN,
        ttl=lifetime_seconds,
        group_id=phase_of(item.request),
    )


def _is_lost(error: Error) -> bool:
    return error.code in _LOST and _UNREADABLE not in (error.reason or "")


def incoming_of(node: int, reply: Message, longest_bytes: int) -> Incoming:
    """Return what a hospital sent, or in words why it is no reply; its array has ``longest_bytes`` at most."""
    if reply.has_error():
        return Incoming(node, None, None, reply.error.reason or "no reason given", 0)
    body, arrays = reply.content.get("body"), reply.content.get("array")
    encoded = body.get("message") if isinstance(body, ConfigRecord) else None
    if not isinstance(encoded, bytes):
        return Incoming(node, None, None, "the reply carries no message", 0)
    try:
        message = decode_reply(encoded)
        array = _only_array(arrays, longest_bytes) if isinstance(arrays, ArrayRecord) else None
    except OtherVersionError as error:
        return Incoming(node, None, None, str(error), 0, error.code)
    except RunError as error:
        return Incoming(node, None, None, f"{_UNREADABLE}: {error}", 0)
    return Incoming(node, message, array, None, len(encoded) + (0 if array is None else array.nbytes))


def _only_array(record: ArrayRecord, longest_bytes: int) -> npt.NDArray[Any]:
    arrays = list(record.values())
    if len(arrays) != 1 or not isinstance(arrays[0], ArrivedArray):
        raise RunError(f"one array must come with a reply, got {len(arrays)}")
    return arrays[0].taken(longest_bytes)
