"""What the authority signs: at once where its key is at hand, from files where it is kept offline."""

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.config import EnrolmentConfig
from common.errors import IdentityError
from common.files import write_private
from common.identity import certificates as identity
from common.identity.certificates import (
    HospitalSigningRequest,
    ServerSigningRequest,
    certificate_pem,
    load_certificate,
    request_hospital_certificate,
)
from common.identity.members import MEMBERS_FILE
from common.identity.revocation import REVOCATIONS_FILE, verify_revocations
from common.settings import ServerSettings
from server.members.authority import Authority
from server.members.certificates import REQUESTS_FOLDER, Certificates
from server.members.roster import Membership

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
CONFIG = EnrolmentConfig(
    hospital_certificate_hours=30.0, server_certificate_hours=30.0, revocations_hours=10.0, standing_seconds=1.0
)


def server(folder: Path, *, offline: bool, hosts: tuple[str, ...] = ("localhost",)) -> Certificates:
    home = folder / "authority"
    authority = Authority(home) if (home / "ca.key").exists() else Authority.make(home, "consortium", NOW)
    state = folder / "server"
    write_private(state / "ca.pem", certificate_pem(authority.certificate))
    settings = ServerSettings(
        config=state / "config.yaml",
        run=state / "run",
        logs=state / "logs",
        run_id="0" * 32,
        data_set="phantom",
        classes=("normal", "pneumonia"),
        channels=1,
        hosts=hosts,
        authority=None if offline else home,
    )
    return Certificates(state, settings, CONFIG)


def names_of(path: Path) -> set[str]:
    names = load_certificate(path).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return {str(name.value) for name in names.value}


def test_a_new_server_gets_certificate_and_list_at_once(tmp_path: Path) -> None:
    certificates = server(tmp_path, offline=False)
    assert not certificates.is_ready()
    certificates.keep_current(NOW)
    assert certificates.is_ready()
    assert verify_revocations(certificates.revocations(), certificates.root).number == 1


def test_the_server_s_certificate_is_renewed_when_a_third_is_left_and_keeps_its_key(tmp_path: Path) -> None:
    certificates = server(tmp_path, offline=False)
    path = tmp_path / "server" / "tls.pem"
    certificates.keep_current(NOW)
    first = load_certificate(path)
    certificates.keep_current(NOW + 19 * HOUR)
    assert load_certificate(path) == first
    certificates.keep_current(NOW + 21 * HOUR)
    second = load_certificate(path)
    assert second.serial_number != first.serial_number
    assert second.public_key() == first.public_key()


def test_a_server_with_another_address_gets_another_certificate(tmp_path: Path) -> None:
    server(tmp_path, offline=False).keep_current(NOW)
    server(tmp_path, offline=False, hosts=("confide.example.org", "fd00::1")).keep_current(NOW)
    assert names_of(tmp_path / "server" / "tls.pem") == {"confide.example.org", "fd00::1", "127.0.0.1"}


def test_the_servers_own_processes_reach_its_superlink_by_its_certificate_whatever_hospitals_call_it(
    tmp_path: Path,
) -> None:
    server(tmp_path, offline=False, hosts=("server",)).keep_current(NOW)
    assert "127.0.0.1" in names_of(tmp_path / "server" / "tls.pem")


def test_the_revocation_list_is_signed_anew_when_half_its_time_is_over(tmp_path: Path) -> None:
    certificates = server(tmp_path, offline=False)
    for hours, number in ((0, 1), (4, 1), (6, 2), (7, 2)):
        certificates.keep_current(NOW + hours * HOUR)
        assert verify_revocations(certificates.revocations(), certificates.root).number == number


def test_a_revoked_hospital_stands_on_the_next_list(tmp_path: Path) -> None:
    certificates = server(tmp_path, offline=False)
    pem = certificates.hospital("st-mary", request_hospital_certificate("x", Ed25519PrivateKey.generate()), NOW)
    other = certificates.hospital("st-john", request_hospital_certificate("x", Ed25519PrivateKey.generate()), NOW)
    assert pem is not None
    assert other is not None
    assert certificates.revoke("st-mary", NOW)
    assert certificates.is_revoked(identity.read_certificate(pem))
    assert not certificates.is_revoked(identity.read_certificate(other))


def test_an_expired_certificate_leaves_the_list(tmp_path: Path) -> None:
    certificates = server(tmp_path, offline=False)
    certificates.hospital("st-mary", request_hospital_certificate("x", Ed25519PrivateKey.generate()), NOW)
    certificates.revoke("st-mary", NOW)
    certificates.keep_current(NOW + 31 * HOUR)
    assert not verify_revocations(certificates.revocations(), certificates.root).revoked


def test_an_offline_authority_signs_files(tmp_path: Path) -> None:
    certificates = server(tmp_path, offline=True)
    requests = tmp_path / "server" / REQUESTS_FOLDER
    certificates.keep_current(NOW)
    request = request_hospital_certificate("x", Ed25519PrivateKey.generate())
    assert certificates.hospital("st-mary", request, NOW) is None
    assert {path.name for path in requests.iterdir()} == {"server.members.tls.csr", "st-mary.csr"}
    assert not certificates.is_ready()

    authority = Authority(tmp_path / "authority")
    tls = authority.sign_server(
        ServerSigningRequest.read((requests / "server.members.tls.csr").read_bytes()), NOW, HOUR
    )
    signed = authority.sign_hospital(
        HospitalSigningRequest.read((requests / "st-mary.csr").read_bytes()), "st-mary", NOW, HOUR
    )
    (requests / "server.members.tls.pem").write_bytes(certificate_pem(tls))
    (requests / "st-mary.pem").write_bytes(certificate_pem(signed))
    lists = authority.sign_lists(NOW, HOUR)
    assert lists.members is not None
    (requests / REVOCATIONS_FILE).write_bytes(lists.revocations)
    (requests / MEMBERS_FILE).write_bytes(lists.members)
    certificates.keep_current(NOW)
    assert certificates.is_ready()
    assert not list(requests.iterdir())
    assert certificates.lists("st-mary", certificate_pem(signed))
    assert Membership(tmp_path / "server").roster() == {"st-mary": certificate_pem(signed).decode()}
    assert not certificates.revoke("st-mary", NOW)


def test_what_was_signed_for_another_key_is_not_used(tmp_path: Path) -> None:
    certificates = server(tmp_path, offline=True)
    requests = tmp_path / "server" / REQUESTS_FOLDER
    other = request_hospital_certificate("x", Ed25519PrivateKey.generate())
    signed = Authority.make(tmp_path / "else", "consortium", NOW).sign_hospital(other, "st-mary", NOW, HOUR)
    for authority in (tmp_path / "authority", tmp_path / "else"):
        signed = Authority(authority).sign_hospital(other, "st-mary", NOW, HOUR)
        write_private(requests / "st-mary.pem", certificate_pem(signed))
        request = request_hospital_certificate("x", Ed25519PrivateKey.generate())
        assert certificates.hospital("st-mary", request, NOW) is None
        assert (requests / "st-mary.csr").read_bytes() == request.pem


def test_an_authority_is_never_made_over_another(tmp_path: Path) -> None:
    Authority.make(tmp_path, "consortium", NOW)
    with pytest.raises(IdentityError, match="left alone"):
        Authority.make(tmp_path, "consortium", NOW)


@pytest.mark.usefixtures("open_umask")
def test_an_authority_s_key_and_register_are_its_owner_s_alone(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path / "authority", "consortium", NOW)
    authority.sign_hospital(request_hospital_certificate("x", Ed25519PrivateKey.generate()), "st-mary", NOW, HOUR)
    for path in (tmp_path / "authority").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path.name


def test_a_member_list_waits_for_the_certificate_of_everyone_on_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificates = server(tmp_path, offline=True)
    requests, authority = tmp_path / "server" / REQUESTS_FOLDER, Authority(tmp_path / "authority")
    signed = authority.sign_hospital(
        request_hospital_certificate("x", Ed25519PrivateKey.generate()), "st-mary", NOW, HOUR
    )
    lists = authority.sign_lists(NOW, HOUR)
    assert lists.members is not None
    write_private(requests / MEMBERS_FILE, lists.members)
    certificates.keep_current(NOW)
    assert "waits for the certificates of st-mary" in caplog.text
    with pytest.raises(IdentityError, match=r"must have signed members\.json"):
        certificates.members()
    write_private(requests / "st-mary.pem", certificate_pem(signed))
    certificates.keep_current(NOW)
    assert set(certificates.members().members) == {"st-mary"}
    members = Membership(tmp_path / "server").all_members(certificates.root, NOW)
    assert members.member_list.encode() == lists.members
    assert members.absent == {"st-mary"}  # It has not shown the key of its SuperNode yet.


def test_whom_the_authority_takes_from_the_list_the_server_cuts_off(tmp_path: Path) -> None:
    certificates = server(tmp_path, offline=True)
    requests, authority = tmp_path / "server" / REQUESTS_FOLDER, Authority(tmp_path / "authority")
    membership = Membership(tmp_path / "server")
    for name in ("st-mary", "st-john"):
        request = request_hospital_certificate("x", Ed25519PrivateKey.generate())
        membership.admit(name, certificate_pem(authority.sign_hospital(request, name, NOW, 2 * HOUR)), b"key")
    for revoked, left in ((None, {"st-mary", "st-john"}), ("st-john", {"st-mary"})):
        if revoked is not None:
            assert authority.revoke(revoked, NOW) == 1
        lists = authority.sign_lists(NOW, HOUR)
        assert lists.members is not None
        write_private(requests / MEMBERS_FILE, lists.members)
        write_private(requests / REVOCATIONS_FILE, lists.revocations)
        certificates.keep_current(NOW)
        assert membership.roster().keys() == membership.supernode_keys().keys() == left
        assert membership.all_members(certificates.root, NOW).absent == frozenset()


def test_a_hospital_that_the_server_cuts_off_stays_on_the_roster_until_the_authority_takes_it_from_the_list(
    tmp_path: Path,
) -> None:
    certificates = server(tmp_path, offline=True)
    authority, membership = Authority(tmp_path / "authority"), Membership(tmp_path / "server")
    request = request_hospital_certificate("x", Ed25519PrivateKey.generate())
    membership.admit("st-mary", certificate_pem(authority.sign_hospital(request, "st-mary", NOW, 2 * HOUR)), b"key")
    lists = authority.sign_lists(NOW, HOUR)
    assert lists.members is not None
    write_private(tmp_path / "server" / REQUESTS_FOLDER / MEMBERS_FILE, lists.members)
    certificates.keep_current(NOW)
    assert certificates.is_offline
    assert certificates.names("st-mary")
    assert membership.remove("st-mary", still_listed=True)
    members = membership.all_members(certificates.root, NOW)
    assert (set(members.roster), set(members.absent)) == ({"st-mary"}, {"st-mary"})


def test_an_older_list_that_is_brought_again_changes_nothing(tmp_path: Path) -> None:
    certificates = server(tmp_path, offline=True)
    requests, authority = tmp_path / "server" / REQUESTS_FOLDER, Authority(tmp_path / "authority")
    membership, carried = Membership(tmp_path / "server"), []
    for name in ("st-mary", "st-john"):
        request = request_hospital_certificate("x", Ed25519PrivateKey.generate())
        membership.admit(name, certificate_pem(authority.sign_hospital(request, name, NOW, HOUR)), b"key")
        carried.append(authority.sign_lists(NOW, HOUR))
    for lists in reversed(carried):
        assert lists.members is not None
        write_private(requests / MEMBERS_FILE, lists.members)
        write_private(requests / REVOCATIONS_FILE, lists.revocations)
        certificates.keep_current(NOW)
        assert not list(requests.glob("*.json"))
        assert not list(requests.glob("*.crl"))
    assert certificates.members().number == 2
    assert membership.roster().keys() == {"st-mary", "st-john"}
