"""A hospital's container waits for what it lacks, and says when a mounted policy does not count."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.config import Config, replace
from common.errors import ConfigError, EnrolmentError
from common.settings import HOSPITAL_SETTINGS_FILE, HospitalSettings
from deploy.containers import hospital_container as container


@pytest.fixture
def asked(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(
        state=tmp_path / "state", data=tmp_path / "images", config=tmp_path / "config.yaml", invitation=None,
        metrics_host="127.0.0.1",
    )  # fmt: skip


def test_without_an_invitation_it_says_so_once_and_waits(
    asked: argparse.Namespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    naps: list[float] = []
    answers: Iterator[str] = iter(("an invitation must be given", "an invitation must be given", "it has expired", ""))

    def join(_asked: argparse.Namespace) -> None:
        if words := next(answers):
            raise EnrolmentError(words)

    monkeypatch.setattr(container, "_join", join)
    monkeypatch.setattr(container, "is_enrolled", lambda _state: len(naps) == 3)
    monkeypatch.setattr("deploy.containers.hospital_container.time.sleep", naps.append)
    container._await_membership(asked)
    assert len(naps) == 3
    assert capsys.readouterr().err.splitlines() == [
        "confide: not a member yet, and waiting: an invitation must be given",
        "confide: not a member yet, and waiting: it has expired",
    ]


def test_what_is_wrong_for_good_is_not_waited_for(asked: argparse.Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def join(_asked: argparse.Namespace) -> None:
        raise ConfigError("unknown key")

    monkeypatch.setattr(container, "_join", join)
    with pytest.raises(ConfigError):
        container._await_membership(asked)


@pytest.mark.parametrize(("number", "named"), [(3, ["--name", "hospital-3"]), (None, [])])
def test_it_asks_for_its_containers_number(
    asked: argparse.Namespace, monkeypatch: pytest.MonkeyPatch, number: int | None, named: list[str]
) -> None:
    said: list[str] = []
    monkeypatch.setattr(container, "replica_number", lambda _service: number)
    monkeypatch.setattr("deploy.containers.hospital_container.join.main", said.extend)
    container._join(asked)
    assert said[: 1 + len(named)] == ["join", *named]
    assert ("--name" in said) == bool(named)


def test_a_mounted_policy_that_does_not_reach_the_hospital_is_told(
    asked: argparse.Namespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.yaml"
    own.write_bytes(Config().as_yaml())
    asked.state.mkdir()
    HospitalSettings(fleet_address="server:9092", logs=tmp_path, data=tmp_path, config=own).write(
        asked.state / HOSPITAL_SETTINGS_FILE
    )
    asked.config.write_bytes(Config().as_yaml())
    container._tell_other_policy(asked.state, asked.config)
    assert capsys.readouterr().err == ""
    asked.config.write_bytes(replace(Config(), hospital={"epsilon_budget": 12.0}).as_yaml())
    container._tell_other_policy(asked.state, asked.config)
    told = capsys.readouterr().err
    assert (
        "does not reach a hospital that has joined; epsilon_budget is 10.0, not 12.0. `confide hospital policy" in told
    )
