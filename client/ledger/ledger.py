"""What a hospital's data has spent of its privacy budgets: written before it is spent, and never judged too low.

One folder (0700) on the hospital's own disk holds an SQLite file, an anchor beside it and a lock (0600 each). Each
mechanism invocation is one line, chained to the one before it: digest = SHA-256(version ‖ sequence ‖ digest before ‖
line). The first line binds the ledger to a fingerprint of the data set. A line is a
:class:`~common.privacy.budget.Booking`: its account, event, unit, adversary and δ. ε is composed over all lines of an
account, of all rounds of all runs, at the δ and for the unit and adversary of the hospital's own policy; what a line
promises less than that is converted or refused (:mod:`common.privacy.budget`).

**Never an under-count.** :meth:`Ledger.record` checks, then writes, then returns, all under an exclusive lock, in one
SQLite transaction with ``synchronous=EXTRA`` (FULL, and the folder is synced too), and then the anchor, synced. A
process killed anywhere in between leaves a line that was not used, never a use without a line. No line is ever ordered
or judged by the clock; the time in it is for people.

**What is detected**, whereupon training is refused until the operator decides (:func:`accept`): a line edited, removed,
reordered or added by hand; a file truncated, deleted or not SQLite; a file put back to an earlier state, as the anchor
then knows a later line; another data set. Opened with ``held``, the newest line that the hospital's audit chain knows
(:func:`client.ledger.held.newest_anchor`): also both files put back to an earlier state, and a ledger that was removed.

**What is not.** Whoever can write the hospital's disk as the hospital can recompute every digest, or put ledger *and*
audit chain back (restoring a snapshot of the whole disk does just that). Nothing on the same disk can show it.
:meth:`Ledger.head` can: a digest that left the hospital (with the server, on paper) and is given back as ``held`` shows
any state in which that line is not there. The chain proves order and completeness, not authorship.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from client.ledger import chain
from client.ledger.chain import AcceptedEntry, Anchor, AnchorFile, LedgerEntry, Line, Opened, Spent
from client.ledger.salvage import Salvaged
from common.complaints import complaint
from common.config import PrivacyUnit
from common.errors import BudgetExceededError, LedgerError
from common.privacy.accounting import Accountant, MechanismEvent, epsilon, rounded_up
from common.privacy.budget import Account, Booking, BudgetPolicy

LEDGER_FOLDER = "ledger"
"""The name of the folder in a hospital's state folder."""

FINGERPRINT_BYTES = 32

_BOOKING: TypeAdapter[Booking] = TypeAdapter(Booking)

_Kind = tuple[Account, MechanismEvent, PrivacyUnit, int | None]
"""Bookings that add up: account, the event with one step, unit, colluders."""


@dataclass(slots=True)
class _Totals:
    """The sum over lines: how many steps of each kind of booking, the smallest δ of a kind, and each run's lines."""

    steps: Counter[_Kind] = field(default_factory=Counter)
    deltas: dict[_Kind, float] = field(default_factory=dict)
    runs: Counter[tuple[str, Account, MechanismEvent]] = field(default_factory=Counter)

    @classmethod
    def of(cls, lines: Iterable[Line]) -> Self:
        totals = cls()
        for line in lines:
            totals.add(line)
        return totals

    def add(self, line: Line) -> None:
        match line:
            case Spent():
                self._add(line.booking)
                self.runs[line.run_id, line.booking.account, line.booking.event] += 1
            case AcceptedEntry():
                self.cover(line.bookings)
            case Opened():
                pass

    def cover(self, bookings: Iterable[Booking]) -> None:
        """Raise every count to at least that of ``bookings``."""
        other = _Totals()
        for booking in bookings:
            other._add(booking)
        self.steps |= other.steps
        for kind, delta in other.deltas.items():
            self.deltas[kind] = min(delta, self.deltas.get(kind, 1.0))

    def bookings(self) -> tuple[Booking, ...]:
        return tuple(
            Booking(account, replace(once, steps=steps), unit, colluders, self.deltas[account, once, unit, colluders])
            for (account, once, unit, colluders), steps in self.steps.items()
        )

    def _add(self, booking: Booking) -> None:
        kind = booking.account, replace(booking.event, steps=1), booking.unit, booking.colluders
        self.steps[kind] += booking.event.steps
        self.deltas[kind] = min(booking.delta, self.deltas.get(kind, 1.0))


class Ledger:
    """An open ledger of one data set; see the module for what it promises.

    Several processes may have it open: each sees the others' lines before it judges its own.
    """

    def __init__(self, folder: Path, entries: list[LedgerEntry]) -> None:
        self._folder = folder
        self._fingerprint = _bound_to(entries)
        self._head = entries[0].anchor
        self._totals = _Totals()
        self._take_in(entries)

    @classmethod
    def open(cls, folder: Path, fingerprint: bytes, held: Anchor | None = None, earlier: Collection[str] = ()) -> Self:
        """Open the ledger of a data set, or begin one; the whole chain and the anchor are verified.

        Args:
            folder: the ledger's own folder; made if missing.
            fingerprint: of the data set, 32 bytes.
            held: an anchor that is kept elsewhere; the ledger must be there and still hold that line.
            earlier: fingerprints, in hexadecimal, of what the data set was before it grew or was corrected
                (:mod:`client.ledger.place`); the ledger may be bound to one of them.

        Raises:
            LedgerError: the ledger was edited, truncated, rolled back or removed, is of another data set or of another
                version, cannot be read or written, or is held by a process that hangs.
        """
        if len(fingerprint) != FINGERPRINT_BYTES:
            raise LedgerError(f"a data set's fingerprint must be {FINGERPRINT_BYTES} bytes, got {len(fingerprint)}")
        with chain.exclusive(folder):
            if held is None and not chain.exists(folder):
                chain.begin(folder, Opened(fingerprint=fingerprint.hex()))
            entries = chain.verified(folder, held)
            if _bound_to(entries) not in (fingerprint.hex(), *earlier):
                raise LedgerError(f"the ledger is bound to another data set (did the data change?); {chain.OPERATOR}")
            ledger = cls(folder, entries)
            chain.write_anchor(folder, ledger._anchor_file())
            return ledger

    def record(
        self,
        run_id: str,
        round_number: int,
        booking: Booking,
        policy: BudgetPolicy,
        accountant: Accountant = Accountant.PRV,
    ) -> float:
        """Book a mechanism invocation that is about to happen, if its account's budget allows it.

        As :meth:`record_all` with one booking; returns its account's ε.
        """
        (spent,) = self.record_all(run_id, round_number, [(booking, policy)], accountant)
        return spent

    def record_all(
        self,
        run_id: str,
        round_number: int,
        bookings: Sequence[tuple[Booking, BudgetPolicy]],
        accountant: Accountant = Accountant.PRV,
    ) -> tuple[float, ...]:
        """Book what a round is about to do, all of it or nothing; durable when this returns.

        Args:
            run_id: 32 hexadecimal digits.
            round_number: of the run; for people, nothing is decided by it.
            bookings: each with the hospital's own policy for its account; the budget is judged at that policy's δ,
                unit and adversary, over every line of the account. So a server can't widen it by naming others.
            accountant: composes the lines.

        Returns:
            For each booking ε spent so far on its account by that policy, all of ``bookings`` included.

        Raises:
            BudgetExceededError: a booking would pass its budget; nothing was written.
            PrivacyError: a booking, or a line of the same account, promises less than its policy wants and can't be
                converted; nothing was written.
            LedgerError: the ledger was tampered with, a line has no valid form, or it could not be made durable (a
                full disk). Nothing of it must happen.
        """
        # Before the lock is taken: it refuses what the policy forbids, and imports the accountant, which is slow.
        for booking, policy in bookings:
            epsilon((policy.event_of(booking),), policy.delta, accountant)
        lines = [_spent_line(run_id, round_number, booking) for booking, _ in bookings]
        with chain.exclusive(self._folder):
            entries: list[LedgerEntry] = []
            with chain.connected(self._folder) as connection, chain.transaction(connection):
                self._take_in(chain.following(connection, self._head))
                spent = self._judged(round_number, bookings, accountant)
                head = self._head
                for line in lines:
                    entries.append(chain.append(connection, head, line))
                    head = entries[-1].anchor
            self._take_in(entries)
            chain.write_anchor(self._folder, self._anchor_file())
        return spent

    def spent(self, account: Account, policy: BudgetPolicy, accountant: Accountant = Accountant.PRV) -> float:
        """Return ε over all lines of an account by a policy, those of other processes included.

        Raises:
            LedgerError: the ledger was tampered with or cannot be read.
            PrivacyError: a line promises less than the policy wants and can't be converted.
        """
        self._catch_up()
        return self._epsilon(account, policy, accountant, ())

    def with_planned(
        self, planned: Sequence[Booking], policy: BudgetPolicy, accountant: Accountant = Accountant.PRV
    ) -> float:
        """Return what ε of training would be after bookings that are planned; nothing is written.

        Args:
            planned: of training; an event with n times a round's steps stands for n rounds.
            policy: the hospital's own.
            accountant: composes the lines.

        Raises:
            LedgerError: the ledger was tampered with or cannot be read.
            PrivacyError: a booking promises less than the policy wants and can't be converted.
        """
        self._catch_up()
        return self._epsilon(Account.TRAINING, policy, accountant, planned)

    def lines(self, run_id: str, account: Account, event: MechanismEvent | None = None) -> int:
        """Return how often a run was booked on an account, or how often with this very event.

        It counts from the last decision of the operator (:func:`accept`) on, after which runs are forgotten by name;
        what they spent is not.

        Raises:
            LedgerError: the ledger was tampered with or cannot be read.
        """
        self._catch_up()
        return sum(
            count
            for (run, of_account, booked), count in self._totals.runs.items()
            if run == run_id and of_account is account and (event is None or booked == event)
        )

    def head(self) -> Anchor:
        """Return the last line's anchor, to be kept where putting this disk back to an earlier state can't reach it."""
        return self._head

    def _epsilon(
        self, account: Account, policy: BudgetPolicy, accountant: Accountant, more: Iterable[Booking]
    ) -> float:
        booked = [booking for booking in (*self._totals.bookings(), *more) if booking.account is account]
        return epsilon(policy.events_of(booked), policy.delta, accountant)

    def _judged(
        self, round_number: int, bookings: Sequence[tuple[Booking, BudgetPolicy]], accountant: Accountant
    ) -> tuple[float, ...]:
        """Return each account's ε with all of ``bookings``, or refuse them."""
        new = [booking for booking, _ in bookings]
        judged = []
        for booking, policy in bookings:
            total = self._epsilon(booking.account, policy, accountant, new)
            # Written so that a budget of NaN refuses, too.
            if not total <= policy.budget:
                before = self._epsilon(booking.account, policy, accountant, ())
                raise BudgetExceededError(
                    f"round {round_number} would bring this hospital to ε = {rounded_up(total):.3f} at "
                    f"δ = {policy.delta:g} for each {policy.unit} of its {booking.account} data, and its budget is "
                    f"{policy.budget:g}; {rounded_up(before):.3f} is spent. It takes no further part"
                )
            judged.append(total)
        return tuple(judged)

    def _catch_up(self) -> None:
        with chain.exclusive(self._folder), chain.connected(self._folder) as connection:
            self._take_in(chain.following(connection, self._head))

    def _anchor_file(self) -> AnchorFile:
        return _anchor_file(self._fingerprint, self._head, self._totals)

    def _take_in(self, entries: list[LedgerEntry]) -> None:
        for entry in entries:
            self._totals.add(entry.line)
            self._head = entry.anchor


def verify(folder: Path, held: Anchor | None = None) -> Anchor:
    """Check the whole chain, the anchor beside it and, if given, one that was kept elsewhere.

    Returns:
        The anchor of the last line.

    Raises:
        LedgerError: there is no ledger, or something is wrong; the message says what, and with which line.
    """
    if held is not None and not chain.exists(folder):
        raise LedgerError(chain.gone(held))
    with chain.exclusive(folder, make=False):
        return chain.verified(folder, held)[-1].anchor


def booked(folder: Path, held: Anchor | None = None) -> tuple[Booking, ...]:
    """Return the sum over all lines, without the data set at hand; empty where there is no ledger yet.

    Raises:
        LedgerError: as :func:`verify`, but not where there is no ledger and ``held`` knows of none.
    """
    if held is None and not chain.exists(folder):
        return ()
    with chain.exclusive(folder, make=held is not None):
        return _Totals.of(entry.line for entry in chain.verified(folder, held)).bookings()


def export(folder: Path) -> dict[str, Any]:
    """Return the verified ledger as plain values for JSON: version, data set, head, totals, and each line's digest.

    Raises:
        LedgerError: as :func:`verify`.
    """
    with chain.exclusive(folder, make=False):
        entries = chain.verified(folder, None)
    totals = _Totals.of(entry.line for entry in entries)
    return {
        "version": chain.VERSION,
        "fingerprint": _bound_to(entries),
        "head": str(entries[-1].anchor),
        "bookings": [_BOOKING.dump_python(booking, mode="json") for booking in totals.bookings()],
        "entries": [
            {"sequence": entry.anchor.sequence, "digest": entry.anchor.digest, **entry.line.model_dump(mode="json")}
            for entry in entries
        ],
    }


def accept(
    folder: Path,
    reason: str,
    fingerprint: bytes | None = None,
    held: Anchor | None = None,
    *,
    forget: bool = False,
) -> Anchor:
    """Let training continue after the operator examined what is refused, or after the data set changed.

    The refused file is kept beside a new one, whose first line carries the fault, the reason and, for each kind of
    booking, the larger of what the refused lines (whatever their digests) and the anchor say was spent. So what was
    spent is not forgotten while one of the two files shows it. A ledger of version 1 is taken over so, too.

    Args:
        folder: the ledger's.
        reason: the operator's, in words.
        fingerprint: of the data set from now on; without it, that of the refused ledger.
        held: the newest line that the hospital's audit chain knows, if any. The new ledger stands for it from now on.
        forget: continue although ``held`` is a line that neither file has, or neither can be read any more. The audit
            chain has an ε for it, but no events, so the new ledger counts it for nothing, and its first line says
            so, as does that of each ledger which follows it.

    Returns:
        The anchor of the new first line.

    Raises:
        LedgerError: nothing is wrong and the data set is the same; or only the fingerprint is lost, and must be given;
            or something that was spent would be forgotten, and ``forget`` was not asked for.
    """
    with chain.exclusive(folder, make=held is not None):
        fault = _fault(folder, fingerprint, held)
        salvaged = Salvaged.of(folder)
        lost = salvaged.tells_nothing() or (held is not None and not salvaged.knows(held))
        if lost and not forget:
            raise LedgerError(_would_forget(held))
        totals = _Totals.of(salvaged.lines)
        totals.cover(salvaged.beside or ())
        bound = fingerprint.hex() if fingerprint is not None else salvaged.fingerprint
        if bound is None:
            raise LedgerError("the data set of the ledger must be named; no file here does, so give its fingerprint")
        line = _accepted_line(
            fingerprint=bound,
            fault=fault,
            reason=reason,
            refused=chain.file_digest(folder),
            bookings=totals.bookings(),
            superseded=held,
            forgotten=lost or salvaged.forgotten(),
        )
        head = chain.begin(folder, line).anchor
        chain.write_anchor(folder, _anchor_file(line.fingerprint, head, totals))
        return head


def _would_forget(held: Anchor | None) -> str:
    known = "neither the ledger nor its anchor shows what was spent"
    if held is not None:
        known = f"the audit chain knows line {held.sequence} of the ledger, and nothing here says what it spent"
    return f"{known}; put back the newest copy of the ledger's folder, or, where there is none, accept with --forget"


def _fault(folder: Path, fingerprint: bytes | None, held: Anchor | None) -> str:
    """Return what is wrong in words, or refuse to accept what is in order or isn't there."""
    if held is None and not chain.exists(folder):
        raise LedgerError(chain.NONE_HERE)
    try:
        entries = chain.verified(folder, held)
    except LedgerError as error:
        return str(error)
    if fingerprint is None or fingerprint.hex() == _bound_to(entries):
        raise LedgerError("nothing needs accepting: the ledger is whole and bound to this data set")
    return "the data set changed"


def _bound_to(entries: list[LedgerEntry]) -> str:
    """Return the fingerprint in the first of verified lines."""
    first = entries[0].line
    if isinstance(first, Spent):
        raise LedgerError(f"the ledger's first line is missing; {chain.OPERATOR}")
    return first.fingerprint


def _anchor_file(fingerprint: str, head: Anchor, totals: _Totals) -> AnchorFile:
    return AnchorFile(fingerprint=fingerprint, head=head, bookings=totals.bookings())


def _spent_line(run_id: str, round_number: int, booking: Booking) -> Spent:
    try:
        return Spent(run_id=run_id, round_number=round_number, booking=booking)
    except ValidationError as error:
        raise _refusal(error) from None


def _accepted_line(**values: Any) -> AcceptedEntry:  # noqa: ANN401 - of the model, which checks them
    try:
        return AcceptedEntry(**values)
    except ValidationError as error:
        raise _refusal(error) from None


def _refusal(error: ValidationError) -> LedgerError:
    return LedgerError(f"a ledger line's {complaint(error, 'keys')}")
