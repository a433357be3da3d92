"""What the images promise, read from their Dockerfiles; ``tests/e2e/test_compose.py`` looks into running containers."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCKERFILES = sorted((ROOT / "deploy" / "containers").glob("*.Dockerfile"))
_ROLE = "# ---- the role"


def _parts(dockerfile: Path) -> tuple[str, str]:
    shared, _, role = dockerfile.read_text().partition(_ROLE)
    return shared, role


def test_there_is_one_dockerfile_a_role() -> None:
    assert [file.name.partition(".")[0] for file in DOCKERFILES] == ["dealer", "hospital", "server"]


def test_all_roles_share_the_slow_layers_to_the_letter() -> None:
    assert len({_parts(file)[0] for file in DOCKERFILES}) == 1


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
