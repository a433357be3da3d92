"""Every query of every dashboard, answered by a real Prometheus that scrapes the real exporters."""

import json
import os
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client.metrics import serve as serve_hospital
from client.status import HospitalStatus
from common.settings import free_port
from common.telemetry.events import Event
from server.metrics import serve as serve_run
from tests.support.example_run import HOSPITALS, example_run

ROOT = Path(__file__).parents[2]
PROMETHEUS = os.environ.get("CONFIDE_PROMETHEUS") or shutil.which("prometheus")
SCRAPE_SECONDS = 0.25
LIMIT_SECONDS = 60.0

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (or set CONFIDE_PROMETHEUS)"),
]

_CONFIGURATION = """
global: {{scrape_interval: {interval}ms, evaluation_interval: {interval}ms}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: server
    static_configs: [{{targets: ["127.0.0.1:{server}"]}}]
  - job_name: hospital
    static_configs: [{{targets: ["127.0.0.1:{hospital}"]}}]
"""


class _Prometheus:
    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"

    def ask(self, query: str) -> list[Any]:
        return self._results("query", query=query)

    def ask_range(self, query: str) -> list[Any]:
        now = time.time()
        return self._results("query_range", query=query, start=now - 300, end=now, step=1)

    def _results(self, path: str, **arguments: object) -> list[Any]:
        url = f"{self._url}/{path}?{urllib.parse.urlencode(arguments)}"
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - the Prometheus below
            results: list[Any] = json.load(answer)["data"]["result"]
        return results


def _wait(until: Callable[[], object], what: str) -> None:
    give_up = time.monotonic() + LIMIT_SECONDS
    while not until():
        assert time.monotonic() < give_up, f"waited {LIMIT_SECONDS} s for {what}"
        time.sleep(SCRAPE_SECONDS)


def _replay(prometheus: _Prometheus, events: list[Event], run: Path) -> None:
    """Write the events round by round, each only once Prometheus has seen the round before."""
    step = 0
    with (run / "events.jsonl").open("a", encoding="utf-8", buffering=1) as file:
        for event in events:
            file.write(event.model_copy(update={"time": time.time()}).to_line())
            if event.kind == "round":
                step += 1
                seen = f"confide_round == {step}"
                _wait(lambda seen=seen: prometheus.ask(seen), f"Prometheus to see round {step}")  # type: ignore[misc]
    _wait(lambda: prometheus.ask("confide_run_active == 0"), "Prometheus to see the end of the run")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    HospitalStatus(
        hospital=HOSPITALS[0], time=time.time(), epsilon_spent=2.0, epsilon_budget=10.0, delta=1e-4, unit="record",
        adversary="everyone outside the hospital", accountant="rdp", training_records_per_second=1200.0,
        evaluation_epsilon_spent={"validation": 0.8, "test": 1.0}, evaluation_epsilon_budget=4.0,
    ).write(folder / "status.json")  # fmt: skip
    port = free_port()
    with serve_run(folder, 0) as server, serve_hospital(folder / "status.json", 0) as hospital:
        (folder / "prometheus.yml").write_text(
            _CONFIGURATION.format(
                interval=int(SCRAPE_SECONDS * 1000),
                rules=ROOT / "deploy" / "prometheus" / "alerts.yml",
                server=server.port,
                hospital=hospital.port,
            )
        )
        command = (
            str(PROMETHEUS), f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
        )  # fmt: skip
        with subprocess.Popen(command) as process:
            try:
                asked = _Prometheus(port)
                _wait(lambda: _answers(asked), "Prometheus to start")
                _replay(asked, example_run(6), folder)
                yield asked
            finally:
                process.terminate()


def _answers(prometheus: _Prometheus) -> bool:
    try:
        return bool(prometheus.ask('up{job="server"} == 1'))
    except OSError:
        return False


def _dashboard(name: str) -> dict[str, Any]:
    dashboard: dict[str, Any] = json.loads((ROOT / "grafana" / "dashboards" / f"{name}.json").read_text())
    return dashboard


def _as_grafana_asks(query: str) -> str:
    """Fill in what a dashboard's variables hold: all runs, and figures that an operator gave as references."""
    for variable, value in (("$run", ".*"), ("$alone", "0.8"), ("$nodp", "0.9")):
        query = query.replace(variable, value)
    return query


@pytest.mark.parametrize("name", ["federation", "privacy", "operations"])
def test_every_panel_has_something_to_show(prometheus: _Prometheus, name: str) -> None:
    unanswered = [
        f"{panel['title']}: {target['expr']}"
        for panel in _dashboard(name)["panels"]
        for target in panel["targets"]
        if not prometheus.ask(_as_grafana_asks(target["expr"]))
    ]
    assert unanswered == []


def test_a_dropout_and_a_refusal_are_marked_with_the_hospitals_name(prometheus: _Prometheus) -> None:
    marks = {item["name"]: item["expr"] for item in _dashboard("federation")["annotations"]["list"]}
    for kind, hospital in (("Dropouts", "hospital-3"), ("Refusals", "hospital-4")):
        marked = prometheus.ask_range(_as_grafana_asks(marks[kind]))
        assert [series["metric"]["hospital"] for series in marked] == [hospital]


def test_no_alert_fires_after_an_orderly_run(prometheus: _Prometheus) -> None:
    _wait(lambda: prometheus.ask("confide_run_active == 0"), "the end of the run")
    assert prometheus.ask('ALERTS{alertstate="firing"}') == []
