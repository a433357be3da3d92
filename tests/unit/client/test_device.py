"""Where gradients are computed, and that it changes neither what is clipped nor, within tolerance, what comes out.

No GPU is needed here: the way over a device is walked with the CPU's own tensors, memory runs out by injection, and
the meta device, which has no numbers, shows where each tensor lies.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from client import training
from client.device import CPU, choose, rows_that_fit
from client.per_record_gradients import RecordGradients, record_gradients
from client.training import TrainingData, logits, train_locally
from common.config import HospitalConfig, PrivacyUnit, TrainingConfig
from common.errors import ConfigError, RunError
from common.models import registry
from common.models.centred import trained_length
from common.models.concatenated import Concatenated
from common.models.efficientnet import efficientnet_features
from common.models.flat import flat_parameters
from common.models.frozen import extract, move
from common.models.memory import in_pieces
from common.models.scattering import Scattering
from common.privacy.mechanism import NoisySteps, PlainSteps
from common.privacy.schedule import Schedule

torch.set_num_threads(1)

RECORDS = 20


def a_machine_with(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


@pytest.mark.parametrize(
    ("setting", "gpus", "chosen"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_the_setting_chooses_the_device(setting: str, gpus: int, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a_machine_with(gpus, monkeypatch)
    assert str(choose(setting)) == chosen


def test_a_gpu_that_is_not_there_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    a_machine_with(0, monkeypatch)
    for setting in ("cuda", "cuda:1"):
        with pytest.raises(ConfigError, match=rf"hospital\.device is {setting}, and PyTorch finds no GPU"):
            choose(setting)
    a_machine_with(2, monkeypatch)
    with pytest.raises(ConfigError, match=r"hospital\.device is cuda:2, and this machine has the GPUs 0 to 1"):
        choose("cuda:2")


def test_a_gpu_computes_in_whole_float32_and_the_same_way_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    a_machine_with(1, monkeypatch)
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32)
    try:
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = True, False, True, True
        choose("cuda")
        found = (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32)
    finally:
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before
    assert found == (False, True, False, False)


def test_another_word_for_a_device_is_no_setting() -> None:
    for setting in ("gpu", "cuda:", "cuda:-1", "cuda:100", "mps", "CPU"):
        with pytest.raises(ValueError, match="device"):
            HospitalConfig(device=setting)


class Memory:
    """A device's memory that holds so many records at once; counts the pieces that were tried."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.tried: list[int] = []

    def take(self, records: int) -> None:
        self.tried.append(records)
        if records > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB (injected by a test)")


def test_a_piece_without_room_is_done_again_smaller_and_in_order() -> None:
    memory = Memory(3)

    def work(piece: Tensor) -> list[int]:
        memory.take(len(piece))
        return [int(item) for item in piece]

    done = list(in_pieces(torch.arange(10), 8, work))
    assert [item for piece in done for item in piece] == list(range(10))
    assert memory.tried == [8, 4, 2, 2, 2, 2, 2]
    with pytest.raises(RunError, match="memory for one record"):
        list(in_pieces(torch.arange(2), 2, lambda _piece: Memory(0).take(1)))
    assert list(in_pieces(torch.arange(0), 4, work)) == []


def test_only_missing_memory_is_tried_again() -> None:
    def fails(_piece: Tensor) -> None:
        raise RuntimeError("another fault")

    with pytest.raises(RuntimeError, match="another fault"):
        list(in_pieces(torch.arange(4), 4, fails))


def test_rows_take_a_part_of_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (2**30, 2**34))
    gpu = torch.device("cuda", 0)
    assert rows_that_fit(gpu, parameters=2**20, most=1000) == 2**30 // (4 * 4 * 2**20)
    assert rows_that_fit(gpu, parameters=2**20, most=5) == 5
    assert rows_that_fit(gpu, parameters=2**32, most=5) == 1
    assert rows_that_fit(CPU, parameters=2**32, most=5) == 5


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """Walk the way over a device that has room for three records at once, on the CPU's own tensors."""
    memory = Memory(3)
    plain = record_gradients

    def on_device(model: nn.Module, inputs: Tensor, labels: Tensor, *, as_rows: bool = False) -> RecordGradients:
        memory.take(len(labels))
        assert as_rows, "a GPU must not clip"
        return plain(model, inputs, labels, as_rows=True)

    monkeypatch.setattr(training, "record_gradients", on_device)
    monkeypatch.setattr(training, "is_cpu", lambda _device: False)
    return memory


def data() -> TrainingData:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (RECORDS, 1, 28, 28), generator=generator, dtype=torch.uint8)
    return TrainingData(images, torch.arange(RECORDS) % 2, torch.arange(RECORDS) // 2)


def trained(unit: PrivacyUnit) -> Tensor:
    model = registry.build("cnn", 2, 1, 28, seed=1)
    plan = NoisySteps(unit, Schedule(sample_rate=1.0, steps=2), max_grad_norm=0.5, noise_multiplier=1e-9)
    update = train_locally(
        model, flat_parameters(model), data(), TrainingConfig(learning_rate=0.5), plan, bytes, expected_units=10.0
    )
    return torch.from_numpy(update.delta)


@pytest.mark.parametrize("unit", list(PrivacyUnit))
def test_training_over_a_device_is_that_of_the_cpu_and_goes_on_when_memory_runs_out(
    unit: PrivacyUnit, request: pytest.FixtureRequest
) -> None:
    expected = trained(unit)
    memory: Memory = request.getfixturevalue("as_on_a_gpu")
    found = trained(unit)
    assert max(memory.tried) > 3
    assert [size for size in memory.tried if size <= 3]
    assert float((found - expected).norm()) < 1e-4 * float(expected.norm())


def test_no_record_moves_the_sum_by_more_than_the_bound_whatever_a_device_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A GPU that returns anything at all, infinities and gradients of any size included, weakens no bound."""
    bound, garbage = 0.7, torch.randn(RECORDS, 25_842, generator=torch.Generator().manual_seed(2)) * 1e12
    garbage[3], garbage[4, 7], garbage[5] = math.inf, math.nan, 3e38

    class Rows:
        def __init__(self, rows: Tensor) -> None:
            self._rows = rows

        def rows(self) -> Tensor:
            return self._rows

    left_out: list[int] = []

    def on_device(_model: nn.Module, inputs: Tensor, _labels: Tensor, *, as_rows: bool = False) -> Rows:
        assert as_rows
        rows = garbage[: len(inputs)].clone()
        rows[left_out] = 0.0
        return Rows(rows)

    monkeypatch.setattr(training, "record_gradients", on_device)
    monkeypatch.setattr(training, "is_cpu", lambda _device: False)
    monkeypatch.setattr(training, "rows_that_fit", lambda _device, _parameters, most: most)
    model = registry.build("cnn", 2, 1, 28, seed=1)
    plan = NoisySteps(PrivacyUnit.RECORD, Schedule(1.0, 1), max_grad_norm=bound, noise_multiplier=1.0)
    whole = training._clipped_sum(model, data(), torch.arange(RECORDS), plan)
    assert bool(torch.isfinite(whole).all())
    for record in range(RECORDS):
        left_out[:] = [record]
        without = training._clipped_sum(model, data(), torch.arange(RECORDS), plan)
        assert float((whole - without).norm()) <= bound


def test_a_plain_round_over_a_device_goes_on_when_memory_runs_out_and_counts_nothing_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def change() -> Tensor:
        model = registry.build("cnn", 2, 1, 28, seed=1)
        plan = PlainSteps(batch_size=RECORDS, local_epochs=1)
        start = flat_parameters(model)
        return torch.from_numpy(
            train_locally(model, start, data(), TrainingConfig(), plan, bytes, expected_units=1.0).delta
        )

    expected, memory = change(), Memory(6)
    plain = torch.autograd.grad

    def grad(loss: Tensor, *given: object, **named: object) -> object:
        memory.take(RECORDS if len(memory.tried) < 1 else 5)
        found: object = plain(loss, *given, **named)  # type: ignore[call-overload]
        return found

    monkeypatch.setattr(torch.autograd, "grad", grad)
    assert torch.allclose(change(), expected, atol=1e-6)
    assert memory.tried == [20, 5, 5]


def test_scores_are_made_in_smaller_pieces_when_memory_runs_out() -> None:
    memory = Memory(7)

    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(784, 2)

        def forward(self, x: Tensor) -> Tensor:
            memory.take(len(x))
            found: Tensor = self.linear(x.flatten(1))
            return found

    model = Scores()
    found = logits(model, data().inputs)
    memory.room = RECORDS
    assert torch.allclose(found, logits(model, data().inputs), atol=1e-6)
    assert memory.tried == [20, 10, 5, 5, 5, 5, 20]


@pytest.mark.long
@pytest.mark.parametrize("name", ["cnn", "resnet18", "densenet121", "efficientnet_b0", "scattering_linear"])
def test_every_tensor_of_a_gradient_lies_on_the_models_device(name: str) -> None:
    """The meta device refuses to compute with a tensor that was left on the CPU."""
    side = registry.smallest_image(name)
    shape = registry.input_shape(name, 3, 1, side)
    with torch.device("meta"):
        model = registry.build(name, 2, 1, side, seed=1)
        inputs, labels = torch.zeros(shape), torch.zeros(3, dtype=torch.int64)
    gradients = record_gradients(model, inputs, labels, as_rows=True)
    rows = gradients.rows()
    assert rows.device.type == "meta"
    assert rows.shape == (3, trained_length(model))
    assert gradients.norms().device.type == "meta"


def test_frozen_features_are_moved_where_they_can_be_and_made_smaller_when_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = efficientnet_features()
    images = data().inputs
    expected = features(images)
    move(features, CPU)
    features.at_once = 16
    memory, plain = Memory(5), features._features

    def made(some: Tensor) -> Tensor:
        memory.take(len(some))
        return plain(some)

    monkeypatch.setattr(features, "_features", made)
    found = torch.cat([torch.from_numpy(rows) for rows in extract(features, images.numpy())])
    assert torch.allclose(found, expected, atol=1e-4)
    assert memory.tried == [16, 8, 4, 4, 4, 4, 4]
    move(None, CPU)


@pytest.mark.long
def test_scattering_is_computed_on_a_device_alone_or_joined_and_smaller_when_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The meta device refuses to compute with a tensor that was left on the CPU."""
    features, images = Scattering(), data().inputs
    joined = Concatenated((features, efficientnet_features()))
    expected, together = features(images), joined(images)
    move(joined, torch.device("meta"))
    on_device = features.on_device(images.to("meta"))
    assert (on_device.device.type, on_device.shape) == ("meta", expected.shape)
    features = Scattering()
    memory, plain = Memory(5), features.on_device
    # As on a GPU, where memory can run out, but with filters that are on the CPU.
    monkeypatch.setattr(features, "_device", torch.device("meta"))

    def made(some: Tensor) -> Tensor:
        memory.take(len(some))
        monkeypatch.setattr(features, "_device", CPU)
        found = plain(some)
        monkeypatch.setattr(features, "_device", torch.device("meta"))
        return found

    monkeypatch.setattr(features, "on_device", made)
    assert torch.allclose(features(images), expected, atol=1e-4)
    assert memory.tried == [16, 8, 4, 4, 4, 4, 4]
    joined = Concatenated((Scattering(), efficientnet_features()))
    move(joined, CPU)
    assert torch.allclose(joined(images), together, atol=1e-4)


def test_the_model_is_laid_out_on_the_device_and_noise_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights go to the device before the first gradient, and the noisy mean is made of tensors of the CPU."""
    seen: list[str] = []
    plain = training._noisy_sum

    def noisy(clipped: Tensor, deviation: float, stream: object) -> Tensor:
        seen.append(clipped.device.type)
        return plain(clipped, deviation, stream)  # type: ignore[arg-type]

    def rows(model: nn.Module, _data: TrainingData, records: Tensor) -> Tensor:
        seen.append(next(model.parameters()).device.type)
        return torch.ones(len(records), 25_842)

    monkeypatch.setattr(training, "_noisy_sum", noisy)
    monkeypatch.setattr(training, "_record_rows", rows)
    model = registry.build("cnn", 2, 1, 28, seed=1)
    plan = NoisySteps(PrivacyUnit.RECORD, Schedule(1.0, 1), max_grad_norm=0.5, noise_multiplier=1.0)
    update = train_locally(
        model, flat_parameters(model), data(), TrainingConfig(), plan, bytes, expected_units=10.0,
        device=torch.device("meta"),
    )  # fmt: skip
    assert seen == ["meta", "cpu"]
    assert update.delta.any()
