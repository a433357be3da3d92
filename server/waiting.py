"""Who may still take part in a run, and when there are enough of them for a round."""

import time

from common.errors import EvaluationSpentError, OtherVersionError
from common.telemetry.events import STOPPED
from server.conversation import Conversation
from server.run_plan import RunPlan

POLL_SECONDS = 0.1

_NEVER_AGAIN = frozenset({"policy", "config", "data", "ledger", "privacy", "identity", "weight_range"})
"""Refusals that a hospital will not take back in this run."""

_SPENT = "budget_exceeded"
"""The refusal of a hospital that still evaluates, but trains no more."""


class Attendance:
    """Remembers who has refused for good, and waits for the others."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._retired: dict[str, str] = {}
        """Hospital to the code of its refusal."""

    def note_refusals(self) -> bool:
        """Remember who refused in the last round; returns whether anybody's budget for evaluation is spent."""
        refused = {name: refusal.code for name, refusal in self._conversation.tally.refused.items()}
        self._retired.update(
            {name: code for name, code in refused.items() if code in _NEVER_AGAIN or code == _SPENT},
        )
        # Asked again, such a hospital would only refuse again; it takes part once it was upgraded and the run resumed.
        self._retired.update(dict.fromkeys(self._conversation.tally.other_version, OtherVersionError.code))
        return EvaluationSpentError.code in refused.values()

    def wait(self, plan: RunPlan, *, train: bool, is_first: bool) -> frozenset[str] | str:
        """Return who may take part once enough are there and their number is stable, or why no run can start.

        Args:
            plan: of the run, with its members of now.
            train: the round is one of training.
            is_first: no round of this process has begun, so those who are late are waited for.
        """
        transport, least = plan.config.transport, plan.description.aggregation.min_hospitals
        allowed = self._allowed(plan, train=train)
        if len(allowed) < least:
            return self._too_few(allowed, least)
        give_up = time.monotonic() + transport.start_deadline_seconds
        stable_since, last = time.monotonic(), frozenset[str]()
        while not plan.must_stop():
            online = self._conversation.online() & allowed
            now = time.monotonic()
            if online != last:
                stable_since, last = now, online
            everyone = len(online) >= min(plan.description.experiment.num_clients, len(allowed))
            still = now - stable_since >= transport.roster_stable_seconds
            if len(online) >= least and (everyone or still or not is_first):
                return allowed
            if now > give_up:
                return f"only {len(online)} of at least {least} hospitals were online within the deadline"
            time.sleep(POLL_SECONDS)
        return STOPPED

    def _allowed(self, plan: RunPlan, *, train: bool) -> frozenset[str]:
        gone = {name for name, code in self._retired.items() if train or code != _SPENT}
        return frozenset(plan.description.roster) - gone - plan.absent

    def _too_few(self, allowed: frozenset[str], least: int) -> str:
        reasons = "; ".join(f"{name}: {code}" for name, code in sorted(self._retired.items()))
        return f"{len(allowed)} of at least {least} hospitals are left after refusals ({reasons})"
