import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from common.config import Config
from common.errors import RunError
from common.telemetry.events import Evaluated, RoundDone
from deploy.results import metric_sinks
from deploy.results.dashboard import main
from deploy.results.metric_sinks import Sink
from tests.support.example_run import example_run


class _Kept:
    def __init__(self) -> None:
        self.said: dict[str, str] = {}
        self.told: list[tuple[int, dict[str, float]]] = []

    def settings(self, values: Mapping[str, str]) -> None:
        self.said.update(values)

    def figures(self, values: Mapping[str, float], step: int) -> None:
        self.told.append((step, dict(values)))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    lines = "".join(event.to_line() for event in example_run(4))
    (tmp_path / "events.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


def test_a_sink_is_told_every_round_the_test_and_the_settings_and_the_run_is_left_alone(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = _Kept()

    @contextlib.contextmanager
    def opened(_: Path) -> Iterator[Sink]:
        yield kept

    monkeypatch.setattr(metric_sinks, "SINKS", {"tensorboard": ("json", "json", opened)})
    before = (run / "events.jsonl").read_bytes()
    assert main(["dashboard", str(run), "--log", "tensorboard"]) == 0
    assert (run / "events.jsonl").read_bytes() == before
    assert [path.name for path in run.iterdir()] == ["events.jsonl"]
    rounds = [event for event in example_run(4) if isinstance(event, RoundDone)]
    (tested,) = [event for event in example_run(4) if isinstance(event, Evaluated)]
    assert [step for step, _ in kept.told] == [1, 2, 3, 4, 4]
    assert kept.told[1][1]["validation/auc"] == pytest.approx(rounds[1].auc)
    assert kept.told[1][1]["epsilon"] == pytest.approx(rounds[1].epsilon)
    assert kept.told[-1][1]["test/recall"] == pytest.approx(tested.recall)
    assert kept.said["privacy.target_epsilon"] == str(Config().privacy.target_epsilon)
    assert json.dumps(kept.told)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_library_that_is_missing_is_named_with_what_to_do(
    run: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # An import of it fails then, installed or not.
    with pytest.raises(RunError, match=rf"--log {name} needs the Python package {name}, .*; run pip install {name}"):
        main(["dashboard", str(run), "--log", name])


def test_a_library_that_cannot_write_is_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(_: Path) -> contextlib.AbstractContextManager[Sink]:
        raise ValueError("no such store\nsee the manual")

    monkeypatch.setattr(metric_sinks, "SINKS", {"mlflow": ("json", "mlflow", opened)})
    with pytest.raises(RunError, match=r"^--log mlflow: mlflow must be able to write, and says: no such store$"):
        main(["dashboard", str(run), "--log", "mlflow"])
