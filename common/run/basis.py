"""What a hospital's next model follows from, in a run that proves its sums: what comes with a request for a vector.

A server sends no model. It sends the last sum that changed the model, with what proves it, and each hospital computes
the model from its own. The array beside the request is one of:

1. nothing, before the first such sum: the model is the one of the run's seed;
2. the sum, change and weight and ρ, for hospitals that took part in its round and so have the model of before;
3. the model and the optimiser's state of before, and then the sum, for a late joiner
   (:func:`common.proved_sums.lineage.join`).

It travels as an array of float32, as models do; its bits are those of the ring, filled up with zeros to four bytes.
"""

from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from common.errors import RunError
from common.proved_sums.lineage import VouchedState
from common.run.round_terms import ProvedTerms, RoundTerms
from common.secagg import messages as secagg
from common.secagg.errors import Place, UnusableModelError
from common.secagg.parameters import MOST_HOSPITALS, RunParameters

VERSION = 1

_Kind = TypeVar("_Kind")

_WORD = np.dtype(np.float32).itemsize


class Evidence(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """One round whose sum changed the model, and what proves the sum.

    Attributes:
        round_number: of that round.
        terms: what it asked for.
        cohort: who was asked, sorted.
        view: a survivor's ``secagg`` MaskedInput.
        views: a ``secagg`` FullUnmaskingRequest, the signed views of all survivors.
        proof: a ``secagg`` SumProof, their commitments.
        version: of this format.
    """

    round_number: Annotated[int, msgspec.Meta(ge=1, le=2**40)]
    terms: bytes
    cohort: Annotated[tuple[str, ...], msgspec.Meta(max_length=MOST_HOSPITALS)]
    view: bytes
    views: bytes
    proof: bytes
    version: Annotated[int, msgspec.Meta(ge=VERSION, le=VERSION)] = VERSION

    def encode(self) -> bytes:
        """Return the bytes that :func:`read_evidence` reads."""
        return msgspec.msgpack.encode(self)

    def read(self, run: RunParameters, place: Place) -> "ReadEvidence":
        """Read the messages inside.

        Raises:
            SecAggError: one of them is none.
            RunError: the terms are none of a run with proved sums.
        """
        limits = secagg.Limits(hospitals=max(len(run.roster), MOST_HOSPITALS))
        terms = RoundTerms.decode(self.terms)
        if not isinstance(terms, ProvedTerms):
            raise RunError("the terms of a round whose sum is proved must name the state of the optimiser")
        views = secagg.decode(self.views, secagg.FullUnmaskingRequest, limits, place)
        return ReadEvidence(
            terms,
            self.cohort,
            VouchedState(
                secagg.decode(self.view, secagg.MaskedInput, limits, place), views.views, self.terms, terms.state_hash
            ),
            secagg.decode(self.proof, secagg.SumProof, limits, place),
        )


class ReadEvidence(msgspec.Struct, frozen=True):
    """The messages in an :class:`Evidence`."""

    terms: ProvedTerms
    cohort: tuple[str, ...]
    vouched: VouchedState
    proof: secagg.SumProof

    @property
    def survivors(self) -> tuple[str, ...]:
        """Return whose commitments are shown."""
        return tuple(opened.hospital for opened in self.proof.commitments)


class Basis(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """What a request's model follows from: a sum, or None for the model of the run's seed."""

    evidence: Evidence | None

    def encode(self) -> bytes:
        """Return the bytes that :meth:`decode` reads."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, encoded: bytes) -> "Basis":
        """Read what a server sent.

        Raises:
            RunError: it is no such thing.
        """
        return _read(encoded, cls, "what a model follows from")


def read_evidence(encoded: bytes) -> Evidence:
    """Read what :meth:`Evidence.encode` wrote.

    Raises:
        RunError: it is no such thing.
    """
    return _read(encoded, Evidence, "what proves a sum")


def _read(encoded: bytes, kind: type[_Kind], what: str) -> _Kind:
    try:
        return msgspec.msgpack.decode(encoded, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RunError(f"{what} must be of version {VERSION}: {error}") from None


def words_of(total: NDArray[Any]) -> NDArray[np.float32]:
    """Return a sum's bits as float32, to travel; :func:`sum_in` is the inverse."""
    filled = np.zeros(-(-total.nbytes // _WORD) * _WORD, np.uint8)
    filled[: total.nbytes] = np.ascontiguousarray(total).view(np.uint8)
    return filled.view(np.float32)


def sum_in(words: NDArray[np.float32], length: int, dtype: np.dtype[Any], place: Place) -> NDArray[Any]:
    """Return the sum of so many elements of the ring in an array that came.

    Raises:
        UnusableModelError: the array is not as long, or is filled up with anything but zeros.
    """
    if words.dtype != np.float32 or words.shape != (words_for(length, dtype),):
        raise UnusableModelError(
            place, f"a sum must come as {words_for(length, dtype)} words, got {words.shape} of {words.dtype}"
        )
    content = np.ascontiguousarray(words).view(np.uint8)
    if content[length * dtype.itemsize :].any():
        raise UnusableModelError(place, "a sum must be filled up with zeros to whole words")
    return content[: length * dtype.itemsize].view(dtype)


def words_for(length: int, dtype: np.dtype[Any]) -> int:
    """Return how many float32 carry so many elements.

    >>> words_for(3, np.dtype(np.uint16))
    2
    """
    return -(-length * dtype.itemsize // _WORD)
