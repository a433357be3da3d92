"""What the authority signs for a running server: certificates, the revocation list, and the list of members.

Where the authority's key is at hand it signs at once. Where it is kept offline, requests wait as files for
``confide ca sign``, and what comes back is taken up from the same folder. A member list is taken up when the server has
the certificate of everyone on it, because a run is described with all of them.
"""

import datetime
import logging
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from common.config import EnrolmentConfig
from common.errors import IdentityError, StandingError
from common.files import write_private
from common.identity.certificates import (
    CLOCK_SKEW,
    HospitalSigningRequest,
    certificate_pem,
    load_certificate,
    load_server_key,
    make_server_key,
    private_key_pem,
    read_certificate,
    request_server_certificate,
    verify_hospital_certificate,
    verify_issued_to_hospital,
    verify_server_certificate,
)
from common.identity.members import MEMBERS_FILE, KeptMembers, MemberList, verify_members
from common.identity.revocation import REVOCATIONS_FILE, Revocations
from common.settings import ServerSettings
from server.members.authority import Authority, Lists
from server.members.roster import Membership
from server.members.tls import TLS_CERTIFICATE_FILE, TLS_KEY_FILE

REQUESTS_FOLDER = "requests"
"""A folder in the server's state folder: what waits for an offline authority, and what it has signed."""

_SERVER_REQUEST = "server.members.tls"
"""A name with a dot, which no hospital's name has."""

_LOOPBACK = "127.0.0.1"
"""The address at which the server's own processes reach its SuperLink, by the same certificate."""

_RENEWED_WITH_LEFT = 1 / 3
"""The share of its time that a certificate has left when it is renewed."""

_LOG = logging.getLogger("confide.enrolment")


class Certificates:
    """The certificates of one server and its hospitals."""

    def __init__(self, state: Path, settings: ServerSettings, config: EnrolmentConfig) -> None:
        self._state = state
        self._hosts = tuple(dict.fromkeys((*settings.hosts, _LOOPBACK)))
        self._config = config
        self._requests = state / REQUESTS_FOLDER
        self._authority = None if settings.authority is None else Authority(settings.authority)
        self.root = load_certificate(state / "ca.pem")
        self._revocations = Revocations(state, self.root)
        self._members = KeptMembers(state, self.root)
        self._membership = Membership(state)
        self._awaited: tuple[str, ...] = ()

    @property
    def is_offline(self) -> bool:
        """Whether the authority signs elsewhere, so that a person there must admit and revoke."""
        return self._authority is None

    def hospital(self, name: str, request: HospitalSigningRequest, now: datetime.datetime) -> bytes | None:
        """Return the certificate for a hospital's request as PEM, None while an offline authority has not signed it."""
        if self._authority is not None:
            lifetime = datetime.timedelta(hours=self._config.hospital_certificate_hours)
            return certificate_pem(self._authority.sign_hospital(request, name, now, lifetime))
        signed = self._take_up(name)
        if signed is not None:
            try:
                if verify_hospital_certificate(signed, name, self.root, now) == request.key:
                    return signed
                _LOG.warning("what was signed for %s is for another key; its newest request waits now", name)
            except IdentityError as error:
                _LOG.warning("what was signed for %s cannot be used: %s", name, error)
        self._hand_over(name, request.pem)
        return None

    def is_due(self, certificate: x509.Certificate, now: datetime.datetime) -> bool:
        """Return whether a certificate should be renewed."""
        signed, ends = certificate.not_valid_before_utc + CLOCK_SKEW, certificate.not_valid_after_utc
        return ends - now < (ends - signed) * _RENEWED_WITH_LEFT

    def revocations(self) -> bytes:
        """Return the newest revocation list as DER, or raise :class:`IdentityError` where no list was signed yet."""
        newest = self._revocations.newest()
        if newest is None:
            raise IdentityError("the authority must have signed a revocation list; `confide ca sign` makes one")
        return newest.encoded

    def members(self) -> MemberList:
        """Return the newest member list that this server can describe a run with.

        Raises:
            IdentityError: no list was signed yet.
        """
        newest = self._members.newest()
        if newest is None:
            raise IdentityError(f"the authority must have signed {MEMBERS_FILE}; `confide ca sign` writes it")
        return newest

    def names(self, name: str) -> bool:
        """Return whether the newest member list names this hospital."""
        newest = self._members.newest()
        return newest is not None and name in newest.members

    def lists(self, name: str, certificate: bytes) -> bool:
        """Return whether the newest member list names this hospital with the key of its certificate (PEM)."""
        newest = self._members.newest()
        key = verify_issued_to_hospital(read_certificate(certificate), name, self.root).public_bytes_raw()
        return newest is not None and newest.members.get(name) == key

    def is_revoked(self, certificate: x509.Certificate) -> bool:
        """Return whether the newest list names this certificate."""
        newest = self._revocations.newest()
        return newest is not None and certificate.serial_number in newest.revoked

    def keep_current(self, now: datetime.datetime) -> None:
        """Renew the server's certificate and the lists where their time has come, or an offline authority has."""
        self._keep_lists_current(now)
        self._keep_server_current(now)

    def is_ready(self) -> bool:
        """Return whether the server has a certificate and a revocation list, so that hospitals can come."""
        return (self._state / TLS_CERTIFICATE_FILE).exists() and self._revocations.newest() is not None

    def publish_lists(self, now: datetime.datetime) -> bool:
        """Have new lists signed at once; says whether that was possible, which it is not with an offline authority."""
        if self._authority is None:
            return False
        self._publish(self._authority.sign_lists(now, datetime.timedelta(hours=self._config.revocations_hours)), now)
        return True

    def revoke(self, name: str, now: datetime.datetime) -> bool:
        """Revoke a hospital's certificates and publish that; False with an offline authority, which must do both."""
        if self._authority is not None:
            self._authority.revoke(name, now)
        return self.publish_lists(now)

    def _publish(self, lists: Lists, now: datetime.datetime) -> None:
        # The member list goes first: a revocation list knows its number, and hospitals ask for that one from then on.
        if lists.members is not None:
            self._take_up_members(lists.members, now)
        self._take_up_revocations(lists.revocations)

    def _keep_lists_current(self, now: datetime.datetime) -> None:
        if self._authority is None:
            members, revocations = self._requests / MEMBERS_FILE, self._requests / REVOCATIONS_FILE
            if members.exists() and self._take_up_members(members.read_bytes(), now):
                members.unlink()
            if revocations.exists():
                self._take_up_revocations(revocations.read_bytes())
                revocations.unlink()
            return
        newest = self._revocations.newest()
        if newest is None or newest.next_update - now < (newest.next_update - newest.issued) / 2:
            self.publish_lists(now)

    def _take_up_revocations(self, encoded: bytes) -> None:
        try:
            self._revocations.accept(encoded)
        except StandingError as error:  # A newer one came meanwhile, by another of this server's processes or a person.
            _LOG.warning("%s", error)

    def _take_up_members(self, encoded: bytes, now: datetime.datetime) -> bool:
        """Change to a member list once this server has everyone's certificate; return whether it has."""
        offered, before = verify_members(encoded, self.root), self._members.newest()
        roster = self._membership.roster()
        awaited = tuple(name for name, key in offered.members.items() if not self._has(roster, name, key, now))
        if awaited and (before is None or offered.number > before.number):
            if awaited != self._awaited:
                self._awaited = awaited
                _LOG.warning(
                    "member list %d waits for the certificates of %s: put NAME.pem of each into %s",
                    offered.number, ", ".join(awaited), self._requests,
                )  # fmt: skip
            return False
        try:
            self._members.accept(encoded)
        except StandingError as error:  # As above.
            _LOG.warning("%s", error)
            return True
        self._cut_off(offered, before)
        return True

    def _has(self, roster: dict[str, str], name: str, key: bytes, now: datetime.datetime) -> bool:
        """Return whether a member's certificate is here; one that waits for its hospital to ask again is taken up."""
        if name in roster:
            certificate = read_certificate(roster[name].encode())
            return verify_issued_to_hospital(certificate, name, self.root).public_bytes_raw() == key
        try:
            signed = (self._requests / f"{name}.pem").read_bytes()
            if verify_hospital_certificate(signed, name, self.root, now).public_bytes_raw() != key:
                return False
        except FileNotFoundError:
            return False
        except IdentityError as error:
            _LOG.warning("what was signed for %s cannot be used: %s", name, error)
            return False
        self._membership.admit(name, signed)
        self._take_up(name)
        return True

    def _cut_off(self, newest: MemberList, before: MemberList | None) -> None:
        """Cut off whom the authority has taken from the list."""
        gone: Sequence[str] = sorted(() if before is None else before.members.keys() - newest.members.keys())
        for name in gone:
            self._membership.remove(name)
            _LOG.info("%s is no member any more, by the authority's list %d", name, newest.number)

    def _keep_server_current(self, now: datetime.datetime) -> None:
        path = self._state / TLS_CERTIFICATE_FILE
        key = self._server_key()
        if path.exists():
            certificate = load_certificate(path)
            fits = verify_server_certificate(certificate, self.root, key, self._hosts)
            if fits and not self.is_due(certificate, now):
                return
        signed = self._sign_server(key, now)
        if signed is not None:
            write_private(path, signed)
            _LOG.info("the server has a new certificate for %s", ", ".join(self._hosts))

    def _sign_server(self, key: ec.EllipticCurvePrivateKey, now: datetime.datetime) -> bytes | None:
        request = request_server_certificate(self._hosts, key)
        if self._authority is not None:
            lifetime = datetime.timedelta(hours=self._config.server_certificate_hours)
            return certificate_pem(self._authority.sign_server(request, now, lifetime))
        signed = self._take_up(_SERVER_REQUEST)
        if signed is not None:
            certificate = x509.load_pem_x509_certificate(signed)
            if verify_server_certificate(certificate, self.root, key, self._hosts):
                return signed
            _LOG.warning("what was signed for the server does not fit it; its newest request waits now")
        self._hand_over(_SERVER_REQUEST, request.pem)
        return None

    def _server_key(self) -> ec.EllipticCurvePrivateKey:
        """Return the server's key, the same for its life: key and certificate cannot be replaced in one step."""
        path = self._state / TLS_KEY_FILE
        if not path.exists():
            write_private(path, private_key_pem(make_server_key()))
        return load_server_key(path)

    def _hand_over(self, name: str, request_pem: bytes) -> None:
        path = self._requests / f"{name}.csr"
        if not path.exists() or path.read_bytes() != request_pem:
            write_private(path, request_pem)
            _LOG.info("%s waits for the authority's signature in %s", path.name, self._requests)

    def _take_up(self, name: str) -> bytes | None:
        """Return what the authority has signed, once, and remove it with its request."""
        path = self._requests / f"{name}.pem"
        try:
            signed = path.read_bytes()
        except FileNotFoundError:
            return None
        path.unlink()
        (self._requests / f"{name}.csr").unlink(missing_ok=True)
        return signed
