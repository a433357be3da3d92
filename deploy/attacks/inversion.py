"""``confide audit inversion``: what pictures can a server make of what it sees?

One hospital takes one training step on 1 and on 32 images, by the deployed training and encoding. An attacker on the
server then searches for images that explain what arrived: the bare update (plain federated averaging), the same update
masked, the sum over the fewest hospitals a sum is ever over, and the update of DP-SGD.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from client.training import TrainingData, train_locally
from common.config import SECURE_MINIMUM, Config, load_config, replace
from common.errors import RunError
from common.models import registry
from common.models.flat import flat_parameters, share_parameters
from common.privacy.calibration import require_enough_units
from common.privacy.mechanism import LocalNoise, NoisySteps, PlainSteps
from common.privacy.schedule import Schedule
from common.provenance import versions
from common.run.vector import Tail, VectorLayout
from common.secagg import advertise_keys, masked_input, share_keys
from common.secagg.parameters import Adversary, RunParameters
from common.shards import Records
from deploy.attacks.gradient_inversion import Likeness, invert, likeness, matched
from deploy.attacks.outcome import write_outcome
from deploy.command import command, config_options, out_option
from deploy.datasets.datasets import DataSet, obtain
from deploy.results.plots import styled

BATCHES = (1, 32)
ROWS_OF_A_BATCH = 3
"""The rows of a larger batch in the plot: the best, the middle and the worst of what plain averaging gives away."""

UPDATE = "plain FedAvg: the update"
MASKED = "secure: a masked vector"
SUM = f"secure: the sum of {SECURE_MINIMUM}"
PRIVATE = "DP-SGD: the update"
AVERAGE = "no attack: mean image"
VIEWS = (UPDATE, MASKED, SUM, PRIVATE, AVERAGE)

ROUND = 1

ENTRIES = 15
"""The number of entries of an evaluation in the vector, which this attack does not use."""

SEEN = 0.05
"""By how much the likeness of what is found in a bare update of one record must pass that of the mean image: with
six models and two instruction sets it did by .14 to .22 on the phantom. The attack works there, or the others' failure
says nothing."""

LIMITS = """\
What this cannot show:
- That nothing better exists. One attack (Geiping et al. 2020) failed or succeeded, on one untrained model, for one
  step; an attacker who knows more (a generative model of X-rays, many rounds) can do better, one who doesn't know the
  labels or faces several local steps does worse.
- That masks alone protect a person: the sum still carries what it carries, which only the ε of DP-SGD bounds.
- Membership, or other properties of the data: see ./confide audit privacy and the ε of the ledger.
- X-rays look alike: a likeness at or below that of the mean image, which needs no update, is no reconstruction."""


@dataclass(frozen=True)
class Attack:
    """What was made of one view of one batch.

    Attributes:
        batch: records in the step.
        view: one of ``VIEWS``.
        found: for each original the image that was found for it, (batch, c, h, w) uint8.
        likeness: to the originals.
    """

    batch: int
    view: str
    found: NDArray[np.uint8] = field(repr=False)
    likeness: Likeness


@dataclass(frozen=True)
class Audit:
    """All attacks, with what is needed to read them."""

    data_set: str
    claim: str
    originals: Mapping[int, NDArray[np.uint8]] = field(repr=False)
    attacks: Sequence[Attack]

    def can_judge(self) -> bool:
        """Return whether the attack finds the record where nothing protects it: in one record's bare update."""
        alike = {each.view: float(each.likeness.ssim.mean()) for each in self.attacks if each.batch == min(BATCHES)}
        return alike[UPDATE] > alike[AVERAGE] + SEEN


@command(
    "inversion",
    "Try to see images in what a server gets: one hospital's bare update, the same update masked, the sum over the "
    "fewest hospitals a sum is ever over, and a private update.",
    "./confide audit inversion --data phantom",
)
@click.option("--data", show_default="data.source", metavar="SOURCE", help="auto, phantom or a path.")
@click.option("--iterations", type=int, default=250, metavar="N", help="Of each search for one view.")
@config_options()
@out_option(Path("runs/audit"), help="For the picture and the JSON.")
def main(data: str | None, iterations: int, config_file: Path, overrides: tuple[str, ...], out: Path) -> int:
    """Attack, print, and write the picture and JSON."""
    if iterations < 1:
        raise RunError(f"--iterations must be at least 1, got {iterations}")
    torch.set_num_threads(1)
    config = load_config(config_file, overrides)
    if data is not None:
        config = replace(config, data={"source": data})
    data_set = obtain(config.data, config.experiment.task, config.model.image_size)
    if data_set.banner:
        print(data_set.banner)
    result = audit(data_set, config, iterations)
    print(as_text(result))
    write_outcome(out, "inversion_audit", draw(result), as_json(result))
    print(f"\nwritten: {out}/inversion_audit.png, inversion_audit.json")
    return 0


def audit(data_set: DataSet, config: Config, iterations: int) -> Audit:
    """Attack every view at every batch size.

    Raises:
        ConfigError: the configured model is not trained on images, or the data set is too small.
    """
    records = data_set.parts["train"]
    if registry.frozen_features(config.model.architecture) is not None:
        raise RunError(f"model.name must be a model trained on images to be inverted, got {config.model.name}")
    needed = SECURE_MINIMUM * max(BATCHES)
    if len(records.labels) < needed:
        raise RunError(f"the audit needs at least {needed} training images, got {len(records.labels)}")
    sigma = _noise_multiplier(len(records.labels) // config.experiment.num_clients, config)
    step = _Step(data_set, config, sigma)
    mean = records.images.mean(axis=0).round().astype(np.uint8)
    attacks = []
    for batch in BATCHES:
        originals = records.images[:batch]
        for view, (seen, labels) in step.views(records, batch).items():
            found = invert(step.model, seen, labels, records.images.shape[1:], iterations, config.experiment.seed)
            best = matched(originals, found)
            attacks.append(Attack(batch, view, best, likeness(originals, best)))
        average = np.broadcast_to(mean, originals.shape)
        attacks.append(Attack(batch, AVERAGE, average, likeness(originals, average)))
    privacy = config.privacy
    claim = f"noise multiplier {sigma:.3f}: ε ≤ {privacy.target_epsilon:g} at δ = {privacy.delta:g} over the whole run"
    return Audit(data_set.name, claim, {batch: records.images[:batch] for batch in BATCHES}, attacks)


def _noise_multiplier(records: int, config: Config) -> float:
    """Return the noise of a hospital with an equal share of the data, in a whole run as configured."""
    require_enough_units(records, config.privacy.delta)
    return LocalNoise(config.privacy).steps(config.training, config.experiment.rounds).noise_multiplier


class _Step:
    """One training step of hospitals that all hold the same untrained model."""

    def __init__(self, data_set: DataSet, config: Config, sigma: float) -> None:
        self.config, self.sigma, self.classes = config, sigma, len(data_set.classes)
        self.model: nn.Module = registry.build(
            config.model.architecture, self.classes, data_set.channels, data_set.image_size, config.experiment.seed
        )
        self.start = flat_parameters(self.model)
        self.layout = VectorLayout.for_run(
            config.aggregation, ENTRIES, parameters=len(self.start), hospitals=SECURE_MINIMUM
        )

    def views(self, records: Records, batch: int) -> dict[str, tuple[NDArray[np.float32], torch.Tensor]]:
        """Return for each view the gradient it shows, and the labels of the records in it."""
        parts = [slice(batch * hospital, batch * (hospital + 1)) for hospital in range(SECURE_MINIMUM)]
        vectors = [self._vector(records, part, PlainSteps(batch, local_epochs=1)) for part in parts]
        total = np.sum(vectors, axis=0, dtype=self.layout.dtype)
        own = torch.from_numpy(records.labels[parts[0]])
        everyone = torch.from_numpy(records.labels[: batch * SECURE_MINIMUM])
        views = {
            UPDATE: (self._gradient(vectors[0]), own),
            MASKED: (self._gradient(_masked(vectors, self.config, self.layout.counts_length)[0]), own),
            SUM: (self._gradient(total), everyone),
            PRIVATE: (self._gradient(self._vector(records, parts[0], self._noisy_step())), own),
        }
        share_parameters(self.model, torch.from_numpy(self.start.copy()))
        return views

    def _noisy_step(self) -> NoisySteps:
        """Return one step of DP-SGD on all records, with the noise of a step of the whole run."""
        privacy = self.config.privacy
        return NoisySteps(privacy.unit, Schedule(sample_rate=1.0, steps=1), privacy.max_grad_norm, self.sigma)

    def _vector(self, records: Records, part: slice, plan: PlainSteps | NoisySteps) -> NDArray[Any]:
        """Return what a hospital would mask: one step on a batch of just these records, encoded."""
        images, labels = records.images[part], records.labels[part]
        data = TrainingData.of(images, labels, np.arange(len(labels)))
        update = train_locally(
            self.model, self.start, data, self.config.training, plan, os.urandom, expected_units=float(len(labels))
        )
        tail = Tail(len(labels), 0, 0, np.zeros(ENTRIES, np.int64))
        return self.layout.encode(update.delta, tail, os.urandom)

    def _gradient(self, vector: NDArray[Any]) -> NDArray[np.float32]:
        """Read the elements of the model as if they were bare; their scale is lost on the attack."""
        signed = vector[-self.layout.parameters :].view(f"i{vector.itemsize}")
        return -signed.astype(np.float32)


def _masked(vectors: Sequence[NDArray[Any]], config: Config, counts_length: int) -> list[NDArray[Any]]:
    """Mask each hospital's vector through the protocol's own phases, as in a round."""
    identities = {f"hospital-{number}": Ed25519PrivateKey.generate() for number in range(len(vectors))}
    run = RunParameters(
        run_id="0" * 32,
        config_hash=bytes(32),
        roster={name: key.public_key().public_bytes_raw() for name, key in identities.items()},
        min_hospitals=SECURE_MINIMUM,
        modulus_bits=config.aggregation.modulus_bits,
        vector_length=len(vectors[0]),
        counts_length=counts_length,
        adversary=Adversary.ACTIVE,
    )
    keys, advertised, shared, dealt = {}, {}, {}, {}
    for name, identity in identities.items():
        keys[name], advertised[name] = advertise_keys.advertise(run, ROUND, name, identity, os.urandom)
    directory = advertise_keys.collect(run, ROUND, advertised).directory
    for name in identities:
        shared[name], dealt[name] = share_keys.share(keys[name], directory, os.urandom)
    routed = share_keys.route(run, directory, dealt)
    return [
        masked_input.mask(shared[name], identity, routed.request_for(name, b"train"), vector.copy())[2]
        for (name, identity), vector in zip(identities.items(), vectors, strict=True)
    ]


def as_text(result: Audit) -> str:
    """Return the outcome as a person reads it, with what it cannot show."""
    lines = [
        f"gradient inversion on {result.data_set}; the attacker knows the model, the labels and the batch size",
        f"DP-SGD with {result.claim}",
        "",
        f"{'batch':>5}  {'what the attacker has':26} {'PSNR mean':>10} {'best':>7} {'SSIM mean':>10} {'best':>7}",
    ]
    for attack in result.attacks:
        psnr, ssim = attack.likeness.psnr, attack.likeness.ssim
        lines.append(
            f"{attack.batch:>5}  {attack.view:26} {psnr.mean():>7.1f} dB {psnr.max():>7.1f} "
            f"{ssim.mean():>10.3f} {ssim.max():>7.3f}"
        )
    if not result.can_judge():
        lines.append(
            "\nTHIS CANNOT JUDGE: the attack did not find even the one record of a bare update, so it says nothing "
            "of the other views; raise --iterations (250 by default)"
        )
    return "\n".join([*lines, "", LIMITS])


@styled
def draw(result: Audit) -> Figure:
    """Draw originals and what each view gave of them, side by side."""
    rows = [(batch, record) for batch in result.originals for record in _shown(result, batch)]
    size = 1.55
    figure = Figure(figsize=(size * (len(VIEWS) + 1), 1.22 * size * len(rows) + 0.7), layout="constrained")
    cells = figure.subplots(len(rows), len(VIEWS) + 1, squeeze=False)
    by_view = {(attack.batch, attack.view): attack for attack in result.attacks}
    for (batch, record), line in zip(rows, cells, strict=True):
        line[0].set_ylabel(f"batch of {batch}")
        _show(line[0], result.originals[batch][record], "original")
        for view, cell in zip(VIEWS, line[1:], strict=True):
            attack = by_view[batch, view]
            _show(cell, attack.found[record], view.replace(": ", ":\n"))
            psnr, ssim = attack.likeness.psnr[record], attack.likeness.ssim[record]
            cell.set_xlabel(f"{psnr:.1f} dB, SSIM {ssim:.2f}", fontsize=7.5)
    for cell in cells[1:].flat:
        cell.set_title("", loc="center")
    figure.supxlabel(
        f"{result.data_set}; Geiping et al. 2020 with known labels. A likeness at or below the mean image's is no "
        "reconstruction.",
        fontsize=7.5, color="#555555", x=0.01, ha="left",
    )  # fmt: skip
    return figure


def _shown(result: Audit, batch: int) -> list[int]:
    """Return the records of a batch to draw: all of a small one, else best, middle and worst of the bare update."""
    (bare,) = (attack for attack in result.attacks if (attack.batch, attack.view) == (batch, UPDATE))
    order = np.argsort(-bare.likeness.ssim)
    places = range(batch) if batch < ROWS_OF_A_BATCH else (0, batch // 2, batch - 1)
    return [int(order[place]) for place in places]


def _show(cell: Any, image: NDArray[np.uint8], title: str) -> None:  # noqa: ANN401 - a matplotlib Axes
    pixels = np.moveaxis(image, 0, -1)
    cell.imshow(pixels if pixels.shape[-1] > 1 else pixels[..., 0], cmap="gray", vmin=0, vmax=255)
    cell.set(xticks=[], yticks=[])
    cell.set_title(title, fontsize=8, loc="center")
    cell.grid(visible=False)


def as_json(result: Audit) -> dict[str, Any]:
    """Return the outcome as plain values."""
    return {
        "data_set": result.data_set,
        "privacy": result.claim,
        "can_judge": result.can_judge(),
        "attacks": [
            {
                "batch": attack.batch,
                "view": attack.view,
                "psnr_db": attack.likeness.psnr.tolist(),
                "ssim": attack.likeness.ssim.tolist(),
            }
            for attack in result.attacks
        ],
        "cannot_show": LIMITS,
        "versions": versions(),
    }
