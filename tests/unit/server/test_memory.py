"""What a server holds while it trains a large model: the sum, one vector that arrives, and no model at all."""

import mmap
import os
import subprocess
import sys
import tracemalloc
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import scipy.special  # noqa: F401 - a run imports it when it first needs it; that is no vector
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    Message,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.recorddict_pb2 import ConfigRecord, ConfigRecordValue, StringList
from flwr.proto.runtime_pb2 import (
    GetNodesRequest,
    GetNodesResponse,
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PushAppMessagesRequest,
    PushAppMessagesResponse,
)
from flwr.serverapp import Grid

from client.flower.supernode import read_request, reply_with
from common.config import Config, replace
from common.flower.carried import PIECES, Piece, array_head, cut, part_of
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
from server.flower.grid import GridTransport
from server.progress import RunProgress
from server.run import Run
from server.run_plan import RunPlan
from tests.support.parties import PLACE, Hospital

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
    """A SuperLink and its hospitals, by its Runtime API; what they hold is where tracemalloc does not look."""

    hospitals: dict[int, Hospital]
    head: Vector
    """What stands behind the change, which is zero, in a vector."""
    requests: dict[str, Message] = field(default_factory=dict)
    pieces: dict[str, Piece] = field(default_factory=dict)
    model_bytes: int = 0

    def GetNodes(self, _: GetNodesRequest) -> GetNodesResponse:  # noqa: N802 - as Flower's
        return GetNodesResponse(nodes=[NodeInfo(node_id=node, name=one.name) for node, one in self.hospitals.items()])

    def PushMessages(self, request: PushAppMessagesRequest) -> PushAppMessagesResponse:  # noqa: N802
        names = [message.metadata.message_id for message in request.messages_list]
        self.requests.update(zip(names, request.messages_list, strict=True))
        wanted = {child.object_id for tree in request.message_object_trees for child in tree.children}
        return PushAppMessagesResponse(message_ids=names, objects_to_push=wanted)

    def put(self, _run: int, _session: str, _name: str, content: bytes) -> None:
        """See :class:`server.flower.pieces.Pieces`."""
        self.model_bytes += len(part_of(content))

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:  # noqa: N802
        response = PullAppMessagesResponse()
        for name in request.message_ids:
            asked = self.requests.pop(name)
            encoded, _, _ = read_request(asked)
            hospital = self.hospitals[asked.metadata.dst_node_id]
            reply, vector = self.answer(hospital, messages.decode_request(encoded))
            message, _ = reply_with(asked, messages.encode(reply), b"")
            if vector is not None:
                pieces = sent_vector(vector)
                self.pieces.update((piece.name, piece) for piece in pieces)
                names = ConfigRecordValue(string_list=StringList(vals=[piece.name for piece in pieces]))
                message.content.items[0].config_record.items.append(ConfigRecord.Item(key=PIECES, value=names))
            response.messages_list.append(message)
        return response

    def get(self, _run: int, name: str) -> bytes:
        """See :class:`server.flower.pieces.Pieces`."""
        content = self.pieces[name].content()
        if len(content) > PIECE_BYTES:  # The head is one for all hospitals.
            del self.pieces[name]
        return content

    def ConfirmMessageReceived(self, _: ConfirmMessageReceivedRequest) -> ConfirmMessageReceivedResponse:  # noqa: N802
        return ConfirmMessageReceivedResponse()

    def answer(self, hospital: Hospital, request: messages.Request) -> tuple[messages.Reply, Vector | None]:
        """Answer as an agent does, with a vector that says that nothing changed."""
        vector: Vector | None = None
        match request:
            case messages.KeysRequest(round_number=number):
                reply: messages.Reply = messages.KeysReply(
                    hospital=hospital.name, advertised=secagg.encode(hospital.advertise(number))
                )
            case messages.SharesRequest(directory=directory):
                reply = messages.SharesReply(shares=self.shares(hospital, directory))
            case messages.MaskRequest():
                reply, vector = self.masked(hospital, request)
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
        return reply, vector

    def masked(self, hospital: Hospital, request: messages.MaskRequest) -> tuple[messages.MaskReply, Vector]:
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
        return reply, vector

    @staticmethod
    def shares(hospital: Hospital, directory: bytes) -> bytes:
        decoded = secagg.decode(directory, secagg.KeyDirectory, secagg.Limits(), PLACE)
        return secagg.encode(hospital.share(decoded))


def _itself(part: memoryview) -> memoryview:
    return part


def sent_vector(vector: Vector) -> list[Piece]:
    """Return what a hospital sends of a vector, without the copies."""
    head = array_head(vector.dtype, len(vector))
    return [Piece(lambda: head), *(Piece(partial(_itself, part)) for part in cut(vector.data.cast("B")))]


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
    run_number = SimpleNamespace(run_id=1)
    grid = SimpleNamespace(
        _runtime_client=fleet, run=run_number, get_nodes=lambda: fleet.GetNodes(GetNodesRequest()).nodes
    )
    store = CheckpointStore(folder)
    store.save(Checkpoint(RUN_ID, 0, 0, CountingModel(), {}, 0, RunProgress()))
    waits = config.transport
    conversation = Conversation(GridTransport(cast("Grid", grid), waits.poll_seconds, fleet), waits, events.append)
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
