"""A hospital answers a proposal once, from policy, ledger and operator, and is held to what it agreed to."""

import contextlib
import datetime as dt
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from client.agreement import MOST_A_DAY, PROPOSALS_FOLDER, Hospital, RunAgreements, unanswered
from client.ledger.ledger import LEDGER_FOLDER, Ledger
from client.ledger.place import open_ledger, registry_folder
from client.ledger.remembered import REMEMBERED_FILE
from client.planned_cost import planned_bookings
from common.audit.chain import AUDIT_FILE, read_chain
from common.audit.entries import AnsweredProposal
from common.canonical import canonical_json
from common.config import HospitalConfig, RunConsent, replace
from common.errors import BudgetExceededError, LedgerError, PolicyError, RunError
from common.files import write_private
from common.identity.ledger_statement import state_ledger
from common.privacy.budget import BudgetPolicy
from common.run.proposal import Proposal, RunAnswer, terms_hash
from tests.support.proposed_run import CONFIG, HOUR, NOW, Members

MEMBERS = Members.made()
PROPOSAL = MEMBERS.proposal()
NAME = "st-mary"
ASK = HospitalConfig(runs=RunConsent.ASK)


def kept(state: Path, proposal: Proposal = PROPOSAL) -> RunAgreements:
    agreements = RunAgreements(state)
    agreements.keep(proposal, NOW)
    return agreements


def answered(hospital: Hospital, proposal: Proposal = PROPOSAL) -> RunAnswer | None:
    chain = MEMBERS.chain(hospital.identity.name, hospital.state)
    try:
        return hospital.answer_by_policy(proposal, NOW, chain.append)
    finally:
        chain.close()


def entries(state: Path) -> list[AnsweredProposal]:
    chain = read_chain((state / AUDIT_FILE).read_bytes(), AUDIT_FILE, MEMBERS.authority.certificate)
    return [entry.body for entry in chain.entries if isinstance(entry.body, AnsweredProposal)]


def test_policy_agrees_within_its_bounds_and_says_what_is_left_in_its_chain_too(tmp_path: Path) -> None:
    agreements, hospital = kept(tmp_path), MEMBERS.hospital(NAME, tmp_path)
    assert [proposal.run_id for proposal in unanswered(tmp_path)] == [PROPOSAL.run_id]
    answer = answered(hospital)
    assert answer is not None
    assert (answer.agreed, answer.by, answer.reason) == (True, "policy", "")
    assert 0 < answer.epsilon["training"].after <= CONFIG.privacy.target_epsilon + 0.001
    assert answer.epsilon["training"].budget == hospital.policy.epsilon_budget
    answer.verify(MEMBERS.identities[NAME].key.public_key())
    (entry,) = entries(tmp_path)
    assert (entry.agreed, entry.proposal, entry.terms) == (True, PROPOSAL.hash(), terms_hash(PROPOSAL.description))
    assert agreements.answer_to(PROPOSAL.run_id) == answer
    assert list(unanswered(tmp_path)) == []


@pytest.mark.parametrize(
    ("policy", "code", "words"),
    [
        (HospitalConfig(epsilon_budget=1.0), "budget_exceeded", "its budget is 1"),
        (HospitalConfig(min_hospitals=4), "policy", "at least 4 hospitals"),
        (HospitalConfig(max_local_epochs=1, min_colluders=1), "policy", "withstands 1 hospitals"),
        (HospitalConfig(runs=RunConsent.ASK, epsilon_budget=1.0), "budget_exceeded", "its budget is 1"),
    ],
)
def test_what_policy_or_budget_forbids_is_declined_whoever_decides(
    tmp_path: Path, policy: HospitalConfig, code: str, words: str
) -> None:
    kept(tmp_path)
    answer = answered(MEMBERS.hospital(NAME, tmp_path, policy))
    assert answer is not None
    assert (answer.agreed, answer.code, answer.epsilon) == (False, code, {})
    assert words in answer.reason
    assert [entry.reason for entry in entries(tmp_path)] == [answer.reason]


def test_an_operator_who_is_asked_decides_and_cannot_pass_the_budget(tmp_path: Path) -> None:
    agreements, hospital = kept(tmp_path), MEMBERS.hospital(NAME, tmp_path, ASK)
    assert answered(hospital) is None
    assert agreements.answer_to(PROPOSAL.run_id) is None
    with pytest.raises(BudgetExceededError):
        MEMBERS.hospital(NAME, tmp_path, HospitalConfig(epsilon_budget=1.0)).consider(PROPOSAL, NOW)
    chain = MEMBERS.chain(NAME, tmp_path)
    answer = hospital.agree(PROPOSAL, "operator", hospital.consider(PROPOSAL, NOW), chain.append)
    assert (answer.agreed, answer.by) == (True, "operator")
    # The second answer, whatever it says, is the first one, and the chain has one entry.
    assert hospital.decline(PROPOSAL, "operator", "declined", "no", chain.append) == answer
    assert len(entries(tmp_path)) == 1


@pytest.mark.parametrize(("bound", "decides"), [(0.0, "policy"), (3.1, "policy"), (2.9, "operator")])
def test_a_run_that_takes_more_of_the_budget_than_one_may_by_itself_waits_for_the_operator(
    tmp_path: Path, bound: float, decides: str
) -> None:
    kept(tmp_path)
    hospital = MEMBERS.hospital(NAME, tmp_path, HospitalConfig(automatic_epsilon=bound))
    answer = answered(hospital)
    assert (answer is None) == (decides == "operator")
    if answer is None:
        assert list(unanswered(tmp_path)) == [PROPOSAL]
        chain = MEMBERS.chain(NAME, tmp_path)
        answer = hospital.agree(PROPOSAL, "operator", hospital.consider(PROPOSAL, NOW), chain.append)
        chain.close()
    assert (answer.agreed, answer.by) == (True, decides)


def test_where_one_run_has_a_bound_a_run_that_nobody_has_proposed_is_refused(tmp_path: Path) -> None:
    for policy, refused in ((HospitalConfig(), False), (HospitalConfig(automatic_epsilon=100.0), True)):
        with pytest.raises(PolicyError) if refused else contextlib.nullcontext():
            check(RunAgreements(tmp_path), PROPOSAL, policy.consent_to(math.inf))


def test_what_the_ledger_holds_of_other_runs_counts(tmp_path: Path) -> None:
    kept(tmp_path)
    hospital = MEMBERS.hospital(NAME, tmp_path, HospitalConfig(epsilon_budget=3.5))
    ledger = Ledger.open(tmp_path / LEDGER_FOLDER, b"f" * 32)
    training = planned_bookings(PROPOSAL.description)[0]
    ledger.record("e" * 32, 1, training, BudgetPolicy.of(hospital.policy, training.account))
    answer = answered(hospital)
    assert answer is not None
    assert answer.code == "budget_exceeded"


def test_a_ledger_that_is_not_in_order_answers_nothing(tmp_path: Path) -> None:
    kept(tmp_path)
    Ledger.open(tmp_path / LEDGER_FOLDER, b"f" * 32)
    for path in (tmp_path / LEDGER_FOLDER).glob("*.sqlite*"):
        path.write_bytes(b"not a ledger")
    with pytest.raises(LedgerError):
        answered(MEMBERS.hospital(NAME, tmp_path))
    assert [proposal.run_id for proposal in unanswered(tmp_path)] == [PROPOSAL.run_id]
    assert entries(tmp_path) == []


def test_a_proposal_whose_time_is_over_is_declined(tmp_path: Path) -> None:
    old = MEMBERS.proposal(hours=-1)
    kept(tmp_path, old)
    answer = answered(MEMBERS.hospital(NAME, tmp_path), old)
    assert answer is not None
    assert "its time is over" in answer.reason


def test_a_hospital_that_joined_after_the_proposal_answers_for_itself(tmp_path: Path) -> None:
    late = Members.made(("st-luke",))
    hospital = late.hospital("st-luke", tmp_path)
    costs = hospital.consider(PROPOSAL, NOW)
    assert costs == MEMBERS.hospital(NAME, tmp_path).consider(PROPOSAL, NOW)


def test_a_second_proposal_of_one_run_is_not_looked_at(tmp_path: Path) -> None:
    agreements = kept(tmp_path)
    agreements.keep(PROPOSAL, NOW)
    with pytest.raises(RunError, match="must propose a run once"):
        agreements.keep(MEMBERS.proposal(replace(CONFIG, experiment={"rounds": 40})), NOW)
    assert agreements.knows(PROPOSAL.run_id) == PROPOSAL.hash()


def test_a_server_cannot_fill_the_disk_with_proposals(tmp_path: Path) -> None:
    agreements = RunAgreements(tmp_path)
    for number in range(MOST_A_DAY):
        agreements.keep(MEMBERS.proposal(run_id=f"{number:032x}"), NOW)
    more = MEMBERS.proposal(run_id="f" * 32)
    with pytest.raises(RunError, match="a day at most"):
        agreements.keep(more, NOW)
    agreements.keep(more, NOW + 25 * HOUR)


def check(agreements: RunAgreements, proposal: Proposal, consent: RunConsent, now: dt.datetime = NOW) -> int | None:
    return agreements.check_run(proposal.description, consent, now)


def test_a_run_is_held_to_the_terms_and_the_time_that_were_agreed(tmp_path: Path) -> None:
    agreements = kept(tmp_path)
    with pytest.raises(RunError, match="has not decided on run"):
        check(agreements, PROPOSAL, RunConsent.AUTOMATIC)
    answered(MEMBERS.hospital(NAME, tmp_path))
    for consent in RunConsent:
        assert check(agreements, PROPOSAL, consent) == PROPOSAL.until
        with pytest.raises(PolicyError, match="must keep the terms"):
            check(agreements, MEMBERS.proposal(replace(CONFIG, experiment={"rounds": 40})), consent)
        with pytest.raises(PolicyError, match="has ended"):
            check(agreements, PROPOSAL, consent, NOW + 2 * HOUR)
    # Members may change while a run goes on.
    others = Members.made((*MEMBERS.identities, "st-luke")).description()
    assert agreements.check_run(others, RunConsent.ASK, NOW) == PROPOSAL.until


def test_a_run_that_was_declined_is_refused(tmp_path: Path) -> None:
    agreements = kept(tmp_path)
    answered(MEMBERS.hospital(NAME, tmp_path, HospitalConfig(epsilon_budget=1.0)))
    with pytest.raises(PolicyError, match="has declined run"):
        check(agreements, PROPOSAL, RunConsent.AUTOMATIC)


def test_a_run_that_nobody_proposed_is_refused_by_an_operator_and_held_to_its_first_terms_by_policy(
    tmp_path: Path,
) -> None:
    agreements = RunAgreements(tmp_path)
    with pytest.raises(PolicyError, match="nobody has proposed this one"):
        check(agreements, PROPOSAL, RunConsent.ASK)
    assert check(agreements, PROPOSAL, RunConsent.AUTOMATIC) is None
    agreements.hold_to(PROPOSAL.description)
    with pytest.raises(PolicyError, match="must keep the terms"):
        check(agreements, MEMBERS.proposal(replace(CONFIG, experiment={"rounds": 40})), RunConsent.AUTOMATIC)


def test_a_proposal_that_an_earlier_release_kept_in_another_form_does_not_stand_in_the_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agreements = kept(tmp_path)
    earlier = json.loads(PROPOSAL.encode())
    earlier["description"]["run_id"] = "e" * 32
    del earlier["description"]["aggregation"]["most_void_rounds"]
    (tmp_path / PROPOSALS_FOLDER / f"{'e' * 32}.proposal").write_bytes(canonical_json(earlier))
    assert [each.proposal.run_id for each in agreements.all()] == [PROPOSAL.run_id]
    assert "the kept proposal of run eeeeeeeeeeee is left out" in caplog.text
    with pytest.raises(RunError, match="canonical form"):
        agreements.find("e" * 32)


def test_the_answer_is_kept_only_after_the_chain_has_it(tmp_path: Path) -> None:
    agreements, hospital = kept(tmp_path), MEMBERS.hospital(NAME, tmp_path)

    def fails(_body: object) -> None:
        raise LedgerError("the disk is full")

    record: Callable[[object], None] = fails
    with pytest.raises(LedgerError):
        hospital.agree(PROPOSAL, "policy", (), record)
    assert agreements.answer_to(PROPOSAL.run_id) is None


def test_a_new_state_folder_counts_the_ledger_of_this_machine_that_the_consortium_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "machine"))
    earlier, state = tmp_path / "earlier", tmp_path / "state"
    ledger = open_ledger(earlier, b"f" * 32, b"i" * 16, registry_folder())
    training = planned_bookings(PROPOSAL.description)[0]
    ledger.record("e" * 32, 1, training, BudgetPolicy.of(HospitalConfig(), training.account))
    hospital = MEMBERS.hospital(NAME, state)
    before = hospital.consider(PROPOSAL, NOW)[0].before
    stated = state_ledger(MEMBERS.identities[NAME], str(ledger.head()), 3.0, NOW)
    write_private(state / REMEMBERED_FILE, stated.encode())
    after = hospital.consider(PROPOSAL, NOW)[0].before
    assert before == 0 < after
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
    with pytest.raises(LedgerError):
        hospital.consider(PROPOSAL, NOW)
