"""What a run asks of a hospital's data; follows from the run description, so every hospital checks the same."""

from dataclasses import dataclass
from typing import Self

from common.config import PrivacyUnit, RunDescription


@dataclass(frozen=True)
class DataContract:
    """The terms.

    Attributes:
        task: what is to be told apart.
        classes: names of the classes in the order of their indices.
        channels: 1 (grey) or 3 (colour).
        image_size: pixels on a side of what the model takes.
        batch_size: expected records of a Poisson batch; fewer training records make no batch.
        delta: of (ε, δ); must stay below 1 / records.
        unit: what one unit of privacy is; ``patient`` needs every patient known.
    """

    task: str
    classes: tuple[str, ...]
    channels: int
    image_size: int
    batch_size: int
    delta: float
    unit: PrivacyUnit = PrivacyUnit.RECORD

    @classmethod
    def of_run(cls, run: RunDescription) -> Self:
        """Read the terms out of a run description."""
        return cls(
            run.experiment.task,
            run.classes,
            run.channels,
            run.model.image_size,
            run.training.batch_size,
            run.privacy.delta,
            run.privacy.unit,
        )
