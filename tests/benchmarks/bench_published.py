"""``confide dev bench published``: MedMNIST's own baseline, ResNet-18 at 28 pixels, trained here on the same split.

The recipe is MedMNIST's (Yang et al. 2023, "MedMNIST v2", and its published training script): all records in one place,
no privacy, weights from scratch; Adam at 0.001 with batches of 128, a tenth of it after half of the epochs and again
after three quarters; the model of the epoch with the best AUC on the validation part. The network is torchvision's
ResNet-18 with the stem for small images that the published baseline has: one convolution of 3 x 3, no pooling.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import torch
from rich.console import Console
from torch import nn
from torchvision.models import resnet18

from common.config import Config, load_config, replace
from common.evaluation import EvaluationCounts, EvaluationShape, Metrics, count, metrics
from common.provenance import ROOT
from common.shards import Records
from deploy.command import command, config_options, out_option
from deploy.datasets.datasets import DataSet
from deploy.experiment.places import obtained
from deploy.experiment.runner import Measures, RunGroup, Trial, run_for_table

TABLE = "published.md"
EPOCHS = 100
BATCH = 128
LEARNING_RATE = 0.001
DECAYS_AFTER = (0.5, 0.75)
BINS = 4096
"""So many that two records rarely share one: AUC's error bound is below .0005."""

_PUBLISHED_THRESHOLD = 0.5
_AT_ONCE = 512


@dataclass(frozen=True)
class Measured:
    """One epoch's model on the test part.

    Attributes:
        validation_auc: by which the epoch is chosen.
        decided: at the probability of one half, as MedMNIST's evaluator decides.
        chosen: at equal error on the validation part, as Confide decides.
    """

    validation_auc: float
    decided: Metrics = field(repr=False)
    chosen: Metrics = field(repr=False)


@dataclass(frozen=True)
class Trainer:
    """Trains the baseline once, and measures the model of each epoch."""

    data: DataSet
    epochs: int
    half: bool
    say: Callable[[str], None]

    def __call__(self, config: Config) -> Measures:
        """Return AUC and accuracy of the model with the best AUC on the validation part."""
        began, all_measured = time.monotonic(), []
        for epoch, measured in enumerate(self._epochs(config.experiment.seed), start=1):
            all_measured.append(measured)
            left = (time.monotonic() - began) / epoch * (self.epochs - epoch)
            self.say(
                f"seed {config.experiment.seed}, epoch {epoch} of {self.epochs}: AUC {measured.validation_auc:.4f} on "
                f"validation images; about {left / 60:.0f} min to go"
            )
        best = max(all_measured, key=lambda measured: measured.validation_auc)
        return {
            "auc": best.decided.auc,
            "accuracy": best.decided.accuracy,
            "accuracy_at_equal_error": best.chosen.accuracy,
            "ece": best.decided.ece,
            "epoch": float(all_measured.index(best) + 1),
            "validation_auc": best.validation_auc,
            "auc_of_the_last": all_measured[-1].decided.auc,
            "accuracy_of_the_last": all_measured[-1].decided.accuracy,
        }

    def _epochs(self, seed: int) -> Iterator[Measured]:
        """Train, and measure after each epoch."""
        torch.manual_seed(seed)
        order = np.random.default_rng(seed)
        classes, channels = len(self.data.classes), self.data.channels
        network = baseline(classes, channels)
        images, labels = as_tensors(self.data.parts["train"])
        optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
        decays = [round(share * self.epochs) for share in DECAYS_AFTER]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, decays)
        for _ in range(self.epochs):
            network.train()
            for rows in np.array_split(order.permutation(len(labels)), -(-len(labels) // BATCH)):
                with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
                    loss = nn.functional.cross_entropy(network(images[rows]), labels[rows])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            schedule.step()
            yield self._measured(network)

    def _measured(self, network: nn.Module) -> Measured:
        network.eval()
        shape = EvaluationShape(len(self.data.classes), BINS)
        counts = [count(_logits(network, self.data.parts[part]), self.data.parts[part].labels, shape)
                  for part in ("val", "test")]  # fmt: skip
        both = EvaluationCounts(*counts)
        validation = metrics(EvaluationCounts(counts[0], counts[0]), _PUBLISHED_THRESHOLD)
        return Measured(validation.auc, metrics(both, _PUBLISHED_THRESHOLD), metrics(both))


def baseline(classes: int, channels: int) -> nn.Module:
    """Return the published network with fresh weights."""
    network = resnet18(weights=None, num_classes=classes)
    network.conv1 = nn.Conv2d(channels, 64, kernel_size=3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


def as_tensors(records: Records) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images, (n, c, h, w) float32 in [-1, 1], and labels, (n,) int64, as MedMNIST's script makes them."""
    images = torch.from_numpy(records.images).float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)
    return images, torch.from_numpy(records.labels)


def _logits(network: nn.Module, records: Records) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    images, _ = as_tensors(records)
    with torch.no_grad():
        return torch.cat([network(piece) for piece in torch.split(images, _AT_ONCE)]).numpy()


@command(
    "published",
    "Train MedMNIST's baseline, ResNet-18 at 28 pixels, on the same split: in one place and without privacy.",
    "./confide dev bench published --seeds 3",
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, metavar="N", help="Repeat everything with N seeds.")
@click.option("--epochs", type=click.IntRange(min=1), default=EPOCHS, show_default=True, metavar="N",
              help="The learning rate falls after half and three quarters of them.")  # fmt: skip
@click.option("--bfloat16", is_flag=True, help="Multiply in bfloat16 where PyTorch's autocast does; twice as fast.")
@out_option(ROOT / "runs" / "bench-published", "runs/bench-published", "Resumed if begun, seed by seed.")
@config_options()
def main(seeds: int, epochs: int, bfloat16: bool, out: Path, config_file: Path, overrides: tuple[str, ...]) -> int:
    """Run the trials, or what is left of them."""
    config = load_config(config_file, ("model.image_size=28", *overrides))
    console = Console()

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    trainer = Trainer(obtained(config, console), epochs, bfloat16, say)
    run_for_table(plan(trainer, config, range(1, seeds + 1)), out.resolve(), console, table, TABLE)
    return 0


def plan(trainer: Trainer, config: Config, seeds: Sequence[int]) -> tuple[Trial, ...]:
    """Return every trial, one for each seed."""
    labels: dict[str, str | float] = {
        "data_set": trainer.data.name,
        "epochs": float(trainer.epochs),
        "precision": "bfloat16" if trainer.half else "float32",
    }
    return tuple(Trial(labels, replace(config, experiment={"seed": seed}), trainer) for seed in seeds)


def table(groups: Sequence[RunGroup]) -> str:
    """Return the trials as a table in Markdown."""
    lines = [
        "| ResNet-18, central, no DP | seeds | AUC | accuracy at .5 | accuracy at equal error | ECE | epoch chosen |",
        "|---|---|---|---|---|---|---|",
    ]
    for group in groups:
        named, of = group.labels, group.measures
        cells = [str(of[name]) for name in ("auc", "accuracy", "accuracy_at_equal_error", "ece")]
        lines.append(
            f"| {named['data_set']}, {named['epochs']:g} epochs, {named['precision']} | {group.trials} | "
            f"{' | '.join(cells)} | {of['epoch'].value:.0f} |"
        )
    return "\n".join(lines) + "\n"
