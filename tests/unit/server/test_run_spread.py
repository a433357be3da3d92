"""Whole runs in one process that tell how far hospitals' own AUC of their last model lie apart."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.received_run import _follow
from common.audit.chain import AUDIT_FILE, read_chain
from common.errors import AuditError
from common.evaluation import site_spread
from common.evaluation.site_spread import Cases
from common.privacy.accounting import rounded_up
from common.privacy.budget import Account
from common.privacy.distributed import DistributedMechanism
from common.run.messages import MaskRequest, Request
from common.run.round_terms import RoundTerms
from common.run.told_run import Chained, check_told
from common.secagg import messages as secagg
from common.secagg.errors import Place
from common.secagg.phases import Phase
from common.telemetry.events import COMPLETED, EVENTS_FILE, Compared, Evaluated, SpreadTold
from deploy.experiment.consortium import InProcessConsortium, Loss
from deploy.results.history import RunHistory
from deploy.results.outputs import summary
from deploy.results.reader_questions import answers
from deploy.results.site_spread import spread_lines
from server.rounds import Asked
from tests.support.small_consortium import HOSPITALS, RUN_ID, Dealt, Small, everybody, small, willing

torch.set_num_threads(1)

PLACE = Place("test", 1, Phase.MASKED_INPUT)
SHARE, TARGET = 0.4, 4.0
RICH: dict[str, Any] = {
    "epsilon_budget": 20.0, "evaluation_epsilon_budget": 1000.0, "allow_no_privacy": True, "delta": 1e-3,
}  # fmt: skip
HARDLY_ANY_NOISE = 900.0
"""An ε of evaluation that leaves noise of hundredths of a hospital which counts as released."""


@pytest.fixture(scope="module")
def dealt(tmp_path_factory: pytest.TempPathFactory) -> Dealt:
    return Dealt.into(tmp_path_factory.mktemp("dealt"))


def asking(
    dealt: Dealt, folder: Path, mode: str = "local", *, share: float = SHARE, target: float = TARGET,
    alone: float = 0.0, others: dict[str, Any] | None = None, **policy: Any,  # noqa: ANN401
) -> Small:  # fmt: skip
    policies = {**everybody(**RICH | policy), **{name: willing(**RICH | each) for name, each in (others or {}).items()}}
    return small(
        dealt, folder, policies=policies, model={"name": "scattering_linear"},
        training={"sample_rate": 1.0, "learning_rate": 5.0, "momentum": 0.0},
        privacy={"mode": mode, "alone_share": alone, "target_epsilon": 8.0},
        evaluation={"target_epsilon": target, "spread_share": share},
    )  # fmt: skip


def booked(run: Small, hospital: str) -> list[dict[str, Any]]:
    return [entry["booking"] for entry in run.spent(hospital) if entry["booking"]["account"] == Account.TEST]


@pytest.mark.parametrize("mode", ["local", "distributed", "none"])
def test_hospitals_with_too_few_cases_do_not_count_and_nothing_is_told_of_them(
    dealt: Dealt, tmp_path: Path, mode: str
) -> None:
    run = asking(dealt, tmp_path, mode)
    assert run.run().train() == COMPLETED
    (spread,), (tested,) = run.of(SpreadTold), run.of(Evaluated)
    assert (spread.hospitals, spread.records) == (4, 4 * 9)  # Nine are far below the least.
    assert spread.counted_interval[0] < 2
    assert all(math.isnan(value) for value in spread.quartiles)
    assert spread.needed > spread.counted
    assert tested.epsilon < spread.epsilon <= TARGET
    for hospital in HOSPITALS:
        assert len(booked(run, hospital)) == 2
    told = next(each.answer for each in answers(RunHistory.of(run.events), None) if "differ" in each.question)
    assert "noise is too large" in told
    assert f"about {spread.needed} hospitals" in told
    assert any("noise is too large" in line for line in spread_lines(RunHistory.of(run.events)))


def test_no_vector_of_a_hospital_with_too_few_cases_holds_anything_of_it(dealt: Dealt, tmp_path: Path) -> None:
    run = asking(dealt, tmp_path, target=HARDLY_ANY_NOISE)
    assert run.run().train() == COMPLETED
    (spread,) = run.of(SpreadTold)
    assert spread.counted == pytest.approx(0.0, abs=0.5)


def test_with_enough_cases_quartiles_are_those_of_the_hospitals_own_auc(
    dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_spread, "CASES", Cases(0, 1))
    monkeypatch.setattr(DistributedMechanism, "noise_share", lambda self, *_: np.zeros(self.dimension, np.int64))
    own: list[float] = []
    real = site_spread._auc

    def noted(healthy: np.ndarray, sick: np.ndarray) -> float:
        own.append(real(healthy, sick))
        return own[-1]

    monkeypatch.setattr(site_spread, "_auc", noted)
    run = asking(dealt, tmp_path, "none", target=HARDLY_ANY_NOISE, stated_test_units=60)
    assert run.run().train() == COMPLETED
    (spread,) = run.of(SpreadTold)
    assert spread.counted == pytest.approx(4, abs=0.01)
    assert len(own) == 4  # Once at each hospital.
    own.sort()
    for place, (low, high) in enumerate(spread.intervals):
        assert low - 0.01 <= own[place + 1]
        assert own[place] <= high + 0.01
    median = spread.quartiles[1]
    assert own[1] - 0.1 <= median <= own[2] + 0.1
    history = RunHistory.of(run.events)
    told = next(each.answer for each in answers(history, None) if "differ" in each.question)
    assert f"{median:.3f}" in told
    assert any(f"{median:.3f}" in line for line in spread_lines(history))
    assert not any(name in run.of(SpreadTold)[0].to_line() for name in HOSPITALS)


def test_a_hospital_whose_budget_is_spent_adds_noise_and_states_no_units(
    dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_spread, "CASES", Cases(0, 1))
    monkeypatch.setattr(DistributedMechanism, "noise_share", lambda self, *_: np.zeros(self.dimension, np.int64))
    spent = {"hospital_2": {"evaluation_epsilon_budget": 0.9 * HARDLY_ANY_NOISE}}
    run = asking(dealt, tmp_path, "none", target=HARDLY_ANY_NOISE, others=spent)
    assert run.run().train() == COMPLETED
    (spread,) = run.of(SpreadTold)
    assert (spread.hospitals, spread.records) == (4, 3 * 9)
    assert spread.counted == pytest.approx(3, abs=0.01)
    assert [len(booked(run, name)) for name in HOSPITALS] == [2, 1, 2, 2]


def test_where_every_budget_is_spent_nothing_is_told(dealt: Dealt, tmp_path: Path) -> None:
    run = asking(dealt, tmp_path, evaluation_epsilon_budget=0.9 * TARGET)
    assert run.run().train() == COMPLETED
    assert run.of(Evaluated)
    assert not run.of(SpreadTold)
    history = RunHistory.of(run.events)
    assert list(spread_lines(history)) == ["Hospitals' own AUC: not known, no round that asked gave a sum"]


def test_a_run_that_does_not_ask_is_what_it_was(dealt: Dealt, tmp_path: Path) -> None:
    run = asking(dealt, tmp_path, share=0.0)
    assert run.run().train() == COMPLETED
    assert not run.of(SpreadTold)
    assert len(booked(run, "hospital-1")) == 1
    history = RunHistory.of(run.events)
    assert summary(history)["site_spread"] is None
    assert not list(spread_lines(history))
    assert any("did not ask (evaluation.spread_share is 0)" in each.answer for each in answers(history, None))


def test_it_is_asked_after_the_comparison_and_all_of_it_costs_the_target(dealt: Dealt, tmp_path: Path) -> None:
    run = asking(dealt, tmp_path, alone=0.5)
    assert run.run().train() == COMPLETED
    (compared,), (spread,) = run.of(Compared), run.of(SpreadTold)
    assert compared.round < spread.round
    assert compared.epsilon < spread.epsilon <= TARGET
    without = asking(dealt, tmp_path / "without", share=0.0)
    assert without.run().train() == COMPLETED
    assert without.of(Evaluated)[0].epsilon == pytest.approx(spread.epsilon)
    history = RunHistory.of(run.events)
    assert history.test_epsilon == spread.epsilon
    assert history.test_claim == spread.claim
    assert f"ε = {rounded_up(spread.epsilon):.3f} at" in spread.claim
    told = summary(history)
    assert told["test"]["epsilon"] == told["site_spread"]["epsilon"] == spread.epsilon
    assert told["site_spread"]["quartiles"]["lower"] is None
    assert told["site_spread"]["hospitals_needed"] == spread.needed
    json.dumps(told, allow_nan=False)


def test_what_an_event_says_of_the_spread_must_agree_with_the_chain(dealt: Dealt, tmp_path: Path) -> None:
    plain = asking(dealt, tmp_path)
    audited = InProcessConsortium(plain.config, dealt.sites(tmp_path, **everybody(**RICH)), audited=True)
    run = Small(dealt, tmp_path, plain.config, audited)
    assert run.run().train() == COMPLETED
    server, own = (
        read_chain((folder / AUDIT_FILE).read_bytes(), AUDIT_FILE, audited.authority)
        for folder in (tmp_path, tmp_path / HOSPITALS[0])
    )
    followed = _follow(server, own, RUN_ID)
    assert followed.finished is not None
    chained = Chained(followed.descriptions, followed.data_set, followed.sums, followed.finished.steps)

    def check(**changes: object) -> None:
        events = [each.model_copy(update=changes) if isinstance(each, SpreadTold) else each for each in run.events]
        (tmp_path / EVENTS_FILE).write_text("".join(each.to_line() for each in events), encoding="utf-8")
        check_told(tmp_path / EVENTS_FILE, chained)

    check()
    for changes, said in (({"round": 1000}, "round must be one"), ({"hospitals": 5}, "hospitals must be what")):
        with pytest.raises(AuditError, match=said):
            check(**changes)


def _asks_for_spread(request: Request) -> bool:
    """Return whether a request begins a round that asks for the spread: the one question without an edge."""
    if not isinstance(request, MaskRequest):
        return False
    asked = secagg.decode(request.request, secagg.MaskedInputRequest, secagg.Limits(4), PLACE)
    terms = RoundTerms.decode(asked.terms)
    return terms.question is not None and terms.question.edges == () and not terms.trains


def test_a_question_whose_sum_fails_is_asked_again_as_often_as_the_run_allows(dealt: Dealt, tmp_path: Path) -> None:
    run = asking(dealt, tmp_path)
    run.consortium.transport.line = lambda _, request: Loss.OF_REPLY if _asks_for_spread(request) else None
    assert run.run().train() == COMPLETED
    assert not run.of(SpreadTold)
    assert run.of(Evaluated)
    assert len(booked(run, "hospital-1")) == 1 + 1 + run.config.evaluation.repeats


def test_a_server_that_ends_before_it_asks_goes_on_and_asks_once(dealt: Dealt, tmp_path: Path) -> None:
    run = asking(dealt, tmp_path)
    server = run.run()

    def ends() -> Asked | None:
        raise KeyboardInterrupt

    server._to_spread = ends  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        server.train()
    assert not run.of(SpreadTold)
    assert run.run().train() == COMPLETED
    assert len(run.of(SpreadTold)) == 1
    release = booked(run, "hospital-1")[-1]
    assert booked(run, "hospital-1").count(release) == 1
    assert run.run().train() == COMPLETED  # And once more, after it was told.
    assert len(run.of(SpreadTold)) == 1
    assert booked(run, "hospital-1").count(release) == 1
