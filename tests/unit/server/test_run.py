"""Whole runs in memory: to the end, through refusals and dropouts, and on from a checkpoint."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from client.received_run import _follow
from client.training import _as_input
from common.audit.chain import AUDIT_FILE, read_chain
from common.models.flat import share_parameters
from common.privacy.distributed import DistributedMechanism
from common.run.told_run import Chained, check_told
from common.telemetry.events import (
    COMPLETED,
    EVENTS_FILE,
    STOPPED,
    Dropout,
    Evaluated,
    Event,
    Refusal,
    RoundDone,
    RunFinished,
    RunStarted,
)
from deploy.experiment.consortium import InProcessConsortium, Loss
from server.checkpoints import CheckpointStore
from tests.support.small_consortium import (
    CONFIG,
    HOSPITALS,
    POLICY,
    RUN_ID,
    Dealt,
    Small,
    Vanishing,
    everybody,
    small,
    willing,
)


class KilledError(BaseException):
    """What a test raises in place of the kill that ends a server."""


def test_a_run_trains_every_round_and_measures_every_model(dealt: Dealt, tmp_path: Path) -> None:
    made = small(dealt, tmp_path)
    assert made.run().train() == COMPLETED
    assert isinstance(made.events[0], RunStarted)
    assert made.of(RunFinished)[0].rounds_done == 2
    done = made.of(RoundDone)
    assert [event.step for event in done] == [1, 2]
    assert [event.part for event in done] == ["validation", "validation"]
    assert made.hospitals == [4, 4]
    (tested,) = made.of(Evaluated)
    assert (tested.step, tested.records, tested.exact) == (2, 4 * POLICY.stated_test_units, False)
    assert 0 < tested.epsilon <= made.config.evaluation.target_epsilon
    assert 0 < done[0].epsilon < done[1].epsilon <= made.config.privacy.target_epsilon
    assert made.config.privacy.target_epsilon - done[1].epsilon < 0.02


def test_what_a_run_reports_is_what_its_chain_says_to_a_hospital_that_follows_it(dealt: Dealt, tmp_path: Path) -> None:
    consortium = InProcessConsortium(CONFIG, dealt.sites(tmp_path), audited=True)
    made = Small(dealt, tmp_path, CONFIG, consortium)
    assert made.run().train() == COMPLETED
    (tmp_path / EVENTS_FILE).write_text("".join(event.to_line() for event in made.events), encoding="utf-8")
    server, own = (
        read_chain((folder / AUDIT_FILE).read_bytes(), AUDIT_FILE, made.consortium.authority)
        for folder in (tmp_path, tmp_path / HOSPITALS[0])
    )
    followed = _follow(server, own, RUN_ID)
    assert followed.finished is not None
    chained = Chained(followed.descriptions, followed.data_set, followed.sums, followed.finished.steps)
    assert check_told(tmp_path / EVENTS_FILE, chained) is False
    assert followed.rounds == len(followed.sums) > 2


def test_a_run_measures_a_model_of_each_round_and_books_it_to_its_own_account(dealt: Dealt, tmp_path: Path) -> None:
    made = small(dealt, tmp_path, experiment={"rounds": 3})
    made.run().train()
    for hospital in HOSPITALS:
        accounts = [entry["booking"]["account"] for entry in made.spent(hospital)]
        # The class count rides on round 1; the models of steps 1 and 2 on rounds 2 and 3; the last is measured twice.
        assert accounts == ["training", "validation"] * 3 + ["validation", "test"]


def test_exact_counts_measure_every_model_on_every_test_record(dealt: Dealt, tmp_path: Path) -> None:
    made = small(dealt, tmp_path, policies=everybody(allow_exact_evaluation=True), evaluation={"exact": True})
    assert made.run().train() == COMPLETED
    done, (last,) = made.of(RoundDone), made.of(Evaluated)
    tested = sum(len(part) for name, part in dealt.data.parts.items() if name == "test")
    assert all(sum(map(sum, event.confusion)) == tested for event in (*done, last))
    assert [event.part for event in done] == ["test", "test"]
    assert last.exact
    assert "not differentially private" in last.claim
    assert (last.accuracy, last.auc) == (done[-1].accuracy, done[-1].auc)
    assert {entry["booking"]["account"] for entry in made.spent("hospital-1")} == {"training"}


def test_a_run_that_is_stopped_ends_after_its_round_and_goes_on_without_a_second_last_measurement(
    dealt: Dealt, tmp_path: Path
) -> None:
    made = small(dealt, tmp_path, experiment={"rounds": 3})
    run = made.run()
    run._plan = replace(run._plan, must_stop=lambda: run._checkpoint.step >= 1)
    assert run.train() == STOPPED
    assert made.of(RunFinished)[0].reason == STOPPED
    assert made.of(Evaluated) == []
    assert {entry["booking"]["account"] for entry in made.spent("hospital-1")} == {"training", "validation"}
    assert made.run().train() == COMPLETED
    assert [event.step for event in made.of(RoundDone)] == [1, 2, 3]
    assert len(made.of(Evaluated)) == 1
    trained = [entry for entry in made.spent("hospital-1") if entry["booking"]["account"] == "training"]
    assert len(trained) == 3


def test_a_run_that_is_stopped_while_hospitals_are_away_does_not_wait_for_them(dealt: Dealt, tmp_path: Path) -> None:
    made = small(dealt, tmp_path)
    run = made.run()
    asked: list[None] = []

    def must_stop() -> bool:
        asked.append(None)
        return len(asked) > 2

    run._plan = replace(run._plan, must_stop=must_stop)
    made.consortium.transport.online = dict  # type: ignore[method-assign]
    assert run.train() == STOPPED
    assert made.of(RoundDone) == []


def test_the_model_changes_and_is_kept(dealt: Dealt, tmp_path: Path) -> None:
    made = small(dealt, tmp_path)
    run = made.run()
    before = run._checkpoint.model[:]
    run.train()
    kept = CheckpointStore(tmp_path / "checkpoints").latest(RUN_ID)
    assert kept is not None
    assert kept.step == kept.measured_step == 2
    assert not (kept.model[:] == before).all()


@pytest.mark.parametrize("phase", ["masked_input", "full_unmasking"])
def test_a_hospital_that_vanishes_does_not_stop_the_run(dealt: Dealt, tmp_path: Path, phase: str) -> None:
    made = small(dealt, tmp_path, experiment={"rounds": 3})
    made.consortium.transport.line = Vanishing("hospital-2", 1, phase, Loss.OF_REPLY)
    assert made.run().train() == COMPLETED
    assert made.of(Dropout)[0].hospital == "hospital-2"
    assert made.hospitals[-1] == 4
    assert len(made.booked("hospital-2")) == sum(
        event.hospitals == 4 or (event.round == 1 and phase == "masked_input") for event in made.of(RoundDone)
    )


def test_a_hospital_whose_budget_the_planned_end_would_pass_spends_nothing_and_the_run_goes_on(
    dealt: Dealt, tmp_path: Path
) -> None:
    made = small(dealt, tmp_path, policies={"hospital_3": willing(epsilon_budget=3.0)}, experiment={"rounds": 3})
    assert made.run().train() == COMPLETED
    refusal, *again = made.of(Refusal)
    assert {(each.hospital, each.code) for each in (refusal, *again)} == {("hospital-3", "budget_exceeded")}
    assert "its budget is 3" in refusal.reason
    assert "of its 3 rounds would fit" in refusal.reason
    assert made.hospitals == [3, 3, 3]
    assert made.booked("hospital-3") == []


def test_a_run_without_enough_willing_hospitals_ends_in_good_order(dealt: Dealt, tmp_path: Path) -> None:
    unwilling = willing(epsilon_budget=0.1)
    made = small(dealt, tmp_path, policies={"hospital_1": unwilling, "hospital_2": unwilling})
    reason = made.run().train()
    assert reason.startswith("2 of at least 3 hospitals are left after refusals")
    assert made.of(RunFinished) == [made.events[-1]]
    assert made.of(RunFinished)[0].rounds_done == 0


def test_a_run_waits_for_hospitals_no_longer_than_its_deadline(dealt: Dealt, tmp_path: Path) -> None:
    made = small(dealt, tmp_path)
    made.consortium.transport.offline.update(("hospital-1", "hospital-2"))
    assert made.run().train() == "only 2 of at least 3 hospitals were online within the deadline"


def test_a_killed_server_goes_on_from_its_last_step(dealt: Dealt, tmp_path: Path) -> None:
    made = small(dealt, tmp_path, experiment={"rounds": 4})
    kept: list[Event] = []

    def killed_at_the_second_model(event: Event) -> None:
        if isinstance(event, RoundDone) and event.step == 2:
            raise KilledError
        kept.append(event)

    run = made.consortium.server(RUN_ID, dealt.data, tmp_path / "checkpoints", killed_at_the_second_model)
    with pytest.raises(KilledError):
        run.train()
    assert made.run().train() == COMPLETED
    started = made.of(RunStarted)[0]
    assert started.resumed_from_round == 2
    steps = [event.step for event in (*kept, *made.events) if isinstance(event, RoundDone)]
    assert steps == [1, 2, 3, 4]
    for hospital in HOSPITALS:
        # The round in hand when the server was killed is booked and lost; none is done twice under one number.
        booked = [entry["round_number"] for entry in made.booked(hospital)]
        assert booked == sorted(set(booked))
        assert len(booked) == 5


def test_mode_distributed_spends_its_target_and_no_more(dealt: Dealt, tmp_path: Path) -> None:
    made = small(
        dealt,
        tmp_path,
        experiment={"rounds": 3},
        training={"sample_rate": 0.5},
        privacy={"mode": "distributed", "target_epsilon": 2.0},
    )
    assert made.run().train() == COMPLETED
    assert made.hospitals == [4, 4, 4]
    spent = [event.epsilon for event in made.of(RoundDone)]
    assert spent == sorted(spent)
    assert 1.98 < spent[-1] <= 2.0
    booked = made.booked("hospital-1")
    assert [entry["booking"]["event"]["kind"] for entry in booked] == ["distributed_discrete_gaussian"] * 3
    assert {(entry["booking"]["event"]["sample_rate"], entry["booking"]["event"]["steps"]) for entry in booked} == {
        (0.5, 1)
    }


def test_a_step_of_mode_distributed_follows_the_mean_gradient_of_all_hospitals_records(
    dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DistributedMechanism, "noise_share", lambda self, *_: np.zeros(self.dimension, np.int64))
    made = small(
        dealt,
        tmp_path,
        experiment={"rounds": 1},
        training={"sample_rate": 1.0, "learning_rate": 0.5},
        privacy={"mode": "distributed", "max_grad_norm": 30.0},
    )
    run = made.run()
    before = run._checkpoint.model[:]
    run.train()
    contributors = [agent._run.contributor for agent in made.consortium.agents.values() if agent._run is not None]
    model = contributors[0]._model
    share_parameters(model, torch.from_numpy(before.copy()))
    model.zero_grad()
    for part in (contributor._train for contributor in contributors):
        loss = functional.cross_entropy(model(_as_input(part.inputs)), part.labels, reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
    records = len(HOSPITALS) * POLICY.stated_training_units
    gradient = torch.cat([each.grad.reshape(-1) for each in model.parameters() if each.grad is not None]) / records
    kept = CheckpointStore(tmp_path / "checkpoints").latest(RUN_ID)
    assert kept is not None
    np.testing.assert_allclose(kept.model[:] - before, -0.5 * gradient.numpy(), atol=0.01 * float(gradient.abs().max()))


def test_patients_are_the_unit_in_both_modes(dealt: Dealt, tmp_path: Path) -> None:
    for mode in ("local", "distributed"):
        made = small(
            dealt,
            tmp_path / mode,
            experiment={"rounds": 1},
            privacy={"mode": mode, "unit": "patient", "delta": 1e-2},
        )
        assert made.run().train() == COMPLETED, mode
        assert made.hospitals == [4]


def test_without_privacy_no_epsilon_is_claimed(dealt: Dealt, tmp_path: Path) -> None:
    exact: dict[str, dict[str, Any]] = {
        "experiment": {"rounds": 1},
        "privacy": {"mode": "none"},
        "evaluation": {"exact": True},
    }
    made = small(dealt, tmp_path, policies=everybody(allow_no_privacy=True), **exact)
    assert made.run().train() == COMPLETED
    assert math.isnan(made.of(RoundDone)[0].epsilon)
    assert not (tmp_path / "hospital-1" / "ledger").exists()
