"""What a hospital's data has spent of its privacy budget: written before it is spent, and the last word on it.

One folder (0700) on the hospital's own disk holds an SQLite file, an anchor beside it and a lock (0600 each). Each
mechanism invocation is one line, chained to the one before it: digest = SHA-256(version ‖ sequence ‖ digest before ‖
line). The first line binds the ledger to a fingerprint of the data set. ε is composed over all lines, of all rounds
of all runs, at the smallest δ that any of them was booked under.

**Never an under-count.** :meth:`Ledger.record` checks, then writes, then returns, all under an exclusive lock, in one
SQLite transaction with ``synchronous=EXTRA`` (FULL, and the folder is synced too), and then the anchor, synced. A
process killed anywhere in between leaves a line that was not used, never a use without a line. No line is ever ordered
or judged by the clock; the time in it is for people.

**What is detected**, whereupon training is refused until the operator decides (:func:`accept`): a line edited, removed,
reordered or added by hand; a file truncated, deleted or not SQLite; a file put back to an earlier state, as the anchor
then knows a later line; another data set.

**What is not.** Whoever can write the hospital's disk as the hospital can recompute every digest, or put *both* files
back (restoring a snapshot of the whole disk does just that). Nothing on the same disk can tell. :meth:`Ledger.head`
can: a digest that left the hospital (in its audit chain, with the server, on paper) and is given back as ``held`` shows
any state in which that line is not there. The chain proves order and completeness, not authorship.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from client import ledger_chain as chain
from client.ledger_chain import Accepted, Anchor, AnchorFile, Entry, Line, Opened, Spent
from common.errors import BudgetExceededError, LedgerError
from common.privacy.accounting import Accountant, MechanismEvent, epsilon, rounded_up

LEDGER_FOLDER = "ledger"
"""Inside a hospital's state folder."""

FINGERPRINT_BYTES = 32

_EVENT: TypeAdapter[MechanismEvent] = TypeAdapter(MechanismEvent)


@dataclass(slots=True)
class _Account:
    """The sum over lines: how many steps of which mechanism, and the smallest δ they were booked under."""

    steps: Counter[MechanismEvent] = field(default_factory=Counter)
    smallest_delta: float | None = None

    @classmethod
    def of(cls, lines: Iterable[Line]) -> Self:
        account = cls()
        for line in lines:
            account.add(line)
        return account

    def add(self, line: Line) -> None:
        match line:
            case Spent():
                self._add(line.event)
                self.smallest_delta = min(line.delta, self.smallest_delta or 1.0)
            case Accepted():
                self.cover(line.events, line.smallest_delta)
            case Opened():
                pass

    def cover(self, events: Iterable[MechanismEvent], smallest_delta: float | None) -> None:
        """Raise every count to at least that of ``events``."""
        other = _Account()
        for event in events:
            other._add(event)
        self.steps |= other.steps
        if smallest_delta is not None:
            self.smallest_delta = min(smallest_delta, self.smallest_delta or 1.0)

    def events(self) -> tuple[MechanismEvent, ...]:
        return tuple(replace(once, steps=steps) for once, steps in self.steps.items())

    def _add(self, event: MechanismEvent) -> None:
        self.steps[replace(event, steps=1)] += event.steps


class Ledger:
    """An open ledger of one data set; see the module for what it promises.

    Several processes may have it open: each sees the others' lines before it judges its own.
    """

    def __init__(self, folder: Path, entries: list[Entry]) -> None:
        self._folder = folder
        self._fingerprint = _bound_to(entries)
        self._head = entries[0].anchor
        self._account = _Account()
        self._take_in(entries)

    @classmethod
    def open(cls, folder: Path, fingerprint: bytes, held: Anchor | None = None) -> Self:
        """Open the ledger of a data set, or begin one; the whole chain and the anchor are verified.

        Args:
            folder: the ledger's own folder; made if missing.
            fingerprint: of the data set, 32 bytes.
            held: an anchor that left this disk earlier; the ledger must still hold that line.

        Raises:
            LedgerError: the ledger was edited, truncated or rolled back, is of another data set or of a newer
                version, cannot be read or written, or is held by a process that hangs.
        """
        if len(fingerprint) != FINGERPRINT_BYTES:
            raise LedgerError(f"a data set's fingerprint must be {FINGERPRINT_BYTES} bytes, got {len(fingerprint)}")
        with chain.exclusive(folder):
            if not chain.exists(folder):
                chain.begin(folder, Opened(fingerprint=fingerprint.hex()))
            entries = chain.verified(folder, held)
            if _bound_to(entries) != fingerprint.hex():
                raise LedgerError(f"the ledger is bound to another data set (did the data change?); {chain.OPERATOR}")
            ledger = cls(folder, entries)
            chain.write_anchor(folder, ledger._anchor_file())
            return ledger

    def record(
        self,
        run_id: str,
        round_number: int,
        event: MechanismEvent,
        budget: float,
        delta: float,
        accountant: Accountant = Accountant.PRV,
    ) -> float:
        """Book a mechanism invocation that is about to happen, if the budget allows; durable when this returns.

        Args:
            run_id: 32 hexadecimal digits.
            round_number: of the run; for people, nothing is decided by it.
            event: what will be invoked.
            budget: the hospital's own ε over everything on this data set.
            delta: the run's δ. The budget is judged at the smallest δ that this ledger ever met, so a server
                can't widen a hospital's budget by naming a larger one.
            accountant: composes the lines.

        Returns:
            ε spent so far at ``delta``, this event included.

        Raises:
            BudgetExceededError: this event would pass the budget; nothing was written.
            LedgerError: the ledger was tampered with, the line has no valid form, or it could not be made durable
                (a full disk). The event must not happen.
            PrivacyError: δ is outside (0, 1).
        """
        # Before the lock is taken: refuses a meaningless δ, and imports the accountant, which takes seconds.
        epsilon((event,), delta, accountant)
        line = _spent_line(run_id, round_number, event, delta)
        with chain.exclusive(self._folder):
            with chain.connected(self._folder) as connection, chain.transaction(connection):
                self._take_in(chain.following(connection, self._head))
                total = self._judged(round_number, event, budget, delta, accountant)
                entry = chain.append(connection, self._head, line)
            self._take_in([entry])
            chain.write_anchor(self._folder, self._anchor_file())
        return total if delta == self._account.smallest_delta else self._epsilon(delta, accountant)

    def spent(self, delta: float, accountant: Accountant = Accountant.PRV) -> float:
        """Return ε over all lines at ``delta``, those of other processes included.

        Raises:
            LedgerError: the ledger was tampered with or cannot be read.
            PrivacyError: δ is outside (0, 1).
        """
        with chain.exclusive(self._folder), chain.connected(self._folder) as connection:
            self._take_in(chain.following(connection, self._head))
        return self._epsilon(delta, accountant)

    def head(self) -> Anchor:
        """Return the last line's anchor, to be kept where putting this disk back to an earlier state can't reach it."""
        return self._head

    def _epsilon(self, delta: float, accountant: Accountant, *more: MechanismEvent) -> float:
        return epsilon((*self._account.events(), *more), delta, accountant)

    def _judged(
        self, round_number: int, event: MechanismEvent, budget: float, delta: float, accountant: Accountant
    ) -> float:
        """Return ε with ``event``, or refuse it."""
        strictest = min(delta, self._account.smallest_delta or 1.0)
        total = self._epsilon(strictest, accountant, event)
        # Written so that a budget that isn't a number refuses, too.
        if not total <= budget:
            before = self._epsilon(strictest, accountant)
            raise BudgetExceededError(
                f"round {round_number} would bring this hospital to ε = {rounded_up(total):.3f} at δ = {strictest:g}, "
                f"and its budget is {budget:g}; {rounded_up(before):.3f} is spent. It takes no further part"
            )
        return total

    def _anchor_file(self) -> AnchorFile:
        return _anchor_file(self._fingerprint, self._head, self._account)

    def _take_in(self, entries: list[Entry]) -> None:
        for entry in entries:
            self._account.add(entry.line)
            self._head = entry.anchor


def verify(folder: Path, held: Anchor | None = None) -> Anchor:
    """Check the whole chain, the anchor beside it and, if given, one that was kept elsewhere.

    Returns:
        The anchor of the last line.

    Raises:
        LedgerError: there is no ledger, or something is wrong; the message says what, and with which line.
    """
    with chain.exclusive(folder, make=False):
        return chain.verified(folder, held)[-1].anchor


def export(folder: Path) -> dict[str, Any]:
    """Return the verified ledger as plain values for JSON: version, data set, head, totals, and each line's digest.

    Raises:
        LedgerError: as :func:`verify`.
    """
    with chain.exclusive(folder, make=False):
        entries = chain.verified(folder, None)
    account = _Account.of(entry.line for entry in entries)
    return {
        "version": chain.VERSION,
        "fingerprint": _bound_to(entries),
        "head": str(entries[-1].anchor),
        "smallest_delta": account.smallest_delta,
        "events": [_EVENT.dump_python(event, mode="json") for event in account.events()],
        "entries": [
            {"sequence": entry.anchor.sequence, "digest": entry.anchor.digest, **entry.line.model_dump(mode="json")}
            for entry in entries
        ],
    }


def accept(folder: Path, reason: str, fingerprint: bytes | None = None) -> Anchor:
    """Let training go on after the operator looked into what :func:`verify` refuses, or after the data set changed.

    The refused file is kept beside a new one, whose first line carries the fault, the reason and, for each mechanism,
    the larger of what the refused lines (whatever their digests) and the anchor say was spent. So what was spent
    is not forgotten as long as one of the two files tells.

    Args:
        folder: the ledger's.
        reason: the operator's, in words.
        fingerprint: of the data set from now on; without it, that of the refused ledger.

    Returns:
        The anchor of the new first line.

    Raises:
        LedgerError: nothing is wrong and the data set is the same; or only the fingerprint is lost, and must be given;
            or neither file can be read any more, and then only moving the folder away by hand goes on, which forgets
            what was spent.
    """
    with chain.exclusive(folder, make=False):
        fault = _fault(folder, fingerprint)
        lines, anchor = chain.salvaged(folder)
        if not lines and anchor is None:
            raise LedgerError(
                "neither the ledger nor its anchor tells what was spent; to begin anew, and forget it, move the "
                "ledger's folder away by hand"
            )
        account = _Account.of(lines)
        bound = _last_bound(lines)
        if anchor is not None:
            account.cover(anchor.events, anchor.smallest_delta)
            bound = anchor.fingerprint
        if fingerprint is not None:
            bound = fingerprint.hex()
        if bound is None:
            raise LedgerError("nothing here tells which data set the ledger is of; give its fingerprint")
        line = _accepted_line(bound, fault, reason, chain.file_digest(folder), account)
        head = chain.begin(folder, line).anchor
        chain.write_anchor(folder, _anchor_file(line.fingerprint, head, account))
        return head


def _fault(folder: Path, fingerprint: bytes | None) -> str:
    """Return what is wrong in words, or refuse to accept what is in order or isn't there."""
    if not chain.exists(folder):
        raise LedgerError(chain.NONE_HERE)
    try:
        entries = chain.verified(folder, None)
    except LedgerError as error:
        return str(error)
    if fingerprint is None or fingerprint.hex() == _bound_to(entries):
        raise LedgerError("nothing needs accepting: the ledger is whole and bound to this data set")
    return "the data set changed"


def _bound_to(entries: list[Entry]) -> str:
    """Return the fingerprint in the first of verified lines."""
    first = entries[0].line
    if isinstance(first, Spent):
        raise LedgerError(f"the ledger's first line is missing; {chain.OPERATOR}")
    return first.fingerprint


def _last_bound(lines: list[Line]) -> str | None:
    """Return the fingerprint of the last line that binds a ledger to a data set."""
    return next((line.fingerprint for line in reversed(lines) if not isinstance(line, Spent)), None)


def _anchor_file(fingerprint: str, head: Anchor, account: _Account) -> AnchorFile:
    return AnchorFile(
        fingerprint=fingerprint, head=head, events=account.events(), smallest_delta=account.smallest_delta
    )


def _spent_line(run_id: str, round_number: int, event: MechanismEvent, delta: float) -> Spent:
    try:
        return Spent(run_id=run_id, round_number=round_number, event=event, delta=delta)
    except ValidationError as error:
        raise _refusal(error) from None


def _accepted_line(bound: str, fault: str, reason: str, refused: str, account: _Account) -> Accepted:
    try:
        return Accepted(
            fingerprint=bound,
            fault=fault,
            reason=reason,
            refused=refused,
            events=account.events(),
            smallest_delta=account.smallest_delta,
        )
    except ValidationError as error:
        raise _refusal(error) from None


def _refusal(error: ValidationError) -> LedgerError:
    finding = error.errors(include_url=False)[0]
    return LedgerError(f"a ledger line's {'.'.join(str(part) for part in finding['loc'])}: {finding['msg']}")
