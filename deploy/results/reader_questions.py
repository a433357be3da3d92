"""What a radiologist asks first of a model, answered from what the run has told: for a report's first screen."""

import math
from dataclasses import dataclass

from common.privacy.mechanism import mechanism_of
from common.run.guarantee import shown_epsilon
from deploy.results.against_alone import was_it_worth_joining
from deploy.results.calibration import Calibration, attacker_gains
from deploy.results.history import RunHistory
from deploy.results.intervals import Interval, of_test
from deploy.results.site_spread import do_hospitals_differ

PRIORS = 0.01, 0.1, 0.5
"""What somebody believes beforehand, for ε in words."""

_HUNDRED = 100
_TWO_CLASSES = 2


@dataclass(frozen=True)
class ReaderAnswer:
    """A question with its answer, both in words."""

    question: str
    answer: str


def answers(history: RunHistory, calibration: Calibration | None) -> tuple[ReaderAnswer, ...]:
    """Return the questions that the run can answer, of a task with two classes; none where nothing was measured."""
    tested = history.tested
    if tested is None or len(tested.confusion) != _TWO_CLASSES:
        return ()
    sure = of_test(tested)
    unit = history.started.config.privacy.unit.value
    said = [
        ReaderAnswer("How many of the sick does it miss?", _of_a_hundred(sure["recall"], "sick", "missed")),
        ReaderAnswer(
            "How many of the healthy does it alarm?", _of_a_hundred(sure["specificity"], "healthy", "alarmed")
        ),
        ReaderAnswer(
            "How sure are these figures?",
            f"They come from {tested.records} {unit}s of the hospitals' pooled test parts; ranges are 95 % intervals"
            + (" over the sampling of records." if tested.exact else " over the sampling of records and privacy noise.")
            + " Another training run, or another hospital, can be off by more.",
        ),
    ]
    if calibration is not None:
        how = calibration.sentence()
        said.append(ReaderAnswer("Can its probabilities be read as chances?", f"{how[0].upper()}{how[1:]}."))
    said.append(ReaderAnswer("Was it worth joining?", was_it_worth_joining(history)))
    said.append(ReaderAnswer("Do hospitals differ?", do_hospitals_differ(history)))
    return (*said, ReaderAnswer("For whom does it not work?", _for_whom_not(history)))


def epsilon_in_words(history: RunHistory) -> str:
    """Say what ε allows somebody to learn about one unit of the training data."""
    config = history.started.config
    if not mechanism_of(config).is_private or not history.rounds:
        return "Without differential privacy nothing bounds what the model reveals about a person it was trained on."
    epsilon = history.training_epsilon
    if not math.isfinite(epsilon):
        return "Nothing bounds what the model reveals about a person it was trained on: its ε is infinite."
    gains = ", ".join(f"{100 * prior:.0f} % to at most {_share(attacker_gains(epsilon, prior))}" for prior in PRIORS)
    odds = f"{math.exp(epsilon):,.0f}" if epsilon > 1 else f"{math.exp(epsilon):.2f}"
    holder = mechanism_of(config).holder_of_the_model()
    return (
        f"ε = {shown_epsilon(epsilon)} in words: {holder} and knows everything but one "
        f"{config.privacy.unit.value} can raise the odds that it was used, and no empty one in its place, by a factor "
        f"of at most {odds}, but for a chance of δ = {config.privacy.delta:g} where hospitals count with this run's δ. "
        f"A belief rises from {gains}. These are bounds against the strongest "
        "attacker; ./confide audit privacy measures what known attacks reach."
    )


def _of_a_hundred(rate: Interval, who: str, what: str) -> str:
    if math.isnan(rate.value):
        return "Not measured."
    missed = _HUNDRED * (1 - rate.value)
    if math.isnan(rate.low):
        return f"About {missed:.0f} of 100 {who} are {what}, at the threshold below."
    low, high = _HUNDRED * (1 - rate.high), _HUNDRED * (1 - rate.low)
    return f"About {missed:.0f} of 100 {who} are {what} ({low:.0f} to {high:.0f}), at the threshold below."


def _for_whom_not(history: RunHistory) -> str:
    known = (
        "who was trained on stands below" if history.counted is not None else "the run asked for no statistics of them"
    )
    return (
        f"That is not known: no figure by sex, age or view leaves a hospital ({known}). Each hospital sees its own "
        "with ./confide hospital report. Take it to fail on people, machines and views that were not trained on."
    )


def _share(value: float) -> str:
    """Return a probability without rounding it up to certainty."""
    return f"{100 * value:.1f} %" if value < 0.999 else "more than 99.9 %"  # noqa: PLR2004 - what has one decimal
