"""A hospital that only books and releases, to be killed: forks a child for each line on standard input.

A child books rounds in the ledger and, after each, writes one byte to standard output: its witness that the round was
released. The parent of this process counts the bytes. The accountant is imported and warmed up once, before the first
fork, so that a child lives from the first microsecond in the code under test.

Usage: python ledger_worker.py BUDGET, then for each child a line with its ledger's folder; answers on standard error:
"ready", then for each child its process identifier and, when it is dead, its wait status.
"""

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).parents[4]))

from client.ledger.ledger import Ledger
from common.config import PrivacyUnit
from common.errors import BudgetExceededError
from common.privacy.accounting import MechanismEvent, MechanismKind, epsilon
from common.privacy.budget import Account, Booking, BudgetPolicy

EVENT = MechanismEvent(MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN, 1.5, 0.1, 1)
DELTA = 1e-5
BOOKING = Booking(Account.TRAINING, EVENT, PrivacyUnit.RECORD, None, DELTA)
FINGERPRINT = bytes(32)
RUN_ID = "5e" * 16
WITNESS = b"."


def rounds_within(budget: float) -> int:
    """Return how many rounds a budget allows; afterwards the accountant knows the answer to what a child will ask."""
    rounds = 0
    while epsilon([EVENT] * (rounds + 1), DELTA) <= budget:
        rounds += 1
    return rounds


def train(folder: Path, budget: float) -> NoReturn:
    """Book and release rounds until killed, or refused and then killed."""
    ledger = Ledger.open(folder, FINGERPRINT)
    policy = BudgetPolicy(budget, DELTA)
    round_number = 0
    while True:
        round_number += 1
        try:
            ledger.record(RUN_ID, round_number, BOOKING, policy)
        except BudgetExceededError:
            signal.pause()
        os.write(1, WITNESS)


def answer(text: str) -> None:
    """Tell the parent."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def main() -> None:
    """Fork a child for each line read; wait for its end before the next."""
    budget = float(sys.argv[1])
    rounds_within(budget)
    answer("ready")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            train(Path(line.rstrip("\n")), budget)
        answer(str(child))
        _, status = os.waitpid(child, 0)
        answer(str(status))


if __name__ == "__main__":
    main()
