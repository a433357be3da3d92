"""The server's image has no PyTorch: everything that runs there does so where PyTorch cannot be imported."""

import importlib.metadata
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from common.models.first_model import FIRST_MODEL_FILE
from deploy.audit.verify import find_authority, find_chains, verify
from deploy.development.image_packages import ROLES, needed, read_lock
from deploy.results.model_file import load_model
from tests.support.finished_run import finished_run

ROOT = Path(__file__).parents[3]

_IMPORT_ALL = """
import importlib, pkgutil, server
for found in pkgutil.walk_packages(server.__path__, "server."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
for name in (
    "deploy.cli", "deploy.containers.health", "deploy.containers.server_container", "deploy.consortium.members",
    "deploy.consortium.privacy_plan", "deploy.consortium.runs", "deploy.consortium.server", "deploy.consortium.status",
    "deploy.results.run_folder", "deploy.results.report", "deploy.results.outputs", "deploy.results.plots",
    "deploy.audit.verify", "deploy.audit.evidence",
):
    importlib.import_module(name)
"""


_ONLY_INSTALLED = """
import importlib.machinery, sys
class Installed:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            return None
        return importlib.machinery.PathFinder.find_spec(name, path, target)
sys.meta_path[:] = [Installed if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
"""


@cache
def _missing() -> list[str]:
    """Return the modules of everything that is installed here and not in the server's image."""
    lock = read_lock((ROOT / "requirements.lock").read_text())
    there = {pin.name for pin in needed((ROOT / "pyproject.toml").read_text(), lock, ROLES["server"])}
    return sorted(
        module
        for module, packages in importlib.metadata.packages_distributions().items()
        if module.isidentifier() and not any(name.lower().replace("_", "-") in there for name in packages)
    )


def _without_pytorch(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code where nothing that the server's image lacks can be imported."""
    head = f"MISSING = {_missing()!r}{_ONLY_INSTALLED}"
    return subprocess.run(
        [sys.executable, "-c", head + code, *arguments],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_block_blocks() -> None:
    assert {"torch", "torchvision", "pydicom", "sklearn", "onnx", "pytest"} <= set(_missing())
    for name in ("torch", "pandas", "sympy"):
        assert "ModuleNotFoundError" in _without_pytorch(f"import {name}").stderr


def test_every_module_that_a_server_runs_is_imported_without_pytorch() -> None:
    done = _without_pytorch(_IMPORT_ALL)
    assert done.returncode == 0, done.stderr


def test_presets_of_tasks_are_known_without_pytorch() -> None:
    code = "from deploy.datasets.tasks import task_named; print(task_named('pneumonia').classes)"
    done = _without_pytorch(code)
    assert (done.returncode, done.stdout) == (0, "('normal', 'pneumonia')\n"), done.stderr


def test_a_run_leaves_the_same_model_with_and_without_pytorch(tmp_path: Path) -> None:
    finished = finished_run(tmp_path / "state")
    code = "from deploy.results.run_folder import main; sys.exit(main())"
    done = _without_pytorch(code, str(finished.folder), "--state", str(finished.state))
    assert done.returncode == 0, done.stderr
    left, card = load_model(finished.folder)
    assert verify(finished.folder, find_chains(finished.folder), find_authority(finished.folder)).has_model
    summary = json.loads((finished.folder / "summary.json").read_text())
    assert summary["versions"]["confide"]
    (finished.folder / FIRST_MODEL_FILE).unlink()
    finished.write_results()
    again, card_again = load_model(finished.folder)
    assert np.array_equal(again, left)
    # The bytes of safetensors' own metadata come in no fixed order, so only the file's hash may differ.
    assert card_again.model_copy(update={"sha256": card.sha256}) == card


def test_an_audit_without_pytorch_says_what_it_has_not_made_again(tmp_path: Path) -> None:
    finished = finished_run(tmp_path / "state")
    finished.write_results()
    code = "from deploy.audit.verify import main; sys.exit(main(['verify', sys.argv[1]]))"
    done = _without_pytorch(code, str(finished.folder))
    assert done.returncode == 0, done.stderr
    assert "not made again from its seed, without PyTorch" in done.stdout
    assert done.stdout.splitlines()[-1] == "verified as far as it goes: see above"
    (finished.folder / FIRST_MODEL_FILE).unlink()
    done = _without_pytorch(code, str(finished.folder))
    assert "PyTorch must be installed to make the run's first model again" in done.stderr


@pytest.mark.parametrize("command", ["propose", "initial"])
def test_who_needs_pytorch_says_what_to_do(command: str, tmp_path: Path) -> None:
    code = {
        "propose": "from deploy.consortium.runs import propose_run; from pathlib import Path; "
        "propose_run(Path(sys.argv[1]), Path('config.yaml'))",
        "initial": "from deploy.models.initial import main; main(['initial', '--out', sys.argv[1] + '/made'])",
    }[command]
    done = _without_pytorch(code, str(tmp_path))
    assert done.returncode != 0
    assert "propose the run with --first-model" in done.stderr


def test_the_accountants_say_the_same_without_pytorch() -> None:
    code = (
        "from common.privacy.accounting import *; from common.privacy.calibration import *; "
        "event = MechanismEvent(MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN, 1.1, 0.02, 100); "
        "print([repr(epsilon([event], 1e-5, accountant)) for accountant in Accountant])"
    )
    here = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    done = _without_pytorch(code)
    assert (done.returncode, done.stdout) == (0, here.stdout), done.stderr
