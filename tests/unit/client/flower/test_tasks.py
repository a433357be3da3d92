"""Flower's private names that the hospital relies on, and what its task runner does with a message."""

import hashlib
import inspect
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import flwr.supernode.start_client_internal as supernode
import grpc
import httpx
import pytest
from flwr.app import ArrayRecord, Message, MessageType, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.client.grpc_rere_client import connection
from flwr.common.constant import HEARTBEAT_MIN_INTERVAL, SubStatus
from flwr.supercore import heartbeat
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, TaskType
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.retry import grpc_retry
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.superexec import run_superexec
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.nodestate import nodestate_factory
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from client.flower.relay_waits import Bell
from client.flower.supernode import (
    _NODE_HEARTBEAT_SECONDS,
    _naming_refusals,
    _receive_whole_or_not,
    reply_for_dropped_tasks,
    ring_for_replies,
)
from client.flower.tasks import RuntimeApi, TaskRunner, _tried_once, bundle_digest, read_runtime_api
from common.errors import RunError
from common.flower.bundle import bundle_without_code
from common.flower.seam import replace_in
from common.flower.waits import PollingTime, shorten_backoff


@pytest.fixture(autouse=True)
def _task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages can be made within a task only, and the task runner of Flower's names it before it starts one."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def runner(monkeypatch: pytest.MonkeyPatch) -> TaskRunner:
    for function in (inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree):
        monkeypatch.setattr(function, "__kwdefaults__", dict(function.__kwdefaults__ or {}))
    return TaskRunner(RuntimeApi("127.0.0.1:1", b"", b""), 0.05, 0.02, "0" * 64)


def message() -> Message:
    return Message(RecordDict({"array": ArrayRecord()}), dst_node_id=1, message_type=MessageType.TRAIN)


def test_the_supernodes_waits_are_where_they_are_shortened() -> None:
    """A moved name would bring back exchanges of six seconds, silently."""
    assert vars(supernode)["time"] is time
    assert vars(grpc_retry)["MAX_RETRY_DELAY"] > 0
    assert vars(connection)["HEARTBEAT_DEFAULT_INTERVAL"] == vars(heartbeat)["HEARTBEAT_DEFAULT_INTERVAL"] == 30
    assert HEARTBEAT_MIN_INTERVAL == _NODE_HEARTBEAT_SECONDS
    assert run_superexec._SUPEREXEC_AUTH_METHODS


def test_the_backoff_is_shortened_from_its_first_to_its_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    runner(monkeypatch)
    for function in (inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree):
        assert (function.__kwdefaults__ or {})["initial_backoff"] == 0.02
        assert (function.__kwdefaults__ or {})["backoff_cap"] == 0.5


def test_a_flower_without_the_backoff_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflatable_utils.pull_objects, "__kwdefaults__", {})
    with pytest.raises(AttributeError, match="initial_backoff"):
        shorten_backoff(inflatable_utils, 0.02)


def test_a_name_that_moved_is_refused() -> None:
    with pytest.raises(AttributeError, match="MOVED"):
        replace_in(grpc_retry, "MOVED", 1, used_by=grpc_retry.make_simple_grpc_retry_invoker)


def test_looks_for_a_message_grow_rarer_until_one_comes() -> None:
    slept: list[float] = []
    clock = PollingTime(0.05, slept.append)
    for _ in range(60):
        clock.sleep(3)
    assert slept[0] == 0.05
    assert slept == sorted(slept)
    assert slept[-1] == 0.5
    clock.sleep(0.5)  # the message has come: the SuperNode waits for its reply
    clock.sleep(3)
    assert slept[-2:] == [0.05, 0.05]
    assert clock.monotonic() > 0


def test_a_fault_of_ours_is_answered_with_its_type_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Message) -> Message:
        raise ValueError("patient 4711")

    reply = runner(monkeypatch)._answer(message(), fails)
    assert reply.has_error()
    assert reply.error.reason == "internal error at the hospital: ValueError"


def test_the_bundle_has_one_hash_and_no_module(tmp_path: Path) -> None:
    bundle = bundle_without_code(tmp_path, build_fab_from_disk)
    assert hashlib.sha256(bundle).hexdigest() == bundle_digest(tmp_path)
    assert b".py" not in bundle.replace(b"pyproject", b"")


def test_a_missing_secret_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"runtime\.pem must be readable"):
        read_runtime_api("127.0.0.1:1", tmp_path / "runtime.pem", tmp_path / "runtime.secret")


def test_a_message_whose_run_has_ended_meanwhile_is_given_up_and_not_kept() -> None:
    """Left to Flower, its task would stay with the agent, and the answer be sent in the next message's place."""

    def ended(_run: int, _object_id: str) -> None:
        raise RunNotRunningException

    def vanished(_run: int, _object_id: str) -> bytes:
        raise RunNotRunningException

    def receive(
        pull_object: Callable[[int, str], bytes], confirm_message_received: Callable[[int, str], None], state: str
    ) -> int:
        assert (pull_object(1, "object"), state) == (b"content", "state")
        confirm_message_received(1, "message")
        return 1

    def pull(_run: int, _object_id: str) -> bytes:
        return b"content"

    announced: list[bool] = []
    announce = partial(announced.append, True)
    with pytest.raises(inflatable_utils.ObjectPullError, match="the run has ended"):
        _receive_whole_or_not(receive, announce, pull_object=pull, confirm_message_received=ended, state="state")
    with pytest.raises(inflatable_utils.ObjectPullError, match="the run has ended"):
        _receive_whole_or_not(receive, announce, pull_object=vanished, confirm_message_received=ended, state="state")
    arguments = dict.fromkeys(inspect.signature(supernode._pull_and_store_message).parameters)
    inspect.signature(partial(_receive_whole_or_not, receive, announce)).bind(**arguments)
    assert announced == []
    _receive_whole_or_not(
        receive, announce, pull_object=pull, confirm_message_received=lambda _run, _message: None, state="state"
    )
    assert announced == [True]


@pytest.mark.parametrize("status", [401, 403, 503])
def test_a_task_that_the_supernode_has_given_up_does_not_end_the_agent(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left to Flower, 401 ends the process with SIGINT, and 403 with an exception that nothing catches."""
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("the agent was sent a signal"))
    monkeypatch.setattr(time, "sleep", lambda _: None)

    def refused() -> None:
        request = httpx.Request("POST", "https://127.0.0.1/v1/runtime/pull-object")
        httpx.Response(status, request=request).raise_for_status()

    with pytest.raises(httpx.HTTPStatusError):
        _tried_once().invoke(refused)


@pytest.mark.long
def test_a_supernode_whose_main_loop_has_failed_leaves_no_process_behind() -> None:
    """The hospital's supervisor starts a SuperNode again when its process has ended, and not before."""
    failing = """
import threading, time
import flwr.supernode.cli as cli
from client.flower.supernode import run_supernode
def fail():
    threading.Thread(target=time.sleep, args=(3600,)).start()
    raise RuntimeError("the SuperLink does not know this node")
cli.flower_supernode = fail
run_supernode((), 0.05, 0.02)
"""
    ended = subprocess.run(
        [sys.executable, "-c", failing], check=False, capture_output=True, text=True, timeout=60, env=os.environ
    )
    assert ended.returncode == os.EX_TEMPFAIL
    assert "does not know this node" in ended.stderr


def test_a_supernode_that_answers_for_dropped_tasks_still_rings_for_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a change of the same class of Flower's; the second must not undo the first."""
    monkeypatch.setattr(nodestate_factory, "InMemoryNodeState", InMemoryNodeState)
    rung: list[bool] = []
    bell = Bell()
    monkeypatch.setattr(bell, "ring", lambda: rung.append(True))
    ring_for_replies(bell)
    reply_for_dropped_tasks()
    state = nodestate_factory.NodeStateFactory(ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME)).state()
    state.store_object(1, "no session", "object", b"content")
    assert rung == [True]


def test_a_message_that_the_agent_drops_is_answered_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's own SuperNode waits for that reply for ever, and fetches no other message."""
    monkeypatch.setattr(nodestate_factory, "InMemoryNodeState", InMemoryNodeState)
    reply_for_dropped_tasks()
    objects = ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME)
    state = nodestate_factory.NodeStateFactory(objects).state()
    state.set_node_id(1)
    task = state.create_task(task_type=TaskType.CLIENT_APP, run_id=1, fab_hash="bundle")
    assert task is not None
    supernode._insert_message(message(), state, objects.store())
    assert state.claim_task(task)
    assert state.activate_task(task)
    assert len(state.get_messages(is_reply=False)) == 1
    assert not state.get_messages(is_reply=True)

    assert state.finish_task(task, SubStatus.FAILED, "ValueError")
    sent: list[Message] = []

    def send(reply: Message, *_: object) -> tuple[set[str], str]:
        sent.append(reply)
        return set(), "session"

    supernode._push_messages(state, objects.store(), send, lambda *_: None)
    (reply,) = sent
    assert reply.has_error()
    assert not state.get_messages()


class Task:
    """What a SuperNode says and takes about one task of the bundle ``0``."""

    def __init__(self, asked: Message, monkeypatch: pytest.MonkeyPatch) -> None:
        self.replies: list[Message] = []
        bundle = SimpleNamespace(hash_str="0" * 64)
        monkeypatch.setattr("client.flower.tasks.pull_task_input", lambda _: (asked, None, None, bundle))
        monkeypatch.setattr("client.flower.tasks.push_message", lambda _, reply, __: self.replies.append(reply))
        monkeypatch.setattr("client.flower.tasks.push_task_output", lambda **_: None)


@pytest.mark.parametrize("ahead_seconds", [-100_000.0, 100_000.0])
def test_a_reply_lives_as_long_as_its_request_whatever_this_machines_clock_says(
    ahead_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SuperLink drops a reply that seems to be made after its request has expired."""
    asked = message()
    asked.metadata.created_at -= ahead_seconds
    task = Task(asked, monkeypatch)
    runner(monkeypatch)._answer_task(
        cast("RuntimeHttpClient", task), lambda asked: Message(RecordDict(), reply_to=asked)
    )
    (reply,) = task.replies
    assert (reply.metadata.created_at, reply.metadata.ttl) == (asked.metadata.created_at, asked.metadata.ttl)


class Refusal(grpc.RpcError):  # type: ignore[misc] # gRPC has no types
    """A SuperLink's, of a call of a SuperNode's."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAUTHENTICATED

    def details(self) -> str:
        return "Invalid timestamp"


def test_a_node_that_is_turned_away_for_its_clock_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """Flower's own ends without a word; what it decides is left to it."""
    invoker = grpc_retry.make_simple_grpc_retry_invoker()
    invoker.should_giveup = lambda _: True
    named = _naming_refusals(invoker)
    assert named.should_giveup is not None
    assert named.should_giveup(Refusal())
    assert "refuses it: Invalid timestamp; set this machine's clock, or the server's" in caplog.text
    assert callable(vars(supernode)["make_simple_grpc_retry_invoker"])
