"""Whether joining paid, in words that follow from the interval and never say more."""

import math
import re

import pytest

from common.config import replace
from common.telemetry.events import Compared, Event, RunStarted
from deploy.results.against_alone import comparison_lines, gain_in_words, was_it_worth_joining
from deploy.results.history import RunHistory
from deploy.results.outputs import epsilon_by_hospital, summary
from tests.support.example_run import example_run

EPSILONS = re.compile(r"at ε = (\d\.\d), its threshold included; the run's own training had (\d\.\d)\.")


def history(accuracy: float | None = None, ends: tuple[float, float] = (-1.0, 1.0), share: float = 0.5) -> RunHistory:
    events: list[Event] = []
    for event in example_run(3):
        if isinstance(event, RunStarted):
            config = replace(event.config, privacy={"alone_share": share})
            events.append(event.model_copy(update={"config": config}))
        else:
            events.append(event)
    if accuracy is not None:
        last = RunHistory.of(events).rounds[-1]
        compared = Compared(
            time=1.0, round=9, step=last.step, records=600, accuracy=accuracy, interval=ends, noise=0.01, disagree=0.1,
            recalls={"malignant": 0.25, "benign": math.nan}, recall_intervals={"malignant": (0.125, 0.5)}, epsilon=1.5,
            epsilon_spent={"hospital-1": 9.5}, claim="what it means",
        )  # fmt: skip
        events.insert(-1, compared)
    return RunHistory.of(events)


@pytest.mark.parametrize(
    ("accuracy", "ends", "said"),
    [
        (0.02, (0.01, 0.03), "gets 2.0 more right"),
        (0.02, (0.01, 0.03), "So joining paid"),
        (0.02, (0.01, 0.03), "(+1.0 to +3.0); 600 were compared"),
        (-0.02, (-0.03, -0.01), "gets 2.0 fewer right"),
        (-0.02, (-0.03, -0.01), "joining did not pay"),
        (0.01, (-0.01, 0.03), "cannot tell whether joining paid"),
        (0.01, (-0.01, 0.03), "(−1.0 to +3.0)"),
    ],
)
def test_the_verdict_is_that_of_the_interval(accuracy: float, ends: tuple[float, float], said: str) -> None:
    answer = was_it_worth_joining(history(accuracy, ends))
    assert said in answer
    verdicts = ("So joining paid", "joining did not pay", "cannot tell")
    assert sum(verdict in answer for verdict in verdicts) == 1


def test_both_epsilons_stand_beside_the_verdict() -> None:
    told = {}
    for share in (0.5, 0.1):
        found = EPSILONS.search(was_it_worth_joining(history(0.02, (0.01, 0.03), share)))
        assert found is not None
        told[share] = float(found[1]), float(found[2])
    assert told[0.5][0] == told[0.5][1] < 8.0
    assert told[0.1][0] < told[0.5][0] < told[0.1][1] < 8.0


def test_a_run_that_did_not_ask_and_one_that_was_not_told_say_so() -> None:
    assert "did not ask" in was_it_worth_joining(history(share=0.0))
    assert "report --alone" in was_it_worth_joining(history(share=0.0))
    untold = was_it_worth_joining(history())
    assert "Not known" in untold
    assert "has booked it, and the ε here is without it" in untold


def test_the_terminals_lines_have_each_class_that_is_told() -> None:
    lines = list(comparison_lines(history(0.02, (0.01, 0.03))))
    assert len(lines) == 3
    assert lines[1].split() == ["accuracy", "+0.020", "[+0.010,", "+0.030]"]
    assert lines[2].startswith("  found of malignant")
    assert max(map(len, lines)) <= 78
    assert list(comparison_lines(history(share=0.0))) == []
    assert "not known" in next(comparison_lines(history()))


def test_a_comparison_with_another_step_is_not_the_last_models() -> None:
    told = history(0.02, (0.01, 0.03))
    assert told.told_against_alone is not None
    events = [*example_run(3)[:-1], told.told_against_alone.model_copy(update={"step": 1})]
    assert RunHistory.of(events).compared is None


def test_outputs_state_what_has_been_spent_with_the_comparison() -> None:
    told = history(0.02, (0.01, 0.03))
    assert told.training_epsilon == 9.5
    assert (told.test_epsilon, told.test_claim) == (1.5, "what it means")
    assert epsilon_by_hospital(told)["hospital-1"]["epsilon"] == 9.5
    whole = summary(told)
    assert whole["test"]["epsilon"] == 1.5
    assert whole["against_alone"]["recalls"] == {"malignant": 0.25, "benign": None}
    assert gain_in_words(told, told.compared) in was_it_worth_joining(told) if told.compared else False
