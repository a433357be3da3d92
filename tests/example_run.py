"""The events of a small run that really learns.

Logistic regression is averaged over four hospitals' shares of scikit-learn's breast cancer records. Every metric and ε
is computed; only the times and sizes of the exchanges are made up.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from opacus.accountants import RDPAccountant
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import (
    cohen_kappa_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
)

from common.config import Config, replace
from common.events import (
    Dropout,
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


def example_run(
    rounds: int = 6,
    data_set: str = "breast cancer (scikit-learn)",
    config: Config | None = None,
    finished: bool = True,
) -> list[Event]:
    """Return a run in which hospital-3 drops out of round 3 and hospital-4 refuses round 5."""
    config = replace(config or Config(), experiment={"rounds": rounds}, privacy={"accountant": "rdp"})
    started = RunStarted(
        time=START, run_id=RUN_ID, data_set=data_set, task="pneumonia", rounds=rounds, hospitals=HOSPITALS,
        config=config, config_hash="ab" * 32,
    )  # fmt: skip
    events: list[Event] = [started]
    events += [HospitalOnline(time=START + 1, hospital=hospital) for hospital in HOSPITALS]
    spent = dict.fromkeys(HOSPITALS, 0.0)
    for step, scores in enumerate(_scores_by_round()[:rounds], start=1):
        now = START + 10.0 * step
        away = {3: "hospital-3", 5: "hospital-4"}.get(step)
        answered = tuple(hospital for hospital in HOSPITALS if hospital != away)
        if step == 3:
            events += [
                Dropout(time=now, round=step, hospital="hospital-3", phase="masked_input"),
                HospitalLost(time=now, hospital="hospital-3"),
                HospitalOnline(time=now + 9, hospital="hospital-3"),
            ]
        if step == 5:
            reason = "the round would bring ε to 10.02, above this hospital's budget of 10"
            events.append(Refusal(time=now, round=step, hospital="hospital-4", reason=reason, code="budget"))
        for phase, seconds in (("masked_input", 2.4), ("consistency_check", 0.3), ("unmasking", 0.31)):
            missing = tuple(set(HOSPITALS) - set(answered)) if phase == "masked_input" and step == 3 else ()
            events.append(
                Exchange(time=now, round=step, phase=phase, seconds=seconds, answered=answered, missing=missing,
                         upload_bytes=52_000 * len(answered), download_bytes=104_000 * len(answered))
            )  # fmt: skip
        spent.update({hospital: _epsilon(step) for hospital in answered})
        events.append(_round(now + 8, step, scores, spent, answered))
    if finished:
        done = min(rounds, len(_scores_by_round()))
        events.append(RunFinished(time=START + 10.0 * done + 9, reason="all rounds are done", rounds_done=done))
    return events


def _round(
    now: float, step: int, scores: NDArray[np.float64], spent: dict[str, float], answered: Sequence[str]
) -> RoundDone:
    truth = _data()[1][::2]
    predicted = scores >= 0.5
    matrix = confusion_matrix(truth, predicted)
    precision, recall, f1, _ = precision_recall_fscore_support(truth, predicted, average="binary")
    curve = roc_curve(truth, scores)
    return RoundDone(
        time=now, round=step, step=step,
        accuracy=float(np.trace(matrix) / matrix.sum()), precision=precision, recall=recall, f1=f1,
        specificity=float(matrix[0, 0] / matrix[0].sum()), auc=float(roc_auc_score(truth, scores)),
        loss=float(log_loss(truth, scores)), kappa=float(cohen_kappa_score(truth, predicted)),
        epsilon=max(spent.values()), epsilon_spent=dict(spent), epsilon_budget=dict.fromkeys(spent, 10.0),
        hospitals=len(answered), seconds=3.2, upload_bytes=156_000 * len(answered),
        seconds_by_part=RoundTime(training=2.0, masking=0.2, moving=0.6, waiting=0.4),
        confusion=tuple(tuple(int(count) for count in row) for row in matrix),
        roc=tuple((float(x), float(y)) for x, y in zip(curve[0], curve[1], strict=True)),
    )  # fmt: skip


@cache
def _epsilon(steps: int) -> float:
    accountant = RDPAccountant()
    accountant.history = [(NOISE, SAMPLE_RATE, 10 * steps)]
    return float(accountant.get_epsilon(delta=DELTA))


@cache
def _data() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    records, labels = load_breast_cancer(return_X_y=True)
    return (records - records.mean(0)) / records.std(0), labels


@cache
def _scores_by_round() -> list[NDArray[np.float64]]:
    """Return the test scores after each of twelve rounds of federated averaging."""
    records, labels = _data()
    shards = [slice(start, None, 8) for start in (1, 3, 5, 7)]
    weights = np.zeros(records.shape[1])
    rounds = []
    for _ in range(12):
        updates = []
        for shard in shards:
            own = weights.copy()
            for _ in range(3):
                chance = 1 / (1 + np.exp(-records[shard] @ own))
                own -= 0.02 * records[shard].T @ (chance - labels[shard]) / len(labels[shard])
            updates.append(own - weights)
        weights = weights + np.mean(updates, axis=0)
        rounds.append(1 / (1 + np.exp(-records[::2] @ weights)))
    return rounds
