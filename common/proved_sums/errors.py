"""What can be wrong with a proved sum: one named error for each lie.

Like every error of the protocol, these say who refuses, in which round and phase, and whom it is about.
"""

from common.secagg.errors import SecAggError


class ProvedSumError(SecAggError):
    """Root of the errors of proved sums.

    ::

        ProvedSumError
        ├── ProofParameterError             no commitments that bind and hide fit this run
        ├── CommitmentError                 a commitment that is not its hospital's of this round
        │   ├── CommitmentBytesError        not as many integers modulo q as a commitment has
        │   ├── MissingCommitmentError      a survivor's is not there
        │   ├── UnexpectedCommitmentError   of somebody who is no survivor, or a second one of somebody
        │   └── UnsignedCommitmentError     no valid signature over its hash in this view of the round
        ├── SumError                        an array that is not the sum of what the survivors committed to
        │   ├── SumShapeError               not as many integers of this run's ring
        │   ├── SumBoundError               an entry that no honest sum has
        │   ├── FalseSumError               the commitments do not add up to it
        │   └── SumNormError                longer than clipped changes make it
        └── LineageError                    a model that does not follow from what this hospital knows
            ├── InitialModelError           the first model is not the one of the run's seed
            ├── ModelDoesNotFollowError     not the agreed model with the proved sum applied
            ├── UnprovedModelError          a round whose sum this hospital helped to open is passed over
            ├── TooManyVoidRoundsError      more rounds without a sum than the run allows
            └── StaleModelError             given to a late joiner without the signatures of the round before
    """


class ProofParameterError(ProvedSumError):
    """No commitments that bind and hide fit a run of this length, ring and number of hospitals."""


class CommitmentError(ProvedSumError):
    """A commitment that is not its hospital's of this round."""


class CommitmentBytesError(CommitmentError):
    """Bytes that are not as many integers modulo q as a commitment has."""


class MissingCommitmentError(CommitmentError):
    """The commitment of a survivor is not there: the sum would be without it, or nobody could say."""


class UnexpectedCommitmentError(CommitmentError):
    """A commitment of somebody who is no survivor, or a second one of somebody."""


class UnsignedCommitmentError(CommitmentError):
    """The hash of a commitment has no valid signature of its hospital over this view of the round."""


class SumError(ProvedSumError):
    """An array that is not the sum of what the survivors committed to."""


class SumShapeError(SumError):
    """A sum that is not as many integers of this run's ring as it must have."""


class SumBoundError(SumError):
    """A sum with an entry that no sum of honest vectors has."""


class FalseSumError(SumError):
    """A sum that the survivors' commitments do not add up to."""


class SumNormError(SumError):
    """A sum that is longer than clipped changes can make it: somebody in it has not clipped."""


class LineageError(ProvedSumError):
    """A model that does not follow from what this hospital knows."""


class InitialModelError(LineageError):
    """The first model is not the one that the run's description and seed give."""


class ModelDoesNotFollowError(LineageError):
    """A model, or a state of the optimiser, that is not the agreed one with the proved sum applied."""


class UnprovedModelError(LineageError):
    """A round whose sum this hospital helped to open is passed over without a proof, and not recorded as void."""


class TooManyVoidRoundsError(LineageError):
    """More rounds without a sum than the run allows: each of them lets a server withhold a sum that it has seen."""


class StaleModelError(LineageError):
    """A late joiner is given a model and state without the signatures of enough hospitals that began from them."""
