"""``confide test``: which tests it runs."""

import subprocess
from pathlib import Path
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
    assert all((ROOT / path).exists() for path in ignored)
    assert started[-1][-2:] == ("-k", "hosts")
    chosen = started[-1][started[-1].index("-m", 2) + 1]
    assert set(chosen.split(" and ")) == {f"not {mark}" for mark in ("e2e", "slow", "docker", "network", "long")}
    assert "advisories" not in {line[-1] for line in started}


def test_a_run_by_marker_takes_those_tests_alone(started: list[tuple[str, ...]]) -> None:
    assert checks.test(["test", "--slow", "--docker"]) == 0
    assert started[-1][3:] == ("-m", "slow or docker")


def test_every_run_begins_with_the_static_checks(started: list[tuple[str, ...]]) -> None:
    assert checks.test(["test"]) == 0
    static = started[: len((*checks._STATIC, *checks._NETWORK))]  # They run side by side.
    assert "advisories" in {line[-1] for line in static}
    assert {"ruff", "mypy"} <= {line[2] for line in static}
    assert "pytest" not in {line[2] for line in static}
    assert started[len(static)][2] == "pytest"
    assert checks.check(["check"]) == 0


def test_tests_write_to_memory_where_there_is_room_and_leave_nothing_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_ROOM_BYTES", 1)
    with checks.scratch(tmp_path) as options:
        assert options[0] == "--basetemp"
        assert tmp_path in Path(options[1]).parents
        assert Path(options[1]).parent.is_dir()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(checks, "_ROOM_BYTES", 2**80)
    with checks.scratch(tmp_path) as options:
        assert options == ()
    with checks.scratch(tmp_path / "missing") as options:
        assert options == ()


def test_fast_goes_with_no_other_choice(started: list[tuple[str, ...]]) -> None:
    with pytest.raises(ConfigError, match="--fast"):
        checks.test(["test", "--fast", "--slow"])
    assert started == []
