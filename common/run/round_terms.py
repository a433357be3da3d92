"""The canonical request of a round: everything that decides a hospital's vector and is not in the run description.

**Rule.** A hospital makes its vector from the run description, the model, and one :class:`RoundTerms`, and takes
nothing else from a server. The terms travel as bytes inside the protocol's request; the hash of those bytes is in
every pairwise mask and every signature of the round (``common/secagg``), and the description's hash and the model's are
bound likewise. So hospitals that were shown different terms share no mask, and a field that is added here is bound
because it is here.
"""

from enum import StrEnum
from typing import Annotated

import msgspec

from common.errors import RunError
from common.evaluation.question import Question
from common.secagg.messages import LONGEST_TERMS
from common.secagg.parameters import MOST_HOSPITALS

VERSION = 1

_HASH_BYTES = 32


class Purpose(StrEnum):
    """What a round is for."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    """The change is all zeros, and costs nothing."""

    MEAN = "mean"
    """The change is the mean of the hospitals' unit-norm features, in the place of the model's centre."""


class RoundTerms(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """What one round asks of every hospital of its cohort, the same for all.

    Attributes:
        purpose: train, evaluate alone, or tell the mean of features.
        model_hash: SHA-256 of the model that comes with the request, 32 bytes.
        fewest_survivors: how many vectors the sum must hold for its noise to be enough; 0 where it needs none.
        question: the release of the evaluation plan that is asked for; None for none, and where counts are exact.
        version: of this format.
    """

    purpose: Purpose
    model_hash: Annotated[bytes, msgspec.Meta(min_length=_HASH_BYTES, max_length=_HASH_BYTES)]
    fewest_survivors: Annotated[int, msgspec.Meta(ge=0, le=MOST_HOSPITALS)]
    question: Question | None = None
    version: Annotated[int, msgspec.Meta(ge=VERSION, le=VERSION)] = VERSION

    @property
    def trains(self) -> bool:
        """Return whether hospitals train in this round."""
        return self.purpose is Purpose.TRAIN

    @property
    def reads_training_records(self) -> bool:
        """Return whether the change in this round's vectors depends on training records, which then pay for it."""
        return self.purpose is not Purpose.EVALUATE

    def encode(self) -> bytes:
        """Return the one encoding of these terms: MessagePack."""
        encoded = msgspec.msgpack.encode(self)
        if len(encoded) > LONGEST_TERMS:
            raise RunError(f"a round's terms must have at most {LONGEST_TERMS} bytes, got {len(encoded)}")
        return encoded

    @classmethod
    def decode(cls, encoded: bytes) -> "RoundTerms":
        """Read what :meth:`encode` wrote.

        Raises:
            RunError: not such terms, of another version, or not in their one encoding.
        """
        try:
            fields = len(msgspec.msgpack.decode(encoded, type=list[msgspec.Raw]))
            kind = RoundTerms if fields == len(RoundTerms.__struct_fields__) else ProvedTerms
            terms = msgspec.msgpack.decode(encoded, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise RunError(f"a round's terms must be of version {VERSION}: {error}") from None
        if terms.encode() != encoded:
            raise RunError("a round's terms must be in their one encoding, got another")
        return terms


class ProvedTerms(RoundTerms, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """What a round of a run with proved sums asks for.

    Attributes:
        state_hash: of the model and the optimiser's state (:func:`common.proved_sums.lineage.state_hash`), 32 bytes;
            each hospital has computed both, and compares.
    """

    state_hash: Annotated[bytes, msgspec.Meta(min_length=_HASH_BYTES, max_length=_HASH_BYTES)]
