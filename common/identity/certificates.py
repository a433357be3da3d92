"""Who is who: the consortium's certificate authority, hospital identities, TLS certificates (RFC 5280, RFC 8032).

A hospital makes its Ed25519 key itself; the authority signs only the public half. Every other hospital accepts a
key when its certificate leads to the authority whose fingerprint came out of band, so a server cannot invent one.
"""

import datetime
import hashlib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import IdentityError
from common.identity.keys import checked_identity_key

HOSPITAL_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
"""The form of a hospital's name: a DNS label, which fits certificates, metrics and file names alike."""

_AUTHORITY_LIFETIME = datetime.timedelta(days=3650)
CLOCK_SKEW = datetime.timedelta(minutes=5)
"""How long before they are signed certificates and lists become valid, for machines whose clocks are behind."""
UNREADABLE = (
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What ``cryptography`` raises for bytes from outside that are no certificate, request or list; found by fuzzing."""
_MAXIMUM_PEM_BYTES = 16_384
_IDENTITY_URI = "confide:hospital:"
_HELD_BY_SERVER = "key held by the server"
"""The organisational unit of an authority that a server made for itself. It stands in the certificate whose fingerprint
every invitation carries, so that nobody can pin such an authority and take it for one that is kept elsewhere."""
_SERVER_NAME = "Confide server"
"""The common name of a server: its own may be longer than 64 characters, and TLS reads the alternative names alone."""


@dataclass(frozen=True)
class CertificateAuthority:
    """The consortium's root: signs hospital identities and the server's TLS certificate."""

    certificate: x509.Certificate
    key: Ed25519PrivateKey = field(repr=False)


@dataclass(frozen=True)
class HospitalIdentity:
    """A hospital's name, certificate and signing key."""

    name: str
    certificate: x509.Certificate
    key: Ed25519PrivateKey = field(repr=False)


def make_authority(common_name: str, now: datetime.datetime, *, held_by_server: bool = False) -> CertificateAuthority:
    """Make a new Ed25519 certificate authority, valid from ``now`` for ten years.

    Args:
        common_name: of the consortium.
        now: the current time.
        held_by_server: the server keeps the key; the certificate says so for good (:func:`held_by_server`).
    """
    key = Ed25519PrivateKey.generate()
    unit = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, _HELD_BY_SERVER)] if held_by_server else []
    subject = x509.Name([*_name(common_name), *unit])
    certificate = (
        _builder(subject, subject, key.public_key(), now, _AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, None)
    )
    return CertificateAuthority(certificate, key)


def held_by_server(authority: x509.Certificate) -> bool:
    """Return whether the server holds this authority's key: it can then invent hospitals, and needs no colluder."""
    units = authority.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    return any(unit.value == _HELD_BY_SERVER for unit in units)


def who_holds_the_key(authority: x509.Certificate) -> str:
    """Return the sentence by which every output says who can admit and invent members of this consortium."""
    if held_by_server(authority):
        return (
            "the server holds the authority's key: it can make up hospitals and so learn a single hospital's update; "
            "trust it as you trust the consortium itself"
        )
    return "the authority's key is not on the server: nobody becomes a member without the organiser's signature"


@dataclass(frozen=True)
class HospitalSigningRequest:
    """A hospital's request for a certificate (PKCS #10), read and found to be signed by the key it holds."""

    key: Ed25519PublicKey
    pem: bytes = field(repr=False)
    name: str = ""
    """The hospital's name that stands in it, as a wish; empty where none does."""

    @classmethod
    def read(cls, pem: bytes) -> "HospitalSigningRequest":
        """Read a request that came from elsewhere.

        Raises:
            IdentityError: it is no request, is not signed by its own key, or that is not an Ed25519 key for which its
                owner alone can sign.
        """
        request = _load_request(pem)
        key = checked_identity_key(request.public_key(), "a hospital's signing request")
        return cls(key, pem, _requested_name(request))


@dataclass(frozen=True)
class ServerSigningRequest:
    """A server's request for a TLS certificate, read and found to be signed by the key it holds."""

    hosts: tuple[str, ...]
    """DNS names and IP addresses, at least one."""
    key: ec.EllipticCurvePublicKey
    pem: bytes = field(repr=False)

    @classmethod
    def read(cls, pem: bytes) -> "ServerSigningRequest":
        """Read a request that came from elsewhere.

        Raises:
            IdentityError: it is no request, is not signed by its own key, names no host, or its key is not elliptic.
        """
        request = _load_request(pem)
        hosts, key = _requested_hosts(request), request.public_key()
        if not hosts or not isinstance(key, ec.EllipticCurvePublicKey):
            raise IdentityError("a server's signing request must name its hosts and hold an elliptic-curve key")
        return cls(hosts, key, pem)


def read_signing_request(pem: bytes) -> HospitalSigningRequest | ServerSigningRequest:
    """Read a request of either kind; a server's names hosts.

    Raises:
        IdentityError: it is neither.
    """
    kind = ServerSigningRequest if _requested_hosts(_load_request(pem)) else HospitalSigningRequest
    return kind.read(pem)


def _requested_name(request: x509.CertificateSigningRequest) -> str:
    try:
        names = [str(each.value) for each in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except UNREADABLE:
        return ""
    return names[0] if len(names) == 1 and HOSPITAL_NAME.fullmatch(names[0]) else ""


def _requested_hosts(request: x509.CertificateSigningRequest) -> tuple[str, ...]:
    try:
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    except UNREADABLE:
        raise IdentityError("a signing request must be one that `confide server` or `join` made") from None
    addresses = names.get_values_for_type(x509.IPAddress)
    return (*names.get_values_for_type(x509.DNSName), *(str(address) for address in addresses))


def request_hospital_certificate(name: str, key: Ed25519PrivateKey) -> HospitalSigningRequest:
    """Make the signing request of hospital ``name``, which proves possession of ``key``.

    Raises:
        IdentityError: the name is not a lower-case DNS label.
    """
    check_hospital_name(name)
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(name)).sign(key, None)
    return HospitalSigningRequest(key.public_key(), request.public_bytes(serialization.Encoding.PEM), name)


def sign_hospital_certificate(
    authority: CertificateAuthority,
    request: HospitalSigningRequest,
    name: str,
    now: datetime.datetime,
    lifetime: datetime.timedelta,
) -> x509.Certificate:
    """Sign a hospital's request as ``name``, whatever name the request itself asks for.

    Raises:
        IdentityError: the name is not a lower-case DNS label.
    """
    check_hospital_name(name)
    return (
        _builder(_name(name), authority.certificate.subject, request.key, now, lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(_IDENTITY_URI + name)]),
            critical=False,
        )
        .sign(authority.key, None)
    )


def request_server_certificate(hosts: Sequence[str], key: ec.EllipticCurvePrivateKey) -> ServerSigningRequest:
    """Make the request for a TLS server certificate for ``hosts`` (DNS names and IP addresses)."""
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_name(_SERVER_NAME))
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return ServerSigningRequest(tuple(hosts), key.public_key(), request.public_bytes(serialization.Encoding.PEM))


def sign_server_certificate(
    authority: CertificateAuthority,
    request: ServerSigningRequest,
    now: datetime.datetime,
    lifetime: datetime.timedelta,
) -> x509.Certificate:
    """Sign a server's request, for the hosts it names."""
    return (
        _builder(_name(_SERVER_NAME), authority.certificate.subject, request.key, now, lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in request.hosts]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(authority.key, None)
    )


def verify_server_certificate(
    certificate: x509.Certificate, authority: x509.Certificate, key: ec.EllipticCurvePrivateKey, hosts: Sequence[str]
) -> bool:
    """Return whether a certificate is the authority's, holds the public half of ``key``, and names just ``hosts``."""
    try:
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (InvalidSignature, *UNREADABLE, x509.ExtensionNotFound):
        return False
    return certificate.public_key() == key.public_key() and set(names) == {_general_name(host) for host in hosts}


def load_server_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read one PEM elliptic-curve private key, or raise :class:`IdentityError`."""
    key = _load_key(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityError(f"{path.name} must be an elliptic-curve key")
    return key


def make_tls_certificate(
    authority: CertificateAuthority, hosts: Sequence[str], now: datetime.datetime, lifetime: datetime.timedelta
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Make a P-256 TLS server certificate for ``hosts`` (DNS names and IP addresses), signed by ``authority``."""
    key = make_server_key()
    return sign_server_certificate(authority, request_server_certificate(hosts, key), now, lifetime), key


def make_server_key() -> ec.EllipticCurvePrivateKey:
    """Make the P-256 key of a TLS server."""
    return ec.generate_private_key(ec.SECP256R1())


def make_local_tls(hosts: Sequence[str], now: datetime.datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Make a self-signed P-256 certificate for an interface that never leaves this machine."""
    key = make_server_key()
    subject = _name(hosts[0])
    certificate = (
        _builder(subject, subject, key.public_key(), now, _AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def verify_hospital_certificate(
    pem: bytes, name: str, authority: x509.Certificate, now: datetime.datetime
) -> Ed25519PublicKey:
    """Return the public key of hospital ``name`` if ``pem`` is its identity, signed by ``authority``, valid ``now``.

    Raises:
        IdentityError: not a certificate, another name, not signed by the authority, expired, or not Ed25519.
    """
    certificate = read_certificate(pem)
    public_key = verify_issued_to_hospital(certificate, name, authority)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise IdentityError(
            f"the certificate of {name} is valid from {certificate.not_valid_before_utc:%Y-%m-%d} to "
            f"{certificate.not_valid_after_utc:%Y-%m-%d}, not now; renew it, and check this machine's clock"
        )
    return public_key


def verify_issued_to_hospital(
    certificate: x509.Certificate, name: str, authority: x509.Certificate
) -> Ed25519PublicKey:
    """Return the key of a certificate that ``authority`` issued to hospital ``name``, whether or not it has expired.

    Raises:
        IdentityError: another name, not signed by the authority, not Ed25519, or a key for which anybody can sign.
    """
    checked_identity_key(authority.public_key(), "the consortium's authority")
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        certificate.verify_directly_issued_by(authority)
    except InvalidSignature:
        raise IdentityError(f"the certificate of {name} must be signed by the consortium's authority") from None
    except (*UNREADABLE, x509.ExtensionNotFound):
        raise IdentityError(f"the identity of {name} must be a certificate that names a hospital") from None
    if uris != [_IDENTITY_URI + name]:
        raise IdentityError(f"the certificate presented for {name} was issued to another party")
    return checked_identity_key(certificate.public_key(), f"the certificate of {name}")


def verify_roster(roster: Mapping[str, str], authority: x509.Certificate) -> dict[str, bytes]:
    """Return every hospital's raw Ed25519 public key (32 bytes), each checked against ``authority``.

    A member whose certificate has expired stays on the roster, because the threshold counts on all members; no
    directory and no cohort accepts it (:meth:`common.identity.revocation.Revocations.check`).

    Raises:
        IdentityError: any entry fails; the message names the hospital.
    """
    keys: dict[str, bytes] = {}
    for name in sorted(roster):
        check_hospital_name(name)
        certificate = read_certificate(roster[name].encode())
        keys[name] = verify_issued_to_hospital(certificate, name, authority).public_bytes_raw()
    if len(set(keys.values())) != len(keys):
        raise IdentityError("every hospital on the roster must have a key of its own; two share one")
    return keys


def check_hospital_name(name: str) -> str:
    """Return ``name`` if it is a lower-case DNS label, else raise :class:`IdentityError`."""
    if not HOSPITAL_NAME.fullmatch(name):
        raise IdentityError(
            f"a hospital's name must be 1 to 63 of a-z, 0-9 and '-', not starting with '-', got {name[:80]!r}"
        )
    return name


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of the certificate's DER, as 64 hex digits: what an invitation carries out of band."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Return the certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def private_key_pem(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    """Return the key as unencrypted PKCS #8 PEM, to be written by :func:`write_private` alone."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_certificate(pem: bytes) -> x509.Certificate:
    """Read one PEM certificate that came from elsewhere, or raise :class:`IdentityError`."""
    try:
        return x509.load_pem_x509_certificate(_bounded(pem))
    except UNREADABLE:
        raise IdentityError("a certificate must be PEM") from None


def common_name(certificate: x509.Certificate) -> str:
    """Return the one hospital that a certificate names, or raise :class:`IdentityError`."""
    try:
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except UNREADABLE:
        raise IdentityError("a hospital's certificate must name it in text") from None
    if len(names) != 1:
        raise IdentityError("a hospital's certificate must name exactly one hospital; enrol again")
    return check_hospital_name(str(names[0].value))


def key_fingerprint(key: Ed25519PublicKey) -> str:
    """Return the SHA-256 of a raw public key, as 64 hex digits."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def check_supernode_key(openssh: bytes) -> None:
    """Raise :class:`IdentityError` unless ``openssh`` is an EC public key in OpenSSH's format, P-256 or P-384."""
    try:
        key = serialization.load_ssh_public_key(openssh)
    # IndexError where the point is empty, NotImplementedError where it is compressed.
    except (ValueError, IndexError, NotImplementedError, UnsupportedAlgorithm):
        raise IdentityError("a SuperNode's key must be an OpenSSH public key") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        raise IdentityError("a SuperNode's key must be on the curve P-256 or P-384")


def load_identity(folder: Path) -> HospitalIdentity:
    """Read ``identity.pem`` and ``identity.key`` of a hospital's state folder.

    Raises:
        IdentityError: a file is missing or broken, or key and certificate do not belong together.
    """
    certificate = load_certificate(folder / "identity.pem")
    key = load_signing_key(folder / "identity.key")
    if certificate.public_key() != key.public_key():
        raise IdentityError("identity.pem must hold the public half of identity.key; enrol again")
    return HospitalIdentity(common_name(certificate), certificate, key)


def load_certificate(path: Path) -> x509.Certificate:
    """Read one PEM certificate, or raise :class:`IdentityError`."""
    try:
        return x509.load_pem_x509_certificate(_bounded(path.read_bytes()))
    except OSError as error:
        raise IdentityError(f"{path.name} must be readable: {error.strerror}") from None
    except UNREADABLE:
        raise IdentityError(f"{path.name} must be a PEM certificate") from None


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """Read one PEM Ed25519 private key, or raise :class:`IdentityError`."""
    key = _load_key(path)
    if not isinstance(key, Ed25519PrivateKey):
        raise IdentityError(f"{path.name} must be an Ed25519 key")
    return key


def make_supernode_key() -> ec.EllipticCurvePrivateKey:
    """Make the EC P-256 key a SuperNode authenticates with.

    Flower accepts NIST curves only, and signs every call: P-384 takes OpenSSL eight times as long, and withstands no
    more than the rest of the protocol, whose curve is of 255 bits. Keys on P-384 that hospitals have stay valid.
    """
    return ec.generate_private_key(ec.SECP256R1())


def load_supernode_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a SuperNode's private key in OpenSSH's format, or raise :class:`IdentityError`."""
    try:
        key = serialization.load_ssh_private_key(_bounded(path.read_bytes()), None)
    except OSError as error:
        raise IdentityError(f"{path.name} must be readable: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise IdentityError(f"{path.name} must be an unencrypted OpenSSH private key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityError(f"{path.name} must be an elliptic-curve key")
    return key


def openssh_private(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the key in OpenSSH's private format, which ``flower-supernode`` reads."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def openssh_public(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return the key in OpenSSH's public format."""
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def _load_key(path: Path) -> object:
    try:
        return serialization.load_pem_private_key(_bounded(path.read_bytes()), None)
    except OSError as error:
        raise IdentityError(f"{path.name} must be readable: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise IdentityError(f"{path.name} must be an unencrypted PEM private key") from None


def _load_request(request_pem: bytes) -> x509.CertificateSigningRequest:
    try:
        request = x509.load_pem_x509_csr(_bounded(request_pem))
        valid = request.is_signature_valid
    except UNREADABLE:
        raise IdentityError("a signing request must be PEM (PKCS #10); send the file that was made for it") from None
    if not valid:
        raise IdentityError("a signing request must be signed by the key it holds")
    return request


def _bounded(content: bytes) -> bytes:
    if len(content) > _MAXIMUM_PEM_BYTES:
        raise IdentityError(
            f"a certificate, request or key must be at most {_MAXIMUM_PEM_BYTES} bytes, got {len(content)}"
        )
    return content


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: Ed25519PublicKey | ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    lifetime: datetime.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + lifetime)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
