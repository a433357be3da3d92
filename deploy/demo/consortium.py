"""Makes what a consortium on one machine needs before it starts: an authority, a server, and enrolled hospitals."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.config import Config
from common.files import write_private
from common.identity.certificates import (
    CertificateAuthority,
    certificate_pem,
    make_authority,
    make_supernode_key,
    make_tls_certificate,
    openssh_private,
    openssh_public,
    private_key_pem,
    request_hospital_certificate,
    sign_hospital_certificate,
    verify_roster,
)
from common.identity.members import MEMBERS_FILE, sign_members
from common.settings import (
    HOSPITAL_SETTINGS_FILE,
    RELAY_FOLDER,
    ROSTER_FILE,
    SERVER_SETTINGS_FILE,
    SUPERNODES_FOLDER,
    HospitalSettings,
    ServerSettings,
    free_port,
)

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Member:
    """A hospital on this machine: its name, and the folders of its state, its shard and its logs."""

    name: str
    state: Path
    data: Path
    logs: Path


class ConsortiumOnThisMachine:
    """The folders of one server and its hospitals, each hospital's keys in its own folder alone."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder = folder
        self.server_state = folder / "server"
        self._config = config
        self._now = datetime.datetime.now(datetime.UTC)

    def members(self, names: Sequence[str], logs: Path) -> tuple[Member, ...]:
        """Return where each hospital's state, shard and logs lie."""
        return tuple(Member(name, self.folder / name, self.folder / name / "shard", logs / name) for name in names)

    def set_up(self, settings: ServerSettings, members: Sequence[Member], runtime_ports: Sequence[int]) -> None:
        """Make the authority, the server's certificate, and each member's identity, and enrol the members.

        Args:
            settings: of the server.
            members: hospitals, whose shards may be made later.
            runtime_ports: a free port on the loopback interface for each member's SuperNode.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Server and authority are one machine here, and the certificate says so.
        authority = make_authority("Confide demo consortium", self._now, held_by_server=True)
        self._write_server(authority, settings)
        roster: dict[str, str] = {}
        for member, runtime_port in zip(members, runtime_ports, strict=True):
            roster[member.name] = self._enrol(authority, settings, member, runtime_port)
        write_private(self.server_state / ROSTER_FILE, yaml.safe_dump(roster).encode())
        listed = sign_members(authority, verify_roster(roster, authority.certificate), 1, self._now)
        for state in (self.server_state, *(member.state for member in members)):
            write_private(state / MEMBERS_FILE, listed)

    def _write_server(self, authority: CertificateAuthority, settings: ServerSettings) -> None:
        state = self.server_state
        lifetime = datetime.timedelta(hours=self._config.enrolment.server_certificate_hours)
        certificate, key = make_tls_certificate(authority, _LOOPBACK, self._now, lifetime)
        write_private(state / "ca.pem", certificate_pem(authority.certificate))
        write_private(state / "tls.pem", certificate_pem(certificate))
        write_private(state / "tls.key", private_key_pem(key))
        write_private(settings.config, self._config.as_yaml())
        settings.write(state / SERVER_SETTINGS_FILE)

    def _enrol(self, authority: CertificateAuthority, server: ServerSettings, member: Member, runtime_port: int) -> str:
        """Make a hospital's keys in its folder, and return its certificate as PEM."""
        state, relay = member.state, member.state / RELAY_FOLDER
        identity = Ed25519PrivateKey.generate()
        request = request_hospital_certificate(member.name, identity)
        lifetime = datetime.timedelta(hours=self._config.enrolment.hospital_certificate_hours)
        pem = certificate_pem(sign_hospital_certificate(authority, request, member.name, self._now, lifetime))
        write_private(state / "identity.key", private_key_pem(identity))
        write_private(state / "identity.pem", pem)
        write_private(state / "ca.pem", certificate_pem(authority.certificate))
        write_private(relay / "ca.pem", certificate_pem(authority.certificate))
        supernode = make_supernode_key()
        write_private(relay / "supernode.key", openssh_private(supernode))
        write_private(
            self.server_state / SUPERNODES_FOLDER / f"{member.name}.pub", openssh_public(supernode.public_key())
        )
        write_private(state / "config.yaml", self._config.as_yaml())
        HospitalSettings(
            fleet_address=f"127.0.0.1:{server.fleet_port}",
            logs=member.logs,
            data=member.data,
            config=state / "config.yaml",
            runtime_port=runtime_port,
            metrics_port=free_port(),
        ).write(state / HOSPITAL_SETTINGS_FILE)
        return pem.decode()
