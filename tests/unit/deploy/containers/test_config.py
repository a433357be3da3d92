"""A configuration that a container cannot read ends it with one line, and not with a stack trace."""

import errno
from pathlib import Path

import pytest

from common.config import load_config
from common.errors import ConfigError
from common.processes import EXIT_REFUSED
from deploy.containers import hospital_container, server_container


@pytest.mark.parametrize("container", [server_container, hospital_container])
def test_a_container_without_a_readable_configuration_says_so_in_one_line(
    container: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "config.yaml"
    monkeypatch.setattr("sys.argv", ["container", "--state", str(tmp_path / "state"), "--config", str(missing)])
    monkeypatch.setattr(f"{container.__name__}.raise_on_signals", lambda: None)  # type: ignore[attr-defined]
    assert container.main() == EXIT_REFUSED  # type: ignore[attr-defined]
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"confide: the configuration must be a readable file; {missing}: No such file or directory"
    assert not (tmp_path / "state").exists()


def test_a_configuration_that_is_its_owners_alone_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path, **_: str) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(ConfigError, match=r"Permission denied; .*chmod a\+r"):
        load_config(tmp_path / "config.yaml")
