"""``confide test``: which tests it runs."""

import subprocess
from typing import Any

import pytest

from common.errors import ConfigError
from deploy.development import checks
from deploy.source_tree import ROOT


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Command lines of what would be started; each succeeds."""
    lines: list[tuple[str, ...]] = []

    def run(command: tuple[str, ...], **_: Any) -> subprocess.CompletedProcess[str]:  # noqa: ANN401 - as subprocess.run
        lines.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return lines


def test_a_fast_run_leaves_out_whole_systems_and_nothing_that_is_not_there(started: list[tuple[str, ...]]) -> None:
    assert checks.test(["test", "--fast", "--", "-k", "hosts"]) == 0
    ignored = [word.removeprefix("--ignore=") for word in started[-1] if word.startswith("--ignore=")]
    assert "tests/e2e" in ignored
    assert all((ROOT / folder).is_dir() for folder in ignored)
    assert started[-1][-2:] == ("-k", "hosts")


def test_a_run_by_marker_takes_those_tests_alone(started: list[tuple[str, ...]]) -> None:
    assert checks.test(["test", "--slow", "--docker"]) == 0
    assert started[-1][3:] == ("-m", "slow or docker")


def test_every_run_begins_with_the_static_checks(started: list[tuple[str, ...]]) -> None:
    assert checks.test(["test"]) == 0
    assert [line[2] for line in started[:3]] == ["ruff", "ruff", "mypy"]
    assert checks.check(["check"]) == 0


def test_fast_goes_with_no_other_choice(started: list[tuple[str, ...]]) -> None:
    with pytest.raises(ConfigError, match="--fast"):
        checks.test(["test", "--fast", "--slow"])
    assert started == []
