"""What the page says, through Streamlit's own test driver; how it looks is tested in a browser (e2e)."""

import socket
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from common.config import Config, replace
from common.errors import ConfigError, RunError
from common.telemetry.events import Event, RoundDone
from deploy.results import dashboard
from deploy.results.dashboard_page import (
    chart,
    confusion_of,
    costs_of,
    curve_of,
    figures_of,
    full_table,
    learning_table,
    notes_of,
    participants,
    privacy_table,
    progress_of,
    spent_by_round,
)
from deploy.results.history import RunHistory
from tests.support.example_run import HOSPITALS, example_of_three_classes, example_run

EXACT = replace(Config(), evaluation={"exact": True}, privacy={"mode": "none"})


def history(events: list[Event]) -> RunHistory:
    return RunHistory.of(events)


def test_the_tables_have_a_row_a_round_and_a_hospital_each() -> None:
    learned, spent = learning_table(history(example_run(6))), privacy_table(history(example_run(6)))
    assert learned["round"] == spent["round"] == [1, 2, 3, 4, 5, 6]
    assert set(spent) == {"round", "budget", *HOSPITALS}
    assert spent["budget"] == [10.0] * 6
    assert all(value is None or 0 <= value <= 1 for name in ("AUC", "accuracy", "F1") for value in learned[name])


def test_what_went_wrong_is_told_in_the_order_of_rounds() -> None:
    assert notes_of(history(example_run(6))) == [
        "round 3: hospital-3 dropped out at masked_input",
        "round 5: hospital-4 refuses: the round would bring ε to 10.02, above this hospital's budget of 10",
    ]


def shown(run: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setattr("sys.argv", ["dashboard_page.py", str(run)])
    return AppTest.from_file(str(dashboard.PAGE), default_timeout=60).run()


def test_the_page_admits_a_runs_caveats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(Config(), privacy={"mode": "none"}, aggregation={"mode": "plain"}, evaluation={"exact": True})
    events = example_run(2, "phantom", config)
    (tmp_path / "events.jsonl").write_text("".join(event.to_line() for event in events), encoding="utf-8")
    page = shown(tmp_path, monkeypatch)
    assert not page.exception
    assert not page.markdown  # Streamlit prints strings that stand alone, as a docstring of a constant does.
    warned = " ".join(warning.value for warning in page.warning)
    assert "NO differential privacy" in warned
    assert "procedural images" in warned


def test_a_run_without_a_finished_round_is_shown_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "events.jsonl").write_text(example_run(2)[0].to_line(), encoding="utf-8")
    page = shown(tmp_path, monkeypatch)
    assert not page.exception
    assert [info.value for info in page.info] == ["no round is finished yet"]


def test_the_command_listens_on_this_machine_alone_and_tells_streamlit_to_report_nothing() -> None:
    command = dashboard._command(Path("/run"), "127.0.0.1", 8501)
    assert "--server.address=127.0.0.1" in command
    assert "--browser.gatherUsageStats=false" in command
    assert command[-2:] == ("--", "/run")


def test_a_folder_without_a_run_or_a_taken_port_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="must be the folder of a run"):
        dashboard.main(["dashboard", str(tmp_path)])
    (tmp_path / "events.jsonl").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="must be free"):
        dashboard.main(["dashboard", str(tmp_path), "--port", str(taken.getsockname()[1])])


def test_the_newest_figures_are_the_last_models_and_say_whose_they_are() -> None:
    whose, figures = figures_of(history(example_run(6)))
    assert whose == "the last model, test"
    assert "±" in figures["accuracy"].short
    whose, _ = figures_of(history(example_run(6, finished=False, tested=False)))
    assert whose == "validation, after round 6"
    whose, _ = figures_of(history(example_run(3, config=EXACT)))
    assert whose == "the last model, test, exact counts: not differentially private"


def test_every_epsilon_of_evaluation_is_told_with_its_relation() -> None:
    costs = costs_of(history(example_run(6)))
    assert len(costs) == 2
    assert all("zero-out" in line for line in costs)
    assert costs_of(history(example_run(2, config=EXACT))) == ["evaluation: exact counts: not differentially private"]


def test_the_full_table_has_intervals_and_gaps_where_a_round_was_not_measured() -> None:
    table = full_table(history(example_run(12)))
    assert [number for number, value in zip(table["round"], table["accuracy"], strict=True) if value is None] == [3, 9]
    assert table["AUC, at least"][0] is not None
    assert table["ε of evaluation"][-1] == pytest.approx(1.0, abs=1e-3)


def test_the_page_of_a_run_whose_test_failed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = example_run(3, tested=False)
    (tmp_path / "events.jsonl").write_text("".join(event.to_line() for event in events), encoding="utf-8")
    page = shown(tmp_path, monkeypatch)
    assert not page.exception
    assert any("test: not measured: no round that asks" in warning.value for warning in page.warning)
    assert any("the last model, once (noise multiplier" in text.value for text in page.text)


def test_the_page_of_three_classes_without_auc_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = example_of_three_classes(3, has_auc=False)
    (tmp_path / "events.jsonl").write_text("".join(event.to_line() for event in events), encoding="utf-8")
    page = shown(tmp_path, monkeypatch)
    assert not page.exception
    assert {metric.label: metric.value for metric in page.metric}["AUC"] == "–"


def test_the_curves_have_their_intervals_and_whole_rounds_in_the_reports_colours() -> None:
    told = history(example_run(6))
    rows = curve_of(told)
    assert {row["figure"] for row in rows} == {"AUC", "accuracy", "F1"}
    assert all(float(row["low"]) <= float(row["value"]) <= float(row["high"]) for row in rows if "low" in row)
    assert any("low" in row for row in rows)
    drawn = chart(rows, {"AUC": "#0072B2"}, "validation")
    assert drawn["encoding"]["x"]["axis"] == {"tickMinStep": 1, "format": "d"}
    assert drawn["encoding"]["color"]["scale"] == {"domain": ["AUC"], "range": ["#0072B2"]}
    assert {row["figure"] for row in spent_by_round(told)} == {*HOSPITALS, "budget"}


def test_each_hospital_has_a_row_with_what_it_missed_and_spent() -> None:
    rows = {row["hospital"]: row for row in participants(history(example_run(6)))}
    assert set(rows) == set(HOSPITALS)
    assert rows["hospital-3"]["rounds missed"] == 1
    assert rows["hospital-3"]["now"] == "takes part"
    assert rows["hospital-1"]["rounds missed"] == 0
    assert all(float(row["ε budget"] or 0) == 10 for row in rows.values())
    ended = participants(history([event for event in example_run(6) if getattr(event, "round", 0) <= 5]))
    assert next(row for row in ended if row["hospital"] == "hospital-4")["now"] == "refused round 5"


def test_the_matrix_is_the_newest_ones_with_the_truth_by_row() -> None:
    told = history(example_run(6))
    assert told.tested is not None
    rows = confusion_of(told)
    assert [list(row.values())[1:] for row in rows] == [list(row) for row in told.tested.confusion]
    assert confusion_of(history(example_run(6)[:1])) == []


def test_a_run_on_its_way_says_how_long_it_will_take() -> None:
    events = example_run(6)
    on_its_way = [
        event for event in example_run(6, finished=False) if not isinstance(event, RoundDone) or event.step <= 3
    ]
    assert progress_of(history(on_its_way)).startswith("round 3 of 6, about ")
    assert progress_of(history(events)) == "round 6 of 6"
