"""Fetches what the server proposes, has it answered, and sends the answers: what the standing process does beside."""

import hashlib
import logging
import subprocess
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from client.agreement import RunAgreements
from client.enrolment import EnrolmentService, proof_of
from common.errors import EnrolmentError, RunError
from common.identity.certificates import HospitalIdentity
from common.identity.enrolment import AnswerRequest, ProposalNotice, ProposalRequest, StandingReply
from common.processes import python_module
from common.run.proposal import OPEN, Proposal

_LOG = logging.getLogger("confide.standing")


def _start(state: Path) -> None:
    done = subprocess.run(python_module("client.agreement", "--state", str(state)), check=False)
    if done.returncode:
        raise RunError("the proposals could not be answered; the reason stands above")


class Proposals:
    """One hospital's side of what is proposed.

    Args:
        state: the hospital's own folder.
        answer: answers what is new, by policy and ledger.
    """

    def __init__(self, state: Path, answer: Callable[[Path], None] = _start) -> None:
        self._state = state
        self._answer = answer
        self._agreements = RunAgreements(state)
        self._considered: set[str] = set()
        self._complaints: set[str] = set()

    def follow(
        self, stands: StandingReply, service: EnrolmentService, identity: HospitalIdentity, now: datetime
    ) -> None:
        """Fetch what is new, answer it, and send the answers that have not arrived.

        Raises:
            EnrolmentError: the server cannot be reached, or refuses an answer.
            RunError: what it proposes is not a proposal, or the answer could not be made.
        """
        opened = [notice for notice in stands.proposals if notice.state in OPEN]
        known = [notice for notice in opened if self._is_kept(notice, service, identity, now)]
        new = {notice.run_id for notice in known if self._agreements.answer_to(notice.run_id) is None}
        if new - self._considered:
            self._answer(self._state)
            self._considered |= new
            for run_id in sorted(new):
                self._say(run_id)
        for notice in known:
            answer = self._agreements.answer_to(notice.run_id)
            if answer is not None and not notice.answered:
                certificate, request = proof_of(identity)
                service.answer(AnswerRequest(certificate=certificate, request=request, answer=answer.encode()))
                _LOG.info("the server has this hospital's answer to run %s", notice.run_id[:12])

    def _is_kept(
        self, notice: ProposalNotice, service: EnrolmentService, identity: HospitalIdentity, now: datetime
    ) -> bool:
        kept = self._agreements.knows(notice.run_id)
        if kept == notice.digest:
            return True
        if kept is not None:
            self._complain(
                f"the server must propose a run once; it proposes run {notice.run_id[:12]} again with other terms, "
                "which are not looked at"
            )
            return False
        certificate, request = proof_of(identity)
        asked = ProposalRequest(certificate=certificate, request=request, run_id=notice.run_id)
        encoded = service.proposal(asked).proposal
        proposal = Proposal.decode(encoded)
        if proposal.run_id != notice.run_id or hashlib.sha256(encoded).hexdigest() != notice.digest:
            raise EnrolmentError("the server must send the proposal that it names, got another")
        try:
            self._agreements.keep(proposal, now)
        except RunError as error:
            self._complain(str(error))
            return False
        return True

    def _say(self, run_id: str) -> None:
        answer = self._agreements.answer_to(run_id)
        if answer is None:
            _LOG.warning(
                "run %s is proposed and waits for this hospital's operator: ./confide hospital runs", run_id[:12]
            )
        elif answer.agreed:
            _LOG.info("this hospital agrees to run %s, by its policy", run_id[:12])
        else:
            _LOG.warning("this hospital declines run %s, by its policy: %s", run_id[:12], answer.reason)

    def _complain(self, words: str) -> None:
        if words not in self._complaints:
            self._complaints.add(words)
            _LOG.warning("%s", words)
