"""``confide dev bench dp``: what a private training step costs against a plain one of the same model and batch.

Both are steps of ``client/training.py``, as deployed, on random records: the private one draws a Poisson batch, forms
and clips every record's gradient, adds noise and steps; the plain one shuffles, forms the mean gradient and steps.
Beside them runs Opacus' own step (``GradSampleModule`` and ``DPOptimizer``), the baseline the private one is to beat.

The three take turns, and seconds are the processor's, not the clock's: what else the machine does meets all alike.
"""

import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock

from client.training import TrainingData, train_locally
from common.config import PrivacyConfig, PrivacyUnit, TrainingConfig
from common.errors import RunError
from common.models import registry
from common.models.flat import flat_parameters
from common.privacy.mechanism import LocalNoise, NoisySteps, PlainSteps
from common.provenance import machine, versions
from deploy.command import command, json_file_option
from deploy.json_report import write_json_report

IMAGE_SIZE = 28
CLASSES = 2
CHANNELS = 1
NOISE_MULTIPLIER = 1.0
MAX_GRAD_NORM = 1.0
LEARNING_RATE = 0.01

OPACUS_BYTES = 2 * 10**9
"""The most that Opacus may hold of per-record gradients; it takes a larger batch in pieces."""


@dataclass(frozen=True)
class Case:
    """One model at the batch it is trained with.

    Attributes:
        model: of the registry.
        batch: records in a step.
        steps: in one measurement.
        aim: the ratio to reach.
    """

    model: str
    batch: int
    steps: int
    aim: float


CASES = (
    Case("cnn", batch=128, steps=8, aim=1.5),
    Case("resnet18", batch=128, steps=1, aim=1.6),
    Case("scattering_linear", batch=512, steps=20, aim=1.2),
)


@dataclass(frozen=True)
class StepCost:
    """Median processor seconds of one step of each kind, and what the private ones cost over the plain one."""

    model: str
    parameters: int
    batch: int
    plain_seconds: float
    private_seconds: float
    opacus_seconds: float
    private_ratio: float
    opacus_ratio: float
    aim: float


@command(
    "dp",
    "Measure what a private training step costs against a plain one of the same model and batch, and against Opacus.",
    "./confide dev bench dp --repeat 7",
)
@click.option("--repeat", type=int, default=7, metavar="N", help="Measurements of each kind.")
@click.option("--threads", type=int, default=1, metavar="N", help="Of the processor; each hospital has one.")
@json_file_option()
def main(repeat: int, threads: int, json_file: Path | None) -> int:
    """Measure, print, and write JSON where asked; returns the exit code."""
    if repeat < 1 or threads < 1:
        raise RunError(f"--repeat and --threads must be at least 1, got {repeat} and {threads}")
    torch.set_num_threads(threads)
    provenance = versions()
    print(f"{machine()}; {threads} thread(s); commit {provenance['commit']}; torch {provenance['torch']}")
    head = f"{'model':18} {'parameters':>11} {'batch':>6} {'plain':>10} {'private':>10} {'ratio':>6} {'aim':>5}"
    print(f"{head} {'Opacus':>7}")
    costs = []
    for case in CASES:
        cost = measure(case, repeat)
        costs.append(cost)
        print(
            f"{cost.model:18} {cost.parameters:11,} {cost.batch:6} {1e3 * cost.plain_seconds:7.2f} ms "
            f"{1e3 * cost.private_seconds:7.2f} ms {cost.private_ratio:6.2f} {cost.aim:5.1f} {cost.opacus_ratio:7.2f}",
            flush=True,
        )
    if json_file is not None:
        _write(json_file, costs, threads, provenance)
    return 0


def measure(case: Case, repeat: int) -> StepCost:
    """Return the median cost of a step of each kind, over ``repeat`` measurements after one that warms up."""
    data = _random_records(case)
    model = registry.build(case.model, CLASSES, CHANNELS, IMAGE_SIZE, seed=1)
    parameters = len(flat_parameters(model))
    kinds: dict[str, Callable[[], None]] = {
        "plain": lambda: _our_steps(case, data, PlainSteps(case.batch, local_epochs=1)),
        "private": lambda: _our_steps(case, data, _noisy_steps(case, data)),
        "opacus": _opacus_steps(case, data, max(1, OPACUS_BYTES // (4 * parameters))),
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for repetition in range(repeat + 1):
        for kind, take_steps in kinds.items():
            began = time.process_time()
            take_steps()
            if repetition:
                seconds[kind].append((time.process_time() - began) / case.steps)
    plain, private, opacus = (statistics.median(taken) for taken in seconds.values())
    return StepCost(
        model=case.model,
        parameters=parameters,
        batch=case.batch,
        plain_seconds=plain,
        private_seconds=private,
        opacus_seconds=opacus,
        private_ratio=private / plain,
        opacus_ratio=opacus / plain,
        aim=case.aim,
    )


def _random_records(case: Case) -> TrainingData:
    """Return as many records as make ``steps`` batches: random images, or random numbers where features are taken."""
    rng = np.random.default_rng(1)
    records = case.batch * case.steps
    shape = registry.input_shape(case.model, records, CHANNELS, IMAGE_SIZE)
    on_images = registry.frozen_features(case.model) is None
    inputs = rng.integers(0, 256, shape, np.uint8) if on_images else rng.standard_normal(shape, np.float32)
    return TrainingData.of(inputs, rng.integers(0, CLASSES, records), np.arange(records))


def _noisy_steps(case: Case, data: TrainingData) -> NoisySteps:
    schedule = LocalNoise(PrivacyConfig()).schedule(TrainingConfig(sample_rate=case.batch / len(data)))
    return NoisySteps(PrivacyUnit.RECORD, schedule, MAX_GRAD_NORM, NOISE_MULTIPLIER)


def _our_steps(case: Case, data: TrainingData, plan: PlainSteps | NoisySteps) -> None:
    model = registry.build(case.model, CLASSES, CHANNELS, IMAGE_SIZE, seed=1)
    training = TrainingConfig(learning_rate=LEARNING_RATE)
    train_locally(model, flat_parameters(model), data, training, plan, os.urandom, expected_units=case.batch)


def _opacus_steps(case: Case, data: TrainingData, at_once: int) -> Callable[[], None]:
    """Return a function that takes ``steps`` steps as Opacus does, each batch in pieces of ``at_once`` records."""
    model = GradSampleModule(_never_in_place(registry.build(case.model, CLASSES, CHANNELS, IMAGE_SIZE, seed=1)))
    optimiser = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=LEARNING_RATE),
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=MAX_GRAD_NORM,
        expected_batch_size=case.batch,
        secure_mode=False,
    )

    def backward(records: torch.Tensor) -> None:
        inputs = data.inputs[records]
        if inputs.dtype == torch.uint8:
            inputs = inputs.to(torch.float32).div_(127.5).sub_(1.0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            functional.cross_entropy(model(inputs), data.labels[records]).backward()  # type: ignore[no-untyped-call]

    def take_steps() -> None:
        for batch in torch.split(torch.randperm(len(data)), case.batch):
            pieces = torch.split(batch, at_once)
            for piece in pieces:
                optimiser.signal_skip_step(do_skip=piece is not pieces[-1])
                backward(piece)
                optimiser.step()
                optimiser.zero_grad()

    return take_steps


def _never_in_place(model: nn.Module) -> nn.Module:
    """Replace what a ResNet changes in place, as Opacus' hooks forbid it."""

    def forward(block: BasicBlock, x: torch.Tensor) -> torch.Tensor:
        identity = x if block.downsample is None else block.downsample(x)
        out = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))
        return torch.relu(out + identity)

    for layer in model.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
        if isinstance(layer, BasicBlock):
            layer.forward = partial(forward, layer)
    return model


def _write(path: Path, costs: list[StepCost], threads: int, provenance: dict[str, str]) -> None:
    result = {
        "steps": [asdict(cost) for cost in costs],
        "threads": threads,
        "machine": machine(),
        "versions": provenance,
        "commit": provenance["commit"],
    }
    write_json_report(path, result)
