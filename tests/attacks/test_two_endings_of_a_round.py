"""A server that asks a deployed agent for both endings of a round, in either order, also across a restart.

Opening the sum over everybody and signing survivors take one slot, which is on the hospital's disk before it answers.
"""

from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

import pytest

from client.agent import HospitalAgent
from common.audit.entries import Body, OpenedSum, SignedSurvivors
from common.run.messages import ConsistencyReply, RefusedReply, Request, UnmaskAllRequest, UnmaskRequest
from common.secagg import messages as secagg
from common.secagg.masked_input import MaskedState, MaskedSum
from common.secagg.phases import Phase
from tests.support.lying_by_hand import ROUND, VICTIM, LyingServer, assert_attack, lying
from tests.support.small_consortium import HOSPITALS, RUN_ID, Dealt

GONE = "hospital-4"
LEFT = tuple(name for name in HOSPITALS if name != GONE)


class Meanwhile(StrEnum):
    """What happens to the agent between the server's two questions."""

    NOTHING = "nothing"
    RESTARTED = "it is restarted on the same state folder"
    MEMORY_KEPT = "it is restarted, and has what was in its memory before it answered"


class Led:
    """A round of four hospitals up to its end, of which the server has every vector."""

    def __init__(self, server: LyingServer) -> None:
        self.server = server
        self.total: MaskedSum = server.masked()
        self.opening = server.open_request(self.total)
        self.shorter = secagg.SurvivorList(RUN_ID, ROUND, LEFT, (GONE,))
        self.signing = server.check_request(self.shorter)
        self.recorded: list[Body] = []
        self.agent._here = replace(self.agent._here, record=self.recorded.append)

    @property
    def agent(self) -> HospitalAgent:
        return self.server.consortium.consortium.agents[VICTIM]

    def unmasking(self) -> UnmaskRequest:
        """Let everyone in the shorter list sign it, the victim with them."""
        self.total.survivors = LEFT
        self.total.views.pop(GONE, None)
        return self.server.signed_by(LEFT, self.total, self.shorter)

    def memory(self) -> MaskedState:
        run = self.agent._run
        assert run is not None
        masked = run.masked[ROUND]
        return replace(masked, shares={owner: pair.copy() for owner, pair in masked.shares.items()})

    def let(self, meanwhile: Meanwhile, memory: MaskedState) -> None:
        if meanwhile is Meanwhile.NOTHING:
            return
        self.server.consortium.consortium.restart(VICTIM)
        self.server.advertised(VICTIM, ROUND + 1)
        if meanwhile is Meanwhile.MEMORY_KEPT:
            run = self.agent._run
            assert run is not None
            run.masked[ROUND] = memory


@pytest.fixture
def led(dealt: Dealt, tmp_path: Path) -> Led:
    return Led(lying(dealt, tmp_path))


def answered(server: LyingServer, request: Request) -> None:
    reply, _ = server.ask(VICTIM, request)
    assert not isinstance(reply, RefusedReply), reply


@pytest.mark.parametrize("meanwhile", list(Meanwhile))
def test_whoever_has_opened_signs_no_survivors(led: Led, meanwhile: Meanwhile) -> None:
    memory = led.memory()
    answered(led.server, led.opening)
    led.let(meanwhile, memory)
    assert_attack(led.server.refusal(led.signing), "already_answered", Phase.CONSISTENCY_CHECK)
    assert [type(body) for body in led.recorded if isinstance(body, OpenedSum | SignedSurvivors)] == [OpenedSum]


@pytest.mark.parametrize("meanwhile", list(Meanwhile))
def test_whoever_has_signed_opens_nothing(led: Led, meanwhile: Meanwhile) -> None:
    memory = led.memory()
    answered(led.server, led.signing)
    led.let(meanwhile, memory)
    assert_attack(led.server.refusal(led.opening), "already_answered", Phase.FULL_UNMASKING)


@pytest.mark.parametrize("meanwhile", list(Meanwhile))
def test_whoever_has_signed_and_revealed_opens_nothing(led: Led, meanwhile: Meanwhile) -> None:
    memory = led.memory()
    answered(led.server, led.unmasking())
    led.let(meanwhile, memory)
    assert_attack(led.server.refusal(led.opening), "already_answered", Phase.FULL_UNMASKING)


@pytest.mark.parametrize("meanwhile", list(Meanwhile))
def test_whoever_has_opened_reveals_nothing_for_survivors_that_others_signed(led: Led, meanwhile: Meanwhile) -> None:
    memory = led.memory()
    answered(led.server, led.opening)
    led.let(meanwhile, memory)
    signatures = []
    for name in LEFT[1:]:
        reply, _ = led.server.ask(name, led.signing)
        assert isinstance(reply, ConsistencyReply)
        signatures.append(led.server.decode(reply.signature, secagg.SurvivorSignature, Phase.CONSISTENCY_CHECK))
    asked = secagg.UnmaskingRequest(RUN_ID, ROUND, LEFT, (GONE,), tuple(signatures))
    request = UnmaskRequest(run_id=RUN_ID, round_number=ROUND, request=secagg.encode(asked))
    refused = led.server.refusal(request)
    assert refused.code == ("unsigned_survivors" if meanwhile is Meanwhile.MEMORY_KEPT else "run")


@pytest.mark.parametrize("meanwhile", list(Meanwhile))
def test_a_sum_is_opened_once(led: Led, meanwhile: Meanwhile) -> None:
    memory = led.memory()
    answered(led.server, led.opening)
    led.let(meanwhile, memory)
    assert_attack(led.server.refusal(led.opening), "already_answered", Phase.FULL_UNMASKING)


def without_one(request: secagg.FullUnmaskingRequest) -> secagg.FullUnmaskingRequest:
    return replace(request, views=request.views[:-1])


def with_another_vector(request: secagg.FullUnmaskingRequest) -> secagg.FullUnmaskingRequest:
    *others, last = request.views
    return replace(request, views=(*others, replace(last, vector_hash=bytes(32))))


def with_anothers_signature(request: secagg.FullUnmaskingRequest) -> secagg.FullUnmaskingRequest:
    *others, last = request.views
    return replace(request, views=(*others, replace(last, signature=others[0].signature)))


@pytest.mark.parametrize(
    ("bend", "code"),
    [
        (without_one, "too_few_signatures"),
        (with_another_vector, "view_signature"),
        (with_anothers_signature, "view_signature"),
    ],
)
def test_a_request_without_everyones_view_opens_nothing_and_uses_up_the_slot(
    led: Led, bend: Callable[[secagg.FullUnmaskingRequest], secagg.FullUnmaskingRequest], code: str
) -> None:
    asked = bend(led.server.decode(led.opening.request, secagg.FullUnmaskingRequest, Phase.FULL_UNMASKING))
    bent = UnmaskAllRequest(run_id=RUN_ID, round_number=ROUND, request=secagg.encode(asked))
    assert_attack(led.server.refusal(bent), code, Phase.FULL_UNMASKING)
    assert_attack(led.server.refusal(led.signing), "already_answered", Phase.CONSISTENCY_CHECK)
    assert_attack(led.server.refusal(led.opening), "already_answered", Phase.FULL_UNMASKING)
    assert not [body for body in led.recorded if isinstance(body, OpenedSum | SignedSurvivors)]


def test_an_opening_that_cannot_be_recorded_tells_nothing(led: Led) -> None:
    def fail(_: Body) -> None:
        raise OSError("the disk is full")

    led.agent._here = replace(led.agent._here, record=fail)
    assert led.server.refusal(led.opening).code == "fault"


def test_the_slot_is_on_the_disk_before_a_share_is_revealed(led: Led, monkeypatch: pytest.MonkeyPatch) -> None:
    noted, memory = [], led.memory()
    record = led.agent._answered._path

    def look(*_: object) -> secagg.UnmaskingShares:
        noted.append(record.read_bytes())
        raise RuntimeError("killed here")

    monkeypatch.setattr("client.agent.full_unmasking.reveal_all", look)
    assert led.server.refusal(led.opening).code == "fault"
    assert noted
    assert b'"consistency_check", 1' in noted[0]
    led.let(Meanwhile.MEMORY_KEPT, memory)
    assert_attack(led.server.refusal(led.signing), "already_answered", Phase.CONSISTENCY_CHECK)
