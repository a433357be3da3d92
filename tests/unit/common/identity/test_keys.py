"""A key for which anybody can sign is nobody's identity: not in a request, not in a certificate, not on a list."""

import datetime as dt
import itertools

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from common.errors import IdentityError
from common.identity import certificates as identity
from common.identity.keys import check_identity_key
from common.identity.members import sign_members

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
AUTHORITY = identity.make_authority("consortium", NOW)
NEUTRAL = (0, 1)
FORGED_R_AND_S = (1).to_bytes(32, "little") + bytes(32)
"""The neutral point and zero: a signature that its author needed no key for."""

Point = tuple[int, int]


def add(one: Point, two: Point) -> Point:
    """Return the sum on the twisted Edwards curve of RFC 8032, section 5.1.4."""
    (x1, y1), (x2, y2) = one, two
    product = D * x1 * x2 * y1 * y2 % P
    return (
        (x1 * y2 + x2 * y1) * pow(1 + product, -1, P) % P,
        (y1 * y2 + x1 * x2) * pow(1 - product, -1, P) % P,
    )


def times(number: int, point: Point) -> Point:
    total = NEUTRAL
    for bit in f"{number:b}":
        total = add(total, total)
        total = add(total, point) if bit == "1" else total
    return total


def recover(y: int) -> int | None:
    """Return an x with (x, y) on the curve, None where there is none."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    root = pow(square, (P + 3) // 8, P)
    root = root if root * root % P == square else root * pow(2, (P - 1) // 4, P) % P
    return root if root * root % P == square else None


def torsion() -> list[Point]:
    """Return the eight points whose order divides 8: multiples of the part of that order of any point of full order."""
    prime = 2**252 + 27742317777372353535851937790883648493
    for y in range(2, 100):
        x = recover(y)
        if x is not None:
            point = times(prime, (x, y))
            if times(4, point) != NEUTRAL:
                return [times(number, point) for number in range(8)]
    raise AssertionError("the curve has points of order 8")


def encodings() -> list[bytes]:
    """Return every 32 bytes that some implementation decodes to a point of small order, as in libsodium's list."""
    ys = {y for _, y in torsion()}
    shown = [y + shift for y, shift in itertools.product(sorted(ys), (0, P)) if y + shift < 2**255]
    return [(y | sign << 255).to_bytes(32, "little") for y, sign in itertools.product(shown, (0, 1))]


ENCODINGS = encodings()
every_encoding = pytest.mark.parametrize("key", ENCODINGS, ids=bytes.hex)


def forged(key: bytes) -> bytes:
    """Return a message that the fixed forged signature holds for, by what ``cryptography`` verifies."""
    public = Ed25519PublicKey.from_public_bytes(key)
    for number in range(512):
        message = b"I am whoever I say, %d" % number
        try:
            public.verify(FORGED_R_AND_S, message)
        except InvalidSignature:
            continue
        return message
    raise AssertionError("a message in eight can be signed for a key of order 8")


def replaced(encoded: bytes, before: bytes, after: bytes) -> bytes:
    assert encoded.count(before) == 1
    return encoded.replace(before, after)


def request_with(key: bytes) -> bytes:
    """Return a signing request for a key that nobody holds, signed by the fixed forgery."""
    for number in range(512):
        own = Ed25519PrivateKey.generate()
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"st-mary-{number}")])
        made = x509.CertificateSigningRequestBuilder().subject_name(name).sign(own, None)
        encoded = replaced(made.public_bytes(serialization.Encoding.DER), own.public_key().public_bytes_raw(), key)
        request = x509.load_der_x509_csr(replaced(encoded, made.signature, FORGED_R_AND_S))
        if request.is_signature_valid:
            return request.public_bytes(serialization.Encoding.PEM)
    raise AssertionError("a request in eight can be signed for a key of order 8")


def test_the_encodings_are_libsodiums_seven_with_both_signs() -> None:
    assert len(ENCODINGS) == len(set(ENCODINGS)) == 14
    assert len(set(torsion())) == 8
    assert all(times(8, point) == NEUTRAL for point in torsion())


@every_encoding
def test_the_library_takes_a_forged_signature_and_the_check_refuses_the_key(key: bytes) -> None:
    assert forged(key)
    with pytest.raises(IdentityError, match="st-mary must"):
        check_identity_key(key, "st-mary")


@every_encoding
def test_a_request_that_nobody_signed_is_refused(key: bytes) -> None:
    request = request_with(key)
    assert x509.load_pem_x509_csr(request).is_signature_valid
    with pytest.raises(IdentityError, match="a hospital's signing request must"):
        identity.HospitalSigningRequest.read(request)


@every_encoding
def test_a_certificate_for_such_a_key_is_refused_although_the_authority_signed_it(key: bytes) -> None:
    own = Ed25519PrivateKey.generate()
    signed = identity.sign_hospital_certificate(
        AUTHORITY, identity.request_hospital_certificate("st-mary", own), "st-mary", NOW, DAY
    )
    before = own.public_key().public_bytes_raw()
    body = replaced(signed.tbs_certificate_bytes, before, key)
    whole = replaced(signed.public_bytes(serialization.Encoding.DER), before, key)
    whole = replaced(whole, signed.signature, AUTHORITY.key.sign(body))
    certificate = x509.load_der_x509_certificate(whole)
    certificate.verify_directly_issued_by(AUTHORITY.certificate)
    with pytest.raises(IdentityError, match="the certificate of st-mary must"):
        identity.verify_hospital_certificate(
            identity.certificate_pem(certificate), "st-mary", AUTHORITY.certificate, NOW
        )


@every_encoding
def test_a_member_list_with_such_a_key_is_not_signed(key: bytes) -> None:
    with pytest.raises(IdentityError, match="st-mary must"):
        sign_members(AUTHORITY, {"st-mary": key}, 1, NOW)


@given(st.binary(min_size=32, max_size=32))
def test_the_key_of_any_seed_is_taken(seed: bytes) -> None:
    key = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    assert check_identity_key(key, "st-mary") == key


@pytest.mark.parametrize("y", [P + 2, P + 18])
def test_a_second_encoding_of_a_point_is_refused(y: int) -> None:
    with pytest.raises(IdentityError, match="RFC 8032"):
        check_identity_key(y.to_bytes(32, "little"), "st-mary")


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(IdentityError, match=f"32 bytes .* got {length}"):
        check_identity_key(bytes(length), "st-mary")
