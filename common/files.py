"""What every role does to a disk: write a file whole or not at all, make a private folder, hold a lock."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import RunError

_LOCK_FILE = ".lock"
_RETRY_SECONDS = 0.05
"""The time between two attempts to take a lock that another process holds."""


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, whole or not at all, whatever the umask and when the power fails.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _replace(path, path.with_name(path.name + ".new"), content, 0o600)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, also when the power fails, with the rights that the umask leaves.

    Raises:
        RunError: the folder cannot be written, or the disk is full.
    """
    try:
        _replace(path, path.with_name(f".{path.name}.part"), content, 0o666)
    except OSError as error:
        raise RunError(f"{path} must be writable: {error.strerror}") from None


def _replace(path: Path, draft: Path, content: bytes, mode: int) -> None:
    draft.unlink(missing_ok=True)  # What a process that was killed left behind.
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_private_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for their owner alone whatever the umask says.

    Raises:
        OSError: the disk refuses.
    """
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, waiting for it; the kernel gives it back when the process ends, however it ends."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def alone(lock: Path, patience_seconds: float) -> Iterator[None]:
    """Hold ``lock`` so that no second process does the same work; the kernel lets go of it when this one dies.

    Raises:
        RunError: another process still holds it after ``patience_seconds``.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + patience_seconds
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RunError(f"{lock.name} is held by another process that does this work; stop it") from None
                time.sleep(_RETRY_SECONDS)
        yield
    finally:
        os.close(descriptor)
