"""What the images promise, read from their Dockerfiles; ``tests/e2e/test_compose.py`` looks into running containers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from common.provenance import confide_version
from deploy.development.image_packages import ROLES

ROOT = Path(__file__).parents[3]
DOCKERFILES = sorted((ROOT / "deploy" / "containers").glob("*.Dockerfile"))
_ROLE = "# ---- the role"


def _parts(dockerfile: Path) -> tuple[str, str]:
    shared, _, role = dockerfile.read_text().partition(_ROLE)
    return shared, role


def test_there_is_one_dockerfile_a_role() -> None:
    assert [file.name.partition(".")[0] for file in DOCKERFILES] == ["dealer", "hospital", "server"]


def test_all_roles_have_the_same_slow_layers_but_for_their_packages() -> None:
    heads = [_parts(file)[0].partition("\n") for file in DOCKERFILES]
    assert [first for first, _, _ in heads] == ["ARG ROLE=dealer", "ARG ROLE=hospital", "ARG ROLE=server"]
    assert len({rest for _, _, rest in heads}) == 1


def test_only_a_hospitals_image_has_pytorch() -> None:
    assert {name: role.has_pytorch for name, role in ROLES.items()} == {
        "server": False, "hospital": True, "dealer": False,
    }  # fmt: skip


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda file: file.stem)
def test_an_image_imports_what_it_runs_before_it_is_done_and_says_what_it_is(dockerfile: Path) -> None:
    _, role = _parts(dockerfile)
    assert re.search(r'^RUN (PYTHONDONTWRITEBYTECODE= )?python -c "import ', role, re.MULTILINE)
    labels = {"title", "description", "licenses", "version", "revision"}
    assert set(re.findall(r"org\.opencontainers\.image\.([a-z]+)=", role)) == labels


def test_the_hospitals_image_has_the_code_that_makes_a_runs_first_model_and_trains_alone(tmp_path: Path) -> None:
    shared, role = _parts(ROOT / "deploy" / "containers" / "hospital.Dockerfile")
    for copied in re.findall(r"^COPY --chmod=0755 (.+)$", shared.rpartition("FROM ")[2] + role, re.MULTILINE):
        *sources, target = copied.split()
        for source in sources:
            place = tmp_path / target / Path(source).name if target.endswith("/") else tmp_path / source
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(ROOT / source)
    command = (
        sys.executable,
        "-c",
        "import deploy.models.initial, deploy.hospital.alone, server; print(server.__path__)",
    )
    environment = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "server") in done.stdout  # and not this source tree's


def test_images_files_and_the_software_are_of_one_version() -> None:
    said = re.compile(r"(?:CONFIDE_VERSION:-|newTag: |confide-(?:server|hospital|dealer):)(\d+\.\d+\.\d+)")
    files = [ROOT / "docker-compose.yml", *(ROOT / "deploy").rglob("*.yml"), *(ROOT / "deploy").rglob("*.yaml")]
    versions = {version for file in files for version in said.findall(file.read_text())}
    assert versions == {confide_version()}


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda file: file.stem)
def test_an_image_is_built_from_one_base_that_can_be_pinned_and_has_a_health_check(dockerfile: Path) -> None:
    shared, role = _parts(dockerfile)
    assert re.findall(r"^ARG BASE=(.+)$", shared, re.MULTILINE) == ["python:3.11-slim-bookworm"]
    assert set(re.findall(r"^FROM ([^ \n]+)", shared, re.MULTILINE)) == {"$BASE"}
    assert "HEALTHCHECK" in role


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda file: file.stem)
def test_no_role_runs_as_root(dockerfile: Path) -> None:
    _, role = _parts(dockerfile)
    assert re.search(r"^USER (server|dealer)$", role, re.MULTILINE) or "--reuid=hospital" in role


def test_images_are_built_from_code_and_the_lock_alone() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines
    assert kept == {"client", "common", "server", "deploy", "pyproject.toml", "requirements.lock"}
