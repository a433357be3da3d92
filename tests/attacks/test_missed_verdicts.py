"""A hospital that missed a verdict finds the cheat from signed bytes later; a server cannot make it find another."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from client.named import NAMED_FILE
from common.audit.chain import AUDIT_FILE
from common.proved_sums.errors import SumNormError
from common.run.basis import words_of
from common.run.messages import MissedVerdictRequest, Request, VerdictReply, phase_of
from common.run.round_terms import Purpose, RoundTerms
from common.secagg import advertise_keys
from common.secagg import messages as secagg
from common.secagg.errors import SERVER, Place
from common.secagg.keys import public_key
from common.secagg.phases import Phase
from common.telemetry.events import COMPLETED, AttackRefused
from deploy.experiment.consortium import Loss
from tests.support.disputing_run import CHEAT, STEPS, audit, disputing, losing, names, scaled, spoil
from tests.support.proving_run import NAME, ProvingRun
from tests.support.small_consortium import RUN_ID

PLACE = Place(SERVER, 1, Phase.VERDICT)
LIMITS = secagg.Limits(5)

Line = Callable[[str, Request], Loss | None]


def found_at(made: ProvingRun, hospital: str) -> list[dict[str, Any]]:
    lines = (made.folder / hospital / AUDIT_FILE).read_text().splitlines()
    return [body for line in lines if (body := json.loads(line)["body"])["kind"] == "named"]


def kept_at(made: ProvingRun, hospital: str) -> list[str]:
    path = made.folder / hospital / NAMED_FILE
    return [name for _, name in json.loads(path.read_bytes())["named"]] if path.exists() else []


def missing_both(name: str, request: Request) -> Loss | None:
    return losing(NAME, "dispute")(name, request) or losing(NAME, "verdict")(name, request)


def missing_the_round(name: str, request: Request) -> Loss | None:
    is_first = (name, request.round_number, phase_of(request)) == (NAME, 1, "masked_input")
    return Loss.OF_REQUEST if is_first else None


@pytest.mark.parametrize(
    ("line", "hospitals"), [(losing(NAME, "verdict"), 4), (missing_both, 4), (missing_the_round, 5)],
    ids=["the verdict", "dispute and verdict", "the round"],
)  # fmt: skip
def test_a_hospital_that_missed_it_finds_the_same_cheat_before_it_masks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: Line, hospitals: int
) -> None:
    made = disputing(tmp_path, hospitals, audited=True)
    spoil(made, monkeypatch, scaled(40))
    made.consortium.transport.line = line
    made.listen()
    assert made.run().train() == COMPLETED
    honest = [name for name in names(hospitals) if name != CHEAT]
    (found,) = {msgspec.json.encode(found_at(made, name)) for name in honest}
    assert [(each["hospital"], each["fault"]) for each in msgspec.json.decode(found)] == [(CHEAT, "length")]
    assert kept_at(made, NAME) == [CHEAT]
    asked = [phase_of(heard.request) for heard in made.heard]
    assert asked.count("missed_verdict") == 1
    second = next(at for at, heard in enumerate(made.heard) if is_mask_of_a_later_round(heard.request))
    assert asked.index("missed_verdict") < second
    assert made.hospitals == [hospitals - 1] * STEPS
    assert audit(made)


def is_mask_of_a_later_round(request: Request) -> bool:
    return phase_of(request) == "masked_input" and request.round_number > 1


def test_a_hospital_that_was_restarted_since_finds_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = disputing(tmp_path, audited=True, experiment={"rounds": 3})
    spoil(made, monkeypatch, scaled(40))

    def line(name: str, request: Request) -> Loss | None:
        if (name, phase_of(request)) == (NAME, "verdict"):
            made.consortium.restart(NAME)
            return Loss.OF_REQUEST
        return None

    made.consortium.transport.line = line
    made.run().train()
    assert [(each["hospital"], each["fault"]) for each in found_at(made, NAME)] == [(CHEAT, "length")]


def test_nobody_is_told_what_it_has_found_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = disputing(tmp_path)
    spoil(made, monkeypatch, scaled(40))
    made.listen()
    assert made.run().train() == COMPLETED
    assert "missed_verdict" not in [phase_of(heard.request) for heard in made.heard]


# A server that lies


DROPPED = "hospital-5"


def overheard(folder: Path, patch: pytest.MonkeyPatch, hospitals: int) -> ProvingRun:
    """Return a run whose hospital-1 has heard neither of a verdict nor of its evidence; a fifth one has no vector."""
    made = disputing(folder, hospitals, audited=True)
    spoil(made, patch, scaled(40))

    def line(name: str, request: Request) -> Loss | None:
        is_lost = name == NAME and "verdict" in phase_of(request)
        is_dropped = (name, request.round_number, phase_of(request)) == (DROPPED, 1, "masked_input")
        return Loss.OF_REQUEST if is_lost or is_dropped else None

    made.consortium.transport.line = line
    made.listen()
    made.run().train()
    assert found_at(made, NAME) == []
    return made


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProvingRun:
    return overheard(tmp_path, monkeypatch, 4)


@pytest.fixture
def told_of_a_dropout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProvingRun:
    return overheard(tmp_path, monkeypatch, 5)


def evidence(made: ProvingRun) -> tuple[MissedVerdictRequest, Any]:
    heard = made.first(MissedVerdictRequest, 1)
    assert isinstance(heard.request, MissedVerdictRequest)
    return heard.request, heard.array


def rewritten(
    request: MissedVerdictRequest, field: str, kind: type[Any], change: Callable[[Any], Any]
) -> MissedVerdictRequest:
    read = secagg.decode(getattr(request, field), kind, LIMITS, PLACE)
    return msgspec.structs.replace(request, **{field: secagg.encode(change(read))})


def unsigned_view(request: MissedVerdictRequest) -> MissedVerdictRequest:
    def change(shown: secagg.FullUnmaskingRequest) -> secagg.FullUnmaskingRequest:
        return replace(shown, views=(replace(shown.views[0], vector_hash=bytes(32)), *shown.views[1:]))

    return rewritten(request, "views", secagg.FullUnmaskingRequest, change)


def without_one(request: MissedVerdictRequest) -> MissedVerdictRequest:
    def fewer(shown: secagg.FullUnmaskingRequest) -> secagg.FullUnmaskingRequest:
        return replace(shown, views=shown.views[:-1])

    return rewritten(request, "views", secagg.FullUnmaskingRequest, fewer)


def other_key(request: MissedVerdictRequest) -> MissedVerdictRequest:
    def change(directory: secagg.DisputableDirectory) -> secagg.DisputableDirectory:
        first, *others = directory.keys
        assert isinstance(first, secagg.DisputableKeys)
        return replace(directory, keys=(replace(first, change_key=bytes(range(32))), *others))

    return rewritten(request, "directory", secagg.DisputableDirectory, change)


def fewer_keys(request: MissedVerdictRequest) -> MissedVerdictRequest:
    return rewritten(
        request, "directory", secagg.DisputableDirectory, lambda directory: replace(directory, keys=directory.keys[:-1])
    )


def other_cohort(request: MissedVerdictRequest) -> MissedVerdictRequest:
    return msgspec.structs.replace(request, cohort=request.cohort[:-1])


def other_terms(request: MissedVerdictRequest) -> MissedVerdictRequest:
    """The round that tells the mean of features has no bound on lengths."""
    terms = msgspec.structs.replace(RoundTerms.decode(request.terms), purpose=Purpose.MEAN)
    return msgspec.structs.replace(request, terms=terms.encode())


def other_seed(request: MissedVerdictRequest) -> MissedVerdictRequest:
    def change(shown: secagg.Dispute) -> secagg.Dispute:
        return replace(shown, vectors=(replace(shown.vectors[0], self_mask_seed=bytes(32)), *shown.vectors[1:]))

    return rewritten(request, "dispute", secagg.Dispute, change)


def other_round(request: MissedVerdictRequest) -> MissedVerdictRequest:
    return msgspec.structs.replace(request, round_number=2)


def other_run(request: MissedVerdictRequest) -> MissedVerdictRequest:
    return rewritten(request, "opened", secagg.OpenedChanges, lambda opened: replace(opened, run_id="d" * 32))


@pytest.mark.parametrize(
    ("lie", "code"),
    [
        (unsigned_view, "unsigned_commitment"),
        (without_one, "unusable_model"),
        (other_key, "key_signature"),
        (fewer_keys, "dispute_evidence"),
        (other_cohort, "dispute_evidence"),
        (other_terms, "dispute_evidence"),
        (other_seed, "dispute_evidence"),
        (other_round, "replayed_message"),
        (other_run, "wrong_run"),
    ],
)
def test_what_was_not_signed_is_refused_and_names_nobody(
    told: ProvingRun, lie: Callable[[MissedVerdictRequest], MissedVerdictRequest], code: str
) -> None:
    request, array = evidence(told)
    refused = told.refusal(lie(request), array)
    assert (refused.code, refused.is_attack) == (code, True), refused.reason
    assert found_at(told, NAME) == []
    assert kept_at(told, NAME) == []


def test_a_colluder_that_signs_two_keys_in_one_round_frames_nobody(told: ProvingRun) -> None:
    """Both are well signed. An honest change, stripped by the mask of the other key, would look like noise."""
    request, array = evidence(told)
    run, colluder = told.agent._run, told.consortium.identity(CHEAT)
    assert run is not None

    def second(keys: secagg.AdvertisedKeys) -> secagg.AdvertisedKeys:
        if keys.hospital != CHEAT:
            return keys
        unsigned = replace(keys, change_key=public_key(bytes(range(32))), signature=b"")  # type: ignore[call-arg]
        signed = replace(unsigned, signature=colluder.key.sign(advertise_keys.signed_part(run.parameters, unsigned)))
        advertise_keys.verify(run.parameters, 1, signed, PLACE, CHEAT)
        return signed

    def change(directory: secagg.DisputableDirectory) -> secagg.DisputableDirectory:
        return replace(directory, keys=tuple(map(second, directory.keys)))

    refused = told.refusal(rewritten(request, "directory", secagg.DisputableDirectory, change), array)
    assert refused.code == "dispute_evidence", refused.reason
    assert found_at(told, NAME) == []
    assert kept_at(told, NAME) == []


def test_a_server_that_hides_who_dropped_out_frames_nobody(told_of_a_dropout: ProvingRun) -> None:
    """A change still has the mask that it shares with whoever dropped out, and would look like noise without it."""
    request, array = evidence(told_of_a_dropout)
    shown = secagg.decode(request.dispute, secagg.Dispute, LIMITS, PLACE)
    assert DROPPED in request.cohort
    assert [each.hospital for each in shown.dropped] == [DROPPED]
    hiding = msgspec.structs.replace(
        request,
        cohort=tuple(name for name in request.cohort if name != DROPPED),
        dispute=secagg.encode(replace(shown, dropped=())),
    )
    refused = told_of_a_dropout.refusal(hiding, array)
    assert refused.code == "dispute_evidence", refused.reason
    assert found_at(told_of_a_dropout, NAME) == []
    assert kept_at(told_of_a_dropout, NAME) == []
    reply, _ = told_of_a_dropout.agent.answer(request, array)
    assert isinstance(reply, VerdictReply)
    assert dict(reply.named) == {CHEAT: "length"}


def among(request: MissedVerdictRequest, array: Any, chosen: tuple[str, ...]) -> tuple[MissedVerdictRequest, Any]:  # noqa: ANN401
    """Return evidence that is well signed, of a smaller sum: the others' keys, which they have shown, as dropouts'."""
    shown = secagg.decode(request.dispute, secagg.Dispute, LIMITS, PLACE)
    opened = secagg.decode(request.opened, secagg.OpenedChanges, LIMITS, PLACE)
    views = secagg.decode(request.views, secagg.FullUnmaskingRequest, LIMITS, PLACE)
    order = [each.hospital for each in shown.vectors]
    changes = np.array(array).view(np.uint16).reshape(len(order), -1)[[order.index(name) for name in chosen]]
    dropped = tuple(secagg.DroppedKey(each.hospital, each.change_key) for each in opened.opened
                    if each.hospital not in chosen)  # fmt: skip
    vectors = tuple(each for each in shown.vectors if each.hospital in chosen)
    bent = msgspec.structs.replace(
        request,
        views=secagg.encode(replace(views, views=tuple(each for each in views.views if each.hospital in chosen))),
        dispute=secagg.encode(replace(shown, vectors=vectors, dropped=dropped)),
        opened=secagg.encode(replace(opened, opened=tuple(each for each in opened.opened if each.hospital in chosen))),
    )
    return bent, words_of(changes.ravel())


def test_a_server_that_shows_a_smaller_sum_with_keys_that_were_shown_finds_the_same_cheat_or_nobody(
    told: ProvingRun,
) -> None:
    request, array = evidence(told)
    assert told.refusal(*among(request, array, ("hospital-2", "hospital-4"))).code == "unfounded_dispute"
    assert told.refusal(*among(request, array, ("hospital-2",))).code == "unfounded_dispute"
    assert kept_at(told, NAME) == []
    for chosen in (("hospital-2", CHEAT), (CHEAT,)):
        reply, _ = told.agent.answer(*among(request, array, chosen))
        assert isinstance(reply, VerdictReply)
        assert dict(reply.named) == {CHEAT: "length"}


def test_another_masked_change_is_refused(told: ProvingRun) -> None:
    request, array = evidence(told)
    bent = np.array(array)
    bent.view(np.uint16)[0] += np.uint16(1)
    assert told.refusal(request, bent).code == "dispute_evidence"
    assert told.refusal(request, bent[:-1]).code == "unusable_model"
    assert told.refusal(request).code == "unusable_model"
    assert found_at(told, NAME) == []


def test_a_key_that_a_server_made_up_frames_nobody(told: ProvingRun) -> None:
    request, array = evidence(told)

    def forge(opened: secagg.OpenedChanges) -> secagg.OpenedChanges:
        lied = [
            replace(each, change_key=bytes(range(32))) if each.hospital == "hospital-2" else each
            for each in opened.opened
        ]
        return replace(opened, opened=tuple(lied))

    reply, _ = told.agent.answer(rewritten(request, "opened", secagg.OpenedChanges, forge), array)
    assert isinstance(reply, VerdictReply)
    assert dict(reply.named) == {CHEAT: "length"}


@pytest.mark.parametrize("silent", ["hospital-2", CHEAT])
def test_who_is_said_to_have_shown_nothing_is_not_named_late(told: ProvingRun, silent: str) -> None:
    """The word of a server is no evidence, and this hospital was asked for nothing itself."""
    request, array = evidence(told)

    def withhold(opened: secagg.OpenedChanges) -> secagg.OpenedChanges:
        return replace(opened, opened=tuple(each for each in opened.opened if each.hospital != silent))

    reply, _ = told.agent.answer(rewritten(request, "opened", secagg.OpenedChanges, withhold), array)
    assert isinstance(reply, VerdictReply)
    assert dict(reply.named) == ({} if silent == CHEAT else {CHEAT: "length"})


def test_the_evidence_of_a_sum_that_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server shows an honest round as if its sum had failed, to a hospital that has forgotten it."""
    made = disputing(tmp_path, audited=True)
    monkeypatch.setattr("server.rounds.require_fault", lambda *_: None)
    monkeypatch.setattr("server.rounds.check_norm", fail)
    monkeypatch.setattr("server.rounds.verdict", lambda *_: {CHEAT: "length"})
    made.listen()
    made.run().train()
    refused = {(event.hospital, event.code, event.round) for event in made.of(AttackRefused)}
    assert {(name, "unfounded_dispute", 1) for name in names(4)} <= refused
    request, array = evidence(made)
    assert made.refusal(request, array).code == "unfounded_dispute"
    assert found_at(made, NAME) == []


def fail(*_: object) -> None:
    raise SumNormError(PLACE, "a lie")


def test_evidence_that_is_told_again_and_again_is_written_once(told: ProvingRun) -> None:
    request, array = evidence(told)
    for _ in range(3):
        reply, _ = told.agent.answer(request, array)
        assert isinstance(reply, VerdictReply)
        assert dict(reply.named) == {CHEAT: "length"}
    assert len(found_at(told, NAME)) == 1


def test_a_run_without_disputes_takes_none(told: ProvingRun, tmp_path: Path) -> None:
    request, array = evidence(told)
    made = disputing(tmp_path / "other", aggregation={"disputes": False}, experiment={"rounds": 1})
    made.run().train()
    assert request.run_id == RUN_ID
    assert made.refusal(request, array).code == "unknown_phase"
