"""What the images promise, read from their Dockerfiles; ``tests/e2e/test_compose.py`` looks into running containers."""

import re
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


def test_images_files_and_the_software_are_of_one_version() -> None:
    said = re.compile(r"(?:CONFIDE_VERSION:-|newTag: |confide-(?:server|hospital|dealer):)(\d+\.\d+\.\d+)")
    files = [ROOT / "docker-compose.yml", *(ROOT / "deploy").rglob("*.yml"), *(ROOT / "deploy").rglob("*.yaml")]
    versions = {version for file in files for version in said.findall(file.read_text())}
    assert versions == {confide_version()}


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda file: file.stem)
def test_an_image_is_built_from_the_pinned_base_and_has_a_health_check(dockerfile: Path) -> None:
    shared, role = _parts(dockerfile)
    assert set(re.findall(r"^FROM ([^ ]+:[^ ]+)", shared, re.MULTILINE)) == {"python:3.11-slim-bookworm"}
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
