"""A file system of its own for a folder, so small that it can be filled."""

import contextlib
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_BLOCK = bytes(4096)


@contextlib.contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """Mount a new file system on ``folder``, which is made; skips the test where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0700", "confide-test", str(folder))
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(("umount", "--lazy", str(folder)), check=True)


@contextlib.contextmanager
def full(folder: Path) -> Iterator[Callable[[], None]]:
    """Leave no room in a folder's file system; makes room again in the end.

    Yields a function that fills what was freed since: whoever removes a file of its own has room for another one.
    """
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:

        def fill() -> None:
            try:
                while True:
                    file.write(_BLOCK)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

        try:
            fill()
            yield fill
        finally:
            filler.unlink()
