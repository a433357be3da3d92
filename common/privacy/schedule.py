"""How often a unit is looked at in a round: a function of the run description alone, for deployment and plan alike."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Schedule:
    """The sampling of one round, which the ledger books; each mechanism says what it is for a run.

    Attributes:
        sample_rate: probability that a unit (a record, or a patient with all records) is in a step's batch.
        steps: of the optimiser in one round.
    """

    sample_rate: float
    steps: int
