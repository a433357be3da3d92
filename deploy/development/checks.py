"""``confide dev check`` and ``confide test``: the same commands for a person, the README and continuous integration."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import psutil

from common.errors import ConfigError
from deploy.command import command
from deploy.development.supply_chain import SKIPPED
from deploy.source_tree import ROOT

_STATIC: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ruff check", ("-m", "ruff", "check", "--no-cache", ".")),
    ("ruff format", ("-m", "ruff", "format", "--no-cache", "--check", ".")),
    ("mypy --strict", ("-m", "mypy")),
    ("import rules", ("-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())")),
    ("secrets", ("-m", "deploy.development.supply_chain", "secrets")),
    ("advisories", ("-m", "deploy.development.supply_chain", "advisories")),
)

_Function = TypeVar("_Function", bound=Callable[..., Any])

_WORKERS = max(2, min(4, os.cpu_count() or 1))
_MARKERS = ("e2e", "slow", "docker", "network")

_MEMORY = Path("/dev/shm")  # noqa: S108 - a private folder is made there
_ROOM_BYTES = 8 * 2**30
"""What tests may need of memory and of files in memory together, on two workers."""

_WHOLE = ("attacks", "benchmarks", "e2e", "mutation", "unit/deploy/attacks", "unit/deploy/experiment")
"""Folders of tests that train, attack or measure whole systems; ``--fast`` leaves them out."""


@command("check", "Run the static checks alone: style, types, imports, secrets, advisories.", "./confide dev check")
def check() -> int:
    """Run the static checks."""
    failed = _run_static()
    print(f"confide: {failed} of {len(_STATIC)} static checks failed" if failed else "confide: static checks passed")
    return 1 if failed else 0


def _marker_options(function: _Function) -> _Function:
    for marker in reversed(_MARKERS):
        option = click.option(f"--{marker}", is_flag=True, help=f"Run the tests marked {marker} instead.")
        function = option(function)
    return function


@command(
    "test",
    "Run the static checks and the tests.\n\nFurther arguments for pytest follow after --.",
    "./confide test --fast\n./confide test -- tests/unit/common",
)
@click.option("--fast", is_flag=True, help="Leave out whole systems: those deployed, attacked, trained or measured.")
@_marker_options
@click.option("--mutations", is_flag=True, help="Make dangerous changes to a copy instead; each must fail a test.")
@click.argument("pytest", nargs=-1, type=click.UNPROCESSED)
def test(fast: bool, mutations: bool, pytest: tuple[str, ...], **markers: bool) -> int:
    """Run the static checks and pytest, whose closing line is the last thing printed."""
    chosen = [marker for marker in _MARKERS if markers[marker]]
    if fast and (chosen or mutations):
        raise ConfigError("--fast leaves tests out; it goes with no option that chooses others")
    failed = _run_static()
    if failed:
        print(f"confide: {failed} of {len(_STATIC)} static checks failed")
        return 1
    return _run_mutations(pytest) if mutations else _run_pytest(chosen, fast=fast, further=pytest)


def _run_static() -> int:
    """Run the static checks side by side, and report them in their order."""
    failed = 0
    with ThreadPoolExecutor(len(_STATIC)) as pool:
        for name, (finished, seconds) in zip(
            (name for name, _ in _STATIC), pool.map(_run_timed, (arguments for _, arguments in _STATIC)), strict=True
        ):
            skipped = finished.stdout.startswith(SKIPPED)
            verdict = "FAILED" if finished.returncode else finished.stdout.strip() if skipped else "ok"
            print(f"{name:<16} {verdict}  ({seconds:.1f} s)", flush=True)
            if finished.returncode != 0:
                failed += 1
                print(finished.stdout + finished.stderr, flush=True)
    return failed


def _run_timed(arguments: Sequence[str]) -> tuple[subprocess.CompletedProcess[str], float]:
    started = time.monotonic()
    finished = subprocess.run(
        (sys.executable, *arguments), cwd=ROOT, check=False, capture_output=True, text=True, env=_environment()
    )
    return finished, time.monotonic() - started


def _run_mutations(further: Sequence[str]) -> int:
    return subprocess.run(
        (sys.executable, "-m", "tests.mutation", *further), cwd=ROOT, check=False, env=_environment()
    ).returncode


def _run_pytest(chosen: Sequence[str], *, fast: bool, further: Sequence[str]) -> int:
    # One worker runs the deployed systems, one after the other (tests/conftest.py), while others run the rest.
    how = ("-m", " or ".join(chosen)) if chosen else ("-n", str(_WORKERS), "--dist", "loadscope")
    left_out = [f"--ignore=tests/{folder}" for folder in _WHOLE] if fast else []
    with ExitStack() as held:
        if not chosen:  # Deployed systems fill disks of their own, and their files are looked at afterwards.
            how = (*how, *held.enter_context(scratch(_MEMORY)))
        return subprocess.run(
            (sys.executable, "-m", "pytest", *how, *left_out, *further), cwd=ROOT, check=False, env=_environment()
        ).returncode


@contextmanager
def scratch(memory: Path) -> Iterator[tuple[str, ...]]:
    """Give the tests a folder in memory, where there is room: what they write durably is written there at once.

    Args:
        memory: where the kernel keeps files in memory.

    Yields:
        pytest's options for the folder; none where there is no room, so that pytest chooses.
    """
    if not _has_room(memory):
        yield ()
        return
    with tempfile.TemporaryDirectory(prefix="confide-tests-", dir=memory) as folder:
        yield ("--basetemp", f"{folder}/pytest")


def _has_room(memory: Path) -> bool:
    try:
        free, flags = shutil.disk_usage(memory).free, os.statvfs(memory).f_flag
    except OSError:
        return False
    # Some tests run programs that they write.
    return min(free, psutil.virtual_memory().available) >= _ROOM_BYTES and not flags & os.ST_NOEXEC


def _environment() -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT)}
