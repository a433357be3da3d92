"""How far hospitals' own AUC lie apart, in words: for reports and terminals."""

import math
from collections.abc import Iterator

from common.evaluation.site_spread import CASES
from common.telemetry.events import SpreadTold
from deploy.results.history import RunHistory

QUARTILES = ("lower", "median", "upper")

_AT_HOME = "Each hospital finds its own AUC with ./confide hospital report"


def do_hospitals_differ(history: RunHistory) -> str:
    """Answer in a few sentences, whatever the run asked and told."""
    if not history.started.config.evaluation.spread_share:
        return f"The run did not ask (evaluation.spread_share is 0). {_AT_HOME}."
    spread = history.spread
    if spread is None:
        return (
            "Not known: no round that asked hospitals gave a sum. A hospital that answered such a round has booked it, "
            f"and the ε here is without it. {_AT_HOME}."
        )
    return f"{spread_in_words(spread)} {_AT_HOME}, and compares the two there; nobody else sees it."


def spread_in_words(spread: SpreadTold) -> str:
    """Say between which AUC the middle half of hospitals lies, or that noise hides it."""
    who = (
        f"About {spread.counted:.0f} of {spread.hospitals} hospitals count ({spread.counted_interval[0]:.0f} to "
        f"{spread.counted_interval[1]:.0f}): with {CASES.least} cases of a class or fewer a hospital does not, "
        f"from {CASES.full} on in full."
    )
    if math.isnan(spread.quartiles[1]):
        return (
            f"{who} Privacy noise is too large to tell how far their AUC lie apart: that would take about "
            f"{spread.needed} hospitals that count in full, or a larger evaluation.spread_share."
        )
    below = ("a quarter of them have an AUC below", "half below", "three quarters below")
    told = ", ".join(
        f"{what} {value:.3f} ({low:.3f} to {high:.3f})"
        for what, value, (low, high) in zip(below, spread.quartiles, spread.intervals, strict=True)
    )
    return (
        f"{who} Of these, {told}; ranges are 95 % intervals over privacy noise. A part of that is chance: an AUC of "
        "0.9 from 50 cases of each class is known to about ±0.06."
    )


def spread_lines(history: RunHistory) -> Iterator[str]:
    """Return the lines under a run's last figures; none where the run did not ask."""
    if not history.started.config.evaluation.spread_share or not history.rounds:
        return
    spread = history.spread
    if spread is None:
        yield "Hospitals' own AUC: not known, no round that asked gave a sum"
        return
    low, high = spread.counted_interval
    counted = f"about {spread.counted:.0f} [{low:.0f}, {high:.0f}] of {spread.hospitals}"
    yield f"Hospitals' own AUC, over {counted} that count:"
    if math.isnan(spread.quartiles[1]):
        yield f"  privacy noise is too large to tell; about {spread.needed} that count in full would be enough"
        return
    for name, value, (low, high) in zip(QUARTILES, spread.quartiles, spread.intervals, strict=True):
        yield f"  {name:<20} {value:.3f}  [{low:.3f}, {high:.3f}]"
