"""Appends what a run has to tell to its ``events.jsonl``."""

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from common.errors import RunError
from common.events import EVENTS_FILE, Event


class EventLog:
    """An append-only file of events, each on one line and flushed before :meth:`append` returns."""

    def __init__(self, run_folder: Path) -> None:
        run_folder.mkdir(parents=True, exist_ok=True)
        self._path = run_folder / EVENTS_FILE
        torn = self._path.exists() and not _ends_with_newline(self._path)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._file = os.fdopen(descriptor, "a", encoding="utf-8")
        if torn:  # A writer was killed in the middle of a line: close it, so that readers can skip it.
            self._file.write("\n")

    def append(self, event: Event) -> None:
        """Write one event.

        Raises:
            RunError: the disk is full or the file cannot be written.
        """
        try:
            self._file.write(event.to_line())
            self._file.flush()
        except OSError as error:
            raise RunError(f"{EVENTS_FILE} must be writable: {error.strerror}; free space and start again") from None

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
