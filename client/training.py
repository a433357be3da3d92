"""One hospital's training: plain SGD, or DP-SGD (Abadi et al. 2016), read from top to bottom.

**What the guarantee rests on.** One call of :func:`train_locally` for a plan of noisy steps is what ``plan.event``
says: ``steps`` invocations of the Poisson-subsampled Gaussian mechanism. Each unit (a record, or a patient with all
records) enters a step's batch independently with probability ``sample_rate``; a unit's gradient is clipped to L2 norm C
= ``max_grad_norm``; the sum over the batch gets Gaussian noise of standard deviation ``noise_multiplier`` x C in each
coordinate. Everything after that (dividing by the *expected* batch, momentum, the FedProx term, the fixed-point
rounding of the change) does not read the data again. The relation is zero-out: a unit against an empty one in its
place, which is computed with like any other and counts as zero. So the number of units is public, and of a patient the
number of records. An empty batch is a step like any other.

**Copies.** A record may come with warped copies of its features. Its loss is the mean over them, so its gradient is the
mean over them too, *before* it is clipped: one record still adds one vector of norm at most C
(``docs/proofs/copies.md``). The mean of features, asked before training, is of unit vectors that are averaged alike.

**Randomness.** Batches and noise come from AES-256-CTR under a key fresh from the operating system for each call
(``common/keystream.py``), not from torch's Mersenne Twister, whose state can be computed from its output.

**Floating point, honestly.** The theorem is about real numbers. Noise is made and added in float64, and the noisy sum
is then rounded to multiples of a power of two about 2^-24 of the noise. The grid is the same whatever the data, and
each of its points stands for 2^20 and more float64 as long as the sum is below 2^8 deviations, so the last digits, from
which known attacks infer which sums were possible (Mironov 2012; Jin et al. 2022), are gone. The clipping bound holds
for any weights, also crafted ones, rounding included (:func:`_clipped_sum`). Mode ``distributed`` clips and adds noise
in whole numbers.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from client.device import CPU, is_cpu, rows_that_fit
from client.losses import summed_loss
from client.per_record_gradients import (
    CHUNK,
    MOST_RECORDS,
    SMALLEST_CLIPPING_NORM,
    ByRecord,
    mean_gradient_rows,
    norm_bounds,
    record_gradients,
    weighted_rows,
)
from common.config import PrivacyUnit, TrainingConfig
from common.errors import DataError, RunError
from common.evaluation import EvaluationCounts, EvaluationShape, PartCounts, count
from common.keystream import SEED_BYTES, Keystream
from common.models.centred import centre_length, trained_length
from common.models.flat import share_parameters
from common.models.memory import in_pieces
from common.privacy.distributed import DistributedMechanism
from common.privacy.mechanism import NoisySteps, NoisySum, PlainSteps
from common.privacy.schedule import Schedule

Random = Callable[[int], bytes]

# These change speed and memory alone. What is clipped, sampled and noised is the plan's, whatever they are.

PHYSICAL_PIXELS = 16 * 224 * 224
"""Values forwarded at once: about 2 GB of activations in a ResNet-18. A larger batch is summed in pieces."""

CACHED_FEATURES = 1 << 20
"""Numbers of cached features, or of their gradients as rows, taken at once by a private step, 4 MiB: gathered,
multiplied, measured and summed while a core still has them at hand, which takes three quarters of the time of going
over a whole batch four times."""

ROW_ELEMENTS = 1 << 27
"""Numbers held as explicit per-record gradients of images, 512 MiB of float32."""

EVALUATION_PIXELS = 4 * PHYSICAL_PIXELS
"""How many values are forwarded at once without a backward pass, which keeps no activations."""

NOISE_AT_ONCE = 1 << 16
"""How many coordinates get their noise at a time: 512 KiB of float64."""

# On these the guarantee rests, or what a server can learn of one record.

LARGEST_LOGIT = 1e4
"""The largest logit. Beyond it a probability is 0 or 1 in any float, and its logarithm is cut anyway."""

GRID_BITS = 24
"""The noise's deviation is 2^24 to 2^25 grid steps: far below what anyone would notice, far above float64's digits."""

SUM_BITS = 28
"""Sums of a piece of a batch are rounded to 2^-28 to 2^-29 of C, of which float64 adds 2^24 units exactly."""

SLACK = 2.0**-10
"""The share of C that clipping reserves for everything that float32 can lose, so that nothing passes C itself."""


_WITH_COPIES = 3
"""Dimensions of cached features that have copies; images have four."""


class Clipping(Protocol):
    """Whose gradient is clipped, and to which L2 norm."""

    @property
    def unit(self) -> PrivacyUnit:
        """What is clipped as one: a record, or a patient's records together."""
        ...

    @property
    def max_grad_norm(self) -> float:
        """C, the bound."""
        ...


@dataclass(frozen=True)
class TrainingData:
    """Records as the loop reads them.

    Inputs stay where they lie, mostly mapped from disk: of a part of which a run uses some records, :meth:`take` reads
    a batch at a time. So the memory that a run takes does not show how many records there are.

    Attributes:
        inputs: (N, channels, height, width) uint8 images, or cached float32 features, (N, features) or, with the
            features of copies, (N, copies, features); read them by :meth:`take`.
        labels: (n,) int64 in [0, classes); of a multi-label task (n, labels) int64 of 0 and 1.
        patients: (n,) int64, which patient a record is of, numbered from 0 without gaps.
        rows: (n,) int64, the places of the records in the hospital's part, of which these may be some; by default all.
        gone: (n,) bool, whose images are no longer there: each counts as an empty record, everywhere. Nothing else
            about the others moves, neither their numbers nor their places in memory. By default none.
        lies: (n,) int64, where in ``inputs`` each record's are; by default the first n, which are all.
    """

    inputs: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    patients: Tensor = field(repr=False)
    rows: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64), repr=False)
    gone: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool), repr=False)
    lies: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64), repr=False)

    def __post_init__(self) -> None:
        """Fill in the defaults."""
        if len(self.rows) != len(self.labels):
            object.__setattr__(self, "rows", torch.arange(len(self.labels)))
        if len(self.gone) != len(self.labels):
            object.__setattr__(self, "gone", torch.zeros(len(self.labels), dtype=torch.bool))
        if len(self.lies) != len(self.labels):
            object.__setattr__(self, "lies", torch.arange(len(self.labels)))

    @classmethod
    def of(
        cls,
        inputs: NDArray[np.uint8] | NDArray[np.float32],
        labels: NDArray[np.int64],
        patients: NDArray[np.int64],
        lies: NDArray[np.int64] | None = None,
    ) -> Self:
        """Wrap what a shard's reader returns; patients may be numbered in any way.

        Raises:
            DataError: labels, patients and ``lies``, or the inputs where that is None, do not have the same length.
        """
        places = np.arange(len(inputs)) if lies is None else lies
        if not len(places) == len(labels) == len(patients):
            raise DataError(f"inputs, labels, patients must match, got {len(places)}, {len(labels)}, {len(patients)}")
        _, numbers = np.unique(patients, return_inverse=True)
        found = (torch.from_numpy(column) for column in (inputs, labels, numbers.astype(np.int64), places))
        tensors, labelled, numbered, placed = found
        return cls(tensors, labelled, numbered, lies=placed)

    def take(self, records: Tensor | slice) -> Tensor:
        """Return the inputs of some records by their numbers; a slice is not copied where all inputs are records."""
        return self.inputs[records if len(self.lies) == len(self.inputs) else self.lies[records]]

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.labels)

    @property
    def copies(self) -> int:
        """Return how many copies each record has; 1 for the record alone."""
        return self.inputs.shape[1] if self.inputs.dim() == _WITH_COPIES else 1

    def units(self, unit: PrivacyUnit) -> Tensor:
        """Return for each record the number of its unit of privacy, from 0 without gaps, (n,) int64."""
        return self.patients if unit is PrivacyUnit.PATIENT else torch.arange(len(self))

    def count(self, unit: PrivacyUnit) -> int:
        """Return how many units of privacy there are; 0 where there is no record."""
        return int(self.units(unit).max()) + 1 if len(self) else 0

    def limited(self, most: int, unit: PrivacyUnit, seed: bytes) -> Self:
        """Return at most ``most`` units with all their records: all that are there, or a subset that ``seed`` fixes."""
        units, there = self.units(unit), self.count(unit)
        if there <= most:
            return self
        kept = np.argsort(Keystream(hashlib.sha256(seed).digest()).uniform(there), kind="stable")[:most]
        return self._of_records(torch.isin(units, torch.from_numpy(kept)))

    def at_most_per_patient(self, most: int, seed: bytes) -> Self:
        """Return at most ``most`` records of each patient: all that are there, or a subset that ``seed`` fixes."""
        order = np.argsort(Keystream(hashlib.sha256(seed).digest()).uniform(len(self)), kind="stable")
        patients = self.patients.numpy()[order]
        by_patient = np.argsort(patients, kind="stable")
        _, first, sizes = np.unique(patients[by_patient], return_index=True, return_counts=True)
        place = np.arange(len(self)) - np.repeat(first, sizes)
        if not (place >= most).any():
            return self
        kept = torch.zeros(len(self), dtype=torch.bool)
        kept[torch.from_numpy(order[by_patient[place < most]])] = True
        return self._of_records(kept)

    def emptied(self) -> Self:
        """Return a part of the same kind without any record."""
        return self._of_records(torch.zeros(len(self), dtype=torch.bool))

    def without(self, gone: NDArray[np.bool_]) -> Self:
        """Return the same records, of which those count as empty that ``gone`` names, a bool for each of the part."""
        return replace(self, gone=torch.from_numpy(gone)[self.rows])

    @property
    def here(self) -> Tensor:
        """Return the numbers of the records that are not gone."""
        return (~self.gone).nonzero()[:, 0]

    def of_copies(self, of_records: Tensor) -> NDArray[np.int64]:
        """Return what is known of each record for each copy of those that are not gone, in the order of the scores."""
        repeated: NDArray[np.int64] = of_records[self.here].repeat_interleave(self.copies, dim=0).numpy()
        return repeated

    def _of_records(self, chosen: Tensor) -> Self:
        _, numbers = torch.unique(self.patients[chosen], return_inverse=True)
        some = (column[chosen] for column in (self.rows, self.gone, self.lies))
        return type(self)(self.inputs, self.labels[chosen], numbers, *some)


@dataclass(frozen=True)
class LocalUpdate:
    """What a round of training gave.

    Attributes:
        delta: (d,) float32, trained model less the round's model.
        steps: taken.
        seconds: it took.
    """

    delta: NDArray[np.float32] = field(repr=False)
    steps: int
    seconds: float


@dataclass(frozen=True)
class GradientSum:
    """What a round of mode ``distributed`` gave.

    Attributes:
        total: (d,) int64, clipped gradients of the batch and a share of the noise.
        seconds: it took.
    """

    total: NDArray[np.int64] = field(repr=False)
    seconds: float


def train_locally(
    model: nn.Module,
    start: NDArray[np.float32],
    data: TrainingData,
    training: TrainingConfig,
    plan: PlainSteps | NoisySteps,
    random: Random,
    *,
    expected_units: float,
    device: torch.device = CPU,
) -> LocalUpdate:
    """Train from the round's model on this hospital's records.

    Args:
        model: of the registry; its parameters are overwritten.
        start: (d,) float32, the round's model.
        data: the training part.
        training: learning rate, momentum, FedProx; nothing of it is read that privacy depends on.
        plan: the sampling, the clipping and the noise.
        random: source of fresh bytes, ``os.urandom``; 32 are drawn. Without noise a seeded one makes the round
            repeatable bit for bit.
        expected_units: of a noisy step's batch, by what the hospital states: the noisy sum is divided by this public
            number, never by how many units there are.
        device: where gradients are computed; they are clipped, added up and noised on the CPU in any case.

    Returns:
        The change, finite whatever the model and the data are. After noisy steps it is (ε, δ)-private for the unit
        against everyone who sees it, the server included, with the ε that the accountant gives for ``plan.event``.

    Raises:
        RunError: the plan is not one of steps; or σ or ``expected_units`` of noisy steps is not positive, or their
            clipping bound is below SMALLEST_CLIPPING_NORM.
    """
    began = time.perf_counter()
    stream = Keystream(random(SEED_BYTES))
    anchor = torch.from_numpy(start)
    weights = anchor.clone()
    on_device = weights.to(device)  # The very same tensor on a CPU.
    share_parameters(model.to(device), on_device)
    model.train()
    match plan:
        case NoisySteps():
            gradients = _noisy_gradients(model, data, plan, expected_units, stream)
        case PlainSteps():
            gradients = _plain_gradients(model, data, plan, stream)
        case _:
            raise RunError("a plan of optimiser steps must be given; this one sends a gradient sum")
    # The change is kept apart from the weights, which may be too large for it to show in their difference, or infinite.
    trained = slice(trained_length(model))  # A centre stays as it is.
    whole = torch.zeros_like(weights)
    change, velocity = whole[trained], torch.zeros_like(weights[trained])
    steps = 0
    for gradient in gradients:  # Each is of the weights at hand.
        velocity *= training.momentum
        velocity += gradient + training.proximal_mu * change if training.proximal_mu else gradient
        change -= training.learning_rate * velocity
        torch.add(anchor[trained], change, out=weights[trained])
        if on_device is not weights:
            on_device.copy_(weights)
        steps += 1
    torch.nan_to_num(change, nan=0.0, out=change)  # A proximal term may run away; what leaves is a number all the same.
    return LocalUpdate(delta=whole.numpy(), steps=steps, seconds=time.perf_counter() - began)


def noisy_gradient_sum(
    model: nn.Module,
    start: NDArray[np.float32],
    data: TrainingData,
    plan: NoisySum,
    cohort: int,
    random: Random,
    device: torch.device = CPU,
) -> GradientSum:
    """Return this hospital's part of one optimiser step in mode ``distributed``.

    Args:
        model: of the registry; its parameters are overwritten.
        start: (d,) float32, the round's model.
        data: the training part.
        plan: the sampling, the clipping and the noise; the same at every hospital of a run.
        cohort: hospitals in this round.
        random: source of fresh bytes, ``os.urandom``; 64 are drawn.
        device: where gradients are computed; they are clipped to whole numbers on the CPU in any case.

    Returns:
        Whole numbers that carry this hospital's share of the noise and are private only inside the secure sum, as
        the theorem in ``common/privacy/distributed.py`` says; never to be sent unmasked. A centre's numbers are 0.
    """
    began = time.perf_counter()
    share_parameters(model.to(device), torch.from_numpy(start.copy()).to(device))
    model.train()
    units = data.units(plan.unit)
    noise = _for_a_part(plan.noise, trained_length(model))
    (batch,) = _poisson_batches(data, plan.unit, Schedule(plan.sample_rate, 1), Keystream(random(SEED_BYTES)))
    total = np.zeros(len(start), np.int64)
    trained = total[: noise.dimension]
    trained += noise.noise_share(cohort, Keystream(random(SEED_BYTES)))
    for piece in _pieces(batch, units, _rows_at_once(data, noise.dimension)):
        trained += noise.clip(_unit_gradients(model, data, piece, units[piece]).numpy()).total
    return GradientSum(total=total, seconds=time.perf_counter() - began)


def noisy_feature_sum(
    model: nn.Module, data: TrainingData, plan: NoisySum, cohort: int, random: Random
) -> NDArray[np.int64]:
    """Return this hospital's part of the mean of features in mode ``distributed``.

    Args:
        model: of the registry, with a centre.
        data: the training part, of as many units as the hospital states.
        plan: the clipping and the noise; every unit is in the sum.
        cohort: hospitals in this round.
        random: source of fresh bytes, ``os.urandom``; 32 are drawn.

    Returns:
        (d,) int64: in the centre's place the sum of the units' mean unit features with this hospital's share of the
        noise, private only inside the secure sum; 0 elsewhere.
    """
    width = centre_length(model)
    noise = _for_a_part(plan.noise, width)
    total = np.zeros(trained_length(model) + width, np.int64)
    centre = total[len(total) - width :]
    centre += noise.noise_share(cohort, Keystream(random(SEED_BYTES)))
    for rows in _unit_features(data, plan.unit):
        centre += noise.clip(rows.numpy()).total
    return total


def feature_mean(
    model: nn.Module, data: TrainingData, plan: PlainSteps | NoisySteps, stated: float, random: Random
) -> NDArray[np.float32]:
    """Return this hospital's part of the mean of features where its own noise is complete, or where there is none.

    Args:
        model: of the registry, with a centre.
        data: the training part, of as many units as the hospital states.
        plan: the clipping and the noise, or that there is neither.
        stated: the units that the hospital states, by which a noisy sum is divided.
        random: source of fresh bytes, ``os.urandom``; 32 are drawn.

    Returns:
        (d,) float32: in the centre's place the mean of the units' mean unit features; 0 elsewhere. With noise it is
        (ε, δ)-private for the unit against everyone, by the Gaussian mechanism that ``plan.event`` names: the sum moves
        by at most C when an empty unit takes the place of one, as :func:`_clipped_sum` shows for gradients.
    """
    width = centre_length(model)
    found = np.zeros(trained_length(model) + width, np.float32)
    centre = found[len(found) - width :]
    if isinstance(plan, NoisySteps):
        bound = plan.max_grad_norm
        pieces = (weighted_rows(_clipping(norm_bounds(rows), bound), rows) for rows in _unit_features(data, plan.unit))
        clipped = _sum_on_grid(pieces, width, bound)
        noise = Keystream(random(SEED_BYTES))
        centre[:] = _noisy_mean(clipped, plan.noise_multiplier * bound, stated, noise).numpy()
        return found
    total = torch.zeros(width, dtype=torch.float64)
    for rows in _unit_features(data, PrivacyUnit.RECORD):
        total += rows.sum(dim=0, dtype=torch.float64)
    centre[:] = total.div_(max(1, len(data.here))).float().numpy()
    return found


def _unit_features(data: TrainingData, unit: PrivacyUnit) -> Iterator[Tensor]:
    """Yield, a few units at a time, the mean over records and copies of their features at norm 1, (units, width)."""
    units = data.units(unit)
    for piece in _pieces(data.here, units, min(CHUNK, _rows_at_once(data, math.prod(data.inputs.shape[1:])))):
        features = functional.normalize(data.take(_chosen(piece)), dim=-1)
        rows = features.mean(dim=1) if data.inputs.dim() == _WITH_COPIES else features
        yield _means_of_units(rows, units[piece])


def _for_a_part(noise: DistributedMechanism, dimension: int) -> DistributedMechanism:
    """Return the same mechanism for a part of the vector; what it books is for the whole, which is no less."""
    return replace(noise, dimension=dimension)


def _noisy_gradients(
    model: nn.Module, data: TrainingData, plan: NoisySteps, expected_units: float, stream: Keystream
) -> Iterator[Tensor]:
    """Yield the noisy mean gradient of each step of DP-SGD at the model's weights of that moment, (d,) float32."""
    if not (plan.noise_multiplier > 0 and expected_units > 0):
        raise RunError(
            f"the noise multiplier and the expected units of mode local must be above 0, got {plan.noise_multiplier} "
            f"and {expected_units}"
        )
    if plan.max_grad_norm < SMALLEST_CLIPPING_NORM:
        raise RunError(
            f"privacy.max_grad_norm must be at least {SMALLEST_CLIPPING_NORM:g} in mode local, got "
            f"{plan.max_grad_norm:g}"
        )
    deviation = plan.noise_multiplier * plan.max_grad_norm
    for batch in _poisson_batches(data, plan.unit, plan.schedule, stream):
        clipped_sum = _clipped_sum(model, data, batch, plan)
        yield _noisy_mean(clipped_sum, deviation, expected_units, stream)


def _plain_gradients(model: nn.Module, data: TrainingData, plan: PlainSteps, stream: Keystream) -> Iterator[Tensor]:
    """Yield the mean gradient of each batch of shuffled passes at the model's weights of that moment, (d,) float32."""
    for batch in _epochs(data, plan, stream):
        yield _plain_gradient(model, data, batch)


def _noisy_mean(clipped_sum: Tensor, deviation: float, expected_units: float, stream: Keystream) -> Tensor:
    """Return the sum with Gaussian noise, on the grid that the module's docstring describes, over the expected units.

    Args:
        clipped_sum: (d,) float64.
        deviation: of the noise in each coordinate, σC.
        expected_units: in a batch.
        stream: of the noise.

    Returns:
        (d,) float32; made a stretch at a time, so that the float64 stay in cache.
    """
    mean = torch.empty(len(clipped_sum), dtype=torch.float32)
    for some, some_sum in zip(torch.split(mean, NOISE_AT_ONCE), torch.split(clipped_sum, NOISE_AT_ONCE), strict=True):
        some.copy_(_noisy_sum(some_sum, deviation, stream).div_(expected_units))
    return mean


def _noisy_sum(clipped_sum: Tensor, deviation: float, stream: Keystream) -> Tensor:
    """Return float64 on the grid, before anything is divided or rounded to float32."""
    grid = 2.0 ** (math.floor(math.log2(deviation)) - GRID_BITS)
    noisy = torch.from_numpy(stream.gaussian(len(clipped_sum))).mul_(deviation).add_(clipped_sum)
    return noisy.div_(grid).round_().mul_(grid)


def _clipped_sum(model: nn.Module, data: TrainingData, batch: Tensor, clipping: Clipping) -> Tensor:
    """Return the sum of the batch's unit gradients, each clipped to ``max_grad_norm``: (d,) float64, without noise.

    For any weights and records, putting an empty unit in the place of one moves the sum by at most C in L2 norm:

    1. The batch is summed in pieces whose places the records' numbers alone decide. An empty unit keeps its place, so
       every other piece is the same to the last bit, and in its own piece every other record's gradient is.
    2. In its own piece the unit's share w_i G_i is at most C(1 - SLACK), as what it is clipped by is a certain upper
       bound of its norm. What float32 loses of the piece's sum adds at most SUM_ERROR x C, with the unit and without.
    3. Each piece is rounded to a grid of at most 2^-28 C. That moves it by at most √d·2^-29 C, below 2^-16 C for
       d ≤ 2^26, again with the unit and without.
    4. Pieces on the grid are added in float64, exactly for up to 2^24 units.

    Together C(1 - 2^-10) + 2·(3.5e-4 + 2^-16)·C < C. A unit whose gradient is not finite counts as zero.
    """
    parameters = trained_length(model)
    return _sum_on_grid(_clipped_pieces(model, data, batch, clipping, parameters), parameters, clipping.max_grad_norm)


def _sum_on_grid(pieces: Iterator[Tensor], length: int, bound: float) -> Tensor:
    """Return the sum of clipped pieces, (length,) float64, each rounded to the grid of :func:`_clipped_sum`."""
    total = torch.zeros(length, dtype=torch.float64)
    grid = 2.0 ** (math.floor(math.log2(bound)) - SUM_BITS)
    for piece_sum in pieces:
        total += piece_sum.mul_(1 / grid).round_()
    return total.mul_(grid)


def _clipped_pieces(
    model: nn.Module, data: TrainingData, batch: Tensor, clipping: Clipping, parameters: int
) -> Iterator[Tensor]:
    """Yield the clipped sum of each piece of a batch, (d,)."""
    by_row = isinstance(model, ByRecord) or data.inputs.dim() == _WITH_COPIES or not is_cpu(_device_of(model))
    if clipping.unit is PrivacyUnit.PATIENT or by_row:
        units = data.units(clipping.unit)
        for piece in _pieces(batch, units, min(CHUNK, _rows_at_once(data, parameters))):
            rows = _unit_gradients(model, data, piece, units[piece])
            yield weighted_rows(_clipping(norm_bounds(rows), clipping.max_grad_norm), rows)
        return
    for piece in torch.split(batch, _clipped_at_once(data)) if len(batch) else ():
        gradients = record_gradients(model, _as_input(data.take(piece)), data.labels[piece])
        yield gradients.weighted_sum(_clipping(gradients.norms(), clipping.max_grad_norm))


def _unit_gradients(model: nn.Module, data: TrainingData, records: Tensor, units: Tensor) -> Tensor:
    """Return one row a unit, (units, trained parameters): the mean gradient of its records, each over its copies."""
    return _means_of_units(_record_rows(model, data, records), units)


def _chosen(records: Tensor) -> Tensor | slice:
    """Return records that stand side by side as a slice, which is read where it is and not copied."""
    first, last = int(records[0]), int(records[-1]) + 1
    return slice(first, last) if last - first == len(records) and bool((records.diff() == 1).all()) else records


def _means_of_units(rows: Tensor, units: Tensor) -> Tensor:
    """Return the mean of each unit's rows, (units, elements), in the order of the units' numbers."""
    _, members, sizes = torch.unique(units, return_inverse=True, return_counts=True)
    if len(sizes) == len(rows):
        return rows
    return torch.zeros(len(sizes), rows.shape[1]).index_add_(0, members, rows).div_(sizes[:, None])


def _record_rows(model: nn.Module, data: TrainingData, records: Tensor) -> Tensor:
    """Return every record's gradient, (records, trained parameters) float32 on the CPU, wherever it is computed."""
    device = _device_of(model)

    def rows(some: Tensor) -> Tensor:
        chosen = _chosen(some)
        inputs, labels = _as_input(data.take(chosen).to(device)), data.labels[chosen].to(device)
        if inputs.dim() == _WITH_COPIES:
            return mean_gradient_rows(model, inputs, labels)
        return record_gradients(model, inputs, labels, as_rows=True).rows()

    if is_cpu(device):
        return rows(records)
    at_once = rows_that_fit(device, trained_length(model), len(records))
    return torch.cat(list(in_pieces(records, at_once, lambda some: rows(some).cpu())))


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def scores(
    model: nn.Module,
    flat: NDArray[np.float32],
    validation: TrainingData,
    test: TrainingData,
    classes: int,
    device: torch.device = CPU,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a model's scores on a hospital's validation and test part, (records · copies, classes) each.

    The scores of a record's copies stand one after the other; of a record that is gone there are none. They are finite
    whatever the model is; its parameters are overwritten.
    """
    share_parameters(model.to(device), torch.from_numpy(flat.copy()).to(device))
    return _scores(model, validation, classes), _scores(model, test, classes)


def evaluate(
    model: nn.Module,
    flat: NDArray[np.float32],
    validation: TrainingData,
    test: TrainingData,
    shape: EvaluationShape,
) -> EvaluationCounts:
    """Return the counts of a model on a hospital's validation and test part; its parameters are overwritten."""
    share_parameters(model, torch.from_numpy(flat.copy()))
    return EvaluationCounts(validation=_count(model, validation, shape), test=_count(model, test, shape))


def logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the model's scores, (n, …, classes) float32, at least one record, in pieces that fit in memory.

    Scores beyond ±LARGEST_LOGIT are cut to it, and one that is undefined is 0: a model that a server made to overflow
    on a single record must not show it.
    """
    return _logits(model, torch.arange(len(inputs)), lambda some: inputs[_chosen(some)], math.prod(inputs.shape[1:]))


def _logits(model: nn.Module, records: Tensor, take: Callable[[Tensor], Tensor], elements: int) -> Tensor:
    """Return the scores of records of so many elements each, which ``take`` reads a piece at a time."""
    model.eval()
    device = _device_of(model)
    size = max(1, EVALUATION_PIXELS // max(1, elements))
    with torch.inference_mode():
        pieces = in_pieces(records, size, lambda some: model(_as_input(take(some).to(device))).cpu())
        return torch.nan_to_num(torch.cat(list(pieces)), nan=0.0).clamp_(-LARGEST_LOGIT, LARGEST_LOGIT)


def _scores(model: nn.Module, part: TrainingData, classes: int) -> NDArray[np.float32]:
    if not len(part):
        return np.zeros((0, classes), np.float32)
    elements = math.prod(part.inputs.shape[1:])
    told = _logits(model, torch.arange(len(part)), lambda some: part.take(_chosen(some)), elements)
    found: NDArray[np.float32] = told[part.here].reshape(-1, classes).numpy()
    return found


def _count(model: nn.Module, part: TrainingData, shape: EvaluationShape) -> PartCounts:
    return count(_scores(model, part, shape.classes), part.of_copies(part.labels), shape)


def _plain_gradient(model: nn.Module, data: TrainingData, batch: Tensor) -> Tensor:
    """Return the mean gradient of the batch's cross-entropy, (d,) float32; zeros where that is not finite."""
    device = _device_of(model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def of_piece(piece: Tensor) -> tuple[Tensor | None, ...]:
        inputs = _as_input(data.take(piece).to(device))
        labels = data.labels[piece].repeat_interleave(data.copies, dim=0).to(device)
        logits = model(inputs).flatten(0, -2)  # The copies of a record one after the other.
        loss = summed_loss(logits, labels) / (len(batch) * data.copies)
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    total: Sequence[Tensor | None] = [None] * len(parameters)
    for gradients in in_pieces(batch, _physical_batch(data), of_piece):
        # Never in place: what autograd returns may be a view of something else.
        total = [one if other is None else other if one is None else other + one
                 for one, other in zip(gradients, total, strict=True)]  # fmt: skip
    found = [torch.zeros_like(own) if each is None else each for own, each in zip(parameters, total, strict=True)]
    gradient = torch.cat([each.reshape(-1) for each in found]).cpu()
    # Both ends are finite where all are: NaN is passed on.
    return gradient if bool(torch.isfinite(torch.stack(torch.aminmax(gradient))).all()) else torch.zeros_like(gradient)


def _poisson_batches(data: TrainingData, unit: PrivacyUnit, schedule: Schedule, stream: Keystream) -> Iterator[Tensor]:
    """Yield the record numbers of each step's batch: every unit in or out by its own secret coin."""
    units, count = data.units(unit), data.count(unit)
    for _ in range(schedule.steps):
        chosen = torch.from_numpy(stream.uniform(count) < schedule.sample_rate)
        yield (chosen[units] & ~data.gone).nonzero()[:, 0]


def _epochs(data: TrainingData, plan: PlainSteps, stream: Keystream) -> Iterator[Tensor]:
    """Yield the record numbers of each batch of ``local_epochs`` shuffled passes."""
    here = data.here
    for _ in range(plan.local_epochs):
        order = np.argsort(stream.uniform(len(here)), kind="stable")
        yield from torch.split(here[torch.from_numpy(order)], plan.batch_size)


def _pieces(batch: Tensor, units: Tensor, size: int) -> Iterator[Tensor]:
    """Split a batch into pieces of at most ``size`` records, or one unit, that never part the records of a unit."""
    ordered = batch[units[batch].argsort(stable=True)]
    start = end = 0
    for records in torch.unique_consecutive(units[ordered], return_counts=True)[1].tolist():
        if end > start and end + records - start > size:
            yield ordered[start:end]
            start = end
        end += records
    if end > start:
        yield ordered[start:end]


def _physical_batch(data: TrainingData) -> int:
    """Return how many records to take at once: what keeps activations within memory."""
    return max(1, PHYSICAL_PIXELS // math.prod(data.inputs.shape[1:]))


def _rows_at_once(data: TrainingData, row_length: int) -> int:
    """Return how many records' gradients to hold as rows: within memory, and of features as fit in a core's cache."""
    elements = ROW_ELEMENTS if data.inputs.dtype == torch.uint8 else CACHED_FEATURES
    return max(1, min(_physical_batch(data), elements // row_length))


def _clipped_at_once(data: TrainingData) -> int:
    """Return how many records to clip at once: images as memory allows, features as fit in a core's cache."""
    most = min(MOST_RECORDS, _physical_batch(data))
    if data.inputs.dtype == torch.uint8:
        return most
    at_once = max(1, min(most, CACHED_FEATURES // math.prod(data.inputs.shape[1:])))
    return at_once - at_once % CHUNK if at_once > CHUNK else at_once


def _clipping(norms: Tensor, max_grad_norm: float) -> Tensor:
    """Return by what each gradient is multiplied, (units,) float64; 0 where the norm is infinite."""
    return (max_grad_norm * (1 - SLACK) / norms).clamp_(max=1.0)


def _as_input(inputs: Tensor) -> Tensor:
    """Return float32 in [-1, 1] for images, features as they are; the scale is a constant, learnt from no data."""
    return inputs.to(torch.float32).div_(127.5).sub_(1.0) if inputs.dtype == torch.uint8 else inputs
