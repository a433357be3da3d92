"""``confide hospital runs``, ``approve`` and ``decline``: what is proposed to this hospital, and its operator's answer.

An answer is given once. It is in the hospital's audit chain before the server gets it, and depends on the proposal, on
this hospital's policy and ledger and on its operator: the images are not opened.
"""

import contextlib
import datetime
from collections.abc import Iterator
from pathlib import Path

import click

from client.agreement import DECLINED, Hospital, KeptProposal, RunAgreements
from client.planned_cost import PlannedCost
from common.audit.chain import AUDIT_FILE, AuditChain, Record
from common.audit.parties import Writer
from common.errors import ConfideError, PolicyError
from common.privacy.accounting import rounded_up
from common.run.proposal import Proposal, RunAnswer
from common.run.terms import claims_of
from deploy.command import command, state_option
from deploy.terminal import Fact, fact_lines

REASON = "its operator decided so"
"""What the consortium's operator reads where a hospital's gives no reason."""

_STATE = Path("hospital-state")
_DIGITS = 12


@command(
    "runs",
    "Show the runs that the server has proposed: what is trained, what it would leave of each budget, and what this "
    "hospital has answered. The exit code is 1 while one waits for its operator.",
    "./confide hospital runs --state /srv/confide",
)
@state_option("hospital", _STATE)
def runs(state: Path) -> int:
    """Print each proposal; returns 1 when one waits."""
    hospital, now = Hospital.read(state), datetime.datetime.now(datetime.UTC)
    kept = RunAgreements(state).all()
    if not kept:
        print("nothing is proposed")
    for each in kept:
        print("\n".join(fact_lines(told(each, hospital, now))))
    return int(any(each.answer is None for each in kept))


@command(
    "approve",
    "Agree to a run that is proposed. What this hospital's policy or budget forbids cannot be approved.\n\nRUN is the "
    "beginning of its identifier, as ./confide hospital runs shows it.",
    "./confide hospital approve 0123456789ab --state /srv/confide",
)
@click.argument("run")
@state_option("hospital", _STATE)
def approve(run: str, state: Path) -> int:
    """Agree to a run; returns 0."""
    print(approve_run(state, run))
    return 0


def approve_run(state: Path, run: str) -> str:
    """Agree to a run, as this hospital's operator; returns what is so then.

    Raises:
        PolicyError: no such proposal waits, or the policy forbids it.
        PrivacyError: it would pass a budget.
    """
    hospital, proposal = Hospital.read(state), _waiting(state, run)
    costs = hospital.consider(proposal, datetime.datetime.now(datetime.UTC))
    with _recording(state, hospital) as record:
        answer = hospital.agree(proposal, "operator", costs, record)
    return f"this hospital {'agrees to' if answer.agreed else 'has declined'} run {proposal.run_id[:_DIGITS]}"


@command(
    "decline",
    "Decline a run that is proposed. The reason is sent to the server.\n\nRUN is the beginning of its identifier, as "
    "./confide hospital runs shows it.",
    './confide hospital decline 0123456789ab --reason "not before May"',
)
@click.argument("run")
@state_option("hospital", _STATE)
@click.option("--reason", default=REASON, metavar="WORDS", help="For the consortium's operator.")
def decline(run: str, state: Path, reason: str) -> int:
    """Decline a run; returns 0."""
    print(decline_run(state, run, reason))
    return 0


def decline_run(state: Path, run: str, reason: str) -> str:
    """Decline a run, as this hospital's operator, with words for the consortium's; returns what is so then.

    Raises:
        PolicyError: no such proposal waits.
    """
    hospital, proposal = Hospital.read(state), _waiting(state, run)
    with _recording(state, hospital) as record:
        answer = hospital.decline(proposal, "operator", DECLINED, reason, record)
    return f"this hospital {'has agreed to' if answer.agreed else 'declines'} run {proposal.run_id[:_DIGITS]}"


def told(kept: KeptProposal, hospital: Hospital, now: datetime.datetime) -> Iterator[Fact]:
    """Return a proposal in words and figures, with what it would leave of this hospital's budgets."""
    proposal, description = kept.proposal, kept.proposal.description
    yield Fact("run", f"{proposal.run_id[:_DIGITS]}: {_decision(kept)}")
    yield Fact(
        "trains",
        f"{description.model.name} for the task {description.experiment.task}, "
        f"{description.experiment.rounds} rounds, on {proposal.data_set}",
    )
    yield Fact("must be there", f"{', '.join(proposal.hospitals)}; until {_time(proposal.until)}")
    yield Fact("privacy", f"mode {description.privacy.mode}")
    for claim in claims_of(description):
        yield Fact("", str(claim))
    if kept.answer is not None:
        return
    try:
        for place, cost in enumerate(hospital.consider(proposal, now)):
            yield Fact("" if place else "costs", _cost(cost))
    except ConfideError as error:
        yield Fact("not possible", str(error))


def _decision(kept: KeptProposal) -> str:
    if kept.answer is None:
        return "waits for you: ./confide hospital approve, or decline"
    return decided(kept.answer)


def decided(answer: RunAnswer) -> str:
    """Say what this hospital has answered, by whom and why."""
    return f"{'agreed' if answer.agreed else 'declined'}, by {answer.by}" + (f": {answer.reason}" * bool(answer.reason))


def _cost(cost: PlannedCost) -> str:
    return (
        f"{cost.account}: ε {rounded_up(cost.before):.3f} spent, {rounded_up(cost.after):.3f} after the run, budget "
        f"{cost.budget:g}"
    )


def _waiting(state: Path, run: str) -> Proposal:
    found = [kept for kept in RunAgreements(state).all() if run and kept.proposal.run_id.startswith(run)]
    if len(found) != 1:
        raise PolicyError(
            f"a run must be named by the beginning of its identifier; {len(found)} proposals are called {run!r}; see "
            "`confide hospital runs`"
        )
    if found[0].answer is not None:
        raise PolicyError(f"a hospital answers once; run {run} was {_decision(found[0])}")
    return found[0].proposal


@contextlib.contextmanager
def _recording(state: Path, hospital: Hospital) -> Iterator[Record]:
    chain = AuditChain(state / AUDIT_FILE, Writer(hospital.identity.certificate, hospital.identity.key))
    with contextlib.closing(chain):
        yield chain.append


def _time(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC"
