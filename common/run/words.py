"""What every output of a run says in the same words: what must be admitted, and whose records a figure is of."""

import math

from common.config import Config
from common.run.guarantee import caveats
from common.telemetry.events import RoundDone, RunStarted

EXACT_COUNTS = "exact counts: not differentially private"

AUTHORITY_ON_SERVER = (
    "The server holds the authority's key: it could certify hospitals of its own invention and take part as them."
)

RELATION = "zero-out: against an empty one; how many there are is public"
"""The relation of every ε: which two data sets it compares."""

SPENT = "ε spent is by each hospital's own ledger: all runs on its data, at its own δ, unit and number of colluders"
"""What a hospital's report of ε is; where its policy names other terms than a run does, it holds at the policy's."""


def admitted(started: RunStarted) -> tuple[str, ...]:
    """Return what every output of a run must admit, a sentence each.

    Returns:
        Nothing for a run on real data, private, masked, measured under noise, with the authority's key elsewhere.
    """
    return admitted_of(started.config, started.data_set, started.authority_on_server)


def admitted_of(config: Config, data_set: str, authority_on_server: bool) -> tuple[str, ...]:
    """Return the same from what decides it."""
    told = caveats(config, data_set)
    if config.evaluation.exact:
        told += (f"evaluation.exact is true: how good the model is comes from {EXACT_COUNTS}.",)
    if authority_on_server:
        told += (AUTHORITY_ON_SERVER,)
    return told


def evaluation_cost(started: RunStarted, done: RoundDone) -> str:
    """Say what measuring validation records has cost by a round, with all that such an ε must be shown with.

    Returns:
        One line; of exact counts, that they have no ε.
    """
    if started.config.evaluation.exact:
        return f"evaluation: {EXACT_COUNTS}"
    if math.isnan(done.evaluation_epsilon):
        return "evaluation: this round asked nothing of the validation parts"
    privacy = started.config.privacy
    return (
        f"evaluation: ε = {done.evaluation_epsilon:.2f} after round {done.step} for each validation "
        f"{privacy.unit.value}, δ={privacy.delta:g} ({RELATION})"
    )
