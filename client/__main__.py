"""``python -m client --state DIR``: a hospital, one supervisor over its relay, a SuperNode, and its agent."""

import argparse
import os
import pwd
import sys
import time
from dataclasses import replace
from pathlib import Path

from client.status import STATUS_FILE
from common.config import Config, load_config
from common.errors import ConfideError, ConfigError
from common.flower.carried import longest_array_bytes
from common.flower.waits import FLOWER_ENVIRONMENT
from common.processes import (
    EXIT_REFUSED,
    PRIVATE_UMASK,
    ProcessCommand,
    Stopping,
    Supervisor,
    python_module,
    raise_on_signals,
)
from common.settings import HOSPITAL_SETTINGS_FILE, RELAY_FOLDER, HospitalSettings, check_port_free

_POLL_SECONDS = 0.2


def main() -> int:
    """Run the hospital until it is stopped, or refuses to work until a person corrects something."""
    parser = argparse.ArgumentParser(prog="python -m client", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="folder with hospital.json, keys and ledger")
    parser.add_argument("--relay-user", help="run the SuperNode as this user, who can read its own folder alone")
    arguments = parser.parse_args()
    raise_on_signals()
    os.umask(PRIVATE_UMASK)
    supervisor = Supervisor()
    try:
        for command in _commands(arguments.state, arguments.relay_user):
            supervisor.start(command)
        while True:
            if "agent" in supervisor.ended() and supervisor.is_running("supernode"):
                # The SuperNode would wait for the dead agent's answer: the two go down together.
                supervisor.end("supernode")
            supervisor.revive()
            time.sleep(_POLL_SECONDS)
    except Stopping:
        return 0
    except ConfideError as error:
        print(f"confide: {error}", file=sys.stderr)  # noqa: T201 - the supervisor's own last word
        if supervisor.is_running("supernode"):
            supervisor.end("supernode")  # It does not tell the server that this hospital leaves: something has failed.
        return EXIT_REFUSED
    finally:
        supervisor.stop()


def _commands(state: Path, relay_user: str | None) -> tuple[ProcessCommand, ...]:
    """Return the command lines of agent and SuperNode, and of what goes with them.

    A hospital that joined through an enrolment service has a process that keeps its membership.
    """
    settings = HospitalSettings.read(state / HOSPITAL_SETTINGS_FILE)
    config = load_config(settings.config)
    agent = python_module("client.resident", "--state", str(state))
    commands: tuple[ProcessCommand, ...] = (
        ProcessCommand("agent", agent, settings.logs / "agent.log", _environment(state)),
        _supernode(state, settings, config, relay_user),
    )
    if settings.enrolment_address is not None:
        standing = python_module("client.standing", "--state", str(state))
        commands += (ProcessCommand("standing", standing, settings.logs / "standing.log", _environment(state)),)
    return commands if settings.metrics_port == 0 else (*commands, _exporter(state, settings))


def _supernode(state: Path, settings: HospitalSettings, config: Config, relay_user: str | None) -> ProcessCommand:
    transport, longest = config.transport, longest_array_bytes(config.hospital.longest_vector)
    relay = state / RELAY_FOLDER
    arguments = python_module(
        "client.flower.supernode",
        "--relay", str(relay),
        "--superlink", settings.fleet_address,
        "--poll-seconds", str(transport.poll_seconds),
        "--first-backoff-seconds", str(transport.first_backoff_seconds),
        "--longest-array-bytes", str(longest),
    )  # fmt: skip
    command = ProcessCommand("supernode", arguments, settings.logs / "supernode.log", _environment(state))
    if relay_user is None:
        return command
    try:
        user = pwd.getpwnam(relay_user)
    except KeyError:
        raise ConfigError(f"--relay-user must be a user of this machine, got {relay_user!r}") from None
    _hand_over(relay, user.pw_gid)
    return replace(command, user=user.pw_uid, group=user.pw_gid)


def _hand_over(relay: Path, group: int) -> None:
    """Let the relay's group read its folder, and write what Flower keeps there; this user must be in that group.

    Raises:
        ConfigError: the folder's owner is somebody else, or this user is not in the group.
    """
    written = relay / "flower"
    written.mkdir(mode=0o770, exist_ok=True)
    try:
        for path in (relay, *relay.iterdir()):
            os.chown(path, -1, group)
            path.chmod(0o770 if path == written else 0o750 if path.is_dir() else 0o640)
    except OSError as error:
        raise ConfigError(f"{relay} must be handed over to the relay's group: {error.strerror}") from None


def _environment(state: Path) -> dict[str, str]:
    return {
        **FLOWER_ENVIRONMENT,
        "FLWR_HOME": str(state / RELAY_FOLDER / "flower"),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }


def _exporter(state: Path, settings: HospitalSettings) -> ProcessCommand:
    check_port_free(settings.metrics_host, settings.metrics_port, "the metrics")
    where = ("--port", str(settings.metrics_port), "--host", settings.metrics_host)
    command = python_module("client.metrics", "--status", str(state / STATUS_FILE), *where)
    return ProcessCommand("metrics", command, settings.logs / "metrics.log")


if __name__ == "__main__":
    sys.exit(main())
