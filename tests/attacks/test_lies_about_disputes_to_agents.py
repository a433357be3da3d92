"""A server tries to abuse disputes against real agents; a hospital that has not agreed takes no part in such a run."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from common.audit.chain import AUDIT_FILE
from common.proved_sums.errors import SumNormError
from common.run.messages import DisputeRequest, Request, VerdictRequest, phase_of
from common.secagg import disputes
from common.secagg import messages as secagg
from common.secagg.errors import SERVER, Place
from common.secagg.parameters import Vector
from common.secagg.phases import Phase
from common.telemetry.events import AttackRefused
from deploy.experiment.consortium import Loss
from server.transport import Incoming, Outgoing
from tests.support.disputing_run import CHEAT, disputing, names, scaled, spoil
from tests.support.proving_run import ProvingRun, proving
from tests.support.small_consortium import RUN_ID, Dealt, Small

HONEST = tuple(name for name in names(4) if name != CHEAT)
PLACE = Place(SERVER, 1, Phase.DISPUTE)


def kinds_at(made: Small, hospital: str) -> list[str]:
    lines = (made.folder / hospital / AUDIT_FILE).read_text().splitlines()
    return [json.loads(line)["body"]["kind"] for line in lines]


def refusals(made: Small) -> set[tuple[str, str]]:
    return {(event.hospital, event.code) for event in made.of(AttackRefused)}


def one_round(made: ProvingRun) -> None:
    """Play one round, and nothing after its dispute."""
    made.consortium.transport.line = lambda _, request: Loss.OF_REQUEST if request.round_number > 1 else None
    made.run().train()


def test_a_server_that_claims_a_failure_gets_nothing_and_is_in_every_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = disputing(tmp_path, audited=True)

    def fail(*_: object) -> None:
        raise SumNormError(PLACE, "a lie")

    monkeypatch.setattr("server.rounds.check_norm", fail)
    monkeypatch.setattr("server.rounds.require_fault", lambda *_: None)
    one_round(made)
    assert {(name, "unfounded_dispute") for name in names(4)} <= refusals(made)
    for name in names(4):
        assert "refused" in kinds_at(made, name)
        assert not {"shown", "named"} & set(kinds_at(made, name))


def test_an_honest_server_does_not_claim_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = disputing(tmp_path, audited=True)

    def fail(*_: object) -> None:
        raise SumNormError(PLACE, "a mistake")

    monkeypatch.setattr("server.rounds.check_norm", fail)
    made.listen()
    one_round(made)
    asked = [phase_of(heard.request) for heard in made.heard]
    assert "dispute" not in asked
    assert ("server", "unfounded_dispute") in refusals(made)


Lie = Callable[[secagg.Dispute, Vector], tuple[secagg.Dispute, Vector]]


def other_change(shown: secagg.Dispute, changes: Vector) -> tuple[secagg.Dispute, Vector]:
    lied = changes.copy()
    lied[0] += 1
    return shown, lied


def swapped(shown: secagg.Dispute, changes: Vector) -> tuple[secagg.Dispute, Vector]:
    return shown, np.concatenate(changes.reshape(4, -1)[[1, 0, 2, 3]])


def one_left_out(shown: secagg.Dispute, changes: Vector) -> tuple[secagg.Dispute, Vector]:
    return replace(shown, vectors=shown.vectors[:-1]), changes


def other_seed(shown: secagg.Dispute, changes: Vector) -> tuple[secagg.Dispute, Vector]:
    first = replace(shown.vectors[0], self_mask_seed=bytes(32))
    return replace(shown, vectors=(first, *shown.vectors[1:])), changes


def survivor_as_dropped(shown: secagg.Dispute, changes: Vector) -> tuple[secagg.Dispute, Vector]:
    return replace(shown, dropped=(secagg.DroppedKey("hospital-4", bytes(32)),)), changes


@pytest.mark.parametrize("lie", [other_change, swapped, one_left_out, other_seed, survivor_as_dropped])
def test_a_server_that_shows_something_else_than_was_signed_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: Lie
) -> None:
    made = disputing(tmp_path, audited=True)
    spoil(made, monkeypatch, scaled(40))
    honest = disputes.dispute

    class Lying:
        """The module ``disputes`` as the server sees it, with what the server shows changed after it has looked."""

        def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - anything of the module
            return getattr(disputes, name)

        def dispute(self, *arguments: Any) -> tuple[secagg.Dispute, Vector]:  # noqa: ANN401 - as the real one
            return lie(*honest(*arguments))

        def check(self, of: disputes.DisputedRound, *_: object) -> disputes.ShownDispute:
            return disputes.ShownDispute(of, {}, {}, {}, np.zeros(0, np.uint16))

    monkeypatch.setattr("server.rounds.disputes", Lying())
    monkeypatch.setattr("server.rounds.require_fault", lambda *_: None)
    monkeypatch.setattr("server.rounds.verdict", lambda *_: {})
    one_round(made)
    codes = {code for name, code in refusals(made) if name in names(4)}
    assert {(name, "dispute_evidence") for name in names(4)} <= refusals(made)
    assert "cheat_found" not in codes
    for name in names(4):
        assert not {"shown", "named"} & set(kinds_at(made, name))


def intercepted(made: ProvingRun, hospital: str, change: Callable[[Request], Request | None]) -> None:
    """Change what one hospital is sent, or send it something before."""
    transport = made.consortium.transport
    deliver = transport._deliver

    def lying(node: int, item: Outgoing) -> Incoming | None:
        if transport.online().get(node) != hospital:
            return deliver(node, item)
        other = change(item.request)
        return deliver(node, item if other is None else Outgoing(other, item.model))

    transport._deliver = lying  # type: ignore[method-assign]


def told(made: ProvingRun, hospital: str) -> list[str]:
    lines = (made.folder / hospital / AUDIT_FILE).read_text().splitlines()
    bodies = [json.loads(line)["body"] for line in lines]
    return [body["hospital"] for body in bodies if body["kind"] == "named"]


def test_a_verdict_without_what_a_hospital_has_shown_is_refused_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = disputing(tmp_path, audited=True)
    spoil(made, monkeypatch, scaled(40))

    def without_own(request: Request) -> Request | None:
        if not isinstance(request, VerdictRequest):
            return None
        opened = secagg.decode(request.opened, secagg.OpenedChanges, secagg.Limits(4), PLACE)
        rest = tuple(each for each in opened.opened if each.hospital != "hospital-1")
        return msgspec.structs.replace(request, opened=secagg.encode(replace(opened, opened=rest)))

    intercepted(made, "hospital-1", without_own)
    one_round(made)
    assert ("hospital-1", "omitted_hospital") in refusals(made)
    assert told(made, "hospital-1") == []
    assert told(made, "hospital-2") == [CHEAT]


def test_a_verdict_with_a_forged_key_of_an_honest_hospital_does_not_frame_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = disputing(tmp_path, audited=True)
    spoil(made, monkeypatch, scaled(40))

    def forged(request: Request) -> Request | None:
        if not isinstance(request, VerdictRequest):
            return None
        opened = secagg.decode(request.opened, secagg.OpenedChanges, secagg.Limits(4), PLACE)
        lied = tuple(
            replace(each, change_key=bytes(range(32))) if each.hospital == "hospital-2" else each
            for each in opened.opened
        )
        return msgspec.structs.replace(request, opened=secagg.encode(replace(opened, opened=lied)))

    intercepted(made, "hospital-1", forged)
    one_round(made)
    assert told(made, "hospital-1") == [CHEAT]


def test_a_verdict_before_a_dispute_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = disputing(tmp_path, audited=True)
    spoil(made, monkeypatch, scaled(40))

    def at_once(request: Request) -> Request | None:
        if not isinstance(request, DisputeRequest):
            return None
        opened = secagg.OpenedChanges(RUN_ID, request.round_number, ())
        return VerdictRequest(run_id=RUN_ID, round_number=request.round_number, opened=secagg.encode(opened))

    intercepted(made, "hospital-1", at_once)
    one_round(made)
    assert ("hospital-1", "unknown_phase") in refusals(made)
    assert "shown" not in kinds_at(made, "hospital-1")
    assert told(made, "hospital-1") == []


@pytest.mark.parametrize("lie", ["nothing", "short", "filled up"])
def test_a_dispute_with_an_array_of_another_length_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    made = disputing(tmp_path, audited=True)
    spoil(made, monkeypatch, scaled(40))
    transport = made.consortium.transport
    deliver = transport._deliver

    def lying(node: int, item: Outgoing) -> Incoming | None:
        if isinstance(item.request, DisputeRequest) and item.model is not None:
            words = np.array(item.model[:])
            arrays = {"nothing": None, "short": words[:-1], "filled up": np.append(words, np.float32(0))}
            return deliver(node, Outgoing(item.request, arrays[lie]))
        return deliver(node, item)

    transport._deliver = lying  # type: ignore[method-assign]
    one_round(made)
    assert {(name, "unusable_model") for name in names(4)} <= refusals(made)


def test_the_other_dispute_of_a_round_gets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answer takes the round's slot, and erases the key: for no other set of hospitals is there a second."""
    made = disputing(tmp_path, audited=True)
    spoil(made, monkeypatch, scaled(40))
    made.listen()
    one_round(made)
    asked, array = next(
        (heard.request, heard.array) for heard in made.heard if isinstance(heard.request, DisputeRequest)
    )
    shown = secagg.decode(asked.request, secagg.Dispute, secagg.Limits(4), PLACE)
    fewer = secagg.encode(replace(shown, vectors=shown.vectors[:3]))
    assert made.refusal(msgspec.structs.replace(asked, request=fewer), array).code == "already_answered"
    run = made.agent._run
    assert run is not None
    assert run.disputable == {}


def test_a_server_that_works_with_a_cheat_sees_no_more_changes_than_rounds_may_be_void(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It withholds every verdict, so nobody is named, and has the cheat spoil the next sum, too."""
    made = disputing(tmp_path, audited=True, aggregation={"most_void_rounds": 1})
    spoil(made, monkeypatch, scaled(40))
    monkeypatch.setattr("server.rounds.verdict", lambda *_: {})
    monkeypatch.setattr("server.run.Run._left_out", lambda *_: frozenset())
    made.consortium.transport.line = lambda _, request: Loss.OF_REQUEST if "verdict" in phase_of(request) else None
    made.run().train()
    assert {(name, "too_many_void_rounds") for name in HONEST} <= refusals(made)
    for name in HONEST:
        assert [kinds_at(made, name).count(kind) for kind in ("passed", "shown", "named")] == [1, 1, 0]


def test_a_round_is_void_at_once_where_a_hospital_has_seen_its_sum_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also at one that has no part in the next sum: it is not forgotten when that one is followed."""
    made = disputing(tmp_path, 7, audited=True, experiment={"rounds": 4})
    spoil(made, monkeypatch, scaled(40))
    away = (HONEST[0], 3, "masked_input")  # After a round that failed, a number is left out.
    made.consortium.transport.line = lambda name, request: (
        Loss.OF_REQUEST if (name, request.round_number, phase_of(request)) == away else None
    )
    made.run().train()
    assert made.hospitals == [5, 5, 6, 6]
    honest = [name for name in names(7) if name != CHEAT]
    assert {name: kinds_at(made, name).count("passed") for name in honest} == dict.fromkeys(honest, 1)


@pytest.mark.parametrize("mode", ["none", "local", "distributed"])
def test_a_run_without_disputes_answers_none(dealt: Dealt, tmp_path: Path, mode: str) -> None:
    made = proving(dealt, tmp_path, privacy={"mode": mode}, experiment={"rounds": 1})
    made.run().train()
    request = DisputeRequest(run_id=RUN_ID, round_number=1, request=b"")
    assert made.refusal(request).code == "unknown_phase"
    assert made.refusal(VerdictRequest(run_id=RUN_ID, round_number=1, opened=b"")).code == "run"


def test_a_hospital_that_has_not_agreed_takes_no_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = disputing(tmp_path, policy={"allow_disputes": False}, experiment={"rounds": 1})
    assert "hospital-1: policy" in made.run().train()
    assert "its operator can set hospital.allow_disputes" in caplog.text
    assert made.hospitals == []


def test_a_hospital_takes_no_part_where_a_dispute_would_bring_more_than_it_takes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = disputing(tmp_path, policy={"longest_vector": 30_000}, experiment={"rounds": 1})
    assert "hospital-1: policy" in made.run().train()
    assert "a dispute of this run comes with" in caplog.text
    assert made.hospitals == []


# Secrets


def test_the_key_of_a_change_is_erased_when_the_round_is_over(tmp_path: Path) -> None:
    made = disputing(tmp_path, experiment={"rounds": 3})
    agent = made.consortium.agents["hospital-1"]
    seen: dict[int, disputes.Disputable] = {}

    def look(hospital: str, _: Request) -> None:
        run = agent._run
        if run is None or hospital != "hospital-1":
            return
        for number, held in run.disputable.items():
            seen[number] = held.kept
            assert any(held.kept.change_key)
        for number, kept in seen.items():
            if number not in run.disputable:
                assert not any(kept.change_key)

    made.consortium.transport.line = look
    made.run().train()
    assert len(seen) == 3
    agent.close()
    assert not any(any(kept.change_key) for kept in seen.values())


def test_the_key_of_a_change_is_erased_when_it_has_been_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = disputing(tmp_path, experiment={"rounds": 1})
    spoil(made, monkeypatch, scaled(40))
    agent = made.consortium.agents["hospital-1"]
    keys: list[bytes] = []

    def look(hospital: str, request: Request) -> None:
        run = agent._run
        if hospital == "hospital-1" and run is not None:
            if isinstance(request, DisputeRequest):
                keys.append(run.disputable[request.round_number].kept.change_key)
                assert any(keys[0])
            if isinstance(request, VerdictRequest):
                assert not any(keys[0])

    made.consortium.transport.line = look
    made.run().train()
    assert len(keys) == 1
