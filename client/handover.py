"""How the relay hands a request to the hospital's agent and takes its reply: over a Unix socket in the relay's folder.

Only the agent's and the relay's user can enter that folder. A frame is its kind, the lengths of a message and of the
array beside it, and then both. The agent answers one frame at a time; it knows nothing of Flower.
"""

import logging
import os
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.errors import RunError
from common.files import socket_name
from common.run.messages import MAXIMUM_MESSAGE_BYTES

SOCKET_FILE = "agent.sock"

LONGEST_MESSAGE_BYTES = 2 * MAXIMUM_MESSAGE_BYTES
"""More than the relay can receive: a request that is too long gets a refusal in words."""

_HEAD = struct.Struct("<4sIQ")
_MESSAGE, _FAULT = b"CFM1", b"CFF1"
_STRETCH_BYTES = 2**20
_FRAME_SECONDS = 60.0
"""A frame that has begun must go on: whoever stops in the middle of one is gone."""
_LOOK_SECONDS = 1.0
"""An agent that must stop waits this long at most."""
_WAITING = 16

_LOG = logging.getLogger("confide.hospital")

Parts = Iterable[bytes | memoryview]
Answer = Callable[[bytes, int, Iterator[memoryview]], tuple[bytes, Parts]]
"""(request, bytes of its array, the array a stretch at a time) to the reply and the parts of its array."""

FAULTS = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)
"""A fault of ours in an answer must reach the server, or the exchange would wait for its deadline."""


@dataclass(frozen=True)
class Frame:
    """The beginning of a frame; the array follows, and must be read before the next frame."""

    message: bytes
    array_bytes: int
    is_fault: bool = False


def send(connection: socket.socket, message: bytes, parts: Parts = (), *, is_fault: bool = False) -> None:
    """Send a frame; ``parts`` are the array's bytes."""
    held = [memoryview(part).cast("B") for part in parts]
    head = _HEAD.pack(_FAULT if is_fault else _MESSAGE, len(message), sum(len(part) for part in held))
    connection.sendall(head + message)
    for part in held:
        connection.sendall(part)


def receive(connection: socket.socket) -> Frame:
    """Return the beginning of the next frame.

    Raises:
        EOFError: the other side is gone.
        RunError: it is no frame.
    """
    kind, message_bytes, array_bytes = _HEAD.unpack(_exactly(connection, _HEAD.size))
    if kind not in (_MESSAGE, _FAULT) or message_bytes > LONGEST_MESSAGE_BYTES:
        raise RunError("relay and agent of a hospital must be of one version; start the hospital again")
    return Frame(_exactly(connection, message_bytes), array_bytes, is_fault=kind == _FAULT)


def stretches(connection: socket.socket, array_bytes: int) -> Iterator[memoryview]:
    """Read the array that follows the beginning of a frame, a stretch at a time.

    Raises:
        EOFError: the other side is gone.
    """
    while array_bytes:
        stretch = _exactly(connection, min(_STRETCH_BYTES, array_bytes))
        array_bytes -= len(stretch)
        yield memoryview(stretch)


def whole_array(connection: socket.socket, array_bytes: int) -> bytearray:
    """Read the array that follows the beginning of a frame.

    Raises:
        EOFError: the other side is gone.
    """
    array = bytearray(array_bytes)
    _fill(connection, memoryview(array))
    return array


def _exactly(connection: socket.socket, count: int) -> bytes:
    content = bytearray(count)
    _fill(connection, memoryview(content))
    return bytes(content)


def _fill(connection: socket.socket, room: memoryview) -> None:
    while room:
        received = connection.recv_into(room)
        if received == 0:
            raise EOFError("the other side is gone")
        room = room[received:]


def connect(folder: Path) -> socket.socket:
    """Return a connection to the agent whose relay has this folder.

    Raises:
        OSError: nobody listens there.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        with socket_name(folder / SOCKET_FILE) as name:
            connection.connect(name)
    except OSError:
        connection.close()
        raise
    return connection


class AgentDoor:
    """Where the agent takes requests; use it as a context.

    Args:
        folder: the relay's. Its group may connect.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stopping = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> "AgentDoor":
        """Listen."""
        path = self._folder / SOCKET_FILE
        path.unlink(missing_ok=True)
        with socket_name(self._folder / SOCKET_FILE) as name:
            self._listener.bind(name)
        os.chown(path, -1, self._folder.stat().st_gid)
        path.chmod(0o660)
        self._listener.listen(_WAITING)
        self._selector.register(self._listener, selectors.EVENT_READ)
        return self

    def __exit__(self, *_: object) -> None:
        """Let nobody in any more."""
        for key in list(self._selector.get_map().values()):
            self._close(key.fileobj)
        self._selector.close()

    def stop(self) -> None:
        """Let :meth:`serve` return after the request in hand; callable from a signal handler."""
        self._stopping.set()

    def serve(self, answer: Answer) -> None:
        """Answer requests until :meth:`stop`, whoever of the relays that come and go sends them."""
        while not self._stopping.is_set():
            for key, _ in self._selector.select(_LOOK_SECONDS):
                if key.fileobj is self._listener:
                    connection, _ = self._listener.accept()
                    connection.settimeout(_FRAME_SECONDS)
                    self._selector.register(connection, selectors.EVENT_READ)
                elif isinstance(key.fileobj, socket.socket):
                    self._answer(key.fileobj, answer)

    def _answer(self, connection: socket.socket, answer: Answer) -> None:
        try:
            frame = receive(connection)
            array = stretches(connection, frame.array_bytes)
            try:
                reply, parts = answer(frame.message, frame.array_bytes, array)
            except FAULTS as error:
                # Only the fault's type leaves the hospital: its text might hold anything.
                _LOG.exception("answering failed")
                fault = f"internal error at the hospital: {type(error).__name__}".encode()
                _use_up(array)
                send(connection, fault, is_fault=True)
                return
            _use_up(array)
            send(connection, reply, parts)
        except (EOFError, OSError, RunError) as error:
            if not isinstance(error, EOFError):
                _LOG.warning("the relay is let go: %s", error)
            self._close(connection)

    def _close(self, connection: object) -> None:
        if isinstance(connection, socket.socket):
            self._selector.unregister(connection)
            connection.close()


def _use_up(array: Iterator[memoryview]) -> None:
    for _ in array:
        pass
