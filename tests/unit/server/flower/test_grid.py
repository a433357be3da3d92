"""Flower's private names that the server relies on, and what a ServerApp makes of what comes back."""

import importlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import httpx
import numpy as np
import pytest
from flwr.common.constant import ErrorCode
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.error_pb2 import Error
from flwr.proto.message_pb2 import Message, Metadata
from flwr.proto.recorddict_pb2 import ArrayRecord, ConfigRecord, ConfigRecordValue, RecordDict, StringList
from flwr.proto.runtime_pb2 import (
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PushAppMessagesRequest,
    PushAppMessagesResponse,
)
from flwr.serverapp import Grid
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supercore.runtime import RuntimeHttpClient

from common.flower.carried import MOST_PIECES, array_head
from common.run.messages import KeysReply, KeysRequest, encode
from server.flower import grid as grid_module
from server.flower.grid import GridTransport, incoming_of, let_responses_go
from server.flower.pieces import Pieces
from server.transport import Outgoing, Patience

http_grid = importlib.import_module("flwr.superlink.grid.http_grid")

REQUEST = KeysRequest(run_description=b"a run", round_number=1)
KEYS = KeysReply(hospital="north", advertised=b"keys")
VECTOR = np.arange(5, dtype=np.uint16)
FILE = array_head(VECTOR.dtype, 5) + VECTOR.tobytes()


def value(content: bytes) -> ConfigRecordValue:
    return ConfigRecordValue(bytes=content)


def pieces(*names: str) -> ConfigRecordValue:
    return ConfigRecordValue(string_list=StringList(vals=names))


def reply(**values: ConfigRecordValue) -> Message:
    items = [ConfigRecord.Item(key=key, value=each) for key, each in values.items()]
    return Message(content=RecordDict(items=[RecordDict.Item(key="body", config_record=ConfigRecord(items=items))]))


def no_piece(_name: str) -> memoryview:
    raise ValueError("a part of its array is missing")


class Api:
    """A Runtime API that answers each message with what ``answers`` has for its node, at the second poll."""

    def __init__(self, answers: Mapping[int, Message]) -> None:
        self.answers = answers
        self.calls: list[PushAppMessagesRequest] = []
        self.polls = 0

    def PushMessages(self, request: PushAppMessagesRequest) -> PushAppMessagesResponse:  # noqa: N802 - as Flower's
        self.calls.append(request)
        return PushAppMessagesResponse(message_ids=[message.metadata.message_id for message in request.messages_list])

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:  # noqa: N802
        self.polls += 1
        response = PullAppMessagesResponse()
        for message in (message for call in self.calls for message in call.messages_list):
            answer = self.answers.get(message.metadata.dst_node_id)
            if self.polls > 1 and message.metadata.message_id in request.message_ids and answer is not None:
                answer.metadata.reply_to_message_id = message.metadata.message_id
                response.messages_list.append(answer)
        return response


def transport(api: Api) -> GridTransport:
    grid = SimpleNamespace(_runtime_client=api, run=SimpleNamespace(run_id=1))
    return GridTransport(cast("Grid", grid), 0.001, cast("Pieces", None))


def exchange(api: Api, outgoing: Mapping[int, Outgoing], seconds: float = 30.0) -> list[Any]:
    patience = Patience(seconds, frozenset(outgoing), 9, straggler_factor=5.0, straggler_seconds=5.0)
    return list(transport(api).exchange(outgoing, patience, 100))


def test_the_private_names_of_flowers_apis_are_there() -> None:
    for method in ("ListNodes", "RegisterNode", "UnregisterNode", "StartRun", "StopRun", "ListRuns"):
        assert callable(getattr(ControlHttpClient, method))
    assert {"public_key", "name"} <= set(RegisterNodeRequest.DESCRIPTOR.fields_by_name)
    assert "fab" in StartRunRequest.DESCRIPTOR.fields_by_name
    assert "run_id" in ListRunsRequest.DESCRIPTOR.fields_by_name
    assert ListNodesRequest.DESCRIPTOR is not None
    for method in ("PushMessages", "PullMessages", "ConfirmMessageReceived"):
        assert callable(getattr(RuntimeHttpClient, method))
    assert isinstance(http_grid.HttpGrid._runtime_client, property)


def test_every_reply_is_yielded_once_with_its_node() -> None:
    api = Api({1: reply(message=value(encode(KEYS))), 2: reply(message=value(encode(KEYS)), array=value(FILE))})
    incoming = {item.node: item for item in exchange(api, {1: Outgoing(REQUEST), 2: Outgoing(REQUEST)})}
    assert set(incoming) == {1, 2}
    assert all(item.reply == KEYS and item.fault is None for item in incoming.values())
    assert incoming[1].array is None
    np.testing.assert_array_equal(incoming[2].array, VECTOR)


def test_a_silent_node_ends_the_exchange_with_its_patience() -> None:
    api = Api({1: reply(message=value(encode(KEYS)))})
    incoming = exchange(api, {1: Outgoing(REQUEST), 2: Outgoing(REQUEST)}, 1.0)
    assert [item.node for item in incoming] == [1]


def test_a_node_that_is_gone_ends_the_wait_for_it() -> None:
    gone = Message(error=Error(code=ErrorCode.NODE_UNAVAILABLE, reason="no heartbeat"))
    api = Api({1: reply(message=value(encode(KEYS))), 2: gone})
    assert [item.node for item in exchange(api, {1: Outgoing(REQUEST), 2: Outgoing(REQUEST)})] == [1]


def test_many_messages_are_pushed_in_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid_module, "_CALL_BYTES", 10_000)
    model = np.zeros(1000, np.float32)
    api = Api({node: reply(message=value(encode(KEYS))) for node in range(1, 8)})
    assert len(exchange(api, {node: Outgoing(REQUEST, model) for node in range(1, 8)})) == 7
    assert [len(call.messages_list) for call in api.calls] == [2, 2, 2, 1]


def test_models_that_would_fill_the_superlinks_memory_travel_beside_their_messages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grid_module, "_MOST_WHOLE_BYTES", 10_000)
    model = np.zeros(1000, np.float32)
    api = Api({node: reply(message=value(encode(KEYS))) for node in (1, 2, 3)})
    exchange(api, {node: Outgoing(REQUEST, model) for node in (1, 2, 3)})
    (call,) = api.calls
    assert all(len(tree.children) == 2 for tree in call.message_object_trees)
    assert call.ByteSize() < 4 * model.nbytes


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (Message(error=Error(code=1, reason="the hospital's disk is full")), "the hospital's disk is full"),
        (Message(error=Error(code=1)), "no reason given"),
        (Message(), "the reply carries no message"),
        (reply(), "the reply carries no message"),
        (reply(message=ConfigRecordValue(string="text")), "the reply carries no message"),
        (reply(message=value(b"garbage")), "the reply cannot be read"),
        (Message(content=RecordDict(items=[RecordDict.Item(key="body", array_record=ArrayRecord())])), "no message"),
        (reply(message=value(encode(KEYS)), array=value(FILE), pieces=pieces("a")), "one array must come with"),
        (reply(message=value(encode(KEYS)), array=value(FILE[:-1])), "one NumPy file of numbers"),
        (reply(message=value(encode(KEYS)), array=value(b"\x93NUMPY\x01\x00" + bytes(100))), "one NumPy file"),
        (reply(message=value(encode(KEYS)), pieces=pieces("a")), "a part of its array is missing"),
        (reply(message=value(encode(KEYS)), pieces=pieces(*["a"] * (MOST_PIECES + 1))), "pieces at most"),
    ],
)
def test_what_is_no_reply_is_a_fault_in_words(message: Message, fault: str) -> None:
    incoming = incoming_of(1, message, 100, no_piece)
    assert incoming.reply is None
    assert incoming.array is None
    assert fault in str(incoming.fault)


def test_an_array_whose_head_exhausts_a_parser_is_a_fault_of_its_sender() -> None:
    head = b"-" * 6500 + b"1\n"
    noise = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head
    incoming = incoming_of(1, reply(message=value(encode(KEYS)), array=value(noise)), 100, no_piece)
    assert "one NumPy file of numbers" in str(incoming.fault)


def test_an_array_longer_than_asked_for_is_never_made() -> None:
    claims = array_head(VECTOR.dtype, 2**46)
    incoming = incoming_of(1, reply(message=value(encode(KEYS)), array=value(claims)), 100, no_piece)
    assert "bytes claimed, 100 at most" in str(incoming.fault)


def test_a_response_goes_with_its_last_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProtobufClient, "_send", lambda *_, **__: httpx.Response(200, content=b"a piece"))
    let_responses_go()
    response = ProtobufClient._send(cast("ProtobufClient", None), cast("Any", None))
    assert response.content == b"a piece"
    assert response.stream is not None
    assert b"".join(cast("httpx.ByteStream", response.stream)) == b""


def test_metadata_says_who_it_is_for() -> None:
    message = grid_module.request_message(7, 5, Outgoing(REQUEST), 60.0, {})
    assert isinstance(message.metadata, Metadata)
    assert (message.metadata.run_id, message.metadata.dst_node_id, message.metadata.ttl) == (7, 5, 60.0)
    assert len(message.metadata.message_id) == 64
