"""A whole consortium in one process: the deployed agents, server and protocol, with function calls for a network.

For experiments and tests. Flower, TLS and the separate machines are missing, and nothing else: hospitals have keys
that an authority signed, shards, ledgers and state folders of their own; messages are encoded and read as on the wire.
"""

import datetime
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.agent import HospitalAgent, Surroundings
from client.data import DataContract, open_data
from client.data.hospital_data import HospitalData
from common.audit.chain import AUDIT_FILE, AuditChain, Record, discard
from common.audit.parties import Writer
from common.config import Config, HospitalConfig
from common.identity.certificates import (
    HospitalIdentity,
    certificate_pem,
    make_authority,
    make_tls_certificate,
    request_hospital_certificate,
    sign_hospital_certificate,
    verify_roster,
)
from common.identity.members import sign_members
from common.run.messages import Request, decode_reply, decode_request, encode
from common.run.terms import describe
from common.telemetry.events import Event
from deploy.datasets.datasets import DataSet
from server.audit import recording_refusals
from server.checkpoints import CheckpointStore
from server.conversation import Conversation
from server.run import Run
from server.run_plan import RunPlan
from server.transport import Incoming, Outgoing, Patience


class Loss(StrEnum):
    """What a hospital that vanishes in an exchange still does."""

    OF_REQUEST = "request"
    """It does nothing: it was gone before the request came."""
    OF_REPLY = "reply"
    """It answers and is gone before the answer is out, so its state has moved on and the server does not know."""


Line = Callable[[str, Request], Loss | None]
"""Says of a hospital and a request whether one of the two messages is lost."""


def sound_line(_hospital: str, _request: Request) -> None:
    """Lose nothing."""


class InProcessTransport:
    """Carries requests to agents and their replies back; see :class:`server.transport.Transport`.

    Hospitals answer one after the other. Nobody waits for one that has vanished: when the last of the others has
    answered the exchange is over, as it would be at its deadline.

    Args:
        agents: by the hospital's name; one may be replaced at any time, as when a hospital is restarted.
        line: where messages are lost.
    """

    def __init__(self, agents: Mapping[str, HospitalAgent], line: Line = sound_line) -> None:
        self.line = line
        self.offline: set[str] = set()
        """Hospitals that the server does not see at all."""
        self._agents = agents
        self._names = dict(enumerate(agents, start=1))

    def online(self) -> Mapping[int, str]:
        """Return the node of each hospital that is there."""
        return {node: name for node, name in self._names.items() if name not in self.offline}

    def exchange(
        self,
        outgoing: Mapping[int, Outgoing],
        patience: Patience,
        reply_array_bytes: int,  # noqa: ARG002 - one reply at a time is in memory
    ) -> Iterator[Incoming]:
        """Ask one hospital after the other."""
        for node, item in outgoing.items():
            incoming = self._deliver(node, item)
            if incoming is not None:
                patience.answered(node)
                yield incoming

    def _deliver(self, node: int, item: Outgoing) -> Incoming | None:
        name = self._names[node]
        lost = Loss.OF_REQUEST if name in self.offline else self.line(name, item.request)
        if lost is Loss.OF_REQUEST:
            return None
        array = None if item.model is None else item.model[:].copy()
        reply, vector = self._agents[name].answer(decode_request(encode(item.request)), array)
        encoded = encode(reply)
        if lost is Loss.OF_REPLY:
            return None
        size = len(encoded) + (0 if vector is None else vector.nbytes)
        return Incoming(node, decode_reply(encoded), vector, None, size)


@dataclass(frozen=True)
class Site:
    """What a hospital finds on its own disk.

    Attributes:
        data: the folder of its images.
        state: its ledger and its record of answered rounds; a hospital with a new one has spent nothing yet.
        cache: of prepared images; what one run has prepared serves the next.
        policy: what the hospital agrees to.
        open_data: reads its data.
    """

    data: Path
    state: Path
    cache: Path
    policy: HospitalConfig
    open_data: Callable[[Path, DataContract, Path, str], HospitalData] = open_data


class InProcessConsortium:
    """Hospitals, enrolled and ready to answer, and what a server needs to run with them.

    Args:
        config: of the consortium.
        sites: by the hospital's name.
        random: where hospitals take their secrets and noise from.
        audited: write audit chains, the hospitals' into their state folders, the server's beside its checkpoints.
    """

    def __init__(
        self,
        config: Config,
        sites: Mapping[str, Site],
        random: Callable[[int], bytes] = os.urandom,
        *,
        audited: bool = False,
    ) -> None:
        self._config = config
        self._sites = sites
        self._random = random
        now = datetime.datetime.now(datetime.UTC)
        authority = make_authority("in-process consortium", now)
        self.authority = authority.certificate
        self._audited = audited
        self._server = Writer(*make_tls_certificate(authority, ("localhost",), now, datetime.timedelta(days=1)))
        lifetime = datetime.timedelta(hours=config.enrolment.hospital_certificate_hours)
        self._identities: dict[str, HospitalIdentity] = {}
        for name in sites:
            key = Ed25519PrivateKey.generate()
            request = request_hospital_certificate(name, key)
            certificate = sign_hospital_certificate(authority, request, name, now, lifetime)
            self._identities[name] = HospitalIdentity(name, certificate, key)
        self.roster = {name: certificate_pem(each.certificate).decode() for name, each in self._identities.items()}
        self.roster_keys = verify_roster(self.roster, self.authority)
        self.member_list = sign_members(authority, self.roster_keys, 1, now).decode()
        self.agents: dict[str, HospitalAgent] = {}
        for name in sites:
            self.restart(name)
        self.transport = InProcessTransport(self.agents)

    def site(self, hospital: str) -> Site:
        """Return what a hospital finds on its own disk."""
        return self._sites[hospital]

    def identity(self, hospital: str) -> HospitalIdentity:
        """Return a hospital's certificate and key."""
        return self._identities[hospital]

    def restart(self, hospital: str) -> None:
        """Start a hospital's agent again: what was only in its memory is gone, what is on its disk is not."""
        site = self._sites[hospital]
        site.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        identity = self._identities[hospital]
        surroundings = Surroundings(
            record=self._chain(site.state, Writer(identity.certificate, identity.key)),
            state=site.state,
            data=site.data,
            cache=site.cache,
            random=self._random,
            open_data=site.open_data,
        )
        self.agents[hospital] = HospitalAgent(identity, self.authority, site.policy, surroundings)

    def server(self, run_id: str, data: DataSet, checkpoints: Path, report: Callable[[Event], None]) -> Run:
        """Return a server's run with these hospitals, from the last checkpoint on if there is one.

        Args:
            run_id: 32 hexadecimal digits.
            data: what was dealt to the hospitals, for its name, classes and channels.
            checkpoints: the folder they are in.
            report: called with each event.

        Raises:
            ConfigError: the configuration contradicts itself.
            RunError: a checkpoint cannot be read.
        """
        config = self._config
        plan = RunPlan(
            config=config,
            description=describe(
                config, run_id, data.classes, data.channels, self.roster, member_list=self.member_list
            ),
            data_set=data.name,
            roster_keys=self.roster_keys,
        )
        record = self._chain(checkpoints.parent, self._server)
        report = recording_refusals(report, record, run_id)
        conversation = Conversation(self.transport, config.transport, report)
        return Run(plan, conversation, CheckpointStore(checkpoints), report, record)

    def _chain(self, folder: Path, writer: Writer) -> Record:
        return AuditChain(folder / AUDIT_FILE, writer).append if self._audited else discard
