"""Starts the processes one role consists of, restarts one that dies, and ends them all in good order."""

import argparse
import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

from common.errors import ConfideError, RunError
from common.hosts import past_proxies
from common.telemetry.logs import begin_logging

EXIT_REFUSED = 2
"""The exit code of a process that cannot work until a person corrects something; it is not started again."""

PRIVATE_UMASK = 0o077
"""The umask of every role, so that what it writes is its own alone; Flower keeps the umask it finds."""

_FIRST_RESTART_SECONDS = 0.2
_LONGEST_RESTART_SECONDS = 10.0
_STABLE_SECONDS = 30.0
"""After this long a process starts again at once when it dies: its earlier deaths no longer count."""
_TERMINATE_SECONDS = 8.0
"""The time between SIGTERM and SIGKILL."""
_LAST_LINE_BYTES = 4096
_PR_SET_PDEATHSIG = 1
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4


@dataclass(frozen=True)
class ProcessCommand:
    """One process: its name, command line, environment and log file."""

    name: str
    arguments: tuple[str, ...]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    user: int | None = None
    group: int | None = None


@dataclass
class _Child:
    command: ProcessCommand
    process: subprocess.Popen[bytes]
    started: float
    deaths: int = 0
    restart_at: float | None = None


class Supervisor:
    """Keeps a set of processes running; each writes to a log file of its own.

    A child is killed by the kernel when its supervisor dies by whatever cause (Linux, ``PR_SET_PDEATHSIG``): nothing
    that counts lives in a process alone, and one that lingers would hold the ports its successor needs. It runs in a
    session of its own so that Ctrl-C reaches the supervisor alone, which then ends them in order.
    """

    def __init__(self) -> None:
        self._children: dict[str, _Child] = {}

    def start(self, command: ProcessCommand) -> int:
        """Start a process and return its number."""
        self._children[command.name] = _Child(command, _spawn(command), time.monotonic())
        return self._children[command.name].process.pid

    def is_running(self, name: str) -> bool:
        """Return whether the process has been started and has not ended."""
        child = self._children.get(name)
        return child is not None and child.process.poll() is None

    def pid(self, name: str) -> int | None:
        """Return the number of a running process, None when it is not running."""
        return self._children[name].process.pid if self.is_running(name) else None

    def exit_code(self, name: str) -> int | None:
        """Return how a process ended, None while it runs."""
        return self._children[name].process.poll()

    def ended(self) -> tuple[str, ...]:
        """Return the names of the processes that are not running, in the order they were started."""
        return tuple(name for name, child in self._children.items() if child.process.poll() is not None)

    def revive(self) -> None:
        """Start every ended process again, the sooner the longer it had been running.

        Raises:
            RunError: a process refused to work (exit code 2); carries the last line of its log.
        """
        now = time.monotonic()
        for name in self.ended():
            child = self._children[name]
            if child.process.returncode == EXIT_REFUSED:
                raise RunError(last_line(child.command.log))
            if child.restart_at is None:
                child.deaths = 1 if now - child.started > _STABLE_SECONDS else child.deaths + 1
                child.restart_at = now + min(_FIRST_RESTART_SECONDS * 2 ** (child.deaths - 1), _LONGEST_RESTART_SECONDS)
            if now >= child.restart_at:
                child.process = _spawn(child.command)
                child.started, child.restart_at = now, None

    def end(self, name: str) -> None:
        """End one process but keep it known, so that :meth:`revive` starts it again.

        It gets SIGINT, by which it can tell that something has failed; :meth:`stop` sends SIGTERM.
        """
        _end(self._children[name].process, signal.SIGINT)

    def stop(self, names: Sequence[str] | None = None, *, at_once: bool = False) -> None:
        """End processes, all by default: SIGTERM to the last started first, and SIGKILL for one that stays.

        Args:
            names: of the processes; unknown ones are ignored.
            at_once: SIGKILL, for processes that have nothing to put in order.
        """
        chosen = tuple(self._children) if names is None else names
        children = [self._children.pop(name) for name in reversed(chosen) if name in self._children]
        for child in children:
            child.process.kill() if at_once else child.process.terminate()
        for child in children:
            _end(child.process)


def _spawn(command: ProcessCommand) -> subprocess.Popen[bytes]:
    command.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(command.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    prepare = partial(_prepare, os.getpid(), ctypes.CDLL(None))

    with os.fdopen(descriptor, "ab") as log:
        return subprocess.Popen(
            command.arguments,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **past_proxies(os.environ), **command.environment},
            start_new_session=True,
            umask=PRIVATE_UMASK,
            preexec_fn=prepare,  # noqa: PLW1509 - it takes no lock: one system call of a library already loaded
            user=command.user,
            group=command.group,
            extra_groups=[] if command.user is not None else None,
        )


def die_with_parent() -> None:
    """Let the kernel kill this process when the one that started it dies; for one that no supervisor started."""
    _die_with(os.getppid(), ctypes.CDLL(None))


@contextlib.contextmanager
def running_beside(command: tuple[str, ...], root: Path, stop_seconds: float) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a role's process beside this one: it writes where this one does, and dies with it.

    Args:
        command: of one of our modules.
        root: where it finds our modules.
        stop_seconds: at the end, the time between SIGTERM and SIGKILL.
    """
    process = subprocess.Popen(
        command,
        cwd=root,
        env={**os.environ, "PYTHONPATH": python_path(root)},
        preexec_fn=partial(_die_with, os.getpid(), ctypes.CDLL(None)),  # noqa: PLW1509 - as in _spawn
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(stop_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _prepare(parent: int, libc: ctypes.CDLL) -> None:
    """Run between fork and exec: a supervisor may start processes as another user, but what it starts may not."""
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _die_with(parent, libc)


def _die_with(parent: int, libc: ctypes.CDLL) -> None:
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # A core dump would write keys and images to the disk.
    if os.getppid() != parent:  # It died before the line above took effect.
        os._exit(1)


def _end(process: subprocess.Popen[bytes], first: signal.Signals = signal.SIGTERM) -> None:
    if process.poll() is None:
        process.send_signal(first)
        try:
            process.wait(_TERMINATE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    # Whatever the process itself had started shares its session's process group.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def children_of(parent: int) -> dict[int, str]:
    """Return the living processes that ``parent`` started, by number, each with its command line."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                # After the name in parentheses, which may hold anything: state, parent, …
                state, started_by = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                if int(started_by) == parent and state != "Z":
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ").strip()
    return found


class Stopping(BaseException):
    """SIGTERM or SIGINT arrived; raised in the main thread so that every ``finally`` runs once.

    Attributes:
        signal_number: which of the two.
        exit_code: of a command that this ended before it was done, as a shell reports one that a signal has ended.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


def raise_on_signals() -> None:
    """Turn SIGTERM and SIGINT into :class:`Stopping`, once; a second signal changes nothing while things end."""

    def stop(number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise Stopping(number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def run_service(module: str, description: str | None, serve: Callable[[Path], None]) -> int:
    """Run a role's long-lived service on the folder its command line names, and return the process's exit code.

    Args:
        module: as in ``python -m``.
        description: for ``--help``.
        serve: works on the state folder until :class:`Stopping` is raised; a ``ConfideError`` becomes one line that the
            supervisor reads.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--state", type=Path, required=True)
    state = parser.parse_args().state
    begin_logging()
    raise_on_signals()
    try:
        serve(state)
    except Stopping:
        return 0
    except ConfideError as error:
        print(f"confide: {error}", file=sys.stderr, flush=True)  # noqa: T201 - read by the supervisor
        return EXIT_REFUSED
    return 0


def python_module(name: str, *arguments: str) -> tuple[str, ...]:
    """Return the command line that runs one of our modules with this Python."""
    return (sys.executable, "-m", name, *arguments)


def python_path(root: Path, environment: Mapping[str, str] = os.environ) -> str:
    """Return the value of ``PYTHONPATH`` for a child: the source tree, then what this process was given.

    A person's own folders stay on it, such as those of packages that models come from.
    """
    given = [folder for folder in environment.get("PYTHONPATH", "").split(os.pathsep) if folder]
    return os.pathsep.join(dict.fromkeys((str(root), *given)))


def become(command: tuple[str, ...], root: Path) -> NoReturn:
    """Turn this process into ``command``, which finds our modules in ``root``; signals reach it directly."""
    os.execve(command[0], command, {**os.environ, "PYTHONPATH": python_path(root)})  # noqa: S606 - a Python of ours


def last_line(log: Path) -> str:
    """Return the last line a process wrote, without the prefix of our own error lines."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LAST_LINE_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError as error:
        return f"{log.name} cannot be read: {error.strerror}"
    return lines[-1].removeprefix("confide: ") if lines else f"the process of {log.name} ended without a word"
