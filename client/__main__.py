"""``python -m client --state DIR``: a hospital, one supervisor over Flower's SuperNode and the hospital's agent."""

import argparse
import os
import secrets
import sys
import time
from pathlib import Path

from client.status import STATUS_FILE
from common.config import load_config
from common.errors import ConfideError
from common.flower_waits import FLOWER_ENVIRONMENT
from common.identity import write_private
from common.processes import EXIT_REFUSED, Command, Stopping, Supervisor, python_module, raise_on_signals
from common.settings import HOSPITAL_SETTINGS_FILE, RELAY_FOLDER, SECRET_BYTES, HospitalSettings, check_port_free

_LOOK_SECONDS = 0.2


def main() -> int:
    """Run the hospital until it is told to stop, or refuses to work until a person corrects something."""
    parser = argparse.ArgumentParser(prog="python -m client", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="folder with hospital.json, keys and ledger")
    arguments = parser.parse_args()
    raise_on_signals()
    supervisor = Supervisor()
    try:
        for command in _commands(arguments.state):
            supervisor.start(command)
        while True:
            if "agent" in supervisor.ended() and supervisor.is_running("supernode"):
                # The SuperNode would wait for the dead agent's answer: the two go down together.
                supervisor.end("supernode")
            supervisor.revive()
            time.sleep(_LOOK_SECONDS)
    except Stopping:
        return 0
    except ConfideError as error:
        print(f"confide: {error}", file=sys.stderr)  # noqa: T201 - the supervisor's own last word
        return EXIT_REFUSED
    finally:
        supervisor.stop()


def _commands(state: Path) -> tuple[Command, ...]:
    """Return the command lines of agent, SuperNode and exporter, with a fresh secret between the first two."""
    settings = HospitalSettings.read(state / HOSPITAL_SETTINGS_FILE)
    load_config(settings.config)
    check_port_free("127.0.0.1", settings.runtime_port, "the SuperNode's Runtime API")
    write_private(state / RELAY_FOLDER / "runtime.secret", secrets.token_bytes(SECRET_BYTES))
    environment = {
        **FLOWER_ENVIRONMENT,
        "FLWR_HOME": str(state / RELAY_FOLDER / "flower"),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    arguments = ("--state", str(state))
    commands = (
        Command("agent", python_module("client.resident", *arguments), settings.logs / "agent.log", environment),
        Command(
            "supernode", python_module("client.supernode", *arguments), settings.logs / "supernode.log", environment
        ),
    )
    return commands if settings.metrics_port == 0 else (*commands, _exporter(state, settings))


def _exporter(state: Path, settings: HospitalSettings) -> Command:
    check_port_free(settings.metrics_host, settings.metrics_port, "the metrics")
    where = ("--port", str(settings.metrics_port), "--host", settings.metrics_host)
    command = python_module("client.metrics", "--status", str(state / STATUS_FILE), *where)
    return Command("metrics", command, settings.logs / "metrics.log")


if __name__ == "__main__":
    sys.exit(main())
