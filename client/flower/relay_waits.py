"""Lets a SuperNode and the hospital's agent wait for each other, where Flower's would poll again and again.

Flower's SuperNode polls for the reply to a message twice a second, and its agent polls as often for a task.
Polling more often makes an exchange fast and costs both processes a request over TLS each time. Here the agent's
poll for a task is answered when one is there, and the SuperNode's poll for the reply ends when it comes.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from flwr.app import Message
from flwr.supernode.nodestate import in_memory_nodestate

LONGEST_POLL_SECONDS = 1.0
"""How long a poll for a task may wait when there is none; an agent that must stop waits this long at most."""

ACQUIRE_TASK_PATH = "/v1/runtime/acquire-task"

_Scope = MutableMapping[str, Any]
_Event = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Event]]
_Send = Callable[[_Event], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]


class Bell:
    """Wakes the one thread that waits for it; what rings while nobody waits ends the next wait at once."""

    def __init__(self) -> None:
        self._rung = threading.Event()

    def ring(self) -> None:
        """End the wait."""
        self._rung.set()

    def wait(self, seconds: float) -> None:
        """Wait until the bell rings, ``seconds`` at most; then poll for what it may have rung for."""
        self._rung.wait(seconds)
        self._rung.clear()


def ringing_state(bell: Bell) -> type[in_memory_nodestate.InMemoryNodeState]:
    """Return Flower's state of a SuperNode, which rings when a message or a part of one has come from the agent."""

    class RingingState(in_memory_nodestate.InMemoryNodeState):
        def store_message(self, message: Message) -> str | None:
            stored: str | None = super().store_message(message)
            bell.ring()
            return stored

        def store_object(self, run_id: int, session_id: str, object_id: str, object_content: bytes) -> bool:
            stored: bool = super().store_object(run_id, session_id, object_id, object_content)
            bell.ring()
            return stored

    return RingingState


class TaskDoor:
    """Holds the agent's poll for a task until there is one, for :data:`LONGEST_POLL_SECONDS` at most.

    It is an ASGI application around Flower's. A poll whose caller has gone is dropped: an answer would be a task that
    nobody works on.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._there = asyncio.Event()
        self._is_there = False

    def open(self) -> None:
        """Let the poll in, or the next one; callable from any thread."""
        self._is_there = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._there.set)

    def around(self, app: _App) -> _App:
        """Return ``app`` behind this door."""

        async def behind_the_door(scope: _Scope, receive: _Receive, send: _Send) -> None:
            if scope["type"] != "http" or scope["path"] != ACQUIRE_TASK_PATH:
                await app(scope, receive, send)
                return
            question = await _whole(receive)
            if await self._await_task(receive):
                await app(scope, _again(question, receive), send)

        return behind_the_door

    async def _await_task(self, receive: _Receive) -> bool:
        """Wait for the door to open; return whether the caller is still there."""
        self._loop = asyncio.get_running_loop()
        if not self._is_there:
            opened, gone = asyncio.ensure_future(self._there.wait()), asyncio.ensure_future(receive())
            done, waiting = await asyncio.wait(
                (opened, gone), timeout=LONGEST_POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            for other in waiting:
                other.cancel()
            if gone in done:
                return False
        self._is_there = False
        self._there.clear()
        return True


async def _whole(receive: _Receive) -> list[_Event]:
    """Return the events of a request, up to the last of its body."""
    events = [await receive()]
    while events[-1].get("more_body", False):
        events.append(await receive())
    return events


def _again(events: list[_Event], receive: _Receive) -> _Receive:
    """Return a ``receive`` that gives ``events`` once more, and then what follows."""
    remaining = iter(events)

    async def receive_again() -> _Event:
        for event in remaining:
            return event
        return await receive()

    return receive_again
