"""The member list is the authority's, has one encoding, and is never replaced by an older one or by another."""

import datetime as dt
import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from common.config import MOST_HOSPITALS
from common.errors import IdentityError, StandingError
from common.identity import certificates as identity
from common.identity.members import (
    CONTRADICTION_FILE,
    MAXIMUM_MEMBERS_BYTES,
    MEMBERS_FILE,
    KeptMembers,
    sign_members,
    verify_members,
)
from common.identity.revocation import sign_revocations, verify_revocations

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
AUTHORITY = identity.make_authority("consortium", NOW)
OTHER = identity.make_authority("consortium", NOW)


def key_of(number: int) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big")).public_key().public_bytes_raw()


MEMBERS = {"st-mary": key_of(1), "st-john": key_of(2), "st-anne": key_of(3)}
SIGNED = sign_members(AUTHORITY, MEMBERS, 7, NOW)


def resigned(change: Callable[[dict[str, Any]], None]) -> bytes:
    """Return a list that the authority signed as it never would, in the encoding it would have."""
    listed = json.loads(SIGNED)["list"]
    change(listed)
    body = json.dumps(listed, separators=(",", ":"), sort_keys=True).encode()
    mark = b"confide member list 1\0" + AUTHORITY.certificate.fingerprint(hashes.SHA256())
    signature = AUTHORITY.key.sign(mark + hashlib.sha256(body).digest()).hex()
    return b'{"list":' + body + b',"signature":"' + signature.encode() + b'"}'


def test_a_list_says_what_was_signed() -> None:
    listed = verify_members(SIGNED, AUTHORITY.certificate)
    assert (listed.number, listed.issued, listed.members) == (7, NOW, MEMBERS)
    assert listed.text().encode() == SIGNED
    assert list(listed.members) == sorted(MEMBERS)
    assert resigned(lambda _listed: None) == SIGNED


def test_the_same_members_give_the_same_bytes_in_any_order() -> None:
    assert sign_members(AUTHORITY, dict(reversed(MEMBERS.items())), 7, NOW) == SIGNED


def test_the_largest_consortium_fits() -> None:
    names = {f"{number:04d}-" + "x" * 58: key_of(number + 1) for number in range(MOST_HOSPITALS)}
    encoded = sign_members(AUTHORITY, names, 1, NOW)
    assert len(encoded) < MAXIMUM_MEMBERS_BYTES
    assert verify_members(encoded, AUTHORITY.certificate).members == names
    with pytest.raises(IdentityError, match="at most 1024 members"):
        sign_members(AUTHORITY, {**names, "one-more": key_of(5000)}, 1, NOW)


@pytest.mark.parametrize(
    "change",
    [
        lambda listed: listed.update(number=0),
        lambda listed: listed.update(number=2**53),
        lambda listed: listed.update(version=2),
        lambda listed: listed.update(more=1),
        lambda listed: listed.pop("issued"),
        lambda listed: listed["members"].update({"St-Mary": key_of(9).hex()}),
        lambda listed: listed["members"].update({"st-mary\n": key_of(9).hex()}),
        lambda listed: listed["members"].update({"st-luke": key_of(9).hex().upper()}),
        lambda listed: listed["members"].update({"st-luke": key_of(9).hex()[:-2]}),
        lambda listed: listed["members"].update({"st-luke": key_of(1).hex()}),
        lambda listed: listed["members"].update({"st-luke": "01" + "00" * 31}),
    ],
)
def test_what_breaks_a_rule_is_refused_although_the_authority_signed_it(
    change: Callable[[dict[str, Any]], None],
) -> None:
    with pytest.raises(IdentityError):
        verify_members(resigned(change), AUTHORITY.certificate)


def test_a_list_of_another_authority_of_the_same_name_is_refused() -> None:
    with pytest.raises(IdentityError, match="signed by the consortium's authority"):
        verify_members(SIGNED, OTHER.certificate)


def test_another_certificate_of_the_same_key_has_lists_of_its_own() -> None:
    renewed = identity.CertificateAuthority(identity.make_authority("x", NOW).certificate, AUTHORITY.key)
    with pytest.raises(IdentityError):
        sign_members(renewed, MEMBERS, 7, NOW)


def test_neither_lists_signature_passes_for_the_others() -> None:
    revocations = verify_revocations(sign_revocations(AUTHORITY, {}, 1, NOW, DAY, 7), AUTHORITY.certificate)
    assert revocations.members_number == 7
    for encoded in (revocations.encoded, identity.certificate_pem(AUTHORITY.certificate)):
        with pytest.raises(IdentityError):
            verify_members(encoded, AUTHORITY.certificate)
    listed, signature = json.loads(SIGNED)["list"], bytes.fromhex(json.loads(SIGNED)["signature"])
    body = json.dumps(listed, separators=(",", ":"), sort_keys=True).encode()
    with pytest.raises(InvalidSignature):
        AUTHORITY.key.public_key().verify(signature, body)


@pytest.mark.parametrize(
    "other",
    [
        SIGNED.replace(b'{"list"', b'{ "list"'),
        SIGNED + b"\n",
        SIGNED.replace(b'"number":7', b'"number":7.0'),
        SIGNED.replace(b'"number":7', b'"number":6,"number":7'),
        SIGNED.replace(b'"number":7', b'"number":8'),
        SIGNED[:-1],
        b"",
        bytes(MAXIMUM_MEMBERS_BYTES + 1),
    ],
)
def test_another_encoding_is_refused(other: bytes) -> None:
    assert other != SIGNED
    with pytest.raises(IdentityError):
        verify_members(other, AUTHORITY.certificate)


@given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
def test_a_byte_that_was_changed_is_found(place: int, difference: int) -> None:
    changed = bytearray(SIGNED)
    changed[place] ^= difference
    with pytest.raises(IdentityError):
        verify_members(bytes(changed), AUTHORITY.certificate)


def numbered(number: int, *names: str) -> bytes:
    return sign_members(AUTHORITY, {name: MEMBERS[name] for name in names or MEMBERS}, number, NOW)


def test_the_newest_list_is_kept_and_an_older_one_refused(tmp_path: Path) -> None:
    kept = KeptMembers(tmp_path, AUTHORITY.certificate)
    assert kept.newest() is None
    assert kept.accept(numbered(3)).number == 3
    with pytest.raises(StandingError, match="older than number 3"):
        kept.accept(numbered(2))
    assert kept.accept(numbered(3)).number == 3
    assert kept.accept(numbered(5)).number == 5
    again = KeptMembers(tmp_path, AUTHORITY.certificate)
    with pytest.raises(StandingError, match="older than number 5"):
        again.accept(numbered(4))
    assert (tmp_path / MEMBERS_FILE).stat().st_mode & 0o077 == 0


def test_another_list_of_the_same_number_is_refused_and_kept_as_evidence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = KeptMembers(tmp_path, AUTHORITY.certificate)
    kept.accept(numbered(3))
    other = numbered(3, "st-mary", "st-john")
    with pytest.raises(IdentityError, match=r"one member list of number 3.* in st-anne"):
        kept.accept(other)
    assert "SIGNED TWO DIFFERENT MEMBER LISTS OF NUMBER 3" in caplog.text
    assert (tmp_path / CONTRADICTION_FILE).read_bytes() == other
    newest = kept.newest()
    assert newest is not None
    assert newest.encoded == numbered(3)


def test_a_forged_list_leaves_no_trace(tmp_path: Path) -> None:
    kept = KeptMembers(tmp_path, AUTHORITY.certificate)
    kept.accept(numbered(3))
    with pytest.raises(IdentityError):
        kept.accept(sign_members(OTHER, MEMBERS, 9, NOW))
    assert {path.name for path in tmp_path.iterdir()} <= {MEMBERS_FILE, ".lock"}


def test_a_list_that_another_process_kept_counts_at_once_and_one_that_vanished_is_noticed(tmp_path: Path) -> None:
    agent = KeptMembers(tmp_path, AUTHORITY.certificate)
    agent.accept(numbered(1))
    KeptMembers(tmp_path, AUTHORITY.certificate).accept(numbered(2))
    with pytest.raises(StandingError):
        agent.accept(numbered(1))
    (tmp_path / MEMBERS_FILE).unlink()
    with pytest.raises(IdentityError, match="removed"):
        agent.newest()


def test_two_that_keep_lists_at_once_never_go_back(tmp_path: Path) -> None:
    lists = [numbered(number) for number in range(1, 41)]

    def keep(mine: list[bytes]) -> None:
        kept = KeptMembers(tmp_path, AUTHORITY.certificate)
        for encoded in mine:
            try:
                kept.accept(encoded)
            except StandingError:
                continue

    threads = [threading.Thread(target=keep, args=(lists[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    newest = KeptMembers(tmp_path, AUTHORITY.certificate).newest()
    assert newest is not None
    assert newest.number == 40
