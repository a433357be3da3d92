"""A study: which trainings it consists of, and each one's rounds, kept so that plots can be drawn and it be resumed."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common.canonical import canonical_json
from common.config import Config
from common.errors import RunError
from common.evaluation.metrics import METRICS
from common.files import replace_file
from common.telemetry.events import RoundDone
from deploy.datasets.datasets import DataSet
from deploy.experiment.methods import Method, train
from deploy.experiment.runner import Measures, Trial, run_trials

ROUNDS_FOLDER = "rounds"
CACHE_FOLDER = "cache"

_KEY_LETTERS = 24
"""Hexadecimal digits of SHA-256 in the name of a file."""


@dataclass(frozen=True)
class Training:
    """One training of a study.

    Attributes:
        method: how.
        config: all of it.
        hospital: from 1, which one trains alone; 0 with every other method.
    """

    method: Method
    config: Config
    hospital: int = 0

    @property
    def epsilon(self) -> float | None:
        """Return the ε it is calibrated for, None without privacy."""
        return self.config.privacy.target_epsilon if self.method.is_private else None

    @property
    def split(self) -> str:
        """Return how hospitals share the records, as a person calls it."""
        if self.method.is_pooled:
            return "not split"
        kind = self.config.data.partition
        return "IID" if kind == "iid" else f"{kind.capitalize()} {self.config.data.dirichlet_alpha:g}"

    def labels(self, data: DataSet) -> dict[str, str | float]:
        """Return what distinguishes it from the study's others, without its seed."""
        return {
            "data_set": data.name,
            "model": self.config.model.name,
            "image_size": float(self.config.model.image_size),
            "method": str(self.method),
            "split": self.split,
            "epsilon": "" if self.epsilon is None else self.epsilon,
            "hospital": self.hospital or "",
        }


Outcomes = Mapping[Training, tuple[RoundDone, ...]]
"""What came out of each training: its rounds' models, measured on the whole test part; ROC with the last one only."""


class Study:
    """Trainings on one data set, and a folder for what comes out.

    Args:
        data: the whole data set.
        folder: made if missing; what an earlier call finished there is taken as it is.

    Raises:
        RunError: (any method) the folder cannot be written.
    """

    def __init__(self, data: DataSet, folder: Path) -> None:
        self.data = data
        self.folder = folder
        try:
            (folder / ROUNDS_FOLDER).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"--out must be a folder that can be written, got {folder}: {error.strerror}") from None

    def trial(self, training: Training) -> Trial:
        """Return a training as the runner takes it."""
        return Trial(training.labels(self.data), training.config, partial(self._train, training))

    def outcomes(self, trainings: Sequence[Training]) -> Outcomes:
        """Return what came out of trainings that were run.

        Raises:
            RunError: a file is missing or broken.
        """
        found = {}
        for training in trainings:
            path = self._path(training)
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
                found[training] = tuple(RoundDone.model_validate_json(line) for line in lines)
            except (OSError, ValueError):
                raise RunError(
                    f"{path} must hold a training's rounds; remove the study's folder to start again"
                ) from None
        return found

    def _train(self, training: Training, _config: Config) -> Measures:
        rounds = train(training.method, training.config, self.data, self.folder / CACHE_FOLDER, training.hospital)
        kept = (*(done.model_copy(update={"roc": None}) for done in rounds[:-1]), rounds[-1])
        replace_file(self._path(training), "".join(done.to_line() for done in kept).encode())
        return {name: float(getattr(rounds[-1], name)) for name in METRICS} | {"spent": rounds[-1].epsilon}

    def _path(self, training: Training) -> Path:
        described = canonical_json([training.labels(self.data), training.config.model_dump(mode="json")])
        return self.folder / ROUNDS_FOLDER / f"{hashlib.sha256(described).hexdigest()[:_KEY_LETTERS]}.jsonl"


def run_study(study: Study, trainings: Sequence[Training], say: Callable[[str], None]) -> Outcomes:
    """Run what has not been run yet, one training after the other."""
    run_trials([study.trial(training) for training in trainings], study.folder, say)
    return study.outcomes(trainings)
