"""What is asked of a PACS and what it answers, whichever protocol carries it."""

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_LONGEST_UID = 64
_WILDCARDS = frozenset("*?\\")
"""Letters that in a query would stand for other numbers (PS3.4, C.2.2.2.4) or for several."""


class PacsError(Exception):
    """A study could not be had; the message is a reason in words, without an identifier."""


class PacsAwayError(PacsError):
    """The PACS cannot be reached, or broke off; the next try may do better."""


class PacsRefusesError(PacsError):
    """The PACS answers, but not to us: a wrong password, title or certificate. No further try will help."""


@dataclass(frozen=True)
class PacsStudy:
    """A study that a PACS has.

    Attributes:
        uid: its Study Instance UID.
        accession: its accession number, '' if it has none.
        date: as YYYYMMDD, '' if unknown.
        modalities: of its series; empty where the PACS does not say.
        series: how many it has; None where the PACS does not say.
    """

    uid: str = field(repr=False)
    accession: str = field(repr=False)
    date: str = field(default="", repr=False)
    modalities: frozenset[str] = frozenset()
    series: int | None = None


@dataclass(frozen=True)
class StudyList:
    """Studies that a PACS lists, and how many more it has but fails to list."""

    studies: tuple[PacsStudy, ...] = field(repr=False)
    unlisted: int = 0


@dataclass(frozen=True)
class Series:
    """One series of a study; its modality and body part are '', and its objects None, where the PACS does not say."""

    uid: str = field(repr=False)
    modality: str = ""
    body_part: str = ""
    objects: int | None = None


@dataclass(frozen=True)
class Wanted:
    """Which series are taken, and of which studies.

    Attributes:
        modalities: such as CR and DX.
        body_parts: words in capitals, of which Body Part Examined must hold one; none take every part.
        first: the first day, None for no limit.
        last: the last day, None for no limit.
    """

    modalities: tuple[str, ...]
    body_parts: tuple[str, ...] = ()
    first: datetime.date | None = None
    last: datetime.date | None = None

    @property
    def kind(self) -> str:
        """What of a study is taken, in one line; a study taken by another one is taken again."""
        return "+".join(self.modalities) + (f" {'+'.join(self.body_parts)}" if self.body_parts else "")

    def takes_series(self, series: Series) -> bool:
        """Return whether a series is wanted; a body part that the PACS does not name is, and the check reads it."""
        part = series.body_part.upper()
        is_part = not part or not self.body_parts or any(word in part for word in self.body_parts)
        return series.modality in self.modalities and is_part

    def takes_date(self, date: str) -> bool:
        """Return whether a study of that day is wanted; one without a date is."""
        begins = self.first is None or date >= f"{self.first:%Y%m%d}"
        ends = self.last is None or date <= f"{self.last:%Y%m%d}"
        return not date or (begins and ends)


@dataclass(frozen=True)
class Received:
    """The files that a PACS sent of one series, and how many more it had but did not send."""

    files: tuple[Path, ...] = field(repr=False)
    not_sent: int = 0


class Pacs(Protocol):
    """One connection to a PACS; one thread uses it at a time."""

    def studies_of_day(self, day: datetime.date, modalities: Sequence[str]) -> StudyList:
        """Return all studies of a day which, as far as the PACS says, have one of the modalities."""

    def studies_of_accession(self, accession: str) -> list[PacsStudy]:
        """Return the studies with exactly this accession number."""

    def series_of(self, study: PacsStudy) -> list[Series]:
        """Return the series of a study."""

    def retrieve(self, study: PacsStudy, series: Series, folder: Path) -> Received:
        """Write every object of a series into a folder, one file each."""

    def close(self) -> None:
        """End the connection."""


def is_uid(text: str) -> bool:
    """Return whether a text is a UID (PS3.5, 9.1), so that nothing else gets into a query.

    >>> is_uid("1.2.840.10008.1.2"), is_uid("1.2/../x"), is_uid("")
    (True, False, False)
    """
    return len(text) <= _LONGEST_UID and _UID.fullmatch(text) is not None


def is_accession(text: str) -> bool:
    """Return whether a text names one accession number: no wildcard, no control character, at most 16 letters.

    >>> is_accession("A-0001"), is_accession("A*")
    (True, False)
    """
    return 0 < len(text) <= 16 and text.isprintable() and not _WILDCARDS & set(text)  # noqa: PLR2004 - PS3.5, 6.2, SH
