"""The server's part of the audit: what it refuses, and whose refusals it hears, goes into its chain as well."""

from collections.abc import Callable

from common.audit_chain import Record
from common.audit_entries import Refused
from common.events import AttackRefused, Event, Refusal


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
