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

_WORKERS = max(2, min(4, os.cpu_count() or 1))

_STATIC: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ruff check", ("-m", "ruff", "check", "--no-cache", ".")),
    ("ruff format", ("-m", "ruff", "format", "--no-cache", "--check", ".")),
    ("mypy --strict", ("-m", "mypy", "--num-workers", str(_WORKERS))),
    ("import rules", ("-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())")),
    ("secrets", ("-m", "deploy.development.supply_chain", "secrets")),
)
_NETWORK: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("advisories", ("-m", "deploy.development.supply_chain", "advisories")),
)
"""Static checks that ask the network; ``--fast`` leaves them out."""

_Function = TypeVar("_Function", bound=Callable[..., Any])

_MARKERS = ("e2e", "slow", "docker", "network")

_MEMORY = Path("/dev/shm")  # noqa: S108 - a private folder is made there
_ROOM_BYTES = 8 * 2**30
"""What tests may need of memory and of files in memory together, on two workers."""

WHOLE = (
    "attacks", "benchmarks", "e2e", "fuzz", "mutation", "protocol",
    "unit/deploy/attacks", "unit/deploy/experiment", "unit/deploy/models", "unit/deploy/resilience",
    # A consortium in one process, or a finished run.
    "unit/client/test_agent.py", "unit/client/test_agent_erases_secrets.py", "unit/client/test_contribution.py",
    "unit/client/test_images_damaged_in_a_run.py", "unit/client/test_kept_runs.py",
    "unit/client/test_patients_stay_unnamed.py", "unit/common/privacy/test_mechanism.py",
    "unit/deploy/audit/test_verify.py", "unit/deploy/results/test_monai_bundle.py",
    "unit/deploy/results/test_onnx_file.py", "unit/deploy/results/test_run_folder.py",
    "unit/server/test_optimisers_under_masks.py", "unit/server/test_rounds.py", "unit/server/test_run.py",
    "unit/server/test_run_mean.py", "unit/server/test_run_statistics.py", "unit/server/test_without_pytorch.py",
    # Processes that are killed, searched or kept within limits, and every mistake of a whole data set.
    "unit/client/data/test_likeness.py", "unit/client/data/test_planted_mistakes.py",
    "unit/client/ledger/test_ledger_survives.py", "unit/common/models/test_backbone.py",
    "unit/common/test_mask_workers.py",
)  # fmt: skip
"""Tests that train, attack, kill or measure whole systems; ``--fast`` leaves them out, and others marked ``long``."""

_FAST = " and ".join(f"not {marker}" for marker in (*_MARKERS, "long"))


@command("check", "Run the static checks alone: style, types, imports, secrets, advisories.", "./confide dev check")
def check() -> int:
    """Run the static checks."""
    return 0 if _pass_static((*_STATIC, *_NETWORK)) else 1


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
@click.option("--fast", is_flag=True, help="Leave out whole systems, tests marked long, and the network.")
@_marker_options
@click.option("--mutations", is_flag=True, help="Make dangerous changes to a copy instead; each must fail a test.")
@click.argument("pytest", nargs=-1, type=click.UNPROCESSED)
def test(fast: bool, mutations: bool, pytest: tuple[str, ...], **markers: bool) -> int:
    """Run the static checks and pytest, whose closing line is the last thing printed."""
    chosen = [marker for marker in _MARKERS if markers[marker]]
    if fast and (chosen or mutations):
        raise ConfigError("--fast leaves tests out; it goes with no option that chooses others")
    if not _pass_static(_STATIC if fast else (*_STATIC, *_NETWORK)):
        return 1
    return _run_mutations(pytest) if mutations else _run_pytest(chosen, fast=fast, further=pytest)


def _pass_static(checks: Sequence[tuple[str, tuple[str, ...]]]) -> bool:
    """Run static checks side by side, report them in their order, and say whether all passed."""
    failed = 0
    with ThreadPoolExecutor(len(checks)) as pool:
        for name, (finished, seconds) in zip(
            (name for name, _ in checks), pool.map(_run_timed, (arguments for _, arguments in checks)), strict=True
        ):
            skipped = finished.stdout.startswith(SKIPPED)
            verdict = "FAILED" if finished.returncode else finished.stdout.strip() if skipped else "ok"
            print(f"{name:<16} {verdict}  ({seconds:.1f} s)", flush=True)
            if finished.returncode != 0:
                failed += 1
                print(finished.stdout + finished.stderr, flush=True)
    print(f"confide: {failed} of {len(checks)} static checks failed" if failed else "confide: static checks passed")
    return not failed


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
    # Each file is one worker's (tests/conftest.py).
    # Whole systems wait for processes and clocks, so that one worker more than there are cores has something to do.
    workers = _WORKERS if fast else _WORKERS + 1
    how = ("-m", " or ".join(chosen)) if chosen else ("-n", str(workers), "--dist", "loadscope")
    left_out = ["-m", _FAST, *(f"--ignore=tests/{folder}" for folder in WHOLE)] if fast else []
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
    # The processes of a test run import the same files thousands of times, and compile them once if they may keep that.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {"OMP_NUM_THREADS": "1", **inherited, "PYTHONPATH": str(ROOT)}
