"""What a hospital and the enrolment service say to each other, over gRPC and TLS.

Seven calls. *Join*, once, with an invitation's token. *Standing*, every few seconds, which brings the lists of
revocations and members, the runs that are proposed and, when the certificate grows old, a new one. *Proposal*, which
brings a run's proposal, and *answer*, which takes this hospital's answer to it (``common/run/proposal.py``). *Results*,
which says of which finished runs there is a model, and *piece*, which brings a stretch of one of their files
(``common/run/delivery.py``). *Ledger*, by which a hospital states how far its ledger is, and learns what the consortium
remembers under its name. MessagePack with the version in every message; a message that is too long, of a version that
is not spoken, or with a field that is unknown, missing or out of range is refused whole.

A server speaks the versions from :data:`OLDEST_VERSION` to :data:`VERSION` and answers in the version in which it is
asked. A hospital asks in its own, so the server is upgraded first. The versions of the protocol of runs are told beside
that (``common/run/versions.py``).
"""

from typing import Annotated, Any, TypeVar

import msgspec

from common.config import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION
from common.errors import EnrolmentError
from common.identity.invitation import TOKEN_BYTES
from common.identity.ledger_statement import MAXIMUM_STATEMENT_BYTES
from common.identity.members import MAXIMUM_MEMBERS_BYTES
from common.identity.revocation import MAXIMUM_LIST_BYTES
from common.provenance import confide_version, speaks
from common.run.proposal import LONGEST_ANSWER_BYTES, LONGEST_PROPOSAL_BYTES, LONGEST_REASON, MOST_NOTICES
from common.run.versions import SPOKEN, Window

VERSION = 3
OLDEST_VERSION = 3
SERVICE = "confide.Enrolment"
JOIN = "Join"
STANDING = "Standing"
PROPOSAL = "Proposal"
ANSWER = "Answer"
RESULTS = "Results"
PIECE = "Piece"
LEDGER = "Ledger"

MAXIMUM_REQUEST_BYTES = 16_384
"""A signing request, a certificate and a key take about 2 KiB."""
MAXIMUM_REPLY_BYTES = MAXIMUM_LIST_BYTES + MAXIMUM_MEMBERS_BYTES + LONGEST_PROPOSAL_BYTES + 65_536

PIECE_BYTES = 2**20
"""The longest stretch of a file that one answer brings; a slow line carries it within the deadline of a call."""

_Software = Annotated[str, msgspec.Meta(pattern="^[0-9A-Za-z.+-]{0,40}$")]
_Revocations = Annotated[bytes, msgspec.Meta(max_length=MAXIMUM_LIST_BYTES)]
_Members = Annotated[bytes, msgspec.Meta(max_length=MAXIMUM_MEMBERS_BYTES)]
_Pem = Annotated[bytes, msgspec.Meta(max_length=8192)]
_Statement = Annotated[bytes, msgspec.Meta(max_length=MAXIMUM_STATEMENT_BYTES)]
_RunId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
_Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class _AnyVersion(msgspec.Struct):
    """What a message of any version says of its writer."""

    version: Annotated[int, msgspec.Meta(ge=1, le=10_000)]
    software: _Software = ""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type"):
    """What every message begins with: the versions of enrolment, of the protocol of runs, and of the software."""

    version: Annotated[int, msgspec.Meta(ge=OLDEST_VERSION, le=VERSION)] = VERSION
    protocol: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = PROTOCOL_VERSION
    """The newest version of the protocol of runs that its writer speaks."""
    oldest_protocol: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = OLDEST_PROTOCOL_VERSION
    """The oldest one."""
    software: _Software = confide_version()


class JoinRequest(Message, frozen=True, tag="join"):
    """Hospital: an invitation's token, a signing request for its identity, and its SuperNode's public key."""

    token: Annotated[bytes, msgspec.Meta(min_length=TOKEN_BYTES, max_length=TOKEN_BYTES)]
    request: _Pem
    """PKCS #10 in PEM; the name in it is not looked at, the invitation's counts."""
    supernode: Annotated[bytes, msgspec.Meta(max_length=1024)]
    """OpenSSH, EC P-256 or P-384."""

    def __repr__(self) -> str:
        """Show nothing: the token is a secret."""
        return "Join(…)"


class JoinedReply(Message, frozen=True, tag="joined"):
    """Server: the hospital's certificate, the newest revocation and member lists, and where the Fleet API listens."""

    certificate: _Pem
    revocations: _Revocations
    members: _Members
    fleet_port: Annotated[int, msgspec.Meta(ge=1, le=65_535)]


class WaitingReply(Message, frozen=True, tag="waiting"):
    """Server: the authority is offline and has not signed yet; ask again."""


class StandingRequest(Message, frozen=True, tag="standing"):
    """Hospital: its certificate, and a fresh signing request by the same key, which proves that it asks itself."""

    certificate: _Pem
    request: _Pem


class ProposalNotice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run that was proposed: where it stands, and whether this hospital's answer has arrived."""

    run_id: _RunId
    digest: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    """SHA-256 of the proposal."""
    answered: bool
    state: Annotated[str, msgspec.Meta(pattern="^[a-z]{1,16}$")] = "proposed"
    reason: Annotated[str, msgspec.Meta(max_length=LONGEST_REASON)] = ""
    """Why it ended, or cannot begin; in the server's words."""


class StandingReply(Message, frozen=True, tag="stands"):
    """Server: the newest revocation and member lists, and the certificate to use from now on, which may be the same."""

    certificate: _Pem
    revocations: _Revocations
    members: _Members
    revoked: bool
    proposals: Annotated[tuple[ProposalNotice, ...], msgspec.Meta(max_length=MOST_NOTICES)] = ()
    """The runs that this hospital may take part in, and those that ended last."""


class ProposalRequest(StandingRequest, frozen=True, tag="proposal"):
    """Hospital: send the proposal of a run."""

    run_id: _RunId


class ProposalReply(Message, frozen=True, tag="proposed"):
    """Server: the proposal, in its one encoding (``common.run.proposal``)."""

    proposal: Annotated[bytes, msgspec.Meta(max_length=LONGEST_PROPOSAL_BYTES)]


class AnswerRequest(StandingRequest, frozen=True, tag="answer"):
    """Hospital: its signed answer to a proposal, in its one encoding (``common.run.proposal``)."""

    answer: Annotated[bytes, msgspec.Meta(max_length=LONGEST_ANSWER_BYTES)]


class AnswerReply(Message, frozen=True, tag="answer_kept"):
    """Server: it has kept the answer."""


class ResultsRequest(StandingRequest, frozen=True, tag="results"):
    """Hospital: asks which finished runs it may have."""


class ResultsReply(Message, frozen=True, tag="offered"):
    """Server: the runs on whose roster the hospital was, each with the SHA-256 of its ``delivery.json``."""

    runs: Annotated[dict[_RunId, _Digest], msgspec.Meta(max_length=10_000)]


class PieceRequest(StandingRequest, frozen=True, tag="piece"):
    """Hospital: asks for a stretch of a file of a run."""

    run_id: _RunId
    name: Annotated[str, msgspec.Meta(max_length=64)]
    offset: Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class LedgerRequest(StandingRequest, frozen=True, tag="ledger"):
    """Hospital: states how far its ledger is (``common/identity/ledger_statement.py``).

    Without a statement it asks what the consortium remembers under its name.
    """

    statement: _Statement | None = None


class LedgerReply(Message, frozen=True, tag="remembered"):
    """Server: the last statement under this name, which an earlier member may have signed; None where there is none."""

    statement: _Statement | None


class PieceReply(Message, frozen=True, tag="stretch"):
    """Server: the bytes from the offset on, :data:`PIECE_BYTES` at most; fewer at the file's end, and none after it."""

    content: Annotated[bytes, msgspec.Meta(max_length=PIECE_BYTES)]


JoinReply = JoinedReply | WaitingReply

_M = TypeVar("_M", bound=Message)


def in_version_of(reply: _M, asked: Message) -> _M:
    """Return a reply in the version in which it was asked for."""
    return reply if reply.version == asked.version else msgspec.structs.replace(reply, version=asked.version)


def encode(message: Message) -> bytes:
    """Return the message's bytes for the wire."""
    return msgspec.msgpack.encode(message)


def decode_join_reply(encoded: bytes) -> JoinReply:
    """Read a server's answer to :class:`JoinRequest`; errors as for :func:`decode`."""
    reply: JoinReply = _decode(encoded, JoinReply, MAXIMUM_REPLY_BYTES)
    return reply


def decode(encoded: bytes, message_type: type[_M], limit: int = MAXIMUM_REQUEST_BYTES) -> _M:
    """Read a message of ``message_type``.

    Raises:
        EnrolmentError: longer than ``limit``, or not such a message of this version.
    """
    message: _M = _decode(encoded, message_type, limit)
    return message


def _decode(encoded: bytes, expected: Any, limit: int) -> Any:  # noqa: ANN401 - a class, or a union of classes
    if len(encoded) > limit:
        raise EnrolmentError(f"a message must be at most {limit} bytes, got {len(encoded)}")
    try:
        return msgspec.msgpack.decode(encoded, type=expected)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        _refuse_other_version(encoded)
        raise EnrolmentError(f"a message must be one of enrolment version {VERSION}: {error}") from None


def _refuse_other_version(encoded: bytes) -> None:
    try:
        other = msgspec.msgpack.decode(encoded, type=_AnyVersion)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    if not OLDEST_VERSION <= other.version <= VERSION:
        raise EnrolmentError(
            f"both sides must speak one version of enrolment; this one speaks version {VERSION} (Confide "
            f"{confide_version()}), the other {other.version} (Confide {other.software or 'of an earlier version'}); "
            "upgrade the older one"
        )


def spoken_by(other: Message) -> Window:
    """Return the versions of the protocol of runs that a message's writer speaks."""
    return Window(min(other.oldest_protocol, other.protocol), other.protocol)


def same_protocol(other: Message) -> str | None:
    """Return what to say of a side with which no version of the protocol is common; None where one is."""
    if spoken_by(other).meets(SPOKEN):
        return None
    return (
        f"both sides must speak one version of the protocol; this one speaks "
        f"{speaks(PROTOCOL_VERSION, confide_version())}, the other {speaks(other.protocol, other.software)}; no run "
        "with it until the older one is upgraded"
    )
