"""``python -m deploy.resilience.light_hospitals --states DIR…``: many hospitals in one process, for ``confide load``.

Each has its own identity, shard and connection to the server, the relay that is deployed, and answers with the agent
that is deployed: the server sees hospitals, not a simulation. Only what a hospital keeps apart, the relay from the
agent and one hospital from the other, is together here.
"""

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
import torch

from client.agent import HospitalAgent, Surroundings
from client.app import answer
from client.flower.supernode import Answered, FleetConnection, Relay, bundle_digest
from common.config import load_config
from common.errors import RunError
from common.flower.carried import longest_array_bytes
from common.identity.certificates import load_certificate, load_identity, load_supernode_key
from common.settings import HOSPITAL_SETTINGS_FILE, RELAY_FOLDER, HospitalSettings

_HEARTBEAT_SECONDS = 4.0


def main() -> int:
    """Take part with every hospital until stopped."""
    parser = argparse.ArgumentParser(prog="python -m deploy.resilience.light_hospitals", description=__doc__)
    parser.add_argument("--states", type=Path, nargs="+", required=True)
    states = parser.parse_args().states
    torch.set_num_threads(1)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    turn = threading.Lock()
    bundle = bundle_digest(states[0])
    fleets = [_take_part(state, turn, bundle) for state in states]
    while not stopping.wait(_HEARTBEAT_SECONDS):
        for fleet in fleets:
            if not fleet.beat():
                raise RunError("the server must know every hospital")
    return 0


def _take_part(state: Path, turn: threading.Lock, bundle: str) -> FleetConnection:
    """Connect a hospital and let it answer in a thread of its own."""
    settings = HospitalSettings.read(state / HOSPITAL_SETTINGS_FILE)
    config = load_config(settings.config)
    longest = longest_array_bytes(config.hospital.longest_vector)
    identity = load_identity(state)
    surroundings = Surroundings(state=state, data=settings.data, cache=state / "cache", random=os.urandom)
    agent = HospitalAgent(identity, load_certificate(state / "ca.pem"), config.hospital, surroundings)
    key, ca = load_supernode_key(state / RELAY_FOLDER / "supernode.key"), (state / RELAY_FOLDER / "ca.pem").read_bytes()
    fleet = FleetConnection(settings.fleet_address, ca, key, config.transport.first_backoff_seconds)
    fleet.activate()

    def ask(message: bytes, parts: Sequence[bytes | memoryview]) -> Answered:
        given = [memoryview(part) for part in parts]
        with turn:  # The hospitals share this machine's cores; two that train at once only slow each other.
            reply, array = answer(
                agent, identity.name, message, sum(map(len, given)), iter(given), longest_array_bytes=longest
            )
        return Answered(reply, b"".join(memoryview(part).cast("B") for part in array))

    def serve() -> None:
        while True:  # A server that starts anew is waited for; one that does not come back ends this by its heartbeat.
            with contextlib.suppress(grpc.RpcError):
                Relay(fleet, ask, bundle, longest).serve()
            time.sleep(1.0)

    threading.Thread(target=serve, daemon=True).start()
    return fleet


if __name__ == "__main__":
    sys.exit(main())
