"""How the ledger lies on disk: typed lines in a hash chain in SQLite, an anchor file beside it, and a lock.

Every function here either does what it says or raises :class:`LedgerError`. It trusts nothing that it reads from disk.
"""

import hashlib
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from common.config import RunId
from common.errors import LedgerError, PrivacyError
from common.files import hold, sync_folder, write_private
from common.privacy.budget import Booking

VERSION: Final = 2
"""Lines of version 1 knew neither account, nor unit, nor adversary."""

ANCHOR_VERSION: Final = 3
"""The anchor of version 1 did not name the data set it belongs to, that of version 2 was of ledgers of version 1."""

LOCK_SECONDS = 30.0
"""How long to wait for the lock. Composing takes well under a second; a process that holds it for longer hangs."""

OPERATOR = "training is refused until the operator decides: `confide hospital ledger verify`, then `accept`"

OLDER = (
    "the ledger is of an earlier version of Confide, whose lines name no account, unit or adversary; its operator runs "
    "`confide hospital ledger accept`, which carries all that is spent over as training's, for each record"
)

NONE_HERE = "there is no ledger here; it begins when the hospital first joins a run"

_DATABASE, _ANCHOR, _LOCK, _NEW = "ledger.sqlite", "ledger.anchor", "ledger.lock", "ledger.new"
_LONGEST_REASON = 1000

_SCHEMA = f"""
PRAGMA user_version = {VERSION};
CREATE TABLE entries (
    sequence INTEGER PRIMARY KEY, previous TEXT NOT NULL, line TEXT NOT NULL, digest TEXT NOT NULL
) STRICT;
CREATE TRIGGER append_only_update BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
CREATE TRIGGER append_only_delete BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
"""


Hexadecimal = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Anchor(BaseModel):
    """The place of a line and its digest: enough to show later that the line was there.

    >>> Anchor.from_text("7:" + 64 * "0").sequence
    7
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    sequence: Annotated[int, Field(ge=0)]
    digest: Hexadecimal

    def __str__(self) -> str:
        """Return the form that is written down or sent."""
        return f"{self.sequence}:{self.digest}"

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read what :meth:`__str__` wrote.

        Raises:
            LedgerError: it is not an anchor.
        """
        if not re.fullmatch(r"[0-9]{1,15}:[0-9a-f]{64}", text):
            raise LedgerError("an anchor must read SEQUENCE:DIGEST, the digest in 64 hexadecimal digits")
        sequence, _, digest = text.partition(":")
        return cls(sequence=int(sequence), digest=digest)


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    time: int = Field(default_factory=lambda: int(time.time()))
    """Unix seconds on the hospital's clock; for people, nothing is decided by it."""


class Opened(_Line):
    """The first line of a new ledger."""

    kind: Literal["opened"] = "opened"
    version: Literal[2] = VERSION
    fingerprint: Hexadecimal
    nonce: Hexadecimal = Field(default_factory=lambda: secrets.token_hex(32))
    """A random number, so that no two ledgers share a digest."""


class AcceptedEntry(_Line):
    """The first line after an operator's decision: what was wrong, and what was spent at least."""

    kind: Literal["accepted"] = "accepted"
    version: Literal[2] = VERSION
    fingerprint: Hexadecimal
    nonce: Hexadecimal = Field(default_factory=lambda: secrets.token_hex(32))
    fault: str
    reason: Annotated[str, Field(min_length=1, max_length=_LONGEST_REASON)]
    refused: Hexadecimal
    """The SHA-256 of the refused file, which is kept; of no bytes, when there was no file."""
    bookings: tuple[Booking, ...]
    """Each kind of booking with the larger count of the refused file and the anchor, as steps of its event."""
    superseded: Anchor | None = None
    """The newest line that the hospital's audit chain knew of, of the ledger that this one follows."""
    forgotten: bool = False
    """Whether that line was in neither file, so that what it and others spent is not in ``bookings``."""


class Spent(_Line):
    """One mechanism invocation, written before it happens."""

    kind: Literal["spent"] = "spent"
    run_id: RunId
    round_number: Annotated[int, Field(ge=0)]
    booking: Booking


Line = Opened | AcceptedEntry | Spent
_LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="kind")])


class AnchorFile(BaseModel):
    """What stands beside the database: its head, and what was spent on which data set, should the database be lost."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[3] = ANCHOR_VERSION
    fingerprint: Hexadecimal
    head: Anchor
    bookings: tuple[Booking, ...]


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """A line in its place in the chain."""

    anchor: Anchor
    previous: str
    text: str
    line: Line


_BEFORE_THE_FIRST = Anchor(sequence=0, digest=64 * "0")

Row = tuple[object, ...]
"""Sequence, previous, line and digest as SQLite gives them, not verified yet."""


@contextmanager
def exclusive(folder: Path, *, make: bool = True) -> Iterator[None]:
    """Hold the ledger's lock; the operating system lets go of it when the process dies.

    Args:
        folder: the ledger's, made or put to mode 0700.
        make: make a missing folder.

    Raises:
        LedgerError: there is no folder, it can't be used, or another process holds the lock for ``LOCK_SECONDS``.
    """
    with usable():
        if make:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        elif not folder.is_dir():
            raise LedgerError(NONE_HERE)
        folder.chmod(0o700)
    with ExitStack() as held:
        with usable():
            try:
                held.enter_context(hold(folder / _LOCK, LOCK_SECONDS))
            except TimeoutError:
                raise LedgerError("another process has held the ledger for too long; is one hanging?") from None
        yield


@contextmanager
def usable() -> Iterator[None]:
    """Turn whatever SQLite or the file system has to say into a :class:`LedgerError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise LedgerError(f"the ledger must be readable and writable, got {error}; training stops without it") from None
    except UnicodeDecodeError:  # SQLite quotes what it cannot read, and Python cannot read the quotation.
        raise LedgerError("the ledger must be readable; it is damaged, and training stops without it") from None
    except OSError as error:
        raise LedgerError(
            f"the ledger must be readable and writable, got {error.strerror}; training stops without it"
        ) from None


def exists(folder: Path) -> bool:
    """Return whether any file of a ledger exists."""
    return (folder / _DATABASE).exists() or (folder / _ANCHOR).exists()


def gone(held: Anchor) -> str:
    """Say that a ledger is missing of which a line is known."""
    return (
        f"the ledger is not here, but the hospital's audit chain knows line {held.sequence} of it: it was moved or "
        f"removed; {OPERATOR}"
    )


def begin(folder: Path, line: Opened | AcceptedEntry) -> LedgerEntry:
    """Put a new database with one line in place, at once or not at all; a refused one that it replaces is kept.

    Raises:
        LedgerError: it could not be made durable.
    """
    new, place = folder / _NEW, folder / _DATABASE
    with usable():
        for leftover in (new, folder / f"{_NEW}-journal"):
            leftover.unlink(missing_ok=True)
        os.close(_open_private(new, os.O_RDWR | os.O_EXCL))
        with closing(_connect(new)) as connection:
            connection.executescript(_SCHEMA)
            entry = append(connection, _BEFORE_THE_FIRST, line)
        _keep_refused(folder)
        new.replace(place)
        sync_folder(folder)
    return entry


@contextmanager
def connected(folder: Path) -> Iterator[sqlite3.Connection]:
    """Open the database in place to read or write one line, no longer: :func:`begin` may then put another there."""
    with usable(), closing(_connect(folder / _DATABASE)) as connection:
        yield connection


def append(connection: sqlite3.Connection, head: Anchor, line: Line) -> LedgerEntry:
    """Insert the line that follows ``head``; durable once the transaction around it is committed."""
    text = line.model_dump_json()
    sequence = head.sequence + 1
    digest = _digest(sequence, head.digest, text)
    connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", (sequence, head.digest, text, digest))
    return LedgerEntry(Anchor(sequence=sequence, digest=digest), head.digest, text, line)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit durably, or leave no trace."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        # SQLite has rolled back by itself after some errors.
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def verified(folder: Path, held: Anchor | None) -> list[LedgerEntry]:
    """Return every line, the first at least, with the chain, the anchor file and ``held`` checked.

    Raises:
        LedgerError: something is wrong; the message says what, and with which line.
    """
    database, anchor_file = folder / _DATABASE, folder / _ANCHOR
    if not exists(folder):
        raise LedgerError(NONE_HERE if held is None else gone(held))
    if not database.exists():
        raise LedgerError(f"the ledger's database is gone, its anchor is not; {OPERATOR}")
    with connected(folder) as connection:
        if is_older(connection):
            raise LedgerError(OLDER)
        entries = chained(_BEFORE_THE_FIRST, rows(connection, 1))
    if not entries or not isinstance(entries[0].line, Opened | AcceptedEntry):
        raise LedgerError(f"the ledger's first line is missing; {OPERATOR}")
    if anchor_file.exists():
        _require_line(entries, read_anchor(folder).head, "the anchor beside it")
    elif len(entries) > 1:
        raise LedgerError(f"the anchor beside the ledger is gone; {OPERATOR}")
    first = entries[0].line
    # What an operator accepted stands for the line that was known then.
    if held is not None and not (isinstance(first, AcceptedEntry) and first.superseded == held):
        _require_line(entries, held, "the anchor that was kept elsewhere")
    return entries


def is_older(connection: sqlite3.Connection) -> bool:
    """Return whether the database says that its lines are of an earlier version."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return isinstance(version, int) and 0 < version < VERSION


def rows(connection: sqlite3.Connection, first: int) -> list[Row]:
    """Return the raw rows from sequence number ``first``, in order."""
    query = "SELECT sequence, previous, line, digest FROM entries WHERE sequence >= ? ORDER BY sequence"
    return connection.execute(query, (first,)).fetchall()


def following(connection: sqlite3.Connection, head: Anchor) -> list[LedgerEntry]:
    """Return the lines after ``head``, which must still be in its place.

    Raises:
        LedgerError: it isn't, or a line after it doesn't follow.
    """
    found = rows(connection, head.sequence)
    if not found or found[0][0] != head.sequence or found[0][3] != head.digest:
        raise LedgerError(f"the ledger was changed or put back to an earlier state while in use; {OPERATOR}")
    return chained(head, found[1:])


def chained(head: Anchor, following: list[Row]) -> list[LedgerEntry]:
    """Return rows as lines, each proven to follow the one before it.

    Raises:
        LedgerError: one doesn't, or isn't a line of this version.
    """
    entries = []
    for sequence, previous, text, digest in following:
        number = head.sequence + 1
        if sequence != number or previous != head.digest or not isinstance(text, str):
            raise LedgerError(f"the ledger's line {number} does not follow the one before it; {OPERATOR}")
        if digest != _digest(number, head.digest, text):
            raise LedgerError(f"the ledger's line {number} was changed; {OPERATOR}")
        head = Anchor(sequence=number, digest=str(digest))
        entries.append(LedgerEntry(head, str(previous), text, parsed(text, number)))
        if number > 1 and not isinstance(entries[-1].line, Spent):
            raise LedgerError(f"the ledger's line {number} begins a ledger inside another; {OPERATOR}")
    return entries


def parsed(text: object, number: int) -> Line:
    """Read one line.

    Raises:
        LedgerError: it is not a line of this version.
    """
    try:
        return _LINE.validate_json(str(text))
    except (ValidationError, PrivacyError):
        raise LedgerError(f"the ledger's line {number} cannot be read by this version; {OPERATOR}") from None


def read_anchor(folder: Path) -> AnchorFile:
    """Read the anchor beside the database.

    Raises:
        LedgerError: it is not there, or not an anchor of this version.
    """
    with usable():
        text = (folder / _ANCHOR).read_bytes()
    return parsed_anchor(text)


def parsed_anchor(text: bytes) -> AnchorFile:
    """Read the content of an anchor file.

    Raises:
        LedgerError: it is not an anchor of this version.
    """
    try:
        return AnchorFile.model_validate_json(text)
    except (ValidationError, PrivacyError):
        raise LedgerError(f"the anchor beside the ledger cannot be read by this version; {OPERATOR}") from None


def write_anchor(folder: Path, anchor: AnchorFile) -> None:
    """Replace the anchor beside the database, durably, at once or not at all."""
    with usable():
        write_private(folder / _ANCHOR, anchor.model_dump_json().encode())


def present_rows(folder: Path) -> list[Row]:
    """Return the raw rows that can still be read, none where the database can't be."""
    if not (folder / _DATABASE).exists():
        return []
    with suppress(LedgerError), connected(folder) as connection:
        return rows(connection, 0)
    return []


def present_anchor(folder: Path) -> bytes:
    """Return what is in the anchor file, nothing where it can't be read."""
    with suppress(LedgerError), usable():
        return (folder / _ANCHOR).read_bytes()
    return b""


def file_digest(folder: Path) -> str:
    """Return the SHA-256 of the database file, or of no bytes when there is no such file."""
    database = folder / _DATABASE
    with usable():
        return hashlib.sha256(database.read_bytes() if database.exists() else b"").hexdigest()


def _require_line(entries: list[LedgerEntry], anchor: Anchor, whose: str) -> None:
    if anchor.sequence > len(entries):
        raise LedgerError(
            f"the ledger ends at line {len(entries)}, but {whose} knows line {anchor.sequence}: it was truncated or "
            f"put back to an earlier state; {OPERATOR}"
        )
    if anchor.sequence < 1 or entries[anchor.sequence - 1].anchor != anchor:
        raise LedgerError(f"the ledger's line {anchor.sequence} is not the one that {whose} knows; {OPERATOR}")


def _connect(path: Path) -> sqlite3.Connection:
    # EXTRA is FULL and also syncs the folder when the
    # journal goes, without which a line could be lost after its commit when the power fails.
    # Mode rw never makes a missing file.
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=LOCK_SECONDS
    )
    with ExitStack() as where_it_fails:
        # Of a damaged file whoever asked gets no connection that it could close.
        where_it_fails.callback(connection.close)
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA synchronous = EXTRA")
        where_it_fails.pop_all()
    return connection


def _digest(sequence: int, previous: str, text: str) -> str:
    placed = f"confide ledger {VERSION}\n{sequence}\n{previous}\n{text}"
    return hashlib.sha256(placed.encode()).hexdigest()


def _open_private(path: Path, flags: int) -> int:
    file = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    os.fchmod(file, 0o600)
    return file


def _keep_refused(folder: Path) -> None:
    """Give the present database a second name, and move away a journal that would be played back into its successor."""
    place, journal = folder / _DATABASE, folder / f"{_DATABASE}-journal"
    if not place.exists():
        return
    number = 1 + sum(1 for _ in folder.glob("refused-*.sqlite"))
    os.link(place, folder / f"refused-{number}.sqlite")
    if journal.exists():
        journal.replace(folder / f"refused-{number}.sqlite-journal")
