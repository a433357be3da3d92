"""A hospital's part in a round before any mask: book the privacy, train, evaluate, encode."""

import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from client.data.hospital_data import HospitalData
from client.features import model_inputs
from client.ledger import Ledger
from client.training import TrainingData, evaluate, noisy_gradient_sum, schedule, train_locally
from common.config import PrivacyMode, RunDescription
from common.errors import PrivacyError, RunError
from common.evaluation import EvaluationCounts, Metrics, metrics
from common.keystream import Keystream
from common.messages import EpsilonReport
from common.models import registry
from common.privacy.accounting import Accountant, MechanismEvent, MechanismKind, epsilon, rounded_up
from common.privacy.calibration import noise_multiplier, require_enough_units, require_meaningful
from common.run_terms import mechanism_of, verified_layout_of
from common.vector import WeightRangeError

_SEED_LENGTH = 8
"""Bytes of ``experiment.seed``."""


_LOG = logging.getLogger("confide.hospital")


@dataclass(frozen=True)
class Contribution:
    """One hospital's vector for one round.

    Attributes:
        vector: (vector length,) of the ring, not yet masked; must not leave the hospital in mode ``secure``.
        epsilon: what the hospital's ledger says after this round; None in mode ``none``.
        training_seconds: of training and evaluation.
        records_per_second: through the training steps, for the hospital's own operator; None without training.
        own: of the round's model on this hospital's own records, for its own staff; must not leave the hospital.
    """

    vector: npt.NDArray[Any] = field(repr=False)
    epsilon: EpsilonReport | None
    training_seconds: float
    records_per_second: float | None = field(default=None, repr=False)
    own: Metrics | None = field(default=None, repr=False)


class Contributor:
    """Does one run's work on this hospital's data.

    Args:
        run: the agreed description.
        data: of this hospital.
        ledger: of this hospital; None in mode ``none``.
        budget: ε that this hospital spends at most, over all runs.
        random: source of fresh bytes, ``os.urandom``.
        cache: the hospital's own folder for what is computed once from its images.

    Raises:
        PrivacyError: the run's δ, batch or ε mean nothing on this hospital's data.
        ConfigError: the description contradicts itself.
        WeightRangeError: this hospital has more records than the run lets one have; known before any ε is spent.
    """

    def __init__(
        self,
        run: RunDescription,
        data: HospitalData,
        ledger: Ledger | None,
        budget: float,
        random: Callable[[int], bytes],
        cache: Path,
    ) -> None:
        self._run = run
        self._fingerprint = data.fingerprint
        self._ledger = ledger
        self._budget = budget
        self._random = random
        self._train, self._validation, self._test = (
            TrainingData.of(model_inputs(run.model.name, part.images, cache), part.labels, part.patients)
            for part in (data.train, data.validation, data.test)
        )
        self.layout = verified_layout_of(run)
        self.mechanism = mechanism_of(run)
        self._plan = schedule(self._train, run.training, run.privacy)
        self._weight = self._weight_in_the_mean()
        with _telling_no_size("aggregation.max_weight"):
            self.layout.check_weight(self._weight)
        self._model = registry.build(
            run.model.name, len(run.classes), run.channels, run.model.image_size, run.experiment.seed
        )
        self._accountant = Accountant(run.privacy.accountant)
        self._event = self._calibrate()

    def _weight_in_the_mean(self) -> int:
        """Return by how much this hospital counts: its records, or in mode ``distributed`` the units in its batches.

        The latter is the expected number, which follows from public terms and the number of units; the real one is
        secret.
        """
        if self.mechanism is None:
            return len(self._train)
        return max(1, round(self._plan.sample_rate * self._plan.units))

    def _calibrate(self) -> MechanismEvent | None:
        """Return what one round costs, with the noise that makes all rounds together cost the target ε."""
        training, privacy, plan = self._run.training, self._run.privacy, self._plan
        if privacy.mode is PrivacyMode.NONE:
            return None
        if self.mechanism is not None:
            with _telling_no_size("privacy.delta"):
                require_enough_units(plan.units, privacy.delta, privacy.unit)
            return self._as_described(self.mechanism.event(plan.sample_rate))
        with _telling_no_size("training.batch_size and privacy.delta"):
            require_meaningful(plan.units, training.batch_size, privacy.delta, privacy.unit)
        sigma = noise_multiplier(
            privacy.target_epsilon,
            privacy.delta,
            plan.sample_rate,
            plan.steps * self._run.experiment.rounds,
            self._accountant,
        )
        return MechanismEvent(MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN, sigma, plan.sample_rate, plan.steps)

    def _as_described(self, event: MechanismEvent) -> MechanismEvent:
        """Return the event, or refuse the noise that a server has put into the description if it misses the target."""
        privacy, rounds = self._run.privacy, self._run.experiment.rounds
        reached = epsilon([event] * rounds, privacy.delta, self._accountant)
        if reached > privacy.target_epsilon:
            raise PrivacyError(
                f"the run's noise multiplier must keep its target ε = {privacy.target_epsilon:g} for {rounds} rounds, "
                f"got {event.noise_multiplier:g}, which comes to {rounded_up(reached):g}"
            )
        return event

    def contribute(
        self, round_number: int, model: npt.NDArray[np.float32], *, cohort: int, train: bool
    ) -> Contribution:
        """Return this hospital's vector for one round.

        The cost in privacy is in the ledger, durably, before the first gradient is computed.

        Args:
            round_number: of the protocol.
            model: (d,) float32, the round's global model.
            cohort: hospitals whose vectors are added, which together make the noise of mode ``distributed``.
            train: False asks for the evaluation alone: no gradient, no cost.

        Raises:
            BudgetExceededError: the round would pass this hospital's budget; nothing was computed.
            RunError: the model has another shape, or training diverged.
        """
        if model.shape != (self.layout.parameters,) or model.dtype != np.float32:
            raise RunError(
                f"the model must be {self.layout.parameters} float32 numbers, got {model.shape} of {model.dtype}"
            )
        epsilon = self._book(round_number) if train else self._report()
        random = self._source_for(model)
        started = time.perf_counter()
        counts = evaluate(self._model, model, self._validation, self._test, self.layout.evaluation)
        training_from = time.perf_counter()
        vector = self._vector(model, counts, cohort, random, train=train)
        rate = self._records_of_a_round() / (time.perf_counter() - training_from) if train else None
        return Contribution(vector, epsilon, time.perf_counter() - started, rate, metrics(counts))

    def _vector(
        self,
        model: npt.NDArray[np.float32],
        counts: EvaluationCounts,
        cohort: int,
        random: Callable[[int], bytes],
        *,
        train: bool,
    ) -> npt.NDArray[Any]:
        """Return this hospital's change of the model, or its part of a step in mode ``distributed``, and the counts."""
        if self.mechanism is None:
            change = self._train_from(model, random) if train else np.zeros_like(model)
            return self.layout.encode(change, self._weight, counts, random)
        if not train:
            return self.layout.encode_integers(np.zeros(len(model), np.int64), self._weight, counts)
        privacy, rate = self._run.privacy, self._plan.sample_rate
        part = noisy_gradient_sum(self._model, model, self._train, privacy, self.mechanism, rate, cohort, random)
        return self.layout.encode_integers(part.total, self._weight, counts)

    def _records_of_a_round(self) -> float:
        """Return how many records are expected to pass through the training steps of one round."""
        return self._plan.steps * self._plan.sample_rate * len(self._train)

    def _source_for(self, model: npt.NDArray[np.float32]) -> Callable[[int], bytes]:
        """Return the source of this round's sampling, noise and rounding.

        In mode ``none`` there is nothing to keep secret, and a vector is a function of the run's seed, the data and the
        model: a baseline can be repeated, and a round that is done again after a crash gives what it gave before.
        """
        if self._run.privacy.mode is not PrivacyMode.NONE:
            return self._random
        seed = self._run.experiment.seed.to_bytes(_SEED_LENGTH, "big")
        return Keystream(hashlib.sha256(seed + self._fingerprint + model.tobytes()).digest()).draw

    def _train_from(self, model: npt.NDArray[np.float32], random: Callable[[int], bytes]) -> npt.NDArray[np.float32]:
        sigma = 0.0 if self._event is None else self._event.noise_multiplier
        return train_locally(
            self._model, model, self._train, self._run.training, self._run.privacy, sigma, random
        ).delta

    def _book(self, round_number: int) -> EpsilonReport | None:
        if self._ledger is None or self._event is None:
            return None
        delta = self._run.privacy.delta
        spent = self._ledger.record(self._run.run_id, round_number, self._event, self._budget, delta, self._accountant)
        return EpsilonReport(rounded_up(spent), self._budget)

    def _report(self) -> EpsilonReport | None:
        if self._ledger is None:
            return None
        return EpsilonReport(rounded_up(self._ledger.spent(self._run.privacy.delta, self._accountant)), self._budget)


@contextlib.contextmanager
def _telling_no_size(settings: str) -> Iterator[None]:
    """Log a refusal that says how much data is here, and raise one that does not: its reason goes to the server."""
    try:
        yield
    except (PrivacyError, WeightRangeError) as error:
        _LOG.warning("%s", error)
        raise type(error)(
            f"the run's {settings} must fit how much data this hospital has, which it tells nobody; its log says more"
        ) from None
