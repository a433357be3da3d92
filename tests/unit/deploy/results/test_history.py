import math
import threading
from pathlib import Path

import pytest

from common.errors import RunError
from common.telemetry.events import Evaluated, RoundDone
from deploy.results.history import RunHistory, follow
from tests.support.example_run import example_run

NO_WAIT = 0.0005


def test_following_ends_with_the_run(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events = example_run(3)
    path.write_text("".join(event.to_line() for event in events), encoding="utf-8")
    assert list(follow(path, threading.Event(), NO_WAIT)) == events


def test_following_sees_each_event_of_a_run_that_is_still_being_written(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events = example_run(3)
    seen = []
    writer = path.open("a", encoding="utf-8", buffering=1)
    writer.write(events[0].to_line())
    for index, event in enumerate(follow(path, threading.Event(), NO_WAIT), start=1):
        seen.append(event)
        if index < len(events):
            writer.write(events[index].to_line())
    writer.close()
    assert seen == events


def test_what_is_written_before_the_stop_is_still_told(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events = example_run(3, finished=False)
    path.write_text("".join(event.to_line() for event in events), encoding="utf-8")
    stop = threading.Event()
    stop.set()
    assert list(follow(path, stop, NO_WAIT)) == events


def test_of_a_step_measured_twice_the_last_measurement_counts() -> None:
    events = example_run(2)
    first = next(event for event in events if isinstance(event, RoundDone))
    again = first.model_copy(update={"round": 7, "accuracy": 0.5})
    history = RunHistory.of([*events, again])
    assert [done.step for done in history.rounds] == [1, 2]
    assert history.rounds[0].accuracy == 0.5


def test_a_resumed_run_keeps_its_first_description_and_tells_where_it_went_on() -> None:
    events = example_run(2)
    again = events[0].model_copy(update={"resumed_from_round": 2})
    history = RunHistory.of([*events, again])
    assert history.started == events[0]
    assert history.resumed_from == (2,)


def test_dropouts_refusals_and_the_end_are_kept() -> None:
    history = RunHistory.of(example_run(6))
    assert [item.hospital for item in history.dropouts] == ["hospital-3"]
    assert [item.code for item in history.refusals] == ["budget"]
    assert history.finished is not None
    assert len(history.exchanges) == 13


def test_a_folder_without_a_run_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"must be the folder of a run, with its events\.jsonl"):
        RunHistory.read(tmp_path)


def test_the_last_models_test_counts_only_where_it_is_of_the_last_model() -> None:
    events = example_run(4)
    whole = RunHistory.of(events)
    assert whole.tested is not None
    assert whole.why_not_tested == ""
    tested = next(event for event in events if isinstance(event, Evaluated))
    for update in ({"step": 3}, {"accuracy": math.nan}):
        others = [event for event in events if event is not tested]
        history = RunHistory.of([*others[:-1], tested.model_copy(update=update), others[-1]])
        assert history.tested is None
        assert history.why_not_tested == "no round that asks the test parts gave a result"


def test_why_there_is_no_test_figure_is_told() -> None:
    assert RunHistory.of(example_run(4)[:1]).why_not_tested == "no round was finished"
    assert RunHistory.of(example_run(4, tested=False, finished=False)).why_not_tested == "the run has not ended"
