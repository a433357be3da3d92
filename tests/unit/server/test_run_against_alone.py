"""Whole runs in one process that compare their last model with each hospital's model of its own records."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from client.own_results import OWN_RESULTS_FILE, read
from common.privacy.accounting import Accountant
from common.privacy.budget import Account
from common.run.messages import MaskRequest, Request
from common.run.round_terms import RoundTerms
from common.secagg import messages as secagg
from common.secagg.errors import Place
from common.secagg.phases import Phase
from common.telemetry.events import COMPLETED, Compared, Evaluated, RoundDone
from deploy.experiment.consortium import Loss
from deploy.results.history import RunHistory
from deploy.results.outputs import summary
from server.checkpoints import CheckpointStore
from server.rounds import Asked
from tests.support.small_consortium import HOSPITALS, RUN_ID, Dealt, Small, everybody, small

torch.set_num_threads(1)

TARGET = 8.0
PLACE = Place("test", 1, Phase.MASKED_INPUT)
TRAINING = {"sample_rate": 1.0, "learning_rate": 5.0, "momentum": 0.0}


@pytest.fixture(scope="module")
def dealt(tmp_path_factory: pytest.TempPathFactory) -> Dealt:
    return Dealt.into(tmp_path_factory.mktemp("dealt"))


def comparing(
    dealt: Dealt,
    folder: Path,
    mode: str = "local",
    share: float = 0.5,
    evaluation: float = 4.0,
    **policy: Any,  # noqa: ANN401
) -> Small:
    rich = {"epsilon_budget": 20.0, "evaluation_epsilon_budget": 10.0, "allow_no_privacy": True, "delta": 1e-3}
    policies = everybody(**rich | policy)
    return small(
        dealt, folder, policies=policies, model={"name": "scattering_linear"}, training=TRAINING,
        privacy={"mode": mode, "alone_share": share, "mean_share": 0.04, "target_epsilon": TARGET},
        evaluation={"target_epsilon": evaluation},
    )  # fmt: skip


def booked(run: Small, hospital: str, account: Account) -> list[dict[str, Any]]:
    return [entry["booking"] for entry in run.spent(hospital) if entry["booking"]["account"] == account]


@pytest.mark.parametrize("mode", ["local", "distributed", "none"])
def test_a_run_compares_once_at_its_end_and_keeps_its_target(dealt: Dealt, tmp_path: Path, mode: str) -> None:
    run = comparing(dealt, tmp_path, mode)
    assert run.run().train() == COMPLETED
    (compared,), (tested,) = run.of(Compared), run.of(Evaluated)
    assert compared.records == 4 * 9
    assert -1 <= compared.interval[0] <= compared.accuracy <= compared.interval[1] <= 1
    assert set(compared.recalls) == {"normal", "pneumonia"}
    assert tested.epsilon < compared.epsilon <= 4.0
    last = run.of(RoundDone)[-1]
    if mode == "none":
        assert compared.epsilon_spent == {}
        return
    # Each ledger, by its own account, has reached the run's target, and its last training round had not.
    assert set(compared.epsilon_spent) == set(HOSPITALS)
    assert max(compared.epsilon_spent.values()) == pytest.approx(TARGET, abs=0.06)
    assert last.epsilon < 0.8 * TARGET
    rounds = run.config.experiment.rounds
    for hospital in HOSPITALS:
        # Its steps, its mean and its threshold, beside the run's rounds and mean.
        assert len(booked(run, hospital, Account.TRAINING)) == rounds + 1 + 3
        assert len(booked(run, hospital, Account.TEST)) == 2


def test_each_hospitals_own_result_stays_in_its_state_and_no_event_names_one(dealt: Dealt, tmp_path: Path) -> None:
    run = comparing(dealt, tmp_path)
    assert run.run().train() == COMPLETED
    own = [read(run.folder / name / OWN_RESULTS_FILE)[-1].alone for name in HOSPITALS]
    assert all(each is not None and each.records > 0 for each in own)
    (compared,) = run.of(Compared)
    told = json.loads(compared.to_line())
    assert set(told["epsilon_spent"]) == set(HOSPITALS)  # By name there is what each has spent, and nothing else.
    assert not any(name in json.dumps({**told, "epsilon_spent": None}) for name in HOSPITALS)


def test_with_hardly_any_noise_what_is_told_is_what_hospitals_see_at_home(dealt: Dealt, tmp_path: Path) -> None:
    """Each states more test records than it has, so that all count; empty ones are right under no model."""
    stated = 60
    run = comparing(dealt, tmp_path, evaluation=900.0, stated_test_units=stated, evaluation_epsilon_budget=1000.0)
    assert run.run().train() == COMPLETED
    own = [each for name in HOSPITALS if (each := read(run.folder / name / OWN_RESULTS_FILE)[-1].alone) is not None]
    ahead = sum(each.records * (each.together - each.alone) for each in own)
    (compared,) = run.of(Compared)
    assert len(own) == len(HOSPITALS)
    assert compared.records == 4 * stated
    assert compared.noise * compared.records < 0.2
    assert compared.accuracy * compared.records == pytest.approx(ahead, abs=1)


def test_a_run_that_does_not_ask_is_what_it_was(dealt: Dealt, tmp_path: Path) -> None:
    run = comparing(dealt, tmp_path, share=0.0)
    assert run.run().train() == COMPLETED
    assert not run.of(Compared)
    assert len(booked(run, "hospital-1", Account.TEST)) == 1
    assert run.of(RoundDone)[-1].epsilon == pytest.approx(TARGET, abs=0.06)
    assert summary(RunHistory.of(run.events))["against_alone"] is None


def test_hospitals_whose_budget_has_no_room_for_it_train_and_are_not_compared(dealt: Dealt, tmp_path: Path) -> None:
    """Each has spent a part of its budget elsewhere since the run's planned end was judged."""
    run = comparing(dealt, tmp_path, epsilon_budget=TARGET)
    server = run.run()
    real = server._to_compare

    def spend_before() -> Asked | None:
        for agent in run.consortium.agents.values():
            assert agent._run is not None
            contributor = agent._run.contributor
            assert contributor._ledger is not None
            other = contributor._mechanism.bookings_alone(contributor.run, contributor.layout.parameters)
            contributor._ledger.record("d1" * 16, 1, other[0], contributor._budget(Account.TRAINING), Accountant.RDP)
        return real()

    server._to_compare = spend_before  # type: ignore[method-assign]
    assert server.train() == COMPLETED
    assert not run.of(Compared)
    assert run.of(Evaluated)
    assert len(booked(run, "hospital-1", Account.TEST)) == 1  # All of what it takes, or nothing.


def _asks_to_compare(request: Request) -> bool:
    """Return whether a request begins a round that compares: the one question with a single edge."""
    if not isinstance(request, MaskRequest):
        return False
    asked = secagg.decode(request.request, secagg.MaskedInputRequest, secagg.Limits(4), PLACE)
    question = RoundTerms.decode(asked.terms).question
    return question is not None and tuple(map(len, question.edges)) == (1,)


def test_a_comparison_whose_sum_fails_is_asked_again_by_the_same_models(dealt: Dealt, tmp_path: Path) -> None:
    run, lost = comparing(dealt, tmp_path), []

    def lose_first(hospital: str, request: Request) -> Loss | None:
        if not _asks_to_compare(request) or hospital in lost or hospital in ("hospital-1", "hospital-2"):
            return None
        lost.append(hospital)
        return Loss.OF_REPLY

    run.consortium.transport.line = lose_first
    assert run.run().train() == COMPLETED
    assert lost == ["hospital-3", "hospital-4"]  # Two are too many for the noise of the others.
    assert len(run.of(Compared)) == 1
    for hospital in HOSPITALS:  # Asked twice on test records, and trained and paid for once.
        assert len(booked(run, hospital, Account.TEST)) == 1 + 2
        assert len(booked(run, hospital, Account.TRAINING)) == run.config.experiment.rounds + 1 + 3
    assert run.of(Compared)[0].epsilon_spent == pytest.approx(dict.fromkeys(HOSPITALS, TARGET), abs=0.06)


def test_a_comparison_that_never_gives_a_sum_leaves_the_run_as_it_is(dealt: Dealt, tmp_path: Path) -> None:
    run = comparing(dealt, tmp_path)
    run.consortium.transport.line = lambda _, request: Loss.OF_REPLY if _asks_to_compare(request) else None
    assert run.run().train() == COMPLETED
    assert not run.of(Compared)
    assert run.of(Evaluated)
    assert len(booked(run, "hospital-1", Account.TEST)) == 1 + 1 + run.config.evaluation.repeats


def test_a_server_that_ends_between_the_two_questions_goes_on_and_compares(dealt: Dealt, tmp_path: Path) -> None:
    run = comparing(dealt, tmp_path)
    server = run.run()

    def ends() -> Asked | None:
        raise KeyboardInterrupt

    server._to_compare = ends  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        server.train()
    assert run.of(Evaluated)
    assert not run.of(Compared)
    assert run.run().train() == COMPLETED
    assert len(run.of(Compared)) == 1
    kept = CheckpointStore(tmp_path / "checkpoints").latest(RUN_ID)
    assert kept is not None
    assert kept.progress.evaluation is not None
    assert kept.progress.evaluation.compared
    assert sum(kept.progress.evaluation.of_class) == pytest.approx(4 * 9, abs=1)
    # And once more, after it has compared: nothing is asked again of hospitals' own models.
    assert run.run().train() == COMPLETED
    assert len(run.of(Compared)) == 1
    assert len(booked(run, "hospital-1", Account.TRAINING)) == run.config.experiment.rounds + 1 + 3


def test_summary_and_history_have_the_whole_cost(dealt: Dealt, tmp_path: Path) -> None:
    run = comparing(dealt, tmp_path)
    assert run.run().train() == COMPLETED
    history = RunHistory.of(run.events)
    (compared,) = run.of(Compared)
    assert history.training_epsilon == max(compared.epsilon_spent.values()) > history.rounds[-1].epsilon
    assert history.test_epsilon == compared.epsilon
    told = summary(history)
    assert told["against_alone"]["accuracy"] == compared.accuracy
    assert told["test"]["epsilon"] == compared.epsilon
    assert told["privacy"]["hospitals"]["hospital-1"]["epsilon"] == compared.epsilon_spent["hospital-1"]
