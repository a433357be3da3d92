"""What the authority signs for a running server: hospitals' certificates, the server's own, and the revocation list.

Where the authority's key is at hand it signs at once. Where it is kept offline, requests wait as files for
``confide ca sign``, and what comes back is taken up from the same folder.
"""

import datetime
import logging
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from common.config import EnrolmentConfig
from common.errors import IdentityError
from common.identity import (
    CLOCK_SKEW,
    certificate_pem,
    load_certificate,
    load_server_key,
    make_server_key,
    private_key_pem,
    request_server_certificate,
    requested_hospital_key,
    verify_hospital_certificate,
    verify_server_certificate,
    write_private,
)
from common.revocation import REVOCATIONS_FILE, Revocations
from common.settings import ServerSettings
from server.authority import Authority
from server.tls import TLS_CERTIFICATE_FILE, TLS_KEY_FILE

REQUESTS_FOLDER = "requests"
"""In the server's state folder: what waits for an offline authority, and what it has signed."""

_SERVER_REQUEST = "server.tls"
"""The dot keeps it apart from a hospital of any name."""

_LOOPBACK = "127.0.0.1"
"""Where the server's own processes reach its SuperLink, by the same certificate."""

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

    def hospital(self, name: str, request_pem: bytes, now: datetime.datetime) -> bytes | None:
        """Return the certificate for a hospital's request as PEM, None while an offline authority has not signed it.

        Raises:
            IdentityError: the request is none.
        """
        key = requested_hospital_key(request_pem)
        if self._authority is not None:
            lifetime = datetime.timedelta(hours=self._config.hospital_certificate_hours)
            return certificate_pem(self._authority.sign_hospital(request_pem, name, now, lifetime))
        signed = self._take_up(name)
        if signed is not None:
            try:
                if verify_hospital_certificate(signed, name, self.root, now) == key:
                    return signed
                _LOG.warning("what was signed for %s is for another key; its newest request waits now", name)
            except IdentityError as error:
                _LOG.warning("what was signed for %s cannot be used: %s", name, error)
        self._hand_over(name, request_pem)
        return None

    def is_due(self, certificate: x509.Certificate, now: datetime.datetime) -> bool:
        """Say whether a certificate should be renewed."""
        signed, ends = certificate.not_valid_before_utc + CLOCK_SKEW, certificate.not_valid_after_utc
        return ends - now < (ends - signed) * _RENEWED_WITH_LEFT

    def revocations(self) -> bytes:
        """Return the newest revocation list as DER, or raise :class:`IdentityError` where there is none yet."""
        newest = self._revocations.newest()
        if newest is None:
            raise IdentityError("the authority must have signed a revocation list; `confide ca sign` makes one")
        return newest.encoded

    def is_revoked(self, certificate: x509.Certificate) -> bool:
        """Say whether the newest list names this certificate."""
        newest = self._revocations.newest()
        return newest is not None and certificate.serial_number in newest.revoked

    def keep_current(self, now: datetime.datetime) -> None:
        """Renew the server's certificate and the revocation list where their time has come."""
        self._keep_list_current(now)
        self._keep_server_current(now)

    def is_ready(self) -> bool:
        """Say whether the server has a certificate and a revocation list, so that hospitals can come."""
        return (self._state / TLS_CERTIFICATE_FILE).exists() and self._revocations.newest() is not None

    def publish_revocations(self, now: datetime.datetime) -> bool:
        """Have a new list signed at once; says whether that was possible, which it is not with an offline authority."""
        if self._authority is None:
            return False
        lifetime = datetime.timedelta(hours=self._config.revocations_hours)
        self._revocations.accept(self._authority.sign_revocations(now, lifetime))
        return True

    def revoke(self, name: str, now: datetime.datetime) -> bool:
        """Revoke a hospital's certificates and publish that; False with an offline authority, which must do both."""
        if self._authority is not None:
            self._authority.revoke(name, now)
        return self.publish_revocations(now)

    def _keep_list_current(self, now: datetime.datetime) -> None:
        if self._authority is None:
            brought = self._requests / REVOCATIONS_FILE
            if brought.exists():
                self._revocations.accept(brought.read_bytes())
                brought.unlink()
            return
        newest = self._revocations.newest()
        if newest is None or newest.next_update - now < (newest.next_update - newest.issued) / 2:
            self.publish_revocations(now)

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
        self._hand_over(_SERVER_REQUEST, request)
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
