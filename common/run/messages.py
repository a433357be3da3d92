"""What server and hospital say to each other, one type per message, beside the vectors that travel as arrays.

Every message is MessagePack with its type's name and the run's protocol version; a message of a version that is not
spoken here (``common/run/versions.py``), with an
unknown, missing or mistyped field, or longer than its limit is refused whole. The bytes inside are messages of
``common.secagg`` in that package's own canonical encoding, or the canonical JSON of a run description.
"""

import io
import math
import tokenize
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from common.config import PROTOCOL_VERSION
from common.errors import RunError
from common.run.versions import SPOKEN, Window
from common.secagg.parameters import MOST_HOSPITALS

MAXIMUM_MESSAGE_BYTES = 64 * 2**20
"""The largest message without its array: the shares and keys of 1,024 hospitals take a few megabytes."""

_LONGEST_COMPLAINT = 200
"""How much is shown of what NumPy says about bytes that it cannot read, because the bytes may be in it."""

NO_ARRAY = (ValueError, TypeError, OverflowError, RecursionError, MemoryError, tokenize.TokenError)
"""What NumPy raises for bytes that are no file of one array; MemoryError when its parser of heads runs out of stack."""

LONGEST_HEAD_BYTES = 512
"""The longest head of an array's file. NumPy reads it with Python's parser, and writes 118 bytes for shape and type."""

RunId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
RoundNumber = Annotated[int, msgspec.Meta(ge=1, le=2**40)]
Hospital = Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9-]{0,62}$")]


class _AnyVersion(msgspec.Struct):
    version: Annotated[int, msgspec.Meta(ge=1, le=10_000)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", kw_only=True):
    version: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = PROTOCOL_VERSION


class KeysRequest(_Message, frozen=True, tag="advertise_keys"):
    """Server: a run (or a round that somebody joins) begins; send keys for ``round_number``."""

    run_description: bytes
    round_number: RoundNumber


class KeysReply(_Message, frozen=True, tag="keys_advertised"):
    """Hospital: who it is, and its signed public keys."""

    hospital: Hospital
    advertised: bytes


class SharesRequest(_Message, frozen=True, tag="share_keys"):
    """Server: everybody's signed keys (a ``secagg`` KeyDirectory); share your secrets among them."""

    run_id: RunId
    round_number: RoundNumber
    directory: bytes


class SharesReply(_Message, frozen=True, tag="keys_shared"):
    """Hospital: its encrypted shares, one for each of the others."""

    shares: bytes


class MaskRequest(_Message, frozen=True, tag="masked_input"):
    """Server: send the masked vector that the round's terms ask for; the model travels beside this.

    What decides a vector stands in ``request`` and is bound there: nothing may be added beside it that a vector
    depends on. ``next_round`` asks for the keys of the round after, so that they need no exchange of their own.
    """

    run_id: RunId
    round_number: RoundNumber
    request: bytes
    """A ``secagg`` MaskedInputRequest: the round's terms, the cohort, and the shares dealt to this hospital."""
    next_round: RoundNumber | None = None


class ProvedMaskRequest(MaskRequest, frozen=True, tag="proved_masked_input", kw_only=True):
    """Server: the same in a run that proves its sums; beside it travels what the model follows from, not the model."""

    basis: bytes
    """A :class:`~common.run.basis.Basis`; the sum that it is about is the array beside this."""


class EpsilonReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a hospital has spent on training, rounded up, at its own δ, and its budget.

    Both follow from its policy and from the descriptions of the runs it took part in; neither from its data.
    """

    spent: Annotated[float, msgspec.Meta(ge=0)]
    budget: Annotated[float, msgspec.Meta(gt=0)]


class MaskReply(_Message, frozen=True, tag="input_masked"):
    """Hospital: what belongs to its masked vector, which travels beside this."""

    masked: bytes
    advertised: bytes | None
    epsilon: EpsilonReport | None


class ProvedMaskReply(MaskReply, frozen=True, tag="proved_input_masked", kw_only=True):
    """Hospital: the same in a run that proves its sums."""

    sealed: bytes
    """A ``secagg`` SealedCommitment to what the vector hides."""


class ConsistencyRequest(_Message, frozen=True, tag="consistency_check"):
    """Server: whose vectors arrived (a ``secagg`` SurvivorList); sign it. With it, the keys for the next round."""

    run_id: RunId
    round_number: RoundNumber
    survivors: bytes
    next_round: RoundNumber | None = None
    next_directory: bytes | None = None


class ProvedConsistencyRequest(ConsistencyRequest, frozen=True, tag="proved_consistency_check", kw_only=True):
    """Server: the same in a run that proves its sums."""

    views: bytes
    """A ``secagg`` FullUnmaskingRequest: the survivors' signed views, with the hashes of their commitments."""


class ConsistencyReply(_Message, frozen=True, tag="consistency_checked"):
    """Hospital: its signature over the list, and its encrypted shares for the next round."""

    signature: bytes
    shares: bytes | None


class UnmaskRequest(_Message, frozen=True, tag="unmasking"):
    """Server: a ``secagg`` UnmaskingRequest. In the semi-honest setting it brings everybody's next keys as well."""

    run_id: RunId
    round_number: RoundNumber
    request: bytes
    next_round: RoundNumber | None = None
    next_directory: bytes | None = None


class UnmaskAllRequest(_Message, frozen=True, tag="full_unmasking"):
    """Server: nobody is missing (a ``secagg`` FullUnmaskingRequest); instead of ConsistencyRequest and UnmaskRequest.

    With it, the keys for the next round.
    """

    run_id: RunId
    round_number: RoundNumber
    request: bytes
    next_round: RoundNumber | None = None
    next_directory: bytes | None = None


class UnmaskReply(_Message, frozen=True, tag="unmasked"):
    """Hospital: shares of the survivors' self mask seeds and of the dropped hospitals' masking keys.

    The answer to UnmaskRequest, and to UnmaskAllRequest.
    """

    revealed: bytes
    shares: bytes | None = None


class DisputeRequest(_Message, frozen=True, tag="dispute"):
    """Server: the sum of this round is none that honest hospitals can have; compute it, and show your change.

    Beside it travel all masked changes, one after the other, as a sum travels.
    """

    run_id: RunId
    round_number: RoundNumber
    request: bytes
    """A ``secagg`` Dispute: what the sum is computed from, all of it under signatures."""


class DisputeReply(_Message, frozen=True, tag="change_opened"):
    """Hospital: it finds the same, and shows the key of its change, unless somebody is at fault already."""

    opened: bytes | None
    """A ``secagg`` OpenedChange."""


class VerdictRequest(_Message, frozen=True, tag="verdict"):
    """Server: what everybody showed in a dispute (a ``secagg`` OpenedChanges); find who has cheated."""

    run_id: RunId
    round_number: RoundNumber
    opened: bytes


class MissedVerdictRequest(_Message, frozen=True, tag="missed_verdict"):
    """Server: the verdict on an earlier round, for a hospital that did not hear of it; judge it from what was signed.

    Beside it travel all masked changes, as with a dispute. Nothing is shown in answer.
    """

    run_id: RunId
    round_number: RoundNumber
    terms: bytes
    """The round's :class:`~common.run.round_terms.RoundTerms`."""
    directory: bytes
    """A ``secagg`` DisputableDirectory."""
    cohort: Annotated[tuple[Hospital, ...], msgspec.Meta(max_length=MOST_HOSPITALS)]
    view: bytes
    """A survivor's ``secagg`` MaskedInput."""
    views: bytes
    """A ``secagg`` FullUnmaskingRequest: the survivors' signed views."""
    dispute: bytes
    """A ``secagg`` Dispute."""
    opened: bytes
    """A ``secagg`` OpenedChanges."""


class VerdictReply(_Message, frozen=True, tag="verdict_found"):
    """Hospital: who has cheated, and how; it takes part in no round with them any more."""

    named: dict[Hospital, Annotated[str, msgspec.Meta(pattern="^[a-z_]{1,64}$")]]


class PlainRequest(_Message, frozen=True, tag="plain_input"):
    """Server: train and send the vector without masks; a baseline that a hospital refuses unless it agrees."""

    run_id: RunId
    run_description: bytes
    round_number: RoundNumber
    terms: bytes
    """A :class:`~common.run.round_terms.RoundTerms`."""


class PlainReply(_Message, frozen=True, tag="input_plain"):
    """Hospital: what belongs to its plain vector, which travels beside this."""

    epsilon: EpsilonReport | None


class RefusedReply(_Message, frozen=True, tag="refused"):
    """Hospital: it refuses what was asked, and why; ``code`` is the error's, fit for a metric's label.

    Code and reason are functions of the run description, the hospital's policy and what was asked before.
    """

    hospital: Hospital
    code: Annotated[str, msgspec.Meta(pattern="^[a-z_]{1,64}$")]
    reason: Annotated[str, msgspec.Meta(max_length=1000)]
    is_attack: bool


Request = (
    KeysRequest
    | SharesRequest
    | MaskRequest
    | ProvedMaskRequest
    | ConsistencyRequest
    | ProvedConsistencyRequest
    | UnmaskRequest
    | UnmaskAllRequest
    | DisputeRequest
    | VerdictRequest
    | MissedVerdictRequest
    | PlainRequest
)
Reply = (
    KeysReply
    | SharesReply
    | MaskReply
    | ProvedMaskReply
    | ConsistencyReply
    | UnmaskReply
    | DisputeReply
    | VerdictReply
    | PlainReply
    | RefusedReply
)

_M = TypeVar("_M", bound=_Message)

_ENCODER = msgspec.msgpack.Encoder()
_REQUEST: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_REPLY: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def encode(message: Request | Reply) -> bytes:
    """Return the message's bytes for the wire."""
    return _ENCODER.encode(message)


def in_version(message: _M, version: int) -> _M:
    """Return a message as it goes out in a run of this version.

    The versions that are spoken today have the same fields; where a later one has more, they are left out here.
    """
    return message if message.version == version else msgspec.structs.replace(message, version=version)


def decode_request(encoded: bytes, spoken: Window = SPOKEN) -> Request:
    """Read what a server sent.

    Args:
        encoded: from the wire.
        spoken: the versions that this hospital speaks.

    Raises:
        OtherVersionError: the server speaks another version.
        RunError: too long, not a message of a spoken version, or a field is unknown, missing or out of range.
    """
    try:
        request = _REQUEST.decode(_bounded(encoded))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        _refuse_other_version(encoded, spoken, "the server", "this hospital")
        raise RunError(f"a request must be one of protocol {spoken}: {error}") from None
    spoken.require(request.version, "the server", "this hospital")
    return request


def decode_reply(encoded: bytes, spoken: Window = SPOKEN) -> Reply:
    """Read what a hospital sent; arguments and errors as for :func:`decode_request`."""
    try:
        reply = _REPLY.decode(_bounded(encoded))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        _refuse_other_version(encoded, spoken, "the hospital", "this server")
        raise RunError(f"a reply must be one of protocol {spoken}: {error}") from None
    spoken.require(reply.version, "the hospital", "this server")
    return reply


def _refuse_other_version(encoded: bytes, spoken: Window, whose: str, here: str) -> None:
    """Raise :class:`~common.errors.OtherVersionError` for a message that says that it is of another version."""
    try:
        version = msgspec.msgpack.decode(encoded, type=_AnyVersion).version
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    spoken.require(version, whose, here)


def read_array(encoded: bytes) -> npt.NDArray[Any]:
    """Read the NumPy file (NEP 1) of one array that travels beside a message, as a view that cannot be written to.

    Raises:
        RunError: it is no array, holds objects or an archive, or is not as long as its head claims.
    """
    try:
        return _whole_array(encoded)
    except NO_ARRAY as error:
        raise RunError(f"an array must be one NumPy file of numbers, whole: {error}"[:_LONGEST_COMPLAINT]) from None


def join_array(pieces: Iterable[bytes | memoryview], longest_bytes: int) -> npt.NDArray[Any]:
    """Read a flat array as :func:`read_array` does, from a file in pieces; each is let go before the next one is taken.

    Args:
        pieces: in order; the head is in the first.
        longest_bytes: of the array; it is made before all pieces have been seen, so it must be no longer, whatever its
            head claims.

    Raises:
        RunError: as :func:`read_array`.
    """
    try:
        return _joined(iter(pieces), longest_bytes)
    except NO_ARRAY as error:
        raise RunError(f"an array must be one NumPy file of numbers, whole: {error}"[:_LONGEST_COMPLAINT]) from None


def _joined(pieces: Iterator[bytes | memoryview], longest_bytes: int) -> npt.NDArray[Any]:
    first = next(pieces, b"")
    file = io.BytesIO(first)
    shape, _, dtype = _head(file)
    if len(shape) != 1 or dtype.kind not in "iuf":
        raise ValueError(f"{len(shape)} axes of {dtype}")
    if shape[0] * dtype.itemsize > longest_bytes:
        raise ValueError(f"{shape[0] * dtype.itemsize} bytes claimed, {longest_bytes} at most")
    array: npt.NDArray[Any] = np.empty(shape, dtype)
    room, filled, skipped = array.data.cast("B"), 0, file.tell()
    file.close()
    piece: bytes | memoryview | None = first
    del first
    while piece is not None:
        body = memoryview(piece)[skipped:]
        room[filled : filled + len(body)] = body
        filled, skipped = filled + len(body), 0
        del body
        piece = None  # The last piece is dropped before the next one is made.
        piece = next(pieces, None)
    if filled != array.nbytes:
        raise ValueError(f"{array.nbytes} bytes claimed, {filled} there")
    return array


def _head(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("another version")
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=LONGEST_HEAD_BYTES)
    return shape, by_columns, dtype


def _whole_array(encoded: bytes) -> npt.NDArray[Any]:
    file = io.BytesIO(encoded)
    shape, by_columns, dtype = _head(file)
    claimed, there = math.prod(shape) * dtype.itemsize, len(encoded) - file.tell()
    if claimed != there:
        raise ValueError(f"{claimed} bytes claimed, {there} there")
    return np.frombuffer(encoded, dtype, offset=file.tell()).reshape(shape, order="F" if by_columns else "C")


def phase_of(message: Request) -> str:
    """Return the protocol's name of the step a request asks for, such as ``masked_input``."""
    return str(type(message).__struct_config__.tag).removeprefix("proved_")


def _bounded(encoded: bytes) -> bytes:
    if len(encoded) > MAXIMUM_MESSAGE_BYTES:
        raise RunError(f"a message must be at most {MAXIMUM_MESSAGE_BYTES} bytes, got {len(encoded)}")
    return encoded
