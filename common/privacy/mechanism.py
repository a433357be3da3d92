"""What a privacy mode decides, one class for each mode: the one file that asks which mode a run is in.

``privacy.mode`` names a :class:`Mechanism`: :class:`NoPrivacy`, :class:`LocalNoise` or :class:`DistributedNoise`.
:func:`mechanism_of` returns a run's. Everybody else asks the mechanism what they need to know: which noise the run's
description names, how a hospital's vector is made, how a sum of vectors is read, how many vectors a sum must hold, what
is claimed, and in which words.

**The plan.** :meth:`Mechanism.plan` returns a frozen :class:`RoundPlan`: the sampling, the clipping and the noise of
one round at one hospital. Training takes the plan and nothing else that privacy depends on, and the ledger books the
plan's :attr:`~RoundPlan.event`, which is computed from the same fields. So the accountant cannot describe another
mechanism than the one that runs. A plan holds nothing that changes speed alone; those constants stand under a heading
of their own in ``client/training.py``. (The model is ``DPExecutionPlan`` of google-deepmind/jax_privacy.)

**Who trains.** This package knows neither PyTorch nor a hospital's records. A plan therefore asks a :class:`Trainer`,
which the hospital implements, for the one kind of work that it is made of.

**The mean of features.** Before it trains, a run may ask for the mean of the hospitals' unit-norm features
(``privacy.mean_share``): :class:`FeatureMean`, one release of the same mechanism with noise of its own, booked as such.
It takes that share of the run's μ², and the steps' noise is made for the rest.

**Training alone.** A run may ask what each hospital's own records give alone (``privacy.alone_share``):
:meth:`Mechanism.of_hospital_alone`, that share of the run's μ², with all the noise inside each hospital.

Proofs: ``docs/proofs/distributed-noise.md`` and ``docs/proofs/zero-out.md``, of what the plans rely on, and
``docs/proofs/feature-mean.md``. Training alone: ``docs/proofs/against-alone.md``.

To add a mode: one class here, its name in :class:`common.config.PrivacyMode` and its line in ``MECHANISMS``
(``docs/extending.md``).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from common.config import (
    AggregationConfig,
    Config,
    PrivacyConfig,
    PrivacyMode,
    PrivacyUnit,
    RunDescription,
    TrainingConfig,
)
from common.errors import PrivacyError
from common.privacy.accounting import (
    Accountant,
    Epsilon,
    MechanismEvent,
    MechanismKind,
    against_everyone,
    epsilon,
    rounded_up,
)
from common.privacy.budget import Account, Booking
from common.privacy.calibration import alone_privacy, mean_noise_multiplier, run_noise_multiplier, threshold_event
from common.privacy.change_norm import clipped, noise_norm
from common.privacy.distributed import DistributedMechanism
from common.privacy.schedule import Schedule
from common.run.vector import DecodedSum, Tail, VectorLayout
from common.task import TaskKind

MEAN_NORM = 1.0
"""C of the mean of features, which have norm 1."""

DISTRIBUTED_BITS = 32
"""The ring of mode ``distributed``: in 16 bits a sum of gradients leaves no digits for one unit's."""

Random = Callable[[int], bytes]

LARGEST_MEAN_ERROR = 0.4
"""The largest expected norm of the noise in the mean of features with which it is used. The features have norm 1, so a
mean with more noise moves them about as much at random as towards their centre: it cost .07 of AUC on 546 images."""

HARDLY_ANY_NOISE = 2.0**-20
"""The noise multiplier of steps that clip and are to have no noise: in each coordinate a millionth of what one record
may add, which a model in float32 does not notice. No ε is claimed of such steps, and no model of them leaves."""

Stretches = Callable[[slice], NDArray[np.float32]]
"""Returns a stretch of the mean change of the model, so that the whole of it need not be in memory."""


@dataclass(frozen=True)
class SummedMean:
    """What is public of a sum that holds a mean of features.

    Attributes:
        cohort: hospitals that were asked.
        survivors: whose vectors are in the sum.
        stated: training units that these state, together.
    """

    cohort: int
    survivors: int
    stated: int


class Trainer(Protocol):
    """What a hospital does for a plan: one round's work on its own records, under the plan's sampling and noise."""

    def steps(self, plan: "PlainSteps | NoisySteps") -> NDArray[np.float32]:
        """Return the change of the model after the plan's optimiser steps, (d,) float32."""
        ...

    def gradient_sum(self, plan: "NoisySum") -> NDArray[np.int64]:
        """Return the clipped gradients of one batch, added up, with this hospital's share of noise, (d,) int64."""
        ...

    def feature_mean(self, plan: "PlainSteps | NoisySteps") -> NDArray[np.float32]:
        """Return the mean of all units' unit-norm features in the centre's place, (d,) float32."""
        ...

    def feature_sum(self, plan: "NoisySum") -> NDArray[np.int64]:
        """Return the sum of all units' unit-norm features with this hospital's share of noise, likewise, (d,) int64."""
        ...


class RoundPlan(ABC):
    """One round's training at one hospital, as it runs and as it is booked."""

    @property
    @abstractmethod
    def event(self) -> MechanismEvent | None:
        """What the round costs, computed from the fields that training runs by; None where nothing bounds it."""

    @property
    @abstractmethod
    def passes(self) -> float:
        """How often, on average, the round's training looks at each record."""

    @abstractmethod
    def expected_batch(self, stated: int) -> float:
        """Return how many units a batch is expected to hold at a hospital that states so many, a public number."""

    @abstractmethod
    def booking(self, delta: float) -> Booking | None:
        """Return what the ledger books before the round trains; None where there is nothing to book.

        Args:
            delta: of the run's privacy.
        """

    def check_cohort(self, cohort: int) -> None:  # noqa: B027 - most noise does not depend on the cohort
        """Refuse a cohort whose honest members' noise would be too little.

        Raises:
            PrivacyError: it would be.
        """

    @abstractmethod
    def change(self, trainer: Trainer) -> NDArray[Any]:
        """Return the hospital's contribution to the model, (d,), noise included."""

    def no_change(self, parameters: int) -> NDArray[Any]:
        """Return the contribution of a round that does not train, (d,) zeros."""
        return np.zeros(parameters, np.float32)

    def encode(self, layout: VectorLayout, change: NDArray[Any], tail: Tail, random: Random) -> NDArray[Any]:
        """Return the vector that is masked: :meth:`common.run.vector.VectorLayout.encode` of the change."""
        return layout.encode(change, tail, random)


@dataclass(frozen=True)
class PlainSteps(RoundPlan):
    """Shuffled passes of SGD without clipping or noise; promises nothing.

    Attributes:
        batch_size: records in a step.
        local_epochs: passes over the data.
    """

    batch_size: int
    local_epochs: int

    @property
    def event(self) -> None:
        """Nothing bounds what such a round gives away."""
        return

    @property
    def passes(self) -> float:
        """See :class:`RoundPlan`."""
        return self.local_epochs

    def expected_batch(self, stated: int) -> float:
        """Return the size of a batch, or all there is where that is less."""
        return min(self.batch_size, stated)

    def booking(self, delta: float) -> None:  # noqa: ARG002 - as in the base class
        """There is nothing to book."""
        return

    def change(self, trainer: Trainer) -> NDArray[np.float32]:
        """See :class:`RoundPlan`."""
        return trainer.steps(self)


@dataclass(frozen=True)
class NoisySteps(RoundPlan):
    """Steps of DP-SGD (Abadi et al. 2016), each with all its noise, inside the hospital.

    Attributes:
        unit: what is sampled, clipped and protected as one.
        schedule: the sampling: with which rate a unit enters a step's batch, and how many steps there are.
        max_grad_norm: C, the L2 norm that a unit's gradient is clipped to.
        noise_multiplier: σ; the noise of a step has the standard deviation σC in each coordinate.
        longest: S, the norm that a change times the hospital's weight is clipped to; None for none.
        longest_per_weight: what is added to S for each unit of the weight.
    """

    unit: PrivacyUnit
    schedule: Schedule
    max_grad_norm: float
    noise_multiplier: float
    longest: float | None = None
    longest_per_weight: float = 0.0

    @property
    def event(self) -> MechanismEvent:
        """The Poisson-subsampled Gaussian mechanism, once a step."""
        return MechanismEvent(
            MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN,
            self.noise_multiplier,
            self.schedule.sample_rate,
            self.schedule.steps,
        )

    @property
    def passes(self) -> float:
        """See :class:`RoundPlan`."""
        return self.schedule.steps * self.schedule.sample_rate

    def expected_batch(self, stated: int) -> float:
        """See :class:`RoundPlan`."""
        return self.schedule.sample_rate * stated

    def booking(self, delta: float) -> Booking:
        """See :class:`RoundPlan`; the noise is complete inside the hospital and withstands everyone."""
        return Booking(Account.TRAINING, self.event, self.unit, None, delta)

    def change(self, trainer: Trainer) -> NDArray[np.float32]:
        """See :class:`RoundPlan`."""
        return trainer.steps(self)

    def encode(self, layout: VectorLayout, change: NDArray[Any], tail: Tail, random: Random) -> NDArray[Any]:
        """See :class:`RoundPlan`; a change beyond the run's bound is clipped to it, after its noise."""
        if self.longest is None:
            return layout.encode(change, tail, random)
        return layout.encode(clipped(change, self.longest / tail.weight + self.longest_per_weight), tail, random)


@dataclass(frozen=True)
class NoisySum(RoundPlan):
    """One batch's clipped gradients with a share of the noise that is complete in the secure sum alone.

    Attributes:
        unit: what is sampled, clipped and protected as one.
        sample_rate: q, with which a unit enters the batch.
        noise: clips to whole numbers and sizes the share of the noise (:mod:`common.privacy.distributed`).
    """

    unit: PrivacyUnit
    sample_rate: float
    noise: DistributedMechanism

    @property
    def event(self) -> MechanismEvent:
        """The distributed discrete Gaussian mechanism, once a round."""
        return self.noise.event(self.sample_rate)

    @property
    def passes(self) -> float:
        """See :class:`RoundPlan`."""
        return self.sample_rate

    def expected_batch(self, stated: int) -> float:
        """See :class:`RoundPlan`."""
        return self.sample_rate * stated

    def booking(self, delta: float) -> Booking:
        """See :class:`RoundPlan`; the noise withstands the server with so many hospitals as it was made for."""
        return Booking(Account.TRAINING, self.event, self.unit, self.noise.colluders, delta)

    def check_cohort(self, cohort: int) -> None:
        """See :class:`RoundPlan`."""
        self.noise.share_variance(cohort)

    def change(self, trainer: Trainer) -> NDArray[np.int64]:
        """See :class:`RoundPlan`."""
        return trainer.gradient_sum(self)

    def no_change(self, parameters: int) -> NDArray[np.int64]:
        """See :class:`RoundPlan`."""
        return np.zeros(parameters, np.int64)

    def encode(
        self,
        layout: VectorLayout,
        change: NDArray[Any],
        tail: Tail,
        random: Random,  # noqa: ARG002 - whole numbers need no rounding
    ) -> NDArray[Any]:
        """Return the vector that is masked: the whole numbers as they are, modulo R."""
        return layout.encode_integers(change, tail)


@dataclass(frozen=True)
class FeatureMean(RoundPlan):
    """The mean of the units' features at norm 1, once before the first step.

    A unit adds the mean over its records, and over their copies, of unit vectors: a vector of norm at most 1.

    Attributes:
        release: the clipping and the noise, as of one training step in which every unit is.
    """

    release: PlainSteps | NoisySteps | NoisySum

    @property
    def event(self) -> MechanismEvent | None:
        """The mechanism's event, once."""
        return self.release.event

    @property
    def passes(self) -> float:
        """See :class:`RoundPlan`."""
        return 1.0

    def expected_batch(self, stated: int) -> float:
        """Return all that are stated."""
        return stated

    def booking(self, delta: float) -> Booking | None:
        """See :class:`RoundPlan`; a line of its own on the account of training."""
        return self.release.booking(delta)

    def check_cohort(self, cohort: int) -> None:
        """See :class:`RoundPlan`."""
        self.release.check_cohort(cohort)

    def change(self, trainer: Trainer) -> NDArray[Any]:
        """See :class:`RoundPlan`."""
        if isinstance(self.release, NoisySum):
            return trainer.feature_sum(self.release)
        return trainer.feature_mean(self.release)

    def encode(self, layout: VectorLayout, change: NDArray[Any], tail: Tail, random: Random) -> NDArray[Any]:
        """See :class:`RoundPlan`."""
        return self.release.encode(layout, change, tail, random)


@dataclass(frozen=True)
class Mechanism(ABC):
    """Everything that one privacy mode decides.

    Attributes:
        privacy: the run's section ``privacy``.
    """

    privacy: PrivacyConfig

    mode: ClassVar[PrivacyMode]
    """The value of ``privacy.mode`` that names the mechanism."""

    is_private: ClassVar[bool] = True
    """Whether an ε bounds what training reveals of a unit."""

    noise_in_sum: ClassVar[bool] = False
    """Whether the noise of training is complete in a round's secure sum alone."""

    # Before a run.

    def aggregation(self, asked: AggregationConfig) -> AggregationConfig:
        """Return the section ``aggregation`` as the run's description names it."""
        return asked

    def agreed_noise(self, training: TrainingConfig, rounds: int) -> float | None:  # noqa: ARG002 - as in subclasses
        """Return the noise multiplier that server and hospitals agree on; None where each hospital computes its own.

        Raises:
            PrivacyError: no noise reaches the target ε.
        """
        return None

    def fewest_records(self, training: TrainingConfig) -> int:  # noqa: ARG002 - as in subclasses
        """Return how many training records a hospital needs for a batch: any do where the run names a sample rate."""
        return 1

    # A hospital's contribution.

    @abstractmethod
    def plan(self, run: RunDescription, parameters: int) -> RoundPlan:
        """Return how a hospital trains in one round; all rounds together cost at most the target ε.

        Args:
            run: the agreed description.
            parameters: d, of the model.

        Raises:
            PrivacyError: no noise reaches the target, or the noise that the run names does not.
        """

    def mean_plan(self, run: RunDescription, parameters: int) -> FeatureMean | None:
        """Return how a hospital answers the round that asks for the mean of features; None where the run asks for none.

        Args:
            run: the agreed description.
            parameters: d, of the model.

        Raises:
            PrivacyError: as :meth:`plan`.
        """
        return FeatureMean(self._release_of_mean(run, parameters)) if self.privacy.mean_share else None

    def _release_of_mean(self, run: RunDescription, parameters: int) -> PlainSteps | NoisySteps | NoisySum:  # noqa: ARG002
        raise PrivacyError(f"privacy.mode {self.mode} has no mean of features; set privacy.mean_share to 0")

    # What a hospital computes by itself, for its own eyes.

    def steps_alone(self, run: RunDescription, *, noise: bool) -> PlainSteps | NoisySteps:  # noqa: ARG002 - as in subclasses
        """Return how one hospital by itself takes the steps of one round of this run, on its own records.

        Sampling, clipping and the number of steps are those of a round; the noise is all the hospital's own.

        Args:
            run: the agreed description.
            noise: whether the steps of all rounds together, with :meth:`mean_alone`, cost this mechanism's whole target
                ε; without it they cost no bounded ε.

        Raises:
            PrivacyError: the mode has no such steps, or no noise reaches the target.
        """
        raise PrivacyError(
            f"privacy.mode {self.mode} has no steps for one hospital {'with' if noise else 'without'} noise"
        )

    def mean_alone(self, run: RunDescription, parameters: int, *, noise: bool) -> FeatureMean | None:
        """Return how one hospital by itself finds the mean of features; None where the run asks for none."""
        return (LocalNoise if noise else NoPrivacy)(self.privacy).mean_plan(run, parameters)

    def with_whole_target(self) -> "Mechanism":
        """Return the mechanism of a training that has the run's whole target to itself."""
        return type(self)(self.privacy.model_copy(update={"alone_share": 0.0}))

    def of_hospital_alone(self) -> "Mechanism":
        """Return what bounds the model of its own records that each hospital compares the run's with.

        It is a mechanism of the same mode, whose target is ``alone_share`` of this one's, less what the threshold takes
        (:func:`common.privacy.calibration.alone_privacy`).

        Raises:
            PrivacyError: the run asks for no such models, or no noise keeps the share.
        """
        return type(self)(alone_privacy(self.privacy)) if self.is_private else self.with_whole_target()

    def threshold_alone(self, run: RunDescription) -> MechanismEvent | None:
        """Return how the threshold of such a model is found; None where it costs nothing, or nothing has a threshold.

        Raises:
            PrivacyError: no noise reaches the target.
        """
        if not self.privacy.alone_share or not self.is_private or run.task.kind != TaskKind.BINARY:
            return None
        return threshold_event(self.privacy)

    def bookings_alone(self, run: RunDescription, parameters: int) -> tuple[Booking, ...]:
        """Return what a hospital books before anything of its model alone leaves; empty where nothing is to be booked.

        The noise is all the hospital's own, so it withstands everyone.

        Raises:
            PrivacyError: as :meth:`of_hospital_alone`.
        """
        if not self.privacy.alone_share or not self.is_private:
            return ()
        alone = self.of_hospital_alone()
        steps, mean = alone.steps_alone(run, noise=True), alone.mean_alone(run, parameters, noise=True)
        rounds = run.experiment.rounds
        events = [replace(event, steps=event.steps * rounds) for event in (steps.event,) if event is not None]
        events += [mean.event] if mean is not None and mean.event is not None else []
        of_threshold = self.threshold_alone(run)
        events += [] if of_threshold is None else [of_threshold]
        privacy = self.privacy
        return tuple(Booking(Account.TRAINING, event, privacy.unit, None, privacy.delta) for event in events)

    def training_alone(self, training: TrainingConfig) -> TrainingConfig:
        """Return the optimiser that acts within the steps of :meth:`steps_alone`; the run's strategy takes the rest."""
        return training

    # A round's sum.

    def fewest_survivors(self, cohort: int) -> int:  # noqa: ARG002 - as in subclasses
        """Return how many vectors the sum of a training round must hold for its noise to be enough; 0 for any."""
        return 0

    def decoder(self, run: RunDescription, parameters: int) -> Callable[[DecodedSum], Stretches]:  # noqa: ARG002
        """Return what reads the change of the model from a sum of such vectors.

        Raises:
            PrivacyError: the ring is too small.
        """
        return _weighted_mean

    def mean_decoder(self, run: RunDescription, parameters: int) -> Callable[[DecodedSum], Stretches]:  # noqa: ARG002
        """Return what reads the mean of features, in the centre's place, from a sum of such vectors.

        Raises:
            PrivacyError: the ring is too small.
        """
        return _weighted_mean

    def deviation_of_mean(self, run: RunDescription, parameters: int, summed: "SummedMean") -> float:  # noqa: ARG002
        """Return the standard deviation that noise gives each number of the mean of features."""
        return 0.0

    def longest_change(self, run: RunDescription, parameters: int) -> float | None:  # noqa: ARG002 - as in subclasses
        """Return the norm that w times a hospital's change never passes, w its weight; None where nothing limits it."""
        return None

    def longest_mean(self, run: RunDescription, parameters: int) -> float | None:  # noqa: ARG002 - as in subclasses
        """Return by how much the norm of w times a hospital's part of the mean of features passes w at most.

        That is without its noise a sum of w vectors whose norm is at most C = 1. None where nothing limits it.
        """
        return None

    def server_optimiser(self, training: TrainingConfig) -> tuple[float, float]:  # noqa: ARG002 - as in subclasses
        """Return the learning rate and momentum of ``training`` that act on the server; 1 and 0 for none of it."""
        return 1.0, 0.0

    # Claims and words.

    @abstractmethod
    def claims(self, run: RunDescription, parameters: int) -> tuple[Epsilon, ...]:
        """Return what each adversary learns at most from a run of all its rounds; empty where nothing bounds it.

        Args:
            run: the agreed description.
            parameters: d, of the model.
        """

    @abstractmethod
    def adversary(self) -> str:
        """Say against whom the run's ε holds, and against whom it does not where one might think so."""

    def holder_of_the_model(self) -> str:
        """Say which of those who hold the model the run's ε covers."""
        return "whoever holds the model"

    def caveats(self) -> tuple[str, ...]:
        """Return what every output of such a run must admit, each as one sentence."""
        return ()

    def limit(self) -> str:
        """Say what stays out of reach of somebody who sees the model."""
        return f"learn more about a {self.privacy.unit.value} than ε and δ={self.privacy.delta:g} allow"

    def limit_of_colluders(self) -> str:
        """Say what hospitals that work with the server cannot do, to be added to what masks keep from them."""
        return ""

    def what_a_seed_repeats(self) -> str:
        """Say how far another run with the same seed is the same."""
        return (
            "The seed fixes the split of the data and the first model. The noise of differential privacy and the masks "
            "come from the operating system's generator, not from the seed, and must: figures will differ a little "
            "from run to run."
        )


class NoPrivacy(Mechanism):
    """Mode ``none``: plain training, for baselines and for hospitals that agree to it."""

    mode = PrivacyMode.NONE
    is_private = False

    def fewest_records(self, training: TrainingConfig) -> int:
        """Return the size of a batch, which the data must fill."""
        return training.batch_size

    def plan(self, run: RunDescription, parameters: int) -> PlainSteps:  # noqa: ARG002 - as in the base class
        """See :class:`Mechanism`."""
        return PlainSteps(run.training.batch_size, run.training.local_epochs)

    def steps_alone(self, run: RunDescription, *, noise: bool) -> PlainSteps | NoisySteps:
        """See :class:`Mechanism`; the run names no ε that noise could keep."""
        return super().steps_alone(run, noise=noise) if noise else self.plan(run, 0)

    def _release_of_mean(self, run: RunDescription, parameters: int) -> PlainSteps:
        return self.plan(run, parameters)

    def claims(self, run: RunDescription, parameters: int) -> tuple[Epsilon, ...]:  # noqa: ARG002 - as in the base
        """Claim nothing."""
        return ()

    def adversary(self) -> str:
        """See :class:`Mechanism`."""
        return "nobody"

    def caveats(self) -> tuple[str, ...]:
        """See :class:`Mechanism`."""
        return ("privacy.mode is none: this run has NO differential privacy; a baseline only.",)

    def limit(self) -> str:
        """See :class:`Mechanism`."""
        unit = self.privacy.unit.value
        return f"nothing is out of reach by proof: no differential privacy limits what a {unit} gives away"

    def what_a_seed_repeats(self) -> str:
        """See :class:`Mechanism`."""
        return (
            "The seed fixes the split of the data and the first model; without noise the result is the same to the "
            "last bit on the same machine."
        )


class LocalNoise(Mechanism):
    """Mode ``local``: each hospital adds all the noise to its own steps, so its ε holds against everyone."""

    mode = PrivacyMode.LOCAL

    def schedule(self, training: TrainingConfig) -> Schedule:
        """Return the sampling of one round: as many steps as make ``local_epochs`` expected passes.

        It does not depend on how much data a hospital has.

        >>> LocalNoise(PrivacyConfig()).schedule(TrainingConfig(sample_rate=0.1, local_epochs=2))
        Schedule(sample_rate=0.1, steps=20)
        """
        return Schedule(training.sample_rate, training.local_epochs * math.ceil(1 / training.sample_rate))

    def steps(self, training: TrainingConfig, rounds: int) -> NoisySteps:
        """As :meth:`plan`, where there is no run's description.

        Raises:
            PrivacyError: as :func:`common.privacy.calibration.noise_multiplier`.
        """
        schedule, privacy = self.schedule(training), self.privacy
        multiplier = run_noise_multiplier(schedule, privacy, rounds)
        return NoisySteps(privacy.unit, schedule, privacy.max_grad_norm, multiplier)

    def plan(self, run: RunDescription, parameters: int) -> NoisySteps:
        """See :class:`Mechanism`."""
        steps = self.steps(run.training, run.experiment.rounds)
        return replace(steps, longest=self._longest(run, steps, parameters))

    def longest_change(self, run: RunDescription, parameters: int) -> float | None:
        """Return a multiple of the noise's norm, which is the same at every hospital, whatever it states."""
        return self._longest(run, _noisy_steps(self, run.training, run.experiment.rounds), parameters)

    def longest_mean(self, run: RunDescription, parameters: int) -> float | None:
        """Return the same multiple of the norm that the noise would have if it were in all d numbers."""
        bound = run.aggregation.norm_bound
        if not bound or not self.privacy.mean_share:
            return None
        return bound * mean_noise_multiplier(self.privacy) * MEAN_NORM * math.sqrt(parameters)

    def steps_alone(self, run: RunDescription, *, noise: bool) -> NoisySteps:
        """See :class:`Mechanism`; with noise they are the run's own."""
        return _own_steps(self.privacy, self.schedule(run.training), run.experiment.rounds, noise=noise)

    @staticmethod
    def _longest(run: RunDescription, steps: NoisySteps, parameters: int) -> float | None:
        bound, training = run.aggregation.norm_bound, run.training
        if not bound:
            return None
        return bound * noise_norm(
            parameters,
            steps.schedule.steps,
            steps.noise_multiplier * steps.max_grad_norm,
            steps.schedule.sample_rate,
            training.learning_rate,
            training.momentum,
        )

    def _release_of_mean(self, run: RunDescription, parameters: int) -> NoisySteps:
        multiplier, longest = mean_noise_multiplier(self.privacy), self.longest_mean(run, parameters)
        return NoisySteps(self.privacy.unit, Schedule(1.0, 1), MEAN_NORM, multiplier, longest, MEAN_NORM)

    def deviation_of_mean(self, run: RunDescription, parameters: int, summed: SummedMean) -> float:
        """Each hospital adds all the noise to its own sum, and a hospital's mean counts by what it states."""
        multiplier = self._release_of_mean(run, parameters).noise_multiplier
        return multiplier * MEAN_NORM * math.sqrt(summed.survivors) / summed.stated

    def claims(self, run: RunDescription, parameters: int) -> tuple[Epsilon, ...]:  # noqa: ARG002 - as in the base
        """Claim the target, which the noise keeps, against everyone."""
        privacy = run.privacy
        accountant = Accountant(privacy.accountant)
        return against_everyone(privacy.target_epsilon, privacy.delta, privacy.unit, accountant, privacy.colluders)

    def adversary(self) -> str:
        """See :class:`Mechanism`."""
        return "everyone outside the hospital, the server and the other hospitals included"


class DistributedNoise(Mechanism):
    """Mode ``distributed``: the hospitals' shares of noise are enough in their secure sum (Kairouz et al. 2021)."""

    mode = PrivacyMode.DISTRIBUTED
    noise_in_sum = True

    def aggregation(self, asked: AggregationConfig) -> AggregationConfig:
        """Return the section with the wide ring."""
        return asked.model_copy(update={"modulus_bits": DISTRIBUTED_BITS})

    def schedule(self, training: TrainingConfig) -> Schedule:
        """Return the sampling of one round: one step of all hospitals together.

        >>> DistributedNoise(PrivacyConfig()).schedule(TrainingConfig(sample_rate=0.1, local_epochs=2))
        Schedule(sample_rate=0.1, steps=1)
        """
        return Schedule(training.sample_rate, 1)

    def agreed_noise(self, training: TrainingConfig, rounds: int) -> float:
        """Return z, the noise multiplier of a round's sum."""
        return run_noise_multiplier(self.schedule(training), self.privacy, rounds)

    def steps_alone(self, run: RunDescription, *, noise: bool) -> NoisySteps:
        """See :class:`Mechanism`; one step, whose noise the hospital cannot share with anyone."""
        return _own_steps(self.privacy, self.schedule(run.training), run.experiment.rounds, noise=noise)

    def training_alone(self, training: TrainingConfig) -> TrainingConfig:
        """See :class:`Mechanism`: a change is the negative mean gradient, which the run's strategy takes a step by."""
        return training.model_copy(update={"learning_rate": 1.0, "momentum": 0.0, "proximal_mu": 0.0})

    def noise(self, run: RunDescription, parameters: int) -> DistributedMechanism:
        """Return how the hospitals of a run clip and add noise.

        The ring is laid out for hospitals that all have as many units as the run lets one state.

        Raises:
            PrivacyError: the ring is too small, a value is out of range, or the run names no noise.
        """
        if run.noise_multiplier is None:
            raise PrivacyError("a run of privacy.mode distributed must name its noise_multiplier")
        rate = run.training.sample_rate
        return self._fit(run, parameters, run.noise_multiplier, run.privacy.max_grad_norm, rate)

    def noise_of_mean(self, run: RunDescription, parameters: int) -> DistributedMechanism:
        """Return how the hospitals of a run clip and add noise to the mean of features."""
        return self._fit(run, parameters, mean_noise_multiplier(self.privacy), MEAN_NORM, 1.0)

    def _fit(
        self, run: RunDescription, parameters: int, multiplier: float, bound: float, rate: float
    ) -> DistributedMechanism:
        return DistributedMechanism.fit(
            noise_multiplier=multiplier,
            max_grad_norm=bound,
            dimension=parameters,
            hospitals=len(run.roster),
            expected_units=len(run.roster) * run.aggregation.max_weight * rate,
            colluders=run.privacy.colluders,
            tolerated_dropouts=run.privacy.tolerated_dropouts,
            modulus_bits=run.aggregation.modulus_bits,
        )

    def plan(self, run: RunDescription, parameters: int) -> NoisySum:
        """See :class:`Mechanism`."""
        privacy, rounds = run.privacy, run.experiment.rounds
        plan = NoisySum(privacy.unit, self.schedule(run.training).sample_rate, self.noise(run, parameters))
        before = self.mean_plan(run, parameters)
        events = [plan.event] * rounds + ([] if before is None or before.event is None else [before.event])
        events += [booking.event for booking in self.bookings_alone(run, parameters)]
        reached = epsilon(events, privacy.delta, Accountant(privacy.accountant))
        if reached > privacy.target_epsilon:
            raise PrivacyError(
                f"the run's noise multiplier must keep its target ε = {privacy.target_epsilon:g} for {rounds} "
                f"rounds, got {plan.event.noise_multiplier:g}, which reaches {rounded_up(reached):g}"
            )
        return plan

    def _release_of_mean(self, run: RunDescription, parameters: int) -> NoisySum:
        return NoisySum(self.privacy.unit, 1.0, self.noise_of_mean(run, parameters))

    def fewest_survivors(self, cohort: int) -> int:
        """See :class:`Mechanism`."""
        return survivors_for_noise(self.privacy, cohort)

    def decoder(self, run: RunDescription, parameters: int) -> Callable[[DecodedSum], Stretches]:
        """See :class:`Mechanism`."""
        noise, rate = self.noise(run, parameters), run.training.sample_rate

        def decoded(summed: DecodedSum) -> Stretches:
            expected = summed.tail.weight * rate
            return lambda stretch: mean_change(noise.decode(summed.total_of(stretch)), expected)

        return decoded

    def mean_decoder(self, run: RunDescription, parameters: int) -> Callable[[DecodedSum], Stretches]:
        """See :class:`Mechanism`."""
        noise = self.noise_of_mean(run, parameters)

        def decoded(summed: DecodedSum) -> Stretches:
            # The mean is what a step in the direction of minus the sum would be.
            return lambda stretch: -mean_change(noise.decode(summed.total_of(stretch)), summed.tail.weight)

        return decoded

    def deviation_of_mean(self, run: RunDescription, parameters: int, summed: SummedMean) -> float:
        """The shares of all who are in the sum are in it."""
        noise = self.noise_of_mean(run, parameters)
        in_sum = math.sqrt(summed.survivors * noise.share_variance(summed.cohort)) / noise.norm_bound
        return in_sum * MEAN_NORM / summed.stated

    def server_optimiser(self, training: TrainingConfig) -> tuple[float, float]:
        """Return the hospital's learning rate and momentum, because a hospital takes no step."""
        return training.learning_rate, training.momentum

    def claims(self, run: RunDescription, parameters: int) -> tuple[Epsilon, ...]:
        """Claim against each adversary what the noise that it does not know bounds."""
        privacy, rate, rounds = run.privacy, run.training.sample_rate, run.experiment.rounds
        accountant = Accountant(privacy.accountant)
        noise = self.noise(run, parameters)
        before = (self.noise_of_mean(run, parameters),) if privacy.mean_share else ()
        alone = tuple(booking.event for booking in self.bookings_alone(run, parameters))
        return noise.epsilons(
            rate, rounds, len(run.roster), privacy.delta, privacy.unit, accountant, once_before=before, beside=alone
        )

    def adversary(self) -> str:
        """See :class:`Mechanism`."""
        return adversary_in_sums(self.privacy)

    def holder_of_the_model(self) -> str:
        """See :class:`Mechanism`; a run's hospitals know their own noise, and are covered as colluders alone."""
        return (
            super().holder_of_the_model()
            if self.privacy.colluders
            else ("whoever outside the run's hospitals holds the model")
        )

    def limit_of_colluders(self) -> str:
        """See :class:`Mechanism`."""
        return f"; with up to {self.privacy.colluders}: take away enough noise to exceed the stated ε"


MECHANISMS: Mapping[PrivacyMode, type[Mechanism]] = MappingProxyType(
    {each.mode: each for each in (NoPrivacy, LocalNoise, DistributedNoise)}
)
"""The mechanism of each value of ``privacy.mode``."""


def mechanism_of(run: Config | RunDescription) -> Mechanism:
    """Return the mechanism of a run, or of a configuration that asks for one."""
    return mechanism_for(run.privacy)


def mechanism_for(privacy: PrivacyConfig) -> Mechanism:
    """Return the mechanism that a section ``privacy`` names."""
    return MECHANISMS[privacy.mode](privacy)


def mean_of_use(change: NDArray[np.float32], deviation: float) -> NDArray[np.float32]:
    """Return a mean of features as it stands in the centre's place, or zeros where its noise makes it of no use.

    Args:
        change: (d,) float32; what is not zero is the centre.
        deviation: of the noise in each number.
    """
    is_used = error_of_mean(deviation, int(np.count_nonzero(change))) <= LARGEST_MEAN_ERROR
    return change if is_used else np.zeros_like(change)


def error_of_mean(deviation: float, width: int) -> float:
    """Return the expected norm of the noise in a mean of features; up to ``LARGEST_MEAN_ERROR`` it is of use.

    Args:
        deviation: of the noise in each number.
        width: of the features.
    """
    return deviation * math.sqrt(width)


def survivors_for_noise(privacy: PrivacyConfig, cohort: int) -> int:
    """Return how many vectors a sum must hold where its noise is complete in the sum alone."""
    return max(0, cohort - privacy.tolerated_dropouts)


def mean_change(gradient_sum: NDArray[np.float64], expected_units: float) -> NDArray[np.float32]:
    """Return the change that one step of mode ``distributed`` asks for: the negative mean gradient, (d,) float32.

    Args:
        gradient_sum: (d,) float64, the noisy sum of clipped gradients over all hospitals.
        expected_units: in all their batches together, by what they state; not how many there were, which is secret.
    """
    return np.divide(gradient_sum, -expected_units, dtype=np.float64).astype(np.float32)


def adversary_in_sums(privacy: PrivacyConfig) -> str:
    """Say whom noise holds against that is complete in a sum alone: of mode ``distributed``, and of evaluation."""
    dropouts = f"{privacy.tolerated_dropouts} dropout{'' if privacy.tolerated_dropouts == 1 else 's'}"
    if not privacy.colluders:
        return (
            f"the server and whoever outside the run's hospitals gets the model, with up to {dropouts} a round; "
            "not at this ε against the run's other hospitals, who know their own noise"
        )
    hospitals = "hospital" if privacy.colluders == 1 else "hospitals"
    return (
        f"the server with up to {privacy.colluders} colluding {hospitals}, each of the run's other hospitals and "
        f"whoever gets the model, with up to {dropouts} a round"
    )


def _own_steps(privacy: PrivacyConfig, schedule: Schedule, rounds: int, *, noise: bool) -> NoisySteps:
    """Return one round's steps with all of a hospital's own noise, or with hardly any."""
    multiplier = run_noise_multiplier(schedule, privacy, rounds) if noise else HARDLY_ANY_NOISE
    return NoisySteps(privacy.unit, schedule, privacy.max_grad_norm, multiplier)


@lru_cache(maxsize=8)
def _noisy_steps(mechanism: LocalNoise, training: TrainingConfig, rounds: int) -> NoisySteps:
    """Solve for the noise once: whoever checks a sum asks in each round."""
    return mechanism.steps(training, rounds)


def _weighted_mean(summed: DecodedSum) -> Stretches:
    return summed.mean_of
