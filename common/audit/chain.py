"""A party's audit chain: an append-only file, each line hash-linked to the one before it and signed by its writer.

One line is one JSON object in its canonical form (sorted keys, no spaces, UTF-8) with ``version``, ``sequence``,
``previous`` (SHA-256 of the line before, newline included), ``time``, ``body``, and ``signature`` over all the rest.
The first line, and the first after each start of the writer, carries the writer's certificate, so that a chain is
verified offline from the consortium authority's certificate alone.

**What it shows.** A line edited, removed, reordered or added without the writer's key is found, with its number. **What
it does not.** A writer can cut its own chain short or begin another; that shows only against the other parties' chains
(``deploy/audit/verify.py``). The clock in it is the writer's word.
"""

import datetime
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from cryptography import x509
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.audit.entries import Body, ContributedUnbound, Hash, Hexadecimal, Identified
from common.audit.parties import PublicKey, Writer, is_signed_by, verify_party
from common.canonical import canonical_json
from common.complaints import complaint
from common.errors import AuditError, IdentityError
from common.files import hold
from common.identity.certificates import certificate_pem

VERSION: Final = 1
AUDIT_FILE = "audit.jsonl"
"""The name of the file in a hospital's state folder, and in the server's run folder."""

_DOMAIN = b"confide audit chain 1\x00"
"""Signed before every line, so that no other message of Confide can pass for one."""
_NO_LINE = 64 * "0"
_LOCK_FILE = ".audit.lock"
"""Held beside the file by whichever of a party's processes writes; the kernel gives it back when the process dies."""
_LONGEST_LINE_BYTES = 128 * 2**20

Record = Callable[[Body], None]
"""A function that writes an entry, so that a party's code needs to know no files or keys."""


def discard(_body: Body) -> None:
    """Keep no audit chain, for experiments in one process, which nobody needs to believe."""


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = VERSION
    sequence: Annotated[int, Field(ge=1)]
    previous: Hash
    time: int
    """Unix seconds on the writer's clock."""
    signature: Hexadecimal


class _LineOfToday(_Line):
    body: Body = Field(discriminator="kind")


class _LineOf010(_Line):
    body: ContributedUnbound


@dataclass(frozen=True)
class AuditEntry:
    """A verified line: its number, the writer's time, and what it says."""

    sequence: int
    time: int
    body: Body | ContributedUnbound


@dataclass(frozen=True)
class Chain:
    """A verified chain: who wrote it, with which keys, and its entries."""

    party: str
    keys: tuple[PublicKey, ...]
    """The keys that the party has signed with, in order."""
    entries: tuple[AuditEntry, ...]


class AuditChain:
    """Appends to one party's chain; each line is on the disk before :meth:`append` returns.

    A line that a kill cut short was never acknowledged to anybody and is removed before the next one is written.
    Several processes of the party may write in turn: each sees the others' lines before it links its own to them.

    Args:
        path: of the file; made, with mode 0600, if missing.
        writer: whose chain it is.

    Raises:
        AuditError: the file cannot be read or written, or its last line is not one of a chain.
    """

    def __init__(self, path: Path, writer: Writer) -> None:
        self._path = path
        self._writer = writer
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise AuditError(f"{path.name} must be readable and writable: {error.strerror}") from None
        self._sequence, self._previous, self._end = 0, _NO_LINE, -1
        self.append(Identified(certificate=certificate_pem(writer.certificate).decode()))

    def append(self, body: Body) -> None:
        """Write one entry, durably.

        Raises:
            AuditError: the disk refuses, or the last line is not one of a chain; whatever the entry is about must not
                happen.
        """
        with hold(self._path.with_name(_LOCK_FILE)):
            self._catch_up()
            self._write(body)

    def _catch_up(self) -> None:
        """Follow what another process has written since this one wrote last."""
        try:
            if os.fstat(self._descriptor).st_size == self._end:
                return
            last = self._drop_torn_line()
            self._end = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise AuditError(f"{self._path.name} must be readable and writable: {error.strerror}") from None
        self._sequence, self._previous = _head(self._path, last)

    def _write(self, body: Body) -> None:
        unsigned = {
            "version": VERSION,
            "sequence": self._sequence + 1,
            "previous": self._previous,
            "time": int(time.time()),
            "body": body.model_dump(mode="json"),
        }
        signature = self._writer.sign(_DOMAIN + canonical_json(unsigned)).hex()
        line = canonical_json({**unsigned, "signature": signature}) + b"\n"
        end = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, line)
            if written == len(line):
                os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, end)
            raise AuditError(f"{self._path.name} must be writable: {error.strerror}; free space") from None
        if written != len(line):
            os.ftruncate(self._descriptor, end)
            raise AuditError(f"{self._path.name} must be writable: the disk is full; free space")
        self._sequence += 1
        self._previous = hashlib.sha256(line).hexdigest()
        self._end = end + len(line)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _drop_torn_line(self) -> bytes:
        """Cut off what follows the last newline; return the last whole line, nothing if there is none."""
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            os.ftruncate(self._descriptor, whole)
        return content[:whole].splitlines(keepends=True)[-1] if whole else b""


def read_chain(content: bytes, name: str, authority: x509.Certificate) -> Chain:
    """Verify a whole chain.

    Args:
        content: of the file.
        name: of the file, for messages.
        authority: the consortium's; each certificate in the chain must be issued by it and be valid at its line's time.

    Raises:
        AuditError: something is wrong; the message names the file and the line.
    """
    if not content.endswith(b"\n"):
        raise AuditError(f"{name}: the last line must end in a newline; the file was cut short or changed there")
    party, keys, entries, previous = "", list[PublicKey](), list[AuditEntry](), _NO_LINE
    for number, encoded in enumerate(content[:-1].split(b"\n"), start=1):
        line = _parsed(encoded, f"{name}, line {number}")
        if line.sequence != number or line.previous != previous:
            raise AuditError(
                f"{name}, line {number}: must follow the line before it; one was changed, removed or added"
            )
        if isinstance(line.body, Identified):
            writer, key = _writer(line.body, authority, line.time, f"{name}, line {number}")
            if party and writer != party:
                raise AuditError(f"{name}, line {number}: must be of {party}, got a certificate of {writer}")
            party, keys = writer, [*keys, key]
        if not keys:
            raise AuditError(f"{name}, line 1: must carry the writer's certificate")
        _verify(line, keys[-1], f"{name}, line {number}")
        entries.append(AuditEntry(number, line.time, line.body))
        previous = hashlib.sha256(encoded + b"\n").hexdigest()
    return Chain(party, tuple(keys), tuple(entries))


def _parsed(encoded: bytes, place: str) -> _LineOfToday | _LineOf010:
    if len(encoded) > _LONGEST_LINE_BYTES:
        raise AuditError(f"{place}: must be at most {_LONGEST_LINE_BYTES} bytes long")
    try:
        line: _LineOfToday | _LineOf010 = _LineOfToday.model_validate_json(encoded)
    except ValidationError as error:
        try:
            line = _LineOf010.model_validate_json(encoded)
        except ValidationError:
            raise AuditError(f"{place}: must be an entry of an audit chain; {complaint(error, 'the line')}") from None
    if canonical_json(line.model_dump(mode="json")) != encoded:
        raise AuditError(f"{place}: must be in canonical form; it was changed")
    return line


def _writer(body: Identified, authority: x509.Certificate, when: int, place: str) -> tuple[str, PublicKey]:
    try:
        moment = datetime.datetime.fromtimestamp(when, datetime.UTC)
        return verify_party(body.certificate.encode(), authority, moment)
    except (IdentityError, ValueError, OverflowError, OSError) as error:
        raise AuditError(f"{place}: {error}") from None


def _verify(line: _Line, key: PublicKey, place: str) -> None:
    unsigned = line.model_dump(mode="json", exclude={"signature"})
    if not is_signed_by(key, bytes.fromhex(line.signature), _DOMAIN + canonical_json(unsigned)):
        raise AuditError(f"{place}: must be signed by its writer's key; it was changed")


def _head(path: Path, last: bytes) -> tuple[int, str]:
    """Return the number and the hash of the last line; the rest of the chain is verified by who reads it."""
    if not last:
        return 0, _NO_LINE
    return _parsed(last.removesuffix(b"\n"), f"{path.name}, last line").sequence, hashlib.sha256(last).hexdigest()
