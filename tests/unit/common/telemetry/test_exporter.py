import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from common.errors import ConfigError
from common.telemetry.exporter import Exporter, Values
from common.telemetry.metric_names import ALL, DROPOUTS, EXCHANGE_SECONDS, MODEL_METRICS, REFUSALS, RUN_INFO


class _Fixed(Collector):
    def __init__(self, values: Values) -> None:
        self._values = values

    def collect(self) -> Iterable[Family]:
        return self._values.collect()


def _scrape(values: Values) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    with Exporter(_Fixed(values), 0) as exporter:
        url = f"http://127.0.0.1:{exporter.port}/metrics"
        text = urllib.request.urlopen(url, timeout=10).read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_nobody_has_told_is_not_exposed() -> None:
    values = Values()
    values.set(MODEL_METRICS["auc"], 0.9)
    values.set(MODEL_METRICS["auc"], float("nan"))
    assert _scrape(values) == {}


def test_gauges_and_counters_are_served_under_their_names_and_labels() -> None:
    values = Values()
    values.set(MODEL_METRICS["auc"], 0.93)
    values.add(DROPOUTS, 0)
    values.add(REFUSALS, 1, "a-run", "budget")
    values.add(REFUSALS, 1, "a-run", "budget")
    assert _scrape(values) == {
        ("confide_auc", ()): 0.93,
        ("confide_dropouts_total", ()): 0.0,
        ("confide_refusals_total", (("reason", "budget"), ("run", "a-run"))): 2.0,
    }


def test_an_info_has_one_series_at_a_time() -> None:
    values = Values()
    values.set_only(RUN_INFO, 1, "a-run", "a", "x", "t", "")
    values.set_only(RUN_INFO, 1, "a-run", "b", "x", "t", "")
    assert [dict(labels)["run_id"] for _, labels in _scrape(values)] == ["b"]


def test_a_histogram_counts_each_value_in_every_bucket_that_reaches_it() -> None:
    values = Values()
    for seconds in (0.1, 0.5, 0.7, 9.0):
        values.observe(EXCHANGE_SECONDS, seconds, (0.5, 1.0), "unmasking")
    scraped = {(name, dict(labels).get("le")): value for (name, labels), value in _scrape(values).items()}
    assert scraped == {
        ("confide_exchange_seconds_bucket", "0.5"): 2,
        ("confide_exchange_seconds_bucket", "1.0"): 3,
        ("confide_exchange_seconds_bucket", "+Inf"): 4,
        ("confide_exchange_seconds_count", None): 4,
        ("confide_exchange_seconds_sum", None): pytest.approx(10.3),
    }


def test_a_port_that_is_taken_is_refused_by_number() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} on 127\.0\.0\.1 must be free"):
            Exporter(_Fixed(Values()), port)


def test_a_closed_exporter_frees_its_port() -> None:
    exporter = Exporter(_Fixed(Values()), 0)
    exporter.close()
    Exporter(_Fixed(Values()), exporter.port).close()


def test_the_process_of_an_exporter_ends_in_good_order_when_told_to(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "server.metrics", "--run", str(tmp_path), "--port", "0")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("metrics on http://127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        _, complaints = process.communicate(timeout=30)
    assert process.returncode == 0
    assert complaints == ""


def test_no_two_metrics_share_a_name_and_every_name_follows_the_conventions() -> None:
    names = [metric.name for metric in ALL]
    assert len(set(names)) == len(names)
    for metric in ALL:
        assert metric.name.startswith("confide_")
        assert metric.help.endswith(".")
        assert not metric.name.endswith(("_count", "_sum", "_bucket"))
