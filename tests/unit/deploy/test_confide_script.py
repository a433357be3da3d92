"""``./confide`` makes its environment with the newest Python that it finds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.source_tree import ROOT

SYSTEM, ENVIRONMENT = str(getattr(sys, "_base_executable", "")), sys.executable


def stand_in(folder: Path, name: str, minor: int, real: str = SYSTEM, lacks: str = "") -> None:
    """Put a Python on the path that says it is of another version, and that may lack a module."""
    told = f"import sys; sys.version_info = (3, {minor}, 0, 'final', 0); sys.modules['{lacks or 'none'}'] = None"
    path = folder / name
    path.write_text(f'#!/bin/sh\nexec {real} -c "{told}; exec(sys.argv[1])" "$2"\n')
    path.chmod(0o755)


def chosen(folder: Path) -> str:
    """Return the name that the script's own function chooses with this folder alone on the path."""
    script = (ROOT / "confide").read_text(encoding="utf-8")
    function = re.search(r"^newest_python\(\) \{.*?^\}", script, re.MULTILINE | re.DOTALL)
    assert function is not None
    done = subprocess.run(
        ["/bin/bash", "-c", f"{function[0]}\nnewest_python"],
        env={"PATH": str(folder)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return Path(done.stdout.strip()).name


@pytest.mark.parametrize("names", [("python3.11", "python3.12", "python3.13"), ("python3.11", "python3.13")])
def test_the_newest_of_several_is_taken(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        stand_in(tmp_path, name, int(name.removeprefix("python3.")))
    assert chosen(tmp_path) == "python3.13"


def test_a_name_is_not_believed(tmp_path: Path) -> None:
    stand_in(tmp_path, "python3.13", 10)
    stand_in(tmp_path, "python3", 12)
    assert chosen(tmp_path) == "python3"


def test_one_that_makes_environments_is_taken_before_a_newer_one_that_does_not(tmp_path: Path) -> None:
    stand_in(tmp_path, "python3.13", 13, lacks="ensurepip")
    assert chosen(tmp_path) == "python3.13"
    stand_in(tmp_path, "python3.12", 12)
    assert chosen(tmp_path) == "python3.12"


@pytest.mark.parametrize("minor", [10, 14])
def test_a_version_without_locked_packages_is_not_taken(tmp_path: Path, minor: int) -> None:
    stand_in(tmp_path, "python3", minor)
    assert chosen(tmp_path) == ""


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="the tests do not run in an environment")
def test_an_environments_own_python_is_passed_over(tmp_path: Path) -> None:
    stand_in(tmp_path, "python3.13", 13, real=ENVIRONMENT)
    assert chosen(tmp_path) == ""
