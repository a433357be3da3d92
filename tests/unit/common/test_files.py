"""Locks: the kernel gives them back, their file stays, and nobody else can open it."""

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import RunError
from common.files import alone, hold, locked, replace_file, whole_file
from deploy.source_tree import ROOT

_HOLDER = """
import sys, time
from pathlib import Path
from common.files import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which holds the lock."""
    command = (sys.executable, "-c", _HOLDER, str(tmp_path / "a.lock"))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_kernel_gives_back_the_lock_of_a_process_that_is_killed(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    with pytest.raises(TimeoutError), hold(tmp_path / "a.lock", 0.05):
        pass
    holder.send_signal(signal.SIGKILL)
    with hold(tmp_path / "a.lock", 10.0):
        pass


def test_work_that_another_process_does_is_not_begun(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    assert holder.poll() is None
    with pytest.raises(RunError, match=r"a\.lock is held by another process"), alone(tmp_path / "a.lock", 0.05):
        pass


@pytest.mark.usefixtures("open_umask")
def test_the_file_of_a_lock_is_private_and_stays(tmp_path: Path) -> None:
    for path, lock in (
        (tmp_path / "a.lock", hold(tmp_path / "a.lock")),
        (tmp_path / "new" / ".lock", locked(tmp_path / "new")),
    ):
        with lock:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            inode = path.stat().st_ino
        assert path.stat().st_ino == inode
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_two_threads_of_one_process_hold_a_folder_one_after_the_other(tmp_path: Path) -> None:
    first, order = threading.Event(), []

    def wait_for_it() -> None:
        first.wait(10)
        with locked(tmp_path):
            order.append("second")

    thread = threading.Thread(target=wait_for_it)
    thread.start()
    with locked(tmp_path):
        first.set()
        thread.join(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_an_error_inside_gives_the_lock_back(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="of its own"), hold(tmp_path / "a.lock"):
        raise TimeoutError("of its own")
    with alone(tmp_path / "a.lock", 0.0):
        pass


def test_a_file_is_seen_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    replace_file(path, b"old")
    with pytest.raises(ValueError, match="in the middle"), whole_file(path) as file:  # noqa: PT012 - cut short
        file.write(b"new, and cut sh")
        file.flush()
        assert path.read_bytes() == b"old"
        raise ValueError("in the middle")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["kept"]
    (tmp_path / "kept.new").write_bytes(b"left by a process that was killed")
    with whole_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert [each.name for each in tmp_path.iterdir()] == ["kept"]


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        replace_file(pipe, b"for a program that waits")
        assert os.read(read, 100) == b"for a program that waits"
    finally:
        os.close(read)
    assert pipe.is_fifo()
    with pytest.raises(RunError, match="must be writable: Is a directory"):
        replace_file(tmp_path, b"")
