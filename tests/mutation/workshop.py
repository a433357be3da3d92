"""Makes one change at a time to a copy of the source tree, and runs the tests that must notice it there.

The working tree is never touched. A change counts as killed only by a test that passes without it.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.mutation.mutations import Mutation

ROOT = Path(__file__).parents[2]

_COPIED = ("common", "client", "server", "deploy", "tests", "config.yaml", "pyproject.toml")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", ".hypothesis", ".pytest_cache")

_SECONDS = 900
"""For the tests of one mutation; a change that makes them hang is killed by no name, which is a failure."""

_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+::\S+)", re.MULTILINE)

_PASSED, _SOME_FAILED = 0, 1
"""Exit codes of pytest; every other one says that the tests could not be run."""


class BrokenError(Exception):
    """Tests fail on the source as it is, or cannot be run at all; nothing is said about a mutation."""


@dataclass(frozen=True)
class Verdict:
    """What became of a mutation; ``killer`` is the test that failed, None where it survived."""

    mutation: Mutation
    killer: str | None


class Workshop:
    """A copy of the source tree on which mutations are tried."""

    def __init__(self, copy: Path) -> None:
        self._copy = copy
        self._sound: set[str] = set()

    @classmethod
    @contextmanager
    def opened(cls) -> Iterator["Workshop"]:
        """Copy the tree; the copy is gone at the end, however that comes."""
        with tempfile.TemporaryDirectory(prefix="confide-mutations-") as folder:
            copy = Path(folder)
            for name in _COPIED:
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, copy / name, ignore=_LEFT_OUT)
                else:
                    shutil.copy2(ROOT / name, copy / name)
            yield cls(copy)

    def require_sound(self, mutations: Iterable[Mutation]) -> None:
        """Run every test that the mutations name on the source as it is, each once.

        Raises:
            BrokenError: one fails.
        """
        named = sorted({test for mutation in mutations for test in mutation.tests} - self._sound)
        if not named:
            return
        code, output = self._pytest(named)
        if code != _PASSED:
            failing = ", ".join(_FAILED.findall(output)) or output[-2000:]
            raise BrokenError(f"these tests must pass on the source as it is before mutations are tried: {failing}")
        self._sound.update(named)

    def tried(self, mutation: Mutation) -> Verdict:
        """Make the change, run its tests, and take it back.

        Raises:
            ValueError: the change no longer fits the source.
            BrokenError: its tests fail without it, or cannot be run with it.
        """
        self.require_sound([mutation])
        path = self._copy / mutation.file
        source = path.read_text(encoding="utf-8")
        path.write_text(mutation.applied(source), encoding="utf-8")
        try:
            code, output = self._pytest(mutation.tests)
        finally:
            path.write_text(source, encoding="utf-8")
        failed = _FAILED.findall(output)
        if code == _PASSED:
            return Verdict(mutation, None)
        if code != _SOME_FAILED or not failed:
            raise BrokenError(f"the tests of mutation {mutation.name!r} could not be run:\n{output[-2000:]}")
        return Verdict(mutation, failed[0])

    def _pytest(self, tests: Iterable[str]) -> tuple[int, str]:
        """Run tests in the copy, in a process group of their own, which does not outlive this call."""
        # Bytecode is left out: a file that is changed and changed back within a second would look the same to Python.
        environment = {**os.environ, "PYTHONPATH": str(self._copy), "PYTHONDONTWRITEBYTECODE": "1"}
        environment.setdefault("OMP_NUM_THREADS", "1")
        process = subprocess.Popen(
            (sys.executable, "-m", "pytest", "-x", "-n", "0", "-p", "no:cacheprovider", "--tb=line", *tests),
            cwd=self._copy,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            return -1, f"not finished after {_SECONDS} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return process.returncode, output
