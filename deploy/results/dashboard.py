"""``confide dashboard``: a page that follows a run, for those without Grafana.

Only this machine can open it unless ``--address`` says otherwise, and the page fetches nothing from elsewhere.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.errors import RunError
from common.processes import become
from common.settings import check_port_free
from common.telemetry.events import EVENTS_FILE

PAGE = Path(__file__).with_name("dashboard_page.py")
DEFAULT_PORT = 8501

_OPTIONS = {
    "browser.gatherUsageStats": "false",
    "server.headless": "true",
    "server.fileWatcherType": "none",
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
}
"""By default Streamlit reports use to its makers, and shows stack traces to every viewer."""


def main(argv: Sequence[str]) -> int:
    """Serve the page until it is interrupted; argv begins with the command's last word.

    Raises:
        RunError: the folder holds no run.
        ConfigError: the port is taken.
    """
    arguments = _parser().parse_args(argv[1:])
    run = arguments.run.resolve()
    if not (run / EVENTS_FILE).is_file():
        raise RunError(f"{arguments.run} must be the folder of a run, with its {EVENTS_FILE}; there is none")
    check_port_free(arguments.address, arguments.port, "the dashboard")
    print(f"http://{arguments.address}:{arguments.port} shows {arguments.run}; Ctrl-C ends it", flush=True)
    become(_command(run, arguments.address, arguments.port), PAGE.parent.parent)


def _command(run: Path, address: str, port: int) -> tuple[str, ...]:
    options = {**_OPTIONS, "server.address": address, "server.port": str(port)}
    flags = [f"--{name}={value}" for name, value in options.items()]
    return (sys.executable, "-m", "streamlit", "run", str(PAGE), *flags, "--", str(run))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="confide dashboard", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"default: {DEFAULT_PORT}")
    parser.add_argument(
        "--address", default="127.0.0.1", help="to listen on; there is no password (default: 127.0.0.1)"
    )
    return parser
