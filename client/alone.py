"""What a hospital's own records alone would have given by a run's recipe, for its own staff; nothing of it leaves.

The model, its first weights, the features and their copies, the centre, the number of steps, their clipping and the
learning rate are the run's. Three things are the hospital's own: all of its training records count, a step divides by
how many there are, and where there is noise all of it is the hospital's.

**What is not touched.** The ledger, the audit chain, the agent's status and the agent's cache. A model that is trained
here is not published, so it costs no privacy: it is measured on the records of the hospital that trains it, in front of
that hospital's own staff, and forgotten. Whoever publishes such a model, or its figures, spends what the ledger does
not know.

**What a step divides by.** The number of training units that are there. The relation of every ε here is zero-out, in
which that number is public (``client/training.py``).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from client.contribution import OWN_BINS, RecordsTrainer, as_inputs, model_of, of_stated_patients
from client.data.hospital_data import HospitalData
from client.device import choose
from client.steps_alone import COHORT_OF_ONE, StepsAlone
from client.training import TrainingData, scores
from common.config import HospitalConfig, RunDescription
from common.errors import ConfigError, DataError
from common.evaluation import EvaluationCounts, EvaluationShape, count, metrics
from common.evaluation.paired import Scored
from common.models import registry
from common.models.frozen import move
from common.privacy.mechanism import mechanism_of
from common.run.terms import verified_layout_of

Floats = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]
"""A function that is called with the number of rounds done and of all rounds."""


@dataclass(frozen=True)
class OwnRecords:
    """A hospital's records as a run's model takes them.

    Attributes:
        run: whose recipe it is.
        train: the training part, with the run's copies.
        validation: likewise; the threshold is chosen on it.
        test: the test part, each record once.
        device: where gradients are computed.
        network: of the run; its weights are overwritten.
    """

    run: RunDescription
    train: TrainingData = field(repr=False)
    validation: TrainingData = field(repr=False)
    test: TrainingData = field(repr=False)
    device: torch.device
    network: nn.Module = field(repr=False)

    @classmethod
    def of(cls, run: RunDescription, data: HospitalData, policy: HospitalConfig, cache: Path) -> "OwnRecords":
        """Make a model's inputs of a hospital's images.

        Args:
            run: as the hospital agreed to it.
            data: of the hospital.
            policy: its device, and how many records of a patient it uses.
            cache: a folder for features, which an agent does not write at the same time.

        Raises:
            ConfigError: the model cannot be made here, or the run's description contradicts itself.
            DataError: the images do not fit memory, disk or model; or no training record is there.
        """
        verified_layout_of(run)
        device, network = choose(policy.device), model_of(run)
        move(registry.frozen_features(run.model.architecture), device)
        try:
            parts = [
                of_stated_patients(run, policy, as_inputs(run, part, copies, cache))
                for part, copies in (
                    (data.train, run.training.copies),
                    (data.validation, run.training.copies),
                    (data.test, 1),
                )
            ]
        except (MemoryError, OSError, RuntimeError) as error:
            raise DataError(
                f"this hospital's images must fit memory, disk and the run's model, got {type(error).__name__}"
            ) from None
        train, validation, test = parts
        if not len(train):
            raise DataError("this hospital must have training records to train alone, got none")
        return cls(run, train, validation, test, device, network)

    @property
    def test_labels(self) -> npt.NDArray[np.int64]:
        """Return the class of each test record."""
        return self.test.of_copies(self.test.labels)

    @property
    def test_patients(self) -> npt.NDArray[np.int64]:
        """Return the number of each test record's patient; a record of nobody known has its own."""
        return self.test.of_copies(self.test.patients)

    def train_alone(self, first: Floats, random: Callable[[int], bytes], progress: Progress, *, noise: bool) -> Floats:
        """Return the model that these records alone give by the run's recipe, (d,) float32.

        Args:
            first: (d,) float32, the model that the run began with.
            random: source of fresh bytes.
            progress: told of each round.
            noise: whether each step has noise, all of it this hospital's own, so that all rounds together keep the
                run's ε against everyone.

        Raises:
            PrivacyError: the run is not private, or no noise keeps its ε.
            RunError: the weights grow without bound.
        """
        mechanism, rounds = mechanism_of(self.run).with_whole_target(), self.run.experiment.rounds
        optimiser, units = mechanism.training_alone(self.run.training), self.train.count(self.run.privacy.unit)

        def trainer(model: Floats) -> RecordsTrainer:
            return RecordsTrainer(self.network, model, self.train, optimiser, units, COHORT_OF_ONE, random, self.device)

        steps = StepsAlone(self.run, mechanism, first, trainer, units, noise=noise)
        for number in range(rounds):
            progress(number, rounds)
            steps.advance()
        progress(rounds, rounds)
        return steps.weights

    def scored(self, model: Floats) -> Scored:
        """Return what a model of two classes says of each test record, at the threshold of the validation records.

        The threshold is chosen as in this hospital's own results of each round.

        Raises:
            ConfigError: the model is not of the run's size.
        """
        if len(model) != sum(each.numel() for each in self.network.parameters()):
            raise ConfigError(
                f"the kept model must be one of the run's {self.run.model.name}, got {len(model)} numbers"
            )
        classes = len(self.run.classes)
        of_validation, of_test = scores(self.network, model, self.validation, self.test, classes, self.device)
        shape = EvaluationShape(classes, OWN_BINS)
        counts = EvaluationCounts(
            validation=count(of_validation, self.validation.of_copies(self.validation.labels), shape),
            test=count(of_test, self.test_labels, shape),
        )
        logits = of_test.astype(np.float64)
        score = logits[:, 1] - logits[:, 0]
        return Scored(score, metrics(counts).threshold)


def seed_of(run: RunDescription, data: HospitalData) -> bytes:
    """Return the seed of a training without noise, so that it is the same each time on the same records."""
    seed: bytes = hashlib.sha256(b"confide alone" + bytes.fromhex(run.run_id) + data.fingerprint).digest()
    return seed
