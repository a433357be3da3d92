"""A Prometheus configuration for the exporters of a run on this machine."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

RULES = Path(__file__).resolve().parents[1] / "prometheus" / "alerts.yml"
CONFIGURATION_FILE = "prometheus.yml"
"""A file in a run's folder: ``prometheus --config.file=RUN/prometheus.yml`` shows the run."""

_SCRAPE_INTERVAL = "2s"
"""The interval between scrapes; a round of the demo takes a few seconds."""


def write_configuration(folder: Path, ports: Mapping[str, Sequence[int]]) -> Path:
    """Write a configuration that scrapes exporters on the loopback interface.

    Args:
        folder: of the run.
        ports: of the exporters, by the job's name: ``server``, ``hospital``.

    Returns:
        The file.
    """
    configuration = {
        "global": {"scrape_interval": _SCRAPE_INTERVAL, "evaluation_interval": _SCRAPE_INTERVAL},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in chosen]}]}
            for job, chosen in ports.items()
        ],
    }
    path = folder / CONFIGURATION_FILE
    path.write_text(yaml.safe_dump(configuration, sort_keys=False), encoding="utf-8")
    return path
