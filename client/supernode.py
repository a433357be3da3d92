"""``python -m client.supernode --relay DIR …``: Flower's SuperNode as this hospital's relay.

It runs as a user of its own where the hospital has one for it, so it is told all it needs and reads its own folder
alone: no settings, no data, no key of the hospital's.
"""

import argparse
from pathlib import Path

from client.flower import run_supernode


def main() -> None:
    """Relay messages between the server and this hospital's agent until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m client.supernode", description=__doc__)
    parser.add_argument("--relay", type=Path, required=True, help="folder with its key and certificates")
    parser.add_argument("--superlink", required=True, help="host and port of the server's Fleet API")
    parser.add_argument("--port", required=True, help="of the Runtime API, on the loopback interface")
    parser.add_argument("--poll-seconds", type=float, required=True)
    parser.add_argument("--first-backoff-seconds", type=float, required=True)
    chosen = parser.parse_args()
    relay = chosen.relay
    arguments = (
        "--superlink", chosen.superlink,
        "--root-certificates", str(relay / "ca.pem"),
        "--auth-supernode-private-key", str(relay / "supernode.key"),
        "--isolation", "process",
        "--host", "127.0.0.1",
        "--port", chosen.port,
        "--ssl-certfile", str(relay / "runtime.pem"),
        "--ssl-keyfile", str(relay / "runtime.key"),
        "--ssl-ca-certfile", str(relay / "runtime.pem"),
        "--superexec-auth-secret-file", str(relay / "runtime.secret"),
    )  # fmt: skip
    run_supernode(arguments, chosen.poll_seconds, chosen.first_backoff_seconds)


if __name__ == "__main__":
    main()
