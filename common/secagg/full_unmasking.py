"""FullUnmasking, instead of phases 3 and 4: the sum over everybody is opened at once when nobody is missing.

Bonawitz et al. 2017 sign the survivors (ConsistencyCheck) before anybody reveals a share. Where every vector of the
cohort has arrived there is no list to choose: each hospital has signed with its vector what it was shown, and whoever
sees the signatures of *all* of the cohort over its own view knows that no honest hospital was shown anything else. It
then reveals its shares of everyone's b, and no share of anyone's s. Proof: ``docs/proofs/two-exchanges.md``.

What the proof asks of a hospital, and where it is enforced:

1. It signs one view a round, that of the vector it sends: ``answered_rounds``, phase MaskedInputCollection.
2. It obeys only with a signature of everyone in the cohort, over its own view: :func:`verify_views`. A threshold of
   signatures is not enough in a sparse round.
3. It reveals shares of b alone: :func:`reveal_all`.
4. Opening the sum so, and signing a list of survivors, take one slot of a round together: ``answered_rounds``, noted
   on its disk before it answers.
"""

from common.secagg.binding import require_place
from common.secagg.consistency_check import needs_agreement
from common.secagg.errors import (
    SERVER,
    NotInCohortError,
    Place,
    TooFewHospitalsError,
    TooFewSignaturesError,
    UnknownPhaseError,
)
from common.secagg.masked_input import MaskedState, MaskedSum, verify_view
from common.secagg.messages import (
    FullUnmaskingRequest,
    SignedView,
    UnmaskingRequest,
    UnmaskingShares,
)
from common.secagg.phases import Phase
from common.secagg.unmasking import shares_for


def reveal_all(state: MaskedState, request: FullUnmaskingRequest) -> UnmaskingShares:
    """Reveal the shares of b_v for every v of the cohort that this hospital holds some of, and none of any s_v.

    Args:
        state: the state of :func:`common.secagg.masked_input.mask`; a hospital that has signed survivors has used up
            the slot that this takes.
        request: everyone's signed view.

    Returns:
        The message for the server.

    Raises:
        SecAggError: of the kinds of :func:`verify_views`; nothing was revealed.
    """
    verify_views(state, request, Place(state.hospital, state.round_number, Phase.FULL_UNMASKING))
    return shares_for_all(state)


def shares_for_all(state: MaskedState) -> UnmaskingShares:
    """Do as :func:`reveal_all` with a request that is known to be good.

    For a benchmark that plays many hospitals and checks the request for one of them; a hospital calls
    :func:`reveal_all`.
    """
    everybody = UnmaskingRequest(state.run.run_id, state.round_number, state.cohort, (), ())
    return shares_for(state, everybody)


def verify_views(state: MaskedState, request: FullUnmaskingRequest, place: Place) -> None:
    """Refuse to open the sum unless everyone in the cohort signed this hospital's own view of the round.

    The views may differ in the hospital, its vector and its commitment; everything else is put in here as this hospital
    signed it, so a signature over anything else does not verify.

    Raises:
        UnknownPhaseError: the run is against a semi-honest server, and its threshold is too low for this.
        NotInCohortError: somebody else's view.
        ViewSignatureError: a signature over another view, or not its hospital's.
        TooFewSignaturesError: a view is missing.
        ContextError: one of its kinds: another run or round.
    """
    require_place(state.run, state.round_number, request, place)
    if not needs_agreement(state.run):
        raise UnknownPhaseError(place, "a sum is opened at once in runs against an active server alone")
    signers = set()
    for signed in request.views:
        if signed.hospital not in state.cohort:
            raise NotInCohortError(place, "a view must be of a hospital that this one masked for", signed.hospital)
        verify_view(state.run, signed.within(state.view), place)
        signers.add(signed.hospital)
    for missing in sorted(set(state.cohort) - signers):
        raise TooFewSignaturesError(
            place, f"all {len(state.cohort)} of the cohort must have signed, got {len(signers)} signatures", missing
        )


def is_full(masked_sum: MaskedSum) -> bool:
    """Say whether the sum can be opened at once: every vector is there, in a run against an active server."""
    return needs_agreement(masked_sum.routed.run) and masked_sum.submitted == set(masked_sum.routed.cohort)


def request_all(masked_sum: MaskedSum) -> FullUnmaskingRequest:
    """Close the sum and ask everyone to open it; :func:`common.secagg.unmasking.unmask` takes what they reveal.

    Raises:
        TooFewHospitalsError: a vector is missing; the survivors must be signed instead.
    """
    routed = masked_sum.routed
    if not is_full(masked_sum):
        raise TooFewHospitalsError(
            Place(SERVER, routed.directory.round_number, Phase.FULL_UNMASKING),
            f"all {len(routed.cohort)} of the cohort must submit a vector, got {len(masked_sum.submitted)}",
        )
    closed = masked_sum.close()
    views = tuple(SignedView.of(masked_sum.views[hospital]) for hospital in closed.survivors)
    return FullUnmaskingRequest(closed.run_id, closed.round_number, views)
