from client.status import HospitalStatus
from common.config import HospitalConfig
from deploy.hospital.status import data_and_privacy
from deploy.terminal import fact_lines

POLICY = HospitalConfig(stated_training_units=1100, stated_test_units=150)
STATUS = HospitalStatus(
    hospital="st-mary",
    time=1.0,
    epsilon_spent=2.0,
    epsilon_budget=10.0,
    evaluation_epsilon_spent={"validation": 0.75, "test": 1.0},
    evaluation_epsilon_budget=4.0,
    notes=("hospital.stated_test_units states 150 records, 148 are there",),
)


def test_an_operator_reads_what_the_hospital_states_and_has_spent_and_every_note() -> None:
    lines = list(fact_lines(data_and_privacy(STATUS, POLICY)))
    assert all(len(line) <= 80 for line in lines)
    shown = " ".join(" ".join(lines).split())
    assert "1100 records to train on" in shown
    assert "150 test" in shown
    assert "training: ε 2.00 of 10 at δ=0.0001 for each record (zero-out" in shown
    assert "validation: ε 0.75 of 4" in shown
    assert "test: ε 1.00 of 4" in shown
    assert "150 records, 148 are there" in shown


def test_before_the_agents_first_word_only_the_statement_is_shown() -> None:
    (fact,) = data_and_privacy(None, POLICY)
    assert fact.label == "states"
