"""An invitation: the one line that a consortium's operator sends to a hospital, by a way both trust.

It is MessagePack in base64url after a prefix that names the version. Whoever holds it can join once until it expires;
whoever changes it can at most make the hospital refuse: the authority's fingerprint is checked before anything is sent.
"""

import base64
import binascii
import datetime
import re
from typing import Annotated

import msgspec

from common.errors import EnrolmentError

TOKEN_BYTES = 32
FINGERPRINT_BYTES = 32

_PREFIX = "confide1-"
_MAXIMUM_CHARACTERS = 1024
_ALPHABET = re.compile(r"[A-Za-z0-9_-]+")
_HOST = r"^[A-Za-z0-9:]([A-Za-z0-9.:-]{0,252}[A-Za-z0-9:])?$"
"""What :func:`common.hosts.check_host` returns, and little more: IPv6 addresses may begin and end with colons."""
_LATEST = 2**33


class Invitation(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where to join, how to know the consortium, and what opens the door once.

    Attributes:
        host: DNS name or IP address of the server.
        port: of its enrolment service.
        fingerprint: SHA-256 of the authority's certificate, 32 bytes.
        token: 32 random bytes; the server keeps its hash alone.
        expires: seconds since 1970.
        name: the hospital's, or what the names of a group begin with.
    """

    host: Annotated[str, msgspec.Meta(pattern=_HOST)]
    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)]
    fingerprint: Annotated[bytes, msgspec.Meta(min_length=FINGERPRINT_BYTES, max_length=FINGERPRINT_BYTES)]
    token: Annotated[bytes, msgspec.Meta(min_length=TOKEN_BYTES, max_length=TOKEN_BYTES)]
    expires: Annotated[int, msgspec.Meta(ge=0, le=_LATEST)]
    name: Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9-]{0,62}$")]

    def __repr__(self) -> str:
        """Show everything but the token."""
        return f"Invitation({self.name!r}, {self.address!r}, expires={self.expires})"

    @property
    def address(self) -> str:
        """Host and port of the enrolment service, as gRPC wants them."""
        return join_host_port(self.host, self.port)

    def encode(self) -> str:
        """Return the one line that is sent."""
        return _PREFIX + base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).decode().rstrip("=")

    def check_time(self, now: datetime.datetime) -> None:
        """Raise :class:`EnrolmentError` if the invitation has expired at ``now``."""
        if now.timestamp() >= self.expires:
            expired = datetime.datetime.fromtimestamp(self.expires, datetime.UTC)
            raise EnrolmentError(
                f"an invitation must be used before it expires; this one did at {expired:%Y-%m-%d %H:%M} UTC; "
                "ask for a new one, or set this machine's clock"
            )

    @classmethod
    def decode(cls, line: str) -> "Invitation":
        """Read what :meth:`encode` wrote.

        Raises:
            EnrolmentError: too long, not an invitation, of another version, or a field is out of range.
        """
        line = line.strip()
        body = line.removeprefix(_PREFIX)
        if len(line) > _MAXIMUM_CHARACTERS or body == line or not _ALPHABET.fullmatch(body):
            raise EnrolmentError(
                f"an invitation must be one line that begins with {_PREFIX!r}, as `confide invite` prints it; "
                f"got {len(line)} characters"
            )
        try:
            packed = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
            invitation = msgspec.msgpack.decode(packed, type=cls)
        except (binascii.Error, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise EnrolmentError("the invitation was cut or changed on its way; copy the whole line") from None
        if invitation.encode() != line:
            raise EnrolmentError("the invitation was cut or changed on its way; copy the whole line")
        return invitation


def join_host_port(host: str, port: int) -> str:
    """Return ``host:port``, an IPv6 address in brackets.

    >>> join_host_port("::1", 9092)
    '[::1]:9092'
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
