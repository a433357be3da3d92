"""An agent erases each secret where it drops it, and none that it may still need."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from client.contribution import Contributor
from common.errors import RunError
from common.run.messages import KeysRequest, RefusedReply, Request
from common.secagg import messages as secagg
from common.secagg.advertise_keys import RoundKeys
from common.secagg.consistency_check import SignedState
from common.secagg.masked_input import MaskedState
from common.secagg.phases import Phase
from common.secagg.share_keys import SharedKeys, SharePair
from deploy.experiment.consortium import Loss
from tests.support.lying_by_hand import ROUND, VICTIM, LyingServer, lying
from tests.support.small_consortium import Dealt, Vanishing, small

State = RoundKeys | SharedKeys | MaskedState | SignedState


def secrets_in(state: State | SharePair) -> Iterator[bytes]:
    match state:
        case RoundKeys():
            yield from (state.encryption_key, state.masking_key)
        case SharedKeys():
            yield from (*secrets_in(state.keys), state.self_mask_seed, *secrets_in(state.own_shares))
        case SharePair():
            yield from (state.self_mask, state.masking_key)
        case MaskedState():
            for pair in state.shares.values():
                yield from secrets_in(pair)
        case SignedState():
            yield from secrets_in(state.masked)


def is_erased(state: State) -> bool:
    return not any(any(secret) for secret in secrets_in(state))


def is_whole(state: State) -> bool:
    return all(any(secret) for secret in secrets_in(state))


def in_hand(server: LyingServer, round_number: int = ROUND) -> list[State]:
    run = server.consortium.consortium.agents[VICTIM]._run
    assert run is not None
    states = (run.keys, run.shared, run.masked, run.signed)
    return [by_round[round_number] for by_round in states if round_number in by_round]


@pytest.fixture
def server(dealt: Dealt, tmp_path: Path) -> LyingServer:
    return lying(dealt, tmp_path)


def test_at_every_step_what_was_dropped_is_erased_and_what_is_in_hand_is_whole(dealt: Dealt, tmp_path: Path) -> None:
    made = small(dealt, tmp_path)
    agents = made.consortium.agents.values()
    seen: dict[int, State] = {}

    # One round without somebody, so that the others sign; one in which nobody is missing.
    vanishing = Vanishing("hospital-4", 1, "masked_input", Loss.OF_REPLY)

    def look(hospital: str, request: Request) -> Loss | None:
        runs = [agent._run for agent in agents if agent._run is not None]
        held: list[State] = [
            state for run in runs for by_round in (run.keys, run.shared, run.masked, run.signed)
            for state in by_round.values()
        ]  # fmt: skip
        held += [state.keys for state in held if isinstance(state, SharedKeys)]
        seen.update({id(state): state for state in held})
        assert all(is_whole(state) for state in held)
        assert all(is_erased(state) for state in seen.values() if not any(state is each for each in held))
        return vanishing(hospital, request)

    made.consortium.transport.line = look
    made.run().train()
    for agent in agents:
        agent.close()
    assert {type(state) for state in seen.values()} == {RoundKeys, SharedKeys, MaskedState, SignedState}
    assert all(is_erased(state) for state in seen.values())


def test_a_refused_request_leaves_whole_what_a_better_one_needs(server: LyingServer) -> None:
    request = server.mask_request(server.routed())
    server.refusal(request, server.model + 1)
    server.refusal(request, None)
    (shared,) = in_hand(server)
    assert is_whole(shared)
    assert server.ask(VICTIM, request, server.model)[1] is not None
    assert is_erased(shared)


def test_keys_are_erased_with_the_directory_they_were_refused_for(server: LyingServer) -> None:
    lowered = replace(server.directory(), threshold=2)
    (keys,) = in_hand(server)
    server.refusal(server.share_request(lowered))
    assert is_erased(keys)
    assert in_hand(server) == []


def test_a_step_that_fails_after_it_is_noted_as_answered_leaves_no_secret(
    server: LyingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = server.mask_request(server.routed())
    (shared,) = in_hand(server)

    def fail(*_: object, **__: object) -> None:
        raise RunError("the budget is spent")

    monkeypatch.setattr(Contributor, "contribute", fail)
    server.refusal(request, server.model)
    assert is_erased(shared)
    assert in_hand(server) == []


def test_shares_are_erased_also_when_the_request_to_reveal_them_is_refused(server: LyingServer) -> None:
    request = server.unmask_request()
    states = in_hand(server)
    assert {type(state) for state in states} == {MaskedState, SignedState}
    signed = server.decode(request.request, secagg.UnmaskingRequest, Phase.UNMASKING)
    server.refusal(msgspec.structs.replace(request, request=secagg.encode(replace(signed, signatures=()))))
    assert all(is_erased(state) for state in states)
    assert in_hand(server) == []


def test_a_round_that_stopped_is_erased_when_a_later_one_begins(server: LyingServer) -> None:
    server.routed()
    (shared,) = in_hand(server)
    server.advertised(VICTIM, ROUND + 1)
    assert is_whole(shared)
    server.advertised(VICTIM, ROUND + 2)
    assert is_erased(shared)
    (next_keys,) = in_hand(server, ROUND + 1)
    assert is_whole(next_keys)


def test_a_run_that_is_replaced_is_erased(server: LyingServer) -> None:
    server.routed()
    (shared,) = in_hand(server)
    other = server.description.model_copy(update={"run_id": "0f" * 16})
    reply, _ = server.ask(VICTIM, KeysRequest(run_description=other.canonical_json(), round_number=1))
    assert not isinstance(reply, RefusedReply)
    assert is_erased(shared)


def test_an_agent_that_is_closed_holds_nothing_and_takes_part_again_when_asked_to(server: LyingServer) -> None:
    request = server.mask_request(server.routed())
    (shared,) = in_hand(server)
    server.consortium.consortium.agents[VICTIM].close()
    assert is_erased(shared)
    assert server.refusal(request, server.model).code == "run"
    server.advertised(VICTIM, ROUND + 1)
    (keys,) = in_hand(server, ROUND + 1)
    assert is_whole(keys)
