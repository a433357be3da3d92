import grp
import os
import pwd
import stat
from pathlib import Path

import pytest

from client.__main__ import _commands, _hand_over
from common.config import Config
from common.errors import ConfigError
from common.settings import HOSPITAL_SETTINGS_FILE, HospitalSettings, free_port


def _state(folder: Path) -> Path:
    (folder / "relay").mkdir(mode=0o700)
    (folder / "config.yaml").write_bytes(Config().as_yaml())
    HospitalSettings(
        fleet_address="server:9092",
        logs=folder / "logs",
        data=folder / "shard",
        config=folder / "config.yaml",
        runtime_port=free_port(),
        metrics_port=0,
    ).write(folder / HOSPITAL_SETTINGS_FILE)
    return folder


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_relays_group_reads_its_folder_writes_flowers_and_nothing_is_open_to_others(tmp_path: Path) -> None:
    relay = tmp_path / "relay"
    relay.mkdir(mode=0o700)
    (relay / "supernode.key").write_text("key")
    (relay / "supernode.key").chmod(0o600)
    _hand_over(relay, os.getgid())
    assert (_mode(relay), _mode(relay / "supernode.key"), _mode(relay / "flower")) == (0o750, 0o640, 0o770)


def test_a_supernode_is_told_all_it_needs_on_its_command_line(tmp_path: Path) -> None:
    state = _state(tmp_path)
    supernode = next(command for command in _commands(state, None) if command.name == "supernode")
    assert "server:9092" in supernode.arguments
    given = [argument for argument in supernode.arguments if argument.startswith(str(state))]
    assert given == [str(state / "relay")]
    assert (supernode.user, supernode.group) == (None, None)


def test_a_relay_user_gets_the_supernode_and_no_other_process(tmp_path: Path) -> None:
    user = pwd.getpwuid(os.getuid())
    commands = {command.name: command for command in _commands(_state(tmp_path), user.pw_name)}
    assert commands["supernode"].user == user.pw_uid
    assert commands["agent"].user is None
    assert (tmp_path / "relay").stat().st_gid == user.pw_gid


def test_a_relay_user_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a user of this machine"):
        _commands(_state(tmp_path), "nobody-of-that-name")


@pytest.mark.skipif(os.getuid() == 0, reason="root may give files to any group")
def test_a_group_this_user_is_not_in_is_refused(tmp_path: Path) -> None:
    relay = tmp_path / "relay"
    relay.mkdir()
    other = next(group.gr_gid for group in grp.getgrall() if group.gr_gid not in os.getgroups())
    with pytest.raises(ConfigError, match="must be handed over"):
        _hand_over(relay, other)
