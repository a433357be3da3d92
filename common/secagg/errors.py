"""What can go wrong in the protocol: one named error for each lie, mistake or absence that a party can meet.

Every error says who refuses (``place.party``), in which round and phase, and which hospital the refused thing came
from or is about (``hospital``); none ever carries a key, seed, share or vector.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

from common.errors import ConfideError
from common.secagg.phases import Phase

SERVER = "server"
"""The server's name as a party; a hospital's name stands in the same place when a hospital refuses."""


@dataclass(frozen=True)
class Place:
    """Where in the protocol something is refused."""

    party: str
    """Who refuses: a hospital's name, or :data:`SERVER`."""
    round_number: int
    phase: Phase


class SecAggError(ConfideError):
    """Root of the protocol's errors.

    ::

        SecAggError
        ├── ParameterError                  a run's parameters give no security or do not fit together
        ├── MessageError                    bytes that are not a message
        │   ├── TruncatedMessageError       they end too early
        │   ├── OversizedMessageError       they are longer than any message of this type may be
        │   ├── TrailingBytesError          they continue after the message's end
        │   ├── ProtocolVersionError        they are of another version
        │   ├── MessageTypeError            they are another message, or none of this protocol
        │   └── NonCanonicalMessageError    the same message has another, the only valid, encoding
        ├── ContextError                    a good message in the wrong place
        │   ├── WrongRunError               of another run
        │   ├── WrongRoundError             of another round
        │   │   └── ReplayedMessageError    of an earlier one
        │   ├── ConfigHashError             made under another configuration
        │   ├── RequestHashError            made for another request
        │   ├── ModelHashError              another model than the request names
        │   ├── DirectoryMismatchError      made for another list of keys
        │   ├── ImpersonationError          sent by another hospital than it names
        │   ├── UnknownPhaseError           an exchange that this run does not have
        │   └── AlreadyAnsweredError        this phase of this round was answered before
        │       ├── SecondMaskedInputError
        │       └── SecondUnmaskingError
        ├── RosterError                     someone who may not be here, or is missing
        │   ├── UnknownHospitalError        not on the roster
        │   ├── NotInCohortError            not in this round's cohort
        │   └── OmittedHospitalError        a list sent to a hospital leaves it out
        ├── PublicKeyError                  a public key that must not be used
        │   ├── UnsignedKeyError            no signature
        │   ├── ForeignIdentityError        signed by an identity that is not the roster's
        │   ├── KeySignatureError           the signature is not over these keys
        │   ├── NonCanonicalKeyError        a second encoding of a point, which would hide a repeat
        │   ├── ReflectedKeyError           a hospital's own key, come back under another name
        │   ├── DuplicateKeyError           one key twice
        │   └── LowOrderPointError          an agreement with it is known to everybody
        ├── ThresholdError                  too few hospitals for a sum that hides each of them
        │   ├── ThresholdLoweredError       the server states a smaller threshold than the rule's
        │   ├── TooFewHospitalsError        fewer than the threshold advertised, shared or submitted
        │   ├── TooFewNeighboursError       fewer of a hospital's neighbours than its shares need
        │   ├── TooFewSignaturesError       fewer than the threshold signed the survivors, or than all a full cohort
        │   └── TooFewSharesError           fewer than the threshold revealed their shares
        ├── ShareError                      a share that does not do what it is for
        │   ├── MissingShareError           a peer's share was not delivered, or not revealed for a needed secret
        │   ├── UnexpectedShareError        a share that was not asked for, such as both kinds for one hospital
        │   ├── MisdirectedShareError       meant for another recipient
        │   ├── ShareDecryptionError        does not decrypt: altered on the way or never right
        │   ├── CorruptedShareError         is not the one its dealer committed to
        │   └── InconsistentDealingError    a dealer's shares do not rebuild what the dealer committed to
        ├── VectorError                     a vector, or a model, that is not one of this run's
        │   ├── VectorLengthError
        │   ├── VectorRingError             not integers modulo this run's R
        │   ├── VectorHashError             not the vector that its hospital signed
        │   ├── CommitmentHashError         not the commitment that its hospital signed the hash of
        │   ├── DuplicateMaskedInputError   a second one of the same hospital
        │   ├── LateMaskedInputError        its owner was already declared dropped
        │   ├── ImplausibleSumError         a sum that honest vectors cannot have
        │   └── UnusableModelError          a model of another length or type, or one that is not finite
        ├── DisputeError                    a dispute that is not about what was signed, or about a sum that holds
        │   ├── DisputeEvidenceError        what is shown is not what was signed
        │   ├── UnfoundedDisputeError       the sum holds, and a change was asked for
        │   ├── CheatFoundError             a hospital was found to have cheated
        │   └── NamedHospitalError          a cohort with a hospital that was found to have cheated in this run
        └── SurvivorsError                  lists of survivors that would let the server open one hospital
            ├── DroppedAndAliveError        one hospital listed as both
            ├── IncompleteSurvivorsError    a hospital of the cohort listed as neither
            ├── SurvivorOutsideCohortError  a survivor that was never masked against
            ├── UnsignedSurvivorsError      an active-adversary run asks for shares without the consistency check
            ├── DifferentSurvivorsError     hospitals were shown different survivors
            ├── CohortMismatchError         hospitals were shown different cohorts
            ├── SurvivorSignatureError      a signature that is not its hospital's
            └── ViewSignatureError          a signature that is not its hospital's over this view of the round
    """

    code: ClassVar[str] = "sec_agg"
    """The class in snake case, for metrics and event records."""

    def __init_subclass__(cls) -> None:
        """Derive :attr:`code` from the name, so the two can't drift apart."""
        super().__init_subclass__()
        cls.code = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__.removesuffix("Error")).lower()

    def __init__(self, place: Place, what: str, hospital: str | None = None) -> None:
        """Refuse something.

        Args:
            place: who refuses, in which round and phase.
            what: what must hold, then what was got.
            hospital: whom it came from or is about; the refusing hospital itself when the server is to blame.
        """
        self.place = place
        self.hospital = hospital if hospital is not None else place.party
        about = "" if hospital in (None, place.party) else f", about {hospital}"
        super().__init__(f"round {place.round_number}, {place.phase}, {place.party} refuses{about}: {what}")


class ParameterError(SecAggError):
    """A run's parameters give no security or do not fit together."""


class MessageError(SecAggError):
    """Bytes that are not a message."""


class TruncatedMessageError(MessageError):
    """The bytes end before the message does."""


class OversizedMessageError(MessageError):
    """The bytes, or a count inside them, are larger than any message of this type may be in this run."""


class TrailingBytesError(MessageError):
    """The bytes continue after the message's end."""


class ProtocolVersionError(MessageError):
    """The bytes are of another version of this protocol."""


class MessageTypeError(MessageError):
    """The bytes are another message than the one expected here, or none of this protocol."""


class NonCanonicalMessageError(MessageError):
    """The same message has another encoding, which is the only valid one."""


class ContextError(SecAggError):
    """A well-formed message in the wrong place."""


class WrongRunError(ContextError):
    """A message of another run."""


class WrongRoundError(ContextError):
    """A message of another round."""


class ReplayedMessageError(WrongRoundError):
    """A message of an earlier round."""


class ConfigHashError(ContextError):
    """A message made under another configuration than this run's."""


class RequestHashError(ContextError):
    """A message made for another request: another model, purpose, question or number of survivors."""


class ModelHashError(ContextError):
    """The model that came with a request is another than the request names."""


class DirectoryMismatchError(ContextError):
    """A message made for another list of keys than the one this party has."""


class ImpersonationError(ContextError):
    """A message that names another sender than the connection it came over."""


class AlreadyAnsweredError(ContextError):
    """This hospital has already answered this phase of this or a later round."""


class SecondMaskedInputError(AlreadyAnsweredError):
    """A second masked vector of one round: the difference of two would be a difference of masks, or of inputs."""


class SecondUnmaskingError(AlreadyAnsweredError):
    """A second unmasking of one round: it could ask for the kind of share that the first one withheld."""


class UnknownPhaseError(ContextError):
    """An exchange that this run does not have."""


class RosterError(SecAggError):
    """Someone takes part who may not, or someone is missing who must not be."""


class UnknownHospitalError(RosterError):
    """A hospital that is not on the run's roster."""


class NotInCohortError(RosterError):
    """A hospital that is on the roster but not in this round's cohort."""


class OmittedHospitalError(RosterError):
    """A list that the server sends to a hospital leaves that hospital out."""


class PublicKeyError(SecAggError):
    """A public key that must not be used."""


class UnsignedKeyError(PublicKeyError):
    """Public keys without a signature."""


class ForeignIdentityError(PublicKeyError):
    """Public keys signed by an identity that is not the one on the roster."""


class KeySignatureError(PublicKeyError):
    """The signature is not over these public keys in this run and round."""


class NonCanonicalKeyError(PublicKeyError):
    """An X25519 public key that is a second encoding of its point, which would hide a reflected or repeated key."""


class ReflectedKeyError(PublicKeyError):
    """A hospital's own public key, come back under another name."""


class DuplicateKeyError(PublicKeyError):
    """Two public keys of one round that must differ are equal."""


class LowOrderPointError(PublicKeyError):
    """An X25519 public key of low order: whatever the private key, the agreement is known to everybody."""


class ThresholdError(SecAggError):
    """Too few hospitals for a sum that hides each of them."""


class ThresholdLoweredError(ThresholdError):
    """The server states a threshold below the one that this hospital's rule gives, or none that can be met."""


class TooFewHospitalsError(ThresholdError):
    """Fewer hospitals than the threshold advertised keys, shared them, or submitted a vector."""


class TooFewNeighboursError(ThresholdError):
    """Fewer of a hospital's neighbours are in the cohort than its shares need."""


class TooFewSignaturesError(ThresholdError):
    """Fewer hospitals than the threshold signed the survivors, or not all of the cohort signed its view."""


class TooFewSharesError(ThresholdError):
    """Fewer hospitals than the threshold revealed the shares that the sum needs; nothing is revealed."""


class ShareError(SecAggError):
    """A share that does not do what it is for."""


class MissingShareError(ShareError):
    """A share that must be there is not."""


class UnexpectedShareError(ShareError):
    """A share that was not asked for, such as both kinds for one hospital."""


class MisdirectedShareError(ShareError):
    """A share meant for another recipient, or from another dealer, than it is delivered as."""


class ShareDecryptionError(ShareError):
    """A share that does not decrypt: altered on the way, or encrypted for other keys."""


class CorruptedShareError(ShareError):
    """A share that is not the one its dealer committed to."""


class InconsistentDealingError(ShareError):
    """A dealer whose shares do not rebuild the secret it committed to."""


class VectorError(SecAggError):
    """A vector, or a model, that is not one of this run's."""


class VectorLengthError(VectorError):
    """A vector of another length than this run's."""


class VectorRingError(VectorError):
    """A vector that is not a flat array of integers modulo this run's R."""


class VectorHashError(VectorError):
    """A masked vector that is not the one its hospital signed."""


class CommitmentHashError(VectorError):
    """A commitment that does not open the hash that its hospital signed, before anybody's commitment was known."""


class DuplicateMaskedInputError(VectorError):
    """A second masked vector of one hospital in one round."""


class LateMaskedInputError(VectorError):
    """A masked vector that came after its owner was declared dropped, when its masks are about to be revealed."""


class UnusableModelError(VectorError):
    """A model to train that is not one flat array of this run's number of finite float32."""


class ImplausibleSumError(VectorError):
    """A sum that no honest vectors can have, such as a weight out of range; nobody can say who caused it."""


class DisputeError(SecAggError):
    """A dispute that gives no right to see anything, or what follows from one is not obeyed."""


class DisputeEvidenceError(DisputeError):
    """What the server shows in a dispute is not what was signed in the round, or is not all of it."""


class UnfoundedDisputeError(DisputeError):
    """A dispute about a sum that holds: the server asks for single changes and has no reason to."""


class CheatFoundError(DisputeError):
    """A hospital was found to have cheated in a dispute: its vector is not what it committed to, or far too long."""


class NamedHospitalError(DisputeError):
    """A cohort with a hospital that was found to have cheated in this run."""


class SurvivorsError(SecAggError):
    """A list of survivors that would let the server open one hospital's vector."""


class DroppedAndAliveError(SurvivorsError):
    """One hospital listed as dropped and as alive: both kinds of its shares would be revealed."""


class IncompleteSurvivorsError(SurvivorsError):
    """A hospital of the cohort listed neither as dropped nor as alive."""


class SurvivorOutsideCohortError(SurvivorsError):
    """A hospital listed that was not in the cohort this hospital masked for."""


class UnsignedSurvivorsError(SurvivorsError):
    """A run against an active adversary asks for shares before the consistency check."""


class DifferentSurvivorsError(SurvivorsError):
    """Two hospitals, or one hospital twice, were shown different survivors."""


class CohortMismatchError(SurvivorsError):
    """Two hospitals were shown different cohorts."""


class SurvivorSignatureError(SurvivorsError):
    """A signature over the survivors that is not its hospital's."""


class ViewSignatureError(SurvivorsError):
    """A signature that is not its hospital's, or is over another view of the round."""
