"""``confide hospital console``: a hospital's operator sees what is proposed, spent and kept in a browser, and answers.

It reads what ``hospital status``, ``hospital runs`` and ``hospital model`` read, by the same functions, and answers as
``hospital approve`` and ``decline`` do. It shows no image, no path of one, and no identifier of a patient.
"""

import datetime
from collections.abc import Iterator
from pathlib import Path

import click

from client.agreement import Hospital, KeptProposal, RunAgreements
from client.kept_runs import ReceivedRun, folder_of, kept_runs, refused_runs
from client.last_standing import read_last_standing
from client.ledger.ledger import verify
from client.ledger.place import held_line, ledger_folder
from common.audit.chain import AUDIT_FILE
from common.errors import LedgerError, RunError
from common.identity.certificates import load_certificate
from deploy.command import command, state_option
from deploy.console.chains import Chains, verify_run
from deploy.console.pages import Action, Cell, Facts, Page, RowsTable
from deploy.console.serving import serve_pages
from deploy.hospital.model import shown_time, verified
from deploy.hospital.runs import REASON, approve_run, decided, decline_run, told
from deploy.hospital.status import facts_of, problems_of
from deploy.terminal import Fact

PORT = 8503

_DIGITS = 12


@command(
    "console",
    "Show what is proposed to this hospital, what its data has spent, and the models it keeps in a browser, and "
    "approve or decline runs. The page is for this machine alone; the link that is printed opens it once.",
    "./confide hospital console --state /srv/confide",
)
@state_option("hospital", Path("hospital-state"))
@click.option("--port", type=int, default=PORT, metavar="PORT", help="On loopback only.")
def main(state: Path, port: int) -> int:
    """Serve the page until it is interrupted."""
    serve_pages(HospitalSide(state), port)
    return 0


class HospitalSide:
    """The pages of a hospital's operator; see :class:`deploy.console.pages.Side`.

    Args:
        state: the hospital's state folder.

    Raises:
        IdentityError: no hospital has joined there.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._chains = Chains(load_certificate(state / "ca.pem"))
        self._verdicts: dict[str, str] = {}

    def overview(self, now: datetime.datetime) -> Page:
        """Return the first page."""
        proposals, standings = RunAgreements(self._state).all(), read_last_standing(self._state).runs
        waiting = [kept.proposal.run_id for kept in proposals if kept.answer is None]
        return Page(
            title=f"Hospital {Hospital.read(self._state).identity.name}",
            problems=(
                *(f"run {run_id[:_DIGITS]} is proposed and waits for your answer" for run_id in waiting),
                *problems_of(self._state, now),
            ),
            parts=(
                RowsTable(
                    "Runs",
                    ("run", "task", "model", "rounds", "this hospital", "at the server"),
                    tuple(_row(kept, standings.get(kept.proposal.run_id)) for kept in reversed(proposals)),
                    "nothing is proposed",
                ),
                Facts("Standing and privacy", tuple(fact for fact in facts_of(self._state) if fact.label != "run")),
                Facts("Records", tuple(self._records())),
                RowsTable(
                    "Models of finished runs",
                    ("run", "task", "steps", "received", "verified against this hospital's own chain"),
                    tuple(map(_model, kept_runs(self._state))),
                    "no model yet: one comes when a run that this hospital took part in has finished",
                ),
            ),
        )

    def run(self, run_id: str, now: datetime.datetime) -> Page:
        """Return one run's page."""
        kept = self._kept(run_id)
        facts = list(told(kept, Hospital.read(self._state), now, whole=True))
        if (verdict := self._verdicts.get(kept.proposal.run_id)) is not None:
            facts.append(Fact("audit verify", verdict))
        actions = []
        if kept.answer is None:
            actions += [
                Action("approve", "Approve", "Agree to this run. An answer is given once and is signed."),
                Action(
                    "decline", "Decline", "Decline this run. An answer is given once and is signed.",
                    "Reason, which is sent to the consortium",
                ),
            ]  # fmt: skip
        if folder_of(self._state, kept.proposal.run_id).exists():
            actions.append(
                Action("verify", "Verify", "Check the model that is kept here against this hospital's own chain.")
            )
        return Page(
            title=f"Run {kept.proposal.run_id[:_DIGITS]}",
            problems=(),
            parts=(Facts("What is proposed", tuple(facts)),),
            actions=tuple(actions),
        )

    def act(self, run_id: str, action: str, words: str) -> str:
        """Do what a button says."""
        kept = self._kept(run_id)
        match action:
            case "approve":
                return approve_run(self._state, kept.proposal.run_id)
            case "decline":
                return decline_run(self._state, kept.proposal.run_id, words or REASON)
            case "verify":
                verdict = verify_run(folder_of(self._state, kept.proposal.run_id))
                self._verdicts[kept.proposal.run_id] = verdict
                return verdict
            case _:
                raise RunError("a run can be approved, declined or verified here")

    def _kept(self, run_id: str) -> KeptProposal:
        found = [kept for kept in RunAgreements(self._state).all() if kept.proposal.run_id == run_id]
        if not found:
            raise RunError("this hospital must have been asked about the run; see the overview")
        return found[0]

    def _records(self) -> Iterator[Fact]:
        """Return whether what this hospital has written down is whole."""
        yield Fact("audit chain", self._chains.words(self._state / AUDIT_FILE))
        try:
            folder = ledger_folder(self._state)
            words = f"whole, head {verify(folder, held_line(self._state))}" if folder.exists() else "none yet"
        except LedgerError as error:
            words = f"NOT IN ORDER: {error}"
        yield Fact("privacy ledger", words)
        for run_id, refused in refused_runs(self._state).items():
            yield Fact("refused model", f"{run_id[:_DIGITS]}: {refused.reason}")


def _row(kept: KeptProposal, standing: str | None) -> tuple[Cell, ...]:
    proposal, description = kept.proposal, kept.proposal.description
    return (
        Cell(proposal.run_id[:_DIGITS], proposal.run_id), Cell(description.experiment.task),
        Cell(description.model.name), Cell(str(description.experiment.rounds)),
        Cell("waits for your answer" if kept.answer is None else decided(kept.answer)), Cell(standing or "–"),
    )  # fmt: skip


def _model(received: ReceivedRun) -> tuple[Cell, ...]:
    words = (
        received.run_id[:_DIGITS],
        received.task,
        str(received.steps),
        shown_time(received.time),
        verified(received),
    )
    return tuple(map(Cell, words))
