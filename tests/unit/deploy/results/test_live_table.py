import io
from pathlib import Path

import pytest
from rich.console import Console

from common.config import Config, replace
from common.telemetry.events import Event, RoundDone
from deploy.command import WIDTH
from deploy.results import live_table
from deploy.results.live_table import LiveTable
from tests.support.example_run import example_of_three_classes, example_run
from tests.support.printed import unwrapped

EXACT = replace(Config(), evaluation={"exact": True}, privacy={"mode": "none"})


def _shown(events: list[Event], terminal: bool, height: int = 40, width: int = 110) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, height=height, color_system=None)
    with LiveTable(console) as table:
        table.starting("starting 4 hospitals")
        for event in events:
            table.show(event)
        table.finish([Path("runs/x/metrics.csv"), Path("runs/x/summary.json")], "all rounds are done")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_pipe_gets_one_line_a_round_whatever_its_width() -> None:
    lines = _shown(example_run(6), terminal=False, width=20).splitlines()
    rows = [line.split() for line in lines if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert rows[0][9:12] == ["2.30", "of", "10.00"]
    assert rows[0][2].startswith("±")


@pytest.mark.parametrize("config", [Config(), EXACT])
def test_a_pipe_gets_lines_of_80_columns(config: Config) -> None:
    for events in (example_run(12, "phantom", config), example_run(3, tested=False), example_of_three_classes()):
        assert [line for line in _shown(events, terminal=False, width=200).splitlines() if len(line) > WIDTH] == []


def test_a_figure_that_is_wider_than_its_column_takes_the_room_of_the_next() -> None:
    usual = ("6", "0.96 ±0.06", "1.00", "0.94", "0.97", "0.98 ±0.01", "0.08", "4.06 of 10.00", "4", "0.6")
    wide = (*usual[:5], "0.997 ±0.012", *usual[6:])
    lines = [live_table._as_line(cells) for cells in (usual, wide)]
    assert [len(line) for line in lines] == [WIDTH, WIDTH]
    assert lines[1].split() == " ".join(wide).split()
    assert lines[0][-8:] == lines[1][-8:]


def test_a_pipe_is_told_what_is_waited_for_and_what_went_wrong() -> None:
    shown = _shown(example_run(6), terminal=False)
    assert shown.startswith("starting 4 hospitals …\n")
    assert "round 3: hospital-3 dropped out at masked_input\n" in shown
    assert "round 5: hospital-4 refuses: the round would bring ε to 10.02" in shown


def test_a_terminal_shows_a_table_with_every_promised_column() -> None:
    shown = _shown(example_run(6), terminal=True, width=130)
    for heading in (
        "round",
        "accuracy",
        "precision",
        "recall",
        "F1",
        "AUC",
        "loss",
        "ε of budget",
        "hospitals",
        "seconds",
    ):
        assert heading in shown


def test_a_run_longer_than_the_terminal_keeps_its_last_rounds_in_view() -> None:
    shown = _shown(example_run(12), terminal=True, height=18)
    last_picture = shown[shown.rindex("ε of budget") :]
    assert "1–9" in last_picture
    assert "│    12 │" in last_picture
    assert "│     9 │" not in last_picture


def test_epsilon_is_shown_with_delta_unit_adversary_and_accountant() -> None:
    for terminal in (True, False):
        shown = unwrapped(_shown(example_run(3), terminal))
        assert "ε for each record (zero-out: a record against an empty one" in shown
        assert "δ=0.0001, RDP accountant, against everyone outside the hospital, the server" in shown
        assert "all runs on its data, at its own δ, unit and number of colluders" in shown


def test_the_end_names_the_files_written() -> None:
    for terminal in (True, False):
        ending = _shown(example_run(3), terminal)[-400:]
        assert "runs/x/metrics.csv" in ending
        assert "runs/x/summary.json" in ending


def test_a_run_without_masks_noise_or_real_data_says_so_at_its_start_and_end() -> None:
    config = replace(Config(), privacy={"mode": "none"}, aggregation={"mode": "plain"}, evaluation={"exact": True})
    for terminal in (True, False):
        shown = _shown(example_run(2, "phantom", config), terminal)
        start, end = shown[: shown.index("Run ended")], shown[shown.index("Run ended") :]
        for part in (start, end):
            assert "NO differential privacy" in part
            assert "the server saw every hospital's update" in part
            assert "phantom: procedural images" in part


def test_a_run_that_ends_before_it_started_is_told_too() -> None:
    assert "Run ended: all rounds are done" in _shown([], terminal=False)


def _rows(shown: str) -> dict[str, list[str]]:
    """Return the cells of each row of the last picture by the first of them."""
    lines = [line for line in shown[shown.rindex("ε of budget") :].splitlines() if line.startswith("│")]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_rounds_are_of_validation_records_and_the_last_row_of_test_records() -> None:
    shown = _shown(example_run(10), terminal=True, width=130)
    assert "each row: the pooled validation parts after that round, ± 95 %; last row: the test parts" in shown
    rows = _rows(shown)
    assert list(rows)[-2:] == ["10", "test"]
    assert all("±" in row[0] and "±" in row[4] for row in rows.values())
    assert rows["test"][6:] == ["", "", ""]


def test_a_round_that_was_not_measured_has_dashes_and_its_epsilon() -> None:
    rows = _rows(_shown(example_run(12), terminal=True, width=130))
    assert rows["3"] == ["–"] * 6 + ["3.36 of 10.00", "3", "3.2"]


@pytest.mark.long
def test_a_narrow_terminal_keeps_auc_and_epsilon_whole() -> None:
    for width, left_out in ((80, ("precision", "hospitals", "seconds")), (40, ("accuracy", "F1", "loss"))):
        shown = _shown(example_run(10), terminal=True, width=width)
        heading = shown[shown.rindex("┃ round") :].splitlines()[0]
        assert "AUC" in heading
        assert "ε of budget" in heading
        assert not any(name in heading for name in left_out)
        table = [line for line in shown.splitlines() if line.startswith(("┃", "│"))]
        assert all(len(line) <= width for line in table)
        assert "…" not in heading
    assert "recall" in _shown(example_run(10), terminal=True, width=80)


def test_the_end_tells_the_test_figures_with_their_intervals_and_what_they_cost() -> None:
    for terminal in (True, False):
        ending = unwrapped(_shown(example_run(10), terminal)).split("Run ended", 1)[1]
        assert "pooled test parts, 143 records, asked once, at the threshold that validation records fixed" in ending
        assert "noise alone ±" in ending
        assert "95 %, sampling of 143 records and privacy noise" in ending
        assert "Evaluation cost: ε = 1.001 at δ = 0.0001" in ending
        assert "zero-out" in ending


def test_exact_counts_are_called_so_wherever_figures_stand() -> None:
    shown = _shown(example_run(3, config=EXACT), terminal=False)
    start, end = unwrapped(shown).split("Run ended", 1)
    assert "each row: the pooled test parts, exact counts: not differentially private" in start
    assert "143 records, exact counts: not differentially private" in end
    assert "\n test " not in shown  # the last round's row says it already


def test_a_run_whose_test_failed_says_why_instead_of_figures() -> None:
    shown = unwrapped(_shown(example_run(3, tested=False), terminal=False))
    assert "pooled test parts: not measured: no round that asks the test parts gave a result" in shown
    assert "nan" not in shown


def test_a_task_of_three_classes_without_auc_has_no_line_for_it() -> None:
    ending = _shown(example_of_three_classes(3, has_auc=False), terminal=False).split("Run ended", 1)[1]
    assert "  accuracy" in ending
    assert "  AUC" not in ending
    assert "threshold" not in ending


def test_the_evaluation_plan_is_printed_at_the_start() -> None:
    for terminal in (True, False):
        shown = _shown(example_run(3), terminal)
        assert shown.index("test: the last model, once (noise multiplier 3.19)") < shown.index("ε of budget")


def test_a_server_that_holds_the_authoritys_key_is_told_at_start_and_end() -> None:
    start, end = _shown(example_run(3, authority_on_server=True), terminal=False).split("Run ended", 1)
    for part in (start, end):
        assert "NOTE: The server holds the authority's key" in part


def test_the_time_that_is_left_follows_from_the_rounds_that_are_done() -> None:
    events = example_run(12)
    last = next(place for place, event in enumerate(events) if isinstance(event, RoundDone) and event.step == 4)
    table = LiveTable(Console(file=io.StringIO(), width=80))
    for event in events[: last + 1]:
        table.show(event)
    assert table._progress == "round 5 of 12 is under way, about 80 s left"  # rounds end every ten seconds


def test_a_run_names_its_folder_its_logs_and_how_to_follow_it_at_once(tmp_path: Path) -> None:
    written = io.StringIO()
    with LiveTable(Console(file=written, width=80), tmp_path / "run"):
        pass
    assert f"run: {tmp_path / 'run'}\n" in written.getvalue()
    assert f"./confide dashboard {tmp_path / 'run'}\n" in written.getvalue()
    assert f"logs: {tmp_path / 'run' / 'logs'}\n" in written.getvalue()


@pytest.mark.parametrize("height", [24, 40])
def test_a_terminal_of_80_columns_and_24_lines_shows_all_of_the_table(height: int) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=80, height=height, color_system=None)
    table = LiveTable(console)
    for event in example_run(12)[:60]:
        table.show(event)
    picture = io.StringIO()
    drawn = Console(file=picture, force_terminal=True, width=80, height=height, color_system=None)
    drawn.print(table._draw())
    lines = picture.getvalue().splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= 80
    assert "AUC" in "".join(lines)
    assert "ε of budget" in "".join(lines)
