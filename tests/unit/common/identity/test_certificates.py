"""A hospital is who the consortium's authority says it is, and nobody else."""

import base64
import datetime as dt
import ssl
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from common.errors import IdentityError
from common.files import write_private
from common.identity import certificates as identity

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
LIFETIME = dt.timedelta(days=30)
AUTHORITY = identity.make_authority("consortium", NOW)


def issue(name: str, authority: identity.CertificateAuthority = AUTHORITY) -> tuple[bytes, Ed25519PrivateKey]:
    key = Ed25519PrivateKey.generate()
    request = identity.request_hospital_certificate(name, key)
    return identity.certificate_pem(identity.sign_hospital_certificate(authority, request, name, NOW, LIFETIME)), key


def test_a_certificate_of_the_authority_is_accepted_for_its_hospital() -> None:
    pem, key = issue("st-mary")
    public_key = identity.verify_hospital_certificate(pem, "st-mary", AUTHORITY.certificate, NOW)
    assert public_key == key.public_key()


def test_a_certificate_of_another_hospital_is_refused() -> None:
    pem, _ = issue("st-mary")
    with pytest.raises(IdentityError, match="issued to another party"):
        identity.verify_hospital_certificate(pem, "st-john", AUTHORITY.certificate, NOW)


def test_a_certificate_of_another_authority_with_the_same_name_is_refused() -> None:
    pem, _ = issue("st-mary", identity.make_authority("consortium", NOW))
    with pytest.raises(IdentityError, match="signed by the consortium's authority"):
        identity.verify_hospital_certificate(pem, "st-mary", AUTHORITY.certificate, NOW)


@pytest.mark.parametrize("days", [-1, LIFETIME.days + 1])
def test_a_certificate_is_refused_before_and_after_its_time(days: int) -> None:
    pem, _ = issue("st-mary")
    with pytest.raises(IdentityError, match="renew it"):
        identity.verify_hospital_certificate(pem, "st-mary", AUTHORITY.certificate, NOW + dt.timedelta(days=days))


def test_a_server_certificate_is_no_hospital() -> None:
    certificate, _ = identity.make_tls_certificate(AUTHORITY, ["st-mary"], NOW, LIFETIME)
    with pytest.raises(IdentityError):
        identity.verify_hospital_certificate(
            identity.certificate_pem(certificate), "st-mary", AUTHORITY.certificate, NOW
        )


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"x" * 20_000])
def test_bytes_that_are_no_certificate_are_refused(pem: bytes) -> None:
    with pytest.raises(IdentityError):
        identity.verify_hospital_certificate(pem, "st-mary", AUTHORITY.certificate, NOW)


def test_the_authority_signs_its_own_choice_of_name() -> None:
    key = Ed25519PrivateKey.generate()
    request = identity.request_hospital_certificate("impostor", key)
    certificate = identity.sign_hospital_certificate(AUTHORITY, request, "st-mary", NOW, LIFETIME)
    pem = identity.certificate_pem(certificate)
    assert identity.verify_hospital_certificate(pem, "st-mary", AUTHORITY.certificate, NOW) == key.public_key()


def test_a_request_whose_key_did_not_sign_it_is_refused() -> None:
    request = bytearray(identity.request_hospital_certificate("st-mary", Ed25519PrivateKey.generate()).pem)
    middle = request.index(b"\n") + 80
    request[middle] = ord("A") if request[middle] != ord("A") else ord("B")
    with pytest.raises(IdentityError):
        identity.HospitalSigningRequest.read(bytes(request))


def test_a_roster_in_which_two_hospitals_share_a_key_is_refused() -> None:
    key = Ed25519PrivateKey.generate()
    roster = {
        name: identity.certificate_pem(
            identity.sign_hospital_certificate(
                AUTHORITY, identity.request_hospital_certificate(name, key), name, NOW, LIFETIME
            )
        ).decode()
        for name in ("st-mary", "st-john")
    }
    with pytest.raises(IdentityError, match="key of its own"):
        identity.verify_roster(roster, AUTHORITY.certificate)


@pytest.mark.parametrize("name", ["", "St-Mary", "-a", "a" * 64, "a b", "a/b", "ä"])
def test_a_name_that_is_no_dns_label_is_refused(name: str) -> None:
    with pytest.raises(IdentityError, match="name must be"):
        identity.check_hospital_name(name)


def test_an_identity_on_disk_must_have_key_and_certificate_that_belong_together(tmp_path: Path) -> None:
    pem, key = issue("st-mary")
    write_private(tmp_path / "identity.pem", pem)
    write_private(tmp_path / "identity.key", identity.private_key_pem(key))
    assert identity.load_identity(tmp_path).name == "st-mary"
    write_private(tmp_path / "identity.key", identity.private_key_pem(Ed25519PrivateKey.generate()))
    with pytest.raises(IdentityError, match="public half"):
        identity.load_identity(tmp_path)


@pytest.mark.usefixtures("open_umask")
def test_a_private_file_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "secret"
    write_private(path, b"secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_key_never_shows_in_a_representation() -> None:
    assert "key" not in repr(AUTHORITY)


FUZZED_KEY = Ed25519PrivateKey.generate()
FUZZED_REQUEST = identity.request_hospital_certificate("st-mary", FUZZED_KEY)
FUZZED_CERTIFICATE = identity.sign_hospital_certificate(AUTHORITY, FUZZED_REQUEST, "st-mary", NOW, LIFETIME)


def pem(kind: str, der: bytes) -> bytes:
    return f"-----BEGIN {kind}-----\n{base64.encodebytes(der).decode()}-----END {kind}-----\n".encode()


@given(st.integers(0, 10_000), st.integers(1, 255))
@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_a_certificate_whose_signed_bytes_are_changed_is_refused_with_the_one_typed_error(
    place: int, change: int
) -> None:
    der = bytearray(FUZZED_CERTIFICATE.public_bytes(serialization.Encoding.DER))
    der[place % len(der)] ^= change
    changed = pem("CERTIFICATE", bytes(der))
    try:
        identity.verify_hospital_certificate(changed, "st-mary", AUTHORITY.certificate, NOW)
    except IdentityError:
        return
    read = identity.read_certificate(changed)
    assert read.tbs_certificate_bytes == FUZZED_CERTIFICATE.tbs_certificate_bytes


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_request_whose_signed_bytes_are_changed_is_refused_with_the_one_typed_error(place: int, change: int) -> None:
    der = bytearray(ssl.PEM_cert_to_DER_cert(FUZZED_REQUEST.pem.decode().replace(" REQUEST", "")))
    der[place % len(der)] ^= change
    try:
        key = identity.HospitalSigningRequest.read(pem("CERTIFICATE REQUEST", bytes(der))).key
    except IdentityError:
        return
    assert key == FUZZED_KEY.public_key()


@given(st.binary(max_size=300))
def test_other_bytes_are_no_request_certificate_or_key(content: bytes) -> None:
    with pytest.raises(IdentityError):
        identity.read_signing_request(pem("CERTIFICATE REQUEST", content))
    with pytest.raises(IdentityError):
        identity.read_certificate(pem("CERTIFICATE", content))
    with pytest.raises(IdentityError):
        identity.check_supernode_key(b"ecdsa-sha2-nistp256 " + base64.b64encode(content))


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_supernodes_that_joined_with_a_key_on_either_curve_may_connect(curve: ec.EllipticCurve) -> None:
    identity.check_supernode_key(identity.openssh_public(ec.generate_private_key(curve).public_key()))


def test_a_supernode_key_on_another_curve_is_refused() -> None:
    with pytest.raises(IdentityError, match="P-256 or P-384"):
        identity.check_supernode_key(identity.openssh_public(ec.generate_private_key(ec.SECP521R1()).public_key()))
