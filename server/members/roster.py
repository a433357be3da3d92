"""Who may take part: invitations, the roster and the SuperNodes' keys, as files in the server's state folder.

The command line and the enrolment service change them, each under the folder's lock; the supervisor and the ServerApp
read them. An invitation's token is not on disk; its hash is.
"""

import datetime
import hashlib
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
import yaml
from cryptography import x509

from common.config import PROTOCOL_VERSION
from common.errors import ConfigError, EnrolmentError, IdentityError
from common.files import locked, write_private
from common.identity.certificates import (
    check_hospital_name,
    read_certificate,
    verify_roster,
)
from common.identity.invitation import TOKEN_BYTES
from common.identity.members import KeptMembers
from common.settings import ROSTER_FILE, SUPERNODES_FOLDER
from common.yaml_text import NO_YAML, read_yaml
from server.members.ledgers import RememberedLedgers
from server.members.versions import MemberVersions

INVITATIONS_FOLDER = "invitations"
MOST_USES = 1024
"""The most uses of one invitation: as many hospitals as a run can have."""

_VERSION = 1
_KEPT_SECONDS = 7 * 24 * 3600
"""An expired invitation is kept this long, so that its late user learns that it has expired."""


class _Invited(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an invitation allows, and who has used it: fingerprint of the identity key to name."""

    name: str
    expires: float
    group: Annotated[int, msgspec.Meta(ge=1, le=MOST_USES)] | None
    """How many hospitals may join with it, numbered; None for the one hospital that has the name itself."""
    taken: dict[str, str] = {}
    revoked: tuple[str, ...] = ()
    """The taken names that were revoked; none is given to another hospital."""
    version: Annotated[int, msgspec.Meta(ge=_VERSION, le=_VERSION)] = _VERSION


@dataclass(frozen=True)
class OpenInvitation:
    """An invitation that still works, without what is needed to use it."""

    name: str
    """The hospital's, or what the names of a group begin with."""
    expires: datetime.datetime
    left: int
    """How many hospitals may still join with it."""
    group: bool


@dataclass(frozen=True)
class Members:
    """All members of a consortium, as a run is described with them.

    Attributes:
        roster: name to PEM identity certificate, which may have expired, for everyone on the list.
        keys: of the same hospitals, raw Ed25519, 32 bytes, each checked against the authority and the list.
        member_list: as the authority signed it.
        absent: who of them cannot take part now: its certificate has expired, its SuperNode was cut off, it came back
            with a ledger that says less than before, or it speaks another version of the protocol.
    """

    roster: dict[str, str] = field(repr=False)
    keys: dict[str, bytes] = field(repr=False)
    member_list: str = field(repr=False)
    absent: frozenset[str]


class Membership:
    """The members of one consortium."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._invitations = state / INVITATIONS_FOLDER
        self.versions = MemberVersions(state)

    def invite(self, name: str, expires: datetime.datetime, group: int | None = None) -> bytes:
        """Make an invitation and return its token, 32 random bytes.

        Args:
            name: the hospital's, or what the names of a group begin with: ``name-1``, ``name-2``, ….
            expires: when it stops to work.
            group: how many hospitals may join with it; None for one, which is called ``name``.

        Raises:
            IdentityError: not a hospital's name.
            EnrolmentError: a member has that name already, or the group is too large.
        """
        check_hospital_name(name if group is None else f"{name}-{MOST_USES}")
        if group is not None and not 1 <= group <= MOST_USES:
            raise EnrolmentError(f"a group must be of 1 to {MOST_USES} hospitals, got {group}")
        if group is None and name in self.roster():
            raise EnrolmentError(f"{name} is a member already; `confide revoke {name}` first, or choose another name")
        token = secrets.token_bytes(TOKEN_BYTES)
        with locked(self._invitations):
            self._write(self._path(token), _Invited(name, expires.timestamp(), group))
        return token

    def take(self, token: bytes, key_fingerprint: str, now: datetime.datetime, wish: str = "") -> str:
        """Use an invitation up and return the hospital's name.

        The same key may ask again: the answer to its first request may have been lost.

        Args:
            token: as the hospital sent it.
            key_fingerprint: of the identity key, in hexadecimal.
            now: the current time.
            wish: the name that the hospital would like; it gets that where the invitation is for a group, and the name
                is one of the group's that nobody has had.

        Raises:
            EnrolmentError: no such invitation, it has expired or is used up, or its user was revoked.
        """
        path = self._path(token)
        if not path.exists():
            raise EnrolmentError("the token must be one of an invitation of this consortium")
        with locked(self._invitations):
            invited = self._read(path)
            if key_fingerprint in invited.taken:
                name = invited.taken[key_fingerprint]
                if name in invited.revoked:
                    raise EnrolmentError(f"{name}, which used this invitation, was revoked; ask for a new one")
                return name
            if now.timestamp() >= invited.expires:
                raise EnrolmentError("the invitation has expired; ask the consortium for a new one")
            if len(invited.taken) >= (invited.group or 1):
                raise EnrolmentError("the invitation has been used; ask the consortium for a new one")
            name = self._free_name(invited, wish)
            self._write(path, msgspec.structs.replace(invited, taken={**invited.taken, key_fingerprint: name}))
        return name

    def open_invitations(self, now: datetime.datetime) -> tuple[OpenInvitation, ...]:
        """Return the invitations that still work, those that end first at the beginning."""
        found = (self._read(path) for path in sorted(self._invitations.glob("*.json")))
        still_open = [
            OpenInvitation(
                invited.name, datetime.datetime.fromtimestamp(invited.expires, datetime.UTC),
                (invited.group or 1) - len(invited.taken), invited.group is not None,
            )
            for invited in found
            if now.timestamp() < invited.expires and len(invited.taken) < (invited.group or 1)
        ]  # fmt: skip
        return tuple(sorted(still_open, key=lambda each: (each.expires, each.name)))

    def forget_expired(self, now: datetime.datetime) -> None:
        """Remove invitations that expired long ago."""
        with locked(self._invitations):
            for path in self._invitations.glob("*.json"):
                if self._read(path).expires + _KEPT_SECONDS < now.timestamp():
                    path.unlink()

    def admit(self, name: str, certificate: bytes, supernode: bytes | None = None) -> None:
        """Put a hospital on the roster with its newest certificate (PEM), and its SuperNode's key when it joins."""
        with locked(self._state):
            if supernode is not None:
                write_private(self._supernode(name), supernode)
            self._write_roster({**self.roster(), name: certificate.decode()})

    def remove(self, name: str, *, still_listed: bool = False) -> bool:
        """Take a hospital's SuperNode's key away, and the hospital off the roster; says whether it was there.

        Its invitation becomes void, used or not.

        Args:
            name: the hospital's.
            still_listed: the authority's list names it until the authority signs another; its certificate
                stays until then, because every run is described with all who are on the list.
        """
        self._void_invitations(name)
        with locked(self._state):
            roster = self.roster()
            self._supernode(name).unlink(missing_ok=True)
            if name not in roster:
                return False
            if not still_listed:
                self._write_roster({other: pem for other, pem in roster.items() if other != name})
        return True

    def is_cut_off(self, name: str) -> bool:
        """Return whether the server lets no SuperNode of this hospital in."""
        return not self._supernode(name).exists()

    def roster(self) -> dict[str, str]:
        """Return each member's name and certificate as PEM; empty before the first has joined."""
        path = self._state / ROSTER_FILE
        try:
            roster = read_yaml(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, *NO_YAML) as error:
            raise ConfigError(f"{path.name} must be readable: {error}; restore it from a backup") from None
        if not isinstance(roster, dict) or not all(isinstance(item, str) for pair in roster.items() for item in pair):
            raise ConfigError(f"{path.name} must map each hospital's name to its certificate; restore it from a backup")
        return roster

    def all_members(
        self, authority: x509.Certificate, now: datetime.datetime, version: int = PROTOCOL_VERSION
    ) -> Members:
        """Return the consortium as the authority's newest list that is here names it.

        Args:
            authority: the consortium's.
            now: the current time.
            version: of the run's protocol; members that do not speak it are absent.

        Raises:
            IdentityError: there is no list, a certificate of somebody on it is missing or not the authority's, or has
                another key than the list.
        """
        newest = KeptMembers(self._state, authority).newest()
        if newest is None:
            raise IdentityError("the authority must have signed a member list; nobody has joined yet")
        known = self.roster()
        missing = sorted(newest.members.keys() - known.keys())
        if missing:
            raise IdentityError(
                f"the server must have the certificate of every member; {', '.join(missing)[:200]} must join again"
            )
        roster = {name: known[name] for name in newest.members}
        keys = verify_roster(roster, authority)
        if keys != newest.members:
            raise IdentityError("the certificates of the roster must hold the keys of the authority's member list")
        expired = {name for name, pem in roster.items() if read_certificate(pem.encode()).not_valid_after_utc <= now}
        ledgers = RememberedLedgers(self._state, authority)
        cut_off = {name for name in roster if self.is_cut_off(name) or ledgers.is_less(name)}
        others = self.versions.others(version) & roster.keys()
        return Members(roster, keys, newest.text(), frozenset(expired | cut_off | others))

    def supernode_keys(self) -> dict[str, bytes]:
        """Return the members' SuperNode keys, OpenSSH, by the hospitals' names."""
        keys = {}
        for path in sorted((self._state / SUPERNODES_FOLDER).glob("*.pub")):
            try:
                keys[path.stem] = path.read_bytes()
            except FileNotFoundError:  # The hospital was revoked just now.
                continue
        return keys

    def _void_invitations(self, name: str) -> None:
        with locked(self._invitations):
            for path in self._invitations.glob("*.json"):
                invited = self._read(path)
                if invited.group is None and invited.name == name and not invited.taken:
                    path.unlink()
                elif name in invited.taken.values() and name not in invited.revoked:
                    self._write(path, msgspec.structs.replace(invited, revoked=(*invited.revoked, name)))

    def _free_name(self, invited: _Invited, wish: str) -> str:
        if invited.group is None:
            return invited.name
        taken = {name for path in self._invitations.glob("*.json") for name in self._read(path).taken.values()}
        used = self.roster().keys() | taken
        start, _, number = wish.rpartition("-")
        is_ours = start == invited.name and number.isascii() and number.isdigit() and number == str(int(number))
        if is_ours and 1 <= int(number) <= MOST_USES and wish not in used:
            return wish
        return next(name for number in range(1, len(used) + 2) if (name := f"{invited.name}-{number}") not in used)

    def _write_roster(self, roster: dict[str, str]) -> None:
        write_private(self._state / ROSTER_FILE, yaml.safe_dump(roster).encode())

    def _supernode(self, name: str) -> Path:
        return self._state / SUPERNODES_FOLDER / f"{check_hospital_name(name)}.pub"

    def _path(self, token: bytes) -> Path:
        return self._invitations / f"{hashlib.sha256(token).hexdigest()}.json"

    def _read(self, path: Path) -> _Invited:
        try:
            return msgspec.json.decode(path.read_bytes(), type=_Invited)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise EnrolmentError(f"an invitation's record cannot be read: {error}; make a new invitation") from None

    def _write(self, path: Path, invited: _Invited) -> None:
        write_private(path, msgspec.json.encode(invited))
