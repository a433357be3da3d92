"""A request and its reply cross from the ServerApp to a hospital's relay and back, through Flower's own SuperLink."""

import contextlib
import datetime
import importlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import numpy as np
import pytest
from flwr.common.constant import HEARTBEAT_MIN_INTERVAL
from flwr.proto.fleet_pb2_grpc import add_FleetServicer_to_server
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PushAppMessagesRequest
from flwr.server.superlink.fleet.grpc_rere.fleet_servicer import FleetServicer
from flwr.server.superlink.fleet.grpc_rere.node_auth_server_interceptor import NodeAuthServerInterceptor
from flwr.server.superlink.linkstate import InMemoryLinkState, LinkStateFactory
from flwr.serverapp import Grid
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.servicer.runtime import runtime_handlers

from client.flower.supernode import Answered, FleetConnection, Relay
from common.flower.carried import LONGEST_WHOLE_BYTES, array_head, longest_array_bytes
from common.identity.certificates import certificate_pem, make_local_tls, make_supernode_key, private_key_pem
from common.run.messages import KeysReply, KeysRequest, encode
from server.flower.fleet import change_superlink
from server.flower.grid import GridTransport
from server.flower.pieces import LocalPieces
from server.transport import Incoming, Outgoing, Patience

superlink = importlib.import_module("flwr.superlink.cli.flower_superlink")
linkstate_factory = importlib.import_module("flwr.server.superlink.linkstate.linkstate_factory")

REQUEST = KeysRequest(run_description=b"a run", round_number=1)
REPLY = KeysReply(hospital="north", advertised=b"keys")
BUNDLE = "0" * 64
LONG = 60.0
LONGEST_MODEL = 4 * LONGEST_WHOLE_BYTES


@dataclass
class RuntimeApi:
    """The Runtime API of a SuperLink without HTTP."""

    state: InMemoryLinkState
    run: int
    calls: list[str]

    def _call(self, name: str, handler: Callable[..., Any], request: object) -> Any:  # noqa: ANN401 - as Flower's
        self.calls.append(name)
        return handler(request, self.state, SimpleNamespace(run_id=self.run))

    def PushMessages(self, request: PushAppMessagesRequest) -> Any:  # noqa: ANN401, N802 - as Flower's
        return self._call("PushMessages", runtime_handlers.push_messages, request)

    def PullMessages(self, request: PullAppMessagesRequest) -> Any:  # noqa: ANN401, N802
        return self._call("PullMessages", runtime_handlers.pull_messages, request)

    def ConfirmMessageReceived(self, request: ConfirmMessageReceivedRequest) -> Any:  # noqa: ANN401, N802
        return self._call("ConfirmMessageReceived", runtime_handlers.confirm_message_received, request)


class CountedPieces(LocalPieces):
    """Counts the pieces that were handed over."""

    handed = 0

    def put(self, run: int, session: str, name: str, content: bytes) -> None:
        self.handed += 1
        super().put(run, session, name, content)


class Counter(grpc.ServerInterceptor):  # type: ignore[misc]  # gRPC has no types
    """Notes what SuperNodes ask."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:  # noqa: ANN401 - as gRPC's
        self.calls.append(details.method.rpartition("/")[2])
        return continuation(details)


@dataclass
class Consortium:
    """A SuperLink with a run, its ServerApp's transport, and what a hospital's relay needs."""

    state: InMemoryLinkState
    transport: GridTransport
    pieces: CountedPieces
    api: RuntimeApi
    counter: Counter
    address: str
    root: bytes
    keys: list[Any]

    def fleet(self, number: int = 0) -> FleetConnection:
        fleet = FleetConnection(self.address, self.root, self.keys[number], 0.01)
        fleet.activate()
        return fleet

    def exchange(self, outgoing: dict[int, Outgoing], longest: int, seconds: float = LONG) -> list[Incoming]:
        patience = Patience(seconds, frozenset(outgoing), 9, straggler_factor=5.0, straggler_seconds=5.0)
        return list(self.transport.exchange(outgoing, patience, longest))


@pytest.fixture
def consortium(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Consortium]:
    monkeypatch.setattr(superlink, "FleetServicer", FleetServicer)
    monkeypatch.setattr(linkstate_factory, "InMemoryLinkState", InMemoryLinkState)
    change_superlink(tmp_path)
    objects = ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME)
    states = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), objects)
    state = cast("InMemoryLinkState", states.state())
    run = state.create_run(None, None, BUNDLE, {}, NOOP_FEDERATION_ID, None, None, TaskType.SERVER_APP)
    task = state.run_ids[run].run.primary_task_id
    assert task is not None
    assert state.claim_task(task)
    assert state.activate_task(task)
    keys = [make_supernode_key() for _ in range(2)]
    for key in keys:
        state.create_node("account", "account", public_key_to_bytes(key.public_key()), HEARTBEAT_MIN_INTERVAL)
    certificate, private = make_local_tls(("127.0.0.1", "localhost"), datetime.datetime.now(datetime.UTC))
    root, counter = certificate_pem(certificate), Counter()
    server = grpc.server(ThreadPoolExecutor(16), interceptors=(counter, NodeAuthServerInterceptor(states)))
    add_FleetServicer_to_server(vars(superlink)["FleetServicer"](states, objects, enable_supernode_auth=True), server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(((private_key_pem(private), root),)))
    server.start()
    api = RuntimeApi(state, run, [])
    grid = cast("Grid", SimpleNamespace(_runtime_client=api, run=SimpleNamespace(run_id=run)))
    pieces = CountedPieces(tmp_path)
    yield Consortium(state, GridTransport(grid, 0.01, pieces), pieces, api, counter, f"127.0.0.1:{port}", root, keys)
    server.stop(0)


class Agent:
    """Answers what a relay hands to it."""

    def __init__(self, vector: np.ndarray[Any, Any] | None = None) -> None:
        self.vector = vector
        self.asked: list[tuple[bytes, bytes]] = []
        self.gone = False

    def ask(self, message: bytes, parts: Sequence[bytes | memoryview]) -> Answered:
        if self.gone:
            raise EOFError
        self.asked.append((message, b"".join(parts)))
        array = b"" if self.vector is None else array_head(self.vector.dtype, len(self.vector)) + self.vector.tobytes()
        return Answered(encode(REPLY), array)


def relaying(fleet: FleetConnection, agent: Agent, bundle: str = BUNDLE) -> threading.Thread:
    def relay() -> None:
        with contextlib.suppress(EOFError, grpc.RpcError, ValueError):  # The test ends so.
            Relay(fleet, agent.ask, bundle, longest_array_bytes(LONGEST_MODEL)).serve()

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    return thread


def test_a_small_exchange_takes_a_hospital_two_calls(consortium: Consortium) -> None:
    fleet, agent = consortium.fleet(), Agent(np.arange(5, dtype=np.uint16))
    relaying(fleet, agent)
    model = np.arange(7, dtype=np.float32)
    outgoing = {fleet.node.node_id: Outgoing(REQUEST, model)}
    consortium.exchange(outgoing, 10)
    seen = len(consortium.counter.calls)
    for _ in range(4):
        (incoming,) = consortium.exchange(outgoing, 10)
        assert (incoming.reply, incoming.fault) == (REPLY, None)
        np.testing.assert_array_equal(incoming.array, agent.vector)
    assert sorted(set(consortium.counter.calls[seen:])) == ["PullMessages", "PushMessages"]
    assert 7 <= len(consortium.counter.calls[seen:]) <= 10
    message, array = agent.asked[-1]
    assert message == encode(REQUEST)
    assert array == array_head(model.dtype, 7) + model.tobytes()
    fleet.close()


def test_long_arrays_cross_in_pieces_each_once_for_all_hospitals(consortium: Consortium) -> None:
    vector = np.frombuffer(os.urandom(10 * LONGEST_WHOLE_BYTES), np.uint16)
    model = np.frombuffer(os.urandom(4 * LONGEST_MODEL), np.uint32).astype(np.float32)
    fleets, agents = [consortium.fleet(0), consortium.fleet(1)], [Agent(vector), Agent(vector[::-1].copy())]
    for fleet, agent in zip(fleets, agents, strict=True):
        relaying(fleet, agent)
    outgoing = {fleet.node.node_id: Outgoing(REQUEST, model) for fleet in fleets}
    incoming = {each.node: each for each in consortium.exchange(outgoing, vector.nbytes)}
    for fleet, agent in zip(fleets, agents, strict=True):
        assert incoming[fleet.node.node_id].fault is None
        np.testing.assert_array_equal(incoming[fleet.node.node_id].array, agent.vector)
        assert agent.asked[-1][1] == array_head(model.dtype, len(model)) + model.tobytes()
    assert consortium.pieces.handed == 1 + model.nbytes // 2**20
    for fleet in fleets:
        fleet.close()


def test_nothing_of_an_exchange_is_left_behind(consortium: Consortium, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.flower.fleet._SESSION_SECONDS", 0.05)
    fleet = consortium.fleet()
    agents = [Agent(), Agent(np.zeros(LONGEST_WHOLE_BYTES, np.uint16))]
    outgoing = {fleet.node.node_id: Outgoing(REQUEST, np.zeros(LONGEST_WHOLE_BYTES, np.float32))}
    relay_agent = Agent()
    relaying(fleet, relay_agent)
    for agent in (*agents, *agents):
        relay_agent.vector = agent.vector
        assert len(consortium.exchange(outgoing, 2 * LONGEST_WHOLE_BYTES)) == 1
    consortium.state.get_message_res(set(), consortium.api.run)
    assert not consortium.state.message_ins_store
    assert not consortium.state.message_res_store
    assert len(consortium.state.object_store) == 0
    consortium.state.start_session(consortium.api.run)
    time.sleep(0.1)
    consortium.state.start_session(consortium.api.run)
    assert len(consortium.state._object_push_sessions) == 1
    fleet.close()


def test_another_bundle_is_refused_and_never_fetched(consortium: Consortium) -> None:
    fleet, agent = consortium.fleet(), Agent()
    relaying(fleet, agent, bundle="1" * 64)
    (incoming,) = consortium.exchange({fleet.node.node_id: Outgoing(REQUEST)}, 0)
    assert incoming.fault == "this hospital does not answer messages of this bundle"
    assert not agent.asked
    assert "GetFab" not in consortium.counter.calls
    fleet.close()


def test_a_relay_that_comes_back_ends_the_wait_for_what_it_had_fetched(consortium: Consortium) -> None:
    fleet, agent = consortium.fleet(), Agent()
    agent.gone = True
    lost = relaying(fleet, agent)
    outgoing = {fleet.node.node_id: Outgoing(REQUEST)}
    with ThreadPoolExecutor(1) as threads:
        exchange = threads.submit(consortium.exchange, outgoing, 0, 30.0)
        lost.join(LONG)
        began = time.monotonic()
        again = consortium.fleet()
        assert exchange.result(LONG) == []
        assert time.monotonic() - began < 10
    assert again.node.node_id == fleet.node.node_id
    fleet.close()
    again.close()


def test_a_reply_whose_array_never_comes_is_no_reply(consortium: Consortium, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet, agent = consortium.fleet(), Agent(np.zeros(LONGEST_WHOLE_BYTES, np.uint16))
    monkeypatch.setattr(FleetConnection, "_push_one", lambda *_: None)
    relaying(fleet, agent)
    outgoing = {fleet.node.node_id: Outgoing(REQUEST)}
    assert consortium.exchange(outgoing, 2 * LONGEST_WHOLE_BYTES, 2.0) == []
    fleet.close()
