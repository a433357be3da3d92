"""Which model a hospital goes on from: the agreed first one, plus sums that it has seen proved.

A hospital keeps a :class:`Lineage` through a run. Every step gives a new one; nothing is changed in place. The rules:

1. It begins from the model that the run's description and seed give, which it computes itself: :func:`begin`.
2. Once it has helped to open the sum of a round, it goes on from that sum, proved: :func:`follow`; or from the same
   model as before with the round recorded as void, ``most_void_rounds`` times a run: :func:`pass_over`. Where it has
   seen itself that the sum fails, the round is void at once: :func:`void`.
3. Where it opened nothing, it goes on from the model that it has: :func:`stay`; or, as a late joiner, from one that
   enough hospitals signed as theirs in the round of the last sum: :func:`join`.

Models are named by :func:`state_hash`, over the model and the state of the optimiser.

Proof: ``docs/proofs/proved-sums.md``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.proved_sums.errors import (
    InitialModelError,
    ModelDoesNotFollowError,
    StaleModelError,
    TooManyVoidRoundsError,
    UnprovedModelError,
)
from common.proved_sums.proof import CommittedGroup, ProvedSum, committed_group
from common.secagg.binding import bound_hash, request_hash
from common.secagg.errors import Place
from common.secagg.messages import MaskedInput, SignedView
from common.secagg.parameters import RunParameters
from common.secagg.phases import Phase

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Lineage:
    """What one hospital knows of a run's model."""

    run: RunParameters
    hospital: str
    most_void_rounds: int
    """How many rounds of a run may be passed over without the sum that this hospital helped to open."""
    state: bytes
    """The hash of the model and the optimiser's state that the next round begins from."""
    void_rounds: tuple[int, ...] = ()
    opened: CommittedGroup | None = None
    """The round whose sum this hospital helped to open last, until it has seen that sum or passed it over."""

    def place(self, round_number: int) -> Place:
        """Return where a request of a round is refused."""
        return Place(self.hospital, round_number, Phase.MASKED_INPUT)


@dataclass(frozen=True)
class VouchedState:
    """What a late joiner is shown of the round of the last sum: who signed that it began from which model."""

    view: MaskedInput
    """Anybody's view of that round."""
    views: tuple[SignedView, ...]
    terms: bytes
    """What that round asked for; its hash is in the view."""
    state: bytes
    """The hash of model and state that the terms name."""


def state_hash(model: Array, state: Mapping[str, Array]) -> bytes:
    """Return the hash of a model and the optimiser's state, 32 bytes: of names, lengths and float32 values.

    >>> one = np.ones(2, np.float32)
    >>> state_hash(one, {}) != state_hash(one, {"velocity": one})
    True
    """
    parts: list[bytes | memoryview] = [_bytes_of(model)]
    for name in sorted(state):
        parts += [name.encode(), _bytes_of(state[name])]
    return bound_hash("model and state", *parts)


def _bytes_of(array: Array) -> memoryview:
    return np.ascontiguousarray(array, "<f4").data.cast("B")


def begin(run: RunParameters, hospital: str, most_void_rounds: int, computed: bytes, claimed: bytes) -> Lineage:
    """Begin a run from the model of its seed.

    Args:
        run: of this hospital's own configuration.
        hospital: this one.
        most_void_rounds: of the run's description.
        computed: the hash of the model that this hospital made from the description and its seed.
        claimed: the hash that the first request names.

    Raises:
        InitialModelError: they differ.
    """
    lineage = Lineage(run, hospital, most_void_rounds, computed)
    if claimed != computed:
        raise InitialModelError(lineage.place(1), "the first model must be the one of the run's seed, got another")
    return lineage


def has_opened(lineage: Lineage, group: CommittedGroup) -> Lineage:
    """Note, before a share is revealed, whose commitments the round's sum must be of."""
    return replace(lineage, opened=group)


def follow(lineage: Lineage, proved: ProvedSum, computed: bytes, claimed: bytes, round_number: int) -> Lineage:
    """Go on from a proved sum.

    Args:
        lineage: with the round that was opened.
        proved: of :func:`common.proved_sums.proof.verify_sum`, for that round.
        computed: the hash of the model and state that this hospital computed from its own and the sum.
        claimed: the hash that the request names.
        round_number: of the request.

    Raises:
        UnprovedModelError: the sum is not of the round that this hospital helped to open.
        ModelDoesNotFollowError: the hashes differ.
    """
    place, opened = lineage.place(round_number), lineage.opened
    if opened is None or opened.view.round_number != proved.round_number:
        raise UnprovedModelError(place, "a sum must be of the last round that this hospital helped to open")
    if claimed != computed:
        raise ModelDoesNotFollowError(
            place, "the model and the optimiser's state must follow from the proved sum, got others"
        )
    return replace(lineage, state=computed, opened=None)


def pass_over(lineage: Lineage, void_round: int, claimed: bytes, round_number: int) -> Lineage:
    """Go on from the same model, with the round that this hospital helped to open recorded as void.

    Raises:
        UnprovedModelError: it is another round that this hospital helped to open last.
        TooManyVoidRoundsError: the run allows no more of them.
        ModelDoesNotFollowError: the request names another model or state than the one before.
    """
    return stay(void(lineage, void_round, lineage.place(round_number)), claimed, round_number)


def void(lineage: Lineage, void_round: int, place: Place) -> Lineage:
    """Record as void the round that this hospital helped to open: no model comes of it.

    Args:
        lineage: with the round that was opened.
        void_round: its number.
        place: of a refusal.

    Raises:
        UnprovedModelError: it is another round that this hospital helped to open last.
        TooManyVoidRoundsError: the run allows no more of them.
    """
    opened = lineage.opened
    if opened is None or opened.view.round_number != void_round:
        raise UnprovedModelError(place, f"round {void_round} must be the last that this hospital helped to open")
    rounds = (*lineage.void_rounds, void_round)
    if len(rounds) > lineage.most_void_rounds:
        raise TooManyVoidRoundsError(
            place, f"at most {lineage.most_void_rounds} rounds may end without a sum, got {len(rounds)}"
        )
    return replace(lineage, void_rounds=rounds, opened=None)


def stay(lineage: Lineage, claimed: bytes, round_number: int) -> Lineage:
    """Go on from the model that this hospital has.

    Raises:
        UnprovedModelError: it helped to open a sum, which the request passes over in silence.
        ModelDoesNotFollowError: the request names another model or state.
    """
    place = lineage.place(round_number)
    if lineage.opened is not None:
        raise UnprovedModelError(
            place,
            f"round {lineage.opened.view.round_number} was opened, so its sum must be proved, or the round be "
            "recorded as void; got neither",
        )
    if claimed != lineage.state:
        raise ModelDoesNotFollowError(place, "the model and the optimiser's state must be this hospital's, got others")
    return lineage


def join(lineage: Lineage, shown: VouchedState, survivors: Iterable[str], round_number: int) -> Lineage:
    """Take over the model and state that enough hospitals signed as theirs in the round of the last sum.

    Enough is the threshold for the whole roster, so that no two models can each have as many. How long ago that round
    was does not matter: numbers are the server's choice, and rounds that failed since have some, too. Masks are bound
    to the model, so a stale state is of use only with hospitals that have opened no later sum, and these would go on
    from it without this one.

    Args:
        lineage: this hospital's; what it has is out of date, or it has begun the run anew.
        shown: of the server. The caller has read ``state`` from the terms, and hashed what came beside them.
        survivors: whose sum that round gave, all of whom must be among the signers; nobody, if the round was void.
        round_number: of the request.

    Returns:
        The lineage from that state, with that round to be followed, passed over, or, if it was void, done with.

    Raises:
        StaleModelError: too few signatures, another request than was signed, or a round that is not over.
        UnsignedCommitmentError, MissingCommitmentError, UnexpectedCommitmentError: of the views that are shown.
    """
    place, run, signed_round = lineage.place(round_number), lineage.run, shown.view.round_number
    if shown.view.run_id != run.run_id or shown.view.config_hash != run.config_hash:
        raise StaleModelError(place, "signatures must be of this run")
    if signed_round >= round_number:
        raise StaleModelError(place, f"signatures must be of a round before this one, got round {signed_round}")
    if request_hash(shown.terms) != shown.view.request_hash:
        raise StaleModelError(place, "the state must be of the request that hospitals signed")
    fewest, signers = run.threshold(len(run.roster)), [view.hospital for view in shown.views]
    if len(set(signers)) < fewest:
        raise StaleModelError(place, f"at least {fewest} hospitals must have signed the state, got {len(set(signers))}")
    group = committed_group(run, shown.view, shown.views, signers, place)
    summed = set(survivors)
    for missing in sorted(summed - set(signers)):
        raise StaleModelError(place, "every survivor of the round of a sum must have signed its state", missing)
    hashes = {hospital: promised for hospital, promised in group.hashes.items() if hospital in summed}
    return replace(lineage, state=shown.state, opened=replace(group, hashes=hashes) if hashes else None)
