"""A hospital's Prometheus exporter: its own ε, budgets and speed, never a count of patients or records.

    python -m client.metrics --status FILE --port 9401

The agent writes a small status file; the exporter, a process of its own, reads it at each scrape. So the values survive
a restart of either, and ``confide hospital status`` shows the same ones.
"""

import argparse
import datetime
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from client.last_standing import read_last_standing
from client.status import HospitalStatus
from common.errors import BudgetExceededError
from common.provenance import commit, confide_version
from common.run.versions import SPOKEN, Window
from common.telemetry import metric_names as names
from common.telemetry.exporter import Exporter, Values, serve_until_stopped
from common.telemetry.lifetimes import show_disk, show_lifetimes


class HospitalMetrics(Collector):
    """The metrics of the hospital whose agent writes ``status``, brought up to date by each scrape."""

    def __init__(self, status: Path) -> None:
        self._path = status
        self._build = (confide_version(), commit(), platform.python_version())

    def collect(self) -> Iterable[Family]:
        """Return every metric that is known.

        Raises:
            RunError: the status cannot be read; Prometheus then sees the scrape fail, not stale values.
        """
        values = Values()
        values.set_only(names.BUILD_INFO, 1, *self._build)
        state = self._path.parent
        show_lifetimes(values, state, "identity.pem", datetime.datetime.now(datetime.UTC))
        show_disk(values, state)
        status = HospitalStatus.read(self._path)
        if status is not None:
            _show(values, status)
            said = read_last_standing(state)
            if said.protocol is not None:
                differs = not Window(said.oldest or said.protocol, said.protocol).meets(SPOKEN)
                values.set(names.OWN_VERSION_MISMATCH, float(differs), status.hospital)
        return values.collect()


def _show(values: Values, status: HospitalStatus) -> None:
    hospital = status.hospital
    values.set(names.OWN_EPSILON_SPENT, status.epsilon_spent, hospital)
    values.set(names.OWN_EPSILON_BUDGET, status.epsilon_budget, hospital)
    for part, spent in status.evaluation_epsilon_spent.items():
        values.set(names.OWN_EVALUATION_EPSILON_SPENT, spent, hospital, part)
    if status.evaluation_epsilon_budget:
        values.set(names.OWN_EVALUATION_EPSILON_BUDGET, status.evaluation_epsilon_budget, hospital)
    # How many, never what they say: a note may hold numbers of records.
    values.set(names.OWN_NOTES, len(status.notes), hospital)
    values.set(names.OWN_ROUND, status.round, hospital)
    values.set(names.OWN_LAST_CHANGE, status.time, hospital)
    if status.delta is not None:
        values.set_only(
            names.OWN_PRIVACY_INFO, 1, hospital, f"{status.delta:g}", status.unit, status.adversary, status.accountant
        )
    if status.training_records_per_second is not None:
        values.set(names.OWN_THROUGHPUT, one_significant_digit(status.training_records_per_second), hospital)
    values.add(names.OWN_REFUSALS, 0, hospital, BudgetExceededError.code)
    for code, count in status.refusals.items():
        values.add(names.OWN_REFUSALS, count, hospital, code)


def one_significant_digit(rate: float) -> float:
    """Round a rate so coarsely that, times the seconds of a round, it does not give the number of records.

    >>> one_significant_digit(1234.5)
    1000.0
    """
    return float(f"{rate:.0e}")


def serve(status: Path, port: int, host: str = "127.0.0.1") -> Exporter:
    """Serve the metrics of the hospital whose agent writes ``status`` until the returned exporter is closed.

    Raises:
        ConfigError: the port is taken.
    """
    return Exporter(HospitalMetrics(status), port, host)


def main() -> int:
    """Serve until it is stopped."""
    parser = argparse.ArgumentParser(prog="python -m client.metrics", description=__doc__)
    parser.add_argument("--status", type=Path, required=True, help="the file the agent writes")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 where Prometheus is another container")
    arguments = parser.parse_args()
    return serve_until_stopped(lambda: serve(arguments.status, arguments.port, arguments.host))


if __name__ == "__main__":
    sys.exit(main())
