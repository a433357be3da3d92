"""``confide console``: the consortium's operator sees members, invitations and runs in a browser, and starts or stops.

It reads what ``status``, ``run list`` and ``run show`` read, by the same functions. What it changes, it asks of the
running server through its socket, as the commands do. Invitations are not made here: their lines are secrets.
"""

import datetime
import threading
from collections.abc import Iterator
from pathlib import Path

import click

from common.audit.chain import AUDIT_FILE
from common.errors import ConfigError, RunError
from common.identity.certificates import load_certificate
from common.run.guarantee import shown_epsilon
from common.run.proposal import RunState
from deploy.command import command, state_option
from deploy.console.chains import Chains, verify_run
from deploy.console.pages import Action, Cell, Facts, Page, RowsTable
from deploy.console.serving import serve_pages
from deploy.consortium.runs import agreed, standing, told
from deploy.consortium.status import (
    MemberStanding,
    invited,
    largest_epsilon,
    members_of,
    problems_of,
    progress_of,
    server_facts,
    shown_time,
)
from deploy.terminal import Fact
from server.members.roster import Membership
from server.operator_socket import ChangeRun, Operator, RunView, ShowRuns, ask_server
from server.run_queue import FOLDER_DIGITS, RunQueue

PORT = 8502

_NOT_RUNNING = "the server does not run on this state folder, so nothing can be changed: start `confide server`"
_VERIFY = "verify"
_BEFORE_ITS_END = frozenset({RunState.PROPOSED.value, RunState.AGREED.value, RunState.RUNNING.value})
_ENDED_FOR_NOW = frozenset({RunState.STOPPED.value, RunState.FAILED.value})


@command(
    "console",
    "Show members, invitations, runs, privacy and audit chains in a browser, and start, stop or resume runs. The page "
    "is for this machine alone; the link that is printed opens it once.",
    "./confide console --state /srv/consortium",
)
@state_option("server")
@click.option("--port", type=int, default=PORT, metavar="PORT", help="On loopback only.")
def main(state: Path, port: int) -> int:
    """Serve the page until it is interrupted."""
    serve_pages(ConsortiumSide(state), port)
    return 0


class ConsortiumSide:
    """The pages of a server's operator; see :class:`deploy.console.pages.Side`.

    Args:
        state: the server's state folder.

    Raises:
        IdentityError: no server has been made there.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._queue = RunQueue(state)
        self._chains = Chains(load_certificate(state / "ca.pem"))
        self._verdicts: dict[str, str] = {}
        self._verifying = threading.Lock()

    def overview(self, now: datetime.datetime) -> Page:
        """Return the first page."""
        views, problems = self._runs()
        return Page(
            title="Consortium",
            problems=(*problems, *problems_of(self._state, now)),
            parts=(
                RowsTable(
                    "Runs",
                    ("run", "identifier", "state", "rounds", "task", "model", "agreed", "largest ε", "server's chain"),
                    tuple(map(self._row, reversed(views))),
                    "no run has been proposed",
                    "./confide run propose proposes one",
                ),
                RowsTable(
                    "Members",
                    ("hospital", "state", "versions", "certificate until", "ε spent on training (PRV), as stated last"),
                    tuple(map(_member, members_of(self._state))),
                    "nobody has joined",
                ),
                RowsTable(
                    "Open invitations",
                    ("for", "until"),
                    tuple(
                        (Cell(invited(each)), Cell(shown_time(each.expires)))
                        for each in Membership(self._state).open_invitations(now)
                    ),
                    "none",
                    "./confide invite makes one; its line is a secret and is not shown here",
                ),
                Facts("Server", tuple(server_facts(self._state))),
            ),
        )

    def run(self, run_id: str, now: datetime.datetime) -> Page:  # noqa: ARG002 - as Side
        """Return one run's page."""
        views, problems = self._runs(run_id)
        (view,) = views
        folder = self._queue.folder(view.run_id)
        facts = [*told(view), *(Fact("so far", words) for words in progress_of(folder))]
        facts.append(Fact("server's chain", self._chains.words(folder / AUDIT_FILE)))
        if (verdict := self._verdicts.get(view.run_id)) is not None:
            facts.append(Fact("audit verify", verdict))
        return Page(
            title=f"Run {view.number}, {view.run_id[:FOLDER_DIGITS]}",
            problems=problems,
            parts=(Facts("What was proposed, and what hospitals answered", tuple(facts)),),
            actions=tuple(_actions(view, running=not problems, audited=(folder / AUDIT_FILE).exists())),
        )

    def act(self, run_id: str, action: str, words: str) -> str:  # noqa: ARG002 - as Side
        """Do what a button says."""
        if action == _VERIFY:
            return self._verify(run_id)
        if action not in {"start", "stop", "resume"}:
            raise RunError("a run can be started, stopped, resumed or verified here")
        (view,) = ask_server(self._state, ChangeRun(run_id, action))
        return f"run {view.number} {standing(view)}"

    def _verify(self, run_id: str) -> str:
        run = self._queue.find(run_id)
        with self._verifying:
            verdict = verify_run(self._queue.folder(run.run_id))
        self._verdicts[run.run_id] = verdict
        return f"run {run.number}: {verdict}"

    def _runs(self, run_id: str | None = None) -> tuple[tuple[RunView, ...], tuple[str, ...]]:
        """Return all runs, or one, as the server answers; from its files where it does not run.

        Raises:
            RunError: there is no such run.
        """
        try:
            return ask_server(self._state, ShowRuns(run_id)), ()
        except ConfigError:
            reply = Operator(self._state).answer(ShowRuns(run_id), datetime.datetime.now(datetime.UTC))
            if reply.error is not None:
                raise RunError(reply.error) from None
            return reply.runs, (_NOT_RUNNING,)

    def _row(self, view: RunView) -> tuple[Cell, ...]:
        folder = self._queue.folder(view.run_id)
        epsilon = largest_epsilon(folder)
        because = f": {view.reason}" if view.reason and view.reason != view.state else ""
        return (
            Cell(str(view.number), view.run_id), Cell(view.run_id[:FOLDER_DIGITS]), Cell(f"{view.state}{because}"),
            Cell(f"{view.done} of {view.rounds}"), Cell(view.task), Cell(view.model), Cell(agreed(view)),
            Cell("–" if epsilon is None else shown_epsilon(epsilon)), Cell(self._chains.words(folder / AUDIT_FILE)),
        )  # fmt: skip


def _member(member: MemberStanding) -> tuple[Cell, ...]:
    state = "cut off" if member.is_cut_off else "left out: its ledger says less" if member.has_less else "member"
    spent = "–" if member.spent is None else shown_epsilon(member.spent)
    return tuple(map(Cell, (member.name, state, member.versions, shown_time(member.certificate_until), spent)))


def _actions(view: RunView, *, running: bool, audited: bool) -> Iterator[Action]:
    if running and view.state == RunState.AGREED and view.held:
        yield Action("start", "Start", "Let the run begin when its turn comes. All that it names have agreed.")
    if running and view.state in _BEFORE_ITS_END and not view.stopping:
        yield Action("stop", "Stop", "End the run after its round, or take it from the queue. It can go on later.")
    if running and (view.state in _ENDED_FOR_NOW or view.stopping):
        yield Action("resume", "Resume", "Let the run go on with its own configuration, when its turn comes.")
    if audited:
        yield Action(_VERIFY, "Verify", "Check that chains, figures and model agree, as ./confide audit verify does.")
