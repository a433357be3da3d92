import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.errors import RunError
from common.telemetry.events import (
    Event,
    EventFile,
    HospitalLost,
    Refusal,
    RoundDone,
    RunFinished,
    RunStarted,
    parse_event,
)
from tests.support.example_run import example_run

EVENTS = example_run(3)


def _write(path: Path, events: list[Event]) -> None:
    path.write_text("".join(event.to_line() for event in events), encoding="utf-8")


def test_what_was_written_is_read_back() -> None:
    assert [parse_event(event.to_line()) for event in EVENTS] == EVENTS


def test_undefined_measures_travel_as_null_and_come_back_as_nan() -> None:
    done = next(event for event in EVENTS if isinstance(event, RoundDone))
    line = done.model_copy(update={"auc": math.nan, "epsilon": math.inf}).to_line()
    read = parse_event(line)
    assert '"auc":null' in line
    assert isinstance(read, RoundDone)
    assert math.isnan(read.auc)
    assert math.isnan(read.epsilon)


@given(st.integers(min_value=0, max_value=10_000))
def test_a_file_cut_anywhere_yields_the_whole_lines_before_the_cut(cut: int) -> None:
    text = "".join(event.to_line() for event in EVENTS).encode()[:cut]
    read = [event for line in text.splitlines(keepends=True) if line.endswith(b"\n") and (event := parse_event(line))]
    assert read == EVENTS[: text.count(b"\n")]


def test_an_unfinished_last_line_is_left_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    line = EVENTS[1].to_line()
    path.write_text(EVENTS[0].to_line() + line[:20], encoding="utf-8")
    file = EventFile(path)
    assert file.read_new() == EVENTS[:1]
    assert file.read_new() == []
    with path.open("a", encoding="utf-8") as writer:
        writer.write(line[20:])
    assert file.read_new() == EVENTS[1:2]


def test_a_line_torn_by_a_killed_writer_does_not_hide_the_lines_after_it(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(EVENTS[0].to_line() + EVENTS[1].to_line()[:25] + "\n" + EVENTS[2].to_line(), encoding="utf-8")
    assert EventFile(path).read_new() == [EVENTS[0], EVENTS[2]]


def test_a_run_begun_anew_in_the_same_folder_is_read_from_its_top(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    _write(path, EVENTS)
    file = EventFile(path)
    file.read_new()
    path.unlink()
    _write(path, EVENTS[:2])
    assert file.read_new() == EVENTS[:2]


def test_a_file_that_does_not_exist_yet_has_no_events(tmp_path: Path) -> None:
    assert EventFile(tmp_path / "events.jsonl").read_new() == []


def test_a_kind_and_a_key_of_a_newer_version_are_passed_over() -> None:
    assert parse_event('{"time": 1.0, "kind": "moon_phase"}') is None
    assert parse_event('{"time": 1.0, "kind": "hospital_lost", "hospital": "a", "why": "rain"}') == HospitalLost(
        time=1.0, hospital="a"
    )


def test_a_known_kind_that_breaks_the_format_is_refused_with_file_line_and_key(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    finished = RunFinished(time=1.0, reason="done", rounds_done=3).to_line()
    path.write_text(EVENTS[0].to_line() + finished.replace("3", "-3"), encoding="utf-8")
    file = EventFile(path)
    for _ in range(2):  # looking again does not make it right
        with pytest.raises(RunError, match=r"events\.jsonl, line 2: .*rounds_done"):
            file.read_new()


def test_a_hospitals_words_command_no_terminal() -> None:
    refusal = Refusal(time=1.0, round=1, hospital="hospital-1", reason="\x1b[2Jspent\n", code="budget")
    assert refusal.reason == " [2Jspent "


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "../../etc"}, {"rounds": 0}, {"rounds": 10**400}, {"time": math.inf}, {"resumed_from_round": -1},
    ],
)  # fmt: skip
def test_what_no_run_can_have_is_refused(change: dict[str, object]) -> None:
    started = next(event for event in example_run(rounds=1) if isinstance(event, RunStarted))
    with pytest.raises(ValidationError):
        RunStarted.model_validate({**started.model_dump(), **change})


@pytest.mark.parametrize("confusion", [((1,), (2, 3)), ((1, 2),), ((-1,),), ((10**400,),)])
def test_a_confusion_that_is_no_square_of_counts_is_refused(confusion: tuple[tuple[int, ...], ...]) -> None:
    done = next(event for event in example_run(rounds=1) if isinstance(event, RoundDone))
    with pytest.raises(ValidationError):
        RoundDone.model_validate({**done.model_dump(), "confusion": confusion})
