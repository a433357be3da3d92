"""What a hospital answers, and what it refuses whatever the server says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from client.agent import HospitalAgent
from common.config import HospitalConfig
from common.errors import AuditError, ConfideError, DataError, LedgerError
from common.run.flat_model import hash_model
from common.run.messages import (
    ConsistencyRequest,
    KeysReply,
    KeysRequest,
    MaskReply,
    MaskRequest,
    PlainRequest,
    RefusedReply,
    Reply,
    Request,
    SharesRequest,
    UnmaskRequest,
)
from common.run.round_terms import Purpose, RoundTerms
from common.run.terms import describe
from common.secagg import messages as secagg
from common.secagg.errors import Place
from common.secagg.phases import Phase
from common.telemetry.events import COMPLETED, Evaluated, Refusal, RoundDone
from deploy.experiment.consortium import Loss
from server.run import Run
from tests.support.small_consortium import HOSPITALS, POLICY, RUN_ID, Dealt, Small, small, willing

NAME = "hospital-1"


class Overheard:
    """A run of one step that hospital-1 left at its first masked input, with every request it was ever sent."""

    def __init__(self, made: Small) -> None:
        self.made = made
        self.requests: list[Request] = []
        made.consortium.transport.line = self._line
        run: Run = made.run()
        self.model: npt.NDArray[np.float32] = run._checkpoint.model[:]
        run.train()

    def _line(self, hospital: str, request: Request) -> Loss | None:
        if hospital != NAME:
            return None
        self.requests.append(request)
        is_gone = any(isinstance(earlier, MaskRequest) for earlier in self.requests)
        return Loss.OF_REQUEST if is_gone else None

    @property
    def agent(self) -> HospitalAgent:
        return self.made.consortium.agents[NAME]

    def first(self, kind: type[Any]) -> Any:  # noqa: ANN401 - of that kind
        return next(request for request in self.requests if isinstance(request, kind))

    def masked_input(self) -> MaskRequest:
        request: MaskRequest = self.first(MaskRequest)
        return request

    def answer(self, request: Request, array: npt.NDArray[Any] | None = None) -> Reply:
        return self.agent.answer(request, array)[0]


@pytest.fixture
def overheard(dealt: Dealt, tmp_path: Path) -> Overheard:
    return Overheard(small(dealt, tmp_path, experiment={"rounds": 1}))


def refused(reply: Reply) -> RefusedReply:
    assert isinstance(reply, RefusedReply), reply
    assert reply.hospital == NAME
    return reply


def changed(request: MaskRequest, change: Callable[[secagg.MaskedInputRequest], secagg.MaskedInputRequest]) -> Request:
    """Return the request with what the server says of the cohort changed."""
    place, limits = Place(NAME, request.round_number, Phase.MASKED_INPUT), secagg.Limits(hospitals=len(HOSPITALS))
    inner = secagg.decode(request.request, secagg.MaskedInputRequest, limits, place)
    return MaskRequest(
        run_id=request.run_id,
        round_number=request.round_number,
        request=secagg.encode(change(inner)),
        next_round=request.next_round,
    )


def with_a_damaged_share(inner: secagg.MaskedInputRequest) -> secagg.MaskedInputRequest:
    first, *rest = inner.inbox
    ciphertext = bytes([first.ciphertext[0] ^ 1]) + first.ciphertext[1:]
    return replace(inner, inbox=(replace(first, ciphertext=ciphertext), *rest))


def test_a_vector_is_given_once(overheard: Overheard) -> None:
    assert isinstance(overheard.answer(overheard.masked_input(), overheard.model), MaskReply)
    again = refused(overheard.answer(overheard.masked_input(), overheard.model))
    assert again.code == "second_masked_input"
    assert again.is_attack
    assert len(overheard.made.booked(NAME)) == 1


def test_a_vector_is_given_once_also_by_an_agent_that_was_restarted(overheard: Overheard) -> None:
    overheard.answer(overheard.masked_input(), overheard.model)
    overheard.made.consortium.restart(NAME)
    description = overheard.first(KeysRequest).run_description
    joined = overheard.answer(KeysRequest(run_description=description, round_number=1000))
    assert isinstance(joined, KeysReply)
    assert refused(overheard.answer(overheard.masked_input(), overheard.model)).code == "second_masked_input"


def test_a_restarted_agent_has_no_secrets_and_says_so(overheard: Overheard) -> None:
    overheard.made.consortium.restart(NAME)
    request = overheard.masked_input()
    assert "has not joined this run, or was restarted" in refused(overheard.answer(request, overheard.model)).reason


def test_a_bad_share_costs_no_epsilon_and_the_good_one_is_still_answered(overheard: Overheard) -> None:
    bad = refused(overheard.answer(changed(overheard.masked_input(), with_a_damaged_share), overheard.model))
    assert bad.code == "share_decryption"
    assert bad.is_attack
    assert not (overheard.made.folder / NAME / "ledger" / "ledger.sqlite").exists() or not overheard.made.booked(NAME)
    assert isinstance(overheard.answer(overheard.masked_input(), overheard.model), MaskReply)


def test_a_cohort_below_the_threshold_costs_no_epsilon(overheard: Overheard) -> None:
    few = changed(
        overheard.masked_input(),
        lambda inner: replace(inner, cohort=inner.cohort[:2], inbox=inner.inbox[:1]),
    )
    assert refused(overheard.answer(few, overheard.model)).code == "too_few_hospitals"
    assert not overheard.made.booked(NAME)


def test_another_model_than_the_one_named_costs_no_epsilon(overheard: Overheard) -> None:
    reply = refused(overheard.answer(overheard.masked_input(), overheard.model + 1))
    assert reply.code == "model_hash"
    assert not overheard.made.booked(NAME)


def test_no_vector_is_given_after_the_agreed_time_although_the_run_has_begun(overheard: Overheard) -> None:
    run = overheard.agent._run
    assert run is not None
    run.until = 1
    reply = refused(overheard.answer(overheard.masked_input(), overheard.model))
    assert reply.code == "policy"
    assert "has ended" in reply.reason
    assert not overheard.made.booked(NAME)


@pytest.mark.parametrize(
    "model",
    [None, np.zeros(4), np.zeros((2, 2), np.float32), np.full(4, np.nan, np.float32)],
    ids=["missing", "float64", "a matrix", "undefined"],
)
def test_what_is_no_model_is_refused(overheard: Overheard, model: npt.NDArray[Any] | None) -> None:
    assert refused(overheard.answer(overheard.masked_input(), model)).code == "unusable_model"
    assert not overheard.made.booked(NAME)


def test_shares_are_given_once(overheard: Overheard) -> None:
    assert refused(overheard.answer(overheard.first(SharesRequest))).code == "already_answered"


def test_nothing_is_signed_or_revealed_for_a_round_without_a_vector(overheard: Overheard) -> None:
    signing = ConsistencyRequest(run_id=RUN_ID, round_number=1, survivors=b"")
    revealing = UnmaskRequest(run_id=RUN_ID, round_number=1, request=b"")
    for request in (signing, revealing):
        assert "holds no secrets for this step of round 1" in refused(overheard.answer(request)).reason


def test_bytes_that_are_no_message_are_refused(overheard: Overheard) -> None:
    request = overheard.masked_input()
    garbage = MaskRequest(run_id=RUN_ID, round_number=1, request=request.request[:-1])
    assert refused(overheard.answer(garbage, overheard.model)).is_attack
    joining = KeysRequest(run_description=b"{}", round_number=2000)
    assert refused(overheard.answer(joining)).code == "config"


def test_a_bare_vector_is_refused_in_a_run_of_masked_ones(overheard: Overheard) -> None:
    bare = PlainRequest(
        run_id=RUN_ID,
        run_description=overheard.first(KeysRequest).run_description,
        round_number=2000,
        terms=RoundTerms(purpose=Purpose.TRAIN, model_hash=hash_model(overheard.model), fewest_survivors=0).encode(),
    )
    assert refused(overheard.answer(bare, overheard.model)).code == "policy"
    assert not overheard.made.booked(NAME)


@pytest.mark.parametrize(
    ("policy", "changes", "words"),
    [
        (POLICY, {"privacy": {"mode": "none"}}, "hospital.allow_no_privacy"),
        (POLICY, {"aggregation": {"mode": "plain"}, "evaluation": {"exact": True}}, "hospital.allow_plain"),
        (POLICY, {"evaluation": {"exact": True}}, "hospital.allow_exact_evaluation"),
        (willing(max_local_epochs=2), {"training": {"local_epochs": 3}}, "at most 2 epochs a round"),
        (willing(longest_vector=100), {}, "at most 100 elements, the run's has"),
        (willing(min_hospitals=5), {}, "at least 5 hospitals"),
        (willing(min_colluders=1), {"privacy": {"mode": "distributed"}}, "hospital.min_colluders"),
        (willing(min_colluders=1), {}, "hospital.min_colluders"),  # The noise of evaluation is in sums in every mode.
        (willing(unit="patient"), {}, "hospital.unit"),
        (POLICY, {"aggregation": {"max_weight": 39}}, "aggregation.max_weight = 39"),
        (POLICY, {"experiment": {"min_records_per_class": 1}}, "experiment.min_records_per_class = 1"),
        (POLICY, {"privacy": {"delta": 0.025}}, "below 1 / 40 training records"),
        (willing(delta=0.025), {}, "its own hospital.delta"),
        (willing(runs="ask"), {}, "operator decides on each run"),
    ],
)
def test_a_run_outside_the_hospitals_policy_is_refused(
    dealt: Dealt, tmp_path: Path, policy: HospitalConfig, changes: dict[str, dict[str, Any]], words: str
) -> None:
    made = small(dealt, tmp_path, policies={"hospital_1": policy}, **changes)
    data = dealt.data
    description = describe(
        made.config,
        RUN_ID,
        data.classes,
        data.channels,
        made.consortium.roster,
        member_list=made.consortium.member_list,
    )
    asked = KeysRequest(run_description=description.canonical_json(), round_number=1)
    reply = refused(made.consortium.agents[NAME].answer(asked, None)[0])
    assert reply.code == "policy"
    assert words in reply.reason
    assert not (tmp_path / NAME / "ledger").exists()


def test_noise_that_misses_the_runs_own_target_is_refused(dealt: Dealt, tmp_path: Path) -> None:
    made = small(dealt, tmp_path, privacy={"mode": "distributed", "target_epsilon": 2.0})
    data = dealt.data
    honest = describe(
        made.config,
        RUN_ID,
        data.classes,
        data.channels,
        made.consortium.roster,
        member_list=made.consortium.member_list,
    )
    assert honest.noise_multiplier is not None
    lower = honest.model_copy(update={"noise_multiplier": honest.noise_multiplier / 2})
    asked = KeysRequest(run_description=lower.canonical_json(), round_number=1)
    reply = refused(made.consortium.agents[NAME].answer(asked, None)[0])
    assert reply.code == "privacy"
    assert "must keep its target ε = 2 for 2 rounds" in reply.reason


def test_data_that_falls_short_of_the_statement_is_told_to_the_operator_and_to_nobody_else(
    dealt: Dealt, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = willing(
        stated_training_units=400, stated_validation_units=50, stated_test_units=90, stated_units_per_class=99
    )
    made = small(dealt, tmp_path, policies={"hospital_1": more}, experiment={"rounds": 1})
    assert made.run().train() == COMPLETED
    assert made.of(Refusal) == []
    for stated in (
        "training_units states 400",
        "validation_units states 50",
        "test_units states 90",
        "class states 99",
    ):
        assert stated in caplog.text
    (done,), (tested,) = made.of(RoundDone), made.of(Evaluated)
    assert done.hospitals == 4
    assert tested.records == 90 + 3 * POLICY.stated_test_units


def test_a_roster_without_this_hospitals_own_certificate_is_refused(dealt: Dealt, tmp_path: Path) -> None:
    made, other = small(dealt, tmp_path / "one"), small(dealt, tmp_path / "other")
    description = describe(
        made.config,
        RUN_ID,
        dealt.data.classes,
        dealt.data.channels,
        other.consortium.roster,
        member_list=other.consortium.member_list,
    )
    asked = KeysRequest(run_description=description.canonical_json(), round_number=1)
    assert refused(made.consortium.agents[NAME].answer(asked, None)[0]).code == "policy"


@pytest.mark.parametrize("kind", [DataError, LedgerError, AuditError])
def test_what_is_wrong_with_data_or_ledger_is_not_told(
    overheard: Overheard, monkeypatch: pytest.MonkeyPatch, kind: type[ConfideError]
) -> None:
    def failing(*_: object) -> None:
        raise kind("patient-17.dcm cannot be read")

    monkeypatch.setattr(overheard.agent, "_answer", failing)
    reply = refused(overheard.answer(overheard.masked_input(), overheard.model))
    assert reply.code == kind.code
    assert "17" not in reply.reason
    said = ("its operator knows why", "do not let it take part", "its operator finds the reason")
    assert any(words in reply.reason for words in said)
