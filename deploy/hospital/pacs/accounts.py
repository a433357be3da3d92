"""What became of every study, in ``fetched.csv`` beside the images: written as it happens, so that a kill loses no row.

The last row of a study counts. A last line that was cut short is dropped: its study is asked for again.
"""

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path

from client.data.catalogue import FETCHED_NAME
from common.errors import DataError
from common.files import write_private
from common.shards import MAX_MANIFEST_BYTES


class Outcome(StrEnum):
    """What became of a study."""

    FETCHED = "fetched"
    PARTLY = "partly"
    """Some of its images could not be had or read; the others are here."""
    EMPTY = "empty"
    """It holds no image."""
    NOT_WANTED = "not wanted"
    """None of its series has the modality and body part that were asked for."""
    NOT_FOUND = "not found"
    """The PACS has no study with this accession number."""
    FAILED = "failed"


UNSETTLED = frozenset({Outcome.PARTLY, Outcome.NOT_FOUND, Outcome.FAILED})
"""The outcomes that a person must check; the next call tries these studies again."""


@dataclass(frozen=True)
class StudyAccount:
    """What became of one study.

    Attributes:
        outcome: in one word.
        accession_number: '' if it has none.
        study_instance_uid: '' if no study was found.
        study_date: as YYYYMMDD.
        images: files that are here.
        size: their bytes.
        reason: why it is not, or not all of it, here; also what was assumed.
        folder: where its images are, below the folder of all.
        taken: which modalities and body parts were asked for.
    """

    outcome: Outcome
    accession_number: str = field(repr=False)
    study_instance_uid: str = field(default="", repr=False)
    study_date: str = field(default="", repr=False)
    images: int = 0
    size: int = 0
    reason: str = ""
    folder: str = ""
    taken: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Name the study, or what else is known of it."""
        other = self.accession_number or f"{self.study_date}: {self.reason}"
        return (self.study_instance_uid, "" if self.study_instance_uid else other)


_COLUMNS = tuple(attribute.name for attribute in fields(StudyAccount))


class Accounts:
    """All rows of one folder."""

    def __init__(self, folder: Path) -> None:
        """Read what is there, and drop a last line that was cut short.

        Raises:
            DataError: this command did not write the file, or it cannot be read or written.
        """
        self._path = folder / FETCHED_NAME
        self._rows: dict[tuple[str, str], StudyAccount] = {}
        try:
            content = self._path.read_bytes() if self._path.exists() else b""
            if len(content) > MAX_MANIFEST_BYTES:
                raise DataError(f"{FETCHED_NAME} must have at most {MAX_MANIFEST_BYTES} bytes")
            whole = content[: content.rfind(b"\n") + 1]
            for account in _read(whole):
                self._keep(account)
            self._rewrite()
        except OSError as error:
            raise DataError(f"{FETCHED_NAME} must be readable and writable: {error.strerror}") from None

    def add(self, account: StudyAccount) -> None:
        """Keep a row and write it at once.

        Raises:
            DataError: the disk refuses.
        """
        self._keep(account)
        try:
            with self._path.open("ab", buffering=0) as file:
                file.write(_line(account))
        except OSError as error:
            raise DataError(f"{FETCHED_NAME} could not be written: {error.strerror}") from None

    def close(self) -> None:
        """Write the file again with one row a study."""
        try:
            self._rewrite()
        except OSError as error:
            raise DataError(f"{FETCHED_NAME} could not be written: {error.strerror}") from None

    def of_study(self, uid: str) -> StudyAccount | None:
        """Return the row of a study."""
        return self._rows.get((uid, ""))

    def by_accession(self) -> dict[str, list[StudyAccount]]:
        """Return the rows by their accession number."""
        found: dict[str, list[StudyAccount]] = {}
        for account in self._rows.values():
            found.setdefault(account.accession_number, []).append(account)
        return found

    def forget_unlisted(self, date: str) -> None:
        """Forget the studies of a day of which nothing but the day is known, before that day is listed again."""
        nameless = [
            key
            for key, account in self._rows.items()
            if account.study_date == date and not account.study_instance_uid and not account.accession_number
        ]
        for key in nameless:
            del self._rows[key]

    def numbered(self) -> Iterator[tuple[int, StudyAccount]]:
        """Yield every row with the number of its line in the file that :meth:`close` writes."""
        return iter(enumerate(self._rows.values(), start=2))

    def counts(self) -> Mapping[Outcome, int]:
        """Return how many studies have which outcome."""
        return Counter(account.outcome for account in self._rows.values())

    def _keep(self, account: StudyAccount) -> None:
        self._rows[account.key] = account
        if account.study_instance_uid:
            self._rows.pop(("", account.accession_number), None)

    def _rewrite(self) -> None:
        head = ",".join(_COLUMNS).encode() + b"\n"
        write_private(self._path, head + b"".join(map(_line, self._rows.values())))


def _line(account: StudyAccount) -> bytes:
    text = io.StringIO(newline="")
    cells = (" ".join(str(getattr(account, name)).split()) for name in _COLUMNS)
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8", "backslashreplace")


def _read(content: bytes) -> Iterator[StudyAccount]:
    try:
        table = csv.DictReader(io.StringIO(content.decode(), newline=""), strict=True)
        if content and tuple(table.fieldnames or ()) != _COLUMNS:
            raise DataError(f"{FETCHED_NAME} must be one that this command wrote; move it away to begin anew")
        for row in table:
            cells = {name: text for name, text in row.items() if name not in ("outcome", "images", "size")}
            yield StudyAccount(Outcome(row["outcome"]), images=int(row["images"]), size=int(row["size"]), **cells)
    except (ValueError, TypeError, csv.Error):
        raise DataError(f"{FETCHED_NAME} must be one that this command wrote; move it away to begin anew") from None


def size_of(folder: Path) -> tuple[int, int]:
    """Return the number of files in a folder and their bytes, (0, 0) if there is none."""
    try:
        with os.scandir(folder) as entries:
            sizes = [entry.stat(follow_symlinks=False).st_size for entry in entries]
    except OSError:
        return 0, 0
    return len(sizes), sum(sizes)
