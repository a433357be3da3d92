"""Serving metrics to Prometheus over HTTP."""

import signal
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from math import isnan
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from common.errors import ConfideError, ConfigError
from common.processes import EXIT_REFUSED, Stopping, raise_on_signals
from common.telemetry.metric_names import PrometheusMetric


class Exporter:
    """An HTTP server with ``/metrics``, in a thread of its own until closed.

    Args:
        collector: asked at every scrape.
        port: 0 for a free one.
        host: the loopback interface, unless Prometheus is elsewhere.

    Raises:
        ConfigError: the port is taken.
    """

    def __init__(self, collector: Collector, port: int, host: str = "127.0.0.1") -> None:
        registry = CollectorRegistry()
        registry.register(collector)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise ConfigError(f"port {port} on {host} must be free for the metrics: {error.strerror}") from None
        self.host = host
        self.port = int(self._server.server_port)

    def __enter__(self) -> Self:
        """Return the exporter itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve_until_stopped(start: Callable[[], Exporter]) -> int:
    """Be the process of an exporter: serve until SIGTERM or SIGINT, and return the exit code."""
    raise_on_signals()
    try:
        with start() as exporter:
            print(f"metrics on http://{exporter.host}:{exporter.port}/metrics", flush=True)  # noqa: T201 - the process' log
            while True:
                signal.pause()
    except Stopping:
        return 0
    except ConfideError as error:
        print(f"confide: {error}", file=sys.stderr)  # noqa: T201 - the process' own last word
        return EXIT_REFUSED


class Values:
    """What is known now, by metric and label values; what nobody has reported yet is not exposed at all.

    A gauge that starts at 0 would draw an accuracy of 0 before the first round, so a series appears with its first
    value. A counter is begun with ``add(metric, 0, ...)``: Prometheus' ``increase()`` then sees its first step too.
    """

    def __init__(self) -> None:
        self._numbers: dict[PrometheusMetric, dict[tuple[str, ...], float]] = {}
        self._histograms: dict[PrometheusMetric, dict[tuple[str, ...], _Histogram]] = {}

    def set(self, metric: PrometheusMetric, value: float, *labels: str) -> None:
        """Set one series of a gauge; a NaN removes the series."""
        series = self._numbers.setdefault(metric, {})
        if isnan(value):
            series.pop(labels, None)
        else:
            series[labels] = value

    def set_only(self, metric: PrometheusMetric, value: float, *labels: str) -> None:
        """Set a gauge that has one series at a time, such as an ``_info``."""
        self._numbers[metric] = {labels: value}

    def clear(self, metric: PrometheusMetric) -> None:
        """Remove every series of a gauge, which is about to be set anew."""
        self._numbers.pop(metric, None)

    def add(self, metric: PrometheusMetric, amount: float, *labels: str) -> None:
        """Let one series of a counter grow."""
        series = self._numbers.setdefault(metric, {})
        series[labels] = series.get(labels, 0.0) + amount

    def observe(self, metric: PrometheusMetric, value: float, bounds: Sequence[float], *labels: str) -> None:
        """Take a value into one series of a histogram whose buckets have these upper bounds."""
        self._histograms.setdefault(metric, {}).setdefault(labels, _Histogram(bounds)).observe(value)

    def collect(self) -> Iterable[Family]:
        """Return what Prometheus gets."""
        for metric, series in self._numbers.items():
            kind = CounterMetricFamily if metric.name.endswith("_total") else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=metric.labels)
            for labels, value in series.items():
                family.add_metric(labels, value)
            yield family
        for metric, histograms in self._histograms.items():
            distribution = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, histogram in histograms.items():
                distribution.add_metric(labels, histogram.buckets(), histogram.total)
            yield distribution


class Labelled:
    """Values that all carry one first label, such as the run that they are of.

    Args:
        values: to set them in.
        first: the value of the label.
    """

    def __init__(self, values: Values, first: str) -> None:
        self._values = values
        self._first = first

    def set(self, metric: PrometheusMetric, value: float, *labels: str) -> None:
        """See :meth:`Values.set`."""
        self._values.set(metric, value, self._first, *labels)

    def set_only(self, metric: PrometheusMetric, value: float, *labels: str) -> None:
        """See :meth:`Values.set_only`."""
        self._values.set_only(metric, value, self._first, *labels)

    def add(self, metric: PrometheusMetric, amount: float, *labels: str) -> None:
        """See :meth:`Values.add`."""
        self._values.add(metric, amount, self._first, *labels)

    def observe(self, metric: PrometheusMetric, value: float, bounds: Sequence[float], *labels: str) -> None:
        """See :meth:`Values.observe`."""
        self._values.observe(metric, value, bounds, self._first, *labels)


class _Histogram:
    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Return (upper bound, values up to it) as Prometheus counts them: each bucket holds the smaller ones too."""
        names = [*(str(bound) for bound in self._bounds), "+Inf"]
        return list(zip(names, (float(count) for count in accumulate(self._counts)), strict=True))
