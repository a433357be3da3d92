"""The server's part of the audit: its chain records what it refuses, and the events that it reports."""

from collections.abc import Callable

from common.audit.chain import Record
from common.audit.entries import Refused, Told
from common.telemetry.events import AttackRefused, Event, Refusal, RoundDone, RunFinished
from server.events import EventLog


def recording_refusals(report: Callable[[Event], None], record: Record, run_id: str) -> Callable[[Event], None]:
    """Return a ``report`` that also records refusals in the audit chain, before it passes them on."""

    def tell(event: Event) -> None:
        if isinstance(event, Refusal | AttackRefused):
            reason = event.reason[:1000] if isinstance(event, Refusal) else ""
            record(
                Refused(
                    run_id=run_id, round_number=event.round, hospital=event.hospital, code=event.code, reason=reason
                )
            )
        report(event)

    return tell


def recording_events(events: EventLog, record: Record, run_id: str) -> Callable[[Event], None]:
    """Return a ``report`` that appends to ``events``.

    With each step's figures, and with the run's end, the audit chain gets the hash of all that is reported, first.
    """

    def tell(event: Event) -> None:
        if isinstance(event, RoundDone | RunFinished):
            length_bytes, digest = events.with_line(event)
            record(Told(run_id=run_id, length_bytes=length_bytes, events_hash=digest))
        events.append(event)

    return tell
