"""The demo's run is proposed and agreed to like any other, and by the demo itself."""

from pathlib import Path

import pytest

from client.agreement import RunAgreements
from common.audit.chain import AUDIT_FILE, read_chain
from common.audit.entries import AnsweredProposal
from common.config import Config, RunConsent, load_config, replace
from common.errors import RunError
from common.files import write_private
from common.identity.certificates import load_certificate
from common.run.proposal import RunState, terms_hash
from common.settings import HOSPITAL_SETTINGS_FILE, HospitalSettings
from deploy.datasets.datasets import DataSet
from deploy.demo.agreement import propose_and_approve
from deploy.demo.loopback import LoopbackDeployment
from server.run import new_run_id
from server.run_queue import RunQueue

PARAMETERS = 1000
CONFIG = replace(
    Config(), experiment={"num_clients": 3, "rounds": 4}, privacy={"accountant": "rdp", "target_epsilon": 3.0}
)


@pytest.fixture
def deployment(tmp_path: Path) -> LoopbackDeployment:
    made = LoopbackDeployment(CONFIG, tmp_path / "run", new_run_id())
    made.set_up(DataSet("phantom", "phantom", "pneumonia", ("normal", "pneumonia"), 1, 28, {}))
    return made


def decide(deployment: LoopbackDeployment, name: str, **policy: object) -> None:
    state = next(member.state for member in deployment.members if member.name == name)
    own = HospitalSettings.read(state / HOSPITAL_SETTINGS_FILE).config
    write_private(own, replace(load_config(own), hospital=policy).as_yaml())


def test_each_hospital_agrees_by_its_policy_and_the_demo_decides_where_one_is_asked(
    deployment: LoopbackDeployment,
) -> None:
    decide(deployment, "hospital-2", runs=RunConsent.ASK)
    propose_and_approve(deployment, PARAMETERS)
    queue = RunQueue(deployment.consortium.server_state)
    assert queue.get(deployment.run_id).state is RunState.AGREED
    answers = queue.answers(deployment.run_id)
    assert {name: (each.agreed, each.by) for name, each in answers.items()} == {
        "hospital-1": (True, "policy"), "hospital-2": (True, "operator"), "hospital-3": (True, "policy"),
    }  # fmt: skip
    authority = load_certificate(deployment.consortium.server_state / "ca.pem")
    proposal = queue.proposal(deployment.run_id)
    assert proposal is not None
    for member in deployment.members:
        chain = read_chain((member.state / AUDIT_FILE).read_bytes(), member.name, authority)
        (entry,) = (each.body for each in chain.entries if isinstance(each.body, AnsweredProposal))
        assert (entry.agreed, entry.terms) == (True, terms_hash(proposal.description))
        assert RunAgreements(member.state).answer_to(deployment.run_id) == answers[member.name]


def test_the_server_takes_up_the_run_that_was_agreed_to(deployment: LoopbackDeployment) -> None:
    propose_and_approve(deployment, PARAMETERS)
    queue = RunQueue(deployment.consortium.server_state)
    run = queue.adopt(deployment.run_id, "phantom", ("normal", "pneumonia"), 1)
    assert (run.state, run.hospitals) == (RunState.AGREED, ("hospital-1", "hospital-2", "hospital-3"))
    assert queue.agreed(deployment.run_id) == frozenset(run.hospitals)


def test_a_run_that_would_pass_a_budget_begins_nothing(deployment: LoopbackDeployment) -> None:
    decide(deployment, "hospital-3", epsilon_budget=1.0)
    with pytest.raises(RunError, match=r"each hospital must agree to the run; hospital-3: all 4 rounds would .* is 1;"):
        propose_and_approve(deployment, PARAMETERS)
    assert RunQueue(deployment.consortium.server_state).get(deployment.run_id).state is RunState.DECLINED
