"""How a hospital joins a consortium and keeps its membership: its half of ``common.identity.enrolment``.

A hospital makes its own keys. Before it sends anything it reads the certificates the server presents, and continues
only if one of them is the authority whose fingerprint its invitation carries; from then on that authority is the only
one it trusts. All connections go outwards, through a proxy where gRPC's environment variables name one.
"""

import contextlib
import datetime
import hashlib
import http.client
import os
import ssl
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.ledger.remembered import keep_remembered
from common.config import Config
from common.errors import EnrolmentError
from common.files import write_private
from common.identity import enrolment
from common.identity.certificates import (
    HospitalIdentity,
    certificate_pem,
    common_name,
    load_signing_key,
    load_supernode_key,
    make_supernode_key,
    openssh_private,
    openssh_public,
    private_key_pem,
    read_certificate,
    request_hospital_certificate,
    verify_hospital_certificate,
)
from common.identity.enrolment import (
    AnswerReply,
    AnswerRequest,
    JoinedReply,
    JoinReply,
    JoinRequest,
    LedgerReply,
    LedgerRequest,
    PieceReply,
    PieceRequest,
    ProposalReply,
    ProposalRequest,
    ResultsReply,
    ResultsRequest,
    StandingReply,
    StandingRequest,
    WaitingReply,
)
from common.identity.invitation import Invitation, join_host_port
from common.identity.members import KeptMembers
from common.identity.revocation import Revocations
from common.settings import HOSPITAL_SETTINGS_FILE, RELAY_FOLDER, HospitalSettings

INVITATION_VARIABLE = "CONFIDE_INVITATION"
"""Environment variable: an invitation, for a hospital in a container."""

CALL_SECONDS = 20.0
"""The deadline of one call, chosen for a slow line."""

_CONNECT_SECONDS = 10.0
_RETRY_SECONDS = 2.0
_PATIENCE_SECONDS = 300.0
"""How long a hospital tries to reach a server that does not answer; the server may just be starting."""
_WAITING_SECONDS = 10.0
"""The time between two polls whether an offline authority has signed."""
_PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
ANY_NAME = "hospital"
"""The name in the signing request of a hospital that wishes none; the invitation decides on the real one."""
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_NO_PROXY_VARIABLES = ("no_grpc_proxy", "no_proxy")
_PROXY_PORT = 80


_Result = TypeVar("_Result")


class UnreachableError(EnrolmentError):
    """The enrolment service did not answer, or was too busy; it may answer later."""


class UnknownCallError(EnrolmentError):
    """The server is of an earlier version, which does not know the call."""


@dataclass(frozen=True)
class EnrolmentService:
    """Where a consortium's enrolment service listens, and the authority its certificate must come from."""

    address: str
    authority: x509.Certificate = field(repr=False)

    def join(self, message: JoinRequest) -> JoinReply:
        """Ask to become a member; raises :class:`EnrolmentError` when that is refused."""
        reply = self._call(enrolment.JOIN, message)
        return enrolment.decode_join_reply(reply)

    def standing(self, message: StandingRequest) -> StandingReply:
        """Ask how this hospital stands; raises :class:`EnrolmentError` when that is refused."""
        return enrolment.decode(self._call(enrolment.STANDING, message), StandingReply, enrolment.MAXIMUM_REPLY_BYTES)

    def proposal(self, message: ProposalRequest) -> ProposalReply:
        """Ask for the proposal of a run; raises :class:`EnrolmentError` when that is refused."""
        return enrolment.decode(self._call(enrolment.PROPOSAL, message), ProposalReply, enrolment.MAXIMUM_REPLY_BYTES)

    def answer(self, message: AnswerRequest) -> AnswerReply:
        """Send an answer to a proposal; raises :class:`EnrolmentError` when it is refused."""
        return enrolment.decode(self._call(enrolment.ANSWER, message), AnswerReply)

    def results(self, identity: HospitalIdentity) -> Mapping[str, bytes]:
        """Return the finished runs that this hospital may have, each with the SHA-256 of its delivery.

        Raises:
            EnrolmentError: that is refused; also by a server of an earlier version, which does not know the call.
        """
        certificate, request = proof_of(identity)
        reply = self._call(enrolment.RESULTS, ResultsRequest(certificate=certificate, request=request))
        return enrolment.decode(reply, ResultsReply, enrolment.MAXIMUM_REPLY_BYTES).runs

    def piece(self, identity: HospitalIdentity, run_id: str, name: str, offset: int) -> bytes:
        """Return a stretch of a file of a finished run, nothing beyond its end.

        Raises:
            EnrolmentError: that is refused.
        """
        certificate, request = proof_of(identity)
        asked = PieceRequest(certificate=certificate, request=request, run_id=run_id, name=name, offset=offset)
        reply = self._call(enrolment.PIECE, asked)
        return enrolment.decode(reply, PieceReply, enrolment.MAXIMUM_REPLY_BYTES).content

    def ledger(self, identity: HospitalIdentity, statement: bytes | None) -> bytes | None:
        """State how far this hospital's ledger is, or ask without a statement; returns what the consortium remembers.

        Raises:
            EnrolmentError: that is refused; the statement says less than what the consortium remembers.
        """
        certificate, request = proof_of(identity)
        asked = LedgerRequest(certificate=certificate, request=request, statement=statement)
        reply = self._call(enrolment.LEDGER, asked)
        return enrolment.decode(reply, LedgerReply, enrolment.MAXIMUM_REPLY_BYTES).statement

    def _call(self, method: str, message: enrolment.Message) -> bytes:
        credentials = grpc.ssl_channel_credentials(certificate_pem(self.authority))
        options = [("grpc.max_receive_message_length", enrolment.MAXIMUM_REPLY_BYTES)]
        with grpc.secure_channel(self.address, credentials, options) as channel:
            try:
                return bytes(
                    channel.unary_unary(f"/{enrolment.SERVICE}/{method}")(
                        enrolment.encode(message), timeout=CALL_SECONDS
                    )
                )
            except grpc.RpcError as error:
                if error.code() in _PASSING:
                    raise UnreachableError(f"the server at {self.address} must answer: {error.details()}") from None
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    raise UnknownCallError(f"the server is of an earlier version, which knows no {method}") from None
                raise EnrolmentError(f"the server refused: {error.details()}") from None


@dataclass(frozen=True)
class JoinedPlace:
    """Where a hospital that joins keeps what it has, and on which ports of its own it listens."""

    state: Path
    data: Path
    logs: Path
    runtime_port: int
    metrics_port: int
    metrics_host: str


def is_enrolled(state: Path) -> bool:
    """Return whether a hospital has joined and may simply start."""
    return (state / HOSPITAL_SETTINGS_FILE).exists()


def join(
    invitation: Invitation, place: JoinedPlace, config: Config, say: Callable[[str], None], wish: str = ANY_NAME
) -> str:
    """Join a consortium, and return the name this hospital has there.

    It uses what an interrupted attempt has left, so it is always right to try again.

    Args:
        invitation: from the consortium's operator.
        place: this hospital's folders and ports.
        config: the hospital's own, written beside its keys.
        say: shows a person what is being waited for.
        wish: the name that this hospital would like among those of a group; any other invitation decides itself.

    Raises:
        IdentityError: the wish is no hospital's name.
        EnrolmentError: the invitation has expired or been used, the server is another one than it names or cannot be
            reached; nothing of the invitation was sent to a server of another authority.
    """
    invitation.check_time(datetime.datetime.now(datetime.UTC))
    service = _patiently(lambda: _recognise(invitation), say)
    key = _identity_key(place.state)
    message = JoinRequest(
        token=invitation.token,
        request=request_hospital_certificate(wish, key).pem,
        supernode=_supernode_public_key(place.state),
    )
    joined = _patiently(lambda: service.join(message), say)
    while isinstance(joined, WaitingReply):
        say("the consortium's authority is offline and must sign first; waiting")
        time.sleep(_WAITING_SECONDS)
        joined = _patiently(lambda: service.join(message), say)
    return _settle(joined, invitation, service, key, place, config)


def ask_standing(
    service: EnrolmentService, identity: HospitalIdentity, state: Path, revocations: Revocations, members: KeptMembers
) -> StandingReply:
    """Ask how this hospital stands, and keep what comes: the newest lists, and a renewed certificate.

    Raises:
        EnrolmentError: the server cannot be reached or refuses.
        IdentityError: what came is not the authority's, or older than what this hospital has seen.
    """
    pem, request = proof_of(identity)
    stands = service.standing(StandingRequest(certificate=pem, request=request))
    try:
        # The member list goes first: the revocation list knows its number, and runs must be described with that one.
        members.accept(stands.members)
    finally:
        newest = revocations.accept(stands.revocations)
    if stands.certificate != pem and identity.certificate.serial_number not in newest.revoked:
        now = datetime.datetime.now(datetime.UTC)
        key = verify_hospital_certificate(stands.certificate, identity.name, service.authority, now)
        if key != identity.key.public_key():
            raise EnrolmentError("a renewed certificate must hold this hospital's own key; the server sent another")
        write_private(state / "identity.pem", stands.certificate)
    return stands


def proof_of(identity: HospitalIdentity) -> tuple[bytes, bytes]:
    """Return a hospital's certificate, and a signing request by its key, which proves that it asks itself."""
    return certificate_pem(identity.certificate), request_hospital_certificate(identity.name, identity.key).pem


def _recognise(invitation: Invitation) -> EnrolmentService:
    """Return the service once it has shown the certificate of the authority that the invitation names."""
    for encoded in _presented_certificates(invitation.host, invitation.port, os.environ):
        if hashlib.sha256(encoded).digest() == invitation.fingerprint:  # Nothing else that it shows is read.
            return EnrolmentService(invitation.address, x509.load_der_x509_certificate(encoded))
    raise EnrolmentError(
        f"the server at {invitation.address} must belong to the consortium that invited; it shows no certificate of "
        "the authority in the invitation; nothing was sent to it; ask the consortium's operator"
    )


def _presented_certificates(host: str, port: int, environment: Mapping[str, str]) -> list[bytes]:
    """Return the certificates (DER) that a server shows in a TLS handshake, after which the connection is closed.

    It sends the handshake alone, because it does not know yet to whom these certificates belong.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    proxy = proxy_for(host, environment)
    try:
        if proxy is None:
            connection = http.client.HTTPSConnection(host, port, timeout=_CONNECT_SECONDS, context=context)
        else:
            connection = http.client.HTTPSConnection(
                proxy.hostname or "", proxy.port or _PROXY_PORT, timeout=_CONNECT_SECONDS, context=context
            )
            connection.set_tunnel(host, port)
        connection.connect()
        # The chain is public in the ssl module from Python 3.13 on, as SSLSocket.get_unverified_chain.
        chain = connection.sock._sslobj.get_unverified_chain()  # type: ignore[union-attr]  # noqa: SLF001
        connection.close()
    except (OSError, http.client.HTTPException) as error:
        way = "" if proxy is None else f" through the proxy {proxy.hostname}"
        raise UnreachableError(f"the server at {join_host_port(host, port)}{way} must answer: {error}") from None
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in chain]


def proxy_for(host: str, environment: Mapping[str, str]) -> urllib.parse.SplitResult | None:
    """Return the HTTP proxy that gRPC will use for ``host``, by the same variables in the same order."""
    chosen = next((environment[name] for name in _PROXY_VARIABLES if environment.get(name)), None)
    excluded = next((environment[name] for name in _NO_PROXY_VARIABLES if environment.get(name)), "")
    if chosen is None or urllib.request.proxy_bypass_environment(host, {"no": excluded}):  # type: ignore[attr-defined]
        return None
    return urllib.parse.urlsplit(chosen)


def _identity_key(state: Path) -> Ed25519PrivateKey:
    path = state / "identity.key"
    if not path.exists():
        write_private(path, private_key_pem(Ed25519PrivateKey.generate()))
    return load_signing_key(path)


def _supernode_public_key(state: Path) -> bytes:
    path = state / RELAY_FOLDER / "supernode.key"
    if not path.exists():
        write_private(path, openssh_private(make_supernode_key()))
    return openssh_public(load_supernode_key(path).public_key())


def _settle(
    joined: JoinedReply,
    invitation: Invitation,
    service: EnrolmentService,
    key: Ed25519PrivateKey,
    place: JoinedPlace,
    config: Config,
) -> str:
    """Check what the server answered, and write everything a hospital starts with; its settings last."""
    now = datetime.datetime.now(datetime.UTC)
    name = common_name(read_certificate(joined.certificate))
    if verify_hospital_certificate(joined.certificate, name, service.authority, now) != key.public_key():
        raise EnrolmentError("the certificate must hold this hospital's own key; the server sent another")
    state, relay, authority = place.state, place.state / RELAY_FOLDER, certificate_pem(service.authority)
    members = KeptMembers(state, service.authority).accept(joined.members)
    if members.members.get(name) != key.public_key().public_bytes_raw():
        raise EnrolmentError(
            f"the authority's member list must name {name} with this hospital's own key; the server sent list number "
            f"{members.number}, which does not; ask the consortium's operator"
        )
    Revocations(state, service.authority).accept(joined.revocations)
    identity = HospitalIdentity(name, read_certificate(joined.certificate), key)
    with contextlib.suppress(UnknownCallError):
        told = service.ledger(identity, None)
        if told is not None:
            keep_remembered(state, told, name, service.authority)
    write_private(state / "ca.pem", authority)
    write_private(relay / "ca.pem", authority)
    write_private(state / "identity.pem", joined.certificate)
    write_private(state / "config.yaml", config.as_yaml())
    HospitalSettings(
        fleet_address=join_host_port(invitation.host, joined.fleet_port),
        enrolment_address=service.address,
        logs=place.logs,
        data=place.data,
        config=state / "config.yaml",
        runtime_port=place.runtime_port,
        metrics_port=place.metrics_port,
        metrics_host=place.metrics_host,
    ).write(state / HOSPITAL_SETTINGS_FILE)
    return name


def _patiently(call: Callable[[], _Result], say: Callable[[str], None]) -> _Result:
    """Repeat a call until the server can be reached, for minutes; says once what it is waiting for."""
    give_up = time.monotonic() + _PATIENCE_SECONDS
    said = False
    while True:
        try:
            return call()
        except UnreachableError as error:
            if time.monotonic() > give_up:
                raise
            if not said:
                say(f"{error}; trying again")
                said = True
            time.sleep(_RETRY_SECONDS)
