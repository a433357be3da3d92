"""Where the authority's key lies is a choice by name, and a server says which was made."""

from pathlib import Path

import pytest

from common.errors import ConfigError
from common.identity.certificates import held_by_server, load_certificate
from common.settings import SERVER_SETTINGS_FILE, ServerSettings
from deploy.consortium import authority, server
from deploy.consortium import members as membership


def prepare(state: Path, *arguments: str) -> int:
    return server.main(["server", "--state", str(state), "--address", "localhost", "--no-start", *arguments])


def test_a_server_is_told_where_the_authoritys_key_is_before_it_makes_anything(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="confide ca make"):
        prepare(tmp_path / "server")
    assert not (tmp_path / "server").exists()


def test_a_server_that_holds_the_key_says_so_and_so_does_its_invitation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "server"
    assert prepare(state, "--hold-authority-key") == 0
    assert "the server holds the authority's key" in " ".join(capsys.readouterr().err.split())
    assert held_by_server(load_certificate(state / "ca.pem"))
    membership.invite(["invite", "st-mary", "--state", str(state)])
    assert "the server holds the authority's key" in " ".join(capsys.readouterr().err.split())


def test_a_later_start_needs_no_choice_and_keeps_the_first(tmp_path: Path) -> None:
    state = tmp_path / "server"
    prepare(state, "--hold-authority-key")
    before = load_certificate(state / "ca.pem")
    assert prepare(state) == 0
    assert load_certificate(state / "ca.pem") == before
    assert ServerSettings.read(state / SERVER_SETTINGS_FILE).authority == state / "authority"


def test_a_key_that_was_made_to_be_kept_elsewhere_is_not_used_on_a_server(tmp_path: Path) -> None:
    state = tmp_path / "server"
    authority.main(["ca", "--ca", str(state / "authority"), "make"])
    with pytest.raises(ConfigError, match="was made to be kept elsewhere"):
        prepare(state, "--hold-authority-key")


def test_a_server_does_not_change_its_authority(tmp_path: Path) -> None:
    state = tmp_path / "server"
    prepare(state, "--hold-authority-key")
    authority.main(["ca", "--ca", str(tmp_path / "certs"), "make"])
    with pytest.raises(ConfigError, match="hospitals know only the first"):
        prepare(state, "--authority", str(tmp_path / "certs" / "ca.pem"))
