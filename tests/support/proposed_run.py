"""A proposal to three hospitals, with the keys of everybody, for tests of who agrees to what."""

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.agreement import Hospital
from common.audit.chain import AUDIT_FILE, AuditChain
from common.audit.parties import Writer
from common.config import Config, HospitalConfig, RunDescription, replace
from common.identity.certificates import (
    CertificateAuthority,
    HospitalIdentity,
    certificate_pem,
    make_authority,
    request_hospital_certificate,
    sign_hospital_certificate,
    verify_roster,
)
from common.identity.members import sign_members
from common.run.proposal import Proposal
from common.run.terms import describe

NOW = datetime.datetime.now(datetime.UTC)
HOUR = datetime.timedelta(hours=1)
NAMES = ("st-anne", "st-john", "st-mary")
RUN_ID = "0123456789abcdef0123456789abcdef"
PARAMETERS = 1000
CONFIG = replace(
    Config(), experiment={"num_clients": len(NAMES), "rounds": 4}, privacy={"accountant": "rdp", "target_epsilon": 3.0}
)
"""RDP is computed in milliseconds."""


@dataclass(frozen=True)
class Members:
    """An authority and the hospitals that it has certified."""

    authority: CertificateAuthority
    identities: dict[str, HospitalIdentity]

    @classmethod
    def made(cls, names: tuple[str, ...] = NAMES) -> "Members":
        authority = make_authority("consortium", NOW)
        return cls(authority, {name: member(authority, name) for name in names})

    @property
    def roster(self) -> dict[str, str]:
        return {name: certificate_pem(identity.certificate).decode() for name, identity in self.identities.items()}

    @property
    def member_list(self) -> str:
        return sign_members(self.authority, verify_roster(self.roster, self.authority.certificate), 1, NOW).decode()

    def description(self, config: Config = CONFIG, run_id: str = RUN_ID) -> RunDescription:
        classes = ("normal", "pneumonia")
        return describe(config, run_id, classes, 1, self.roster, PARAMETERS, self.member_list)

    def proposal(self, config: Config = CONFIG, run_id: str = RUN_ID, hours: float = 1.0) -> Proposal:
        until = int((NOW + hours * HOUR).timestamp())
        names = tuple(sorted(self.identities))
        return Proposal(description=self.description(config, run_id), data_set="phantom", hospitals=names, until=until)

    def hospital(self, name: str, state: Path, policy: HospitalConfig | None = None) -> Hospital:
        return Hospital(state, self.identities[name], policy or HospitalConfig())

    def chain(self, name: str, state: Path) -> AuditChain:
        identity = self.identities[name]
        return AuditChain(state / AUDIT_FILE, Writer(identity.certificate, identity.key))


def member(authority: CertificateAuthority, name: str) -> HospitalIdentity:
    key = Ed25519PrivateKey.generate()
    request = request_hospital_certificate(name, key)
    return HospitalIdentity(name, sign_hospital_certificate(authority, request, name, NOW, 24 * HOUR), key)
