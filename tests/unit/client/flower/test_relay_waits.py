"""A SuperNode and the agent wait for each other, and a task is given to nobody who has gone."""

import asyncio
import threading
import time
from collections.abc import Iterator

import flwr.supernode.main as runtime
import pytest
from flwr.app import Message, MessageType, RecordDict
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.routers.runtime.router import router
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.nodestate import nodestate_factory

from client.flower import relay_waits
from client.flower.relay_waits import ACQUIRE_TASK_PATH, Bell, TaskDoor, ringing_state

QUESTION = {"type": "http.request", "body": b"que", "more_body": True}
REST = {"type": "http.request", "body": b"stion", "more_body": False}
GONE = {"type": "http.disconnect"}


class Asker:
    """An HTTP client and, behind the door, an application that notes what it was asked."""

    def __init__(self, path: str = ACQUIRE_TASK_PATH) -> None:
        self.scope: relay_waits._Scope = {"type": "http", "path": path}
        self.asked: list[bytes] = []
        self.leaves = asyncio.Event()
        self._events: Iterator[relay_waits._Event] = iter([QUESTION, REST])

    async def receive(self) -> relay_waits._Event:
        for event in self._events:
            return event
        await self.leaves.wait()
        return GONE

    async def app(self, _scope: relay_waits._Scope, receive: relay_waits._Receive, _send: relay_waits._Send) -> None:
        self.asked.append((await receive())["body"] + (await receive())["body"])

    async def send(self, _event: relay_waits._Event) -> None:
        pytest.fail("nothing is answered here")

    async def ask(self, door: TaskDoor) -> None:
        await door.around(self.app)(self.scope, self.receive, self.send)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_waits, "LONGEST_POLL_SECONDS", 60.0)


def test_a_question_is_let_in_when_there_is_a_task() -> None:
    async def play() -> list[bytes]:
        door, asker = TaskDoor(), Asker()
        question = asyncio.ensure_future(asker.ask(door))
        await asyncio.sleep(0.02)
        assert asker.asked == []
        threading.Thread(target=door.open).start()
        await asyncio.wait_for(question, 10)
        return asker.asked

    assert asyncio.run(play()) == [b"question"]


def test_a_task_that_came_before_the_question_is_not_forgotten_and_counts_once() -> None:
    async def play() -> None:
        door, first, second = TaskDoor(), Asker(), Asker()
        door.open()
        await asyncio.wait_for(first.ask(door), 10)
        waiting = asyncio.ensure_future(second.ask(door))
        await asyncio.sleep(0.02)
        assert (first.asked, second.asked) == ([b"question"], [])
        door.open()
        await asyncio.wait_for(waiting, 10)

    asyncio.run(play())


def test_the_question_of_one_who_has_gone_takes_no_task() -> None:
    async def play() -> None:
        door, killed, successor = TaskDoor(), Asker(), Asker()
        question = asyncio.ensure_future(killed.ask(door))
        await asyncio.sleep(0.02)
        killed.leaves.set()
        await asyncio.wait_for(question, 10)
        door.open()
        await asyncio.wait_for(successor.ask(door), 10)
        assert (killed.asked, successor.asked) == ([], [b"question"])

    asyncio.run(play())


def test_a_question_is_let_in_after_a_while_and_others_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        other = Asker("/v1/runtime/push-object")
        await other.ask(TaskDoor())
        monkeypatch.setattr(relay_waits, "LONGEST_POLL_SECONDS", 0.01)
        patient = Asker()
        await patient.ask(TaskDoor())
        assert other.asked == patient.asked == [b"question"]

    asyncio.run(play())


def test_the_door_stands_where_flower_asks_for_tasks() -> None:
    assert ACQUIRE_TASK_PATH in {getattr(route, "path", None) for route in router.routes}
    assert callable(runtime.create_app)


def test_a_reply_and_each_of_its_parts_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    rung: list[bool] = []
    bell = Bell()
    monkeypatch.setattr(bell, "ring", lambda: rung.append(True))
    monkeypatch.setattr(nodestate_factory, "InMemoryNodeState", ringing_state(bell))
    state = nodestate_factory.NodeStateFactory(ObjectStoreFactory()).state()
    message = Message(RecordDict(), dst_node_id=1, message_type=MessageType.TRAIN)
    message.metadata.__dict__["_message_id"] = message.object_id
    state.store_message(message)
    assert rung == [True]
    assert not state.store_object(1, "no session", "object", b"content")
    assert rung == [True, True]


def test_a_ring_ends_a_wait_and_one_that_nobody_heard_the_next() -> None:
    bell = Bell()
    bell.ring()
    bell.wait(60)
    started = time.monotonic()
    threading.Timer(0.02, bell.ring).start()
    bell.wait(60)
    assert time.monotonic() - started < 30
    bell.wait(0)
