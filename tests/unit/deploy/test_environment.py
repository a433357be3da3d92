"""``./confide`` makes its environment with the build of PyTorch that was asked for, from indexes on this machine."""

import base64
import hashlib
import http.server
import os
import platform
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from deploy.development.image_packages import offers

ROOT = Path(__file__).parents[3]
PYTHON = f"cp{sys.version_info.major}{sys.version_info.minor}"
TAG = f"{PYTHON}-{PYTHON}-linux_{platform.machine()}"
PROJECT = '[project]\ndependencies = ["torch==2.0", "torchvision==1.0"]\n'
SAYS_ITS_BUILD = "import torch\n\nprint(torch.__version__)\n"

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux", reason="other systems get PyPI's build, which has no CUDA there"
)


def wheel(folder: Path, name: str, version: str, tag: str = "py3-none-any") -> str:
    """Write a wheel of one module that knows its version; return its SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    about = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": f'__version__ = "{version}"\n',
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    lines = []
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            lines.append(f"{file},sha256={digest},{len(text)}")
            archive.writestr(file, text)
        archive.writestr(f"{about}/RECORD", "\n".join([*lines, f"{about}/RECORD,,"]) + "\n")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def page(folder: Path, digests: dict[str, str]) -> None:
    """Write the page of a simple index for what lies in a folder, with the hash of each file."""
    links = (f'<a href="{file.name}#sha256={digests[file.name]}">{file.name}</a>' for file in folder.glob("*.whl"))
    (folder / "index.html").write_text(f"<html><body>{''.join(links)}</body></html>")


def index(folder: Path, wheels: tuple[tuple[str, str, str], ...]) -> dict[str, str]:
    """Write a simple index; return the hash of each project's file."""
    found = {}
    for name, version, tag in wheels:
        found[name] = wheel(folder / name, name, version, tag)
        page(folder / name, {file.name: found[name] for file in (folder / name).glob("*.whl")})
    return found


@dataclass(frozen=True)
class Place:
    """A copy of ``./confide`` with a lock of three packages, and the address of the two indexes."""

    folder: Path
    address: str

    def run(self, **environment: str) -> tuple[int, str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "CONFIDE_"))}
        done = subprocess.run(
            (str(self.folder / "confide"),),
            cwd=self.folder,
            env={**clean, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1", "PYTHONPATH": "", "no_proxy": "*",
                 "PIP_INDEX_URL": f"{self.address}/pypi", "PYTORCH_INDEX": f"{self.address}/cpu", **environment},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout.strip(), done.stderr


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    if shutil.disk_usage(tmp_path).free < 8e9:
        pytest.skip("./confide asks for 7 GB of disk")
    digests = index(
        tmp_path / "web" / "pypi",
        (("torch", "2.0", TAG), ("torchvision", "1.0", TAG), ("plain", "3.0", "py3-none-any")),
    )
    index(tmp_path / "web" / "cpu", (("torch", "2.0+cpu", TAG), ("torchvision", "1.0+cpu", TAG)))
    project = tmp_path / "project"
    (project / "deploy" / "development").mkdir(parents=True)
    shutil.copy(ROOT / "confide", project / "confide")
    own = "deploy/development/image_packages.py"
    shutil.copy(ROOT / own, project / own)
    (project / "pyproject.toml").write_text(PROJECT)
    versions = {"torch": "2.0", "torchvision": "1.0", "plain": "3.0"}
    entries = (f"{name}=={versions[name]} \\\n    --hash=sha256:{digest}\n" for name, digest in sorted(digests.items()))
    (project / "requirements.lock").write_text("".join(entries))
    (project / "deploy" / "__init__.py").touch()
    (project / "deploy" / "__main__.py").write_text(SAYS_ITS_BUILD)
    handler = partial(_Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Place(project, f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Say nothing."""


@pytest.mark.slow
def test_the_cpu_build_is_taken_where_its_index_answers_and_cuda_on_demand(place: Place) -> None:
    code, build, said = place.run()
    assert (code, build) == (0, "2.0+cpu"), said
    assert "by the hashes that this index names" in said
    assert place.run() == (0, "2.0+cpu", "")
    code, build, said = place.run(CONFIDE_PYTORCH="cuda")
    assert (code, build) == (0, "2.0"), said
    assert place.run() == (0, "2.0", "")  # What was asked for stays until another is.


@pytest.mark.slow
def test_where_the_index_does_not_answer_pypis_build_is_taken_and_that_is_said(place: Place) -> None:
    away = f"{place.address}/away"
    code, build, said = place.run(PYTORCH_INDEX=away)
    assert (code, build) == (0, "2.0"), said
    assert f"{away} did not answer with PyTorch's CPU build: taking PyPI's, with CUDA's libraries" in said
    code, _, said = place.run(PYTORCH_INDEX=away, CONFIDE_PYTORCH="cpu")
    assert code == 1
    assert "CONFIDE_PYTORCH=cpu needs an index with PyTorch's CPU build" in said


@pytest.mark.slow
def test_a_file_of_another_hash_than_the_index_names_is_not_installed(place: Place) -> None:
    cpu = place.folder.parent / "web" / "cpu" / "torch"
    page(cpu, {file.name: "0" * 64 for file in cpu.glob("*.whl")})
    code, _, said = place.run()
    assert code == 1
    assert "the packages could not be installed" in said


def test_an_unknown_build_and_an_environment_that_is_a_link_are_refused_and_left_alone(place: Place) -> None:
    code, _, said = place.run(CONFIDE_PYTORCH="gpu")
    assert (code, said) == (1, "confide: CONFIDE_PYTORCH must be auto, cpu or cuda, got gpu\n")
    other = place.folder.parent / "of-somebody-else"
    other.mkdir()
    (other / "kept.txt").write_text("mine")
    (place.folder / ".venv").symlink_to(other)
    code, _, said = place.run()
    assert code == 1
    assert "is a link and not of this requirements.lock; it is left alone" in said
    assert (other / "kept.txt").read_text() == "mine"


def test_an_index_is_asked_over_tls_or_on_this_machine_and_must_have_each_version(place: Place) -> None:
    assert offers(f"{place.address}/cpu", ("torch==2.0", "torchvision==1.0"), PYTHON)
    assert not offers(f"{place.address}/cpu", ("torch==2.1",), PYTHON)
    assert not offers(f"{place.address}/cpu", ("torch==2.0",), "cp399")
    assert not offers(f"{place.address}/away", ("torch==2.0",), PYTHON)
    assert not offers("http://192.0.2.1/cpu", ("torch==2.0",), PYTHON)
    assert not offers("not an address", ("torch==2.0",), PYTHON)
