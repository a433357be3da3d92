"""Whether joining paid, in words: a run's last model against hospitals' own, for reports and terminals."""

import math
from collections.abc import Iterator

from common.privacy.calibration import epsilon_of_share
from common.privacy.mechanism import mechanism_of
from common.telemetry.events import Compared
from deploy.results.history import RunHistory

_HUNDRED = 100


def was_it_worth_joining(history: RunHistory) -> str:
    """Answer in a few sentences, whatever the run asked and told."""
    at_home = "Each hospital finds out at home with ./confide hospital report --alone."
    if not history.started.config.privacy.alone_share:
        return f"The run did not ask (privacy.alone_share is 0). {at_home}"
    compared = history.compared
    if compared is None:
        return (
            "Not known: the model was not compared with hospitals' own, or no round that did so gave a sum. A hospital "
            f"that answered such a round has booked it, and the ε here is without it. {at_home}"
        )
    return f"{gain_in_words(history, compared)} {_verdict(compared)} {_alone_is(history)}"


def gain_in_words(history: RunHistory, compared: Compared) -> str:
    """Say by how much the run's model is right more often, with its interval."""
    unit = history.started.config.privacy.unit.value
    gain = _HUNDRED * compared.accuracy
    low, high = (f"{_HUNDRED * end:+.1f}".replace("-", "−") for end in compared.interval)
    return (
        f"Of 100 test {unit}s the run's model gets {abs(gain):.1f} {'more' if gain >= 0 else 'fewer'} right than the "
        f"models that hospitals' own records give alone ({low} to {high}); {compared.records} were compared."
    )


def _verdict(compared: Compared) -> str:
    low, high = compared.interval
    if low > 0:
        return "So joining paid, on average over the hospitals."
    if high < 0:
        return "So joining did not pay, on average over the hospitals."
    return "That may be chance: these records cannot tell whether joining paid."


def _alone_is(history: RunHistory) -> str:
    privacy, cost = history.started.config.privacy, ""
    if mechanism_of(history.started.config).is_private:
        alone, together = (epsilon_of_share(privacy, share) for share in (privacy.alone_share, 1 - privacy.alone_share))
        cost = f" at ε = {alone:.1f}, its threshold included; the run's own training had {together:.1f}"
    return (
        f"Each hospital trained alone by the run's recipe{cost}. Its own result stays with it, and another training "
        "would give other models."
    )


def comparison_lines(history: RunHistory) -> Iterator[str]:
    """Return the lines under a run's last figures; none where the run did not ask."""
    if not history.started.config.privacy.alone_share or not history.rounds:
        return
    compared = history.compared
    if compared is None:
        yield "Against hospitals' own models: not known, no round that asked gave a sum"
        return
    yield "Against hospitals' models of their own records alone, by the same recipe:"
    yield _line("accuracy", compared.accuracy, compared.interval)
    for name, gain in compared.recalls.items():
        if not math.isnan(gain):
            yield _line(f"found of {name}", gain, compared.recall_intervals.get(name, (math.nan, math.nan)))


def _line(name: str, gain: float, ends: tuple[float, float]) -> str:
    return f"  {name:<20} {gain:+.3f}  [{ends[0]:+.3f}, {ends[1]:+.3f}]"
