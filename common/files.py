"""What every role does to a disk: write a file whole or not at all, make a private folder, hold a lock."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock

from common.errors import RunError

_LOCK_FILE = ".lock"
_LOCK_MODE = 0o600
_RETRY_SECONDS = 0.002
"""Between two tries to take a lock that another process holds."""


def write_private(path: Path, content: bytes | memoryview) -> None:
    """Write a file that only its owner can read, whole or not at all, whatever the umask and when the power fails.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(content)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, also when the power fails, with the rights that the umask leaves.

    A device or a pipe, such as ``/dev/stdout``, is written to and not replaced.

    Raises:
        RunError: the folder cannot be written, or the disk is full.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        with whole_file(path, path.with_name(f".{path.name}.part"), 0o666) as file:
            file.write(content)
    except OSError as error:
        raise RunError(f"{path} must be writable: {error.strerror}") from None


@contextmanager
def whole_file(
    path: Path, draft: Path | None = None, mode: int = 0o600, *, durable: bool = True
) -> Iterator[IO[bytes]]:
    """Open a file to write that takes the place of ``path`` when the block ends, or is removed when it fails.

    Args:
        path: the file; nobody ever sees a part of it, also when the power fails, if it is durable.
        draft: where the bytes lie until then; by default ``path`` with ``.new`` behind its name. What a process that
            was killed left there is removed.
        mode: of the file, less what the umask takes.
        durable: False spares the wait for the disk, for what can be had again; whoever reads it checks that it is
            whole.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    draft = path.with_name(f"{path.name}.new") if draft is None else draft
    draft.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    if durable:
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
def hold(lock: Path, patience_seconds: float = -1.0) -> Iterator[None]:
    """Hold a lock that the kernel gives back when the process ends, however it ends.

    Args:
        lock: a file of mode 0600, made when it is missing. It is never removed: whoever waits for a file that another
            process removes would lock a file that nobody else sees.
        patience_seconds: to wait for another process; below 0 for ever.

    Raises:
        TimeoutError: another process still holds it.
        OSError: the file cannot be opened, or the file system has no such locks.
    """
    # A lock that is a file's mere existence outlives its holder, so no such lock stands in for the kernel's.
    with FileLock(
        lock,
        patience_seconds,
        _LOCK_MODE,
        poll_interval=_RETRY_SECONDS,
        fallback_to_soft=False,
        preserve_lock_file=True,
    ):
        yield


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, waiting for it; see :func:`hold`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with hold(folder / _LOCK_FILE):
        yield


@contextmanager
def alone(lock: Path, patience_seconds: float) -> Iterator[None]:
    """Hold ``lock`` so that no second process does the same work; see :func:`hold`.

    Raises:
        RunError: another process still holds it after ``patience_seconds``.
    """
    with ExitStack() as held:
        try:
            held.enter_context(hold(lock, patience_seconds))
        except TimeoutError:
            raise RunError(f"{lock.name} is held by another process that does this work; stop it") from None
        yield


@contextmanager
def socket_name(path: Path) -> Iterator[str]:
    """Return a short name for a Unix socket with a path of any length: the kernel takes 107 bytes."""
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)
