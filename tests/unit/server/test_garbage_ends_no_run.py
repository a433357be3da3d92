"""A hospital that spoils every sum it is in costs a run a few rounds and no more; real agents, real server."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.contribution import Contribution, Contributor
from client.proved_model import ProvedModel
from common.audit.chain import AUDIT_FILE
from common.errors import AuditError
from common.proved_sums.lineage import Lineage, pass_over
from common.telemetry.events import COMPLETED, AttackRefused
from deploy.experiment.consortium import Loss
from server.suspects import Suspects
from tests.support.disputing_run import disputing
from tests.support.proving_run import ProvingRun, proving, verdict
from tests.support.small_consortium import HOSPITALS, Dealt, Small, everybody, small

CHEAT = "hospital-3"
STEPS = 2


def spoil(made: Small, patch: pytest.MonkeyPatch, garble: Callable[[Any, Contributor], None]) -> None:
    """Let the cheat's vectors be garbled before they are committed to, masked and signed."""
    contribute = Contributor.contribute

    def cheating(self: Contributor, *arguments: Any, **named: Any) -> Contribution:  # noqa: ANN401 - as the real one
        made_of = contribute(self, *arguments, **named)
        run = made.consortium.agents[CHEAT]._run
        if run is not None and run.contributor is self:
            garble(made_of.vector, self)
        return made_of

    patch.setattr(Contributor, "contribute", cheating)


def noise(vector: Any, _contributor: Contributor) -> None:  # noqa: ANN401 - of either ring
    vector[:] = np.frombuffer(np.random.default_rng().bytes(vector.nbytes), vector.dtype)


def scaled(factor: int) -> Callable[[Any, Contributor], None]:
    def scale(vector: Any, contributor: Contributor) -> None:  # noqa: ANN401 - as above
        layout = contributor.layout
        change = layout.proved_part(vector)[: layout.parameters].view(layout.signed)
        bound = layout.element_bound
        change[:] = np.clip(change.astype(np.int64) * factor, -bound, bound)

    return scale


def goes_on(made: Small, code: str) -> None:
    assert made.run().train() == COMPLETED
    assert len(made.hospitals) == STEPS
    assert made.hospitals[-1] == len(HOSPITALS) - 1
    refused = [event.code for event in made.of(AttackRefused)]
    assert 1 <= len(refused) <= len(HOSPITALS)
    assert set(refused) <= set(code.split("|"))


def bounded(dealt: Dealt, folder: Path) -> ProvingRun:
    return proving(dealt, folder, aggregation={"norm_bound": 2.0}, experiment={"rounds": STEPS})


@pytest.mark.parametrize("factor", [40, -40])
def test_a_scaled_change_is_seen_in_the_sum_and_its_hospital_left_out(
    dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: int
) -> None:
    made = bounded(dealt, tmp_path)
    spoil(made, monkeypatch, scaled(factor))
    goes_on(made, "sum_norm")


def test_noise_in_the_place_of_a_vector_ends_no_run(
    dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = proving(dealt, tmp_path, privacy={"mode": "none"}, experiment={"rounds": STEPS})
    spoil(made, monkeypatch, noise)
    goes_on(made, "implausible_sum|sum_bound|false_sum")


def test_nor_does_it_where_sums_are_not_proved(dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policies = everybody(allow_no_privacy=True, allow_exact_evaluation=True)
    made = small(dealt, tmp_path, policies=policies, privacy={"mode": "none"}, experiment={"rounds": STEPS})
    spoil(made, monkeypatch, noise)
    goes_on(made, "implausible_sum")


def test_a_commitment_to_another_vector_names_nobody_and_ends_no_run(
    dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = proving(dealt, tmp_path, privacy={"mode": "none"}, experiment={"rounds": STEPS}, audited=True)
    commit = ProvedModel.commit

    def cheating(self: ProvedModel, vector: Any) -> bytes:  # noqa: ANN401 - of either ring
        committed = commit(self, vector)
        if self._hospital == CHEAT:
            vector[-1] += 1
        return committed

    monkeypatch.setattr(ProvedModel, "commit", cheating)
    goes_on(made, "false_sum")
    assert any("each model follows from what hospitals committed to" in line for line in verdict(made))


def test_honest_hospitals_are_never_left_out_under_a_bound(dealt: Dealt, tmp_path: Path) -> None:
    made = bounded(dealt, tmp_path)
    assert made.run().train() == COMPLETED
    assert not made.of(AttackRefused)
    assert made.hospitals == [len(HOSPITALS)] * STEPS


def unbounded_server(patch: pytest.MonkeyPatch) -> None:
    """Let the server take a sum of any length, as one that works with the cheat does."""
    patch.setattr("server.rounds.check_norm", lambda *_: None)


def test_a_hospital_does_not_follow_a_sum_that_is_too_long(
    dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bounded(dealt, tmp_path)
    spoil(made, monkeypatch, scaled(40))
    unbounded_server(monkeypatch)
    assert made.run().train() != COMPLETED
    refused = {(event.hospital, event.code) for event in made.of(AttackRefused)}
    assert {(name, "sum_norm") for name in HOSPITALS if name != CHEAT} <= refused


def test_an_audit_finds_a_sum_that_is_too_long(dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = proving(dealt, tmp_path, aggregation={"norm_bound": 2.0}, experiment={"rounds": 1}, audited=True)
    spoil(made, monkeypatch, scaled(40))
    unbounded_server(monkeypatch)
    made.consortium.transport.line = lambda _, request: Loss.OF_REQUEST if request.round_number > 1 else None
    made.run().train()
    with pytest.raises(AuditError, match=r"is not proved: .* long at most"):
        verdict(made)


WORST = 5
"""Hospitals where the last one that is suspected is the cheat."""


def never_refusing_itself(patch: pytest.MonkeyPatch) -> None:
    """Let the cheat stay, however many rounds it has spoilt."""
    honest = pass_over

    def passing(lineage: Lineage, *arguments: Any) -> Lineage:  # noqa: ANN401 - as the real one
        most = 1000 if lineage.hospital == CHEAT else lineage.most_void_rounds
        return honest(replace(lineage, most_void_rounds=most), *arguments)

    patch.setattr("client.proved_model.pass_over", passing)


@pytest.mark.parametrize("fewer", [0, 1])
def test_by_default_as_many_sums_may_be_void_as_one_cheat_can_spoil_and_no_fewer_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fewer: int
) -> None:
    """One cheat spoils as many sums as there are hospitals, and each honest hospital is left out of one of them."""
    limit = {"most_void_rounds": WORST - 1 - fewer} if fewer else {}
    made = disputing(tmp_path, WORST, aggregation={"disputes": False, **limit}, audited=True)
    spoil(made, monkeypatch, scaled(40))
    never_refusing_itself(monkeypatch)
    run = made.run()
    monkeypatch.setattr(run, "_suspects", Suspects(lambda names: names.sort(key=lambda name: name == CHEAT)))
    reason = run.train()
    honest = [made.folder / name for name in made.consortium.agents if name != CHEAT]
    if fewer:
        assert reason != COMPLETED
        assert "too_many_void_rounds" in {event.code for event in made.of(AttackRefused)}
        return
    assert reason == COMPLETED
    assert [event.code for event in made.of(AttackRefused)] == ["sum_norm"] * WORST
    assert made.hospitals == [WORST - 1] * STEPS
    assert {(folder / AUDIT_FILE).read_text().count('"kind":"passed"') for folder in honest} == {WORST - 1}


def test_more_spoilt_sums_than_may_fail_in_a_row_do_not_end_a_run(
    dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a limit of one failed round, each spoilt sum would be the last."""
    made = proving(dealt, tmp_path, privacy={"mode": "none"}, experiment={"rounds": STEPS})
    spoil(made, monkeypatch, noise)
    monkeypatch.setattr("server.run._MOST_FAILURES", 1)
    goes_on(made, "implausible_sum|sum_bound|false_sum")
