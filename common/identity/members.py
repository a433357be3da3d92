"""Who the members of a consortium are: a numbered list that its authority signs, so that no server decides on it.

A run's threshold counts on how many hospitals may collude with the server, which is a part of the consortium. A server
that chose the roster would choose that number: of twelve members it would name the three of which two collude. So:

1. The list names every member and its Ed25519 identity key. The authority signs it under a mark of its own, so that
   the signature passes for no certificate and no revocation list, nor theirs for a member list.
2. Each admission and each revocation has a number of its own, one above the last.
3. A hospital keeps the newest list it has seen on its own disk and never goes back to a smaller number.
4. Two different lists of one number are a contradiction of the authority: refused, reported, and kept as evidence.
5. A revocation list says which member list was the newest when it was signed (``common.identity.revocation``). A server
   can therefore withhold a newer list no longer than it can withhold a revocation.

The file is canonical JSON: one encoding of each list, so that equal lists are equal bytes.
"""

import datetime
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes

from common.config import LONGEST_MEMBER_LIST_BYTES, MOST_HOSPITALS
from common.errors import IdentityError, StandingError
from common.files import locked, write_private
from common.identity.certificates import (
    HOSPITAL_NAME,
    CertificateAuthority,
    check_hospital_name,
)
from common.identity.keys import check_identity_key, checked_identity_key
from common.identity.newest import NewestFile

MEMBERS_FILE = "members.json"
"""The name of the file, in every state folder and beside what an offline authority has signed."""

CONTRADICTION_FILE = "members-contradiction.json"
"""A file in a hospital's state folder: a list that the authority signed after signing another of the same number."""

MAXIMUM_MEMBERS_BYTES = LONGEST_MEMBER_LIST_BYTES

LARGEST_NUMBER = 2**53 - 1

_VERSION = 1
_MARK = b"confide member list 1\0"
"""Precedes what is signed. A certificate or a revocation list begins with the byte 0x30 of a DER sequence."""

_LOG = logging.getLogger("confide.members")

_Name = Annotated[str, msgspec.Meta(pattern=f"^{HOSPITAL_NAME.pattern}$", max_length=63)]
_Key = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", max_length=64)]
_Signature = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{128}$", max_length=128)]


class _Listed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    issued: Annotated[int, msgspec.Meta(ge=0, le=2**33)]
    members: Annotated[dict[_Name, _Key], msgspec.Meta(max_length=MOST_HOSPITALS)]
    number: Annotated[int, msgspec.Meta(ge=1, le=LARGEST_NUMBER)]
    version: Annotated[int, msgspec.Meta(ge=_VERSION, le=_VERSION)]


class _Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    list: _Listed
    signature: _Signature


@dataclass(frozen=True)
class MemberList:
    """One list, verified.

    Attributes:
        number: grows with every admission and every revocation.
        issued: when its number was given.
        members: hospital to raw Ed25519 identity key, 32 bytes, sorted by name; each hospital has a key of its own.
        encoded: as the authority signed it.
    """

    number: int
    issued: datetime.datetime
    members: Mapping[str, bytes] = field(repr=False)
    encoded: bytes = field(repr=False)

    def text(self) -> str:
        """Return the signed list as the run description carries it."""
        return self.encoded.decode("ascii")


def sign_members(
    authority: CertificateAuthority, members: Mapping[str, bytes], number: int, issued: datetime.datetime
) -> bytes:
    """Return the list of a consortium's members, signed; the same arguments give the same bytes.

    Args:
        authority: of the consortium.
        members: hospital to raw Ed25519 identity key, 32 bytes.
        number: one above that of the list before, at least 1.
        issued: when this number was given, to the second.

    Raises:
        IdentityError: a name, a key or the number breaks a rule of the list, or there are too many members.
    """
    keys = _checked(members)
    listed = _Listed(
        issued=int(issued.timestamp()),
        members={name: key.hex() for name, key in keys.items()},
        number=number,
        version=_VERSION,
    )
    signature = authority.key.sign(_signed_bytes(listed, authority.certificate))
    encoded = _encode(_Signed(listed, signature.hex()))
    verify_members(encoded, authority.certificate)
    return encoded


def verify_members(encoded: bytes, authority: x509.Certificate) -> MemberList:
    """Read a list and check that ``authority`` signed it.

    Raises:
        IdentityError: too long, not a list or not its one encoding, not the authority's, or a key in it is of small
            order or two hospitals'.
    """
    if len(encoded) > MAXIMUM_MEMBERS_BYTES:
        raise IdentityError(f"a member list must be at most {MAXIMUM_MEMBERS_BYTES} bytes, got {len(encoded)}")
    try:
        signed = msgspec.json.decode(encoded, type=_Signed)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise IdentityError("a member list must be JSON as `confide ca` writes it; bring the file again") from None
    if _encode(signed) != encoded:
        raise IdentityError("a member list must be in its one encoding; bring the file again as it was written")
    key = checked_identity_key(authority.public_key(), "the consortium's authority")
    listed = signed.list
    try:
        key.verify(bytes.fromhex(signed.signature), _signed_bytes(listed, authority))
    except InvalidSignature:
        raise IdentityError("a member list must be signed by the consortium's authority") from None
    members = _checked({name: bytes.fromhex(raw) for name, raw in listed.members.items()})
    issued = datetime.datetime.fromtimestamp(listed.issued, datetime.UTC)
    return MemberList(listed.number, issued, members, encoded)


class KeptMembers:
    """The newest list that a hospital, or a server, has seen, on its own disk; it never goes back to an older one.

    Several processes may hold one each for the same folder.
    """

    def __init__(self, folder: Path, authority: x509.Certificate) -> None:
        self._folder = folder
        self._path = folder / MEMBERS_FILE
        self.authority = authority
        self._file = NewestFile(self._path, lambda encoded: verify_members(encoded, authority))

    def newest(self) -> MemberList | None:
        """Return the newest list, None where none has ever been there.

        Raises:
            IdentityError: the file cannot be read or is no list of the authority.
        """
        return self._file.read()

    def accept(self, encoded: bytes) -> MemberList:
        """Keep ``encoded`` if it is newer than what is there; return the list it is, which is the newest then.

        Raises:
            StandingError: an older one than has been seen; whoever sent it must send the newest.
            IdentityError: it is no list of the authority, or contradicts the list of the same number.
        """
        offered = verify_members(encoded, self.authority)
        with locked(self._folder):
            newest = self.newest()
            if newest is not None and offered.number < newest.number:
                raise StandingError(
                    f"a member list must not be older than number {newest.number}, which has been seen here; "
                    f"got number {offered.number}"
                )
            if newest is not None and offered.number == newest.number:
                if offered.encoded != newest.encoded:
                    self._denounce(offered, newest)
                return newest
            write_private(self._path, encoded)
        return offered

    def _denounce(self, offered: MemberList, newest: MemberList) -> None:
        """Keep the proof that the authority has signed two lists of one number, and refuse the second."""
        evidence = self._folder / CONTRADICTION_FILE
        if not evidence.exists():
            write_private(evidence, offered.encoded)
        names = sorted(
            name
            for name in offered.members.keys() | newest.members.keys()
            if offered.members.get(name) != newest.members.get(name)
        )
        _LOG.error(
            "THE CONSORTIUM'S AUTHORITY HAS SIGNED TWO DIFFERENT MEMBER LISTS OF NUMBER %d (they differ in: %s). "
            "Somebody else has its key, or it was restored from an old backup. %s and %s prove it; ask its operator.",
            offered.number, ", ".join(names) or "the time", self._path.name, evidence.name,
        )  # fmt: skip
        raise IdentityError(
            f"the authority must sign one member list of number {offered.number}; this one differs from the one seen "
            f"before, in {', '.join(names)[:200] or 'the time'}; ask the consortium's operator who has the authority's "
            "key before taking part in anything"
        )


def _checked(members: Mapping[str, bytes]) -> dict[str, bytes]:
    keys = {check_hospital_name(name): check_identity_key(members[name], name) for name in sorted(members)}
    if len(set(keys.values())) != len(keys):
        raise IdentityError("every member must have a key of its own; two of the list share one")
    if len(keys) > MOST_HOSPITALS:
        raise IdentityError(f"a consortium must have at most {MOST_HOSPITALS} members, got {len(keys)}")
    return keys


def _encode(message: _Signed | _Listed) -> bytes:
    return msgspec.json.encode(message, order="sorted")


def _signed_bytes(listed: _Listed, authority: x509.Certificate) -> bytes:
    return _MARK + authority.fingerprint(hashes.SHA256()) + hashlib.sha256(_encode(listed)).digest()
