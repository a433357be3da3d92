"""What is still known of a ledger that is refused: for an operator who decides to continue, never for training.

Whatever can be read counts, whether the chain around it is whole or not, and so do files of version 1. Their lines say
neither account, unit nor adversary. They were all of training; each is taken for one that protects a record alone, and
noise that was not complete inside the hospital for noise that withstands the server alone. That is the least they
promise, so nothing spent is lost.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from client.ledger import chain
from client.ledger.chain import AcceptedEntry, Anchor, Hexadecimal, Line, Opened, Spent
from common.config import PrivacyUnit, RunId
from common.errors import LedgerError, PrivacyError
from common.privacy.accounting import MechanismEvent, MechanismKind
from common.privacy.budget import Account, Booking

_NOTHING_BOOKED_AT = 0.5
"""The δ of a booking whose file gives none; no budget is judged by it."""


@dataclass(frozen=True, slots=True)
class Salvaged:
    """What the files of a refused ledger still say.

    Attributes:
        lines: each that can be read, in its order.
        places: where each row says it stands, whether its line can be read or not.
        beside: what the anchor file says was spent; None when it cannot be read.
        fingerprint: of the data set, by the anchor file or else by the last line that names one; None without either.
        head: the anchor file's.
    """

    lines: tuple[Line, ...]
    places: frozenset[tuple[object, object]]
    beside: tuple[Booking, ...] | None
    fingerprint: str | None
    head: Anchor | None

    @classmethod
    def of(cls, folder: Path) -> "Salvaged":
        """Read whatever is there."""
        rows = chain.present_rows(folder)
        lines = tuple(line for row in rows if (line := _line(str(row[2]))) is not None)
        bound = next((line.fingerprint for line in reversed(lines) if isinstance(line, Opened | AcceptedEntry)), None)
        beside, head = None, None
        text = chain.present_anchor(folder)
        with suppress(LedgerError):
            anchor = chain.parsed_anchor(text)
            beside, bound, head = anchor.bookings, anchor.fingerprint, anchor.head
        with suppress(ValidationError, PrivacyError):
            old = _OldAnchorFile.model_validate_json(text)
            beside, bound, head = _booked(old.events, old.smallest_delta), old.fingerprint, old.head
        return cls(lines, frozenset((row[0], row[3]) for row in rows), beside, bound, head)

    def tells_nothing(self) -> bool:
        """Return whether neither file says what was spent."""
        return not self.lines and self.beside is None

    def forgotten(self) -> bool:
        """Return whether an operator decided before to continue without what was lost."""
        return any(line.forgotten for line in self.lines if isinstance(line, AcceptedEntry))

    def knows(self, held: Anchor) -> bool:
        """Return whether a line that is known from elsewhere is here, or was decided about before."""
        superseded = (line.superseded for line in self.lines if isinstance(line, AcceptedEntry))
        return (held.sequence, held.digest) in self.places or held == self.head or held in superseded


def _line(text: str) -> Line | None:
    with suppress(LedgerError):
        return chain.parsed(text, 0)
    with suppress(ValidationError, PrivacyError):
        return _upgraded(_OLD_LINE.validate_json(text))
    return None


class _Old(BaseModel):
    """A line of version 1, read for what it spent; nothing else of it is used."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class _OldOpened(_Old):
    kind: Literal["opened"]
    version: Literal[1]
    fingerprint: Hexadecimal


class _OldAccepted(_Old):
    kind: Literal["accepted"]
    version: Literal[1]
    fingerprint: Hexadecimal
    fault: str
    reason: str
    refused: Hexadecimal
    events: tuple[MechanismEvent, ...]
    smallest_delta: float | None


class _OldSpent(_Old):
    kind: Literal["spent"]
    run_id: RunId
    round_number: Annotated[int, Field(ge=0)]
    event: MechanismEvent
    delta: float


class _OldAnchorFile(_Old):
    version: Literal[2]
    fingerprint: Hexadecimal
    head: Anchor
    events: tuple[MechanismEvent, ...]
    smallest_delta: float | None


_OldLine = _OldOpened | _OldAccepted | _OldSpent
_OLD_LINE: TypeAdapter[_OldLine] = TypeAdapter(Annotated[_OldLine, Field(discriminator="kind")])


def _upgraded(line: _OldLine) -> Line:
    match line:
        case _OldOpened():
            return Opened(fingerprint=line.fingerprint)
        case _OldAccepted():
            return AcceptedEntry(
                fingerprint=line.fingerprint,
                fault=line.fault,
                reason=line.reason,
                refused=line.refused,
                bookings=_booked(line.events, line.smallest_delta),
            )
        case _OldSpent():
            (booking,) = _booked([line.event], line.delta)
            return Spent(run_id=line.run_id, round_number=line.round_number, booking=booking)


def _booked(events: Iterable[MechanismEvent], delta: float | None) -> tuple[Booking, ...]:
    return tuple(
        Booking(
            account=Account.TRAINING,
            event=event,
            unit=PrivacyUnit.RECORD,
            colluders=None if event.kind is MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN else 0,
            delta=_NOTHING_BOOKED_AT if delta is None else delta,
        )
        for event in events
    )
