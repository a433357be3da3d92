"""``python -m client.supernode --state DIR``: Flower's SuperNode as this hospital's relay."""

import argparse
from pathlib import Path

from client.flower import run_supernode
from common.config import load_config
from common.settings import HOSPITAL_SETTINGS_FILE, RELAY_FOLDER, HospitalSettings


def main() -> None:
    """Relay messages between the server and this hospital's agent until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m client.supernode", description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    state = parser.parse_args().state
    settings = HospitalSettings.read(state / HOSPITAL_SETTINGS_FILE)
    transport = load_config(settings.config).transport
    relay = state / RELAY_FOLDER
    arguments = (
        "--superlink", settings.fleet_address,
        "--root-certificates", str(relay / "ca.pem"),
        "--auth-supernode-private-key", str(relay / "supernode.key"),
        "--isolation", "process",
        "--host", "127.0.0.1",
        "--port", str(settings.runtime_port),
        "--ssl-certfile", str(relay / "runtime.pem"),
        "--ssl-keyfile", str(relay / "runtime.key"),
        "--ssl-ca-certfile", str(relay / "runtime.pem"),
        "--superexec-auth-secret-file", str(relay / "runtime.secret"),
    )  # fmt: skip
    run_supernode(arguments, transport.poll_seconds, transport.first_backoff_seconds)


if __name__ == "__main__":
    main()
