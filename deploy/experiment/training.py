"""One training of an experiment: a whole federated run in this process, or DP-SGD on everybody's data in one place."""

import math
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from client.features import model_inputs
from client.training import TrainingData, evaluate, scores, train_locally
from common.config import Config, HospitalConfig, PrivacyUnit, replace
from common.errors import ConfigError, RunError
from common.evaluation import METRICS, EvaluationShape, metrics
from common.models import registry
from common.models.flat import flat_parameters
from common.privacy.accounting import Accountant, epsilon, rounded_up
from common.privacy.calibration import require_enough_units
from common.privacy.mechanism import LocalNoise
from common.shards import SPLITS, Split, read_manifest
from common.telemetry.events import COMPLETED, Evaluated, Event, RoundDone
from deploy.datasets.datasets import DataSet
from deploy.demo.dealer import deal
from deploy.experiment.consortium import InProcessConsortium, Site
from deploy.experiment.runner import Measures
from server.checkpoints import CheckpointStore
from server.run import new_run_id

_FEWEST_STATED = 20
"""What a policy states at least."""

RELEASED = ("auc", "accuracy")
"""What noisy counts are compared by."""


@dataclass(frozen=True)
class Laboratory:
    """Where an experiment's hospitals live: their shards and prepared images, which trials with one seed share.

    Attributes:
        data: the whole data set.
        folder: of the experiment.
    """

    data: DataSet
    folder: Path

    def train_federated(self, config: Config, report: Callable[[Event], None] = lambda _event: None) -> Measures:
        """Train as a deployed consortium does, with hospitals that have spent nothing yet.

        Args:
            config: of the run; hospitals agree to what its section ``hospital`` says.
            report: called with each event of the run.

        Returns:
            METRICS of the last model on the official test part, and the largest ε that a hospital has spent.

        Raises:
            RunError: the run did not reach its last round.
        """
        config = replace(config, evaluation={"exact": True}, hospital={"allow_exact_evaluation": True})
        with tempfile.TemporaryDirectory(dir=self.folder) as states:
            done, _, _ = self._run(config, Path(states), report)
        return {name: float(getattr(done, name)) for name in METRICS} | {"spent": done.epsilon}

    def train_and_release(self, config: Config) -> Measures:
        """Train as :meth:`train_federated`, and measure as a deployed consortium does: by noisy counts alone.

        Returns:
            As :meth:`train_federated`, counted exactly; ``released_…``, what the run itself says of the same model;
            and ``accuracy_as_released``, counted exactly at the threshold that the run released.

        Raises:
            RunError: the run did not reach its last round, or its task has no released threshold.
        """
        config = replace(config, evaluation={"exact": False})
        found: list[Evaluated] = []

        def take(event: Event) -> None:
            if isinstance(event, Evaluated):
                found.append(event)

        with tempfile.TemporaryDirectory(dir=self.folder) as states:
            done, run_id, checkpoints = self._run(config, Path(states), take)
            last = checkpoints.latest(run_id)
            flat = None if last is None else np.array(last.model[:])
        if flat is None or not found or math.isnan(found[-1].threshold):
            raise RunError("a trial must release the figures of its last model and a threshold")
        released = found[-1]
        model, classes = self._model(config), len(self.data.classes)
        validation, test = self._pooled(config, "val"), self._pooled(config, "test")
        shape = EvaluationShape(classes=classes, bins=config.evaluation.score_bins)
        exact = metrics(evaluate(model, flat, validation, test, shape))
        _, of_test = scores(model, flat, validation, test, classes)
        called = 1 / (1 + np.exp(of_test[:, 0].astype(np.float64) - of_test[:, 1])) >= released.threshold
        accuracy = float(np.mean(called == (test.labels.numpy() == 1)))
        return (
            {name: float(getattr(exact, name)) for name in METRICS}
            | {"spent": done.epsilon, "accuracy_as_released": accuracy}
            | {f"released_{name}": float(getattr(released, name)) for name in RELEASED}
        )

    def _run(
        self, config: Config, states: Path, report: Callable[[Event], None]
    ) -> tuple[RoundDone, str, CheckpointStore]:
        """Run a consortium to its end; returns its last round, its name and its checkpoints."""
        done: list[RoundDone] = []

        def take(event: Event) -> None:
            if isinstance(event, RoundDone):
                done.append(event)
            report(event)

        consortium = InProcessConsortium(config, self._sites(config, states))
        run_id, folder = new_run_id(), states / "checkpoints"
        reason = consortium.server(run_id, self.data, folder, take).train()
        if reason != COMPLETED:
            raise RunError(f"every round of a trial must be trained, got {len(done)}: {reason}")
        return done[-1], run_id, CheckpointStore(folder)

    def train_centrally(self, config: Config) -> Measures:
        """Train where all data lies in one place: the bound that mode ``distributed`` is measured against.

        The same DP-SGD that a hospital runs, over the union of their data, with the sample rate, the number of steps,
        the learning rate and momentum that ``config`` gives to mode ``distributed``.

        Raises:
            ConfigError: the number of steps is not a whole number of passes over the data.
        """
        rate, steps = config.training.sample_rate, config.experiment.rounds
        train, validation, test = (self._pooled(config, split) for split in SPLITS)
        units = int(train.units(config.privacy.unit).max()) + 1
        passes = steps * rate
        if abs(passes - round(passes)) > 1e-9 or abs(1 / rate - round(1 / rate)) > 1e-9:  # noqa: PLR2004 - of floats
            raise ConfigError(
                f"1 / training.sample_rate and experiment.rounds · training.sample_rate must be whole to be compared "
                f"with central training, got a rate of {rate:g} and {steps} rounds"
            )
        central = replace(config, training={"local_epochs": round(passes)})
        privacy, training = central.privacy, central.training
        require_enough_units(units, privacy.delta, privacy.unit)
        plan = LocalNoise(privacy).steps(training, rounds=1)
        model = self._model(config)
        start = flat_parameters(model)
        trained = (
            start + train_locally(model, start, train, training, plan, os.urandom, expected_units=rate * units).delta
        )
        shape = EvaluationShape(classes=len(self.data.classes), bins=config.evaluation.score_bins)
        measured = metrics(evaluate(model, trained, validation, test, shape))
        spent = rounded_up(epsilon([plan.event], privacy.delta, Accountant(privacy.accountant)))
        return {name: float(getattr(measured, name)) for name in METRICS} | {"spent": spent}

    def _model(self, config: Config) -> nn.Module:
        named = config.model
        return registry.build(
            named.architecture, len(self.data.classes), self.data.channels, named.image_size, config.experiment.seed
        )

    def _pooled(self, config: Config, split: Split) -> TrainingData:
        records = self.data.parts[split]
        inputs = model_inputs(config.model.architecture, records.images, self.folder / "everybody")
        return TrainingData.of(inputs, records.labels, np.unique(records.patients, return_inverse=True)[1])

    def _sites(self, config: Config, states: Path) -> dict[str, Site]:
        """Deal the data as the seed says, once, and give each hospital a state of its own."""
        seed, hospitals = config.experiment.seed, config.experiment.num_clients
        how = f"{config.data.partition}-{config.data.dirichlet_alpha:g}-{hospitals}-hospitals-seed-{seed}"
        dealt = self.folder / "shards" / how
        names = [f"hospital-{number}" for number in range(1, hospitals + 1)]
        marker = dealt / "dealt"
        if not marker.exists():
            shutil.rmtree(dealt, ignore_errors=True)  # of an experiment that was killed while it dealt
            shards = [dealt / name / "shard" for name in names]
            deal(self.data, shards, config.data, seed, batch_size=1)  # A hospital too small for a trial says so itself.
            marker.touch()
        return {
            name: Site(dealt / name / "shard", states / name, dealt / name / "cache", _stating(config, dealt / name))
            for name in names
        }


def _stating(config: Config, dealt: Path) -> HospitalConfig:
    """Return what a hospital of an experiment agrees to, stating exactly what it was dealt: these data are public."""
    rows = read_manifest(dealt / "shard")
    by_patient = config.privacy.unit is PrivacyUnit.PATIENT

    def units(split: Split) -> int:
        return len({row.patient_id if by_patient else row.file for row in rows if row.split == split})

    return config.hospital.model_copy(
        update={
            "delta": config.privacy.delta,
            "stated_training_units": max(_FEWEST_STATED, units("train")),
            "stated_validation_units": max(1, units("val")),
            "stated_test_units": max(1, units("test")),
        }
    )
