"""Who signs audit chains: a hospital with its identity key, the server with the key of its TLS certificate.

Both certificates come from the consortium's authority, so a chain needs nothing else to be verified.
"""

import datetime
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID

from common.errors import IdentityError
from common.identity.certificates import UNREADABLE, certificate_pem, check_hospital_name, verify_hospital_certificate

SERVER_PARTY = "the server"
"""The server's name as a party; no hospital can have it, because a hospital's name is a DNS label."""

PublicKey = Ed25519PublicKey | ec.EllipticCurvePublicKey
_IDENTITY_URI = "confide:hospital:"
_MAXIMUM_PEM_BYTES = 16_384


@dataclass(frozen=True)
class Writer:
    """A party that writes a chain: its certificate, and the key that belongs to it."""

    certificate: x509.Certificate
    key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey = field(repr=False)

    def sign(self, message: bytes) -> bytes:
        """Return the signature: Ed25519 (RFC 8032), or ECDSA with SHA-256 (FIPS 186-5) of a TLS key."""
        if isinstance(self.key, Ed25519PrivateKey):
            return self.key.sign(message)
        return self.key.sign(message, ec.ECDSA(hashes.SHA256()))


def is_signed_by(key: PublicKey, signature: bytes, message: bytes) -> bool:
    """Return whether ``signature`` over ``message`` was made with the private half of ``key``."""
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, message)
        else:
            key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def verify_party(pem: bytes, authority: x509.Certificate, when: datetime.datetime) -> tuple[str, PublicKey]:
    """Return whose certificate ``pem`` is, a hospital's name or :data:`SERVER_PARTY`, and its public key.

    Args:
        pem: of one certificate.
        authority: the consortium's, which must have issued it.
        when: it must have been valid then.

    Raises:
        IdentityError: any of this does not hold.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem[:_MAXIMUM_PEM_BYTES])
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (*UNREADABLE, x509.ExtensionNotFound):
        raise IdentityError("must be a PEM certificate that names a party") from None
    if certificate_pem(certificate) != pem:
        raise IdentityError("must be a PEM certificate in its canonical form")
    if uris:
        name = check_hospital_name(uris[0].removeprefix(_IDENTITY_URI))
        return name, verify_hospital_certificate(pem, name, authority, when)
    return SERVER_PARTY, _server_key(certificate, authority, when)


def _server_key(
    certificate: x509.Certificate, authority: x509.Certificate, when: datetime.datetime
) -> ec.EllipticCurvePublicKey:
    try:
        certificate.verify_directly_issued_by(authority)
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (InvalidSignature, TypeError, ValueError, x509.ExtensionNotFound):
        raise IdentityError("the server's certificate must be signed by the consortium's authority") from None
    key = certificate.public_key()
    if ExtendedKeyUsageOID.SERVER_AUTH not in usage or not isinstance(key, ec.EllipticCurvePublicKey):
        raise IdentityError("the server's certificate must be a TLS server's with an elliptic-curve key")
    if not certificate.not_valid_before_utc <= when <= certificate.not_valid_after_utc:
        raise IdentityError("the server's certificate must be valid when it was used")
    return key
