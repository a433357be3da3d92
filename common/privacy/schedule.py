"""How often a unit is looked at in a round: a function of the run description alone, for deployment and plan alike."""

import math
from dataclasses import dataclass

from common.config import PrivacyConfig, PrivacyMode, TrainingConfig


@dataclass(frozen=True, slots=True)
class Schedule:
    """The sampling of one round, which the ledger books.

    Attributes:
        sample_rate: probability that a unit (a record, or a patient with all records) is in a step's batch.
        steps: of the optimiser in one round.
    """

    sample_rate: float
    steps: int


def schedule_of(training: TrainingConfig, privacy: PrivacyConfig) -> Schedule:
    """Return the sampling of one round of a private run.

    In mode ``local`` a hospital takes as many steps as make ``local_epochs`` expected passes over its data; in mode
    ``distributed`` a round is one step of all hospitals together. Neither depends on how much data a hospital has.

    >>> schedule_of(TrainingConfig(sample_rate=0.1, local_epochs=2), PrivacyConfig(mode=PrivacyMode.LOCAL))
    Schedule(sample_rate=0.1, steps=20)
    """
    if privacy.mode is PrivacyMode.DISTRIBUTED:
        return Schedule(training.sample_rate, 1)
    return Schedule(training.sample_rate, training.local_epochs * math.ceil(1 / training.sample_rate))
