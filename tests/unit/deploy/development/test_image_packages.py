from pathlib import Path

from deploy.development.image_packages import needed, pytorch, read_lock, without_pytorch

ROOT = Path(__file__).parents[4]

PROJECT = '[project]\ndependencies = ["torch==2.0", "rich", "streamlit"]\n'
LOCK = """\
# made by uv
altair==6.0 \\
    --hash=sha256:aa
    # via streamlit
nvidia-cudnn-cu13==9.0 \\
    --hash=sha256:bb
    # via torch
pytest==8.0 \\
    --hash=sha256:cc
    # via -r all.in
rich==14.0 \\
    --hash=sha256:dd \\
    --hash=sha256:de
    # via
    #   -r all.in
    #   flwr
streamlit==1.0 \\
    --hash=sha256:ee
    # via -r all.in
sympy==1.14 \\
    --hash=sha256:ff
    # via
    #   pytest
    #   torch
torch==2.0 \\
    --hash=sha256:11
    # via -r all.in
"""


def _names(lock: str, project: str) -> list[str]:
    return [pin.name for pin in needed(project, read_lock(lock))]


def test_an_image_gets_the_projects_own_packages_and_what_these_need() -> None:
    assert _names(LOCK, PROJECT) == ["nvidia-cudnn-cu13", "rich", "sympy", "torch"]


def test_every_hash_of_a_package_is_kept() -> None:
    rich = next(pin for pin in read_lock(LOCK) if pin.name == "rich")
    assert rich.text == "rich==14.0 \\\n    --hash=sha256:dd \\\n    --hash=sha256:de"


def test_another_build_of_pytorch_needs_its_version_and_none_of_cudas_libraries() -> None:
    pins = needed(PROJECT, read_lock(LOCK))
    assert [pin.name for pin in without_pytorch(pins)] == ["rich", "sympy"]
    assert pytorch(pins) == ("torch==2.0",)


def test_the_projects_own_lock_has_what_a_hospital_imports_and_no_tool_of_development() -> None:
    names = set(_names((ROOT / "requirements.lock").read_text(), (ROOT / "pyproject.toml").read_text()))
    assert {"flwr", "torch", "opacus", "grpcio", "cryptography", "pydicom", "prometheus-client", "sympy"} <= names
    assert names.isdisjoint({"pytest", "ruff", "mypy", "streamlit", "docker", "hypothesis"})
