import io
from pathlib import Path

from rich.console import Console

from common.config import Config, replace
from common.events import Event
from deploy.results.live_table import LiveTable
from tests.example_run import example_run


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
    assert rows[0][7:10] == ["2.30", "of", "10.00"]


def test_a_pipe_is_told_what_is_waited_for_and_what_went_wrong() -> None:
    shown = _shown(example_run(6), terminal=False)
    assert shown.startswith("starting 4 hospitals …\n")
    assert "round 3: hospital-3 dropped out at masked_input\n" in shown
    assert "round 5: hospital-4 refuses: the round would bring ε to 10.02" in shown


def test_a_terminal_shows_a_table_with_every_promised_column() -> None:
    shown = _shown(example_run(6), terminal=True)
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
    assert "1–8" in last_picture
    assert "│    12 │" in last_picture
    assert "│     8 │" not in last_picture


def test_epsilon_is_shown_with_delta_unit_adversary_and_accountant() -> None:
    for terminal in (True, False):
        shown = _shown(example_run(3), terminal)
        assert "ε for each record, δ=0.0001, RDP accountant, against everyone outside the hospital" in shown


def test_the_end_names_the_files_written() -> None:
    for terminal in (True, False):
        ending = _shown(example_run(3), terminal)[-400:]
        assert "runs/x/metrics.csv" in ending
        assert "runs/x/summary.json" in ending


def test_a_run_without_masks_noise_or_real_data_says_so_at_its_start_and_end() -> None:
    config = replace(Config(), privacy={"mode": "none"}, aggregation={"mode": "plain"})
    for terminal in (True, False):
        shown = _shown(example_run(2, "phantom", config), terminal)
        start, end = shown[: shown.index("Run ended")], shown[shown.index("Run ended") :]
        for part in (start, end):
            assert "NO differential privacy" in part
            assert "the server saw every hospital's update" in part
            assert "phantom: procedural images" in part


def test_a_run_that_ends_before_it_started_is_told_too() -> None:
    assert "Run ended: all rounds are done" in _shown([], terminal=False)
