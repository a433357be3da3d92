from pathlib import Path

import pytest

from common.config import Config, replace
from common.errors import RunError
from common.run.terms import statistics_claim
from common.telemetry.events import EVENTS_FILE, Counted, Event, EventFile
from deploy.results.report import main as report
from deploy.results.statistics import main, shown
from tests.support.example_run import example_run

COUNTED = Counted(
    time=1_750_000_001.0, units=160, deviation=10.0, least=30.0, epsilon=0.5, claim="ε = 0.500 at δ = 0.001",
    tables={"class": {"normal": 101.4, "pneumonia": None}, "sex": {"not known": 160.0, "female": None}},
)  # fmt: skip
ASKED = replace(Config(), evaluation={"statistics_epsilon": 0.5})


def _run(folder: Path, events: list[Event]) -> Path:
    (folder / EVENTS_FILE).write_text("".join(event.to_line() for event in events), encoding="utf-8")
    return folder


def test_a_count_is_shown_with_its_interval_and_a_suppressed_one_never_as_0() -> None:
    assert shown(101.4, COUNTED) == "101 (82 to 121)"
    assert shown(None, COUNTED) == "suppressed (below 30)"
    assert shown(5.0, COUNTED) == "5 (0 to 25)"


def test_the_events_keep_what_is_suppressed(tmp_path: Path) -> None:
    events = example_run(6, config=ASKED)
    _run(tmp_path, [events[0], COUNTED, *events[1:]])
    (read,) = [event for event in EventFile(tmp_path / EVENTS_FILE).read_new() if isinstance(event, Counted)]
    assert read == COUNTED
    assert '"pneumonia": null' in COUNTED.to_line().replace('":null', '": null')


@pytest.mark.long
def test_the_command_and_the_report_show_the_same_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = example_run(6, config=ASKED)
    _run(tmp_path, [events[0], COUNTED, *events[1:]])
    assert main(["statistics", str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert report(["report", str(tmp_path)]) == 0
    written = " ".join((tmp_path / "report.md").read_text(encoding="utf-8").replace("\\", "").split())
    for text in (printed, written):
        assert "101 (82 to 121)" in text
        assert "suppressed (below 30)" in text
        assert "160 training units" in text
        assert "that is not 0" in text
        assert statistics_claim(ASKED, COUNTED.epsilon) in text
    assert "Who was trained on" in written


@pytest.mark.long
@pytest.mark.parametrize(("config", "why"), [(Config(), "asked no hospital for statistics"), (ASKED, "no sum")])
def test_a_run_without_statistics_says_why(tmp_path: Path, config: Config, why: str) -> None:
    _run(tmp_path, example_run(6, config=config))
    with pytest.raises(RunError, match=why):
        main(["statistics", str(tmp_path)])
    assert report(["report", str(tmp_path)]) == 0
    assert "Not known: " in (tmp_path / "report.md").read_text(encoding="utf-8")
