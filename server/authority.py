"""The certificate authority as a folder: its certificate and key, and a register of all that it ever signed.

It lies beside the server when that signs by itself, or on a machine without a network (``confide ca``).
"""

import datetime
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography import x509

from common.errors import IdentityError
from common.identity import (
    CertificateAuthority,
    certificate_pem,
    load_certificate,
    load_signing_key,
    make_authority,
    private_key_pem,
    sign_hospital_certificate,
    sign_server_certificate,
    write_private,
)
from common.locks import locked
from common.revocation import sign_revocations

CERTIFICATE_FILE = "ca.pem"
KEY_FILE = "ca.key"
REGISTER_FILE = "register.json"

_VERSION = 1


class _Issued(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One certificate that was signed for a hospital; times are seconds since 1970."""

    name: str
    serial: str
    """Hexadecimal: it has more bits than a JSON number."""
    expires: float
    revoked: float | None = None


class _Register(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: Annotated[int, msgspec.Meta(ge=_VERSION, le=_VERSION)] = _VERSION
    list_number: Annotated[int, msgspec.Meta(ge=0)] = 0
    issued: tuple[_Issued, ...] = ()


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
    def make(cls, folder: Path, common_name: str, now: datetime.datetime) -> "Authority":
        """Make a new authority in ``folder``, which must not hold one."""
        if exists(folder) or (folder / CERTIFICATE_FILE).exists():
            raise IdentityError(f"{folder} must not hold an authority yet; it does, and was left alone")
        made = make_authority(common_name, now)
        write_private(folder / KEY_FILE, private_key_pem(made.key))
        write_private(folder / CERTIFICATE_FILE, certificate_pem(made.certificate))
        return cls(folder)

    def sign_hospital(
        self, request_pem: bytes, name: str, now: datetime.datetime, lifetime: datetime.timedelta
    ) -> x509.Certificate:
        """Sign a hospital's request as ``name`` and enter it in the register before it can be used."""
        certificate = sign_hospital_certificate(self._pair, request_pem, name, now, lifetime)
        entry = _Issued(name, f"{certificate.serial_number:x}", certificate.not_valid_after_utc.timestamp())
        with locked(self._folder):
            register = self._read()
            self._write(msgspec.structs.replace(register, issued=(*register.issued, entry)))
        return certificate

    def sign_server(self, request_pem: bytes, now: datetime.datetime, lifetime: datetime.timedelta) -> x509.Certificate:
        """Sign a server's request, for the hosts it names."""
        return sign_server_certificate(self._pair, request_pem, now, lifetime)

    def revoke(self, name: str, now: datetime.datetime) -> int:
        """Revoke every certificate of hospital ``name`` that has not expired; returns how many there were."""
        with locked(self._folder):
            register = self._read()
            issued = tuple(
                msgspec.structs.replace(entry, revoked=now.timestamp())
                if entry.name == name and entry.revoked is None and entry.expires > now.timestamp()
                else entry
                for entry in register.issued
            )
            self._write(msgspec.structs.replace(register, issued=issued))
        return sum(after != before for after, before in zip(issued, register.issued, strict=True))

    def sign_revocations(self, now: datetime.datetime, lifetime: datetime.timedelta) -> bytes:
        """Return a new revocation list, with a higher number than any before.

        Certificates that have expired leave the register and the list: nobody accepts them anyway.
        """
        with locked(self._folder):
            register = self._read()
            number = register.list_number + 1
            issued = tuple(entry for entry in register.issued if entry.expires > now.timestamp())
            self._write(_Register(list_number=number, issued=issued))
        revoked = {
            int(entry.serial, 16): datetime.datetime.fromtimestamp(entry.revoked, datetime.UTC)
            for entry in issued
            if entry.revoked is not None
        }
        return sign_revocations(self._pair, revoked, number, now, lifetime)

    def _read(self) -> _Register:
        path = self._folder / REGISTER_FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=_Register)
        except FileNotFoundError:
            return _Register()
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise IdentityError(f"the authority's {REGISTER_FILE} cannot be read: {error}; restore it") from None

    def _write(self, register: _Register) -> None:
        write_private(self._folder / REGISTER_FILE, msgspec.json.encode(register))


def exists(folder: Path) -> bool:
    """Say whether ``folder`` holds an authority's key."""
    return (folder / KEY_FILE).exists()
