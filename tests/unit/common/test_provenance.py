import re
import subprocess

import pytest

from common import provenance


def test_versions_name_what_can_change_a_result() -> None:
    told = provenance.versions()
    assert set(told) == {"confide", "commit", "python", "flwr", "torch", "opacus", "numpy", "cryptography"}
    assert told["flwr"] == "1.39.0"


def test_the_commit_says_whether_files_differ_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"rev-parse": "0123456789ab", "status": " M common/config.py"}
    monkeypatch.setattr(provenance, "_git", lambda *arguments: answers[arguments[0]])
    assert provenance.commit() == "0123456789ab+changes"
    answers["status"] = ""
    assert provenance.commit() == "0123456789ab"


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (FileNotFoundError("git"), subprocess.CalledProcessError(128, "git")):

        def fail(*_: str, error: Exception = error) -> str:
            raise error

        monkeypatch.setattr(provenance, "_git", fail)
        assert provenance.commit() == "unknown"


def test_the_machine_is_named_with_its_cores() -> None:
    assert re.search(r", \d+ cores, \w+", provenance.machine())


def test_an_image_tells_the_commit_it_was_built_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(provenance.COMMIT_VARIABLE, "0123456789ab")
    assert provenance.commit() == "0123456789ab"
