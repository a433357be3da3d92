"""How pieces of arrays pass between the ServerApp and the SuperLink of its machine: over a Unix socket.

By the Runtime API each would go through TLS, HTTP and the layers of a web application, which took two thirds of the
SuperLink's processor time in a round of a large model. The socket lies in the state folder with mode 0600: only the
server's own user reaches it, and that user can read the SuperLink's memory anyway. The SuperLink treats a piece as if
it had come by the Runtime API: it must have been announced, and hash to its name.
"""

import contextlib
import json
import logging
import socket
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from common.errors import RunError
from common.files import socket_name
from common.flower.waits import PIECE_BYTES

SOCKET_FILE = "pieces.sock"

_LONGEST_BYTES = PIECE_BYTES + 1024
"""The longest frame: a piece with its head."""
_WAITING = 4
_SECONDS = 60.0
"""A SuperLink that does not answer for this long is not there."""
_STORED, _REFUSED = b"stored", b"refused"

_LOG = logging.getLogger("confide.superlink")


class Objects(Protocol):
    """What a SuperLink's state does with objects."""

    def store_object(self, run_id: int, session_id: str, object_id: str, object_content: bytes) -> bool:
        """Store an announced object; return whether it was."""

    def get_object(self, run_id: int, object_id: str) -> bytes | None:
        """Return an object; None or nothing where it is not there."""


class Pieces(Protocol):
    """What a ServerApp does with pieces."""

    def put(self, run: int, session: str, name: str, content: bytes) -> None:
        """Hand a piece that was announced to the SuperLink, or raise :class:`RunError`."""

    def get(self, run: int, name: str) -> bytes:
        """Return a piece, empty where it is not there, or raise :class:`RunError`."""


def serve_pieces(folder: Path, objects: Objects) -> None:
    """Take and give pieces until this process ends, in threads of their own.

    Args:
        folder: for the socket; one SuperLink uses it at a time.
        objects: of the SuperLink in whose process this is called.
    """
    path = folder / SOCKET_FILE
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    with socket_name(path) as name:
        listener.bind(name)
    path.chmod(0o600)
    listener.listen(_WAITING)
    threading.Thread(target=_accept, args=(listener, objects), name="pieces", daemon=True).start()


def _accept(listener: socket.socket, objects: Objects) -> None:
    while True:
        connection = Connection(listener.accept()[0].detach())
        threading.Thread(target=_serve, args=(connection, objects), name="pieces", daemon=True).start()


def _serve(connection: Connection, objects: Objects) -> None:
    with connection, contextlib.suppress(EOFError, OSError):  # The ServerApp has ended.
        while True:
            asked = json.loads(connection.recv_bytes(_LONGEST_BYTES))
            if "session" not in asked:
                connection.send_bytes(objects.get_object(asked["run"], asked["name"]) or b"")
                continue
            content = connection.recv_bytes(_LONGEST_BYTES)
            try:
                stored = objects.store_object(asked["run"], asked["session"], asked["name"], content)
            except ValueError as error:
                _LOG.warning("a piece is refused: %s", error)
                stored = False
            connection.send_bytes(_STORED if stored else _REFUSED)


class LocalPieces:
    """The SuperLink's pieces, for a ServerApp.

    Args:
        folder: the one given to :func:`serve_pieces`.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / SOCKET_FILE
        self._connection: Connection | None = None

    def put(self, run: int, session: str, name: str, content: bytes) -> None:
        """See :class:`Pieces`."""
        if self._ask({"run": run, "session": session, "name": name}, content) != _STORED:
            raise RunError("the SuperLink must take the pieces of a model; see superlink.log")

    def get(self, run: int, name: str) -> bytes:
        """See :class:`Pieces`."""
        return self._ask({"run": run, "name": name})

    def close(self) -> None:
        """Hang up; the next call connects again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, asked: dict[str, int | str], content: bytes | None = None) -> bytes:
        try:
            connection = self._connected()
            connection.send_bytes(json.dumps(asked).encode())
            if content is not None:
                connection.send_bytes(content)
            if connection.poll(_SECONDS):
                return connection.recv_bytes(_LONGEST_BYTES)
            reason = "no answer"
        except (EOFError, OSError) as error:
            reason = str(error) or "it is gone"
        self.close()
        raise RunError(f"the SuperLink must take and give pieces of arrays, got: {reason}; see superlink.log")

    def _connected(self) -> Connection:
        if self._connection is None:
            with socket.socket(socket.AF_UNIX) as connecting:
                with socket_name(self._path) as name:
                    connecting.connect(name)
                self._connection = Connection(connecting.detach())
        return self._connection
