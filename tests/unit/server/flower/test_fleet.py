"""What our SuperLink does otherwise than Flower's: whom it lets in, and when it hands out a message."""

import datetime
import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import grpc
import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.common.constant import HEARTBEAT_MIN_INTERVAL, PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.server.superlink.fleet.grpc_rere import node_auth_server_interceptor
from flwr.server.superlink.fleet.grpc_rere.fleet_servicer import FleetServicer
from flwr.server.superlink.linkstate import InMemoryLinkState, LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
from flwr.supercore.date import now
from flwr.supercore.error import FlowerError
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes, sign_message
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager

from common.flower.carried import LONGEST_CALL_BYTES, LONGEST_WHOLE_BYTES
from common.flower.leaving import LEAVES
from common.run.messages import MAXIMUM_MESSAGE_BYTES
from server.flower import fleet as fleet_module
from server.flower.fleet import Deliveries, change_superlink
from server.members.departures import Departures

superlink = importlib.import_module("flwr.superlink.cli.flower_superlink")
linkstate_factory = importlib.import_module("flwr.server.superlink.linkstate.linkstate_factory")

LONG = 60.0


@pytest.fixture(autouse=True)
def _task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages can be made within a task only, and the task runner of Flower's names it before it starts one."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def seconds(longest: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.flower.fleet._LONGEST_POLL_SECONDS", longest)


class Caller:
    """Stands for the connection a call came over."""

    def __init__(self, key: bytes, *said: tuple[str, str]) -> None:
        self.key = key
        self._said = said
        self.active = True
        self.asked = threading.Event()
        self._callbacks: list[Callable[[], None]] = []

    def invocation_metadata(self) -> list[tuple[str, bytes | str]]:
        return [(PUBLIC_KEY_HEADER, self.key), *self._said]

    def is_active(self) -> bool:
        return self.active

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self._callbacks.append(callback)
        self.asked.set()
        return self.active

    def hang_up(self) -> None:
        self.active = False
        for callback in self._callbacks:
            callback()


def caller(key: bytes = b"north", *said: tuple[str, str]) -> grpc.ServicerContext:
    return cast("grpc.ServicerContext", Caller(key, *said))


def superlink_with_node(
    monkeypatch: pytest.MonkeyPatch, key: bytes, folder: Path = Path(), name: str = ""
) -> FleetServicer:
    """Return the Fleet API of a SuperLink in memory to which the node with ``key`` is connected."""
    monkeypatch.setattr(superlink, "FleetServicer", FleetServicer)
    monkeypatch.setattr(linkstate_factory, "InMemoryLinkState", InMemoryLinkState)
    monkeypatch.setattr(superlink, "GRPC_MAX_MESSAGE_LENGTH", superlink.GRPC_MAX_MESSAGE_LENGTH)
    monkeypatch.setattr(fleet_module, "serve_pieces", lambda *_: None)
    change_superlink(folder)
    objects = ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME)
    states = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), objects)
    servicer: FleetServicer = vars(superlink)["FleetServicer"](states, objects, enable_supernode_auth=True)
    states.state().create_node("account", "account", key, HEARTBEAT_MIN_INTERVAL, name=name)
    servicer.ActivateNode(activation(key), caller(key))
    return servicer


def activation(key: bytes) -> ActivateNodeRequest:
    return ActivateNodeRequest(public_key=key, heartbeat_interval=HEARTBEAT_MIN_INTERVAL)


@contextmanager
def looking(look: Callable[[], object]) -> Iterator[list[object]]:
    """Let somebody look in a thread; what it found is in the list afterwards."""
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(look()))
    thread.start()
    yield found
    thread.join(LONG)


def test_a_hospital_that_was_stopped_is_told_from_one_that_failed_until_it_is_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    servicer = superlink_with_node(monkeypatch, b"north", tmp_path, "st-mary")
    node = servicer.state_factory.state().get_node_id_by_public_key(b"north")
    assert node is not None
    gone, departures = DeactivateNodeRequest(node_id=node), Departures(tmp_path)
    servicer.DeactivateNode(gone, caller(b"north"))
    assert departures.all() == frozenset()
    servicer.ActivateNode(activation(b"north"), caller(b"north"))
    servicer.DeactivateNode(gone, caller(b"north", (LEAVES, "1")))
    assert departures.all() == {"st-mary"}
    servicer.ActivateNode(activation(b"north"), caller(b"north"))
    assert departures.all() == frozenset()


def test_a_look_is_answered_when_the_messages_last_object_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds(LONG, monkeypatch)
    servicer = superlink_with_node(monkeypatch, b"north")
    state = servicer.state_factory.state()
    node = state.get_node_id_by_public_key(b"north")
    assert node is not None
    run = state.create_run(None, None, None, {}, NOOP_FEDERATION_ID, None, None, TaskType.SERVER_APP)
    monkeypatch.setattr(TaskIdentity, "_run_id", run)
    message = Message(RecordDict({"body": ConfigRecord({"a": 1})}), dst_node_id=node, message_type=MessageType.TRAIN)
    message.metadata.__dict__["_message_id"] = message.object_id
    tree, contents = get_object_tree(message), get_all_nested_objects(message)
    who = Caller(b"north")
    request = PullMessagesRequest(node=Node(node_id=node))
    with looking(lambda: servicer.PullMessages(request, cast("grpc.ServicerContext", who))) as found:
        assert who.asked.wait(LONG)
        session = state.start_session(run)
        stored, missing = state.store_message_and_object_tree(message, tree, session)
        assert stored
        # The message itself carries its content, and need not be sent as an object.
        assert set(missing) == set(contents) - {message.object_id}
        for name in missing:
            assert not found
            assert state.store_object(run, session, name, contents[name].deflate())
    (response,) = found
    assert [listed.metadata.message_id for listed in response.messages_list] == [message.object_id]  # type: ignore[attr-defined]


def test_a_look_that_finds_nothing_is_answered_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds(0.01, monkeypatch)
    servicer = superlink_with_node(monkeypatch, b"north")
    node = servicer.state_factory.state().get_node_id_by_public_key(b"north")
    assert node is not None
    request = PullMessagesRequest(node=Node(node_id=node))
    assert not servicer.PullMessages(request, caller()).messages_list


def test_a_message_that_came_while_nobody_looked_is_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds(LONG, monkeypatch)
    deliveries = Deliveries()
    deliveries.expect(1, ["body", "array"])
    deliveries.arrived("array")
    deliveries.arrived("body")
    assert deliveries.look(1, caller())
    deliveries.found(1)  # there may be a second, which the next look finds out
    assert deliveries.look(1, caller())


def test_an_object_that_many_wait_for_makes_the_message_of_each_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds(LONG, monkeypatch)
    deliveries = Deliveries()
    for node in (1, 2, 3):
        deliveries.expect(node, ["model"])
    deliveries.arrived("model")
    assert all(deliveries.look(node, caller()) for node in (1, 2, 3))


def test_a_message_that_never_became_whole_is_forgotten_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds(LONG, monkeypatch)
    deliveries = Deliveries()
    deliveries.expect(1, ["lost"])
    deliveries.expect(1, ["body"])
    deliveries.arrived("lost")
    who = Caller(b"north")
    with looking(lambda: deliveries.look(1, cast("grpc.ServicerContext", who))) as found:
        assert who.asked.wait(LONG)
        assert not found
        deliveries.arrived("body")
    assert found == [True]


def test_who_hangs_up_while_looking_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds(LONG, monkeypatch)
    deliveries, who = Deliveries(), Caller(b"north")
    with looking(lambda: deliveries.look(1, cast("grpc.ServicerContext", who))) as found:
        assert who.asked.wait(LONG)
        who.hang_up()
    assert found == [False]
    deliveries.expect(1, [])
    assert deliveries.look(1, caller())


def test_a_node_that_connects_anew_gets_what_its_old_connection_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds(LONG, monkeypatch)
    servicer = superlink_with_node(monkeypatch, b"north")
    node = servicer.state_factory.state().get_node_id_by_public_key(b"north")
    assert node is not None
    old = Caller(b"north")
    request = PullMessagesRequest(node=Node(node_id=node))
    with looking(lambda: servicer.PullMessages(request, cast("grpc.ServicerContext", old))) as found:
        assert old.asked.wait(LONG)
        servicer.ActivateNode(activation(b"north"), caller(b"north"))
    (response,) = found
    assert not response.messages_list  # type: ignore[attr-defined]


def test_no_more_wait_at_once_than_leave_room_for_other_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds(LONG, monkeypatch)
    monkeypatch.setattr("server.flower.fleet._MOST_WAITING", 0)
    assert Deliveries().look(1, caller())


def test_a_node_that_restarts_is_let_in_before_its_last_heartbeat_has_lapsed(monkeypatch: pytest.MonkeyPatch) -> None:
    servicer = superlink_with_node(monkeypatch, b"north")
    first = servicer.state_factory.state().get_node_id_by_public_key(b"north")
    assert servicer.ActivateNode(activation(b"north"), caller(b"north")).node_id == first


def test_what_a_node_had_fetched_before_it_restarted_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    servicer = superlink_with_node(monkeypatch, b"north")
    state = cast("InMemoryLinkState", servicer.state_factory.state())
    node = state.get_node_id_by_public_key(b"north")
    for name, fetched in (("fetched", "now"), ("waiting", "")):
        metadata = SimpleNamespace(dst_node_id=node, delivered_at=fetched)
        state.message_ins_store[name] = cast("Message", SimpleNamespace(metadata=metadata))
    servicer.ActivateNode(activation(b"north"), caller(b"north"))
    assert list(state.message_ins_store) == ["waiting"]


def test_nobody_else_can_take_a_connected_nodes_place(monkeypatch: pytest.MonkeyPatch) -> None:
    servicer = superlink_with_node(monkeypatch, b"north")
    with pytest.raises(FlowerError):
        servicer.ActivateNode(activation(b"north"), caller(b"a stranger"))


def test_a_revoked_node_stays_out(monkeypatch: pytest.MonkeyPatch) -> None:
    servicer = superlink_with_node(monkeypatch, b"north")
    state = servicer.state_factory.state()
    node = state.get_node_id_by_public_key(b"north")
    assert node is not None
    state.delete_node("account", node)
    with pytest.raises(FlowerError):
        servicer.ActivateNode(activation(b"north"), caller(b"north"))


def signed_at(seconds_ahead: float) -> grpc.HandlerCallDetails:
    """Return a SuperNode's call as the SuperLink sees it, signed by a clock that is ahead of its own."""
    private, public = generate_key_pairs()
    time = (now() + datetime.timedelta(seconds=seconds_ahead)).isoformat()
    metadata = [
        (PUBLIC_KEY_HEADER, public_key_to_bytes(public)),
        (TIMESTAMP_HEADER, time),
        (SIGNATURE_HEADER, sign_message(private, time.encode())),
    ]
    return cast(
        "grpc.HandlerCallDetails",
        SimpleNamespace(method="/flwr.proto.Fleet/PullMessages", invocation_metadata=metadata),
    )


@pytest.mark.parametrize(("ahead", "let_in"), [(0, True), (290, True), (-290, True), (310, False), (-310, False)])
def test_a_hospitals_clock_may_be_off_by_five_minutes_either_way(
    ahead: float, let_in: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's own SuperLink turns all hospitals away when its clock is set back by six seconds."""
    for name in ("MIN_TIMESTAMP_DIFF", "MAX_TIMESTAMP_DIFF"):
        monkeypatch.setattr(node_auth_server_interceptor, name, getattr(node_auth_server_interceptor, name))
    servicer = superlink_with_node(monkeypatch, b"north")
    interceptor = node_auth_server_interceptor.NodeAuthServerInterceptor(servicer.state_factory)
    handler = grpc.unary_unary_rpc_method_handler(lambda _request, _context: None)
    passed_on: list[object] = []

    def pass_on(call: object) -> grpc.RpcMethodHandler:
        passed_on.append(call)
        return handler

    interceptor.intercept_service(pass_on, signed_at(ahead))
    assert bool(passed_on) is let_in


def test_no_call_of_a_hospital_is_longer_than_a_message_with_a_short_array(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's own SuperLink takes two gigabytes in one call, and holds them."""
    superlink_with_node(monkeypatch, b"north")
    assert superlink.GRPC_MAX_MESSAGE_LENGTH == LONGEST_CALL_BYTES > MAXIMUM_MESSAGE_BYTES + LONGEST_WHOLE_BYTES
