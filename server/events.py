"""Appends what a run reports to its ``events.jsonl``."""

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from common.errors import RunError
from common.telemetry.events import EVENTS_FILE, Event


class EventLog:
    """An append-only file of events, each on one line and flushed before :meth:`append` returns."""

    def __init__(self, run_folder: Path) -> None:
        run_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = run_folder / EVENTS_FILE
        torn = self._path.exists() and not _ends_with_newline(self._path)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._file = os.fdopen(descriptor, "ab")
        if torn:  # A writer was killed in the middle of a line: close it, so that readers can skip it.
            self._file.write(b"\n")
            self._file.flush()
        before = self._path.read_bytes()
        self._length_bytes, self._digest = len(before), hashlib.sha256(before)

    def append(self, event: Event) -> None:
        """Write one event.

        Raises:
            RunError: the disk is full or the file cannot be written.
        """
        line = event.to_line().encode()
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise RunError(f"{EVENTS_FILE} must be writable: {error.strerror}; free space and start again") from None

        self._length_bytes += len(line)
        self._digest.update(line)

    def with_line(self, event: Event) -> tuple[int, str]:
        """Return the length and the SHA-256 of the file as it is with ``event`` at its end."""
        line, digest = event.to_line().encode(), self._digest.copy()
        digest.update(line)
        return self._length_bytes + len(line), digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        """Return the log itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return True
        file.seek(size - 1)
        return file.read(1) == b"\n"
