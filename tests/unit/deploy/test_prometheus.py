"""The scrape configuration and alert rules; promtool itself where it is installed (Debian: package prometheus)."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from common.config import Config
from common.telemetry.metric_names import ALL

FOLDER = Path(__file__).parents[3] / "deploy" / "prometheus"
PROMTOOL = os.environ.get("CONFIDE_PROMTOOL") or shutil.which("promtool")
AMTOOL = os.environ.get("CONFIDE_AMTOOL") or shutil.which("amtool")

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (or set CONFIDE_PROMTOOL)")


def _expressions(file: Path) -> list[str]:
    return [rule["expr"] for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def test_every_metric_a_rule_asks_for_is_one_we_export() -> None:
    asked = {name for rule in _expressions(FOLDER / "alerts.yml") for name in re.findall(r"confide_\w+", rule)}
    assert asked
    assert asked <= {metric.name for metric in ALL}


def test_every_alert_has_a_test_that_it_fires_and_one_that_it_does_not() -> None:
    alerts = {
        rule["alert"]
        for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
        for rule in group["rules"]
    }
    cases = [
        case
        for test in yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == alerts


def test_the_ports_scraped_are_those_of_the_configuration() -> None:
    server, hospital = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    ports = Config().monitoring
    assert server["static_configs"] == [{"targets": [f"server:{ports.server_metrics_port}"]}]
    assert hospital["dns_sd_configs"][0]["port"] == ports.hospital_metrics_port


def test_a_round_may_use_its_deadlines_before_it_counts_as_stalled() -> None:
    stalled = next(rule for rule in _expressions(FOLDER / "alerts.yml") if "last_progress" in rule)
    allowed = re.search(r"> (\d+)", stalled)
    assert allowed is not None
    assert int(allowed[1]) > 3 * Config().transport.exchange_deadline_seconds


def test_every_alert_links_to_what_to_do_about_it() -> None:
    pages = (FOLDER.parents[1] / "docs" / "runbooks.md").read_text()
    headings = {heading.lower() for heading in re.findall(r"^### (\w+)$", pages, re.MULTILINE)}
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            link = rule["annotations"]["runbook_url"]
            assert link.endswith(f"docs{{{{ end }}}}/runbooks.md#{rule['alert'].lower()}")
            assert rule["alert"].lower() in headings


@pytest.mark.skipif(AMTOOL is None, reason="amtool is not installed (or set CONFIDE_AMTOOL)")
@pytest.mark.parametrize(("severity", "receiver"), [("critical", "on-call"), ("warning", "operators")])
def test_an_alert_reaches_those_for_whom_it_is(severity: str, receiver: str) -> None:
    file = f"--config.file={FOLDER / 'alertmanager.yml'}"
    for command in (
        ("check-config", str(FOLDER / "alertmanager.yml")),
        ("config", "routes", "test", file, f"--verify.receivers={receiver}", f"severity={severity}"),
    ):
        done = subprocess.run((str(AMTOOL), *command), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize("check", [("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml")])
def test_promtool_accepts(check: tuple[str, ...]) -> None:
    done = subprocess.run((str(PROMTOOL), *check), cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
