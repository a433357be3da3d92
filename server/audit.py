"""The server's part of the audit: its chain speaks for what it refuses, and for the events that it tells."""

from collections.abc import Callable

from common.audit_chain import Record
from common.audit_entries import Refused, Told
from common.events import AttackRefused, Event, Refusal, RoundDone, RunFinished
from server.events import EventLog


def recording(events: EventLog, record: Record, run_id: str) -> Callable[[Event], None]:
    """Return a ``report`` that appends to ``events`` what the audit chain has before.

    That is each refusal, and with each step's figures and the run's end the hash of all that has been told.
    """

    def tell(event: Event) -> None:
        if isinstance(event, Refusal | AttackRefused):
            reason = event.reason[:1000] if isinstance(event, Refusal) else ""
            record(
                Refused(
                    run_id=run_id, round_number=event.round, hospital=event.hospital, code=event.code, reason=reason
                )
            )
        if isinstance(event, RoundDone | RunFinished):
            length_bytes, digest = events.with_line(event)
            record(Told(run_id=run_id, length_bytes=length_bytes, events_hash=digest))
        events.append(event)

    return tell
