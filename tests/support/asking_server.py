"""A server that begins runs of any terms with the agent of one hospital, whose data lies in a folder."""

import datetime
import os
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.agent import HospitalAgent, Surroundings
from common.config import Config, HospitalConfig, RunDescription, replace
from common.identity.certificates import (
    HospitalIdentity,
    certificate_pem,
    make_authority,
    request_hospital_certificate,
    sign_hospital_certificate,
)
from common.identity.members import sign_members
from common.run.messages import KeysRequest, Reply
from common.run.terms import describe

NOW = datetime.datetime(2026, 1, 15, tzinfo=datetime.UTC)
NAMES = ("north", "south", "west")

Terms = dict[str, dict[str, Any]]


class AskingServer:
    """A server of three members, which begins one run after the other with the agent of the first."""

    def __init__(self, policy: HospitalConfig | None = None) -> None:
        self.policy = policy or HospitalConfig()
        self.authority = make_authority("test", NOW)
        self.members = {name: self._certified(name) for name in NAMES}
        self.asked = 0

    def _certified(self, name: str) -> HospitalIdentity:
        key = Ed25519PrivateKey.generate()
        request = request_hospital_certificate(name, key)
        until = datetime.timedelta(days=30)
        return HospitalIdentity(name, sign_hospital_certificate(self.authority, request, name, NOW, until), key)

    def agent(self, folder: Path, data: Path) -> HospitalAgent:
        state = folder / "state"
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        registry = folder.parent / "ledgers of the machine"
        surroundings = Surroundings(state, data, folder / "cache", os.urandom, lambda: NOW, ledgers=registry)
        return HospitalAgent(self.members["north"], self.authority.certificate, self.policy, surroundings)

    def described(self, terms: Terms) -> RunDescription:
        self.asked += 1
        config = replace(Config(), **terms)
        keys = {name: one.key.public_key().public_bytes_raw() for name, one in self.members.items()}
        roster = {name: certificate_pem(one.certificate).decode() for name, one in self.members.items()}
        return describe(
            config,
            f"{self.asked:032x}",
            config.task.classes or ("normal", "pneumonia"),
            config.task.channels,
            roster,
            member_list=sign_members(self.authority, keys, 1, NOW).decode(),
        )

    def ask(self, agent: HospitalAgent, terms: Terms) -> Reply:
        """Begin a run with the agent, and return what it answers."""
        request = KeysRequest(run_description=self.described(terms).canonical_json(), round_number=1)
        return agent.answer(request, None)[0]
