"""Who is a member is what the authority's register says; each change has a number, and each number one list."""

import datetime as dt
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import IdentityError
from common.identity.certificates import held_by_server, request_hospital_certificate
from common.identity.members import MemberList, verify_members
from common.identity.revocation import RevocationList, verify_revocations
from server.members.authority import REGISTER_FILE, Authority

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)


class Office:
    """An authority whose every call comes from another process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        Authority.make(folder, "consortium", NOW)

    def sign(self, name: str, key: Ed25519PrivateKey, now: dt.datetime = NOW) -> None:
        Authority(self._folder).sign_hospital(request_hospital_certificate("x", key), name, now, HOUR)

    def revoke(self, name: str, now: dt.datetime = NOW) -> int:
        return Authority(self._folder).revoke(name, now)

    def lists(self, now: dt.datetime = NOW) -> tuple[MemberList | None, RevocationList]:
        authority = Authority(self._folder)
        signed = authority.sign_lists(now, HOUR)
        members = None if signed.members is None else verify_members(signed.members, authority.certificate)
        return members, verify_revocations(signed.revocations, authority.certificate)

    def members(self, now: dt.datetime = NOW) -> MemberList:
        members, revocations = self.lists(now)
        assert members is not None
        assert revocations.members_number == members.number
        return members


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path / "authority")


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def test_there_is_no_list_before_the_first_member(office: Office) -> None:
    members, revocations = office.lists()
    assert members is None
    assert revocations.members_number == 0


def test_each_admission_and_revocation_has_a_number_and_a_renewal_none(office: Office) -> None:
    mary, john = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    office.sign("st-mary", mary)
    first = office.members()
    assert (first.number, first.members) == (1, {"st-mary": raw(mary)})
    office.sign("st-john", john)
    second = office.members()
    assert (second.number, second.members) == (2, {"st-mary": raw(mary), "st-john": raw(john)})
    office.sign("st-mary", mary, NOW + HOUR / 2)
    assert office.members(NOW + HOUR / 2).encoded == second.encoded
    assert office.revoke("st-john") == 1
    third = office.members()
    assert (third.number, third.members) == (3, {"st-mary": raw(mary)})


def test_a_member_whose_certificates_have_all_expired_stays_one_until_it_is_revoked(office: Office) -> None:
    key = Ed25519PrivateKey.generate()
    office.sign("st-mary", key)
    later = NOW + 100 * HOUR
    assert office.members(later).members == {"st-mary": raw(key)}
    assert office.revoke("st-mary", later) == 0
    assert office.members(later).members == {}


def test_a_members_name_is_not_signed_for_another_key_before_it_is_revoked(office: Office) -> None:
    office.sign("st-mary", Ed25519PrivateKey.generate())
    other = Ed25519PrivateKey.generate()
    with pytest.raises(IdentityError, match="ca revoke st-mary"):
        office.sign("st-mary", other)
    office.revoke("st-mary")
    office.sign("st-mary", other)
    assert office.members().members == {"st-mary": raw(other)}


def test_a_members_key_is_not_signed_for_another_name(office: Office) -> None:
    key = Ed25519PrivateKey.generate()
    office.sign("st-mary", key)
    with pytest.raises(IdentityError, match="st-mary's"):
        office.sign("st-john", key)
    assert set(office.members().members) == {"st-mary"}


def test_a_register_of_an_earlier_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path, "consortium", NOW)
    (tmp_path / REGISTER_FILE).write_text('{"version": 1, "list_number": 3, "issued": []}')
    with pytest.raises(IdentityError, match=r"version 2.*make a new authority"):
        authority.sign_lists(NOW, HOUR)


def test_an_authority_that_a_server_holds_says_so_in_its_certificate_for_good(tmp_path: Path) -> None:
    for held in (True, False):
        made = Authority.make(tmp_path / str(held), "consortium", NOW, held_by_server=held)
        assert held_by_server(made.certificate) is held
        assert held_by_server(Authority(tmp_path / str(held)).certificate) is held
