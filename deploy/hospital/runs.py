"""``confide hospital runs``, ``approve`` and ``decline``: what is proposed to this hospital, and its operator's answer.

An answer is given once. It is in the hospital's audit chain before the server gets it, and depends on the proposal, on
this hospital's policy and ledger and on its operator: the images are not opened.
"""

import contextlib
import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from client.agreement import DECLINED, Hospital, KeptProposal, RunAgreements
from client.planned_cost import PlannedCost
from common.audit.chain import AUDIT_FILE, AuditChain, Record
from common.audit.parties import Writer
from common.config import RunDescription
from common.errors import ConfideError, PolicyError
from common.privacy.accounting import rounded_up
from common.run.proposal import Proposal, RunAnswer
from common.run.terms import claims_of
from common.run.words import RELATION
from common.task import Counts, TaskConfig
from common.telemetry.events import printable
from deploy.command import command, state_option
from deploy.terminal import Fact, fact_lines

REASON = "its operator decided so"
"""What the consortium's operator reads where a hospital's gives no reason."""

_STATE = Path("hospital-state")
_DIGITS = 12
_LONGEST_NAME = 40
_LAST_LATIN = "\u017e"
"""The end of the letters that the languages of Europe add to the Latin alphabet."""
_MOST_NAMES = 8
"""The names that a row shows; ``--all`` shows the others too, each in full."""


@command(
    "runs",
    "Show the runs that the server has proposed: what is trained, what it would leave of each budget, and what this "
    "hospital has answered. The exit code is 1 while one waits for its operator.",
    "./confide hospital runs --state /srv/confide",
)
@state_option("hospital", _STATE)
@click.option("--all", "whole", is_flag=True, help="Show long lists and names of the label map in full.")
def runs(state: Path, whole: bool) -> int:
    """Print each proposal; returns 1 when one waits."""
    hospital, now = Hospital.read(state), datetime.datetime.now(datetime.UTC)
    kept = RunAgreements(state).all()
    if not kept:
        print("nothing is proposed")
    for each in kept:
        print("\n".join(fact_lines(told(each, hospital, now, whole=whole), whole_words=False)))
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


def told(kept: KeptProposal, hospital: Hospital, now: datetime.datetime, *, whole: bool = False) -> Iterator[Fact]:
    """Return a proposal in words and figures, with what it would leave of this hospital's budgets.

    The server chose most of these words: each line is printable. ``whole`` shortens nothing.
    """
    proposal, description = kept.proposal, kept.proposal.description
    yield _fact("run", f"{proposal.run_id[:_DIGITS]}: {_decision(kept)}")
    yield _fact(
        "trains",
        f"{description.model.name} for the task {description.experiment.task}, {description.experiment.rounds} rounds, "
        f"on {_name(proposal.data_set, whole)}",
    )
    yield from _learnt(description.task, whole)
    yield from _model(description)
    yield _fact("must be there", f"{', '.join(proposal.hospitals)}; until {_time(proposal.until)}")
    yield _fact("privacy", f"mode {description.privacy.mode}")
    for claim in claims_of(description):
        yield _fact("", str(claim))
    if kept.answer is not None:
        return
    try:
        costs = hospital.consider(proposal, now)
        for cost in costs:
            yield _fact("costs", _cost(cost))
        if costs:
            yield _fact("", f"at this hospital's own δ and unit ({RELATION})")
    except ConfideError as error:
        yield _fact("not possible", str(error))


def _learnt(task: TaskConfig, whole: bool) -> Iterator[Fact]:
    """Return what is learnt, and what a hospital's labels are taken for: the task's name is free text."""
    yield _fact("kind of task", task.kind)
    yield _fact("classes", _names(task.classes, whole))
    if task.positive:
        yield _fact("positive", _names(task.positive, whole))
    spellings: dict[str, list[str]] = {}
    for written, meaning in task.labels.items():
        spellings.setdefault(meaning, []).append(written)
    first = "label map"
    for meaning, spelt in spellings.items():
        side = f"is {_name(meaning, whole)}" if meaning else "is nothing of this task"
        yield _fact(first, f"{_names(spelt, whole)} {side}")
        first = ""
    if not spellings:
        yield _fact(first, "none: labels are the classes' names or places")
    yield _fact("uncertain", f"labels are {_counted(task.uncertain)}")
    yield _fact("empty", f"labels are {_counted(task.empty)}")
    yield _fact("images", f"{task.images.replace('_', ' ')}")


def _model(description: RunDescription) -> Iterator[Fact]:
    model, training = description.model, description.training
    copies = f", {training.copies} copies of each warped as {training.warp}" if training.copies > 1 else ""
    yield _fact(
        "model",
        f"{model.name}, images of {model.image_size} x {model.image_size} pixels, {description.channels} channels"
        f"{copies}",
    )
    if model.backbone:
        yield _fact("backbone", f"{model.backbone}, {model.features} features, pixels {model.pixels}")
    if model.sha256:
        yield _fact("SHA-256", model.sha256)


def _counted(counts: Counts) -> str:
    return {
        Counts.REFUSE: "refused until somebody has decided",
        Counts.LEAVE_OUT: "left out",
    }.get(counts, f"taken for {counts}")


def _names(names: Sequence[str], whole: bool) -> str:
    shown = [_name(name, whole) for name in (names if whole else names[:_MOST_NAMES])]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more (--all)" if rest else "")


def _name(name: str, whole: bool) -> str:
    """Return a name in quotation marks, in which two names that differ look different.

    No name passes for words of this page. What is no letter of the Latin alphabet and not plain ASCII stands as its
    number, since many such letters look like Latin ones, and others take no room, or two columns.
    """
    shown = ""
    for letter in name if whole else name[:_LONGEST_NAME]:
        if letter in '"\\':
            shown += f"\\{letter}"
        elif letter.isprintable() and (letter.isascii() or (letter.isalpha() and letter <= _LAST_LATIN)):
            shown += letter
        else:
            shown += letter.encode("unicode_escape").decode()
    more = "" if whole or len(name) <= _LONGEST_NAME else f"… ({len(name)} letters)"
    return f'"{shown}{more}"'


def _fact(head: str, words: str) -> Fact:
    """Return a fact without anything that a terminal takes for a command: the server chose most of the words."""
    return Fact(head, printable(words))


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
