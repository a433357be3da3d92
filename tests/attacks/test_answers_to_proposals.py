"""What a hospital answers to a proposal depends on the proposal, its policy, its bookings and its operator alone.

The twins' idea (``tests/support/twins.py``): two hospitals with one identity and one policy, whose data differ in every
record, hear the same proposals. All that leaves them is compared byte by byte. The data of one of them cannot be read
at all: an answer that opened it would fail.
"""

import random
from pathlib import Path

import pytest

from client.agreement import Hospital, RunAgreements, answer_all
from client.ledger.ledger import LEDGER_FOLDER, Ledger
from client.planned_cost import planned_bookings
from common.audit.chain import AUDIT_FILE, read_chain
from common.audit.entries import AnsweredProposal
from common.config import Config, HospitalConfig, RunConsent, replace
from common.errors import ConfideError
from common.files import write_private
from common.identity.certificates import certificate_pem, private_key_pem
from common.privacy.budget import BudgetPolicy
from common.run.proposal import Proposal
from common.settings import HOSPITAL_SETTINGS_FILE, HospitalSettings
from tests.support.proposed_run import CONFIG, NOW, Members

MEMBERS = Members.made()
NAME = "st-mary"
PROPOSALS = 24


def a_hospital(state: Path, policy: HospitalConfig, fingerprint: bytes, spent: Proposal | None) -> Path:
    """Make a hospital whose images are another's: its ledger is bound to them, and knows what was spent on them."""
    identity = MEMBERS.identities[NAME]
    write_private(state / "identity.pem", certificate_pem(identity.certificate))
    write_private(state / "identity.key", private_key_pem(identity.key))
    write_private(state / "config.yaml", Config(hospital=policy).as_yaml())
    HospitalSettings(
        fleet_address="localhost:1", logs=state, data=state / "no such folder", config=state / "config.yaml"
    ).write(state / HOSPITAL_SETTINGS_FILE)
    ledger = Ledger.open(state / LEDGER_FOLDER, fingerprint)
    for booking in () if spent is None else planned_bookings(spent.description):
        ledger.record("e" * 32, 1, booking, BudgetPolicy.of(HospitalConfig(epsilon_budget=100.0), booking.account))
    return state


def a_proposal(choose: random.Random, number: int) -> Proposal:
    config = replace(
        CONFIG,
        experiment={"rounds": choose.choice([1, 3, 8])},
        privacy={
            "target_epsilon": choose.choice([0.5, 3.0, 9.0, 50.0]),
            "mode": choose.choice(["local", "local", "distributed"]),
        },
        training={"local_epochs": choose.choice([1, 30])},
        evaluation={"target_epsilon": choose.choice([0.5, 5.0])},
    )
    return MEMBERS.proposal(config, f"{number:032x}", hours=choose.choice([1.0, 1.0, 1.0, -1.0]))


def told(state: Path, run_id: str) -> tuple[bytes | None, list[dict[str, object]]]:
    """Return what leaves a hospital: its answer, and, when a run is verified, what its chain says of it."""
    answer = RunAgreements(state).answer_to(run_id)
    chain = read_chain((state / AUDIT_FILE).read_bytes(), AUDIT_FILE, MEMBERS.authority.certificate)
    bodies = [entry.body.model_dump() for entry in chain.entries if isinstance(entry.body, AnsweredProposal)]
    return None if answer is None else answer.encode(), bodies


@pytest.mark.parametrize("seed", range(4))
def test_hospitals_with_other_data_give_the_same_answers_byte_by_byte(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.agreement.die_with_parent", lambda: None)
    choose = random.Random(seed)  # noqa: S311 - of the test's choices
    consent = choose.choice(list(RunConsent))
    policy = HospitalConfig(runs=consent, epsilon_budget=choose.choice([4.0, 12.0]), max_local_epochs=20)
    spent = choose.choice([None, MEMBERS.proposal()])
    twins = [a_hospital(tmp_path / name, policy, name[:1].encode() * 32, spent) for name in ("one", "two")]
    agreed = declined = waiting = 0
    for number in range(PROPOSALS):
        proposal = a_proposal(choose, number)
        by_hand = choose.choice([None, True, False])
        for state in twins:
            RunAgreements(state).keep(proposal, NOW)
            answer_all(state)
            decide(Hospital.read(state), proposal, by_hand)
        first, second = (told(state, proposal.run_id) for state in twins)
        assert first == second
        answer = RunAgreements(twins[0]).answer_to(proposal.run_id)
        agreed += answer is not None and answer.agreed
        declined += answer is not None and not answer.agreed
        waiting += answer is None
    assert agreed
    assert declined
    assert bool(waiting) == (consent is RunConsent.ASK)


def decide(hospital: Hospital, proposal: Proposal, by_hand: bool | None) -> None:
    chain = MEMBERS.chain(NAME, hospital.state)
    try:
        if RunAgreements(hospital.state).answer_to(proposal.run_id) is not None or by_hand is None:
            return
        if by_hand:
            hospital.agree(proposal, "operator", hospital.consider(proposal, NOW), chain.append)
        else:
            hospital.decline(proposal, "operator", "declined", "not now", chain.append)
    except ConfideError:
        return
    finally:
        chain.close()


def test_an_answer_that_depended_on_the_data_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.agreement.die_with_parent", lambda: None)
    monkeypatch.setattr("client.agreement.booked_by", lambda state, _registry: spent_by_images(state))
    twins = [a_hospital(tmp_path / name, HospitalConfig(), name[:1].encode() * 32, None) for name in ("one", "two")]
    proposal = MEMBERS.proposal()
    for state in twins:
        RunAgreements(state).keep(proposal, NOW)
        answer_all(state)
    first, second = (told(state, proposal.run_id) for state in twins)
    assert first != second


def spent_by_images(state: Path) -> object:
    """Be a defect: count as spent what depends on the data."""
    return planned_bookings(MEMBERS.proposal().description) if state.name == "one" else ()
