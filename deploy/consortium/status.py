"""``confide status``: how a consortium's server stands, from what lies in its state folder."""

import datetime
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.config import PROTOCOL_VERSION
from common.errors import EnrolmentError
from common.identity.certificates import fingerprint, load_certificate, read_certificate, who_holds_the_key
from common.identity.invitation import join_host_port
from common.identity.revocation import Revocations
from common.provenance import confide_version, speaks
from common.run.guarantee import shown_epsilon
from common.run.proposal import RunState
from common.settings import READY_FILE, SERVER_SETTINGS_FILE, ServerSettings
from common.telemetry.events import (
    EVENTS_FILE,
    Compared,
    Event,
    EventFile,
    HospitalLost,
    HospitalOnline,
    Refusal,
    RoundDone,
    RunFinished,
    RunStarted,
)
from deploy.command import command, state_option
from deploy.terminal import Fact, fact_lines
from server.members.ledgers import RememberedLedgers
from server.members.roster import Membership, OpenInvitation
from server.members.tls import TLS_CERTIFICATE_FILE
from server.run_queue import FOLDER_DIGITS, KeptRun, RunQueue

EXIT_NOT_IN_ORDER = 1


@command(
    "status",
    "Show how a consortium's server stands: members with their versions and certificates, open invitations, and runs "
    "with their rounds, privacy and refusals. The exit code is 1 when something needs a person.",
    "./confide status --state /srv/consortium",
)
@state_option("server")
def main(state: Path) -> int:
    """Print one line a fact; ends with 1 when something needs a person."""
    now = datetime.datetime.now(datetime.UTC)
    problems = tuple(problems_of(state, now))
    for line in fact_lines((*facts_of(state, now), *(Fact("needs you", problem) for problem in problems))):
        print(line)
    return EXIT_NOT_IN_ORDER if problems else 0


def facts_of(state: Path, now: datetime.datetime) -> Iterator[Fact]:
    """Return everything that is in order, as it is printed."""
    yield from server_facts(state)
    for member in members_of(state):
        yield Fact("member", f"{member.name}: {'; '.join(member.standing())}")
    for invitation in Membership(state).open_invitations(now):
        yield Fact("invitation", f"for {invited(invitation)}, until {shown_time(invitation.expires)}")
    queue = RunQueue(state)
    for run in queue.all():
        yield from _run(queue, run)


def server_facts(state: Path) -> Iterator[Fact]:
    """Return what is so of the server itself."""
    settings, root = ServerSettings.read(state / SERVER_SETTINGS_FILE), load_certificate(state / "ca.pem")
    running = "hospitals can connect" if (state / READY_FILE).exists() else "not running"
    yield Fact("server", f"{join_host_port(settings.hosts[0], settings.enrolment_port)}: {running}")
    yield Fact("speaks", speaks(PROTOCOL_VERSION, confide_version()))
    yield Fact("authority", fingerprint(root))
    yield Fact("", who_holds_the_key(root))
    if (state / TLS_CERTIFICATE_FILE).exists():
        ends = load_certificate(state / TLS_CERTIFICATE_FILE).not_valid_after_utc
        yield Fact("certificate", f"until {shown_time(ends)}")
    newest = Revocations(state, root).newest()
    if newest is not None:
        yield Fact("revocations", f"list {newest.number}, good until {shown_time(newest.next_update)}")


@dataclass(frozen=True)
class MemberStanding:
    """How one member stands."""

    name: str
    versions: str
    """In words, as it said last."""
    certificate_until: datetime.datetime
    is_cut_off: bool
    spent: float | None
    """The ε spent on training in all runs, by the PRV accountant, as it stated last.

    None where it has stated nothing, or the statement is lost.
    """
    has_less: bool
    """It came back with a ledger that says less than before."""

    def standing(self) -> Iterator[str]:
        """Return what is so of it, a part of a sentence each."""
        yield self.versions
        yield f"certificate until {shown_time(self.certificate_until)}"
        if self.spent is not None:
            yield f"ε {shown_epsilon(self.spent)} spent on training in all runs, by the PRV accountant"
        if self.has_less:
            yield "left out, because its ledger says less than before"
        if self.is_cut_off:
            yield "cut off"


def members_of(state: Path) -> Iterator[MemberStanding]:
    """Return how each member stands, by name."""
    membership, ledgers = Membership(state), RememberedLedgers(state, load_certificate(state / "ca.pem"))
    versions = membership.versions.all()
    for name, certificate in sorted(membership.roster().items()):
        spoken = versions.get(name)
        yield MemberStanding(
            name=name,
            versions="has not said which version it speaks"
            if spoken is None
            else speaks(spoken.protocol, spoken.software),
            certificate_until=read_certificate(certificate.encode()).not_valid_after_utc,
            is_cut_off=membership.is_cut_off(name),
            spent=_spent(ledgers, name),
            has_less=ledgers.is_less(name),
        )


def _spent(ledgers: RememberedLedgers, name: str) -> float | None:
    try:
        statement = ledgers.of(name)
    except EnrolmentError:
        return None
    return None if statement is None else statement.epsilon


def invited(invitation: OpenInvitation) -> str:
    """Say whom an invitation is for."""
    return f"{invitation.left} more hospitals {invitation.name}-…" if invitation.group else invitation.name


def _run(queue: RunQueue, run: KeptRun) -> Iterator[Fact]:
    because = f": {run.reason}" if run.reason and run.reason != run.state else ""
    yield Fact("run", f"{run.number} ({run.run_id[:FOLDER_DIGITS]}) is {run.state}{because}")
    for words in progress_of(queue.folder(run.run_id)):
        yield Fact("", words)


def progress_of(folder: Path) -> Iterator[str]:
    """Return how far a run is, what it has cost at most, and who refused how often, from its events."""
    events = EventFile(folder / EVENTS_FILE).read_new()
    if (last := _last_round(events)) is not None:
        spent = _largest(last, events)
        is_private = math.isfinite(spent)
        largest = f"; largest ε {shown_epsilon(spent)}{_counted_by(events)} (zero-out, at each one's δ)"
        epsilon = largest if is_private else ""
        yield f"{last.step} rounds done, the last with {last.hospitals} hospitals{epsilon}"
    yield from _away(events)
    refused = Counter((event.hospital, event.code) for event in events if isinstance(event, Refusal))
    for (hospital, code), count in sorted(refused.items()):
        yield f"{hospital} refused {count} {'time' if count == 1 else 'times'}: {code}"


def _away(events: Sequence[Event]) -> Iterator[str]:
    """Return who is away from a run that has not ended, and whether they left or failed."""
    gone: dict[str, str] = {}
    for event in events:
        match event:
            case HospitalLost():
                gone[event.hospital] = event.why
            case HospitalOnline():
                gone.pop(event.hospital, None)
            case RunStarted() | RunFinished():  # Whoever is there is told anew.
                gone.clear()
            case _:
                pass
    for hospital, why in sorted(gone.items()):
        yield f"{hospital} {why}"


def largest_epsilon(folder: Path) -> float | None:
    """Return the largest ε that a hospital has spent after a run's last round; None before one, and without privacy."""
    events = EventFile(folder / EVENTS_FILE).read_new()
    last = _last_round(events)
    spent = math.nan if last is None else _largest(last, events)
    return spent if math.isfinite(spent) else None


def _largest(last: RoundDone, events: Sequence[Event]) -> float:
    """Return the largest ε of training, with what hospitals' own models cost where the run has compared them."""
    compared = (spent for event in events if isinstance(event, Compared) for spent in event.epsilon_spent.values())
    return max((last.epsilon, *compared))


def _counted_by(events: Sequence[Event]) -> str:
    """Return the words for a run's accountant; members' statements go by PRV, so that the two figures can differ."""
    started = next((event for event in events if isinstance(event, RunStarted)), None)
    return "" if started is None else f" by the {started.config.privacy.accountant.upper()} accountant"


def _last_round(events: Sequence[Event]) -> RoundDone | None:
    return next((event for event in reversed(events) if isinstance(event, RoundDone)), None)


def problems_of(state: Path, now: datetime.datetime) -> Iterator[str]:
    """Return what needs a person."""
    if (state / TLS_CERTIFICATE_FILE).exists():
        ends = load_certificate(state / TLS_CERTIFICATE_FILE).not_valid_after_utc
        if now > ends:
            yield "the server's certificate has expired; sign what waits in the folder requests"
    newest = Revocations(state, load_certificate(state / "ca.pem")).newest()
    if newest is not None and now > newest.next_update:
        yield "the revocation list has ended, so hospitals take part in nothing: `confide ca revoke` signs the next"
    for name in sorted(Membership(state).versions.strangers()):
        yield f"{name} speaks another version of the protocol and takes part in no run; upgrade the older side"
    for run in RunQueue(state).all():
        if run.state is RunState.FAILED:
            yield f"run {run.number} has failed; correct what stands above, then `confide run resume {run.number}`"


def shown_time(when: datetime.datetime) -> str:
    """Return a time for a person."""
    return f"{when:%Y-%m-%d %H:%M} UTC"
