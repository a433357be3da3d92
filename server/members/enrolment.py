"""``python -m server.members.enrolment --state DIR``: lets invited hospitals in, and keeps members' certificates alive.

One gRPC service over TLS, in a process of its own, so that a flood of callers costs the run nothing. It answers
``Join`` for a caller with an invitation's token, and ``Standing``, ``Proposal``, ``Answer``, ``Results``, ``Piece`` and
``Ledger`` for a caller with a member's key (``common.identity.enrolment``).
"""

import datetime
import logging
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from common.config import load_config
from common.errors import ConfideError, EnrolmentError
from common.identity import enrolment
from common.identity.certificates import (
    HospitalSigningRequest,
    check_supernode_key,
    common_name,
    key_fingerprint,
    read_certificate,
    verify_issued_to_hospital,
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
    ProposalNotice,
    ProposalReply,
    ProposalRequest,
    ResultsReply,
    ResultsRequest,
    StandingReply,
    StandingRequest,
    WaitingReply,
)
from common.identity.invitation import join_host_port
from common.processes import run_service
from common.run.proposal import LONGEST_REASON, MOST_NOTICES, MOST_OPEN, OPEN, RunAnswer
from common.settings import SERVER_SETTINGS_FILE, ServerSettings
from server.members.certificates import Certificates
from server.members.ledgers import RememberedLedgers
from server.members.results import FinishedRuns
from server.members.roster import Membership
from server.members.tls import reloading_credentials
from server.members.versions import SpokenVersions
from server.run_queue import RunQueue

_LOG = logging.getLogger("confide.enrolment")

_WORKERS = 4
_CALLS_AT_ONCE = 256
"""The most calls at once; gRPC refuses more before a thread reads them."""
_STREAMS_A_CONNECTION = 8
_METADATA_BYTES = 8192
_ADDRESSES_KEPT = 4096
_UPKEEP_SECONDS = 1.0
_NOT_READY_SECONDS = 0.5

_Asked = TypeVar("_Asked", bound=enrolment.Message)


class Enrolment:
    """What the service decides, without the network."""

    def __init__(
        self,
        membership: Membership,
        certificates: Certificates,
        fleet_port: int,
        finished: FinishedRuns,
        queue: RunQueue,
        ledgers: RememberedLedgers,
    ) -> None:
        self._membership = membership
        self._certificates = certificates
        self._fleet_port = fleet_port
        self._queue = queue
        self._versions = membership.versions
        self._finished = finished
        self._ledgers = ledgers
        self._one_at_a_time = threading.Lock()

    def join(self, asked: JoinRequest, now: datetime.datetime) -> JoinReply:
        """Make the holder of a good token a member.

        Raises:
            EnrolmentError: the token opens nothing.
            IdentityError: request or SuperNode key are not what they must be.
        """
        request = HospitalSigningRequest.read(asked.request)
        check_supernode_key(asked.supernode)
        with self._one_at_a_time:
            name = self._membership.take(asked.token, key_fingerprint(request.key), now, request.name)
            known = self._membership.roster().get(name)
            certificate = None if known is None else known.encode()
            if certificate is None or read_certificate(certificate).public_key() != request.key:
                certificate = self._certificates.hospital(name, request, now)
                if certificate is None:
                    return WaitingReply()
                self._membership.admit(name, certificate, asked.supernode)
                self._certificates.publish_lists(now)
            elif self._membership.is_cut_off(name):  # Its certificate came before it asked again.
                self._membership.admit(name, certificate, asked.supernode)
            if not self._certificates.lists(name, certificate):
                return WaitingReply()
        _LOG.info("%s has joined", name)
        return self._joined(certificate)

    def standing(self, asked: StandingRequest, now: datetime.datetime) -> StandingReply:
        """Tell a member how it stands, and renew its certificate when that is due.

        A member may renew a certificate that has expired: it was away, and is still on the roster.

        Raises:
            EnrolmentError: the caller was never a member, or has another key than the member.
            IdentityError: certificate or request are not what they must be.
        """
        certificate, name, request = self._identified(asked)
        if self._certificates.is_revoked(certificate):
            return self._stands(asked.certificate, revoked=True)
        with self._one_at_a_time:
            newest = self._member(name, request.key)
            self._note_versions(name, asked)
            if self._certificates.is_due(read_certificate(newest), now):
                renewed = self._certificates.hospital(name, request, now)
                if renewed is not None:
                    self._membership.admit(name, renewed)
                    newest = renewed
                    _LOG.info("%s has a new certificate", name)
        return self._stands(newest, revoked=False)

    def proposal(self, asked: ProposalRequest, _now: datetime.datetime) -> ProposalReply:
        """Send a member the proposal of an open run.

        Raises:
            EnrolmentError: the caller is no member, or there is no such run.
        """
        self._standing_member(asked)
        found = self._queue.proposal(asked.run_id)
        if found is None:
            raise EnrolmentError("a proposal must be one that this server has made; it has none for this run")
        return ProposalReply(proposal=found.encode())

    def answer(self, asked: AnswerRequest, _now: datetime.datetime) -> AnswerReply:
        """Keep a member's answer to a proposal.

        Raises:
            EnrolmentError: the caller is no member, or answers for another.
            RunError, IdentityError: as :meth:`server.run_queue.RunQueue.take_answer`.
        """
        name = self._standing_member(asked)
        answer = RunAnswer.decode(asked.answer)
        if answer.hospital != name:
            raise EnrolmentError(f"{name} must answer for itself, got an answer of {answer.hospital}")
        self._queue.take_answer(answer, self._membership.roster()[name].encode())
        _LOG.info("%s %s run %s", name, "agrees to" if answer.agreed else "declines", answer.run_id[:12])
        return AnswerReply()

    def _notices(self, name: str) -> tuple[ProposalNotice, ...]:
        """Return the open runs and those that ended last; a hospital that joined later is asked like the others."""
        runs = self._queue.all()
        ended = [run for run in runs if run.state not in OPEN][-(MOST_NOTICES - MOST_OPEN) :]
        notices = []
        for run in (*ended, *(run for run in runs if run.state in OPEN)):
            found = self._queue.notice(run.run_id, name)
            if found is not None:
                digest, answered = found
                state, reason = run.state.value, run.reason[:LONGEST_REASON]
                notices.append(
                    ProposalNotice(run_id=run.run_id, digest=digest, answered=answered, state=state, reason=reason)
                )
        return tuple(notices[-MOST_NOTICES:])

    def _note_versions(self, name: str, asked: StandingRequest) -> None:
        """Remember which versions a hospital speaks, and say so once when they are not this server's."""
        before = self._versions.of(name)
        now = SpokenVersions(asked.protocol, asked.software, asked.oldest_protocol)
        if before == now:
            return
        self._versions.note(name, now)
        problem = enrolment.same_protocol(asked)
        if problem is not None:
            _LOG.warning("%s: %s", name, problem)

    def results(self, asked: ResultsRequest, _now: datetime.datetime) -> ResultsReply:
        """Tell a member which finished runs it may have: those on whose roster it was.

        Raises:
            EnrolmentError: the caller is no member, or was revoked.
            IdentityError: certificate or request are not what they must be.
        """
        return ResultsReply(runs=self._finished.of(self._standing_member(asked)))

    def piece(self, asked: PieceRequest, _now: datetime.datetime) -> PieceReply:
        """Give a member a stretch of a file of a finished run.

        Raises:
            EnrolmentError: as for :meth:`results`; or there is no such run for it, or no such file.
            IdentityError: as for :meth:`results`.
        """
        name = self._standing_member(asked)
        return PieceReply(content=self._finished.piece(name, asked.run_id, asked.name, asked.offset))

    def ledger(self, asked: LedgerRequest, _now: datetime.datetime) -> LedgerReply:
        """Take in how far a member's ledger is, and tell what is remembered under its name.

        Raises:
            EnrolmentError: the caller is no member; or it states that less is spent than before.
            IdentityError: certificate, request or statement are not what they must be.
        """
        name = self._standing_member(asked)
        if asked.statement is not None:
            self._ledgers.state(name, read_certificate(asked.certificate).public_key(), asked.statement)
        told = self._ledgers.of(name)
        return LedgerReply(statement=None if told is None else told.encode())

    def _identified(self, asked: StandingRequest) -> tuple[x509.Certificate, str, HospitalSigningRequest]:
        """Return who asks: a hospital that the authority certified once, and that holds the certificate's key."""
        certificate = read_certificate(asked.certificate)
        name = common_name(certificate)
        verify_issued_to_hospital(certificate, name, self._certificates.root)
        request = HospitalSigningRequest.read(asked.request)
        if request.key != certificate.public_key():
            raise EnrolmentError("the signing request must hold the key of the certificate")
        return certificate, name, request

    def _member(self, name: str, key: Ed25519PublicKey) -> bytes:
        """Return a member's newest certificate, or raise :class:`EnrolmentError` for who is no member with this key."""
        known = self._membership.roster().get(name)
        cut_off = self._membership.is_cut_off(name)
        if known is None or cut_off or read_certificate(known.encode()).public_key() != key:
            raise EnrolmentError(f"{name} is not a member with this key; ask the consortium for an invitation")
        return known.encode()

    def _standing_member(self, asked: StandingRequest) -> str:
        certificate, name, request = self._identified(asked)
        if self._certificates.is_revoked(certificate):
            raise EnrolmentError(f"{name} has been revoked; runs and their results are for members")
        self._member(name, request.key)
        return name

    def _stands(self, certificate: bytes, *, revoked: bool) -> StandingReply:
        revocations, members = self._lists()
        name = common_name(read_certificate(certificate))
        return StandingReply(
            certificate=certificate,
            revocations=revocations,
            members=members,
            revoked=revoked,
            proposals=() if revoked else self._notices(name),
        )

    def _joined(self, certificate: bytes) -> JoinedReply:
        revocations, members = self._lists()
        return JoinedReply(
            certificate=certificate, revocations=revocations, members=members, fleet_port=self._fleet_port
        )

    def _lists(self) -> tuple[bytes, bytes]:
        return self._certificates.revocations(), self._certificates.members().encoded


class Allowance:
    """How many refusals an address is still given in full; a token bucket for each, of bounded number."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def spend(self, address: str) -> bool:
        """Take one from what ``address`` has left; False when nothing is."""
        now = self._clock()
        with self._lock:
            left, since = self._left.pop(address, (float(self._per_minute), now))
            left = min(self._per_minute, left + (now - since) * self._per_minute / 60)
            allowed = left >= 1
            self._left[address] = (left - 1 if allowed else left, now)
            if len(self._left) > _ADDRESSES_KEPT:
                self._left.popitem(last=False)
        return allowed


class _Service:
    """The calls as gRPC sees them: bytes in, bytes out, errors as status codes."""

    def __init__(self, decide: Enrolment, allowance: Allowance) -> None:
        self._decide = decide
        self._allowance = allowance

    def handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            enrolment.SERVICE,
            {
                enrolment.JOIN: grpc.unary_unary_rpc_method_handler(self._join),
                enrolment.STANDING: grpc.unary_unary_rpc_method_handler(self._standing),
                enrolment.PROPOSAL: grpc.unary_unary_rpc_method_handler(self._proposal),
                enrolment.ANSWER: grpc.unary_unary_rpc_method_handler(self._take_answer),
                enrolment.RESULTS: grpc.unary_unary_rpc_method_handler(self._results),
                enrolment.PIECE: grpc.unary_unary_rpc_method_handler(self._piece),
                enrolment.LEDGER: grpc.unary_unary_rpc_method_handler(self._ledger),
            },
        )

    def _join(self, encoded: bytes, context: grpc.ServicerContext) -> bytes:
        return self._answer(encoded, JoinRequest, self._decide.join, context)

    def _standing(self, encoded: bytes, context: grpc.ServicerContext) -> bytes:
        return self._answer(encoded, StandingRequest, self._decide.standing, context)

    def _proposal(self, encoded: bytes, context: grpc.ServicerContext) -> bytes:
        return self._answer(encoded, ProposalRequest, self._decide.proposal, context)

    def _take_answer(self, encoded: bytes, context: grpc.ServicerContext) -> bytes:
        return self._answer(encoded, AnswerRequest, self._decide.answer, context)

    def _results(self, encoded: bytes, context: grpc.ServicerContext) -> bytes:
        return self._answer(encoded, ResultsRequest, self._decide.results, context)

    def _piece(self, encoded: bytes, context: grpc.ServicerContext) -> bytes:
        return self._answer(encoded, PieceRequest, self._decide.piece, context)

    def _ledger(self, encoded: bytes, context: grpc.ServicerContext) -> bytes:
        return self._answer(encoded, LedgerRequest, self._decide.ledger, context)

    def _answer(
        self,
        encoded: bytes,
        message_type: type[_Asked],
        decide: Callable[[_Asked, datetime.datetime], enrolment.Message],
        context: grpc.ServicerContext,
    ) -> bytes:
        try:
            asked = enrolment.decode(encoded, message_type)
            reply = decide(asked, datetime.datetime.now(datetime.UTC))
            return enrolment.encode(enrolment.in_version_of(reply, asked))
        except ConfideError as error:
            # A good token is always checked, so that a flood from a shared address keeps nobody out. What the
            # allowance bounds is the answer to a bad one: an explanation, and a line in the log.
            address = context.peer().rpartition(":")[0]
            if self._allowance.spend(address):
                _LOG.warning("refused %s: %s", address, error)
                context.set_code(grpc.StatusCode.PERMISSION_DENIED)
                context.set_details(str(error))
            else:
                context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
                context.set_details("too many refused requests from this address; wait a minute")
            return b""


def serve(state: Path) -> None:
    """Serve until it is stopped."""
    settings = ServerSettings.read(state / SERVER_SETTINGS_FILE)
    config = load_config(settings.config).enrolment
    certificates, membership = Certificates(state, settings, config), Membership(state)
    _wait_until_ready(certificates)
    finished, ledgers = FinishedRuns(state, certificates.root), RememberedLedgers(state, certificates.root)
    decide = Enrolment(membership, certificates, settings.fleet_port, finished, RunQueue(state), ledgers)
    server = grpc_server(decide, Allowance(config.refusals_per_minute))
    address = join_host_port(settings.fleet_host, settings.enrolment_port)
    server.add_secure_port(address, reloading_credentials(state))
    server.start()
    _LOG.info("enrolling on %s", address)
    try:
        while True:
            time.sleep(_UPKEEP_SECONDS)
            _keep_up(certificates, membership)
    finally:
        server.stop(grace=None)


def grpc_server(decide: Enrolment, allowance: Allowance) -> grpc.Server:
    """Return the service, with bounds on what one caller can make it hold; it listens nowhere yet."""
    return grpc.server(
        ThreadPoolExecutor(_WORKERS, thread_name_prefix="enrolment"),
        handlers=[_Service(decide, allowance).handlers()],
        options=[
            ("grpc.max_receive_message_length", enrolment.MAXIMUM_REQUEST_BYTES),
            ("grpc.max_concurrent_streams", _STREAMS_A_CONNECTION),
            ("grpc.max_metadata_size", _METADATA_BYTES),
            ("grpc.so_reuseport", 0),
        ],
        maximum_concurrent_rpcs=_CALLS_AT_ONCE,
    )


def _wait_until_ready(certificates: Certificates) -> None:
    """Wait for an offline authority to sign the server's first certificate and revocation list."""
    certificates.keep_current(datetime.datetime.now(datetime.UTC))
    while not certificates.is_ready():
        time.sleep(_NOT_READY_SECONDS)
        certificates.keep_current(datetime.datetime.now(datetime.UTC))


def _keep_up(certificates: Certificates, membership: Membership) -> None:
    """Renew what is due; what fails is tried again, because late is better for members than never."""
    now = datetime.datetime.now(datetime.UTC)
    try:
        certificates.keep_current(now)
        membership.forget_expired(now)
    except (ConfideError, OSError) as error:
        _LOG.warning("upkeep failed and is tried again: %s", error)


def main() -> int:
    """Serve until it is stopped."""
    return run_service("server.members.enrolment", __doc__, serve)


if __name__ == "__main__":
    sys.exit(main())
