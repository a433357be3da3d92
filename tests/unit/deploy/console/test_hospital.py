"""A hospital's page shows its own side, names nobody, and answers a proposal once, signed and in its chain."""

import shutil
from pathlib import Path

import msgspec
import pytest

from client.agreement import RunAgreements
from client.last_standing import STANDING_FILE, LastStanding
from client.ledger.ledger import LEDGER_FOLDER, Ledger
from client.status import STATUS_FILE, HospitalStatus
from common.audit.chain import AUDIT_FILE, read_chain
from common.audit.entries import AnsweredProposal
from common.config import PrivacyUnit, replace
from common.files import write_private
from common.privacy.accounting import Accountant, MechanismEvent, MechanismKind
from common.privacy.budget import Account, Booking, BudgetPolicy
from deploy.console.hospital import HospitalSide
from tests.support import named_patients
from tests.support.console_browser import Browser, text_of
from tests.support.console_states import ASK, hospital_state
from tests.support.proposed_run import CONFIG, NOW, RUN_ID, Members

MEMBERS = Members.made()
NAME = "st-mary"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return hospital_state(tmp_path, MEMBERS, NAME)


def answers(state: Path) -> list[AnsweredProposal]:
    chain = read_chain((state / AUDIT_FILE).read_bytes(), AUDIT_FILE, MEMBERS.authority.certificate)
    return [entry.body for entry in chain.entries if isinstance(entry.body, AnsweredProposal)]


def test_the_overview_shows_what_waits_what_is_spent_and_what_is_whole(state: Path) -> None:
    ledger = Ledger.open(state / LEDGER_FOLDER, bytes(32))
    event = MechanismEvent(MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN, 4.0, 0.1, 10)
    ledger.record(
        "a1" * 16, 1, Booking(Account.TRAINING, event, PrivacyUnit.RECORD, None, 1e-4), BudgetPolicy(10.0, 1e-4),
        Accountant.RDP,
    )  # fmt: skip
    HospitalStatus(hospital=NAME, time=1.0, epsilon_spent=2.5, epsilon_budget=10.0).write(state / STATUS_FILE)
    standing = LastStanding(NOW.timestamp(), None, protocol=3, software="0.2.0", runs={RUN_ID: "proposed"})
    write_private(state / STANDING_FILE, msgspec.json.encode(standing))
    shown = text_of(Browser(HospitalSide(state)).open())
    assert f"run {RUN_ID[:12]} is proposed and waits for your answer" in shown
    assert "training: ε 2.50 of 10" in shown
    assert "server protocol version 3 (Confide 0.2.0)" in shown
    assert f"privacy ledger whole, head {ledger.head()}" in shown
    assert "audit chain none yet" in shown
    assert "no model yet" in shown


def test_a_ledger_that_is_not_in_order_is_called_so(state: Path) -> None:
    Ledger.open(state / LEDGER_FOLDER, bytes(32))
    (file,) = (state / LEDGER_FOLDER).glob("*.sqlite*")
    file.write_bytes(file.read_bytes()[:-100])
    assert "privacy ledger NOT IN ORDER" in text_of(Browser(HospitalSide(state)).open())


def test_a_run_is_approved_by_hand_with_its_cost_before_ones_eyes(state: Path) -> None:
    browser = Browser(HospitalSide(state))
    browser.open()
    page = text_of(browser.at(f"runs/{RUN_ID}"))
    assert "costs training: ε 0.000 spent" in page
    assert "An answer is given once" in page
    followed = browser.press(f"runs/{RUN_ID}", "approve")
    assert f"this hospital agrees to run {RUN_ID[:12]}" in text_of(followed)
    assert "<form" not in followed.text
    (entry,) = answers(state)
    assert (entry.agreed, entry.by) == (True, "operator")
    kept = RunAgreements(state).answer_to(RUN_ID)
    assert kept is not None
    kept.verify(MEMBERS.identities[NAME].key.public_key())
    assert "whole: 2 lines, signed by st-mary" in text_of(browser.at())


def test_a_run_is_declined_with_a_reason_and_then_not_approved(state: Path) -> None:
    browser = Browser(HospitalSide(state))
    browser.open()
    followed = browser.press(f"runs/{RUN_ID}", "decline", words="not before <May>")
    assert "declined, by operator: not before <May>" in text_of(followed)
    assert "<May>" not in followed.text
    sent = browser.send(f"runs/{RUN_ID}/approve", {"token": browser.gate.form_token})
    assert sent.status_code == 409
    assert "a hospital answers once" in text_of(sent)
    (entry,) = answers(state)
    assert (entry.agreed, entry.reason) == (False, "not before <May>")


def test_two_presses_give_one_answer(state: Path) -> None:
    browser = Browser(HospitalSide(state))
    browser.open()
    fields = {"token": browser.gate.form_token}
    assert browser.send(f"runs/{RUN_ID}/approve", fields).status_code == 303
    assert browser.send(f"runs/{RUN_ID}/approve", fields).status_code == 409
    assert len(answers(state)) == 1


def test_what_the_policy_forbids_is_said_and_cannot_be_approved(state: Path) -> None:
    strict = replace(CONFIG, hospital={**ASK.model_dump(), "epsilon_budget": 1.0})
    write_private(state / "config.yaml", strict.as_yaml())
    browser = Browser(HospitalSide(state))
    browser.open()
    assert "not possible" in text_of(browser.at(f"runs/{RUN_ID}"))
    sent = browser.send(f"runs/{RUN_ID}/approve", {"token": browser.gate.form_token})
    assert sent.status_code == 409
    assert "its budget is 1" in text_of(sent)
    assert RunAgreements(state).answer_to(RUN_ID) is None


def test_no_page_names_a_patient_a_path_or_a_key(state: Path) -> None:
    browser = Browser(HospitalSide(state))
    pages = [browser.open(), browser.at(f"runs/{RUN_ID}"), browser.press(f"runs/{RUN_ID}", "approve"), browser.at()]
    shutil.rmtree(state / "proposals")
    pages.append(browser.at(f"runs/{RUN_ID}"))
    assert pages[-1].status_code == 409
    for page in pages:
        assert not named_patients.is_named_in(page.content)
        assert "PRIVATE KEY" not in page.text
        assert str(state.parent) not in page.text
