"""``python -m client.standing --state DIR``: keeps a hospital's membership; brings proposals and finished runs.

A process of its own beside SuperNode and agent. It asks the enrolment service every few seconds; the agent reads the
lists from the hospital's disk, so that a server which withholds them is noticed when the revocation list grows old.
What is proposed comes the same way, and the hospital's answers go back by it.
"""

import datetime
import logging
import sys
import time
from pathlib import Path

import msgspec

from client.enrolment import EnrolmentService, ask_standing
from client.kept_runs import RunReceiver
from client.last_standing import STANDING_FILE, LastStanding, read_last_standing
from client.ledger.remembered import STATED_FILE
from client.proposals import Proposals
from common.config import load_config
from common.errors import ConfideError, EnrolmentError
from common.files import write_private
from common.identity.certificates import (
    HospitalIdentity,
    load_certificate,
    load_identity,
)
from common.identity.enrolment import ProposalNotice, StandingReply, same_protocol, spoken_by
from common.identity.members import KeptMembers
from common.identity.revocation import Revocations
from common.processes import run_service
from common.settings import HOSPITAL_SETTINGS_FILE, HospitalSettings
from common.telemetry.events import printable
from common.telemetry.logs import with_facts

_LOG = logging.getLogger("confide.standing")


def keep(state: Path) -> None:
    """Ask until this hospital is revoked.

    Raises:
        EnrolmentError: the authority has revoked this hospital, by its signed list.
    """
    settings = HospitalSettings.read(state / HOSPITAL_SETTINGS_FILE)
    if settings.enrolment_address is None:
        raise EnrolmentError("this hospital must have joined through an enrolment service")
    seconds = load_config(settings.config).enrolment.standing_seconds
    authority = load_certificate(state / "ca.pem")
    service = EnrolmentService(settings.enrolment_address, authority)
    revocations, members = Revocations(state, authority), KeptMembers(state, authority)
    proposals = Proposals(state)
    receiver, trouble = RunReceiver(state, authority, service), ""
    stated, refused = b"", ""
    last = read_last_standing(state)
    while True:
        identity = load_identity(state)
        try:
            stands = ask_standing(service, identity, state, revocations, members)
            now = datetime.datetime.now(datetime.UTC)
            last = _told(stands, last, now)
            proposals.follow(stands, service, identity, now)
        except ConfideError as error:
            if last.problem != str(error):
                _LOG.warning("%s", error)
            last = msgspec.structs.replace(last, problem=str(error))
        write_private(state / STANDING_FILE, msgspec.json.encode(last))
        newest = revocations.newest()
        if newest is not None and identity.certificate.serial_number in newest.revoked:
            raise EnrolmentError(
                f"{identity.name} has been revoked by the consortium's authority; it takes part in nothing any more; "
                "to join again, ask for a new invitation and use a new state folder"
            )
        if last.problem is None:
            stated, refused = _state_ledger(service, identity, state, stated, refused)
        trouble = _receive(receiver, identity, seconds, trouble) if last.problem is None else trouble
        time.sleep(seconds)


def _told(stands: StandingReply, before: LastStanding, now: datetime.datetime) -> LastStanding:
    """Return what the server says, and log what is new of it: another version, a run that begins or ends."""
    problem = same_protocol(stands)
    if problem is not None and before.protocol != stands.protocol:
        _LOG.error("%s", problem)
    runs = {notice.run_id: _standing_of(notice) for notice in stands.proposals}
    for run_id, standing in runs.items():
        if before.runs.get(run_id) != standing:
            _LOG.info("run %s is %s", run_id[:12], standing, extra=with_facts(run=run_id[:12], state=standing))
    return LastStanding(now.timestamp(), problem, stands.protocol, spoken_by(stands).oldest, stands.software, runs)


def _standing_of(notice: ProposalNotice) -> str:
    reason = printable(notice.reason)
    return notice.state + (f": {reason}" if reason and reason != notice.state else "")


def _state_ledger(
    service: EnrolmentService, identity: HospitalIdentity, state: Path, stated: bytes, refused: str
) -> tuple[bytes, str]:
    """Pass on what the agent has stated about its ledger since the last time; returns that, and what went wrong."""
    path = state / STATED_FILE
    statement = path.read_bytes() if path.exists() else b""
    if statement == stated:
        return stated, refused
    try:
        service.ledger(identity, statement)
    except ConfideError as error:
        if str(error) != refused:
            _LOG.warning("%s", error)
        return stated, str(error)
    return statement, ""


def _receive(receiver: RunReceiver, identity: HospitalIdentity, seconds: float, before: str) -> str:
    """Fetch finished runs for a while; returns what went wrong, which the log has once. Membership goes on without."""
    try:
        receiver.advance(identity, seconds)
    except (ConfideError, OSError) as error:
        problem = error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
        if problem != before:
            _LOG.warning("finished runs: %s", problem)
        return problem
    return ""


def main() -> int:
    """Keep asking until stopped, or until the hospital is revoked."""
    return run_service("client.standing", __doc__, keep)


if __name__ == "__main__":
    sys.exit(main())
