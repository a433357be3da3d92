"""The demo proposes its run and approves it: in each hospital's name it gives the answer that its policy gives.

Where a policy leaves the decision to an operator (``hospital.runs: ask``), the demo is that operator. What a policy or
a budget forbids stays forbidden. Proposal, answers and chains are those of a real consortium; what is missing is the
service that carries them from machine to machine.
"""

import contextlib
import datetime
from collections.abc import Sequence

from client.agreement import Hospital, RunAgreements
from common.audit.chain import AUDIT_FILE, AuditChain
from common.audit.parties import Writer
from common.errors import RunError
from common.identity.certificates import certificate_pem, load_certificate
from common.run.proposal import Proposal, RunAnswer, RunState
from common.run.terms import describe
from common.settings import SERVER_SETTINGS_FILE, ServerSettings
from deploy.demo.consortium import Member
from deploy.demo.loopback import LoopbackDeployment
from server.members.roster import Membership
from server.run_queue import RunProposal, RunQueue

_DAYS = 365.0
"""A demo that was stopped can go on within a year."""


def propose_and_approve(deployment: LoopbackDeployment, parameters: int) -> None:
    """Enter the demo's run, and the answers of all its hospitals.

    Args:
        deployment: with its keys, and each hospital's policy as it states its data.
        parameters: of the model.

    Raises:
        RunError: a hospital declines; the message has its reason.
        LedgerError, AuditError: a hospital's records are not in order.
    """
    state, now = deployment.consortium.server_state, datetime.datetime.now(datetime.UTC)
    settings = ServerSettings.read(state / SERVER_SETTINGS_FILE)
    members = Membership(state).all_members(load_certificate(state / "ca.pem"), now)
    description = describe(
        deployment.config, deployment.run_id, settings.classes, settings.channels, members.roster, parameters,
        members.member_list,
    )  # fmt: skip
    until = int((now + datetime.timedelta(days=_DAYS)).timestamp())
    queue = RunQueue(state)
    queue.propose(
        RunProposal(deployment.config, description, settings.data_set, tuple(sorted(members.roster)), until), now
    )
    _answer(queue, deployment.run_id, deployment.members, now)
    queue.settle(now)
    run = queue.get(deployment.run_id)
    if run.state is not RunState.AGREED:
        raise RunError(f"each hospital must agree to the run; {run.reason}")


def _answer(queue: RunQueue, run_id: str, members: Sequence[Member], now: datetime.datetime) -> None:
    proposal = queue.proposal(run_id)
    if proposal is None:
        raise RunError("the run must have been proposed before it is answered")
    for member in members:
        hospital = Hospital.read(member.state)
        RunAgreements(member.state).keep(proposal, now)
        answer = _answer_of(hospital, proposal, now)
        queue.take_answer(answer, certificate_pem(hospital.identity.certificate))


def _answer_of(hospital: Hospital, proposal: Proposal, now: datetime.datetime) -> RunAnswer:
    writer = Writer(hospital.identity.certificate, hospital.identity.key)
    with contextlib.closing(AuditChain(hospital.state / AUDIT_FILE, writer)) as chain:
        answer = hospital.answer_by_policy(proposal, now, chain.append)
        if answer is not None:
            return answer
        return hospital.agree(proposal, "operator", hospital.consider(proposal, now), chain.append)
