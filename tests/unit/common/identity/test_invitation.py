"""An invitation is one line that survives copying, and nothing else is taken for one."""

import datetime as dt

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import EnrolmentError
from common.identity.invitation import Invitation, join_host_port

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
INVITATION = Invitation("confide.example.org", 9093, b"f" * 32, b"t" * 32, int(NOW.timestamp()), "st-mary")


@given(
    host=st.sampled_from(["confide.example.org", "10.0.0.1", "fd00::1", "a"]),
    port=st.integers(1, 65_535),
    secret=st.binary(min_size=64, max_size=64),
    expires=st.integers(0, 2**33),
    name=st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True),
)
def test_an_invitation_survives_its_encoding(host: str, port: int, secret: bytes, expires: int, name: str) -> None:
    invitation = Invitation(host, port, secret[:32], secret[32:], expires, name)
    assert Invitation.decode(f"  {invitation.encode()}\n") == invitation


@given(st.text(max_size=300) | st.text(alphabet="Aa0_-", max_size=300).map("confide1-".__add__))
def test_any_other_text_is_refused_with_the_one_typed_error(text: str) -> None:
    with pytest.raises(EnrolmentError):
        Invitation.decode(text)


@given(st.integers(0, len(INVITATION.encode()) - 1), st.sampled_from("Ab0_-é"))
def test_a_changed_character_is_noticed_or_changes_what_is_checked(place: int, character: str) -> None:
    line = INVITATION.encode()
    changed = line[:place] + character + line[place + 1 :]
    try:
        decoded = Invitation.decode(changed)
    except EnrolmentError:
        return
    assert changed == line or decoded != INVITATION


@pytest.mark.parametrize("cut", [1, 9, 10, 50, 100])
def test_a_cut_invitation_is_refused(cut: int) -> None:
    with pytest.raises(EnrolmentError):
        Invitation.decode(INVITATION.encode()[:-cut])


def test_an_endless_line_is_refused_without_being_decoded() -> None:
    with pytest.raises(EnrolmentError, match="got 5000009 characters"):
        Invitation.decode("confide1-" + "A" * 5_000_000)


def test_an_expired_invitation_says_so() -> None:
    INVITATION.check_time(NOW - dt.timedelta(seconds=1))
    with pytest.raises(EnrolmentError, match="2026-01-01 00:00 UTC"):
        INVITATION.check_time(NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "two words"},
        {"host": "a" * 300},
        {"port": 0},
        {"token": b"short"},
        {"name": "St Mary"},
        {"expires": -1},
    ],
)
def test_a_field_out_of_range_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(EnrolmentError):
        Invitation.decode(msgspec.structs.replace(INVITATION, **changes).encode())


def test_the_token_is_in_no_repr() -> None:
    assert "t" * 32 not in repr(INVITATION)


def test_an_ipv6_address_is_put_in_brackets() -> None:
    assert join_host_port("fd00::1", 9092) == "[fd00::1]:9092"
    assert join_host_port("10.0.0.1", 9092) == "10.0.0.1:9092"
