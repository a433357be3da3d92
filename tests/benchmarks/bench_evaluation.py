"""``confide dev bench evaluation``: how far noisy measurements are from exact ones, and whether intervals hold.

Whole runs of the evaluation plan, with the product's own vectors, noise of every hospital and decoding. In each draw
validation and test parts are drawn anew, with replacement, from the records of a data set: the error is against the
exact figure of the drawn records, and an interval is right if it holds that of all records. Scores are those of linear
heads on scattering features, trained here with and without noise, or made up where no data are given.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, ndtr
from scipy.stats import rankdata

from common.errors import RunError
from common.evaluation import (
    EvaluationPlan,
    EvaluationState,
    Part,
    Release,
    ReleaseKind,
    TaskKind,
    answer,
    decode,
    next_question,
)
from common.evaluation.tree import LARGEST_LOSS
from common.keystream import SEED_BYTES, Keystream
from common.privacy.accounting import Accountant
from common.privacy.discrete_gaussian import sample
from common.provenance import machine, versions
from deploy.command import FILE, CommaList, command, json_file_option
from deploy.json_report import write_json_report

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

HOSPITALS = 4
TOLERATED_DROPOUTS = 1
DELTA = 1e-4
ROUNDS = 10
STEPS = 10
LEARNING_RATE = 1.5
ATTACKS = 10_000
RATES = ("accuracy", "recall", "specificity", "precision", "f1", "kappa")


@dataclass(frozen=True)
class Trajectory:
    """One training: labels of both parts, and the logits of every model from the first to the last.

    Attributes:
        kind: of the task.
        name: of data and training.
        labels: validation's and test's.
        logits: for each step, validation's and test's.
    """

    kind: TaskKind
    name: str
    labels: tuple[Integers, Integers]
    logits: tuple[tuple[Floats, Floats], ...]

    @property
    def classes(self) -> int:
        """Return how many classes or labels there are."""
        return int(self.logits[0][0].shape[1])


@dataclass(frozen=True)
class Finding:
    """One figure of one kind of release, over all draws.

    Attributes:
        task: kind of the task, and the data.
        epsilon: of each part.
        release: interim, validation (the last model) or test.
        figure: the metric.
        exact: its mean exact value.
        bias: mean error.
        deviation: of the error.
        stated: mean of the deviation that is printed.
        half_width: mean of the interval's.
        coverage: how often the interval holds the value of all records.
        draws: how many had the figure.
    """

    task: str
    epsilon: float
    release: str
    figure: str
    exact: float
    bias: float
    deviation: float
    stated: float
    half_width: float
    coverage: float
    draws: int


@command(
    "evaluation",
    "Measure how far noisy measurements of a model are from exact ones, and whether intervals hold.",
    "./confide dev bench evaluation --draws 200 --epsilons 1,4",
)
@click.option("--draws", type=int, default=200, metavar="N", help="Runs for each task and ε.")
@click.option("--epsilons", type=CommaList(float), default="1", metavar="E,...", help="What a measurement may spend.")
@click.option("--seed", type=int, default=1, metavar="S", help="Of the noise.")
@click.option("--enlarge", type=int, default=1, metavar="K", help="Draw K times the records.")
@click.option("--only", type=click.Choice([kind.value for kind in TaskKind]), help="This kind of task alone.")
@click.option("--data", type=FILE, metavar="DIR", help="With pneumoniamnist.npz and retinamnist.npz.")
@json_file_option()
def main(
    draws: int,
    epsilons: tuple[float, ...],
    seed: int,
    enlarge: int,
    only: str | None,
    data: Path | None,
    json_file: Path | None,
) -> int:
    """Measure, print, and write JSON where asked; returns the exit code."""
    if draws < 2:
        raise RunError(f"--draws must be at least 2, got {draws}")
    provenance = versions()
    print(f"{machine()}; commit {provenance['commit']}; seed {seed}; {draws} draws")
    trajectories = trained(data, seed) if data else made_up(seed)
    if only:
        trajectories = [one for one in trajectories if one.kind == TaskKind(only)]
    findings = []
    for name, group in _by_task(trajectories).items():
        for epsilon in epsilons:
            findings += measure(name, group, epsilon, draws, seed, enlarge)
            _print([finding for finding in findings if (finding.task, finding.epsilon) == (name, epsilon)])
    attacks = {f"{epsilon:g}": attacked(epsilon, seed) for epsilon in epsilons}
    for spent, (empty, other, bound) in attacks.items():
        print(
            f"membership at epsilon {spent}, {ATTACKS} trials: balanced accuracy {empty:.3f} against an empty record "
            f"(bound {bound:.3f}), {other:.3f} against another record"
        )
    if json_file:
        facts = {"findings": [asdict(one) for one in findings], "attacks": attacks}
        write_json_report(json_file, {**facts, "machine": machine(), **provenance})
    return 0


def measure(
    name: str, group: Sequence[Trajectory], epsilon: float, draws: int, seed: int, enlarge: int = 1
) -> list[Finding]:
    """Run a plan ``draws`` times over the trainings of one task by turns."""
    generator = np.random.default_rng([seed, int(1000 * epsilon)])
    stream = Keystream(generator.bytes(SEED_BYTES))
    plan = plan_of(group[0], epsilon)
    seen: dict[tuple[str, str], list[tuple[float, ...]]] = defaultdict(list)
    for draw in range(draws):
        training = group[draw % len(group)]
        parts = [_drawn(labels, enlarge, generator) for labels in training.labels]
        state = EvaluationState()
        for release in plan.releases:
            state = _ask(plan, release, training, parts, state, stream, seen)
    return [_finding(name, epsilon, *key, rows) for key, rows in seen.items()]


def plan_of(training: Trajectory, epsilon: float) -> EvaluationPlan:
    """Return the default plan of a run of ROUNDS rounds."""
    return EvaluationPlan.of(
        rounds=len(training.logits) - 1,
        classes=training.classes,
        kind=training.kind,
        epsilon=epsilon,
        delta=DELTA,
        accountant=Accountant.PRV,
        interim_releases=9,
        repeats=0,
    )


def _ask(
    plan: EvaluationPlan,
    release: Release,
    training: Trajectory,
    parts: Sequence[Integers],
    state: EvaluationState,
    stream: Keystream,
    seen: dict[tuple[str, str], list[tuple[float, ...]]],
) -> EvaluationState:
    side = 0 if release.part is Part.VALIDATION else 1
    chosen, labels = parts[side], training.labels[side]
    logits = training.logits[release.after_step][side].astype(np.float32)
    question = next_question(plan, release, state)
    mechanism = plan.mechanism(release, colluders=0, tolerated_dropouts=TOLERATED_DROPOUTS)
    total = np.zeros(plan.length, np.int64)
    stated = len(chosen) // HOSPITALS
    chosen = chosen[: stated * HOSPITALS]
    for part in np.split(chosen, HOSPITALS):
        total += answer(plan, question, logits[part], labels[part], np.arange(stated), stated, bytes(SEED_BYTES))
        total += mechanism.noise_share(HOSPITALS, stream)
    variance = HOSPITALS * mechanism.share_variance(HOSPITALS)
    measured, after = decode(plan, release, total, len(chosen), variance, state, question)
    if release.kind is ReleaseKind.CLASSES:
        return after
    thresholds = tuple(edges[len(edges) // 2] for edges in question.edges)
    exact = exactly(training.kind, logits[chosen], labels[chosen], thresholds)
    population = exactly(training.kind, logits, labels, thresholds)
    name = "interim" if release.kind is ReleaseKind.INTERIM else str(release.part)
    for figure, true in exact.items():
        value = getattr(measured.metrics, figure)
        if math.isfinite(value):
            low, high = measured.intervals.get(figure, (math.nan, math.nan))
            stated_noise = measured.noise.get(figure, math.nan)
            inside = low <= population[figure] <= high if math.isfinite(low) else math.nan
            seen[name, figure].append((true, value - true, stated_noise, (high - low) / 2, inside))
    each = of_each(training.kind, logits[chosen], labels[chosen], thresholds) if measured.each else ()
    of_all = of_each(training.kind, logits, labels, thresholds) if measured.each else ()
    for own, exact_own, whole in zip(measured.each, each, of_all, strict=True):
        for figure, (low, high) in own.intervals.items():
            value, true = getattr(own, figure), exact_own[figure]
            if math.isfinite(value) and math.isfinite(true):
                row = (true, value - true, own.noise.get(figure, math.nan), (high - low) / 2)
                seen[name, f"{figure}{OF_ONE}"].append((*row, low <= whole[figure] <= high))
    return after


OF_ONE = " of each"
"""What stands behind the name of a figure that one class or label has."""


def of_each(
    kind: TaskKind, logits: NDArray[np.float32], labels: Integers, thresholds: Sequence[float]
) -> tuple[dict[str, float], ...]:
    """Return the exact figures of each class or label."""
    exact = logits.astype(np.float64)
    if kind is TaskKind.MULTILABEL:
        return tuple(
            _of_two(exact[:, label], labels[:, label], thresholds[label] if thresholds else 0.0)
            for label in range(exact.shape[1])
        )
    chosen, log_p = exact.argmax(axis=1), log_softmax(exact, axis=1)
    score = log_p - np.log1p(-np.exp(np.minimum(log_p, -1e-15)))
    found = []
    for own in range(exact.shape[1]):
        right, true, called = float(((chosen == own) & (labels == own)).sum()), labels == own, chosen == own
        found.append(
            {
                "recall": right / true.sum() if true.any() else math.nan,
                "precision": right / called.sum() if called.any() else math.nan,
                "specificity": float((~true & ~called).sum()) / (~true).sum() if not true.all() else math.nan,
                "auc": area_under(score[:, own], true),
            }
        )
    return tuple(found)


def exactly(
    kind: TaskKind, logits: NDArray[np.float32], labels: Integers, thresholds: Sequence[float]
) -> dict[str, float]:
    """Return the exact figures of records, decided at the same thresholds."""
    exact = logits.astype(np.float64)
    if kind is TaskKind.MULTILABEL:
        each = [
            _of_two(exact[:, label], labels[:, label], thresholds[label] if thresholds else 0.0)
            for label in range(exact.shape[1])
        ]
        return {name: float(np.mean([one[name] for one in each])) for name in each[0]}
    if kind is TaskKind.BINARY:
        return _of_two(exact[:, 1] - exact[:, 0], labels, thresholds[0] if thresholds else 0.0)
    confusion = np.zeros((exact.shape[1],) * 2)
    np.add.at(confusion, (labels, exact.argmax(axis=1)), 1)
    right, true, called = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    distance = np.subtract.outer(np.arange(len(confusion)), np.arange(len(confusion))) ** 2
    by_chance = (distance * np.outer(true, called)).sum() / len(labels)
    log_p = log_softmax(exact, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        score = log_p - np.log1p(-np.exp(np.minimum(log_p, -1e-15)))
        figures = {
            "accuracy": right.sum() / len(labels),
            "precision": np.nan_to_num(right / called).mean(),
            "recall": np.nan_to_num(right / true).mean(),
            "f1": np.nan_to_num(2 * right / (true + called)).mean(),
            "kappa": 1 - (distance * confusion).sum() / by_chance,
            "loss": np.minimum(-log_p[np.arange(len(labels)), labels], LARGEST_LOSS).mean(),
            "auc": np.mean([area_under(score[:, own], labels == own) for own in range(len(confusion))]),
        }
    return {name: float(value) for name, value in figures.items()}


def _of_two(score: Floats, labels: Integers, threshold: float) -> dict[str, float]:
    positive, called = labels == 1, score >= threshold
    caught, records = float((positive & called).sum()), len(labels)
    confidence = 1 / (1 + np.exp(-np.abs(score)))
    right = (score >= 0) == positive
    cells = np.minimum((confidence * 15).astype(int), 14)
    gaps = np.bincount(cells, right - confidence, minlength=15)
    chance = (positive.sum() * called.sum() + (~positive).sum() * (~called).sum()) / records**2
    accuracy = float((positive == called).mean())
    return {
        "accuracy": accuracy,
        "recall": caught / max(1, positive.sum()),
        "specificity": float((~positive & ~called).sum() / max(1, (~positive).sum())),
        "precision": caught / max(1, called.sum()),
        "f1": 2 * caught / max(1, positive.sum() + called.sum()),
        "kappa": float((accuracy - chance) / (1 - chance)),
        "auc": area_under(score, positive),
        "loss": float(np.logaddexp(0, np.where(positive, -score, score)).mean()),
        "ece": float(np.abs(gaps).sum() / records),
    }


def area_under(score: Floats, positive: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve (Mann and Whitney 1947)."""
    own = int(positive.sum())
    others = len(score) - own
    if not own or not others:
        return math.nan
    return float((rankdata(score)[positive].sum() - own * (own + 1) / 2) / (own * others))


def attacked(epsilon: float, seed: int) -> tuple[float, float, float]:
    """Let a server decide whether one record is in the test part, by a model that is positive for it alone.

    The server knows every other record, and as many hospitals as may have dropped out: the noise is the least there is.

    Returns:
        Balanced accuracy of the best test against an empty record in its stead, the same against a record of the
        other decision, and the bound for any attack on the former.
    """
    plan = EvaluationPlan.of(
        rounds=ROUNDS,
        classes=2,
        kind=TaskKind.BINARY,
        epsilon=epsilon,
        delta=DELTA,
        accountant=Accountant.PRV,
        interim_releases=9,
        repeats=0,
    )
    question = next_question(plan, plan.test, EvaluationState())
    vectors = [
        answer(plan, question, np.array([[0, sign]], np.float32), np.array([1]), np.zeros(1, np.int64), 1, bytes(32))
        for sign in (1e3, -1e3)
    ]
    mechanism = plan.mechanism(plan.test, colluders=0, tolerated_dropouts=TOLERATED_DROPOUTS)
    present = HOSPITALS - TOLERATED_DROPOUTS
    stream = Keystream(np.random.default_rng([seed, int(1000 * epsilon)]).bytes(SEED_BYTES))
    variance = mechanism.share_variance(HOSPITALS)
    noise = sample(variance, ATTACKS * plan.length * present, stream).reshape(ATTACKS, present, -1).sum(axis=1)
    without = np.zeros(plan.length), vectors[1].astype(np.float64)
    there = np.arange(ATTACKS) % 2 == 0
    found = []
    for instead in without:
        direction = vectors[0] - instead
        released = np.where(there[:, None], vectors[0], instead) + noise
        guess = (released - (vectors[0] + instead) / 2) @ direction > 0
        found.append(float((guess[there].mean() + (~guess[~there]).mean()) / 2))
    return found[0], found[1], float(ndtr(0.5 / plan.noise_multiplier(plan.test)))


def made_up(seed: int) -> list[Trajectory]:
    """Return trainings on made-up scores of every kind of task, so that the command needs no data."""
    generator = np.random.default_rng(seed)
    return [
        _made_up(TaskKind.BINARY, 2, generator),
        _made_up(TaskKind.MULTICLASS, 4, generator),
        _made_up(TaskKind.ORDINAL, 5, generator),
        _made_up(TaskKind.MULTILABEL, 8, generator),
    ]


def _made_up(kind: TaskKind, classes: int, generator: np.random.Generator) -> Trajectory:
    labels, logits = [], []
    for size in (524, 624):
        latent = generator.normal(size=(size, classes))
        if kind is TaskKind.MULTILABEL:
            truth = (generator.random((size, classes)) < np.linspace(0.1, 0.5, classes)).astype(np.int64)
            towards = 2.5 * truth - 1.5
        else:
            truth = generator.choice(classes, size, p=_prevalence(classes))
            apart = np.abs(np.arange(classes) - truth[:, None])
            towards = np.where(apart == 0, 2.0, 0.0) if kind is not TaskKind.ORDINAL else 2.0 - apart
        labels.append(truth)
        logits.append([towards * step / ROUNDS + latent * 0.9 for step in range(ROUNDS + 1)])
    return Trajectory(kind, "made up", (labels[0], labels[1]), tuple(zip(*logits, strict=True)))


def _prevalence(classes: int) -> Floats:
    weights = np.arange(classes, 0, -1.0)
    shares: Floats = weights / weights.sum()
    return shares


def trained(folder: Path, seed: int) -> list[Trajectory]:
    """Return trainings of linear heads on PneumoniaMNIST (binary) and RetinaMNIST (ordinal) from a folder."""
    found = []
    for kind, name in ((TaskKind.BINARY, "pneumoniamnist"), (TaskKind.ORDINAL, "retinamnist")):
        features, labels = _features(folder / f"{name}.npz")
        for noise in (0.0, 1.2, 3.24):
            logits = _heads(features, labels[0], noise, seed)
            title = f"{name}, noise {noise:g}"
            found.append(Trajectory(kind, title, (labels[1], labels[2]), logits))
    return found


def _features(path: Path) -> tuple[list[Floats], list[Integers]]:
    import torch

    from common.models.scattering import Scattering

    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    scattering = Scattering()
    features, labels = [], []
    for part in ("train", "val", "test"):
        images = arrays[f"{part}_images"]
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        rows = [
            scattering(torch.from_numpy(np.ascontiguousarray(images[first : first + 64]))).numpy()
            for first in range(0, len(images), 64)
        ]
        features.append(np.concatenate(rows))
        labels.append(arrays[f"{part}_labels"].ravel().astype(np.int64))
    return features, labels


def _heads(features: Sequence[Floats], labels: Integers, noise: float, seed: int) -> tuple[tuple[Floats, Floats], ...]:
    """Train by ROUNDS × STEPS full-batch steps of clipped gradients, noise as of ε near 1 (3.24) or 3 (1.2) in all."""
    generator = np.random.default_rng([seed, int(100 * noise)])
    train, classes = features[0], int(labels.max()) + 1
    weights = np.zeros((train.shape[1], classes))
    norms = np.linalg.norm(train, axis=1)
    logits = [(features[1] @ weights, features[2] @ weights)]
    for step in range(1, ROUNDS * STEPS + 1):
        residual = np.exp(log_softmax(train @ weights, axis=1)) - np.eye(classes)[labels]
        clipped = residual * np.minimum(1, 1 / (np.linalg.norm(residual, axis=1) * norms))[:, None]
        gradient = train.T @ clipped
        gradient += generator.normal(size=gradient.shape) * noise * math.sqrt(ROUNDS * STEPS)
        weights = weights - LEARNING_RATE * gradient / len(labels)
        if step % STEPS == 0:
            logits.append((features[1] @ weights, features[2] @ weights))
    return tuple(logits)


def _drawn(labels: Integers, enlarge: int, generator: np.random.Generator) -> Integers:
    return generator.integers(0, len(labels), enlarge * len(labels))


def _by_task(trajectories: Sequence[Trajectory]) -> dict[str, list[Trajectory]]:
    groups: dict[str, list[Trajectory]] = defaultdict(list)
    for one in trajectories:
        groups[f"{one.kind}: {one.name.partition(',')[0]}"].append(one)
    return groups


def _finding(task: str, epsilon: float, release: str, figure: str, rows: Sequence[tuple[float, ...]]) -> Finding:
    exact, error, stated, half, inside = np.array(rows, np.float64).T
    return Finding(
        task,
        epsilon,
        release,
        figure,
        float(np.nanmean(exact)),
        float(np.nanmean(error)),
        float(np.nanstd(error, ddof=1)) if len(rows) > 1 else math.nan,
        float(stated.mean()),
        float(half.mean()),
        float(inside.mean()),
        len(rows),
    )


def _print(findings: Sequence[Finding]) -> None:
    print(f"{findings[0].task}, epsilon {findings[0].epsilon:g}")
    print(
        f"  {'release':10} {'figure':19} {'exact':>7} {'bias':>8} {'sd':>7} {'stated':>7} "
        f"{'half':>6} {'covers':>6} {'n':>5}"
    )
    for one in findings:
        print(
            f"  {one.release:10} {one.figure:19} {one.exact:7.3f} {one.bias:+8.4f} {one.deviation:7.4f} "
            f"{one.stated:7.4f} {one.half_width:6.3f} {one.coverage:6.3f} {one.draws:5}"
        )
