"""A hospital that cheats in a run that has disputes is named in its round; real agents, real server."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.named import NAMED_FILE
from client.proved_model import ProvedModel
from common.audit.chain import AUDIT_FILE
from common.audit.entries import Named
from common.errors import AuditError
from common.run.messages import DisputeRequest, KeysRequest, Request, VerdictRequest, phase_of
from common.telemetry.events import COMPLETED, AttackRefused
from server.run import Run
from tests.support.disputing_run import (
    CHEAT,
    STEPS,
    Garble,
    audit,
    disputing,
    losing,
    names,
    noise,
    noise_in_counts,
    scaled,
    spoil,
    spoil_after_commitment,
)
from tests.support.proving_run import ProvingRun
from tests.support.small_consortium import RUN_ID


def named_at(made: ProvingRun, hospital: str) -> list[tuple[int, str, str]]:
    """Return round, hospital and fault of everybody whom a hospital's audit chain names."""
    return [(body["round_number"], body["hospital"], body["fault"]) for body in entries(made, hospital, "named")]


def entries(made: ProvingRun, hospital: str, kind: str) -> list[dict[str, Any]]:
    """Return the entries of one kind in a hospital's audit chain."""
    lines = (made.folder / hospital / AUDIT_FILE).read_text().splitlines()
    return [body for line in lines if (body := json.loads(line)["body"])["kind"] == kind]


def kept_at(made: ProvingRun, hospital: str) -> list[str]:
    path = made.folder / hospital / NAMED_FILE
    return [name for _, name in json.loads(path.read_bytes())["named"]] if path.exists() else []


def goes_on_without(made: ProvingRun, cheat: str, faults: set[str]) -> Run:
    """Run to the end; the cheat is named once, by everybody, and every step is made without it."""
    run = made.run()
    assert run.train() == COMPLETED
    everybody = set(made.consortium.agents)
    assert made.hospitals == [len(everybody) - 1] * STEPS
    refused = made.of(AttackRefused)
    assert [event.hospital for event in refused if event.code == "cheat_found"] == [cheat]
    found = {tuple(named_at(made, name)) for name in everybody}
    (((number, who, fault),),) = found
    assert (who, fault in faults) == (cheat, True)
    assert {event.round for event in refused} == {number}
    assert all(kept_at(made, name) == [cheat] for name in everybody)
    return run


def is_the_right_model(made: ProvingRun, run: Run) -> None:
    """See that every honest hospital has come to the server's model by sums that it saw proved."""
    models = {name: made.model_at(name).model for name in made.consortium.agents if name != CHEAT}
    first, *others = models.values()
    assert all((first == other).all() for other in others)
    assert np.isfinite(first).all()
    assert run._checkpoint.step == STEPS
    told = audit(made)
    assert any("each model follows from what hospitals committed to" in line for line in told)
    (found,) = [line for line in told if line.startswith("cheated")]
    assert f"{CHEAT}, in round" in found
    assert all(name in found for name in made.consortium.agents)


@pytest.mark.parametrize(
    ("garble", "faults"),
    [(scaled(40), {"length"}), (scaled(-40), {"length"}), (noise, {"entry", "other_vector"})],
    ids=["forty times", "minus forty times", "noise"],
)
@pytest.mark.parametrize("hospitals", [4, 8])
def test_a_cheat_is_named_in_its_round_and_the_run_goes_on_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hospitals: int, garble: Garble, faults: set[str]
) -> None:
    made = disputing(tmp_path, hospitals, audited=True)
    spoil(made, monkeypatch, garble)
    is_the_right_model(made, goes_on_without(made, CHEAT, faults))


def test_a_cheat_in_the_round_that_tells_the_mean_of_features_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A centre that is forty times too long leaves a model that tells nothing."""
    made = disputing(
        tmp_path, audited=True, privacy={"mean_share": 0.2}, model={"name": "scattering_linear"}, training={"copies": 1}
    )
    spoil(made, monkeypatch, scaled(40))
    run = goes_on_without(made, CHEAT, {"length"})
    assert {number for number, _, _ in named_at(made, "hospital-1")} == {1}
    is_the_right_model(made, run)


def test_an_audit_refuses_chains_that_name_others_from_the_same_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = disputing(tmp_path, audited=True, experiment={"rounds": 1})
    spoil(made, monkeypatch, scaled(40))
    made.run().train()
    assert audit(made)
    (body,) = entries(made, "hospital-2", "named")
    made.consortium.restart("hospital-1")
    agent = made.consortium.agents["hospital-1"]
    agent._here.record(Named(**{**body, "hospital": "hospital-2"}))
    with pytest.raises(AuditError, match="must name the same hospitals from the same evidence"):
        audit(made)


def one_more(vector: Any) -> None:  # noqa: ANN401 - of either ring
    vector[-1] += 1


def negative(vector: Any) -> None:  # noqa: ANN401 - of either ring
    vector[-100:] = -vector[-100:]


@pytest.mark.parametrize("garble", [one_more, negative])
def test_a_cheat_with_a_commitment_to_another_vector_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, garble: Callable[[Any], None]
) -> None:
    made = disputing(tmp_path, audited=True)
    spoil_after_commitment(monkeypatch, garble)
    goes_on_without(made, CHEAT, {"other_vector", "entry"})


def test_a_commitment_that_is_none_is_named_and_nobody_shows_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = disputing(tmp_path, audited=True)
    commit = ProvedModel.commit

    def cheating(self: ProvedModel, vector: Any) -> bytes:  # noqa: ANN401 - of either ring
        committed = commit(self, vector)
        return committed[:-4] if self._hospital == CHEAT else committed

    monkeypatch.setattr(ProvedModel, "commit", cheating)
    goes_on_without(made, CHEAT, {"no_commitment"})
    for name in names(4):
        assert '"shown"' not in (made.folder / name / AUDIT_FILE).read_text()


def test_a_cheat_that_does_not_answer_is_named_because_nobody_else_is_at_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = disputing(tmp_path, audited=True)
    spoil(made, monkeypatch, scaled(40))
    made.consortium.transport.line = losing(CHEAT, "dispute")
    assert made.run().train() == COMPLETED
    assert made.hospitals == [3] * STEPS
    assert {fault for _, _, fault in named_at(made, "hospital-1")} == {"not_opened"}
    assert kept_at(made, "hospital-1") == [CHEAT]


def test_an_honest_hospital_that_does_not_answer_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = disputing(tmp_path, audited=True)
    spoil(made, monkeypatch, scaled(40))
    made.consortium.transport.line = losing("hospital-1", "dispute")
    assert made.run().train() == COMPLETED
    assert {who for _, who, _ in named_at(made, "hospital-2")} == {CHEAT}
    assert made.hospitals == [3] * STEPS


def test_a_server_that_goes_on_knows_whom_it_has_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = disputing(tmp_path, 5, audited=True, experiment={"rounds": 1})
    spoil(made, monkeypatch, scaled(40))
    assert made.run().train() == COMPLETED
    assert dict(made.run()._checkpoint.progress.named) == {CHEAT: "length"}


def test_honest_rounds_have_no_dispute_and_name_nobody(tmp_path: Path) -> None:
    made = disputing(tmp_path, audited=True)
    asked: list[str] = []

    def listening(_: str, request: Request) -> None:
        asked.append(phase_of(request))

    made.consortium.transport.line = listening
    assert made.run().train() == COMPLETED
    assert made.hospitals == [4] * STEPS
    assert not made.of(AttackRefused)
    assert not {"dispute", "verdict"} & set(asked)
    assert all(named_at(made, name) == [] for name in names(4))


def test_counts_that_nobody_can_have_cost_a_measurement_and_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = disputing(tmp_path, evaluation={"exact": True})
    spoil(made, monkeypatch, noise_in_counts)
    made.run().train()
    assert made.hospitals[:STEPS] == [4] * STEPS
    assert not any(event.code == "cheat_found" for event in made.of(AttackRefused))


# A server that lies to agents


@pytest.fixture
def disputed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProvingRun:
    """Return a run after a dispute, with all that hospital-1 was sent."""
    made = disputing(tmp_path, audited=True, experiment={"rounds": 1})
    spoil(made, monkeypatch, scaled(40))
    made.listen()
    made.run().train()
    return made


def test_a_dispute_or_a_verdict_is_not_answered_twice(disputed: ProvingRun) -> None:
    dispute, told = (
        next(heard for heard in disputed.heard if isinstance(heard.request, kind))
        for kind in (DisputeRequest, VerdictRequest)
    )
    assert disputed.refusal(dispute.request, dispute.array).code == "already_answered"
    assert disputed.refusal(told.request).code == "run"


def test_nor_after_a_restart(disputed: ProvingRun) -> None:
    dispute = next(heard for heard in disputed.heard if isinstance(heard.request, DisputeRequest))
    joining = next(heard.request for heard in disputed.heard if isinstance(heard.request, KeysRequest))
    disputed.consortium.restart("hospital-1")
    assert disputed.refusal(dispute.request, dispute.array).code == "run"
    disputed.agent._join(joining.run_description, joining.version)
    assert disputed.refusal(dispute.request, dispute.array).code == "already_answered"


def test_a_hospital_takes_part_in_no_round_with_a_hospital_that_it_has_named(disputed: ProvingRun) -> None:
    path = disputed.folder / "hospital-1" / NAMED_FILE
    path.write_text(json.dumps({"version": 1, "named": [[RUN_ID, "hospital-2"]]}))
    disputed.consortium.restart("hospital-1")
    made = disputing(disputed.folder / "again")
    (made.folder / "hospital-1").mkdir(parents=True, exist_ok=True)
    (made.folder / "hospital-1" / NAMED_FILE).write_text(path.read_text())
    made.consortium.restart("hospital-1")
    made.run().train()
    refused = {(event.hospital, event.code) for event in made.of(AttackRefused)}
    assert ("hospital-1", "named_hospital") in refused
    assert all(number == 3 for number in made.hospitals)
