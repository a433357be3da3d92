"""Brings a finished demo's model home: each hospital takes it from the server's folder and verifies it.

What is checked and kept is what a hospital of a real consortium checks and keeps (``client/kept_runs.py``); what is
missing is the line between the two.
"""

from dataclasses import dataclass, field
from pathlib import Path

from client.enrolment import EnrolmentService
from client.kept_runs import RunReceiver, kept_runs, refused_runs
from common.errors import RunError
from common.identity.certificates import HospitalIdentity, load_certificate, load_identity
from common.identity.enrolment import PIECE_BYTES
from common.run.delivery import DELIVERY_FILE, read_delivery
from deploy.demo.loopback import LoopbackDeployment

_SECONDS = 600.0
"""The longest that a hospital takes to copy its files from the same disk."""


@dataclass(frozen=True)
class _OnThisDisk(EnrolmentService):
    """The part of an enrolment service that hands finished runs over, without a network."""

    run: Path = field(kw_only=True)

    def results(self, identity: HospitalIdentity) -> dict[str, bytes]:
        delivery = read_delivery((self.run / DELIVERY_FILE).read_bytes(), self.authority)
        return {delivery.run_id: bytes.fromhex(delivery.digest())} if identity.name in delivery.hospitals else {}

    def piece(self, identity: HospitalIdentity, run_id: str, name: str, offset: int) -> bytes:  # noqa: ARG002 - as there
        with (self.run / name).open("rb") as file:
            file.seek(offset)
            return file.read(PIECE_BYTES)


def bring_home(deployment: LoopbackDeployment) -> int:
    """Let each hospital receive the finished run; returns how many keep it now.

    Raises:
        RunError: a hospital refuses what the server hands over; names it and its reason.
        ConfideError: a file cannot be read, or the disk is full.
    """
    if not (deployment.folder / DELIVERY_FILE).exists():
        return 0
    authority = load_certificate(deployment.consortium.server_state / "ca.pem")
    service = _OnThisDisk("", authority, run=deployment.folder)
    kept = 0
    for member in deployment.members:
        RunReceiver(member.state, authority, service).advance(load_identity(member.state), _SECONDS)
        for refused in refused_runs(member.state).values():
            raise RunError(f"{member.name} refuses what the server hands over: {refused.reason}")
        kept += any(run.run_id == deployment.run_id for run in kept_runs(member.state))
    return kept
