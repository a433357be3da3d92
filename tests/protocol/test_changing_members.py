"""Members come, go and renew while a run goes on; a server that hides a revocation gets nothing. All in memory."""

import datetime as dt
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace as replace_fields
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.agent import HospitalAgent, Surroundings
from common.audit.chain import AuditEntry, Chain
from common.audit.entries import Began, Body
from common.audit.parties import SERVER_PARTY
from common.config import Config, DataConfig, replace
from common.errors import AuditError
from common.identity.certificates import (
    HospitalIdentity,
    certificate_pem,
    make_authority,
    read_certificate,
    request_hospital_certificate,
    sign_hospital_certificate,
    verify_roster,
)
from common.identity.members import sign_members
from common.identity.revocation import Revocations, sign_revocations
from common.run.messages import decode_reply, decode_request, encode
from common.run.terms import describe
from common.telemetry.events import Event, Refusal, RoundDone, RunStarted
from deploy.audit.record import read_record
from deploy.datasets.datasets import obtain
from deploy.demo.dealer import deal
from server.checkpoints import CheckpointStore
from server.conversation import Conversation
from server.run import Run
from server.run_plan import RunPlan
from server.transport import Incoming, Outgoing, Patience

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
NAMES = ("st-anne", "st-john", "st-luke", "st-mary")
CONFIG = replace(
    Config(),
    experiment={"rounds": 3, "num_clients": 4},
    privacy={"mode": "none"},
    training={"batch_size": 16},
    hospital={"allow_no_privacy": True},
    transport={"roster_stable_seconds": 0.0, "start_deadline_seconds": 1.0},
)


class DirectLine:
    """Carries every message, encoded as on the wire, to agents in this process."""

    def __init__(self, agents: Mapping[str, HospitalAgent]) -> None:
        self._agents = dict(enumerate(agents.values()))
        self._names = dict(enumerate(agents))
        self.cut: set[str] = set()

    def online(self) -> dict[int, str]:
        return {node: name for node, name in self._names.items() if name not in self.cut}

    def exchange(
        self, outgoing: Mapping[int, Outgoing], patience: Patience, reply_array_bytes: int
    ) -> Iterator[Incoming]:
        for node, item in outgoing.items():
            reply, array = self._agents[node].answer(
                decode_request(encode(item.request)), None if item.model is None else item.model[:]
            )
            patience.answered(node)
            yield Incoming(node, decode_reply(encode(reply)), array, None, 0)


class Consortium:
    """An authority, four hospitals, a run among them, and a clock that the hospitals look at."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = NOW
        self.authority = make_authority("consortium", NOW)
        self.keys = {name: Ed25519PrivateKey.generate() for name in NAMES}
        self.roster = {name: self.certificate(name) for name in NAMES}
        source = DataConfig(source="phantom", phantom_records=240)
        deal(obtain(source, "pneumonia", 28), [folder / name / "shard" for name in NAMES], source, 1, 16)
        self.line = DirectLine({name: self.agent(name) for name in NAMES})
        self.members: dict[str, bytes] = {}
        self.number = 0
        self.events: list[Event] = []
        self.chain: list[AuditEntry] = []

    def certificate(self, name: str, lifetime: dt.timedelta = 30 * DAY) -> str:
        request = request_hospital_certificate(name, self.keys[name])
        return certificate_pem(sign_hospital_certificate(self.authority, request, name, self.now, lifetime)).decode()

    def agent(self, name: str) -> HospitalAgent:
        identity = HospitalIdentity(name, read_certificate(self.roster[name].encode()), self.keys[name])
        home = self.folder / name
        here = Surroundings(home, home / "shard", home / "cache", os.urandom, lambda: self.now)
        return HospitalAgent(identity, self.authority.certificate, CONFIG.hospital, here)

    def publish(self, number: int, revoked: tuple[str, ...] = (), lifetime: dt.timedelta = DAY) -> None:
        """Give every hospital the authority's newest list."""
        serials = {read_certificate(self.roster[name].encode()).serial_number: self.now for name in revoked}
        encoded = sign_revocations(self.authority, serials, number, self.now, lifetime)
        for name in NAMES:
            Revocations(self.folder / name, self.authority.certificate).accept(encoded)

    def plan(self) -> RunPlan:
        keys = verify_roster(self.roster, self.authority.certificate)
        if keys != self.members:
            self.members, self.number = keys, self.number + 1
        listed = sign_members(self.authority, keys, self.number, NOW).decode()
        description = describe(CONFIG, "0" * 32, ("normal", "pneumonia"), 1, self.roster, member_list=listed)
        return RunPlan(CONFIG, description, "phantom", keys)

    def train(self, newest: "Newest | None" = None) -> str:
        plan = self.plan()
        if newest is not None:
            plan = replace_fields(plan, newest=newest)
        conversation = Conversation(self.line, CONFIG.transport, self.events.append)
        store = CheckpointStore(self.folder / "checkpoints")
        return Run(plan, conversation, store, self.events.append, self.record).train()

    def record(self, body: Body) -> None:
        self.chain.append(AuditEntry(len(self.chain), int(self.now.timestamp()), body))

    def hospitals_by_round(self) -> list[int]:
        return [event.hospitals for event in self.events if isinstance(event, RoundDone)]

    def refusals(self) -> set[str]:
        return {event.code for event in self.events if isinstance(event, Refusal)}


Change = Callable[[Consortium], None]


class Newest:
    """Changes the members once, before the round with this number, as the server's files would."""

    def __init__(self, consortium: Consortium, before_round: int, change: Change) -> None:
        self._consortium = consortium
        self._rounds_left = before_round - 1
        self._change = change

    def __call__(self, plan: RunPlan) -> RunPlan:
        if self._rounds_left == 0:
            self._change(self._consortium)
        self._rounds_left -= 1
        if plan.description.roster == self._consortium.roster:
            return plan
        return replace_fields(self._consortium.plan(), newest=self)


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    return Consortium(tmp_path)


def revoke_mary(consortium: Consortium) -> None:
    consortium.publish(2, ("st-mary",))
    consortium.roster = {name: pem for name, pem in consortium.roster.items() if name != "st-mary"}
    consortium.line.cut.add("st-mary")


def test_a_revoked_hospital_is_out_from_the_next_round_and_the_run_goes_on(consortium: Consortium) -> None:
    consortium.publish(1)
    assert consortium.train(Newest(consortium, 2, revoke_mary)) == "completed"
    assert consortium.hospitals_by_round() == [4, 3, 3]
    assert consortium.refusals() == set()


def test_the_server_s_chain_tells_of_every_roster_and_still_verifies(consortium: Consortium) -> None:
    consortium.publish(1)
    consortium.train(Newest(consortium, 2, revoke_mary))
    chain = Chain(SERVER_PARTY, (), tuple(consortium.chain))
    record = read_record(chain, "server.jsonl", consortium.authority.certificate)
    assert [set(terms.roster) for terms in record.terms.values()] == [set(NAMES), set(NAMES) - {"st-mary"}]
    assert len(record.sums) == 5


def test_terms_that_change_in_more_than_the_members_are_refused(consortium: Consortium) -> None:
    consortium.publish(1)
    consortium.train(Newest(consortium, 2, revoke_mary))
    place = next(number for number, entry in enumerate(consortium.chain) if number and isinstance(entry.body, Began))
    began = consortium.chain[place].body
    assert isinstance(began, Began)
    raised = began.description.replace('"update_bound":0.25', '"update_bound":0.5')
    assert raised != began.description
    changed = began.model_copy(update={"description": raised})
    consortium.chain[place] = replace_fields(consortium.chain[place], body=changed)
    with pytest.raises(AuditError, match="the terms changed"):
        read_record(Chain(SERVER_PARTY, (), tuple(consortium.chain)), "server.jsonl", consortium.authority.certificate)


def hide_the_revocation_of_mary(consortium: Consortium) -> None:
    consortium.publish(2, ("st-mary",))


def test_a_server_that_keeps_a_revoked_hospital_gets_no_further_round(consortium: Consortium) -> None:
    consortium.publish(1)
    reason = consortium.train(Newest(consortium, 2, hide_the_revocation_of_mary))
    assert reason != "completed"
    assert len(consortium.hospitals_by_round()) == 1
    assert consortium.refusals() == {"standing"}


def let_a_day_pass(consortium: Consortium) -> None:
    consortium.now += 2 * DAY


def test_hospitals_that_get_no_new_list_take_part_in_nothing_once_theirs_is_too_old(consortium: Consortium) -> None:
    consortium.publish(1)
    assert consortium.train(Newest(consortium, 2, let_a_day_pass)) != "completed"
    assert len(consortium.hospitals_by_round()) == 1
    assert consortium.refusals() == {"standing"}


def renew_mary(consortium: Consortium) -> None:
    consortium.now += 29 * DAY
    consortium.publish(2)
    consortium.roster = {name: consortium.certificate(name) for name in NAMES}


def let_all_expire(consortium: Consortium) -> None:
    consortium.now += 31 * DAY
    consortium.publish(2)


def test_renewed_certificates_are_followed_without_a_pause(consortium: Consortium) -> None:
    consortium.publish(1)
    assert consortium.train(Newest(consortium, 2, renew_mary)) == "completed"
    assert consortium.hospitals_by_round() == [4] * 3
    hashes = [event.config_hash for event in consortium.events if isinstance(event, RunStarted)]
    assert len(set(hashes)) == 2
    assert consortium.refusals() == set()


def test_a_certificate_that_expires_during_a_run_is_refused_from_the_next_round(consortium: Consortium) -> None:
    consortium.publish(1)
    assert consortium.train(Newest(consortium, 2, let_all_expire)) != "completed"
    assert len(consortium.hospitals_by_round()) == 1


def begin_without_mary(consortium: Consortium) -> None:
    consortium.roster = {**consortium.roster, "st-mary": consortium.certificate("st-mary")}
    consortium.line.cut.discard("st-mary")


def test_a_hospital_that_joins_during_a_run_takes_part_from_the_next_round(consortium: Consortium) -> None:
    consortium.publish(1)
    consortium.roster.pop("st-mary")
    consortium.line.cut.add("st-mary")
    assert consortium.train(Newest(consortium, 2, begin_without_mary)) == "completed"
    assert consortium.hospitals_by_round() == [3, 4, 4]
