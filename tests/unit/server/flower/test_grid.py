"""Flower's private names that the server relies on, and how requests and replies cross its grid."""

import importlib
from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MessageType, RecordDict
from flwr.app.message import Array
from flwr.common.constant import ErrorCode, SType
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest, RegisterNodeRequest, StartRunRequest
from flwr.serverapp import Grid
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supercore.task_identity import TaskIdentity

from common.run.messages import KeysReply, KeysRequest, RefusedReply, encode
from server.flower.arrays import carry_by_the_piece
from server.flower.grid import GridTransport, incoming_of, tell_unreadable_replies
from server.transport import Outgoing, Patience

http_grid = importlib.import_module("flwr.superlink.grid.http_grid")

REQUEST = KeysRequest(run_description=b"a run", round_number=1)


@pytest.fixture(autouse=True)
def _task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages can be made within a task only, and the task runner of Flower's names it before it starts one."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class FakeGrid:
    """Answers each message that is pushed with what ``answers`` has for its node, at the second look."""

    def __init__(self, answers: Mapping[int, RecordDict | Error | str]) -> None:
        self.answers = answers
        self.pushed: list[Message] = []
        self.looks = 0

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self.pushed = list(messages)
        return [f"id-{message.metadata.dst_node_id}" for message in self.pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.looks += 1
        if self.looks == 1:
            return []
        wanted = set(message_ids)
        replies = []
        for message in self.pushed:
            message_id = f"id-{message.metadata.dst_node_id}"
            answer = self.answers.get(message.metadata.dst_node_id)
            if message_id in wanted and answer is not None:
                message.metadata.__dict__["_message_id"] = message_id
                content = Error(1, answer) if isinstance(answer, str) else answer
                replies.append(crossed(Message(content, reply_to=message)))
        return replies


def crossed(message: Message) -> Message:
    """Return what arrives on the other side."""
    contents = {name: item.deflate() for name, item in get_all_nested_objects(message).items()}
    return cast("Message", inflatable_utils.inflate_object_from_contents(message.object_id, contents))


def by_the_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Change Flower as a ServerApp does, for as long as the test lasts."""
    for place, name in ((http_grid, "push_objects"), (ProtobufClient, "_send")):
        monkeypatch.setattr(place, name, getattr(place, name))
    registry = inflatable_utils.inflatable_class_registry
    for name in ("Array", "ArrayRecord"):
        monkeypatch.setitem(registry, name, registry[name])
    carry_by_the_piece()


def transport(grid: FakeGrid, monkeypatch: pytest.MonkeyPatch) -> GridTransport:
    for function in (inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree):
        monkeypatch.setattr(function, "__kwdefaults__", dict(function.__kwdefaults__ or {}))
    by_the_piece(monkeypatch)
    return GridTransport(cast("Grid", grid), 0.001, 0.02)


def patience(seconds: float, nodes: Iterable[int]) -> Patience:
    return Patience(seconds, frozenset(nodes), 9, straggler_factor=5.0, straggler_seconds=5.0)


def reply(message: KeysReply | RefusedReply, *arrays: np.ndarray[Any, Any]) -> RecordDict:
    content = RecordDict({"body": ConfigRecord({"message": encode(message)})})
    if arrays:
        content["array"] = ArrayRecord(list(arrays))
    return content


KEYS = KeysReply(hospital="north", advertised=b"keys")


def test_the_private_names_of_the_control_api_are_there() -> None:
    for method in ("ListNodes", "RegisterNode", "UnregisterNode", "StartRun", "StopRun", "ListRuns"):
        assert callable(getattr(ControlHttpClient, method))
    assert {"public_key", "name"} <= set(RegisterNodeRequest.DESCRIPTOR.fields_by_name)
    assert "fab" in StartRunRequest.DESCRIPTOR.fields_by_name
    assert "run_id" in ListRunsRequest.DESCRIPTOR.fields_by_name
    assert ListNodesRequest.DESCRIPTOR is not None


def test_every_reply_is_yielded_once_with_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    vector = np.arange(5, dtype=np.uint16)
    grid = FakeGrid({1: reply(KEYS), 2: reply(KEYS, vector)})
    outgoing = {1: Outgoing(REQUEST), 2: Outgoing(REQUEST)}
    incoming = list(transport(grid, monkeypatch).exchange(outgoing, patience(30, outgoing), 10))
    assert [item.node for item in incoming] == [1, 2]
    assert all(item.reply == KEYS and item.fault is None for item in incoming)
    assert incoming[0].array is None
    np.testing.assert_array_equal(incoming[1].array, vector)


def test_an_array_for_everyone_is_serialised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = FakeGrid({1: reply(KEYS), 2: reply(KEYS)})
    model = np.zeros(7, np.float32)
    outgoing = {1: Outgoing(REQUEST, model), 2: Outgoing(REQUEST, model)}
    list(transport(grid, monkeypatch).exchange(outgoing, patience(30, outgoing), 0))
    first, second = (message.content["array"] for message in grid.pushed)
    assert first is second


def test_a_silent_node_ends_the_exchange_with_its_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = FakeGrid({1: reply(KEYS)})
    outgoing = {1: Outgoing(REQUEST), 2: Outgoing(REQUEST)}
    incoming = list(transport(grid, monkeypatch).exchange(outgoing, patience(1.0, outgoing), 0))
    assert [item.node for item in incoming] == [1]


class GridOfHalfAReply(FakeGrid):
    """Node 2 was killed after its reply and before what belongs to it."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = set(message_ids)
        replies = super().pull_messages(wanted)
        if self.looks == 1:
            return replies
        with pytest.raises(inflatable_utils.ObjectPullError):
            inflatable_utils.pull_objects(["array"], self.never)
        (message,) = (message for message in self.pushed if message.metadata.dst_node_id == 2)
        message.metadata.__dict__["_message_id"] = "id-2"
        return [*replies, Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, "incomplete"), reply_to=message)]

    @staticmethod
    def never(object_id: str) -> bytes:
        raise inflatable_utils.ObjectUnavailableError(object_id)


def test_a_reply_that_never_becomes_whole_is_waited_for_no_longer_than_the_exchange(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outgoing = {1: Outgoing(REQUEST), 2: Outgoing(REQUEST)}
    carrier = transport(GridOfHalfAReply({1: reply(KEYS)}), monkeypatch)
    incoming = list(carrier.exchange(outgoing, patience(0.2, outgoing), 0))
    assert [item.node for item in incoming] == [1]


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("the hospital's disk is full", "the hospital's disk is full"),
        (RecordDict({}), "the reply carries no message"),
        (RecordDict({"body": ConfigRecord({"message": b"garbage"})}), "the reply cannot be read"),
        (RecordDict({"body": ConfigRecord({"message": "text"})}), "the reply carries no message"),
        (reply(KEYS, np.zeros(1), np.ones(1)), "one array must come with a reply, got 2"),
    ],
)
def test_what_is_no_reply_is_a_fault_in_words(
    answer: RecordDict | str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = FakeGrid({1: answer})
    (incoming,) = transport(grid, monkeypatch).exchange({1: Outgoing(REQUEST)}, patience(30, {1}), 0)
    assert incoming.reply is None
    assert fault in str(incoming.fault)


class Noisy(ConfigRecord):
    """A record whose bytes have a head that fits them, and noise behind it."""

    def deflate(self) -> bytes:
        return b"ConfigRecord  4\x00" + b"\xff" * 4


def pulled(content: RecordDict, monkeypatch: pytest.MonkeyPatch) -> Message:
    """Let Flower's grid read the objects of a reply, as it does between pulling a message and handing it on."""
    for name in ("pull_objects", "inflate_object_from_contents"):
        monkeypatch.setattr(http_grid, name, getattr(inflatable_utils, name))
    tell_unreadable_replies()
    message = Message(content, dst_node_id=1, message_type=MessageType.TRAIN)
    objects = {name: one.deflate() for name, one in get_all_nested_objects(message).items()}
    names = [tree.object_id for tree in iterate_object_tree(get_object_tree(message))]
    contents = vars(http_grid)["pull_objects"](object_ids=names, pull_object_fn=objects.__getitem__)
    return cast("Message", vars(http_grid)["inflate_object_from_contents"](message.object_id, contents))


def test_a_readable_reply_is_read_by_flowers_grid_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    assert incoming_of(1, pulled(reply(KEYS), monkeypatch), 0).reply == KEYS


def test_a_reply_that_flower_cannot_read_costs_its_sender_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's own grid raises what ends the ServerApp."""
    with pytest.raises(inflatable_utils.ObjectPullError, match="the reply cannot be read: DecodeError") as refused:
        pulled(RecordDict({"body": Noisy({})}), monkeypatch)
    grid = FakeGrid({1: reply(KEYS), 2: Error(ErrorCode.MESSAGE_UNAVAILABLE, f"unavailable. {refused.value}")})
    outgoing = {1: Outgoing(REQUEST), 2: Outgoing(REQUEST)}
    first, second = transport(grid, monkeypatch).exchange(outgoing, patience(30, outgoing), 0)
    assert first.reply == KEYS
    assert second.reply is None
    assert "the reply cannot be read" in str(second.fault)


def test_a_node_that_is_gone_ends_the_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Error(ErrorCode.MESSAGE_UNAVAILABLE, "expired, or the node has restarted")
    grid = FakeGrid({1: reply(KEYS), 2: gone})
    outgoing = {1: Outgoing(REQUEST), 2: Outgoing(REQUEST)}
    incoming = list(transport(grid, monkeypatch).exchange(outgoing, patience(30, outgoing), 0))
    assert [item.node for item in incoming] == [1]


class Deep(ConfigRecord):
    """A record whose bytes are those of a dictionary that is nested beyond what Python's parser follows."""

    def deflate(self) -> bytes:
        body = b"[" * 20_000
        return b"RecordDict  %d\x00" % len(body) + body


def test_a_reply_nested_too_deeply_costs_its_sender_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(inflatable_utils.ObjectPullError, match="the reply cannot be read: RecursionError"):
        pulled(RecordDict({"body": Deep({})}), monkeypatch)


def test_an_array_whose_head_exhausts_a_parser_is_a_fault_of_its_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    head = b"-" * 6500 + b"1\n"
    noise = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head
    content = reply(KEYS)
    content["array"] = ArrayRecord({"0": Array("uint16", (1,), SType.NUMPY, noise)})
    (incoming,) = transport(FakeGrid({1: content}), monkeypatch).exchange(
        {1: Outgoing(REQUEST)}, patience(30, {1}), 100
    )
    assert incoming.reply is None
    assert "one NumPy file of numbers" in str(incoming.fault)
