"""Phase 3, ConsistencyCheck: hospitals sign what they were shown, so that a server can't show them different things.

Proof that signing more than U_3 is sound: ``docs/proofs/signed-view.md``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.secagg.binding import bind, require_place, round_context, survivors_hash
from common.secagg.errors import (
    SERVER,
    CohortMismatchError,
    ConfigHashError,
    DifferentSurvivorsError,
    DroppedAndAliveError,
    IncompleteSurvivorsError,
    NotInCohortError,
    OmittedHospitalError,
    Place,
    RequestHashError,
    SecAggError,
    SurvivorOutsideCohortError,
    SurvivorSignatureError,
    TooFewHospitalsError,
    TooFewSignaturesError,
)
from common.secagg.keys import is_signed
from common.secagg.masked_input import MaskedState, MaskedSum
from common.secagg.messages import SurvivorList, SurvivorSignature, UnmaskingRequest, encode
from common.secagg.parameters import Adversary, RunParameters
from common.secagg.phases import Phase


@dataclass(frozen=True)
class SignedState:
    """A hospital's state after it signed the survivors; it reveals shares for this list and no other."""

    masked: MaskedState
    survivors: tuple[str, ...]
    dropped: tuple[str, ...]

    def erase(self) -> None:
        """Overwrite all shares."""
        self.masked.erase()


@dataclass(frozen=True)
class View:
    """What one party believes about a round; equal for all, or the round ends here."""

    run: RunParameters
    round_number: int
    request_hash: bytes
    cohort_hash: bytes
    survivors: tuple[str, ...]

    @cached_property
    def survivors_hash(self) -> bytes:
        """Return the hash that everyone's signature must be over, made once for all of them."""
        return survivors_hash(self.survivors)


@dataclass(frozen=True)
class Signed:
    """The server's state after ConsistencyCheck: what to send to every survivor, and whose signatures were refused."""

    request: UnmaskingRequest
    refusals: tuple[SecAggError, ...]


def sign_survivors(
    state: MaskedState, identity_key: Ed25519PrivateKey, request: SurvivorList
) -> tuple[SignedState, SurvivorSignature]:
    """Sign the survivors, the cohort, the request and the configuration (figure 4, round 3, user).

    Args:
        state: the state of :func:`common.secagg.masked_input.mask`.
        identity_key: this hospital's, as on the roster.
        request: whose vectors arrived, says the server.

    Returns:
        The state to keep, and the message for the server.

    Raises:
        SecAggError: of the kinds of :func:`verify_survivors`; nothing was signed.
    """
    place = Place(state.hospital, state.round_number, Phase.CONSISTENCY_CHECK)
    verify_survivors(state, request, place)
    view = view_of(state, request.survivors)
    unsigned = SurvivorSignature(
        run_id=state.run.run_id,
        round_number=state.round_number,
        hospital=state.hospital,
        config_hash=state.run.config_hash,
        request_hash=state.request_hash,
        cohort_hash=state.cohort_hash,
        survivors_hash=survivors_hash(request.survivors),
        signature=b"",
    )
    signature = replace(unsigned, signature=identity_key.sign(signed_part(view.run, unsigned)))
    return SignedState(state, request.survivors, request.dropped), signature


def verify_survivors(state: MaskedState, request: SurvivorList | UnmaskingRequest, place: Place) -> None:
    """Refuse lists that are not a split of the cohort into enough survivors, this hospital among them, and the rest.

    Raises:
        ContextError, SurvivorsError, OmittedHospitalError, TooFewHospitalsError: one of their kinds.
    """
    require_place(state.run, state.round_number, request, place)
    survivors, dropped, cohort = set(request.survivors), set(request.dropped), set(state.cohort)
    for hospital in sorted(survivors & dropped):
        raise DroppedAndAliveError(place, "a hospital must be either dropped or alive, got both", hospital)
    for hospital in sorted((survivors | dropped) - cohort):
        raise SurvivorOutsideCohortError(place, "survivors and dropped must be in the cohort", hospital)
    for hospital in sorted(cohort - survivors - dropped):
        raise IncompleteSurvivorsError(place, "each of the cohort must be dropped or alive, got neither", hospital)
    if state.hospital not in survivors:
        raise OmittedHospitalError(place, "this hospital sent its vector and must be among the survivors")
    if len(survivors) < state.threshold:
        raise TooFewHospitalsError(place, f"at least {state.threshold} hospitals must survive, got {len(survivors)}")


def view_of(state: MaskedState, survivors: tuple[str, ...]) -> View:
    """Return what this hospital believes about the round."""
    return View(state.run, state.round_number, state.request_hash, state.cohort_hash, survivors)


def verify_signature(view: View, message: SurvivorSignature, place: Place, sender: str) -> None:
    """Refuse a signature that is not its sender's, or is over another view of the round than ``view``.

    A genuine signature over another view proves that the server showed two hospitals different things.

    Raises:
        ContextError, SurvivorsError, NotInCohortError: one of their kinds.
    """
    require_place(view.run, view.round_number, message, place, sender)
    if sender not in view.survivors:
        raise NotInCohortError(place, "only a survivor may sign the survivors", sender)
    if not is_signed(view.run.roster[sender], message.signature, signed_part(view.run, message)):
        raise SurvivorSignatureError(place, "the signature must be its sender's, over what it states", sender)
    if message.config_hash != view.run.config_hash:
        raise ConfigHashError(place, "everyone must have this run's configuration", sender)
    if message.request_hash != view.request_hash:
        raise RequestHashError(place, "everyone must have been asked for the same", sender)
    if message.cohort_hash != view.cohort_hash:
        raise CohortMismatchError(place, "everyone must have masked for the same cohort", sender)
    if message.survivors_hash != view.survivors_hash:
        raise DifferentSurvivorsError(place, "everyone must have signed the same survivors", sender)


def collect(masked_sum: MaskedSum, messages: Mapping[str, SurvivorSignature]) -> Signed:
    """Collect at least t signatures over the same view (figure 4, round 3, server).

    Args:
        masked_sum: closed.
        messages: authenticated sender to message.

    Returns:
        The message for every survivor, and an error for each refused signature.

    Raises:
        TooFewSignaturesError: fewer than the threshold signed; nobody would reveal anything.
    """
    routed, request = masked_sum.routed, unmasking_request(masked_sum)
    round_number = routed.directory.round_number
    place = Place(SERVER, round_number, Phase.CONSISTENCY_CHECK)
    view = View(routed.run, round_number, masked_sum.request_hash, masked_sum.cohort_hash, request.survivors)
    signatures, refusals = [], []
    for sender, message in sorted(messages.items()):
        try:
            verify_signature(view, message, place, sender)
        except SecAggError as refusal:
            refusals.append(refusal)
        else:
            signatures.append(message)
    _require_enough(len(signatures), routed.directory.threshold, place)
    return Signed(replace(request, signatures=tuple(signatures)), tuple(refusals))


def unmasking_request(masked_sum: MaskedSum) -> UnmaskingRequest:
    """Return the request for shares without signatures, which a semi-honest run sends as soon as the sum is closed."""
    closed = masked_sum.close()
    return UnmaskingRequest(closed.run_id, closed.round_number, closed.survivors, closed.dropped, ())


def verify_agreement(state: SignedState, request: UnmaskingRequest, place: Place) -> None:
    """Refuse unless at least t survivors signed exactly what this hospital signed (figure 4, round 4, user).

    Raises:
        DifferentSurvivorsError: the request is for other survivors than this hospital signed.
        TooFewSignaturesError: fewer than the threshold signed.
        SecAggError: of the kinds of :func:`verify_signature`.
    """
    if (request.survivors, request.dropped) != (state.survivors, state.dropped):
        raise DifferentSurvivorsError(place, "the survivors must be those that this hospital signed, got others")
    view = view_of(state.masked, state.survivors)
    for signature in request.signatures:
        verify_signature(view, signature, place, signature.hospital)
    _require_enough(len(request.signatures), state.masked.threshold, place)


def needs_agreement(run: RunParameters) -> bool:
    """Return whether this run has the phase at all."""
    return run.adversary is Adversary.ACTIVE


def _require_enough(signatures: int, threshold: int, place: Place) -> None:
    if signatures < threshold:
        raise TooFewSignaturesError(
            place, f"at least {threshold} survivors must sign the same survivors, got {signatures}"
        )


def signed_part(run: RunParameters, message: SurvivorSignature) -> bytes:
    """Return what a hospital's identity signs: its view of the round, bound to version, run and round."""
    unsigned = encode(replace(message, signature=b""))
    return bind("survivors", round_context(run, message.round_number), unsigned)
