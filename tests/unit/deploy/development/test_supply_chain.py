"""Known vulnerabilities and secrets fail the checks; advisory data that cannot be had is said and passes."""

import json
import subprocess
from collections.abc import Callable

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


def test_a_secret_under_version_control_is_found_with_its_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = {"deploy/x.py": [{"type": "Private Key", "line_number": 7}]}
    monkeypatch.setattr(subprocess, "run", answering(json.dumps({"results": results})))
    assert supply_chain.main(["secrets"]) == 1
    assert capsys.readouterr().out == "deploy/x.py:7: Private Key\n"
