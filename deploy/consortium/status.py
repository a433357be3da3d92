"""``confide status``: how a consortium's server stands, from what lies in its state folder."""

import datetime
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from common.config import PROTOCOL_VERSION
from common.identity.certificates import fingerprint, load_certificate, who_holds_the_key
from common.identity.invitation import join_host_port
from common.identity.revocation import Revocations
from common.provenance import confide_version, speaks
from common.run.guarantee import shown_epsilon
from common.run.proposal import RunState
from common.settings import READY_FILE, SERVER_SETTINGS_FILE, ServerSettings
from common.telemetry.events import EVENTS_FILE, EventFile, Refusal, RoundDone
from deploy.command import command, state_option
from server.members.roster import Membership
from server.members.tls import TLS_CERTIFICATE_FILE
from server.run_queue import FOLDER_DIGITS, KeptRun, RunQueue

EXIT_NOT_IN_ORDER = 1


@command(
    "status",
    "Show how a consortium's server stands: members with their versions, certificates, and runs with their rounds, "
    "privacy and refusals. The exit code is 1 when something needs a person.",
    "./confide status --state /srv/consortium",
)
@state_option("server")
def main(state: Path) -> int:
    """Print one line a fact; ends with 1 when something needs a person."""
    now = datetime.datetime.now(datetime.UTC)
    for line in _server(state):
        print(line)
    for line in _members(state):
        print(line)
    queue = RunQueue(state)
    for run in queue.all():
        for line in _run(queue, run):
            print(line)
    problems = tuple(_problems(state, queue, now))
    for problem in problems:
        print(f"needs you       {problem}")
    return EXIT_NOT_IN_ORDER if problems else 0


def _server(state: Path) -> Iterator[str]:
    settings, root = ServerSettings.read(state / SERVER_SETTINGS_FILE), load_certificate(state / "ca.pem")
    running = "hospitals can connect" if (state / READY_FILE).exists() else "not running"
    yield f"server          {join_host_port(settings.hosts[0], settings.enrolment_port)}: {running}"
    yield f"speaks          {speaks(PROTOCOL_VERSION, confide_version())}"
    yield f"authority       {fingerprint(root)}"
    yield f"                {who_holds_the_key(root)}"
    if (state / TLS_CERTIFICATE_FILE).exists():
        yield f"certificate     until {_time(load_certificate(state / TLS_CERTIFICATE_FILE).not_valid_after_utc)}"
    newest = Revocations(state, root).newest()
    if newest is not None:
        yield f"revocations     list {newest.number}, good until {_time(newest.next_update)}"


def _members(state: Path) -> Iterator[str]:
    membership = Membership(state)
    versions = membership.versions.all()
    for name in sorted(membership.roster()):
        spoken = versions.get(name)
        said = "has not said which version it speaks" if spoken is None else speaks(spoken.protocol, spoken.software)
        cut_off = "; cut off" if membership.is_cut_off(name) else ""
        yield f"member          {name}: {said}{cut_off}"


def _run(queue: RunQueue, run: KeptRun) -> Iterator[str]:
    because = f": {run.reason}" if run.reason and run.reason != run.state else ""
    yield f"run             {run.number} ({run.run_id[:FOLDER_DIGITS]}) is {run.state}{because}"
    events = EventFile(queue.folder(run.run_id) / EVENTS_FILE).read_new()
    done = [event for event in events if isinstance(event, RoundDone)]
    if done:
        last = done[-1]
        epsilon = (
            f"; largest ε {shown_epsilon(last.epsilon)} (zero-out, at each one's δ)"
            if math.isfinite(last.epsilon)
            else ""
        )
        yield f"                {last.step} rounds done, the last with {last.hospitals} hospitals{epsilon}"
    refused = Counter((event.hospital, event.code) for event in events if isinstance(event, Refusal))
    for (hospital, code), count in sorted(refused.items()):
        yield f"                {hospital} refused {count} times: {code}"


def _problems(state: Path, queue: RunQueue, now: datetime.datetime) -> Iterator[str]:
    if (state / TLS_CERTIFICATE_FILE).exists():
        ends = load_certificate(state / TLS_CERTIFICATE_FILE).not_valid_after_utc
        if now > ends:
            yield "the server's certificate has expired; sign what waits in the folder requests"
    newest = Revocations(state, load_certificate(state / "ca.pem")).newest()
    if newest is not None and now > newest.next_update:
        yield "the revocation list has ended, so hospitals take part in nothing: `confide ca revoke` signs the next"
    for name in sorted(Membership(state).versions.strangers()):
        yield f"{name} speaks another version of the protocol and takes part in no run; upgrade the older side"
    for run in queue.all():
        if run.state is RunState.FAILED:
            yield f"run {run.number} has failed; correct what stands above, then `confide run resume {run.number}`"


def _time(when: datetime.datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC"
