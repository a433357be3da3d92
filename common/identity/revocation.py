"""Whose certificate no longer counts: a revocation list signed by the authority (RFC 5280, section 5).

The list travels through the server, which could keep it back. So it carries a number, and a hospital never goes back
to a lower one; and it carries the time of the next list, after which a hospital takes part in nothing until it has one.
A lying server can hide a revocation for that long at most. The list also carries the number of the newest member list
(``common.identity.members``), so that the server can hide an admission for no longer either.
"""

import datetime
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from common.errors import IdentityError, StandingError
from common.files import write_private
from common.identity.certificates import (
    CLOCK_SKEW,
    UNREADABLE,
    CertificateAuthority,
)
from common.identity.keys import checked_identity_key
from common.identity.newest import NewestFile

REVOCATIONS_FILE = "revoked.crl"
"""The name of the file in the state folder of the server and of every hospital that enrolled."""

MAXIMUM_LIST_BYTES = 2**20
"""The largest list: some 25,000 revoked certificates."""

_MEMBERS_NUMBER = x509.ObjectIdentifier("2.25.19952096505202213937657809465443792450")
"""Extension: the number of the newest member list when this list was signed, a DER integer. The arc 2.25 is made of
random UUIDs and needs no registration (ITU-T X.667)."""
_INTEGER = 0x02
_SIGNATURE_HEAD = bytes((0x03, 0x41, 0x00))
"""Before the 64 bytes of an Ed25519 signature in DER: a bit string of 65 bytes, of which no bit is unused."""


@dataclass(frozen=True)
class RevocationList:
    """One list, verified.

    Attributes:
        number: grows with every list the authority signs.
        issued: when it was signed.
        next_update: after this time it says nothing any more.
        revoked: serial numbers.
        members_number: of the newest member list when this list was signed; 0 where there was none.
        encoded: DER.
    """

    number: int
    issued: datetime.datetime
    next_update: datetime.datetime
    revoked: frozenset[int]
    members_number: int
    encoded: bytes = field(repr=False)


def sign_revocations(
    authority: CertificateAuthority,
    revoked: Mapping[int, datetime.datetime],
    number: int,
    now: datetime.datetime,
    lifetime: datetime.timedelta,
    members_number: int = 0,
) -> bytes:
    """Return the DER of a list that holds from ``now`` for ``lifetime``.

    Args:
        authority: whose certificates are revoked.
        revoked: serial number to the time of revocation.
        number: higher than that of any list before.
        now: the current time.
        lifetime: until the next list must be there.
        members_number: of the newest member list; 0 where there is none.
    """
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(now - CLOCK_SKEW)
        .next_update(now + lifetime)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.UnrecognizedExtension(_MEMBERS_NUMBER, _der_integer(members_number)), critical=False)
    )
    for serial, when in sorted(revoked.items()):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(authority.key, None).public_bytes(serialization.Encoding.DER)


def verify_revocations(encoded: bytes, authority: x509.Certificate) -> RevocationList:
    """Read a list and check that ``authority`` signed it; its age is :meth:`Revocations.check`'s to judge.

    Raises:
        IdentityError: too long, not a list, without a number or a time for the next one, or not the authority's.
    """
    if len(encoded) > MAXIMUM_LIST_BYTES:
        raise IdentityError(f"a revocation list must be at most {MAXIMUM_LIST_BYTES} bytes, got {len(encoded)}")
    public_key = checked_identity_key(authority.public_key(), "the consortium's authority")
    try:
        listed = x509.load_der_x509_crl(encoded)
        genuine = listed.is_signature_valid(public_key) and listed.issuer == authority.subject
        # One list has one encoding: the library takes a signature whose last bits are said to be unused.
        genuine = genuine and encoded.endswith(_SIGNATURE_HEAD + listed.signature)
        number = listed.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        members = listed.extensions.get_extension_for_oid(_MEMBERS_NUMBER).value
        next_update = listed.next_update_utc
        revoked = frozenset(entry.serial_number for entry in listed)
    except (*UNREADABLE, x509.ExtensionNotFound):
        raise IdentityError(
            "a revocation list must be DER (RFC 5280) and carry its number, and that of the member list"
        ) from None
    if not genuine:
        raise IdentityError("a revocation list must be signed by the consortium's authority")
    if next_update is None:
        raise IdentityError("a revocation list must say when the next one is due")
    issued = listed.last_update_utc + CLOCK_SKEW
    return RevocationList(number, issued, next_update, revoked, _read_integer(members), encoded)


def _der_integer(value: int) -> bytes:
    content = value.to_bytes(value.bit_length() // 8 + 1, "big")
    return bytes((_INTEGER, len(content))) + content


def _read_integer(extension: x509.ExtensionType) -> int:
    encoded = extension.value if isinstance(extension, x509.UnrecognizedExtension) else b""
    value = int.from_bytes(encoded[2:10], "big")
    if _der_integer(value) != encoded:
        raise IdentityError("a revocation list must name the number of the newest member list as a DER integer")
    return value


class Revocations:
    """The newest list a hospital has seen, on its own disk; it never goes back to an older one."""

    def __init__(self, folder: Path, authority: x509.Certificate) -> None:
        self._path = folder / REVOCATIONS_FILE
        self._authority = authority
        self._file = NewestFile(self._path, lambda encoded: verify_revocations(encoded, authority))

    def newest(self) -> RevocationList | None:
        """Return the newest list, None where none has ever been there.

        Raises:
            IdentityError: the file cannot be read or is no list of the authority.
        """
        return self._file.read()

    def accept(self, encoded: bytes) -> RevocationList:
        """Keep ``encoded`` if it is newer than what is there; return the newest.

        Raises:
            StandingError: an older one than has been seen; whoever sent it must send the newest.
            IdentityError: it is no list of the authority.
        """
        offered = verify_revocations(encoded, self._authority)
        newest = self.newest()
        if newest is not None and offered.number < newest.number:
            raise StandingError(
                f"a revocation list must not be older than number {newest.number}, which this hospital has seen; "
                f"got number {offered.number}"
            )
        if newest is None or offered.number > newest.number:
            write_private(self._path, encoded)
        return self.newest() or offered

    def current(self, now: datetime.datetime) -> RevocationList | None:
        """Return the newest list, which is not too old at ``now``; None where none has ever been there.

        Raises:
            StandingError: the next list is overdue.
        """
        newest = self.newest()
        if newest is not None and now > newest.next_update:
            raise StandingError(
                f"a revocation list newer than {newest.next_update:%Y-%m-%d %H:%M} UTC must have arrived; none has, so "
                "nobody can say who is still a member; ask the consortium's operator, and check this machine's clock"
            )
        return newest

    def check(
        self, certificates: Mapping[str, x509.Certificate], names: Collection[str], now: datetime.datetime
    ) -> None:
        """Make sure that nobody of ``names`` is revoked or out of date at ``now``.

        A hospital that never got a list, such as one of an experiment in a single process, has nothing to check but
        dates. One that enrolled has had a list from the start.

        Raises:
            StandingError: a certificate is revoked or not valid now, or the list is too old to show it.
        """
        newest = self.current(now)
        for name in sorted(names):
            certificate = certificates[name]
            if newest is not None and certificate.serial_number in newest.revoked:
                raise StandingError(f"the certificate of {name} is revoked; the server must leave {name} out")
            if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
                raise StandingError(
                    f"the certificate of {name} on the roster is not valid now; the server must send its "
                    "new one; check this machine's clock, too"
                )
