"""The events of small runs that really learn.

Logistic regression is averaged over four hospitals' shares of scikit-learn's breast cancer records, or of its wines
where there must be more than two classes. Every metric and ε is computed; noise is added where a run's evaluation has
noise, of the size that its ε asks for. Only the times and sizes of the exchanges are made up.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from opacus.accountants import RDPAccountant
from scipy import stats
from scipy.optimize import brentq
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.metrics import cohen_kappa_score, confusion_matrix, log_loss, roc_auc_score, roc_curve

from common.config import Config, replace
from common.evaluation.calibration import rows_of
from common.telemetry.events import (
    COMPLETED,
    Dropout,
    Evaluated,
    Event,
    Exchange,
    HospitalLost,
    HospitalOnline,
    Refusal,
    RoundDone,
    RoundTime,
    RunFinished,
    RunStarted,
)

START = 1_750_000_000.0
NOISE, SAMPLE_RATE, DELTA = 1.1, 0.1, 1e-4
HOSPITALS = ("hospital-1", "hospital-2", "hospital-3", "hospital-4")
RUN_ID = "0123456789abcdef0123456789abcdef"

INTERIM_SHARE, FINAL_SHARE, CLASSES_SHARE = 0.5, 0.45, 0.05
MU = 0.3139
"""μ of the Gaussian mechanism that spends ε = 1 at δ = 1e-4."""
MOST_ROUNDS = 12
THRESHOLD = 0.5
TWO_CLASSES = 2

Floats = NDArray[np.float64]


def example_run(
    rounds: int = 6,
    data_set: str = "breast cancer (scikit-learn)",
    config: Config | None = None,
    finished: bool = True,
    tested: bool = True,
    authority_on_server: bool = False,
) -> list[Event]:
    """Return a run in which hospital-3 drops out of round 3 and hospital-4 refuses round 5.

    Args:
        rounds: asked for; at most 12 are done.
        data_set: its name.
        config: with exact evaluation counts, or the noise that is the default.
        finished: the run has ended.
        tested: its last model was measured on the test parts before that.
        authority_on_server: the server holds the authority's key.
    """
    return _run(_two_classes(), rounds, data_set, config, finished, tested, authority_on_server)


def example_of_three_classes(rounds: int = 6, config: Config | None = None, has_auc: bool = True) -> list[Event]:
    """Return a run of a task with three classes, which has neither threshold nor ROC; without ``has_auc`` no AUC."""
    task = _three_classes(has_auc)
    return _run(task, rounds, "wines (scikit-learn)", config, True, True, False)


@dataclass(frozen=True)
class _Task:
    name: str
    classes: int
    probabilities: Sequence[Mapping[str, Floats]]
    """After each round by part, shape (records, classes)."""
    labels: Mapping[str, NDArray[np.int64]]
    has_auc: bool = True


def _run(
    task: _Task,
    rounds: int,
    data_set: str,
    config: Config | None,
    finished: bool,
    tested: bool,
    authority_on_server: bool,
) -> list[Event]:
    config = replace(config or Config(), experiment={"rounds": rounds}, privacy={"accountant": "rdp"})
    exact = config.evaluation.exact
    started = RunStarted(
        time=START, run_id=RUN_ID, data_set=data_set, task=task.name, rounds=rounds, hospitals=HOSPITALS,
        config=config, config_hash="ab" * 32, evaluation_plan=() if exact else _plan(rounds, config),
        authority_on_server=authority_on_server,
    )  # fmt: skip
    events: list[Event] = [started]
    events += [HospitalOnline(time=START + 1, hospital=hospital) for hospital in HOSPITALS]
    spent = dict.fromkeys(HOSPITALS, 0.0)
    done = min(rounds, MOST_ROUNDS)
    for step in range(1, done + 1):
        now = START + 10.0 * step
        away = {3: "hospital-3", 5: "hospital-4"}.get(step)
        answered = tuple(hospital for hospital in HOSPITALS if hospital != away)
        events += _happenings(now, step, answered)
        spent.update({hospital: _epsilon(step) for hospital in answered})
        events.append(_round(now + 8, step, task, config, spent, answered))
    if tested and done == rounds:
        events.append(_test(START + 10.0 * done + 8.5, done, task, config))
    if finished:
        events.append(RunFinished(time=START + 10.0 * done + 9, reason=COMPLETED, rounds_done=done))
    return events


def _happenings(now: float, step: int, answered: Sequence[str]) -> list[Event]:
    """Return what happens in a round before its end."""
    events: list[Event] = []
    if step == 3:
        events += [
            Dropout(time=now, round=step, hospital="hospital-3", phase="masked_input"),
            HospitalLost(time=now, hospital="hospital-3"),
            HospitalOnline(time=now + 9, hospital="hospital-3"),
        ]
    if step == 5:
        reason = "the round would bring ε to 10.02, above this hospital's budget of 10"
        events.append(Refusal(time=now, round=step, hospital="hospital-4", reason=reason, code="budget"))
    # Whoever is missing makes the survivors sign; otherwise the sum is opened at once.
    ending = (("consistency_check", 0.3), ("unmasking", 0.31)) if step == 3 else (("full_unmasking", 0.31),)
    for phase, seconds in (("masked_input", 2.4), *ending):
        missing = tuple(set(HOSPITALS) - set(answered)) if phase == "masked_input" and step == 3 else ()
        events.append(
            Exchange(time=now, round=step, phase=phase, seconds=seconds, answered=tuple(answered), missing=missing,
                     upload_bytes=52_000 * len(answered), download_bytes=104_000 * len(answered))
        )  # fmt: skip
    return events


def _round(
    now: float, step: int, task: _Task, config: Config, spent: dict[str, float], answered: Sequence[str]
) -> RoundDone:
    rounds, most = config.experiment.rounds, config.evaluation.interim_releases
    interim = _interim_steps(rounds, most)
    told: dict[str, Any] = dict.fromkeys(("accuracy", "precision", "recall", "f1", "auc", "loss"), math.nan)
    told |= {"part": "none"}
    if config.evaluation.exact:
        told = {**_measures(task, step, "test", None)[0], "part": "test"}
    elif step in interim or step == rounds:
        share = FINAL_SHARE if step == rounds else INTERIM_SHARE / max(1, len(interim))
        measures, _ = _measures(task, step, "validation", share)
        asked = INTERIM_SHARE * sum(earlier <= step for earlier in interim) / max(1, len(interim))
        asked += CLASSES_SHARE + FINAL_SHARE * (step == rounds)
        told = {**measures, "part": "validation", "evaluation_epsilon": gaussian_epsilon(MU * math.sqrt(asked))}
    return RoundDone(
        time=now, round=step, step=step, **told,
        epsilon=max(spent.values()), epsilon_spent=dict(spent), epsilon_budget=dict.fromkeys(spent, 10.0),
        hospitals=len(answered), seconds=3.2, upload_bytes=156_000 * len(answered),
        seconds_by_part=RoundTime(training=2.2, moving=0.6, waiting=0.4),
    )  # fmt: skip


def _test(now: float, step: int, task: _Task, config: Config) -> Evaluated:
    exact = config.evaluation.exact
    measures, noise = _measures(task, step, "test", None if exact else 1.0)
    claim = (
        "exact counts: not differentially private; nobody sees one hospital's, but sums over hospitals are exact"
        if exact
        else "ε = 1.001 at δ = 0.0001 for each record of the part that was measured (zero-out: against an empty one, "
        "their number being stated), against the server, with up to 1 dropout a round"
    )
    return Evaluated(
        time=now, step=step, exact=exact, records=len(task.labels["test"]), **measures, noise=noise,
        threshold=THRESHOLD if task.classes == TWO_CLASSES else math.nan,
        epsilon=math.nan if exact else gaussian_epsilon(MU), claim=claim,
    )  # fmt: skip


def _plan(rounds: int, config: Config) -> tuple[str, ...]:
    interim = ", ".join(map(str, _interim_steps(rounds, config.evaluation.interim_releases)))
    cost = (
        "evaluation: ε = 1.001 for each validation unit and 1.001 for each test unit at δ = 0.0001 (zero-out: a unit "
        "against an empty one; the number of units is public)"
    )
    return (
        cost,
        f"  validation: after each of rounds {interim} (noise multiplier 13.51)",
        "  test: the last model, once (noise multiplier 3.19)",
    )


def _interim_steps(rounds: int, most: int) -> tuple[int, ...]:
    count = min(rounds - 1, most)
    every = rounds <= most + 1
    return tuple(step if every else round(step * rounds / (count + 1)) for step in range(1, count + 1))


def gaussian_epsilon(mu: float) -> float:
    """Return ε at :data:`DELTA` of Gaussian mechanisms whose 1/z² add up to ``mu`` squared (Dong et al. 2019)."""

    def excess(epsilon: float) -> float:
        tail = stats.norm.cdf(-epsilon / mu - mu / 2)
        return float(stats.norm.cdf(-epsilon / mu + mu / 2) - math.exp(epsilon) * tail) - DELTA

    return float(brentq(excess, 0.0, 50.0))


def _measures(task: _Task, step: int, part: str, share: float | None) -> tuple[dict[str, Any], dict[str, float]]:
    """Return a model's measures with their intervals, and the noise in them; with exact counts neither."""
    truth, chance = task.labels[part], task.probabilities[step - 1][part]
    binary = task.classes == TWO_CLASSES
    predicted = (chance[:, 1] >= THRESHOLD).astype(int) if binary else chance.argmax(1)
    matrix = confusion_matrix(truth, predicted, labels=range(task.classes)).astype(np.float64)
    auc, loss = math.nan, float(log_loss(truth, chance, labels=range(task.classes)))
    if task.has_auc:
        auc = float(roc_auc_score(truth, chance[:, 1] if binary else chance, multi_class="ovr"))
    deviation = 0.0
    if share is not None:
        # A record counts ± one half at the decision's node, which has 70 of 100 of the norm.
        deviation = math.sqrt(4 / 3) / (MU * math.sqrt(share)) * 100 / (2 * 70)
        random = np.random.default_rng([step, len(part)])
        matrix = np.clip(matrix + [_around(random, deviation, task.classes) for _ in matrix], 0, None)
        loss += random.normal(0, 0.02)
        if task.has_auc:
            auc = min(0.999, auc + random.normal(0, 0.4 * deviation / len(truth)))
    told: dict[str, Any] = {**_rates(matrix), "auc": auc, "loss": loss, "ece": 0.04}
    told["kappa"] = float(cohen_kappa_score(truth, predicted, weights="quadratic"))
    told["confusion"] = tuple(tuple(round(count) for count in row) for row in matrix)
    if binary:
        curve = roc_curve(truth, chance[:, 1])
        told["roc"] = tuple((float(x), float(y)) for x, y in zip(curve[0], curve[1], strict=True))
        order, own = np.argsort(chance[:, 1]), (truth == 1).astype(np.float64)
        scores = np.log(np.clip(chance[:, 1], 1e-6, 1 - 1e-6) / np.clip(chance[:, 0], 1e-6, 1 - 1e-6))[order]
        told["scores"] = rows_of(scores, 1 - own[order], own[order])
    if share is None:
        return told, {}
    noise = {name: math.sqrt(2) * deviation / len(truth) for name in ("accuracy", "precision", "recall", "f1")}
    noise |= {"specificity": 2 * deviation / len(truth)}
    if task.has_auc:
        noise |= {"auc": 0.4 * deviation / len(truth)}
    told["intervals"] = {name: _interval(told[name], noise[name], len(truth)) for name in noise}
    return told, noise


def _around(random: np.random.Generator, deviation: float, length: int) -> Floats:
    """Return noise that moves records from one cell of a row to another."""
    drawn = random.normal(0, deviation, length)
    return np.asarray(drawn - drawn.mean(), np.float64)


def _rates(matrix: Floats) -> dict[str, float]:
    right, truly, called = np.diagonal(matrix), matrix.sum(1), np.maximum(matrix.sum(0), 1e-9)
    of_interest = slice(1, 2) if len(matrix) == TWO_CLASSES else slice(None)
    precision, recall = (right / called)[of_interest], (right / truly)[of_interest]
    false_alarms = (called - right) / (matrix.sum() - truly)
    return {
        "accuracy": float(right.sum() / matrix.sum()),
        "precision": float(precision.mean()),
        "recall": float(recall.mean()),
        "f1": float((2 * precision * recall / (precision + recall)).mean()),
        "specificity": float((1 - false_alarms)[of_interest].mean()),
    }


def _interval(value: float, deviation: float, records: int) -> tuple[float, float]:
    reach = 1.96 * math.sqrt(deviation**2 + max(value * (1 - value), 1 / records) / records)
    return max(0.0, value - reach), min(1.0, value + reach)


@cache
def _epsilon(steps: int) -> float:
    accountant = RDPAccountant()
    accountant.history = [(NOISE, SAMPLE_RATE, 10 * steps)]
    return float(accountant.get_epsilon(delta=DELTA))


@cache
def _two_classes() -> _Task:
    records, labels = load_breast_cancer(return_X_y=True)
    return _learn("pneumonia", records, labels, rate=0.02)


@cache
def _three_classes(has_auc: bool) -> _Task:
    records, labels = load_wine(return_X_y=True)
    mixed = np.random.default_rng(1).permutation(len(labels))
    return _learn("wine", records[mixed], labels[mixed], rate=0.05, has_auc=has_auc)


def _learn(name: str, records: Floats, labels: NDArray[np.int64], rate: float, has_auc: bool = True) -> _Task:
    """Average softmax regression over hospitals that have every eighth record each; the others measure it."""
    records = (records - records.mean(0)) / records.std(0)
    classes = len(np.unique(labels))
    truth = np.eye(classes)[labels]
    parts = {"validation": slice(2, None, 4), "test": slice(0, None, 4)}
    weights = np.zeros((records.shape[1], classes))
    rounds = []
    for _ in range(MOST_ROUNDS):
        updates = []
        for shard in (slice(start, None, 8) for start in (1, 3, 5, 7)):
            own = weights.copy()
            for _ in range(3):
                wrong = _softmax(records[shard] @ own) - truth[shard]
                own -= rate * records[shard].T @ wrong / len(wrong)
            updates.append(own - weights)
        weights = weights + np.mean(updates, axis=0)
        rounds.append({part: _softmax(records[rows] @ weights) for part, rows in parts.items()})
    return _Task(name, classes, rounds, {part: labels[rows] for part, rows in parts.items()}, has_auc)


def _softmax(scores: Floats) -> Floats:
    shifted = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True), np.float64)
