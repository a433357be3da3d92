"""The certificate authority as a folder: its certificate and key, and a register of members and of what it signed.

It lies on a machine of the organiser's, which needs no network (``confide ca``), or beside a server that is configured
to hold it. The register decides who is a member: a certificate that expires ends no membership, a revocation does.
"""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography import x509

from common.errors import IdentityError
from common.files import locked, write_private
from common.identity.certificates import (
    CertificateAuthority,
    HospitalSigningRequest,
    ServerSigningRequest,
    certificate_pem,
    load_certificate,
    load_signing_key,
    make_authority,
    private_key_pem,
    sign_hospital_certificate,
    sign_server_certificate,
)
from common.identity.members import LARGEST_NUMBER, sign_members
from common.identity.revocation import sign_revocations

CERTIFICATE_FILE = "ca.pem"
KEY_FILE = "ca.key"
REGISTER_FILE = "register.json"

_VERSION = 2


class _Issued(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One certificate that was signed for a hospital; times are seconds since 1970."""

    name: str
    serial: str
    """The serial number in hexadecimal: it has more bits than a JSON number."""
    expires: float
    revoked: float | None = None


class _Register(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: Annotated[int, msgspec.Meta(ge=_VERSION, le=_VERSION)] = _VERSION
    list_number: Annotated[int, msgspec.Meta(ge=0)] = 0
    """The number of the newest revocation list."""
    issued: tuple[_Issued, ...] = ()
    members: dict[str, str] = {}
    """Hospital to its raw Ed25519 identity key in hexadecimal; certificates may expire, membership does not."""
    members_number: Annotated[int, msgspec.Meta(ge=0, le=LARGEST_NUMBER)] = 0
    members_issued: Annotated[int, msgspec.Meta(ge=0, le=2**33)] = 0
    """When the members changed last, so that the list of one number is signed with the same bytes each time."""


@dataclass(frozen=True)
class Lists:
    """What goes to the server, and through it to every hospital, after each admission and revocation.

    Attributes:
        revocations: DER (:mod:`common.identity.revocation`).
        members: JSON (:mod:`common.identity.members`), None before the first member.
    """

    revocations: bytes = field(repr=False)
    members: bytes | None = field(repr=False)


class Authority:
    """Signs and revokes; every call may come from another process than the one before."""

    def __init__(self, folder: Path) -> None:
        """Open the authority in ``folder``.

        Raises:
            IdentityError: certificate or key is missing, broken, or the two do not belong together.
        """
        self.certificate = load_certificate(folder / CERTIFICATE_FILE)
        self._pair = CertificateAuthority(self.certificate, load_signing_key(folder / KEY_FILE))
        if self.certificate.public_key() != self._pair.key.public_key():
            raise IdentityError(
                f"{CERTIFICATE_FILE} must hold the public half of {KEY_FILE}; restore them from a backup"
            )
        self._folder = folder

    @classmethod
    def make(
        cls, folder: Path, common_name: str, now: datetime.datetime, *, held_by_server: bool = False
    ) -> "Authority":
        """Make a new authority in ``folder``, which must not hold one; its certificate says if a server holds it."""
        if exists(folder) or (folder / CERTIFICATE_FILE).exists():
            raise IdentityError(f"{folder} must not hold an authority yet; it does, and was left alone")
        made = make_authority(common_name, now, held_by_server=held_by_server)
        write_private(folder / KEY_FILE, private_key_pem(made.key))
        write_private(folder / CERTIFICATE_FILE, certificate_pem(made.certificate))
        return cls(folder)

    def sign_hospital(
        self, request: HospitalSigningRequest, name: str, now: datetime.datetime, lifetime: datetime.timedelta
    ) -> x509.Certificate:
        """Sign a hospital's request as ``name`` and enter it in the register before it can be used.

        A hospital that was no member becomes one, and the member list gets a new number.

        Raises:
            IdentityError: ``name`` is a member with another key, or its key is another's.
        """
        key = request.key.public_bytes_raw().hex()
        certificate = sign_hospital_certificate(self._pair, request, name, now, lifetime)
        entry = _Issued(name, f"{certificate.serial_number:x}", certificate.not_valid_after_utc.timestamp())
        with locked(self._folder):
            register = self._read()
            if register.members.get(name, key) != key:
                raise IdentityError(
                    f"{name} is a member with another key; `confide ca revoke {name}` first, then sign its new request"
                )
            others = [member for member, known in register.members.items() if known == key and member != name]
            if others:
                raise IdentityError(f"each member must have a key of its own; the key of {name} is {others[0]}'s")
            members = {**register.members, name: key}
            self._write(_with_members(_with_issued(register, (*register.issued, entry)), members, now))
        return certificate

    def sign_server(
        self, request: ServerSigningRequest, now: datetime.datetime, lifetime: datetime.timedelta
    ) -> x509.Certificate:
        """Sign a server's request, for the hosts it names."""
        return sign_server_certificate(self._pair, request, now, lifetime)

    def revoke(self, name: str, now: datetime.datetime) -> int:
        """Revoke every certificate of hospital ``name`` that has not expired; returns how many there were.

        The hospital is no member any more, also where all its certificates had expired.
        """
        with locked(self._folder):
            register = self._read()
            issued = tuple(
                msgspec.structs.replace(entry, revoked=now.timestamp())
                if entry.name == name and entry.revoked is None and entry.expires > now.timestamp()
                else entry
                for entry in register.issued
            )
            members = {member: key for member, key in register.members.items() if member != name}
            self._write(_with_members(_with_issued(register, issued), members, now))
        return sum(after != before for after, before in zip(issued, register.issued, strict=True))

    def sign_lists(self, now: datetime.datetime, lifetime: datetime.timedelta) -> Lists:
        """Return a new revocation list, with a higher number than any before, and the list of the members of now.

        Certificates that have expired leave the register and the revocation list: nobody accepts them anyway. The
        member list keeps its number, and is the same to the byte, where nobody has joined or been revoked since.
        """
        with locked(self._folder):
            register = self._read()
            issued = tuple(entry for entry in register.issued if entry.expires > now.timestamp())
            register = msgspec.structs.replace(register, issued=issued, list_number=register.list_number + 1)
            self._write(register)
        revoked = {
            int(entry.serial, 16): datetime.datetime.fromtimestamp(entry.revoked, datetime.UTC)
            for entry in issued
            if entry.revoked is not None
        }
        revocations = sign_revocations(
            self._pair, revoked, register.list_number, now, lifetime, register.members_number
        )
        return Lists(revocations, self._sign_members(register))

    def _sign_members(self, register: _Register) -> bytes | None:
        if not register.members_number:
            return None
        members = _raw_keys(register.members)
        issued = datetime.datetime.fromtimestamp(register.members_issued, datetime.UTC)
        return sign_members(self._pair, members, register.members_number, issued)

    def _read(self) -> _Register:
        path = self._folder / REGISTER_FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=_Register)
        except FileNotFoundError:
            return _Register()
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise IdentityError(
                f"the authority's {REGISTER_FILE} must be a register of version {_VERSION}: {error}; restore it from a "
                "backup, or make a new authority where it was made by an earlier version of Confide"
            ) from None

    def _write(self, register: _Register) -> None:
        write_private(self._folder / REGISTER_FILE, msgspec.json.encode(register))


def _with_issued(register: _Register, issued: tuple[_Issued, ...]) -> _Register:
    return msgspec.structs.replace(register, issued=issued)


def _with_members(register: _Register, members: dict[str, str], now: datetime.datetime) -> _Register:
    """Return the register with these members, and with the next number where they differ from those before."""
    if members == register.members:
        return register
    return msgspec.structs.replace(
        register, members=members, members_number=register.members_number + 1, members_issued=int(now.timestamp())
    )


def _raw_keys(members: Mapping[str, str]) -> dict[str, bytes]:
    try:
        return {name: bytes.fromhex(key) for name, key in members.items()}
    except ValueError:
        raise IdentityError(f"the authority's {REGISTER_FILE} must hold keys in hexadecimal; restore it") from None


def exists(folder: Path) -> bool:
    """Return whether ``folder`` holds an authority's key."""
    return (folder / KEY_FILE).exists()
