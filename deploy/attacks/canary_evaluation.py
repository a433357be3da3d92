"""Measuring with a canary: does a release of the evaluation plan reveal more of a test record than the ledger claims?

The server is the attacker, and as strong as the theorem allows: it makes a model of its own that is right on one image
alone, it chooses the edges, and it knows every other record. Trial after trial a fair coin puts the image into a
hospital's test part or leaves an empty record in its place, the hospitals answer with the deployed vectors and noise,
and the server's score is the released sum along the one direction in which the image moves it.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.ledger.ledger import Ledger
from common.config import PrivacyConfig
from common.evaluation.plan import EvaluationPlan
from common.evaluation.question import Question
from common.evaluation.tree import answer
from common.keystream import SEED_BYTES, Keystream
from common.privacy.accounting import Accountant, Epsilon, EpsilonAdversary
from common.privacy.budget import Account, Booking, BudgetPolicy
from common.task import TaskKind
from deploy.attacks.canary_training import RUN_ID, Exposure

Random = Callable[[int], bytes]

SCORE = 20.0
"""The log-odds that the attacker's model gives its image; every other record gets the opposite."""


def measure_with_a_canary(
    trials: int, records: int, hospitals: int, privacy: PrivacyConfig, ledger_folder: Path, random: Random = os.urandom
) -> Exposure:
    """Release the test part's measurement again and again, each time with noise of its own.

    Args:
        trials: independent ones, each with a fair coin.
        records: of the pooled test part, the canary's place among them.
        hospitals: that add noise; the first may have the canary.
        privacy: target ε of the release, δ, accountant, colluders and tolerated dropouts.
        ledger_folder: an empty one, for the hospital's ledger, in which one release is booked.
        random: source of the coins and of the noise.

    Raises:
        PrivacyError: no noise reaches the target.
    """
    accountant = Accountant(privacy.accountant)
    plan = EvaluationPlan.of(
        rounds=1, classes=2, kind=TaskKind.BINARY, epsilon=privacy.target_epsilon, delta=privacy.delta,
        accountant=accountant, interim_releases=1, repeats=0,
    )  # fmt: skip
    release = plan.test
    edges = tuple(float(edge) for edge in np.linspace(-3, 3, plan.layout(release).edges[0]))
    question = Question(release.number, (edges,))
    others = _vector(plan, question, np.full(records - 1, -SCORE), records - 1)
    canary = _vector(plan, question, np.array([SCORE]), 1)
    mechanism = plan.mechanism(release, colluders=privacy.colluders, tolerated_dropouts=privacy.tolerated_dropouts)
    ledger = Ledger.open(ledger_folder, bytes(32))
    booking = Booking(Account.TEST, mechanism.event(1.0), privacy.unit, privacy.colluders, privacy.delta)
    spent = ledger.record(RUN_ID, 1, booking, BudgetPolicy(privacy.target_epsilon, privacy.delta), accountant)
    included = Keystream(random(SEED_BYTES)).uniform(trials) < 0.5  # noqa: PLR2004 - a fair coin
    direction = canary / np.linalg.norm(canary)
    scores = np.empty(trials)
    # A tolerated dropout may take its noise away: the guarantee is for the noise that is left.
    present = hospitals - privacy.tolerated_dropouts
    for trial in range(trials):
        total = others + (canary if included[trial] else 0)
        for _ in range(present):
            total = total + mechanism.noise_share(hospitals, Keystream(random(SEED_BYTES)))
        scores[trial] = float((total - others) @ direction)
    claim = Epsilon(spent, privacy.delta, privacy.unit, EpsilonAdversary.SERVER, accountant)
    return Exposure(claim, scores, included, plan.length, records)


def _vector(plan: EvaluationPlan, question: Question, scores: NDArray[np.float64], records: int) -> NDArray[np.int64]:
    """Return the answer of a number of ill records with these log-odds."""
    logits = np.stack([np.zeros(records), scores], axis=1).astype(np.float32)
    labels = np.ones(records, np.int64)
    return answer(plan, question, logits, labels, np.arange(records), records, bytes(32))
