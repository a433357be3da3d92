"""Every message of the protocol, and its one binary encoding.

The encoding is canonical (one message, one byte string), versioned and self-delimiting. Decoding never allocates more
than a constant factor of the bytes it was given, and refuses bytes longer than any message of the expected type.

A message is ``"CSA"``, the version (1 byte), the type (1 byte), then its fields in the order of :data:`_LAYOUTS`:
integers are big-endian; a name or byte string of variable length is preceded by its length; a list by its count. A list
is sorted by its entries' first field, without repeats. Vectors travel beside their message as arrays, never inside.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol, Self, TypeVar

from common.secagg.errors import (
    MessageTypeError,
    NonCanonicalMessageError,
    OversizedMessageError,
    Place,
    ProtocolVersionError,
    SecAggError,
    TrailingBytesError,
    TruncatedMessageError,
)
from common.secagg.parameters import HASH_BYTES, MOST_HOSPITALS, PUBLIC_KEY_BYTES, VERSION

SIGNATURE_BYTES = 64
SECRET_BYTES = 32
"""A self-mask seed, or a private key."""
SHARE_BYTES = 33
"""One element of the field that secrets are shared over (``shamir.PRIME`` has 257 bits)."""

LONGEST_NAME = 63
LONGEST_CIPHERTEXT = 12 + 2 * (1 + LONGEST_NAME) + 2 * SHARE_BYTES + 16
"""The length of an encrypted pair of shares at most: nonce, sender and recipient, two shares, tag."""

LONGEST_TERMS = 65_535
"""The length of a round's terms at most; a task with hundreds of scores takes some kilobytes."""

LONGEST_COMMITMENT = 16_384
"""The bytes of a commitment at most: 2,048 integers of 64 bits (``common/proved_sums/parameters.py``)."""

_MARK = b"CSA"


@dataclass(frozen=True)
class AdvertisedKeys:
    """Hospital → server, then to everybody: c_u^PK and s_u^PK, signed with the hospital's identity."""

    run_id: str
    round_number: int
    hospital: str
    config_hash: bytes
    identity: bytes
    """The Ed25519 public key that signed; must be the roster's."""
    encryption_key: bytes
    masking_key: bytes
    signature: bytes
    """Empty, or 64 bytes over everything above."""


@dataclass(frozen=True)
class KeyDirectory:
    """Server → hospital: everyone who advertised keys for a round (the paper's U_1), and the threshold t."""

    run_id: str
    round_number: int
    threshold: int
    keys: tuple[AdvertisedKeys, ...]


@dataclass(frozen=True)
class DisputableKeys(AdvertisedKeys):
    """The same in a run that has disputes: ``masking_key`` masks the counts, and the change has a key of its own."""

    change_key: bytes
    """s'_u^PK; under the signature, too."""


@dataclass(frozen=True)
class DisputableDirectory(KeyDirectory):
    """The same in a run that has disputes; every key in it is a :class:`DisputableKeys`."""


@dataclass(frozen=True)
class EncryptedShare:
    """One dealer's pair of shares (of s_u and b_u) for one recipient, with commitments to both."""

    dealer: str
    recipient: str
    ciphertext: bytes
    self_mask_commitment: bytes
    masking_key_commitment: bytes


@dataclass(frozen=True)
class EncryptedShares:
    """Hospital → server: a pair of encrypted shares for each neighbour, and a commitment to b_u."""

    run_id: str
    round_number: int
    hospital: str
    directory_hash: bytes
    self_mask_commitment: bytes
    shares: tuple[EncryptedShare, ...]


@dataclass(frozen=True)
class MaskedInputRequest:
    """Server → hospital: the cohort (the paper's U_2) and the shares dealt to this one; the model goes beside it."""

    run_id: str
    round_number: int
    terms: bytes
    """What the round asks for, in whatever encoding the caller has: everything that decides a hospital's vector."""
    cohort: tuple[str, ...]
    inbox: tuple[EncryptedShare, ...]


@dataclass(frozen=True)
class MaskedInput:
    """Hospital → server: what the masked vector beside it is, signed: the hospital's *view* of the round.

    Views of hospitals that were shown the same differ in name, vector and commitment alone.
    """

    run_id: str
    round_number: int
    hospital: str
    config_hash: bytes
    directory_hash: bytes
    cohort_hash: bytes
    request_hash: bytes
    modulus_bits: int
    vector_length: int
    vector_hash: bytes
    """The digest of the masked vector, y_u."""
    commitment: bytes
    """The hash of a commitment to what the vector hides (h_u), under the signature; empty where sums are not proved."""
    signature: bytes
    """64 bytes over everything above."""


@dataclass(frozen=True)
class SignedView:
    """What is one hospital's own in its :class:`MaskedInput`; whoever has the same view knows the rest."""

    hospital: str
    vector_hash: bytes
    commitment: bytes
    signature: bytes

    @classmethod
    def of(cls, view: MaskedInput) -> Self:
        """Return what is its hospital's own in a view."""
        return cls(view.hospital, view.vector_hash, view.commitment, view.signature)

    def within(self, view: MaskedInput) -> MaskedInput:
        """Return the whole view that this hospital must have signed: another's, with what is its own."""
        return replace(
            view,
            hospital=self.hospital,
            vector_hash=self.vector_hash,
            commitment=self.commitment,
            signature=self.signature,
        )


@dataclass(frozen=True)
class FullUnmaskingRequest:
    """Server → hospital: the signed views of everyone in the cohort."""

    run_id: str
    round_number: int
    views: tuple[SignedView, ...]


@dataclass(frozen=True)
class SurvivorList:
    """Server → hospital: whose vectors arrived (the paper's U_3), and whose did not."""

    run_id: str
    round_number: int
    survivors: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class SurvivorSignature:
    """Hospital → server, then to everybody: the view of the round that the hospital signed."""

    run_id: str
    round_number: int
    hospital: str
    config_hash: bytes
    request_hash: bytes
    cohort_hash: bytes
    survivors_hash: bytes
    signature: bytes


@dataclass(frozen=True)
class UnmaskingRequest:
    """Server → hospital: the survivors, and at least t signatures over them (none in a semi-honest run)."""

    run_id: str
    round_number: int
    survivors: tuple[str, ...]
    dropped: tuple[str, ...]
    signatures: tuple[SurvivorSignature, ...]


@dataclass(frozen=True)
class RevealedShare:
    """One share, in the clear."""

    owner: str
    """Whose secret this is a share of."""
    share: bytes = field(repr=False)


@dataclass(frozen=True)
class UnmaskingShares:
    """Hospital → server: shares of b_u for the survivors, of s_u for the dropped; none of these in a full round."""

    run_id: str
    round_number: int
    hospital: str
    self_mask_shares: tuple[RevealedShare, ...]
    masking_key_shares: tuple[RevealedShare, ...]


@dataclass(frozen=True)
class SealedCommitment:
    """Hospital → server: its commitment (C_u) under a stream from b_u, which opens when b_u is rebuilt."""

    run_id: str
    round_number: int
    hospital: str
    ciphertext: bytes


@dataclass(frozen=True)
class OpenedCommitment:
    """One survivor's commitment, in the clear."""

    hospital: str
    commitment: bytes = field(repr=False)


@dataclass(frozen=True)
class SumProof:
    """Server → hospital: what the survivors of a round committed to; the sum itself goes beside it."""

    run_id: str
    round_number: int
    commitments: tuple[OpenedCommitment, ...]


@dataclass(frozen=True)
class DisputedVector:
    """What is shown of one survivor's vector in a dispute, beside its masked change; all of it is under its view."""

    hospital: str
    sealed: bytes
    """The ciphertext of its :class:`SealedCommitment`."""
    self_mask_commitment: bytes
    counts_hash: bytes
    """The hash of the masked counts, which are not shown."""
    self_mask_seed: bytes = field(repr=False)
    """b_u, rebuilt."""


@dataclass(frozen=True)
class DroppedKey:
    """The key that a hospital without a vector in the sum would have masked its change with, rebuilt."""

    hospital: str
    change_key: bytes = field(repr=False)


@dataclass(frozen=True)
class Dispute:
    """Server → hospital: all that a round's sum of changes is computed from; the masked changes go beside it."""

    run_id: str
    round_number: int
    vectors: tuple[DisputedVector, ...]
    dropped: tuple[DroppedKey, ...]


@dataclass(frozen=True)
class OpenedChange:
    """Hospital → server, then to everybody: the private key that its change is masked with (s'_u), signed."""

    run_id: str
    round_number: int
    hospital: str
    change_key: bytes = field(repr=False)
    signature: bytes
    """64 bytes over everything above."""


@dataclass(frozen=True)
class OpenedChanges:
    """Server → hospital: everything that was opened in a dispute."""

    run_id: str
    round_number: int
    opened: tuple[OpenedChange, ...]


Message = (
    AdvertisedKeys
    | DisputableKeys
    | KeyDirectory
    | DisputableDirectory
    | Dispute
    | OpenedChange
    | OpenedChanges
    | EncryptedShares
    | MaskedInputRequest
    | MaskedInput
    | SurvivorList
    | SurvivorSignature
    | UnmaskingRequest
    | UnmaskingShares
    | FullUnmaskingRequest
    | SealedCommitment
    | SumProof
)
M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Limits:
    """How large a message may be: no list in it has more entries than there are hospitals."""

    hospitals: int = MOST_HOSPITALS


def encode(message: Message) -> bytes:
    """Return the canonical bytes of ``message``; :func:`decode` reads them back to an equal message.

    Raises:
        ValueError: a field does not fit its place, such as a list that is not sorted; only a defect in this
            program can cause it.
    """
    type_byte, layout = _LAYOUTS[type(message)]
    return _MARK + bytes([VERSION, type_byte]) + layout.write(message)


def decode(encoded: bytes, message_type: type[M], limits: Limits, place: Place, sender: str | None = None) -> M:
    """Read a message of the expected type.

    Args:
        encoded: bytes from outside, of any content and length.
        message_type: the only type that is accepted.
        limits: at most the roster's size in every list.
        place: who decodes, in which round and phase; for the error.
        sender: whom the bytes came from; for the error.

    Returns:
        The message, with ``encode(message) == encoded``.

    Raises:
        MessageError: one of its kinds, as the bytes end early, are too long, continue after the end, are of another
            version or type, or are not canonical.
    """
    type_byte, layout = _LAYOUTS[message_type]

    def refuse(kind: type[SecAggError], what: str) -> SecAggError:
        return kind(place, f"{message_type.__name__} {what}", sender)

    head = len(_MARK) + 2
    longest = head + layout.longest(limits)
    if len(encoded) > longest:
        raise refuse(OversizedMessageError, f"must have at most {longest} bytes, got {len(encoded)}")
    if len(encoded) < head:
        raise refuse(TruncatedMessageError, f"must have at least {head} bytes, got {len(encoded)}")
    if encoded[: len(_MARK)] != _MARK or encoded[head - 1] != type_byte:
        raise refuse(MessageTypeError, "expected, got another message, or none of this protocol")
    if encoded[len(_MARK)] != VERSION:
        raise refuse(ProtocolVersionError, f"must be of version {VERSION}, got {encoded[len(_MARK)]}")
    reader = _Reader(encoded, head, limits, refuse)
    message = layout.read(reader)
    if reader.position != len(encoded):
        raise refuse(TrailingBytesError, f"must end after {reader.position} bytes, got {len(encoded)}")
    return message  # type: ignore[no-any-return]


class _Reader:
    """The bytes that are left, and how to refuse them."""

    def __init__(
        self, data: bytes, position: int, limits: Limits, refuse: Callable[[type[SecAggError], str], SecAggError]
    ) -> None:
        self.data = data
        self.position = position
        self.limits = limits
        self.refuse = refuse

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise self.refuse(TruncatedMessageError, f"ends after {len(self.data)} bytes, {end} are needed")
        taken = self.data[self.position : end]
        self.position = end
        return taken


class _Codec(Protocol):
    """How one kind of field is written and read."""

    def write(self, value: Any) -> bytes: ...  # noqa: ANN401 - each codec checks its own kind of value
    def read(self, reader: _Reader) -> Any: ...  # noqa: ANN401
    def longest(self, limits: Limits) -> int: ...


@dataclass(frozen=True)
class _Unsigned:
    """An unsigned integer of a fixed number of bytes."""

    width: int

    def write(self, value: int) -> bytes:
        return value.to_bytes(self.width, "big")

    def read(self, reader: _Reader) -> int:
        return int.from_bytes(reader.take(self.width), "big")

    def longest(self, limits: Limits) -> int:  # noqa: ARG002 - the protocol's signature
        return self.width


@dataclass(frozen=True)
class _Fixed:
    """A byte string of a fixed length."""

    length: int

    def write(self, value: bytes) -> bytes:
        if len(value) != self.length:
            raise ValueError(f"must have {self.length} bytes, got {len(value)}")
        return value

    def read(self, reader: _Reader) -> bytes:
        return reader.take(self.length)

    def longest(self, limits: Limits) -> int:  # noqa: ARG002 - the protocol's signature
        return self.length


@dataclass(frozen=True)
class _Bytes:
    """A byte string of at most ``most`` bytes, after its length."""

    most: int

    def write(self, value: bytes) -> bytes:
        if len(value) > self.most:
            raise ValueError(f"must have at most {self.most} bytes, got {len(value)}")
        return len(value).to_bytes(2, "big") + value

    def read(self, reader: _Reader) -> bytes:
        length = int.from_bytes(reader.take(2), "big")
        if length > self.most:
            raise reader.refuse(OversizedMessageError, f"has a field of {length} bytes where {self.most} is most")
        return reader.take(length)

    def longest(self, limits: Limits) -> int:  # noqa: ARG002 - the protocol's signature
        return 2 + self.most


@dataclass(frozen=True)
class _Hex:
    """Hexadecimal digits, two a byte."""

    length: int

    def write(self, value: str) -> bytes:
        return _Fixed(self.length).write(bytes.fromhex(value))

    def read(self, reader: _Reader) -> str:
        return reader.take(self.length).hex()

    def longest(self, limits: Limits) -> int:  # noqa: ARG002 - the protocol's signature
        return self.length


class _Name:
    """A hospital's name in ASCII."""

    def write(self, value: str) -> bytes:
        return _Bytes(LONGEST_NAME).write(value.encode("ascii"))

    def read(self, reader: _Reader) -> str:
        name = _Bytes(LONGEST_NAME).read(reader)
        if not name or not name.isascii():
            raise reader.refuse(NonCanonicalMessageError, "must name hospitals in ASCII")
        return name.decode("ascii")

    def longest(self, limits: Limits) -> int:
        return _Bytes(LONGEST_NAME).longest(limits)


@dataclass(frozen=True)
class _Record:
    """A dataclass, field by field."""

    kind: type[Any]
    fields: dict[str, _Codec]

    def write(self, value: Any) -> bytes:  # noqa: ANN401 - any dataclass of ``kind``
        return b"".join(codec.write(getattr(value, name)) for name, codec in self.fields.items())

    def read(self, reader: _Reader) -> Any:  # noqa: ANN401
        return self.kind(**{name: codec.read(reader) for name, codec in self.fields.items()})

    def longest(self, limits: Limits) -> int:
        return sum(codec.longest(limits) for codec in self.fields.values())


@dataclass(frozen=True)
class _Sorted:
    """A list, strictly ascending, with at most one entry for each hospital."""

    item: _Codec
    key: str | None = None
    """The field that entries are sorted by; None sorts the entries themselves."""

    def _ascending(self, items: tuple[Any, ...]) -> bool:
        keys = [item if self.key is None else getattr(item, self.key) for item in items]
        return all(low < high for low, high in pairwise(keys))

    def write(self, value: tuple[Any, ...]) -> bytes:
        if not self._ascending(value):
            raise ValueError("a list must be sorted, without repeats")
        return len(value).to_bytes(2, "big") + b"".join(self.item.write(item) for item in value)

    def read(self, reader: _Reader) -> tuple[Any, ...]:
        count = int.from_bytes(reader.take(2), "big")
        if count > reader.limits.hospitals:
            raise reader.refuse(OversizedMessageError, f"has a list of {count} where {reader.limits.hospitals} is most")
        items = tuple(self.item.read(reader) for _ in range(count))
        if not self._ascending(items):
            raise reader.refuse(NonCanonicalMessageError, "must have sorted lists without repeats")
        return items

    def longest(self, limits: Limits) -> int:
        return 2 + limits.hospitals * self.item.longest(limits)


_PLACE: dict[str, _Codec] = {"run_id": _Hex(16), "round_number": _Unsigned(8)}
_HASH = _Fixed(HASH_BYTES)
_NAMES = _Sorted(_Name())

_ADVERTISED_KEYS = _Record(
    AdvertisedKeys,
    {
        **_PLACE,
        "hospital": _Name(),
        "config_hash": _HASH,
        "identity": _Fixed(PUBLIC_KEY_BYTES),
        "encryption_key": _Fixed(PUBLIC_KEY_BYTES),
        "masking_key": _Fixed(PUBLIC_KEY_BYTES),
        "signature": _Bytes(SIGNATURE_BYTES),
    },
)
_DISPUTABLE_KEYS = _Record(DisputableKeys, {**_ADVERTISED_KEYS.fields, "change_key": _Fixed(PUBLIC_KEY_BYTES)})
_ENCRYPTED_SHARE = _Record(
    EncryptedShare,
    {
        "dealer": _Name(),
        "recipient": _Name(),
        "ciphertext": _Bytes(LONGEST_CIPHERTEXT),
        "self_mask_commitment": _HASH,
        "masking_key_commitment": _HASH,
    },
)
_SURVIVOR_SIGNATURE = _Record(
    SurvivorSignature,
    {
        **_PLACE,
        "hospital": _Name(),
        "config_hash": _HASH,
        "request_hash": _HASH,
        "cohort_hash": _HASH,
        "survivors_hash": _HASH,
        "signature": _Bytes(SIGNATURE_BYTES),
    },
)
_SIGNED_VIEW = _Record(
    SignedView,
    {
        "hospital": _Name(),
        "vector_hash": _HASH,
        "commitment": _Bytes(HASH_BYTES),
        "signature": _Bytes(SIGNATURE_BYTES),
    },
)
_OPENED_COMMITMENT = _Record(OpenedCommitment, {"hospital": _Name(), "commitment": _Bytes(LONGEST_COMMITMENT)})
_DISPUTED_VECTOR = _Record(
    DisputedVector,
    {
        "hospital": _Name(),
        "sealed": _Bytes(LONGEST_COMMITMENT),
        "self_mask_commitment": _HASH,
        "counts_hash": _HASH,
        "self_mask_seed": _Fixed(SECRET_BYTES),
    },
)
_DROPPED_KEY = _Record(DroppedKey, {"hospital": _Name(), "change_key": _Fixed(SECRET_BYTES)})
_OPENED_CHANGE = _Record(
    OpenedChange,
    {**_PLACE, "hospital": _Name(), "change_key": _Fixed(SECRET_BYTES), "signature": _Bytes(SIGNATURE_BYTES)},
)
_SURVIVORS: dict[str, _Codec] = {**_PLACE, "survivors": _NAMES, "dropped": _NAMES}
_REVEALED = _Sorted(_Record(RevealedShare, {"owner": _Name(), "share": _Fixed(SHARE_BYTES)}), "owner")

_LAYOUTS: dict[type[Any], tuple[int, _Record]] = {
    AdvertisedKeys: (1, _ADVERTISED_KEYS),
    KeyDirectory: (
        2,
        _Record(KeyDirectory, {**_PLACE, "threshold": _Unsigned(2), "keys": _Sorted(_ADVERTISED_KEYS, "hospital")}),
    ),
    EncryptedShares: (
        3,
        _Record(
            EncryptedShares,
            {
                **_PLACE,
                "hospital": _Name(),
                "directory_hash": _HASH,
                "self_mask_commitment": _HASH,
                "shares": _Sorted(_ENCRYPTED_SHARE, "recipient"),
            },
        ),
    ),
    MaskedInputRequest: (
        4,
        _Record(
            MaskedInputRequest,
            {**_PLACE, "terms": _Bytes(LONGEST_TERMS), "cohort": _NAMES, "inbox": _Sorted(_ENCRYPTED_SHARE, "dealer")},
        ),
    ),
    MaskedInput: (
        5,
        _Record(
            MaskedInput,
            {
                **_PLACE,
                "hospital": _Name(),
                "config_hash": _HASH,
                "directory_hash": _HASH,
                "cohort_hash": _HASH,
                "request_hash": _HASH,
                "modulus_bits": _Unsigned(1),
                "vector_length": _Unsigned(8),
                "vector_hash": _HASH,
                "commitment": _Bytes(HASH_BYTES),
                "signature": _Bytes(SIGNATURE_BYTES),
            },
        ),
    ),
    SurvivorList: (6, _Record(SurvivorList, _SURVIVORS)),
    SurvivorSignature: (7, _SURVIVOR_SIGNATURE),
    UnmaskingRequest: (
        8,
        _Record(UnmaskingRequest, {**_SURVIVORS, "signatures": _Sorted(_SURVIVOR_SIGNATURE, "hospital")}),
    ),
    UnmaskingShares: (
        9,
        _Record(
            UnmaskingShares,
            {**_PLACE, "hospital": _Name(), "self_mask_shares": _REVEALED, "masking_key_shares": _REVEALED},
        ),
    ),
    FullUnmaskingRequest: (
        10,
        _Record(FullUnmaskingRequest, {**_PLACE, "views": _Sorted(_SIGNED_VIEW, "hospital")}),
    ),
    SealedCommitment: (
        11,
        _Record(SealedCommitment, {**_PLACE, "hospital": _Name(), "ciphertext": _Bytes(LONGEST_COMMITMENT)}),
    ),
    SumProof: (12, _Record(SumProof, {**_PLACE, "commitments": _Sorted(_OPENED_COMMITMENT, "hospital")})),
    DisputableKeys: (13, _DISPUTABLE_KEYS),
    DisputableDirectory: (
        14,
        _Record(
            DisputableDirectory,
            {**_PLACE, "threshold": _Unsigned(2), "keys": _Sorted(_DISPUTABLE_KEYS, "hospital")},
        ),
    ),
    Dispute: (
        15,
        _Record(
            Dispute,
            {**_PLACE, "vectors": _Sorted(_DISPUTED_VECTOR, "hospital"), "dropped": _Sorted(_DROPPED_KEY, "hospital")},
        ),
    ),
    OpenedChange: (16, _OPENED_CHANGE),
    OpenedChanges: (17, _Record(OpenedChanges, {**_PLACE, "opened": _Sorted(_OPENED_CHANGE, "hospital")})),
}
