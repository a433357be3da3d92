"""Training with canaries: the deployed training and ledger, on data that an auditor has prepared to be recognised.

The auditor is as strong as the theorem allows (Nasr et al. 2021, arXiv:2101.04535: a white box with canaries of its
own making). Each canary is a record whose features are 0 but for one that no other record has, and that one is so
large that the canary's gradient is clipped to the full bound C and lies in two coordinates of its own. So whether the
canary was in is written, once a step in which it was drawn, into two numbers which nothing but the noise blurs. The
score of a canary is the product of its first gradient with everything that the training released.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.ledger.ledger import Ledger
from client.per_record_gradients import record_gradients
from client.training import TrainingData, noisy_gradient_sum, train_locally
from common.config import AggregationConfig, PrivacyConfig, TrainingConfig
from common.keystream import SEED_BYTES, Keystream
from common.models.flat import flat_parameters, share_parameters
from common.models.heads import linear_head
from common.privacy.accounting import Accountant, Epsilon, EpsilonAdversary
from common.privacy.budget import BudgetPolicy
from common.privacy.calibration import require_enough_units
from common.privacy.distributed import DistributedMechanism
from common.privacy.mechanism import DistributedNoise, LocalNoise, NoisySteps, NoisySum, mean_change, mechanism_for
from common.run.strategies import strategy_for

CANARY_FEATURE = 100.0
"""The one feature of a canary. At the first model its gradient has a norm of about 70, and C is about 1."""

LEARNING_RATE = 0.01
"""A rate so small that a canary which was drawn a hundred times is still misjudged enough to be clipped at C."""

GRADIENT_ROWS = 64
"""How many canaries' gradients are held at once."""

Random = Callable[[int], bytes]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """What is audited.

    Attributes:
        canaries: fair coins, m.
        rounds: of training.
        sample_rate: with which each record enters a step's batch.
        hospitals: in mode ``distributed``; the first has the canaries. In mode ``local`` one is enough, as its ε holds
            against everyone who sees its own update.
        privacy: mode, target ε, δ, clipping bound, accountant. The unit is a record.
    """

    canaries: int
    rounds: int
    sample_rate: float
    hospitals: int
    privacy: PrivacyConfig

    @property
    def training(self) -> TrainingConfig:
        """How a hospital trains in a round."""
        return TrainingConfig(sample_rate=self.sample_rate, learning_rate=LEARNING_RATE)


@dataclass(frozen=True)
class Exposure:
    """What a training revealed.

    Attributes:
        claim: the ε that the hospital's ledger says was spent.
        scores: (m,), higher where the canary looks more as if it had been in.
        included: (m,), whether it was.
        parameters: of the model.
        records: that were no canaries.
    """

    claim: Epsilon
    scores: Scores = field(repr=False)
    included: NDArray[np.bool_] = field(repr=False)
    parameters: int
    records: int


def train_with_canaries(
    records: TrainingData, setting: Setting, ledger_folder: Path, random: Random = os.urandom
) -> Exposure:
    """Train once, on ``records`` and those canaries whose coin came up heads.

    Args:
        records: of the hospital, (n, features) float32 with two classes; at least one.
        setting: what is audited.
        ledger_folder: an empty one, for the hospital's ledger.
        random: source of the coins and of all that the training draws.

    Raises:
        PrivacyError: the setting promises nothing on so few records, or no noise reaches its ε.
    """
    coins = Keystream(random(SEED_BYTES))
    included = coins.uniform(setting.canaries) < 0.5  # noqa: PLR2004 - Algorithm 1's fair coin
    labels = (coins.uniform(setting.canaries) < 0.5).astype(np.int64)  # noqa: PLR2004 - of either class
    canaries = _canaries(labels, records.inputs.shape[1])
    others = _widened(records, setting.canaries)
    data = _joined(others, canaries, included)
    model = linear_head(data.inputs.shape[1], classes=2)
    gradients = _gradients(model, canaries)
    ledger = Ledger.open(ledger_folder, hashlib.sha256(data.inputs.numpy().data).digest())
    train = _distributed if mechanism_for(setting.privacy).noise_in_sum else _local
    epsilon, released = train(model, data, others, setting, ledger, random)
    claim = Epsilon(
        epsilon,
        setting.privacy.delta,
        setting.privacy.unit,
        EpsilonAdversary.SERVER,
        Accountant(setting.privacy.accountant),
    )
    return Exposure(claim, gradients @ released, included, len(released), len(records))


def _local(
    model: nn.Module, data: TrainingData, _: TrainingData, setting: Setting, ledger: Ledger, random: Random
) -> tuple[float, Scores]:
    """Train in mode ``local``; returns what the ledger claims and what was released, towards smaller loss."""
    privacy, training = setting.privacy, setting.training
    require_enough_units(len(data), privacy.delta, privacy.unit)
    plan = LocalNoise(privacy).steps(training, setting.rounds)
    epsilon, start = 0.0, flat_parameters(model)
    first = start.copy()
    for round_number in range(1, setting.rounds + 1):
        epsilon = _book(ledger, round_number, plan, privacy)
        update = train_locally(
            model, start, data, training, plan, random, expected_units=setting.sample_rate * len(data)
        )
        start = (start + update.delta).astype(np.float32)
    return epsilon, (start - first).astype(np.float64)


def _distributed(
    model: nn.Module, data: TrainingData, others: TrainingData, setting: Setting, ledger: Ledger, random: Random
) -> tuple[float, Scores]:
    """Train in mode ``distributed``; what is released is the sum, as nobody sees one hospital's part."""
    privacy, rate = setting.privacy, setting.sample_rate
    require_enough_units(len(data), privacy.delta, privacy.unit)
    start = flat_parameters(model)
    hospitals = [data] + [others] * (setting.hospitals - 1)
    mechanism = DistributedMechanism.fit(
        noise_multiplier=DistributedNoise(privacy).agreed_noise(setting.training, setting.rounds),
        max_grad_norm=privacy.max_grad_norm,
        dimension=len(start),
        hospitals=setting.hospitals,
        expected_units=rate * sum(len(part) for part in hospitals),
        colluders=privacy.colluders,
        tolerated_dropouts=privacy.tolerated_dropouts,
        modulus_bits=32,
    )
    plan = NoisySum(privacy.unit, rate, mechanism)
    strategy = strategy_for(AggregationConfig(), setting.training, privacy, len(start))
    epsilon, released = 0.0, np.zeros(len(start))
    for round_number in range(1, setting.rounds + 1):
        epsilon = _book(ledger, round_number, plan, privacy)
        parts = [noisy_gradient_sum(model, start, part, plan, setting.hospitals, random) for part in hospitals]
        total = mechanism.decode(np.sum([part.total for part in parts], axis=0))
        start = strategy.step(start, mean_change(total, rate * sum(len(part) for part in hospitals)))
        released -= total
    return epsilon, released


def _book(ledger: Ledger, round_number: int, plan: NoisySteps | NoisySum, privacy: PrivacyConfig) -> float:
    """Book a round as a hospital does whose budget is the run's target; returns what the ledger says is spent."""
    booking = plan.booking(privacy.delta)
    policy = BudgetPolicy(privacy.target_epsilon, privacy.delta, privacy.unit)
    return ledger.record(RUN_ID, round_number, booking, policy, Accountant(privacy.accountant))


RUN_ID = "a0d17" + 27 * "0"


def _canaries(labels: NDArray[np.int64], width: int) -> TrainingData:
    """Return one record for each label, each with a feature of its own after the first ``width``, which are 0."""
    inputs = np.zeros((len(labels), width + len(labels)), np.float32)
    inputs[np.arange(len(labels)), width + np.arange(len(labels))] = CANARY_FEATURE
    return TrainingData.of(inputs, labels, np.arange(len(labels)))


def _widened(records: TrainingData, canaries: int) -> TrainingData:
    """Return the records with a 0 for the feature of each canary."""
    inputs = np.pad(records.inputs.numpy(), ((0, 0), (0, canaries)))
    return TrainingData.of(inputs, records.labels.numpy(), np.arange(len(records)))


def _joined(others: TrainingData, canaries: TrainingData, included: NDArray[np.bool_]) -> TrainingData:
    inputs = np.concatenate([others.inputs.numpy(), canaries.inputs.numpy()[included]])
    labels = np.concatenate([others.labels.numpy(), canaries.labels.numpy()[included]])
    return TrainingData.of(inputs, labels, np.arange(len(labels)))


def _gradients(model: nn.Module, canaries: TrainingData) -> NDArray[np.float32]:
    """Return the direction in which each canary pulls the first model, (m, d) of norm 1."""
    share_parameters(model, torch.from_numpy(flat_parameters(model)))
    rows = [
        record_gradients(model, inputs, labels, as_rows=True).rows()
        for inputs, labels in zip(
            torch.split(canaries.inputs, GRADIENT_ROWS), torch.split(canaries.labels, GRADIENT_ROWS), strict=True
        )
    ]
    pull = -torch.cat(rows)
    directions: NDArray[np.float32] = (pull / torch.linalg.vector_norm(pull, dim=1, keepdim=True)).numpy()
    return directions
