"""A token works once, for its time, and only its hash is on disk."""

import datetime as dt
from pathlib import Path

import pytest

from common.errors import EnrolmentError, IdentityError
from server.members.roster import INVITATIONS_FOLDER, Membership

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
SOON = NOW + dt.timedelta(hours=1)


def test_a_token_lets_one_key_in_and_answers_it_again(tmp_path: Path) -> None:
    members = Membership(tmp_path)
    token = members.invite("st-mary", SOON)
    assert members.take(token, "key", NOW) == "st-mary"
    assert members.take(token, "key", NOW + dt.timedelta(days=2)) == "st-mary"
    with pytest.raises(EnrolmentError, match="has been used"):
        members.take(token, "another key", NOW)


def test_a_token_expires(tmp_path: Path) -> None:
    members = Membership(tmp_path)
    token = members.invite("st-mary", SOON)
    with pytest.raises(EnrolmentError, match="expired"):
        members.take(token, "key", SOON)


def test_an_invented_token_is_refused(tmp_path: Path) -> None:
    members = Membership(tmp_path)
    members.invite("st-mary", SOON)
    with pytest.raises(EnrolmentError, match="of an invitation"):
        members.take(b"x" * 32, "key", NOW)


@pytest.mark.usefixtures("open_umask")
def test_nothing_on_disk_holds_a_token(tmp_path: Path) -> None:
    token = Membership(tmp_path).invite("st-mary", SOON)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".json"]) == 1
    for path in files:
        written = path.name.encode() + path.read_bytes()
        assert token not in written
        assert token.hex().encode() not in written
        assert path.stat().st_mode & 0o077 == 0


def test_a_group_s_hospitals_are_numbered(tmp_path: Path) -> None:
    members = Membership(tmp_path)
    token = members.invite("hospital", SOON, group=2)
    assert [members.take(token, key, NOW) for key in ("a", "b", "a")] == ["hospital-1", "hospital-2", "hospital-1"]
    with pytest.raises(EnrolmentError, match="has been used"):
        members.take(token, "c", NOW)
    assert members.take(members.invite("hospital", SOON, group=1), "c", NOW) == "hospital-3"


def test_a_group_s_hospital_gets_the_number_that_it_asks_for_if_nobody_has_had_it(tmp_path: Path) -> None:
    members = Membership(tmp_path)
    token = members.invite("hospital", SOON, group=8)
    asked = (("a", "hospital-3"), ("b", "hospital-3"), ("c", ""), ("d", "hospital-2"), ("a", "hospital-7"))
    assert [members.take(token, key, NOW, wish) for key, wish in asked] == [
        "hospital-3", "hospital-1", "hospital-2", "hospital-4", "hospital-3",
    ]  # fmt: skip
    members.remove("hospital-3")
    assert members.take(token, "e", NOW, "hospital-3") == "hospital-5"


@pytest.mark.parametrize(
    "wish", ["st-mary", "hospital", "hospital-0", "hospital-01", "hospital-1025", "hospital-²", "hospital--3", "-3"]
)
def test_a_wish_for_a_name_that_is_none_of_the_group_s_is_not_heard(tmp_path: Path, wish: str) -> None:
    members = Membership(tmp_path)
    assert members.take(members.invite("hospital", SOON, group=2), "a", NOW, wish) == "hospital-1"


def test_who_is_invited_by_name_gets_no_other(tmp_path: Path) -> None:
    members = Membership(tmp_path)
    assert members.take(members.invite("st-mary", SOON), "a", NOW, "st-mary-2") == "st-mary"


def test_a_member_s_name_is_not_given_twice(tmp_path: Path) -> None:
    members = Membership(tmp_path)
    members.admit("st-mary", b"certificate", b"key")
    with pytest.raises(EnrolmentError, match="a member already"):
        members.invite("st-mary", SOON)


def test_a_removed_hospital_s_invitation_opens_nothing(tmp_path: Path) -> None:
    members = Membership(tmp_path)
    used, unused = members.invite("st-mary", SOON), members.invite("st-mary", SOON)
    group = members.invite("hospital", SOON, group=2)
    members.admit(members.take(used, "key", NOW), b"certificate", b"supernode")
    members.admit(members.take(group, "other", NOW), b"certificate", b"supernode")
    assert members.remove("st-mary")
    assert members.remove("hospital-1")
    assert (members.roster(), members.supernode_keys()) == ({}, {})
    for token, key in ((used, "key"), (unused, "key"), (group, "other")):
        with pytest.raises(EnrolmentError):
            members.take(token, key, NOW)
    assert members.take(group, "third", NOW) == "hospital-2"
    assert not members.remove("st-mary")


def test_a_renewed_certificate_replaces_the_old_one_and_leaves_the_supernode_s_key(tmp_path: Path) -> None:
    members = Membership(tmp_path)
    members.admit("st-mary", b"old", b"supernode")
    members.admit("st-mary", b"new")
    assert members.roster() == {"st-mary": "new"}
    assert members.supernode_keys() == {"st-mary": b"supernode"}


def test_old_invitations_are_forgotten(tmp_path: Path) -> None:
    members = Membership(tmp_path)
    members.invite("st-mary", SOON)
    members.forget_expired(SOON + dt.timedelta(days=6))
    assert list((tmp_path / INVITATIONS_FOLDER).glob("*.json"))
    members.forget_expired(SOON + dt.timedelta(days=8))
    assert not list((tmp_path / INVITATIONS_FOLDER).glob("*.json"))


@pytest.mark.parametrize(("name", "group"), [("St Mary", None), ("../up", None), ("a" * 60, 3)])
def test_a_name_that_is_no_hospital_s_is_refused(tmp_path: Path, name: str, group: int | None) -> None:
    with pytest.raises(IdentityError):
        Membership(tmp_path).invite(name, SOON, group)


@pytest.mark.parametrize("group", [0, 1025])
def test_a_group_of_a_size_that_cannot_be_is_refused(tmp_path: Path, group: int) -> None:
    with pytest.raises(EnrolmentError, match="1 to 1024"):
        Membership(tmp_path).invite("hospital", SOON, group)
