"""Known vulnerabilities and secrets fail the checks; advisory data that cannot be had is said and passes."""

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from deploy.development import supply_chain

Answer = Callable[..., subprocess.CompletedProcess[str]]


def answering(stdout: str, stderr: str = "", code: int = 0) -> Answer:
    return lambda *_, **__: subprocess.CompletedProcess((), code, stdout, stderr)


def test_a_known_vulnerability_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = {"id": "CVE-2099-1", "fix_versions": ["2.0"], "aliases": []}
    packages = [{"name": "left", "version": "1.0", "vulns": [found]}, {"name": "right", "version": "1", "vulns": []}]
    monkeypatch.setattr(subprocess, "run", answering(json.dumps({"dependencies": packages}), code=1))
    assert supply_chain.main(["advisories"]) == 1
    assert capsys.readouterr().out == "left 1.0: CVE-2099-1; fixed in 2.0\n"


@pytest.mark.parametrize(
    ("stdout", "stderr"),
    [
        ("", "ERROR: could not reach the service"),
        (json.dumps({"dependencies": [{"name": "left", "version": "1.0", "skip_reason": "not found"}]}), ""),
    ],
)
def test_without_advisory_data_the_check_says_so(
    stdout: str, stderr: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subprocess, "run", answering(stdout, stderr))
    assert supply_chain.main(["advisories"]) == 0
    assert capsys.readouterr().out.startswith("skipped: no advisory data")


def test_a_service_that_does_not_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hang(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("pip-audit", 45)

    monkeypatch.setattr(subprocess, "run", hang)
    assert supply_chain.main(["advisories"]) == 0
    assert capsys.readouterr().out.startswith("skipped")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    return tmp_path


def git(root: Path, *arguments: str) -> None:
    subprocess.run(("git", *arguments), cwd=root, check=True)


def commit_file(root: Path, name: str, text: str) -> None:
    (root / name).write_text(text)
    git(root, "add", "--", name)


# In two parts, so that this file is searched as well.
SECRET = "-----BEGIN RSA " + "PRIVATE KEY-----\n"


def test_a_secret_under_version_control_is_found_with_its_place(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit_file(repository, "clean.py", "x = 1\n")
    commit_file(repository, "-x.py", "# a key\n" + SECRET)
    for _ in range(2):  # It is found again, although its neighbour is not searched again.
        assert supply_chain.check_secrets(repository) == 1
        assert capsys.readouterr().out == "-x.py:2: Private Key\n"


def test_a_file_is_searched_again_once_it_has_changed_and_not_before(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[list[str]] = []
    run = supply_chain._run

    def noting(
        command: Sequence[str], *, root: Path, longest_seconds: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        if "scan" in command:
            searched.append(list(command[command.index("--") + 1 :]))
        return run(command, root=root, longest_seconds=longest_seconds)

    monkeypatch.setattr(supply_chain, "_run", noting)
    commit_file(repository, "a.py", "x = 1\n")
    commit_file(repository, "b.py", "x = 1\n")
    (repository / "not-committed.py").write_text(SECRET)
    assert supply_chain.check_secrets(repository) == 0
    assert supply_chain.check_secrets(repository) == 0
    assert searched == [["a.py", "b.py"]]
    (repository / "a.py").write_text("x = 1\n" + SECRET)
    assert supply_chain.check_secrets(repository) == 1
    assert searched[1:] == [["a.py"]]
    assert capsys.readouterr().out == "a.py:2: Private Key\n"
    (repository / ".secrets_cache/clean.json").write_text("[{")
    assert supply_chain.check_secrets(repository) == 1
    assert searched[2:] == [["a.py", "b.py"]]


def test_where_nothing_is_under_version_control_the_check_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert supply_chain.check_secrets(tmp_path) == 0
    assert capsys.readouterr().out.startswith("skipped: ")
