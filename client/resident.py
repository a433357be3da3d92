"""``python -m client.resident --state DIR``: the hospital's agent, one process for the life of the hospital.

It holds the data, the ledger and the identity key; torch is imported once, and secrets stay in memory. What
reaches it are messages, never code.
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path

from client.agent import HospitalAgent, Surroundings
from client.app import answer
from client.device import choose
from client.handover import AgentDoor
from client.ledger.place import registry_folder
from common.audit.chain import AUDIT_FILE, AuditChain
from common.audit.parties import Writer
from common.config import load_config
from common.errors import ConfideError
from common.files import alone
from common.flower.carried import longest_array_bytes
from common.identity.certificates import load_certificate, load_identity
from common.mask_workers import MaskWorkers, cores
from common.processes import EXIT_REFUSED
from common.proved_sums.ring import SPECTRA_BYTES, keep_spectra
from common.settings import CACHE_FOLDER, HOSPITAL_SETTINGS_FILE, RELAY_FOLDER, HospitalSettings
from common.telemetry.logs import begin_logging

_LOG = logging.getLogger("confide.hospital")

_PREDECESSOR_SECONDS = 10.0
"""An agent whose supervisor was killed has this long to end: two must never answer from the same state."""


def main() -> int:
    """Serve until it is stopped."""
    parser = argparse.ArgumentParser(prog="python -m client.resident", description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    state = parser.parse_args().state
    begin_logging()
    try:
        return _serve(state)
    except ConfideError as error:
        print(f"confide: {error}", file=sys.stderr, flush=True)  # noqa: T201 - read by the supervisor
        return EXIT_REFUSED


def _serve(state: Path) -> int:
    with alone(state / "agent.lock", _PREDECESSOR_SECONDS):
        return _serve_alone(state)


def _serve_alone(state: Path) -> int:
    settings = HospitalSettings.read(state / HOSPITAL_SETTINGS_FILE)
    config = load_config(settings.config)
    _LOG.info("features and gradients are computed on %s", choose(config.hospital.device))
    identity = load_identity(state)
    chain = AuditChain(state / AUDIT_FILE, Writer(identity.certificate, identity.key))
    door = AgentDoor(state / RELAY_FOLDER)
    signal.signal(signal.SIGTERM, lambda *_: door.stop())
    signal.signal(signal.SIGINT, lambda *_: door.stop())
    keep_spectra(SPECTRA_BYTES)
    with MaskWorkers(cores() - 1) as apply_masks:
        surroundings = Surroundings(
            state=state,
            data=settings.data,
            cache=state / CACHE_FOLDER,
            random=os.urandom,
            record=chain.append,
            apply_masks=apply_masks,
            # A hospital that joined has data of its own; a demo's is dealt anew each time.
            ledgers=None if settings.enrolment_address is None else registry_folder(),
        )
        agent = HospitalAgent(identity, load_certificate(state / "ca.pem"), config.hospital, surroundings)
        longest = longest_array_bytes(config.hospital.longest_vector)
        with contextlib.closing(agent), door:
            door.serve(partial(answer, agent, identity.name, longest_array_bytes=longest))
    return 0


if __name__ == "__main__":
    sys.exit(main())
