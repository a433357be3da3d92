"""A measurement that is ended by a signal keeps what it has, and says that it was ended."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.config import Config
from common.processes import Stopping, raise_on_signals
from deploy.resilience import load, soak
from deploy.resilience.resources import Usage


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_tells_the_exit_code_it_asks_for(number: signal.Signals) -> None:
    raise_on_signals()
    with pytest.raises(Stopping) as stopped:
        signal.raise_signal(number)
    assert stopped.value.exit_code == 128 + number
    signal.raise_signal(number)  # A second one changes nothing.


def test_load_keeps_the_runs_that_were_done_and_draws_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(config: Config, _folder: Path) -> load.LoadMeasured:
        if config.experiment.num_clients > 4:
            signal.raise_signal(signal.SIGINT)
        return load.LoadMeasured(4, 100, 2, 4, 1.0, 2**20, 2**20, 200)

    monkeypatch.setattr(load, "measure", measured)
    report, plot = tmp_path / "load.json", tmp_path / "load.png"
    code = load.main(["load", "--hospitals", "4,8,16", "--json", str(report), "--plot", str(plot)])
    assert code == 128 + signal.SIGINT
    told = json.loads(report.read_text())
    assert ([run["hospitals"] for run in told["runs"]], told["hospitals_asked_for"]) == ([4], [4, 8, 16])
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "ended by a signal after 1 of 3 runs" in capsys.readouterr().out


def test_a_soak_keeps_its_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = {("agent", 1): [Usage(2**20, 2**20, 9, 4, time=float(second)) for second in range(9)]}
    soaked = soak.Soaked(1.5, 20, samples, Stopping(signal.SIGTERM))
    monkeypatch.setattr(soak, "soak", lambda *_: soaked)
    report = tmp_path / "soak.json"
    code = soak.main(["soak", "--minutes", "20", "--json", str(report), "--plot", str(tmp_path / "soak.png")])
    assert code == 128 + signal.SIGTERM
    told = json.loads(report.read_text())
    assert (told["minutes"], told["minutes_asked_for"], told["rounds"]) == (1.5, 20, 20)
    printed = capsys.readouterr().out
    assert "ended by a signal; 20 were asked for" in printed
    assert "too short to judge" in printed
    assert told["can_judge"] is False


@pytest.mark.parametrize(("minutes", "code"), [(4.9, 0), (5.1, 1)])
def test_a_soak_of_minutes_judges_growth_and_a_shorter_one_does_not(
    minutes: float, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    growing = [Usage(second * 2**20, second * 2**20, 9, 4, time=float(second)) for second in range(9)]
    monkeypatch.setattr(soak, "soak", lambda *_: soak.Soaked(minutes, 20, {("agent", 1): growing}, None))
    assert soak.main(["soak", "--minutes", "20"]) == code
