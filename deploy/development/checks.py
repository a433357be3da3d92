"""``confide check`` and ``confide test``: the same commands for a person, the README and continuous integration."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence

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

_WORKERS = max(2, min(4, os.cpu_count() or 1))
_MARKERS = ("e2e", "slow", "docker", "network")


def main(argv: Sequence[str]) -> int:
    """Run the static checks and, for ``test``, pytest, whose closing line is the last thing printed."""
    command, *rest = argv
    parser = argparse.ArgumentParser(prog=f"confide {command}", description=__doc__)
    if command == "test":
        parser.add_argument(
            "--mutations", action="store_true", help="make dangerous changes to a copy instead; each must fail a test"
        )
        for marker in _MARKERS:
            parser.add_argument(f"--{marker}", action="store_true", help=f"run the tests marked {marker} instead")
        parser.add_argument("pytest", nargs="*", help="further arguments for pytest, after --")
    arguments = parser.parse_args(rest)
    failed = _run_static()
    if command == "check" or failed:
        print(
            f"confide: {failed} of {len(_STATIC)} static checks failed" if failed else "confide: static checks passed"
        )
        return 1 if failed else 0
    return _run_pytest(arguments)


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


def _run_pytest(arguments: argparse.Namespace) -> int:
    if arguments.mutations:
        return subprocess.run(
            (sys.executable, "-m", "tests.mutation", *arguments.pytest), cwd=ROOT, check=False, env=_environment()
        ).returncode
    chosen = [marker for marker in _MARKERS if getattr(arguments, marker)]
    # One worker runs the deployed systems, one after the other (tests/conftest.py), while others run the rest.
    how = ("-m", " or ".join(chosen)) if chosen else ("-n", str(_WORKERS), "--dist", "loadscope")
    return subprocess.run(
        (sys.executable, "-m", "pytest", *how, *arguments.pytest), cwd=ROOT, check=False, env=_environment()
    ).returncode


def _environment() -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT)}
