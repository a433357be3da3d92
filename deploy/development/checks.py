"""``confide dev check`` and ``confide test``: the same commands for a person, the README and continuous integration."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

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
    failed = 0
    for name, arguments in _STATIC:
        started = time.monotonic()
        finished = subprocess.run(
            (sys.executable, *arguments), cwd=ROOT, check=False, capture_output=True, text=True, env=_environment()
        )
        skipped = finished.stdout.startswith(SKIPPED)
        verdict = "FAILED" if finished.returncode else finished.stdout.strip() if skipped else "ok"
        print(f"{name:<16} {verdict}  ({time.monotonic() - started:.1f} s)", flush=True)
        if finished.returncode != 0:
            failed += 1
            print(finished.stdout + finished.stderr, flush=True)
    return failed


def _run_mutations(further: Sequence[str]) -> int:
    return subprocess.run(
        (sys.executable, "-m", "tests.mutation", *further), cwd=ROOT, check=False, env=_environment()
    ).returncode


def _run_pytest(chosen: Sequence[str], *, fast: bool, further: Sequence[str]) -> int:
    # One worker runs the deployed systems, one after the other (tests/conftest.py), while others run the rest.
    how = ("-m", " or ".join(chosen)) if chosen else ("-n", str(_WORKERS), "--dist", "loadscope")
    left_out = [f"--ignore=tests/{folder}" for folder in _WHOLE] if fast else []
    return subprocess.run(
        (sys.executable, "-m", "pytest", *how, *left_out, *further), cwd=ROOT, check=False, env=_environment()
    ).returncode


def _environment() -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT)}
