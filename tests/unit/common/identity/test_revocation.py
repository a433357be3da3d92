"""A revoked hospital is out, a list is never replaced by an older one, and an old list says nothing."""

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from common.errors import IdentityError, StandingError
from common.identity import certificates as identity
from common.identity.revocation import (
    MAXIMUM_LIST_BYTES,
    REVOCATIONS_FILE,
    Revocations,
    sign_revocations,
    verify_revocations,
)

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
AUTHORITY = identity.make_authority("consortium", NOW)
OTHER = identity.make_authority("consortium", NOW)


def issue(name: str, lifetime: dt.timedelta = 30 * DAY) -> x509.Certificate:
    request = identity.request_hospital_certificate(name, Ed25519PrivateKey.generate())
    return identity.sign_hospital_certificate(AUTHORITY, request, name, NOW, lifetime)


MARY, JOHN = issue("st-mary"), issue("st-john")
MEMBERS = {"st-mary": MARY, "st-john": JOHN}


def signed(number: int, *revoked: x509.Certificate, lifetime: dt.timedelta = DAY) -> bytes:
    return sign_revocations(AUTHORITY, {one.serial_number: NOW for one in revoked}, number, NOW, lifetime)


def test_a_list_says_what_was_signed() -> None:
    listed = verify_revocations(signed(7, MARY), AUTHORITY.certificate)
    assert (listed.number, listed.next_update) == (7, NOW + DAY)
    assert listed.revoked == frozenset([MARY.serial_number])


def test_a_revoked_hospital_is_refused_and_the_others_are_not(tmp_path: Path) -> None:
    revocations = Revocations(tmp_path, AUTHORITY.certificate)
    revocations.check(MEMBERS, MEMBERS, NOW)
    revocations.accept(signed(1, MARY))
    revocations.check(MEMBERS, ["st-john"], NOW)
    with pytest.raises(StandingError, match="st-mary is revoked"):
        revocations.check(MEMBERS, MEMBERS, NOW)


def test_a_list_that_another_process_accepted_counts_at_once(tmp_path: Path) -> None:
    agent = Revocations(tmp_path, AUTHORITY.certificate)
    agent.check(MEMBERS, MEMBERS, NOW)
    Revocations(tmp_path, AUTHORITY.certificate).accept(signed(1, MARY))
    with pytest.raises(StandingError):
        agent.check(MEMBERS, MEMBERS, NOW)


def test_an_older_list_does_not_take_a_revocation_back(tmp_path: Path) -> None:
    revocations = Revocations(tmp_path, AUTHORITY.certificate)
    revocations.accept(signed(2, MARY))
    with pytest.raises(IdentityError, match="older than number 2"):
        revocations.accept(signed(1))
    with pytest.raises(StandingError):
        Revocations(tmp_path, AUTHORITY.certificate).check(MEMBERS, MEMBERS, NOW)


def test_a_list_whose_time_is_over_stops_everything(tmp_path: Path) -> None:
    revocations = Revocations(tmp_path, AUTHORITY.certificate)
    revocations.accept(signed(1))
    revocations.check(MEMBERS, MEMBERS, NOW + DAY)
    with pytest.raises(StandingError, match="newer than 2026-01-02"):
        revocations.check(MEMBERS, MEMBERS, NOW + DAY + dt.timedelta(seconds=1))


def test_a_list_that_is_taken_away_is_noticed(tmp_path: Path) -> None:
    revocations = Revocations(tmp_path, AUTHORITY.certificate)
    revocations.accept(signed(1))
    (tmp_path / REVOCATIONS_FILE).unlink()
    with pytest.raises(IdentityError, match="has been removed"):
        revocations.check(MEMBERS, MEMBERS, NOW)


def test_a_certificate_that_expires_during_a_run_is_refused(tmp_path: Path) -> None:
    short = {"st-anne": issue("st-anne", DAY)}
    revocations = Revocations(tmp_path, AUTHORITY.certificate)
    revocations.check(short, short, NOW + DAY)
    with pytest.raises(StandingError, match="st-anne on the roster is not valid now"):
        revocations.check(short, short, NOW + 2 * DAY)


def test_another_authority_s_list_is_refused() -> None:
    forged = sign_revocations(OTHER, {}, 9, NOW, DAY)
    with pytest.raises(IdentityError, match="signed by the consortium's authority"):
        verify_revocations(forged, AUTHORITY.certificate)


@given(st.integers(0, len(signed(1, MARY)) - 1), st.integers(1, 255))
def test_a_list_with_any_byte_changed_is_refused(place: int, change: int) -> None:
    encoded = bytearray(SIGNED)
    encoded[place] ^= change
    with pytest.raises(IdentityError):
        verify_revocations(bytes(encoded), AUTHORITY.certificate)


SIGNED = signed(1, MARY)


@given(st.binary(max_size=500))
def test_bytes_that_are_no_list_are_refused(encoded: bytes) -> None:
    with pytest.raises(IdentityError):
        verify_revocations(encoded, AUTHORITY.certificate)


def test_a_list_that_is_too_long_is_refused_unread() -> None:
    with pytest.raises(IdentityError, match="at most"):
        verify_revocations(bytes(MAXIMUM_LIST_BYTES + 1), AUTHORITY.certificate)
