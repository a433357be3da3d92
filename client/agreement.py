"""``python -m client.agreement --state DIR``: answers what the server proposes, and holds runs to what was agreed.

Rules, in the order they are applied:

1. A proposal is answered once. Another proposal with the same run's identifier is not looked at.
2. What policy and ledger refuse is declined by itself, whoever decides: the operator cannot approve it either, and
   changes the policy first.
3. With ``hospital.runs: automatic`` the rest is agreed to, up to ``hospital.automatic_epsilon`` for one run. With
   ``ask``, or beyond that, it waits for ``confide hospital approve`` or ``decline``.
4. The answer is signed, and in the audit chain before it is sent.
5. The agent takes part in a run of the agreed terms, until the agreed time, and in no other under that identifier.

**What an answer depends on.** The proposal, the policy, what the ledger was asked to book before, and the operator's
decision. The data is not opened. An operator who looks at images before deciding reveals with the answer what they saw:
that is theirs to know.

It is a process of its own, started for what is new: the accountants take PyTorch, which need not stay in memory.
"""

import datetime
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from client.ledger.place import booked_by, registry_folder
from client.planned_cost import PlannedCost, check_whole_run
from client.policy import check_agreement
from common.audit.chain import AUDIT_FILE, AuditChain, Record
from common.audit.entries import AnsweredProposal
from common.audit.parties import Writer
from common.config import HospitalConfig, RunConsent, RunDescription, load_config
from common.errors import AuditError, ConfideError, LedgerError, PolicyError, RunError
from common.files import locked, write_private
from common.identity.certificates import HospitalIdentity, certificate_pem, load_identity
from common.privacy.accounting import rounded_up
from common.privacy.budget import Account
from common.processes import die_with_parent, run_service
from common.run.proposal import LONGEST_REASON, AnsweredEpsilon, Proposal, RunAnswer, terms_hash
from common.settings import HOSPITAL_SETTINGS_FILE, HospitalSettings

PROPOSALS_FOLDER = "proposals"
"""The name of the folder in a hospital's state folder."""

MOST_A_DAY = 64
"""The most new proposals that are kept in a day, so that a server cannot fill this hospital's disk."""

DECLINED = "declined"
"""The code of an operator's decision against a run."""

_DAY_SECONDS = 24 * 3600
_VERSION = 1
"""The version of the record of the terms that a run is held to."""

_LOG = logging.getLogger(__name__)


class _AgreedTerms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What this hospital takes part in under one run's identifier."""

    terms: str
    until: int | None
    """Unix seconds; None where nobody has set an end."""
    version: Annotated[int, msgspec.Meta(ge=_VERSION, le=_VERSION)] = _VERSION


@dataclass(frozen=True)
class KeptProposal:
    """A proposal that this hospital has got, and its answer; None while it has not decided."""

    proposal: Proposal
    answer: RunAnswer | None


class RunAgreements:
    """What was proposed to this hospital and what it has answered, as files in its state folder."""

    def __init__(self, state: Path) -> None:
        self._folder = state / PROPOSALS_FOLDER

    def keep(self, proposal: Proposal, now: datetime.datetime) -> None:
        """Keep a proposal that is new.

        Raises:
            RunError: another one has the same run's identifier, or too many came within a day.
        """
        with locked(self._folder):
            path = self._path(proposal.run_id, "proposal")
            if path.exists():
                if path.read_bytes() != proposal.encode():
                    raise RunError(
                        f"the server must propose a run once; it proposes run {proposal.run_id[:12]} again with other "
                        "terms, which are not looked at"
                    )
                return
            recent = [each for each in self._folder.glob("*.proposal") if _age(each, now) < _DAY_SECONDS]
            if len(recent) >= MOST_A_DAY:
                raise RunError(f"a hospital looks at {MOST_A_DAY} proposals a day at most; the next one waits")
            write_private(path, proposal.encode())

    def knows(self, run_id: str) -> str | None:
        """Return the hash of the proposal that is kept under a run's identifier, None where there is none."""
        kept = self.find(run_id)
        return None if kept is None else kept.proposal.hash()

    def find(self, run_id: str) -> KeptProposal | None:
        """Return what is kept under a run's identifier, None where nothing is."""
        path = self._path(run_id, "proposal")
        if not path.exists():
            return None
        return KeptProposal(Proposal.decode(path.read_bytes()), self.answer_to(run_id))

    def all(self) -> tuple[KeptProposal, ...]:
        """Return everything that is kept and that this release can read, the oldest first.

        An earlier release may have kept proposals of runs that have long ended in another form. They must not stand in
        the way of today's.
        """
        paths = sorted(self._folder.glob("*.proposal"), key=lambda path: (path.stat().st_mtime, path.name))
        return tuple(kept for path in paths if (kept := self._readable(path.stem)) is not None)

    def _readable(self, run_id: str) -> KeptProposal | None:
        try:
            return self.find(run_id)
        except RunError as error:
            _LOG.warning("the kept proposal of run %s is left out: %s", run_id[:12], error)
            return None

    def answer_to(self, run_id: str) -> RunAnswer | None:
        """Return this hospital's answer, None while it has given none."""
        path = self._path(run_id, "answer")
        return RunAnswer.decode(path.read_bytes()) if path.exists() else None

    def answer_once(self, proposal: Proposal, answer: RunAnswer, record: Record) -> RunAnswer:
        """Enter an answer into the chain and keep it, if there is none yet; returns the one that counts."""
        with locked(self._folder):
            before = self.answer_to(proposal.run_id)
            if before is not None:
                return before
            record(
                AnsweredProposal(
                    run_id=answer.run_id,
                    proposal=answer.proposal,
                    terms=terms_hash(proposal.description),
                    agreed=answer.agreed,
                    by=answer.by,
                    code=answer.code,
                    reason=answer.reason,
                )
            )
            write_private(self._path(proposal.run_id, "answer"), answer.encode())
            return answer

    def check_run(self, description: RunDescription, consent: RunConsent, now: datetime.datetime) -> int | None:
        """Refuse a run that this hospital has not agreed to, or that is not the one it has agreed to.

        A run that nobody has proposed, as where hospitals are enrolled without a service, is held to the terms of its
        first description, if policy alone decides here.

        Returns:
            When the agreement ends, in Unix seconds; None where nobody has set an end.

        Raises:
            PolicyError: says which of these it is, and what to do.
            RunError: nobody has decided yet.
        """
        run_id, terms = description.run_id, terms_hash(description)
        kept, agreed = self.find(run_id), self._agreed_terms(run_id)
        if kept is not None:
            _check_answer(kept)
            agreed = _AgreedTerms(terms_hash(kept.proposal.description), kept.proposal.until)
        elif consent is RunConsent.ASK and agreed is None:
            raise PolicyError(
                "this hospital's operator decides on each run, and nobody has proposed this one; the consortium "
                "proposes it with `confide run propose`"
            )
        if agreed is not None and agreed.terms != terms:
            raise PolicyError(
                f"run {run_id[:12]} must keep the terms that this hospital has agreed to, got others; a changed run is "
                "another one, to be proposed anew"
            )
        until = None if agreed is None else agreed.until
        check_time(run_id, until, now)
        return until

    def hold_to(self, description: RunDescription) -> None:
        """Take part under a run's identifier in a run of these terms alone, from now on."""
        path = self._path(description.run_id, "terms")
        if not path.exists():
            write_private(path, msgspec.json.encode(_AgreedTerms(terms_hash(description), None)))

    def _agreed_terms(self, run_id: str) -> _AgreedTerms | None:
        path = self._path(run_id, "terms")
        try:
            return msgspec.json.decode(path.read_bytes(), type=_AgreedTerms)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            raise PolicyError(f"this hospital's record of run {run_id[:12]} cannot be read") from None

    def _path(self, run_id: str, kind: str) -> Path:
        return self._folder / f"{run_id}.{kind}"


def check_time(run_id: str, until: int | None, now: datetime.datetime) -> None:
    """Raise :class:`PolicyError` once an agreement's time is over."""
    if until is not None and now.timestamp() > until:
        raise PolicyError(f"this hospital's agreement to run {run_id[:12]} has ended; propose another run")


def _check_answer(kept: KeptProposal) -> None:
    run = kept.proposal.run_id[:12]
    if kept.answer is None:
        raise RunError(f"this hospital has not decided on run {run} yet; its operator, or its policy, does so first")
    if not kept.answer.agreed:
        raise PolicyError(f"this hospital has declined run {run}")


@dataclass(frozen=True)
class Hospital:
    """Who answers, and by what.

    Attributes:
        state: the hospital's own folder.
        identity: its key signs the answer.
        policy: the section ``hospital`` of its own configuration.
    """

    state: Path
    identity: HospitalIdentity
    policy: HospitalConfig

    @classmethod
    def read(cls, state: Path) -> "Hospital":
        """Return the hospital of a state folder."""
        settings = HospitalSettings.read(state / HOSPITAL_SETTINGS_FILE)
        return cls(state, load_identity(state), load_config(settings.config).hospital)

    def consider(self, proposal: Proposal, now: datetime.datetime) -> tuple[PlannedCost, ...]:
        """Return what a proposed run would cost, or refuse what policy or ledger do not allow.

        Raises:
            PolicyError: the policy forbids it, or the time to answer is over.
            PrivacyError: it would pass a budget, or promises less than the policy wants; a ledger that was tampered
                with is a :class:`~common.errors.LedgerError`.
        """
        if now.timestamp() > proposal.until:
            raise PolicyError("a proposal must be answered before it ends; its time is over")
        check_agreement(self.policy, self._with_itself(proposal.description), self.identity)
        return check_whole_run(self.policy, proposal.description, booked_by(self.state, registry_folder()))

    def _with_itself(self, description: RunDescription) -> RunDescription:
        """Return a description as it will be once this hospital is in it, which may have joined after the proposal.

        Who else is on the roster is checked when the run begins, and each time that it changes.
        """
        name = self.identity.name
        if name in description.roster:
            return description
        own = certificate_pem(self.identity.certificate).decode()
        return description.model_copy(update={"roster": {**description.roster, name: own}})

    def agree(
        self, proposal: Proposal, by: Literal["policy", "operator"], costs: tuple[PlannedCost, ...], record: Record
    ) -> RunAnswer:
        """Answer yes, once; returns the answer that counts."""
        left = {cost.account.value: AnsweredEpsilon(after=rounded_up(cost.after), budget=cost.budget) for cost in costs}
        answer = RunAnswer(
            run_id=proposal.run_id, proposal=proposal.hash(), hospital=self.identity.name, agreed=True, by=by,
            epsilon=left,
        )  # fmt: skip
        return self._answer(proposal, answer, record)

    def decline(
        self, proposal: Proposal, by: Literal["policy", "operator"], code: str, reason: str, record: Record
    ) -> RunAnswer:
        """Answer no, once, with words that leave this hospital; returns the answer that counts."""
        answer = RunAnswer(
            run_id=proposal.run_id, proposal=proposal.hash(), hospital=self.identity.name, agreed=False, by=by,
            code=code, reason=reason[:LONGEST_REASON],
        )  # fmt: skip
        return self._answer(proposal, answer, record)

    def answer_by_policy(self, proposal: Proposal, now: datetime.datetime, record: Record) -> RunAnswer | None:
        """Answer as policy and ledger say; None where the operator decides.

        Raises:
            LedgerError, AuditError: the hospital's records are not in order, so that nothing is answered.
        """
        try:
            costs = self.consider(proposal, now)
        except (LedgerError, AuditError):
            raise  # Its operator puts them right; until then there is no answer.
        except ConfideError as error:
            return self.decline(proposal, "policy", error.code, str(error), record)
        takes = sum(cost.after - cost.before for cost in costs if cost.account is Account.TRAINING)
        if self.policy.consent_to(takes) is RunConsent.ASK:
            return None
        return self.agree(proposal, "policy", costs, record)

    def _answer(self, proposal: Proposal, answer: RunAnswer, record: Record) -> RunAnswer:
        return RunAgreements(self.state).answer_once(proposal, answer.signed(self.identity.key), record)


def unanswered(state: Path) -> Iterator[Proposal]:
    """Return the proposals that this hospital has not answered."""
    return (kept.proposal for kept in RunAgreements(state).all() if kept.answer is None)


def answer_all(state: Path) -> None:
    """Answer what policy and ledger can."""
    die_with_parent()
    hospital = Hospital.read(state)
    chain = AuditChain(state / AUDIT_FILE, Writer(hospital.identity.certificate, hospital.identity.key))
    try:
        for proposal in unanswered(state):
            hospital.answer_by_policy(proposal, datetime.datetime.now(datetime.UTC), chain.append)
    finally:
        chain.close()


def _age(path: Path, now: datetime.datetime) -> float:
    return now.timestamp() - path.stat().st_mtime


if __name__ == "__main__":
    sys.exit(run_service("client.agreement", __doc__, answer_all))
