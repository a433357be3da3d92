"""``confide dashboard``: a page that follows a run, for those without Grafana.

Only this machine can open it unless ``--address`` says otherwise, and the page fetches nothing from elsewhere.
"""

import sys
from pathlib import Path

import click

from common.errors import RunError
from common.processes import become
from common.settings import check_port_free
from common.telemetry.events import EVENTS_FILE
from deploy.command import FILE, command
from deploy.results.metric_sinks import SINKS, write
from deploy.results.plots import BLUE, SKY

PAGE = Path(__file__).with_name("dashboard_page.py")
DEFAULT_PORT = 8501

_OPTIONS = {
    "browser.gatherUsageStats": "false",
    "server.headless": "true",
    "server.fileWatcherType": "none",
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
    "runner.magicEnabled": "false",
    "theme.light.primaryColor": BLUE,
    "theme.dark.primaryColor": SKY,
}
"""By default Streamlit reports use to its makers, shows stack traces to every viewer, and prints each string of the
page that stands alone. The colours are the report's; the page follows its reader's choice of light or dark."""


@command(
    "dashboard",
    "Show a running or finished run in a browser, for those without Grafana. Only this machine can open the page "
    "unless --address says otherwise, and the page fetches nothing from elsewhere.\n\nRUN is a run's folder.",
    "./confide dashboard runs/0123456789ab\n./confide dashboard runs/0123456789ab --log tensorboard",
)
@click.argument("run", type=FILE)
@click.option("--port", type=int, default=DEFAULT_PORT, metavar="PORT", help="Where the page is served.")
@click.option(
    "--log",
    type=click.Choice(sorted(SINKS)),
    help="Write the metrics for TensorBoard (RUN/tensorboard) or MLflow until the run ends, and serve no page.",
)
@click.option("--address", default="127.0.0.1", metavar="ADDRESS", help="To listen on; there is no password.")
def main(run: Path, port: int, log: str | None, address: str) -> int:
    """Serve the page until it is interrupted.

    Raises:
        RunError: the folder holds no run.
        ConfigError: the port is taken.
    """
    folder = run.resolve()
    if not (folder / EVENTS_FILE).is_file():
        raise RunError(f"{run} must be the folder of a run, with its {EVENTS_FILE}; there is none")
    if log is None:
        _serve(run, folder, port, address)
    else:
        write(folder, log)
    return 0


def _serve(run: Path, folder: Path, port: int, address: str) -> None:
    check_port_free(address, port, "the dashboard")
    print(f"http://{address}:{port} shows {run}; Ctrl-C ends it", flush=True)
    become(_command(folder, address, port), PAGE.parent.parent)


def _command(run: Path, address: str, port: int) -> tuple[str, ...]:
    options = {**_OPTIONS, "server.address": address, "server.port": str(port)}
    flags = [f"--{name}={value}" for name, value in options.items()]
    return (sys.executable, "-m", "streamlit", "run", str(PAGE), *flags, "--", str(run))
