"""``confide audit privacy``: does training give away more than the ledger claims? An ε that one run refutes.

It trains the deployed way on phantom images and on canaries, each of which a fair coin lets in or keeps out, guesses
the coins from what the training released, and computes the ε that the right guesses refute. With ``--part test`` it
is the evaluation that is audited: one test record, a model that is right on it alone, and many releases.
"""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from matplotlib.figure import Figure

from client.training import TrainingData
from common.config import ExperimentConfig, PrivacyConfig
from common.errors import RunError
from common.models import registry
from common.models.frozen import extract
from common.privacy.accounting import rounded_up
from common.privacy.mechanism import MECHANISMS
from common.provenance import versions
from deploy.attacks.canary_evaluation import measure_with_a_canary
from deploy.attacks.canary_training import Exposure, Setting, train_with_canaries
from deploy.attacks.one_run_bound import LowerBound, best_bound
from deploy.attacks.outcome import write_outcome
from deploy.command import command, out_option
from deploy.datasets import phantom
from deploy.results.plots import BLUE, ORANGE, VERMILION, styled

REFUTED = 1
"""The exit code when training gave away more than the ledger claims."""

TRAINING, TEST = "training", "test"
"""Whose records are audited."""

MODEL = "scattering_linear"
IMAGE_SIZE = 28
PHANTOM_SEED = 1

LIMITS = """\
What this cannot show:
- That the claim holds. A bound below the claim only means that this attack found nothing; one run sees a gross fault
  (noise or clipping missing, sampling or accounting wrong by a multiple), not noise that is a tenth too small.
- Anything about other code: it trains a linear head with canaries of its own making, or measures a model of its own;
  another model's gradients, secure aggregation, certificates and the network are not looked at.
- Whether the noise can be predicted: it is audited for its size, not for the quality of its randomness.
- The unit patient, other hospitals' data, or what an attacker knows from elsewhere."""


_PRIVATE_MODES = tuple(mode.value for mode, mechanism in MECHANISMS.items() if mechanism.is_private)


@dataclass(frozen=True)
class PrivacyVerdict:
    """An audit's outcome."""

    setting: Setting
    exposure: Exposure
    bound: LowerBound
    part: str = TRAINING

    @property
    def refuted(self) -> bool:
        """Whether more was given away than the ledger claims."""
        return self.bound.epsilon > self.exposure.claim.value


@command(
    "privacy",
    "Train once with canaries and compute an ε that was refuted; it must stay below what the ledger claims. The exit "
    "code is 1 where the claim is refuted.",
    "./confide audit privacy --epsilon 8 --canaries 3000",
)
@click.option("--part", type=click.Choice((TRAINING, TEST)), default=TRAINING, help="Whose records are audited.")
@click.option("--mode", type=click.Choice(_PRIVATE_MODES), default=PrivacyConfig().mode.value, help="Of privacy.")
@click.option(
    "--epsilon", type=float, default=PrivacyConfig().target_epsilon, metavar="E", help="What the run may reach."
)
@click.option("--delta", type=float, default=1e-5, metavar="D", help="Below 1 / (records + canaries).")
@click.option("--rounds", type=int, default=30, metavar="R", help="Of training.")
@click.option(
    "--sample-rate",
    type=float,
    default=0.25,
    metavar="Q",
    help="How likely each record is in a batch; larger ones audit better.",
)
@click.option("--canaries", type=int, default=3000, metavar="M", help="Fair coins; more of them refute more.")
@click.option("--records", type=int, default=500, metavar="N", help="Phantom records trained on beside the canaries.")
@click.option("--hospitals", type=int, default=ExperimentConfig().num_clients, metavar="H", help="In mode distributed.")
@click.option("--confidence", type=float, default=0.95, metavar="P", help="That what is called refuted is not true.")
@out_option(Path("runs/audit"), help="For the plot and the JSON.")
def main(
    *,
    part: str,
    mode: str,
    epsilon: float,
    delta: float,
    rounds: int,
    sample_rate: float,
    canaries: int,
    records: int,
    hospitals: int,
    confidence: float,
    out: Path,
) -> int:
    """Audit, print, and write a plot and JSON; returns 1 where the claim is refuted."""
    if not 0 < confidence < 1:
        raise RunError(f"--confidence must be between 0 and 1, got {confidence:g}")
    if min(canaries, records, rounds) < 1:
        raise RunError("--canaries, --records and --rounds must be at least 1")
    torch.set_num_threads(1)
    privacy = PrivacyConfig.model_validate({"mode": mode, "target_epsilon": epsilon, "delta": delta})
    setting = Setting(canaries, rounds, sample_rate, hospitals, privacy)
    if part == TEST:
        verdict = audit_evaluation(records, setting, confidence)
        name = "evaluation_audit"
    else:
        verdict = audit(_phantom_features(records), setting, confidence)
        name = "privacy_audit"
    print(as_text(verdict))
    write_outcome(out, name, draw(verdict), as_json(verdict))
    print(f"\nwritten: {out}/{name}.png, {name}.json")
    return REFUTED if verdict.refuted else 0


def audit(records: TrainingData, setting: Setting, confidence: float) -> PrivacyVerdict:
    """Train once and judge; the ledger is thrown away afterwards."""
    with tempfile.TemporaryDirectory(prefix="confide-audit-") as folder:
        exposure = train_with_canaries(records, setting, Path(folder) / "ledger")
    bound = best_bound(exposure.scores, exposure.included, setting.privacy.delta, confidence)
    return PrivacyVerdict(setting, exposure, bound)


def audit_evaluation(records: int, setting: Setting, confidence: float) -> PrivacyVerdict:
    """Measure a test record in as many releases as there are canaries, and judge as :func:`audit`."""
    with tempfile.TemporaryDirectory(prefix="confide-audit-") as folder:
        exposure = measure_with_a_canary(
            setting.canaries, records, setting.hospitals, setting.privacy, Path(folder) / "ledger"
        )
    bound = best_bound(exposure.scores, exposure.included, setting.privacy.delta, confidence)
    return PrivacyVerdict(setting, exposure, bound, TEST)


def as_text(verdict: PrivacyVerdict) -> str:
    """Return the outcome as a person reads it, with what it cannot show."""
    setting, exposure, bound = verdict.setting, verdict.exposure, verdict.bound
    outcome = (
        f"REFUTED: {verdict.part} gave away more than the ledger claims. Don't use this installation"
        if verdict.refuted
        else "not refuted: what was seen is within the claim"
    )
    if verdict.part == TEST:
        return f"""\
{bound.canaries:,} releases of the test part's measurement, {setting.hospitals} hospitals; in each a coin decided \
whether one record
was among {exposure.records:,}, or an empty one in its place
best accuracy of a guess {_best_accuracy(exposure):.3f} (0.5 is guessing)

claimed   {exposure.claim}
refuted   ε < {bound.epsilon:.3f} with {bound.confidence:.0%} confidence; {bound.correct} of {bound.guesses} guesses \
were right
          (Steinke, Nasr, Jagielski 2023, Algorithm 1 and Corollary 5.4, each canary in a run of its own)
verdict   {outcome}

{LIMITS}"""
    return f"""\
one training in mode {setting.privacy.mode}: {setting.rounds} rounds; a record is in a batch with rate \
{setting.sample_rate:g}
a linear head of {exposure.parameters:,} parameters; {exposure.records:,} phantom records, {bound.canaries:,} canaries

claimed   {exposure.claim}
refuted   ε < {bound.epsilon:.3f} with {bound.confidence:.0%} confidence; {bound.correct} of {bound.guesses} guesses \
were right
          (Steinke, Nasr, Jagielski 2023, Algorithm 1 and Corollary 5.4)
verdict   {outcome}

{LIMITS}"""


@styled
def draw(verdict: PrivacyVerdict) -> Figure:
    """Draw how well the scores separate canaries that were in from the others, and the bound beside the claim."""
    exposure, bound = verdict.exposure, verdict.bound
    figure = Figure(figsize=(9, 4), layout="constrained")
    scores, bars = figure.subplots(1, 2, width_ratios=(3, 2))
    in_deviations = exposure.scores / exposure.scores[~exposure.included].std()
    edges = np.histogram_bin_edges(in_deviations, bins=40)
    for which, label, colour in (
        (~exposure.included, "not trained on", BLUE),
        (exposure.included, "trained on", ORANGE),
    ):
        scores.hist(in_deviations[which], bins=edges, alpha=0.6, color=colour, label=label)
    scores.set(title="What training gave away", ylabel="canaries")
    scores.set_xlabel("score of a canary, in standard deviations of those not trained on")
    scores.legend(loc="upper right")  # matplotlib warns where finding the best place takes it long.
    claim = rounded_up(exposure.claim.value)
    bars.barh(["refuted", "claimed"], [bound.epsilon, claim], color=[VERMILION if verdict.refuted else ORANGE, BLUE])
    for row, value in enumerate((bound.epsilon, claim)):
        bars.text(value, row, f" {value:.2f}", va="center")
    bars.set(title="ε refuted and claimed", xlabel=f"ε (zero-out) at δ = {exposure.claim.delta:g}")
    bars.set_xlim(0, 1.2 * max(bound.epsilon, claim))
    figure.supxlabel(
        f"mode {verdict.setting.privacy.mode}, {bound.canaries} canaries, one run, {bound.confidence:.0%} confidence; "
        "a bound below the claim does not prove the claim",
        fontsize=7.5, color="#555555", x=0.01, ha="left",
    )  # fmt: skip
    return figure


def as_json(verdict: PrivacyVerdict) -> dict[str, Any]:
    """Return the outcome as plain values."""
    claim = verdict.exposure.claim
    return {
        "claim": {"statement": str(claim), **asdict(claim)},
        "bound": asdict(verdict.bound),
        "refuted": verdict.refuted,
        "mode": verdict.setting.privacy.mode,
        "rounds": verdict.setting.rounds,
        "sample_rate": verdict.setting.sample_rate,
        "records": verdict.exposure.records,
        "parameters": verdict.exposure.parameters,
        "cannot_show": LIMITS,
        "versions": versions(),
    }


def _best_accuracy(exposure: Exposure) -> float:
    """Return the balanced accuracy of the best threshold on the scores, chosen with the coins in hand."""
    order = np.argsort(exposure.scores)
    outcome = exposure.included[order]
    caught = outcome[::-1].cumsum()[::-1] / max(1, outcome.sum())
    alarms = (~outcome)[::-1].cumsum()[::-1] / max(1, (~outcome).sum())
    return float(0.5 + np.abs(caught - alarms).max() / 2)


def _phantom_features(records: int) -> TrainingData:
    images = phantom.chest(records, IMAGE_SIZE, PHANTOM_SEED)
    features = registry.frozen_features(MODEL)
    if features is None:
        raise RunError(f"{MODEL} must be a model on frozen features")
    inputs = np.concatenate(list(extract(features, images.images)))
    return TrainingData.of(inputs, images.labels, np.arange(records))
