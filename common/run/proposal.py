"""What a server proposes to hospitals before a run, and what each of them answers.

A proposal is the run's description, with who must be there and until when. Its hash is in every answer. An answer is
signed by the hospital's identity key, so that the server cannot make one up, nor use one for another proposal.

A run's *terms* are its description without its members, who may change while it goes on. A hospital that has agreed to
a proposal takes part in a run of these terms alone.

**What an answer depends on.** The proposal, the hospital's policy, what its ledger was asked to book before, and its
operator's decision: never its data.
"""

import hashlib
from enum import StrEnum
from typing import Annotated, Final, Literal, Self, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.audit.entries import Hash
from common.canonical import canonical_json
from common.complaints import complaint
from common.config import RunDescription, RunId
from common.errors import IdentityError, RunError
from common.telemetry.events import printable

VERSION: Final = 1
"""The version of proposals and answers, on the wire and on disk."""

MOST_OPEN = 32
"""The most runs that are proposed, waiting or going on at once."""

MOST_NOTICES = MOST_OPEN + 8
"""The most runs that a hospital is told of at once: the open ones, and those that ended last."""

LONGEST_PROPOSAL_BYTES = 4 * 2**20
"""A description with the certificates of 1,024 hospitals takes about 1 MiB."""

LONGEST_ANSWER_BYTES = 8192

LONGEST_REASON = 400

MEMBERS = frozenset({"roster", "member_list", "vector_length"})
"""What may change in a run's description while it goes on: the members, and what follows from their number."""

_DOMAIN = b"confide run answer 1\x00"
"""Signed before every answer, so that no other message of Confide can pass for one."""


class RunState(StrEnum):
    """Where a run stands."""

    PROPOSED = "proposed"
    AGREED = "agreed"
    RUNNING = "running"
    STOPPED = "stopped"
    FAILED = "failed"
    FINISHED = "finished"
    DECLINED = "declined"
    LAPSED = "lapsed"


OPEN = frozenset({RunState.PROPOSED, RunState.AGREED, RunState.RUNNING, RunState.STOPPED, RunState.FAILED})
"""The states in which hospitals are still shown the proposal, and an answer still counts."""

_HospitalName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
_Words = Annotated[str, Field(max_length=LONGEST_REASON), AfterValidator(printable)]


class _Signed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    version: Literal[1] = VERSION

    def encode(self) -> bytes:
        """Return the one encoding that is hashed, signed, sent and kept."""
        return canonical_json(self.model_dump(mode="json"))


class Proposal(_Signed):
    """A run before anybody has agreed to it."""

    description: RunDescription
    data_set: Annotated[str, Field(max_length=200), AfterValidator(printable)]
    """What outputs call the hospitals' data."""
    hospitals: Annotated[tuple[_HospitalName, ...], Field(min_length=1, max_length=1024)]
    """Who must agree before the run starts. Other members are asked too, and take part once they have agreed."""
    until: Annotated[int, Field(ge=0, le=2**40)]
    """Unix seconds: the agreement ends then, whether the run has started or not."""

    @model_validator(mode="after")
    def _names_members(self) -> Self:
        if list(self.hospitals) != sorted(set(self.hospitals)) or not set(self.hospitals) <= set(
            self.description.roster
        ):
            raise ValueError("hospitals must be members on the roster, each once, in order")
        if len(self.hospitals) < self.description.aggregation.min_hospitals:
            raise ValueError(
                f"at least aggregation.min_hospitals = {self.description.aggregation.min_hospitals} hospitals must be "
                f"named, got {len(self.hospitals)}"
            )
        return self

    @property
    def run_id(self) -> str:
        """The run's identifier."""
        return self.description.run_id

    def hash(self) -> str:
        """Return the SHA-256 of :meth:`encode`, in hexadecimal."""
        return hashlib.sha256(self.encode()).hexdigest()

    @classmethod
    def decode(cls, encoded: bytes) -> Self:
        """Read a proposal that came over the network or from a disk.

        Raises:
            RunError: it is too long, not a proposal of this version, or not in its one encoding.
        """
        return _decoded(cls, encoded, LONGEST_PROPOSAL_BYTES, "a proposal")


class AnsweredEpsilon(BaseModel):
    """What a whole run would leave of one budget: ε after it, by the hospital's own ledger, and the budget."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    after: Annotated[float, Field(ge=0)]
    budget: Annotated[float, Field(ge=0)]


class RunAnswer(_Signed):
    """A hospital's one answer to a proposal."""

    run_id: RunId
    proposal: Hash
    """:meth:`Proposal.hash`."""
    hospital: _HospitalName
    agreed: bool
    by: Literal["policy", "operator"]
    code: Annotated[str, Field(pattern="^[a-z_]{0,64}$")] = ""
    """Why it declines, as a word for metrics; empty where it agrees."""
    reason: _Words = ""
    """Why it declines, as a sentence; empty where it agrees."""
    epsilon: Annotated[dict[str, AnsweredEpsilon], Field(max_length=8)] = Field(default_factory=dict)
    """The cost by account. Empty where it declines: the sentence says what matters."""
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{0,128}$")] = ""

    def signed(self, key: Ed25519PrivateKey) -> Self:
        """Return the answer with the hospital's signature."""
        return self.model_copy(update={"signature": key.sign(self._signed_part()).hex()})

    def verify(self, key: Ed25519PublicKey) -> None:
        """Raise :class:`IdentityError` unless the hospital with this key has signed the answer."""
        try:
            key.verify(bytes.fromhex(self.signature), self._signed_part())
        except (InvalidSignature, ValueError):
            raise IdentityError(f"an answer to a proposal must be signed by {self.hospital}'s identity key") from None

    def _signed_part(self) -> bytes:
        return _DOMAIN + canonical_json(self.model_dump(mode="json", exclude={"signature"}))

    @classmethod
    def decode(cls, encoded: bytes) -> Self:
        """Read an answer that came over the network or from a disk; errors as for :meth:`Proposal.decode`."""
        return _decoded(cls, encoded, LONGEST_ANSWER_BYTES, "an answer to a proposal")


def terms_hash(description: RunDescription) -> str:
    """Return the SHA-256, in hexadecimal, of all in a description that stays the same while its run goes on."""
    return hashlib.sha256(canonical_json(description.model_dump(mode="json", exclude=set(MEMBERS)))).hexdigest()


_Kind = TypeVar("_Kind", bound=_Signed)


def _decoded(kind: type[_Kind], encoded: bytes, longest: int, what: str) -> _Kind:
    if len(encoded) > longest:
        raise RunError(f"{what} must be at most {longest} bytes, got {len(encoded)}")
    try:
        read = kind.model_validate_json(encoded)
    except ValidationError as error:
        raise RunError(f"{what} must be one of version {VERSION}; {complaint(error, 'the whole')}") from None
    if read.encode() != encoded:
        raise RunError(f"{what} must be in canonical form; it was changed")
    return read
