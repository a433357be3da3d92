"""What a server holds while it trains a large model: the sum, one vector that arrives, and no model at all."""

import importlib
import mmap
import os
import subprocess
import sys
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import (
    GetNodesRequest,
    GetNodesResponse,
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PushAppMessagesRequest,
    PushAppMessagesResponse,
)
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supercore.task_identity import TaskIdentity

from common.config import Config, replace
from common.flower.waits import PIECE_BYTES
from common.run import messages
from common.run.terms import describe, layout_of, protocol_parameters
from common.run.vector import Tail
from common.secagg import masked_input
from common.secagg import messages as secagg
from common.secagg.parameters import Vector
from common.telemetry.events import COMPLETED, Event, Exchange
from server.checkpoints import Checkpoint, CheckpointStore
from server.conversation import Conversation
from server.flower.arrays import carry_by_the_piece
from server.flower.grid import GridTransport, tell_unreadable_replies
from server.progress import RunProgress
from server.run import Run
from server.run_plan import RunPlan
from tests.support.parties import PLACE, Hospital

http_grid = importlib.import_module("flwr.superlink.grid.http_grid")

RUN_ID = "ab" * 16
PARAMETERS = 4 * 2**20
VECTOR_BYTES = 2 * PARAMETERS
CONSTANT_BYTES = 2 * PIECE_BYTES
"""A piece in Flower's forms, keys, shares and events: less than another vector, so that one too many is found."""
CONFIG = replace(
    Config(),
    experiment={"rounds": 2},
    privacy={"mode": "none"},
    evaluation={"score_bins": 16},
    transport={"roster_stable_seconds": 0.0, "poll_seconds": 0.001},
)


class CountingModel:
    """A model of the beginning that takes no memory."""

    def __len__(self) -> int:  # noqa: D105 - see FlatModel
        return PARAMETERS

    def __getitem__(self, stretch: slice) -> np.ndarray[Any, np.dtype[np.float32]]:  # noqa: D105
        return np.arange(stretch.start, stretch.stop, dtype=np.float32)


@dataclass
class Fleet:
    """A SuperLink and its hospitals, behind Flower's own grid; what they hold is where tracemalloc does not look."""

    hospitals: dict[int, Hospital]
    head: Vector
    """What stands behind the change, which is zero, in a vector."""
    pushed: dict[str, bytes] = field(default_factory=dict)
    requests: dict[str, tuple[Message, list[str]]] = field(default_factory=dict)
    replies: dict[str, InflatableObject] = field(default_factory=dict)
    model_bytes: int = 0

    def GetNodes(self, _: GetNodesRequest) -> GetNodesResponse:  # noqa: N802 - as Flower's
        return GetNodesResponse(nodes=[NodeInfo(node_id=node, name=one.name) for node, one in self.hospitals.items()])

    def PushMessages(self, request: PushAppMessagesRequest) -> PushAppMessagesResponse:  # noqa: N802
        for proto, tree in zip(request.messages_list, request.message_object_trees, strict=True):
            names = [part.object_id for part in iterate_object_tree(tree)]
            self.requests[tree.object_id] = message_from_proto(proto), names
        wanted = {name for _, names in self.requests.values() for name in names}
        ids = [tree.object_id for tree in request.message_object_trees]
        return PushAppMessagesResponse(message_ids=ids, objects_to_push=wanted)

    def PushObject(self, request: PushObjectRequest) -> PushObjectResponse:  # noqa: N802
        if request.object_content.startswith(b"ArrayChunk"):
            self.model_bytes += len(request.object_content)
        else:
            self.pushed[request.object_id] = request.object_content
        return PushObjectResponse(stored=True)

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:  # noqa: N802
        response = PullAppMessagesResponse()
        for name in request.message_ids:
            message, names = self.requests.pop(name)
            (body,) = (self.pushed[part] for part in names if self.pushed.get(part, b"").startswith(b"ConfigRecord"))
            encoded = ConfigRecord.inflate(body)["message"]
            assert isinstance(encoded, bytes)
            hospital = self.hospitals[message.metadata.dst_node_id]
            reply = Message(self.answer(hospital, messages.decode_request(encoded)), reply_to=message)
            with no_object_id_recompute():
                reply.metadata.__dict__["_message_id"] = reply.object_id
                self.replies.update(get_all_nested_objects(reply))
                response.message_object_trees.append(get_object_tree(reply))
            response.messages_list.append(message_to_proto(remove_content_from_message(reply)))
        return response

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:  # noqa: N802
        content = self.replies.pop(request.object_id).deflate()
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, _: ConfirmMessageReceivedRequest) -> ConfirmMessageReceivedResponse:  # noqa: N802
        return ConfirmMessageReceivedResponse()

    def answer(self, hospital: Hospital, request: messages.Request) -> RecordDict:
        """Answer as an agent does, with a vector that says that nothing changed."""
        content = RecordDict()
        match request:
            case messages.KeysRequest(round_number=number):
                reply: messages.Reply = messages.KeysReply(
                    hospital=hospital.name, advertised=secagg.encode(hospital.advertise(number))
                )
            case messages.SharesRequest(directory=directory):
                reply = messages.SharesReply(shares=self.shares(hospital, directory))
            case messages.MaskRequest():
                reply, content["array"] = self.masked(hospital, request)
            case messages.ConsistencyRequest(survivors=survivors, next_directory=directory):
                signed = hospital.sign(secagg.decode(survivors, secagg.SurvivorList, secagg.Limits(), PLACE))
                shares = None if directory is None else self.shares(hospital, directory)
                reply = messages.ConsistencyReply(signature=secagg.encode(signed), shares=shares)
            case messages.UnmaskRequest(request=encoded):
                unmask = secagg.decode(encoded, secagg.UnmaskingRequest, secagg.Limits(), PLACE)
                reply = messages.UnmaskReply(revealed=secagg.encode(hospital.reveal(unmask)))
            case messages.UnmaskAllRequest(request=encoded, next_directory=directory):
                everything = secagg.decode(encoded, secagg.FullUnmaskingRequest, secagg.Limits(), PLACE)
                shares = None if directory is None else self.shares(hospital, directory)
                reply = messages.UnmaskReply(revealed=secagg.encode(hospital.reveal_all(everything)), shares=shares)
            case _:
                raise AssertionError(request)
        content["body"] = ConfigRecord({"message": messages.encode(reply)})
        return content

    def masked(self, hospital: Hospital, request: messages.MaskRequest) -> tuple[messages.MaskReply, ArrayRecord]:
        asked = secagg.decode(request.request, secagg.MaskedInputRequest, secagg.Limits(), PLACE)
        vector: Vector = np.frombuffer(mmap.mmap(-1, VECTOR_BYTES + self.head.nbytes), self.head.dtype)
        vector[:-PARAMETERS] = self.head
        shared = hospital.shared[asked.round_number]
        state, message, vector = masked_input.mask(shared, hospital.identity, asked, vector)
        hospital.masked[asked.round_number] = state
        following = request.next_round
        reply = messages.MaskReply(
            masked=secagg.encode(message),
            advertised=None if following is None else secagg.encode(hospital.advertise(following)),
            epsilon=None,
        )
        return reply, sent_vector(vector)

    @staticmethod
    def shares(hospital: Hospital, directory: bytes) -> bytes:
        decoded = secagg.decode(directory, secagg.KeyDirectory, secagg.Limits(), PLACE)
        return secagg.encode(hospital.share(decoded))


def sent_vector(vector: Vector) -> ArrayRecord:
    """Return what Flower makes of a vector, without the copies."""
    array = Array(np.zeros(0, vector.dtype))
    head = array.data.replace(b"(0,), }" + b" " * len(str(len(vector))), f"({len(vector)},), }}".encode() + b" ")
    body = vector.data.cast("B")
    pieces = [memoryview(head), *(body[start : start + PIECE_BYTES] for start in range(0, len(body), PIECE_BYTES))]
    chunks = [ArrayChunk(piece) for piece in pieces]
    array.__dict__["_chunks"] = [(chunk.object_id, chunk) for chunk in chunks]
    record = ArrayRecord()
    record["0"] = array
    return record


@pytest.fixture(autouse=True)
def _as_in_a_serverapp(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    for place, name in (
        (http_grid, "push_objects"), (http_grid, "pull_objects"), (http_grid, "inflate_object_from_contents"),
        (ProtobufClient, "_send"),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, getattr(place, name))
    for function in (inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree):
        monkeypatch.setattr(function, "__kwdefaults__", {**(function.__kwdefaults__ or {}), "max_concurrent_pulls": 1})
    for name in ("Array", "ArrayRecord"):
        monkeypatch.setitem(
            inflatable_utils.inflatable_class_registry, name, inflatable_utils.inflatable_class_registry[name]
        )
    carry_by_the_piece()
    tell_unreadable_replies()


def trained(hospitals: int, folder: Path) -> tuple[Run, Fleet, list[Event]]:
    """Return a run that is ready to be trained by so many hospitals."""
    config = replace(CONFIG, experiment={"num_clients": hospitals})
    identities = {f"hospital-{number}": Ed25519PrivateKey.generate() for number in range(hospitals)}
    keys = {name: identity.public_key().public_bytes_raw() for name, identity in identities.items()}
    description = describe(config, RUN_ID, ("normal", "pneumonia"), 1, dict.fromkeys(keys, ""), PARAMETERS)
    parameters = protocol_parameters(description, keys, config.aggregation.min_hospitals)
    small = describe(config, RUN_ID, ("normal", "pneumonia"), 1, dict.fromkeys(keys, ""), 1)
    layout = layout_of(small)
    assert isinstance(layout.evaluation, int)
    tail = Tail(10, 5, 5, np.zeros(layout.evaluation, np.int64))
    head = layout.encode(np.zeros(1, np.float32), tail, os.urandom)[:-1]
    parties = [Hospital(name, identity, parameters, os.urandom) for name, identity in identities.items()]
    fleet, events = Fleet(dict(enumerate(parties, 1)), head), list[Event]()
    grid = http_grid.HttpGrid(token="token")
    grid._client, grid._run = cast("Any", fleet), cast("Any", SimpleNamespace(run_id=1))
    store = CheckpointStore(folder)
    store.save(Checkpoint(RUN_ID, 0, 0, CountingModel(), {}, 0, RunProgress()))
    waits = config.transport
    conversation = Conversation(GridTransport(grid, waits.poll_seconds, 0.02), waits, events.append)
    return Run(RunPlan(config, description, "none", keys), conversation, store, events.append), fleet, events


@pytest.mark.long
def test_a_server_holds_three_vectors_at_most_however_many_hospitals_send_one(tmp_path: Path) -> None:
    """The sum, an array that arrives, and its pieces, each of which is let go as it takes its place in the array.

    Counted is what was asked for; an array counts whole before it is filled, so in the machine's memory it is less.
    """
    peaks = []
    for hospitals in (4, 12):
        run, fleet, events = trained(hospitals, tmp_path / str(hospitals))
        tracemalloc.start()
        try:
            assert run.train() == COMPLETED
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        vectors = [event for event in events if isinstance(event, Exchange) and event.phase == "masked_input"]
        assert [len(event.answered) for event in vectors] == [hospitals] * 4
        assert fleet.model_bytes > 3 * 4 * PARAMETERS
    assert max(peaks) < 3 * VECTOR_BYTES + CONSTANT_BYTES, [peak / VECTOR_BYTES for peak in peaks]
    assert abs(peaks[1] - peaks[0]) < PIECE_BYTES


@pytest.mark.long
def test_a_serverapp_starts_without_pytorch() -> None:
    code = "import sys, server.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0
