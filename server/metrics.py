"""The server's Prometheus exporter: what ``events.jsonl`` says, as metrics.

    python -m server.metrics --run DIR --state DIR --port 9400

It keeps nothing of its own. Started again, it reads the events from the first on and has the same values.
"""

import argparse
import datetime
import math
import platform
import sys
import threading
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from common.errors import BudgetExceededError
from common.provenance import commit, confide_version
from common.run.guarantee import Guarantee
from common.run.proposal import RunState
from common.run.words import admitted
from common.telemetry import metric_names as names
from common.telemetry.events import (
    COMPLETED,
    EVENTS_FILE,
    STOPPED,
    AttackRefused,
    Compared,
    Dropout,
    Evaluated,
    Event,
    EventFile,
    Exchange,
    HospitalLost,
    HospitalOnline,
    Refusal,
    RoundDone,
    RunFinished,
    RunStarted,
    SpreadTold,
)
from common.telemetry.exporter import Exporter, Labelled, Values, serve_until_stopped
from common.telemetry.lifetimes import show_disk, show_lifetimes
from server.members.departures import Departures
from server.members.tls import TLS_CERTIFICATE_FILE
from server.members.versions import MemberVersions
from server.run_queue import FOLDER_DIGITS, RunQueue

EXCHANGE_BOUNDS = (
    0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0,
)  # fmt: skip
"""Buckets in seconds, around the 0.3 s of an exchange of small messages and up past the default deadline."""


LAST_ROUNDS = 64
"""How many rounds are kept as series of their own: those of some minutes, and no more than Prometheus likes."""


class RunMetrics(Collector):
    """The metrics of the run in a folder, brought up to date by each scrape.

    Args:
        run: the folder; the run need not have begun.
        state: the server's state folder, with its other runs and its certificate; None shows the one run alone.
    """

    def __init__(self, run: Path, state: Path | None = None) -> None:
        self._state = state
        self._events = EventFile(run / EVENTS_FILE)
        self._lock = threading.Lock()  # two scrapes may come at once
        self._build = (confide_version(), commit(), platform.python_version())
        self._begin()

    def collect(self) -> Iterable[Family]:
        """Return every metric that is known.

        Raises:
            RunError: the events cannot be read; Prometheus then sees the scrape fail, not stale values.
        """
        with self._lock:
            for event in self._events.read_new():
                self._take(event)
            if self._state is not None:
                self._show_server(self._state)
            return list(self._values.collect())

    def _show_server(self, state: Path) -> None:
        """Show what is not of one run: where each run stands, and how long the server's certificate holds."""
        show_lifetimes(self._values, state, TLS_CERTIFICATE_FILE, datetime.datetime.now(datetime.UTC))
        self._values.clear(names.RUN_RESULT)
        for run in RunQueue(state).all():
            self._values.set(names.RUN_RESULT, 1, run.run_id[:FOLDER_DIGITS], run.state.value)
        show_disk(self._values, state)
        if self._online:
            self._departed = Departures(state).all()  # Also of who left before the run began.
            self._show_online()
        versions = MemberVersions(state)
        strangers = versions.strangers()
        self._values.clear(names.MEMBER_VERSION_MISMATCH)
        for name, spoken in versions.all().items():
            self._values.set(names.MEMBER_VERSION_MISMATCH, float(name in strangers), name, spoken.software)

    def _begin(self) -> None:
        self._values = Values()
        self._online: dict[str, bool] = {}
        self._left: dict[str, bool] = {}
        self._departed = frozenset[str]()
        self._spent: dict[str, float] = {}
        self._run = Labelled(self._values, "")
        self._last_rounds: deque[str] = deque()
        self._values.set_only(names.BUILD_INFO, 1, *self._build)

    def _take(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._take_start(event)
            case HospitalOnline() | HospitalLost():
                self._online[event.hospital] = isinstance(event, HospitalOnline)
                self._left[event.hospital] = isinstance(event, HospitalLost) and event.left
                self._show_online()
            case Exchange():
                self._run.set(names.LAST_PROGRESS, event.time)
                self._run.observe(names.EXCHANGE_SECONDS, event.seconds, EXCHANGE_BOUNDS, event.phase)
                self._run.add(names.UPLOAD_BYTES, event.upload_bytes)
                self._run.add(names.DOWNLOAD_BYTES, event.download_bytes)
            case Dropout():
                self._run.add(names.DROPOUTS, 1)
                self._run.add(names.HOSPITAL_DROPOUTS, 1, event.hospital)
            case Refusal():
                self._run.add(names.REFUSALS, 1, event.code)
                self._run.add(names.HOSPITAL_REFUSALS, 1, event.hospital)
            case AttackRefused():
                self._run.add(names.ATTACKS_REFUSED, 1, event.code)
            case RoundDone():
                self._take_round(event)
            case Evaluated() | Compared() | SpreadTold():
                self._take_test(event)
            case RunFinished():
                self._run.set(names.RUN_ACTIVE, 0)
                results = {COMPLETED: RunState.FINISHED, STOPPED: RunState.STOPPED}
                result = results.get(event.reason, RunState.FAILED)
                self._run.set_only(names.RUN_RESULT, 1, result.value)

    def _take_start(self, started: RunStarted) -> None:
        if started.resumed_from_round == 0:
            self._begin()
        self._run = Labelled(self._values, started.run_id[:FOLDER_DIGITS])
        values, guarantee = self._run, Guarantee.of(started.config)
        values.set_only(names.RUN_RESULT, 1, RunState.RUNNING.value)
        values.set_only(
            names.RUN_INFO, 1, started.run_id, started.data_set, started.task,
            " ".join(admitted(started)),
        )  # fmt: skip
        values.set_only(names.PRIVACY_INFO, 1, *guarantee.as_labels())
        values.set(names.RUN_ACTIVE, 1)
        values.set(names.LAST_PROGRESS, started.time)
        values.set(names.ROUNDS_PLANNED, started.rounds)
        values.set(names.HOSPITALS_EXPECTED, len(started.hospitals))
        for counter in (names.DROPOUTS, names.UPLOAD_BYTES, names.DOWNLOAD_BYTES):
            values.add(counter, 0)
        values.add(names.REFUSALS, 0, BudgetExceededError.code)
        for hospital in started.hospitals:
            self._online.setdefault(hospital, False)
            values.add(names.HOSPITAL_DROPOUTS, 0, hospital)
            values.add(names.HOSPITAL_REFUSALS, 0, hospital)
        self._show_online()

    def _show_online(self) -> None:
        self._run.set(names.HOSPITALS_ONLINE, sum(self._online.values()))
        for hospital, online in self._online.items():
            self._run.set(names.HOSPITAL_ONLINE, float(online), hospital)
            left = self._left.get(hospital, False) or (not online and hospital in self._departed)
            self._run.set(names.HOSPITAL_LEFT, float(left), hospital)

    def _take_round(self, done: RoundDone) -> None:
        values = self._run
        values.set(names.ROUND, done.step)
        values.set(names.LAST_PROGRESS, done.time)
        values.set(names.ROUND_SECONDS, done.seconds)
        self._show_round(done)
        if done.part != "none":  # Or the figures stay those of the last round that was measured.
            self._take_figures(done)
        for hospital, spent in done.epsilon_spent.items():
            values.set(names.EPSILON_SPENT, spent, hospital)
            before = self._spent.get(hospital)
            if before is not None and spent > before:
                values.set(names.EPSILON_LAST_ROUND, spent - before, hospital)
        self._spent.update(done.epsilon_spent)
        for hospital, budget in done.epsilon_budget.items():
            values.set(names.EPSILON_BUDGET, budget, hospital)
        for part, seconds in done.seconds_by_part.model_dump().items():
            values.add(names.ROUND_PART_SECONDS, seconds, part)

    def _show_round(self, done: RoundDone) -> None:
        """Keep the last rounds as series of their own: a round that is shorter than a scrape is not missed."""
        step = str(done.step)
        measured = done.part != "none"
        shown = {
            names.ROUND_FINISHED: done.time,
            names.ROUND_DURATION: done.seconds,
            names.ROUND_HOSPITALS: float(done.hospitals),
            names.ROUND_EPSILON: done.epsilon,
            names.ROUND_AUC: done.auc if measured else math.nan,
            names.ROUND_ACCURACY: done.accuracy if measured else math.nan,
        }
        if step not in self._last_rounds:
            self._last_rounds.append(step)
        for metric, value in shown.items():
            self._run.set(metric, value, step)
        if len(self._last_rounds) > LAST_ROUNDS:
            oldest = self._last_rounds.popleft()
            for metric in shown:
                self._run.set(metric, math.nan, oldest)

    def _take_figures(self, done: RoundDone) -> None:
        values, exact = self._run, done.part == "test"
        for name, metric in names.MODEL_METRICS.items():
            values.set(metric, getattr(done, name))
        values.set_only(names.MEASURED_INFO, 1, done.part, "yes" if exact else "no")
        values.set(names.MEASURED_ROUND, done.step)
        for name, (low, high) in done.intervals.items():
            values.set(names.INTERVAL_LOW, low, name)
            values.set(names.INTERVAL_HIGH, high, name)
        if not exact and not math.isnan(done.evaluation_epsilon):
            values.set(names.EVALUATION_EPSILON, done.evaluation_epsilon, done.part)

    def _take_test(self, tested: Evaluated | Compared | SpreadTold) -> None:
        if isinstance(tested, Compared):
            self._take_comparison(tested)
            return
        if isinstance(tested, SpreadTold):
            self._run.set(names.LAST_PROGRESS, tested.time)
            self._run.set(names.EVALUATION_EPSILON, tested.epsilon, "test")
            return
        values = self._run
        values.set(names.LAST_PROGRESS, tested.time)
        if math.isnan(tested.accuracy):
            return
        for name in names.MODEL_METRICS:
            values.set(names.TEST, getattr(tested, name), name)
        for name, (low, high) in tested.intervals.items():
            values.set(names.TEST_LOW, low, name)
            values.set(names.TEST_HIGH, high, name)
        for name, deviation in tested.noise.items():
            values.set(names.TEST_NOISE, deviation, name)
        if not tested.exact:
            values.set(names.EVALUATION_EPSILON, tested.epsilon, "test")

    def _take_comparison(self, compared: Compared) -> None:
        """Show what it has cost; by how much the run's model was ahead stands in the report."""
        values = self._run
        values.set(names.LAST_PROGRESS, compared.time)
        for hospital, spent in compared.epsilon_spent.items():
            values.set(names.EPSILON_SPENT, spent, hospital)
        self._spent.update(compared.epsilon_spent)
        values.set(names.EVALUATION_EPSILON, compared.epsilon, "test")


def serve(run: Path, port: int, host: str = "127.0.0.1", state: Path | None = None) -> Exporter:
    """Serve the metrics of the run in ``run`` until the returned exporter is closed.

    Raises:
        ConfigError: the port is taken.
    """
    return Exporter(RunMetrics(run, state), port, host)


def main() -> int:
    """Serve until it is stopped."""
    parser = argparse.ArgumentParser(prog="python -m server.metrics", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the run's folder, with its events.jsonl")
    parser.add_argument("--state", type=Path, help="the server's state folder, with its other runs and certificate")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 where Prometheus is another container")
    arguments = parser.parse_args()
    return serve_until_stopped(lambda: serve(arguments.run, arguments.port, arguments.host, arguments.state))


if __name__ == "__main__":
    sys.exit(main())
