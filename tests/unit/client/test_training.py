import math
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from client import training as module
from client.per_record_gradients import (
    CHUNK,
    GRAM_MARGIN,
    MOST_POSITIONS,
    MOST_RECORDS,
    SUM_ERROR,
    RecordGradients,
    mean_gradient_rows,
    norm_bounds,
    record_gradients,
)
from client.training import LocalUpdate, TrainingData, evaluate, noisy_gradient_sum, scores
from common.config import PrivacyConfig, PrivacyMode, PrivacyUnit, TrainingConfig
from common.errors import DataError, RunError
from common.evaluation import EvaluationShape, count
from common.keystream import Keystream
from common.models.centred import CentredModel, trained_length
from common.models.cnn import SmallCnn
from common.models.flat import flat_parameters, share_parameters
from common.models.heads import linear_head, mlp_head
from common.privacy.distributed import LARGEST_DIMENSION, DistributedMechanism
from common.privacy.mechanism import DistributedNoise, LocalNoise, NoisySteps, NoisySum, PlainSteps
from common.privacy.schedule import Schedule

torch.set_num_threads(1)

NONE = PrivacyConfig(mode=PrivacyMode.NONE)
LOCAL = PrivacyConfig(mode=PrivacyMode.LOCAL, max_grad_norm=0.5)


def features(records: int = 60, width: int = 6, seed: int = 0, per_patient: int = 1) -> TrainingData:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, records)
    inputs = rng.standard_normal((records, width)).astype(np.float32)
    inputs[:, 0] += 2 * labels
    return TrainingData.of(inputs, labels, np.arange(records) // per_patient)


def linear(width: int = 6) -> tuple[nn.Module, NDArray[np.float32]]:
    torch.manual_seed(0)
    model = nn.Linear(width, 2)
    return model, flat_parameters(model)


def train_locally(
    model: nn.Module,
    start: NDArray[np.float32],
    data: TrainingData,
    training: TrainingConfig,
    privacy: PrivacyConfig,
    sigma: float,
    random: Callable[[int], bytes],
    expected_units: float = 6.0,
) -> LocalUpdate:
    """Train with an expected batch that has nothing to do with the data."""
    plan = plan_of(training, privacy, sigma)
    return module.train_locally(model, start, data, training, plan, random, expected_units=expected_units)


def plan_of(training: TrainingConfig, privacy: PrivacyConfig, sigma: float) -> PlainSteps | NoisySteps:
    if privacy.mode is PrivacyMode.NONE:
        return PlainSteps(training.batch_size, training.local_epochs)
    return NoisySteps(privacy.unit, LocalNoise(privacy).schedule(training), privacy.max_grad_norm, sigma)


def sum_of(mechanism: DistributedMechanism, sample_rate: float) -> NoisySum:
    return NoisySum(PrivacyUnit.RECORD, sample_rate, mechanism)


def seeded(seed: int) -> Callable[[int], bytes]:
    return np.random.default_rng(seed).bytes


def loss(model: nn.Module, flat: NDArray[np.float32], data: TrainingData) -> float:
    share_parameters(model, torch.from_numpy(flat.copy()))
    with torch.inference_mode():
        return float(functional.cross_entropy(model(data.inputs), data.labels))


def test_plain_training_of_one_full_batch_is_one_step_of_gradient_descent() -> None:
    model, start = linear()
    data = features()
    update = train_locally(model, start, data, TrainingConfig(batch_size=60, learning_rate=0.3), NONE, 0.0, os.urandom)
    reference = nn.Linear(6, 2)
    share_parameters(reference, torch.from_numpy(start.copy()))
    functional.cross_entropy(reference(data.inputs), data.labels).backward()  # type: ignore[no-untyped-call]
    gradient = np.concatenate([p.grad.numpy().ravel() for p in reference.parameters() if p.grad is not None])
    assert update.steps == 1
    assert np.allclose(update.delta, -0.3 * gradient, atol=1e-6)


def test_plain_training_looks_at_each_record_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = module._plain_gradient

    def spy(model: nn.Module, data: TrainingData, batch: torch.Tensor) -> torch.Tensor:
        seen.extend(batch.tolist())
        return original(model, data, batch)

    monkeypatch.setattr(module, "_plain_gradient", spy)
    model, start = linear()
    train_locally(model, start, features(), TrainingConfig(batch_size=16, local_epochs=2), NONE, 0.0, os.urandom)
    assert sorted(seen) == sorted(2 * list(range(60)))
    assert seen[:60] != sorted(seen[:60])


def test_the_same_random_bytes_give_the_same_update_and_others_another() -> None:
    model, start = linear()
    setting = TrainingConfig(batch_size=16, momentum=0.5)
    for privacy, sigma in ((NONE, 0.0), (LOCAL, 1.0)):
        one, same, other = (
            train_locally(model, start, features(), setting, privacy, sigma, seeded(seed)).delta for seed in (1, 1, 2)
        )
        assert np.array_equal(one, same)
        assert not np.array_equal(one, other)


def test_training_leaves_the_rounds_model_as_it_was() -> None:
    model, start = linear()
    kept = start.copy()
    train_locally(model, start, features(), TrainingConfig(batch_size=16), LOCAL, 1.0, os.urandom)
    assert np.array_equal(start, kept)


def test_private_training_without_clipping_and_with_hardly_any_noise_learns() -> None:
    model, start = linear()
    data = features(400)
    loose = PrivacyConfig(mode=PrivacyMode.LOCAL, max_grad_norm=100.0)
    setting = TrainingConfig(sample_rate=0.25, local_epochs=10, learning_rate=0.5)
    update = train_locally(model, start, data, setting, loose, 1e-9, os.urandom, 100.0)
    assert loss(model, start + update.delta, data) < 0.6 * loss(model, start, data)


def test_one_private_step_is_the_clipped_sum_over_the_expected_batch_plus_noise_of_the_stated_size() -> None:
    width = 4000
    model = nn.Linear(width, 2)
    start = np.zeros(2 * width + 2, np.float32)
    data = features(50, width)
    setting = TrainingConfig(sample_rate=1.0, learning_rate=1.0)
    sigma = 3.0
    # The divisor is what the hospital states, 80, and not the 50 records that it has.
    update = train_locally(model, start, data, setting, LOCAL, sigma, os.urandom, 80.0)
    share_parameters(model, torch.from_numpy(start.copy()))
    rows = record_gradients(model, data.inputs, data.labels, as_rows=True).rows()
    bound = 0.5 * (1 - module.SLACK)
    clipped = rows * (bound / rows.norm(dim=1, keepdim=True)).clamp(max=1.0)
    noise = -update.delta * 80 - clipped.sum(dim=0).numpy()
    # 8,002 coordinates: the sample deviation is within 5 of its own deviations, σC/√(2d).
    assert abs(noise.std() - sigma * 0.5) < 5 * sigma * 0.5 / math.sqrt(2 * noise.size)
    assert abs(noise.mean()) < 5 * sigma * 0.5 / math.sqrt(noise.size)


def test_the_noisy_sum_lies_on_a_grid_that_does_not_depend_on_the_data() -> None:
    for deviation, step in ((1.0, 2.0**-24), (0.9, 2.0**-25), (3.0, 2.0**-23)):
        for sums in (torch.zeros(500), torch.full((500,), 0.25), torch.rand(500), torch.full((500,), 1e3)):
            data = sums.double()
            noisy = module._noisy_sum(data, deviation, Keystream(bytes(32)))
            assert noisy.dtype == torch.float64
            assert torch.equal((noisy / step).round() * step, noisy)
            assert not torch.equal((noisy / (4 * step)).round() * 4 * step, noisy)


def test_what_is_applied_is_the_noisy_sum_over_the_expected_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NOISE_AT_ONCE", 7)
    data = torch.linspace(0, 1e3, 40, dtype=torch.float64)
    stream, same = Keystream(bytes(32)), Keystream(bytes(32))
    mean = module._noisy_mean(data, 0.9, 12.5, stream)
    stretches = [module._noisy_sum(stretch, 0.9, same) for stretch in torch.split(data, 7)]
    assert torch.equal(mean, (torch.cat(stretches) / 12.5).float())


def test_features_clipped_as_they_fit_in_cache_give_the_sum_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = linear()
    data = features(40)
    whole = module._clipped_sum(model, data, torch.arange(40), LOCAL)
    sizes: list[int] = []

    def spy(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> RecordGradients:
        sizes.append(len(labels))
        return record_gradients(model, inputs, labels)

    monkeypatch.setattr(module, "record_gradients", spy)
    monkeypatch.setattr(module, "CACHED_FEATURES", 6 * 16)
    assert torch.allclose(module._clipped_sum(model, data, torch.arange(40), LOCAL), whole, atol=1e-6)
    assert sizes == [16, 16, 8]


def test_no_record_moves_the_clipped_sum_by_more_than_the_clipping_bound() -> None:
    torch.manual_seed(1)
    model = SmallCnn(2, 1)
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (12, 1, 28, 28), dtype=np.uint8)
    data = TrainingData.of(images, rng.integers(0, 2, 12), np.arange(12))
    tight = PrivacyConfig(max_grad_norm=0.01)
    everyone = module._clipped_sum(model, data, torch.arange(12), tight)
    for left_out in range(12):
        others = torch.tensor([record for record in range(12) if record != left_out])
        moved = everyone - module._clipped_sum(model, data, others, tight)
        assert float(moved.norm()) <= 0.01


def test_no_patient_moves_the_clipped_sum_by_more_than_the_clipping_bound() -> None:
    model, _ = linear()
    data = features(30, per_patient=6)
    tight = PrivacyConfig(max_grad_norm=0.05, unit=PrivacyUnit.PATIENT)
    everyone = module._clipped_sum(model, data, torch.arange(30), tight)
    for patient in range(5):
        others = (data.patients != patient).nonzero()[:, 0]
        moved = everyone - module._clipped_sum(model, data, others, tight)
        assert 0.01 < float(moved.norm()) <= 0.05


@pytest.mark.parametrize("unit", PrivacyUnit)
def test_a_batch_summed_in_pieces_is_the_batch_summed_at_once(
    unit: PrivacyUnit, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = linear()
    data = features(40, per_patient=3)
    privacy = PrivacyConfig(max_grad_norm=0.1, unit=unit)
    whole = module._clipped_sum(model, data, torch.arange(40), privacy)
    monkeypatch.setattr(module, "PHYSICAL_PIXELS", 6 * 7)
    assert torch.allclose(module._clipped_sum(model, data, torch.arange(40), privacy), whole, atol=1e-6)


def test_pieces_never_part_the_records_of_a_patient() -> None:
    units = torch.tensor([3, 1, 3, 0, 1, 3, 2, 3])
    pieces = list(module._pieces(torch.arange(8), units, 3))
    assert sorted(torch.cat(pieces).tolist()) == list(range(8))
    for piece in pieces:
        assert len(piece) <= 3 or len(set(units[piece].tolist())) == 1
    homes = [set(units[piece].tolist()) for piece in pieces]
    assert sum(len(home) for home in homes) == 4


def test_poisson_batches_take_each_unit_with_the_stated_probability_and_independently() -> None:
    plan = Schedule(sample_rate=0.1, steps=2000)
    batches = list(module._poisson_batches(features(200), PrivacyUnit.RECORD, plan, Keystream(bytes(32))))
    sizes = np.array([len(batch) for batch in batches])
    assert len(batches) == 2000
    assert abs(sizes.mean() - 20) < 5 * math.sqrt(18 / 2000)
    assert abs(sizes.var() - 18) < 5 * 18 * math.sqrt(2 / 2000)
    times = np.bincount(torch.cat(batches).numpy(), minlength=200)
    assert np.abs(times - 200).max() < 5 * math.sqrt(180)


def test_a_patient_enters_a_batch_with_all_records_or_none() -> None:
    data = features(60, per_patient=4)
    plan = Schedule(sample_rate=0.3, steps=50)
    for batch in module._poisson_batches(data, PrivacyUnit.PATIENT, plan, Keystream(bytes(32))):
        assert all(count == 4 for count in np.bincount(data.patients[batch].numpy()) if count)


def test_an_empty_batch_is_a_step_of_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(_: TrainingData, __: PrivacyUnit, plan: Schedule, ___: Keystream) -> list[torch.Tensor]:
        return [torch.zeros(0, dtype=torch.int64)] * plan.steps

    monkeypatch.setattr(module, "_poisson_batches", empty)
    model, start = linear()
    update = train_locally(model, start, features(), TrainingConfig(sample_rate=0.35), LOCAL, 1.0, os.urandom)
    assert update.steps == 3
    assert np.abs(update.delta).min() > 0


def test_the_schedule_is_what_the_ledger_books_and_knows_nothing_of_the_data() -> None:
    setting = TrainingConfig(batch_size=24, sample_rate=0.07, local_epochs=2)
    assert LocalNoise(LOCAL).schedule(setting) == Schedule(0.07, 2 * 15)
    assert DistributedNoise(PrivacyConfig(mode=PrivacyMode.DISTRIBUTED)).schedule(setting) == Schedule(0.07, 1)
    model, start = linear()
    for records in (0, 1, 100):
        assert train_locally(model, start, features(records), setting, LOCAL, 1.0, os.urandom).steps == 30


def test_sampling_and_noise_come_from_the_bytes_that_are_drawn() -> None:
    """A constant key would let whoever knows the code subtract the noise."""
    model, start = linear()
    updates = [
        train_locally(model, start, features(0), TrainingConfig(sample_rate=1.0), LOCAL, 1.0, os.urandom).delta
        for _ in range(2)
    ]
    assert not np.allclose(updates[0], updates[1])
    mechanism = DistributedMechanism(1.0, 0.5, 2**12, 14, 0, 1)
    sums = [
        noisy_gradient_sum(model, start, features(0), sum_of(mechanism, 1.0), 4, os.urandom).total for _ in range(2)
    ]
    assert not np.array_equal(sums[0], sums[1])
    batches = [
        torch.cat(list(module._poisson_batches(features(90), PrivacyUnit.RECORD, Schedule(0.5, 3), Keystream(key))))
        for key in (os.urandom(32), os.urandom(32))
    ]
    assert batches[0].tolist() != batches[1].tolist()


def test_in_mode_local_each_steps_batch_follows_the_key_that_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[list[int]] = []
    original = module._clipped_sum

    def spy(model: nn.Module, data: TrainingData, batch: torch.Tensor, privacy: PrivacyConfig) -> torch.Tensor:
        batches.append(batch.tolist())
        return original(model, data, batch, privacy)

    monkeypatch.setattr(module, "_clipped_sum", spy)
    model, start = linear()
    for letter in (b"a", b"a", b"b"):
        source = Keystream(32 * letter).draw
        train_locally(model, start, features(), TrainingConfig(sample_rate=0.5), LOCAL, 1.0, source)
    first, second, same, same_second, other, other_second = batches
    assert (first, second) == (same, same_second)
    assert len({tuple(each) for each in (first, second, other, other_second)}) == 4


def test_in_mode_distributed_sampling_and_noise_each_follow_a_key_of_their_own() -> None:
    model, start = linear()
    mechanism = DistributedMechanism(1.0, 0.5, 2**12, 14, 0, 1)

    def clipped_batch(sampling: bytes, noise: bytes) -> list[int]:
        """Return the sum less the noise that the second key gives."""
        keys = iter((sampling, noise))
        part = noisy_gradient_sum(model, start, features(), sum_of(mechanism, 0.5), 4, lambda count: count * next(keys))
        share: list[int] = (part.total - mechanism.noise_share(4, Keystream(32 * noise))).tolist()
        return share

    one = clipped_batch(b"a", b"x")
    assert clipped_batch(b"a", b"y") == one
    assert clipped_batch(b"b", b"x") != one


@pytest.mark.parametrize("expected_units", [5.0, 37.0])
def test_the_divisor_is_the_stated_one_whatever_batch_was_drawn(
    expected_units: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, start = linear()
    data = features(40)
    drawn: list[torch.Tensor] = []
    original = module._clipped_sum

    def spy(model: nn.Module, data: TrainingData, batch: torch.Tensor, privacy: PrivacyConfig) -> torch.Tensor:
        drawn.append(original(model, data, batch, privacy))
        return drawn[-1].clone()

    monkeypatch.setattr(module, "_clipped_sum", spy)
    setting = TrainingConfig(sample_rate=0.5, learning_rate=1.0, momentum=0.0)
    update = train_locally(model, start, data, setting, LOCAL, 1e-9, os.urandom, expected_units)
    assert len(drawn) == 2
    assert np.allclose(update.delta, -(drawn[0] + drawn[1]).numpy() / expected_units, atol=1e-6)


@pytest.mark.parametrize("mode", [PrivacyMode.LOCAL, PrivacyMode.DISTRIBUTED])
def test_who_is_in_a_batch_comes_from_the_bytes_that_are_drawn(
    monkeypatch: pytest.MonkeyPatch, mode: PrivacyMode
) -> None:
    """Sampling hides who took part, and every ε counts on that: noise that is fresh does not make up for it."""
    model, start = linear()
    data = features(90)
    privacy = PrivacyConfig(mode=mode, max_grad_norm=0.5)
    taken: list[list[int]] = []

    def seen(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, *, as_rows: bool = False) -> RecordGradients:
        taken.append(inputs.flatten().tolist())
        return record_gradients(model, inputs, labels, as_rows=as_rows)

    monkeypatch.setattr(module, "record_gradients", seen)
    mechanism = DistributedMechanism(1.0, 0.5, 2**12, 14, 0, 1)
    batches = []
    for seed in (1, 2):
        taken.clear()
        if mode is PrivacyMode.LOCAL:
            train_locally(model, start, data, TrainingConfig(sample_rate=0.5), privacy, 1.0, seeded(seed))
        else:
            noisy_gradient_sum(model, start, data, sum_of(mechanism, 0.5), 4, seeded(seed))
        assert taken
        batches.append([*taken])
    assert batches[0] != batches[1]


@pytest.mark.parametrize("plan", [PlainSteps(20, 2), NoisySteps(PrivacyUnit.RECORD, Schedule(0.5, 3), 0.5, 1.0)])
def test_sampling_is_the_plans_whatever_the_optimisers_settings_say(plan: PlainSteps | NoisySteps) -> None:
    """What the ledger books is the plan's event, so nothing else may decide how often a record is looked at."""
    model, start = linear()
    settings = (TrainingConfig(), TrainingConfig(batch_size=7, sample_rate=0.9, local_epochs=5))
    one, other = (
        module.train_locally(model, start, features(), setting, plan, seeded(1), expected_units=30.0)
        for setting in settings
    )
    assert one.steps == other.steps
    assert np.array_equal(one.delta, other.delta)


def test_momentum_and_the_proximal_term_act_as_written() -> None:
    model, start = linear()
    data = features()
    setting = TrainingConfig(batch_size=60, local_epochs=3, learning_rate=0.2, momentum=0.5, proximal_mu=0.7)
    update = train_locally(model, start, data, setting, NONE, 0.0, os.urandom)
    reference = nn.Linear(6, 2)
    weights = torch.from_numpy(start.copy())
    share_parameters(reference, weights)
    optimiser = torch.optim.SGD(reference.parameters(), lr=0.2, momentum=0.5)
    for _ in range(3):
        optimiser.zero_grad()
        distance = sum(
            (parameter - torch.from_numpy(anchor)).square().sum()
            for parameter, anchor in zip(
                reference.parameters(), (start[:12].reshape(2, 6).copy(), start[12:].copy()), strict=True
            )
        )
        objective = functional.cross_entropy(reference(data.inputs), data.labels) + 0.35 * distance
        objective.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert np.allclose(start + update.delta, weights.numpy(), atol=1e-5)


def test_training_in_mode_distributed_or_without_noise_is_refused() -> None:
    model, start = linear()
    plan: Any = sum_of(DistributedMechanism(1.0, 0.5, 2**12, 14, 0, 1), 1.0)
    with pytest.raises(RunError, match="gradient sum"):
        module.train_locally(model, start, features(), TrainingConfig(), plan, os.urandom, expected_units=6.0)
    for sigma in (0.0, -1.0, math.nan):
        with pytest.raises(RunError, match="noise multiplier"):
            train_locally(model, start, features(), TrainingConfig(), LOCAL, sigma, os.urandom)


def test_what_clipping_keeps_back_pays_for_all_that_float32_can_lose() -> None:
    """The sums of the proofs in ``_clipped_sum`` and in ``client/per_record_gradients.py``, with the constants used."""
    in_float32 = (CHUNK + 3) * CHUNK * 2.0**-24 * (1 + 2.0**-10)
    in_float64 = 2 * (MOST_RECORDS * MOST_POSITIONS + 2) * 2.0**-53 * MOST_RECORDS / math.sqrt(GRAM_MARGIN)
    to_float32 = MOST_RECORDS * 2.0**-24
    assert in_float32 + in_float64 + to_float32 < SUM_ERROR
    of_the_grid = math.sqrt(LARGEST_DIMENSION) * 2.0 ** -(module.SUM_BITS + 1)
    for bound, norm in ((1.0, 7.0), (1e-6, 1e15), (1e6, 1e6), (0.3, 0.3)):
        share = norm * float(module._clipping(torch.tensor([norm], dtype=torch.float64), bound))
        assert 0.999 * bound <= share <= bound * (1 - 2 * (SUM_ERROR + of_the_grid))
    nothing, everything = module._clipping(torch.tensor([math.inf, 0.0], dtype=torch.float64), 1.0).tolist()
    assert (nothing, everything) == (0.0, 1.0)


def test_a_clipping_bound_too_small_for_float32_is_refused() -> None:
    model, start = linear()
    tiny = PrivacyConfig(mode=PrivacyMode.LOCAL, max_grad_norm=1e-7)
    with pytest.raises(RunError, match="max_grad_norm must be at least 1e-06"):
        train_locally(model, start, features(), TrainingConfig(), tiny, 1.0, os.urandom)


@pytest.mark.parametrize(("privacy", "sigma"), [(NONE, 0.0), (LOCAL, 1.0)])
def test_training_that_diverges_gives_a_finite_change_and_no_error(privacy: PrivacyConfig, sigma: float) -> None:
    """An error would tell the server that a model of its making has overflowed on some record."""
    model, start = linear()
    setting = TrainingConfig(batch_size=16, sample_rate=0.3, learning_rate=1000.0, proximal_mu=1000.0, local_epochs=40)
    for first in (start, np.full_like(start, 3.4e38), np.where(np.arange(14) % 2, 3.4e38, -3.4e38).astype(np.float32)):
        assert np.isfinite(train_locally(model, first, features(), setting, privacy, sigma, os.urandom).delta).all()


def test_the_change_is_not_lost_in_weights_that_are_too_large_to_show_it() -> None:
    model, start = linear()
    huge = np.full_like(start, 3e38)
    update = train_locally(model, huge, features(), TrainingConfig(sample_rate=1.0), LOCAL, 1.0, os.urandom)
    assert np.abs(update.delta).min() > 0


def test_too_many_units_are_cut_to_a_subset_that_the_seed_fixes() -> None:
    data = features(60, per_patient=4)
    few = data.limited(5, PrivacyUnit.PATIENT, b"run")
    assert (few.count(PrivacyUnit.PATIENT), len(few)) == (5, 20)
    assert torch.equal(few.take(slice(None)), data.limited(5, PrivacyUnit.PATIENT, b"run").take(slice(None)))
    assert not torch.equal(few.take(slice(None)), data.limited(5, PrivacyUnit.PATIENT, b"another").take(slice(None)))
    assert data.limited(15, PrivacyUnit.PATIENT, b"run") is data
    assert data.at_most_per_patient(4, b"run") is data
    thinned = data.at_most_per_patient(3, b"run")
    assert torch.bincount(thinned.patients).tolist() == [3] * 15
    assert torch.equal(thinned.take(slice(None)), data.at_most_per_patient(3, b"run").take(slice(None)))
    assert not torch.equal(thinned.take(slice(None)), data.at_most_per_patient(3, b"another").take(slice(None)))
    assert len(data.emptied()) == data.emptied().count(PrivacyUnit.RECORD) == 0


@pytest.mark.parametrize("unit", PrivacyUnit)
def test_a_run_that_takes_fewer_units_than_there_are_copies_none_of_their_images(
    monkeypatch: pytest.MonkeyPatch, unit: PrivacyUnit
) -> None:
    at_once = 4
    monkeypatch.setattr(module, "CACHED_FEATURES", at_once * 6)
    monkeypatch.setattr(module, "EVALUATION_PIXELS", at_once * 6)
    data, (model, start) = features(60, per_patient=2), linear()
    few = data.limited(17, unit, b"run").at_most_per_patient(1, b"run")
    assert few.inputs.data_ptr() == data.inputs.data_ptr()
    assert data.emptied().inputs.data_ptr() == data.inputs.data_ptr()
    alone = TrainingData.of(few.take(slice(None)).numpy(), few.labels.numpy(), few.patients.numpy())
    read, take = [], TrainingData.take

    def counted(self: TrainingData, records: torch.Tensor | slice) -> torch.Tensor:
        taken = take(self, records)
        read.append(len(taken))
        return taken

    monkeypatch.setattr(TrainingData, "take", counted)
    privacy, training = LOCAL.model_copy(update={"unit": unit}), TrainingConfig(sample_rate=1.0)
    found, expected = (train_locally(model, start, each, training, privacy, 1.0, seeded(2)) for each in (few, alone))
    assert np.array_equal(found.delta, expected.delta)
    found_scores, expected_scores = (scores(model, start, each, each, 2) for each in (few, alone))
    assert np.array_equal(found_scores[0], expected_scores[0])
    assert 0 < max(read) <= at_once


@pytest.mark.parametrize("value", [3.4e38, -3.4e38])
def test_scores_are_finite_whatever_the_model(value: float) -> None:
    model, start = linear()
    empty = features(0)
    for weights in (np.full_like(start, value), np.where(np.arange(14) % 2, value, -value).astype(np.float32)):
        for found in scores(model, weights, features(9), empty, 2):
            assert np.isfinite(found).all()
            assert np.abs(found).max(initial=0) <= module.LARGEST_LOGIT
    assert scores(model, start, empty, empty, 2)[0].shape == (0, 2)


def test_a_sum_of_distributed_gradients_decodes_to_the_clipped_sum_of_all_hospitals() -> None:
    model, start = linear()
    hospitals = [features(seed=seed) for seed in range(4)]
    mechanism = DistributedMechanism.fit(
        noise_multiplier=0.01,
        max_grad_norm=0.5,
        dimension=14,
        hospitals=4,
        expected_units=240,
        colluders=0,
        tolerated_dropouts=1,
        modulus_bits=32,
    )
    distributed = PrivacyConfig(mode=PrivacyMode.DISTRIBUTED, max_grad_norm=0.5)
    plan = sum_of(mechanism, 1.0)
    parts = [noisy_gradient_sum(model, start, data, plan, 4, os.urandom) for data in hospitals]
    share_parameters(model, torch.from_numpy(start.copy()))
    # Whole numbers are clipped exactly, so mode distributed needs no margin; here it is taken back for comparison.
    without_margin = distributed.model_copy(update={"max_grad_norm": 0.5 / (1 - module.SLACK)})
    expected = sum(module._clipped_sum(model, data, torch.arange(60), without_margin) for data in hospitals)
    decoded = mechanism.decode(np.sum([part.total for part in parts], axis=0))
    assert np.abs(decoded - torch.as_tensor(expected).numpy()).max() < 0.05


def test_the_unit_gradients_of_patients_are_means_over_their_records() -> None:
    model, _ = linear()
    data = features(9, per_patient=3)
    rows = module._unit_gradients(model, data, torch.arange(9), data.patients)
    alone = record_gradients(model, data.inputs, data.labels, as_rows=True).rows()
    assert torch.allclose(rows, alone.view(3, 3, -1).mean(dim=1), atol=1e-6)


def test_evaluation_counts_both_parts_apart_from_each_other() -> None:
    model, flat = linear()
    shape = EvaluationShape(classes=2, bins=16)
    validation, test = features(10, seed=1), features(21, seed=2)
    counts = evaluate(model, flat, validation, test, shape)
    share_parameters(model, torch.from_numpy(flat.copy()))
    with torch.inference_mode():
        expected = count(model(test.inputs).numpy(), test.labels.numpy(), shape)
    assert counts.validation.records == 10
    assert np.array_equal(counts.test.flat(), expected.flat())


def test_evaluation_of_an_empty_part_counts_nothing() -> None:
    model, flat = linear()
    empty = TrainingData.of(np.zeros((0, 6), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert evaluate(model, flat, empty, features(3), EvaluationShape(2, 16)).validation.records == 0


def test_scores_do_not_depend_on_how_many_records_are_scored_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    model = SmallCnn(2, 1)
    images = torch.randint(0, 256, (7, 1, 28, 28), dtype=torch.uint8)
    whole = module.logits(model, images)
    monkeypatch.setattr(module, "EVALUATION_PIXELS", 2 * 28 * 28)
    assert torch.allclose(module.logits(model, images), whole, atol=1e-5)


def test_images_become_numbers_between_minus_one_and_one_and_features_stay_as_they_are() -> None:
    assert module._as_input(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]
    assert module._as_input(torch.tensor([7.5])).tolist() == [7.5]


# Copies, and the mean of features


def with_copies(records: int = 40, copies: int = 3, width: int = 6, per_patient: int = 1) -> TrainingData:
    rng = np.random.default_rng(3)
    inputs = rng.standard_normal((records, copies, width)).astype(np.float32)
    return TrainingData.of(inputs, rng.integers(0, 2, records), np.arange(records) // per_patient)


HEADS = (linear_head, mlp_head)


@pytest.mark.parametrize("head", HEADS)
def test_a_records_gradient_is_the_mean_over_its_copies(head: Callable[[int, int], nn.Module]) -> None:
    torch.manual_seed(2)
    model = CentredModel(head(6, 2), 6)
    for parameter in model.head.parameters():
        nn.init.normal_(parameter, std=0.5)
    model.centring.centre.data = torch.linspace(-0.1, 0.2, 6)
    data = with_copies(12)
    rows = mean_gradient_rows(model, data.inputs, data.labels)
    alone = [record_gradients(model, data.inputs[:, k], data.labels, as_rows=True).rows() for k in range(3)]
    assert torch.allclose(rows, torch.stack(alone).mean(dim=0), atol=1e-6)
    assert rows.shape == (12, trained_length(model))


def test_no_record_moves_the_sum_by_more_than_the_clipping_bound_however_many_copies_it_has() -> None:
    model, _ = linear()
    nn.init.normal_(next(model.parameters()), std=30.0)
    for copies in (1, 2, 5):
        data, bound = with_copies(30, copies), 0.5
        plan = NoisySteps(PrivacyUnit.RECORD, Schedule(1.0, 1), bound, 1.0)
        whole = module._clipped_sum(model, data, torch.arange(30), plan)
        for row in range(5):
            others = torch.arange(30)[torch.arange(30) != row]
            without = module._clipped_sum(model, data, others, plan)
            assert float((whole - without).norm()) <= bound
        mechanism = DistributedMechanism(1.0, bound, 2**14, len(flat_parameters(model)), 0, 1)
        rows = module._unit_gradients(model, data, torch.arange(30), torch.arange(30)).numpy()
        for row in rows:
            assert np.linalg.norm(mechanism.clip(row[None]).total) <= 2**14


def test_plain_training_takes_the_mean_over_copies() -> None:
    model, start = linear()
    data = with_copies(20)
    training = TrainingConfig(learning_rate=0.5, batch_size=20)
    update = train_locally(model, start, data, training, NONE, 0.0, seeded(1))
    share_parameters(model, torch.from_numpy(start.copy()))
    loss = functional.cross_entropy(model(data.inputs.flatten(0, 1)), data.labels.repeat_interleave(3))
    expected = torch.autograd.grad(loss, list(model.parameters()))
    assert np.allclose(update.delta, -0.5 * torch.cat([each.reshape(-1) for each in expected]).numpy(), atol=1e-6)


@pytest.mark.parametrize("privacy", [NONE, LOCAL])
def test_training_leaves_the_centre_as_it_is(privacy: PrivacyConfig) -> None:
    model = CentredModel(linear_head(6, 2), 6)
    start = flat_parameters(model)
    start[-6:] = np.linspace(-0.1, 0.1, 6)
    update = train_locally(model, start, with_copies(), TrainingConfig(learning_rate=0.5), privacy, 1.0, seeded(1))
    assert update.delta[:-6].any()
    assert not update.delta[-6:].any()
    noise = DistributedMechanism(1.0, 0.5, 2**14, len(start), 0, 1)
    total = noisy_gradient_sum(model, start, with_copies(), sum_of(noise, 1.0), 4, seeded(2)).total
    assert total[:-6].any()
    assert not total[-6:].any()


def _unit_means(data: TrainingData) -> NDArray[np.float64]:
    unit = functional.normalize(data.inputs.double(), dim=-1).mean(dim=1)
    return unit.numpy()


def test_the_mean_of_features_is_that_of_unit_vectors_in_the_centres_place() -> None:
    model, data = CentredModel(linear_head(6, 2), 6), with_copies(50)
    exact = module.feature_mean(model, data, PlainSteps(8, 1), 50, seeded(1))
    assert not exact[:-6].any()
    assert np.allclose(exact[-6:], _unit_means(data).mean(axis=0), atol=1e-6)
    noise = DistributedMechanism(0.01, 1.0, 2**16, len(exact), 0, 1)
    total = module.noisy_feature_sum(model, data, sum_of(noise, 1.0), 4, seeded(1))
    assert not total[:-6].any()
    assert np.allclose(total[-6:] / 2**16, _unit_means(data).sum(axis=0), atol=0.1)
    quiet = NoisySteps(PrivacyUnit.RECORD, Schedule(1.0, 1), 1.0, 1e-4)
    local = module.feature_mean(model, data, quiet, 50, seeded(1))
    assert np.allclose(local[-6:], _unit_means(data).mean(axis=0), atol=2e-3)
    louder = module.feature_mean(model, data, replace(quiet, noise_multiplier=500.0), 50, seeded(1))
    assert 3 < np.linalg.norm(louder[-6:] - local[-6:]) / math.sqrt(6) < 30


def test_the_mean_of_features_in_mode_distributed_carries_a_hospitals_share_of_noise() -> None:
    model, nobody = CentredModel(linear_head(6, 2), 6), with_copies(50).emptied()
    noise = DistributedMechanism(5.0, 1.0, 2**14, 6, 0, 1)
    draws = [module.noisy_feature_sum(model, nobody, sum_of(noise, 1.0), 4, seeded(seed))[-6:] for seed in range(100)]
    # 600 samples: their deviation is within an eighth of the true one but for one case in ten thousand.
    assert np.std(draws) == pytest.approx(math.sqrt(noise.share_variance(4)), rel=0.125)


@pytest.mark.parametrize("unit", PrivacyUnit)
def test_no_unit_moves_the_sum_of_features_by_more_than_one(unit: PrivacyUnit) -> None:
    data = with_copies(30, per_patient=3)
    rows = torch.cat(list(module._unit_features(data, unit)))
    assert len(rows) == data.count(unit)
    assert float(rows.norm(dim=1).max()) <= 1 + 1e-6
    noise = DistributedMechanism(1.0, 1.0, 2**14, 6, 0, 1)
    assert all(np.linalg.norm(noise.clip(row[None].numpy()).total) <= 2**14 for row in rows)
    bounded = module._clipping(norm_bounds(rows), 1.0)[:, None] * rows
    assert float(bounded.norm(dim=1).max()) < 1


def lost(data: TrainingData) -> tuple[TrainingData, TrainingData]:
    """Return the data with three records gone, and what it is where they never were."""
    gone = np.zeros(len(data), np.bool_)
    gone[[0, 7, 8]] = True
    kept = torch.from_numpy(~gone)
    never = TrainingData.of(data.inputs[kept].numpy(), data.labels[kept].numpy(), data.patients[kept].numpy())
    return data.without(gone), never


@pytest.mark.parametrize("per_patient", [1, 3])
@pytest.mark.parametrize("unit", [PrivacyUnit.RECORD, PrivacyUnit.PATIENT])
def test_a_record_that_is_gone_counts_as_an_empty_one_in_a_private_sum(unit: PrivacyUnit, per_patient: int) -> None:
    model, start = linear()
    gone, never = lost(features(per_patient=per_patient))
    plan = replace(sum_of(DistributedMechanism(1.0, 0.5, 1000, len(start), 0, 0), 1.0), unit=unit)
    one, other = (noisy_gradient_sum(model, start, data, plan, 3, seeded(4)).total for data in (gone, never))
    # Pieces of a batch are rounded alike; the sums of float32 inside them are in another order.
    assert np.abs(one - other).max() <= 2
    assert not np.array_equal(one, noisy_gradient_sum(model, start, replace_gone(gone), plan, 3, seeded(4)).total)


def replace_gone(data: TrainingData) -> TrainingData:
    """Return the same data with every record there again."""
    return data.without(np.zeros(len(data), np.bool_))


def test_a_record_that_is_gone_is_in_no_plain_batch_and_no_figure() -> None:
    model, start = linear()
    gone, never = lost(features())
    full = TrainingConfig(batch_size=60, learning_rate=0.3)
    trained = [train_locally(model, start, data, full, NONE, 0.0, os.urandom).delta for data in (gone, never)]
    assert np.allclose(trained[0], trained[1], atol=1e-6)
    shape = EvaluationShape(2, 16)
    one, other = (evaluate(model, start, data, data, shape).flat() for data in (gone, never))
    assert np.array_equal(one, other)
    found, _ = scores(model, start, gone, gone, 2)
    assert len(found) == 57
    assert gone.of_copies(gone.labels).tolist() == never.labels.tolist()


def test_a_part_of_the_records_knows_which_are_gone_and_all_may_be() -> None:
    data = features(per_patient=2)
    limited = data.limited(20, PrivacyUnit.PATIENT, b"seed")
    gone = np.zeros(len(data), np.bool_)
    gone[limited.rows[:5].numpy()] = True
    assert limited.without(gone).gone.nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert (
        data.without(gone).limited(20, PrivacyUnit.PATIENT, b"seed").gone.tolist()
        == limited.without(gone).gone.tolist()
    )
    nothing = data.without(np.ones(len(data), np.bool_))
    model, start = linear()
    for privacy, sigma in ((NONE, 0.0), (LOCAL, 1.0)):
        update = train_locally(model, start, nothing, TrainingConfig(batch_size=16), privacy, sigma, seeded(3))
        assert np.isfinite(update.delta).all()
    assert scores(model, start, nothing, nothing, 2)[0].shape == (0, 2)


def test_records_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(DataError, match="got 3, 2, 3"):
        TrainingData.of(np.zeros((3, 6), np.float32), np.zeros(2, np.int64), np.zeros(3, np.int64))


def test_data_never_appears_in_a_repr() -> None:
    assert "tensor" not in repr(features(3))
