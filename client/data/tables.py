"""Reads the tables that hospitals have: what Excel, LibreOffice and scripts write, as CSV or as an Excel workbook.

Between columns may stand commas, semicolons, tabs or bars, whichever gives the columns that are asked for; a first line
``sep=;`` decides. Text is UTF-8 or UTF-16, with or without its mark. Names of columns count without case, blanks and
marks: ``Accession Number`` is ``accession_number``. Of a workbook that sheet is read which has the columns.

Text that is neither is read as Windows-1252 (Latin-1 with more letters) and said so, unless it also holds letters in
UTF-8: then one of the two is damage. A letter that this gets wrong makes a label or file unknown, never another one's.

Nothing is guessed beyond that: two columns of one name, and a row with cells too many or too few, are refused by line.
"""

import contextlib
import csv
import datetime
import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from client.data.mistakes import Mistake
from common.shards import MAX_MANIFEST_BYTES

Row = tuple[int, dict[str, str] | None]
"""A line's number, and its cells by the name of their column, trimmed; None if there are too many or too few."""

_SEPARATORS = (",", ";", "\t", "|")
_SAID_SEPARATOR = re.compile(r'"?sep=(.)"?[ \t]*\r?\n', re.IGNORECASE)
_WORKBOOK_MARK, _OLD_WORKBOOK_MARK = b"PK\x03\x04", b"\xd0\xcf\x11\xe0"
_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_SINGLE_BYTE, _READ_AS = "cp1252", "read as Windows-1252; save it as 'CSV UTF-8' if letters are wrong"
_LAST_ASCII = 0x7F
_ZEROS_SHOWN = re.compile(r"0{2,32}")
"""Excel's format of a number that is shown with leading zeros."""
_POINT_ZERO = re.compile(r"(\d+)[.,]0+")
_PROBED_BYTES = 4096
_ZERO_SHARE = 4
"""Text in UTF-16 has a zero in every other byte where it is Latin; one in four is enough to recognise it."""


class UnusableTableError(Exception):
    """A table cannot be read; says which mistake it is and where, never what stands in it."""

    def __init__(self, mistake: Mistake, detail: str, line: int = 0) -> None:
        """Keep the mistake, what was got, and the line if it is one line's."""
        super().__init__(mistake.value)
        self.mistake, self.detail, self.line = mistake, detail, line


@dataclass(frozen=True)
class Table:
    """A table whose rows can be read as often as wanted.

    Attributes:
        columns: the names asked for that it has.
        remarks: what of the file was left out, each in words.
    """

    columns: frozenset[str]
    remarks: tuple[str, ...]
    _read: Callable[[], Iterator[tuple[int, list[str]]]] = field(repr=False)
    _names: tuple[str, ...] = field(repr=False)

    def rows(self) -> Iterator[Row]:
        """Yield every row that holds anything; cells beyond the last named column may only be blank.

        Raises:
            UnusableTableError: a quotation mark stays open, or a stray byte is met.
        """
        width = len(self._names)
        for line, cells in self._read():
            if any(cell.strip() for cell in cells):
                fits = len(cells) >= width and not any(cell.strip() for cell in cells[width:])
                named = {name: cell.strip() for name, cell in zip(self._names, cells, strict=False) if name}
                yield line, named if fits else None


def read_table(content: bytes, wanted: Sequence[str], required: Sequence[str]) -> Table:
    """Read the head of a table.

    Args:
        content: the whole file.
        wanted: names of columns, as they are called here; others are read past.
        required: those of them that must be there.

    Raises:
        UnusableTableError: it is no table, has a required column not or any wanted one twice.
    """
    if content.startswith(_OLD_WORKBOOK_MARK):
        raise UnusableTableError(Mistake.MANIFEST_MALFORMED, "an old Excel workbook (.xls); save it as .xlsx or CSV")
    if content.startswith(_WORKBOOK_MARK):
        return _workbook(content, wanted, required)
    text, remarks = _text(content)
    said = _SAID_SEPARATOR.match(text)
    skipped = 1 if said else 0
    body = text[said.end() :] if said else text
    separators = (said[1],) if said else _SEPARATORS
    heads = [_head(_records(body, separator, skipped), wanted) for separator in separators]
    best = max(range(len(heads)), key=lambda at: (len(set(heads[at]) & set(required)), len(set(heads[at])), -at))
    _check_head(heads[best], required)

    def read() -> Iterator[tuple[int, list[str]]]:
        return _after_head(_records(body, separators[best], skipped))

    return _table(heads[best], remarks, read)


def without_point_zero(text: str) -> str:
    """Return a whole number without the ``.0`` that spreadsheets and scripts give it; other text as it is.

    >>> without_point_zero("12.0"), without_point_zero("1.5"), without_point_zero("A.0")
    ('12', '1.5', 'A.0')
    """
    number = _POINT_ZERO.fullmatch(text)
    return number[1] if number else text


def _text(content: bytes) -> tuple[str, tuple[str, ...]]:
    """Return the text of a table, and a remark where its encoding had to be assumed."""
    encoding, start = next(((name, len(mark)) for mark, name in _MARKS if content.startswith(mark)), ("utf-8", 0))
    probe = content[:_PROBED_BYTES]
    if not start and probe.count(0) * _ZERO_SHARE >= len(probe) > 0:
        encoding = "utf-16-le" if probe[1::2].count(0) >= probe[::2].count(0) else "utf-16-be"
    try:
        return content[start:].decode(encoding), ()
    except UnicodeDecodeError as error:
        line = content[: start + error.start].count(b"\n") + 1
        if not start and encoding == "utf-8" and not _has_utf8_letters(content):
            with contextlib.suppress(UnicodeDecodeError):
                return content.decode(_SINGLE_BYTE), (f"neither UTF-8 nor UTF-16 from line {line} on: {_READ_AS}",)
        raise UnusableTableError(Mistake.MANIFEST_NOT_UTF8, f"line {line}", line) from None


def _has_utf8_letters(content: bytes) -> bool:
    """Return whether anything beyond ASCII is UTF-8, so that what is not must be damage."""
    return any(ord(letter) > _LAST_ASCII for letter in content.decode("utf-8", "ignore"))


def _records(text: str, separator: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for cells in reader:
            yield reader.line_num + skipped, cells
    except csv.Error:
        detail = "open quotation mark or stray byte"
        raise UnusableTableError(Mistake.MANIFEST_MALFORMED, detail, reader.line_num + skipped) from None


def _head(records: Iterator[tuple[int, list[str]]], wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the columns, '' for one that is not wanted; blank ones at the end are left out."""
    try:
        cells = next((cells for _, cells in records if any(cell.strip() for cell in cells)), [])
    except UnusableTableError:
        return ()
    while cells and not cells[-1].strip():
        cells = cells[:-1]
    known = {_squeezed(name): name for name in wanted}
    return tuple(known.get(_squeezed(cell), "") for cell in cells)


def _squeezed(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold()


def _check_head(names: tuple[str, ...], required: Sequence[str]) -> None:
    missing = [name for name in required if name not in names]
    if missing:
        raise UnusableTableError(Mistake.MANIFEST_COLUMN_MISSING, f"missing: {', '.join(missing)}")
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise UnusableTableError(Mistake.MANIFEST_MALFORMED, f"two columns are called {twice[0]}; keep one")


def _after_head(records: Iterable[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    is_head = True
    for line, cells in records:
        if not is_head:
            yield line, cells
        elif any(cell.strip() for cell in cells):
            is_head = False


def _table(
    names: tuple[str, ...], remarks: tuple[str, ...], read: Callable[[], Iterator[tuple[int, list[str]]]]
) -> Table:
    return Table(frozenset(name for name in names if name), remarks, read, names)


def _workbook(content: bytes, wanted: Sequence[str], required: Sequence[str]) -> Table:
    heads = {}
    titles = _sheets(content)
    for title in titles:
        heads[title] = _head(_sheet(content, title), wanted)
    fitting = [title for title in titles if set(required) <= set(heads[title])]
    if len(fitting) > 1:
        raise UnusableTableError(Mistake.MANIFEST_MALFORMED, f"{len(fitting)} sheets have these columns; keep one")
    if not fitting:
        _check_head(max(heads.values(), key=lambda names: len(set(names)), default=()), required)
    title = fitting[0]
    _check_head(heads[title], required)
    others = sum(1 for other in titles if other != title and heads[other])
    remarks = (f"{others} further sheets of the workbook are not read",) if others else ()
    width = len(heads[title])

    def filled() -> Iterator[tuple[int, list[str]]]:
        for line, cells in _after_head(_sheet(content, title)):
            yield line, cells + [""] * (width - len(cells))  # A sheet does not hold the empty cells at a row's end.

    return _table(heads[title], remarks, filled)


_WORKBOOK_ERRORS = (zipfile.BadZipFile, zlib.error, KeyError, ValueError, TypeError, OSError, EOFError, SyntaxError)
"""What openpyxl was seen to raise on damaged workbooks; its XML errors are syntax errors."""


def _open(content: bytes) -> object:
    from openpyxl import load_workbook  # takes half a second, and few tables are workbooks

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(member.file_size for member in archive.infolist()) > MAX_MANIFEST_BYTES:
            raise UnusableTableError(Mistake.MANIFEST_MALFORMED, f"more than {MAX_MANIFEST_BYTES} bytes when unpacked")
    return load_workbook(io.BytesIO(content), read_only=True, data_only=True)


def _sheets(content: bytes) -> list[str]:
    try:
        return [sheet.title for sheet in _open(content).worksheets]  # type: ignore[attr-defined]
    except _WORKBOOK_ERRORS:
        raise UnusableTableError(Mistake.MANIFEST_MALFORMED, "no Excel workbook, or a damaged one") from None


def _sheet(content: bytes, title: str) -> Iterator[tuple[int, list[str]]]:
    try:
        sheet = _open(content)[title]  # type: ignore[index]
        sheet.reset_dimensions()  # which some programs write wrong
        for line, cells in enumerate(sheet.iter_rows(), start=1):
            yield line, [_shown(cell.value, str(getattr(cell, "number_format", ""))) for cell in cells]
    except _WORKBOOK_ERRORS:
        raise UnusableTableError(Mistake.MANIFEST_MALFORMED, "no Excel workbook, or a damaged one") from None


def _shown(value: object, number_format: str) -> str:
    """Return what a cell shows, so that whole numbers have no ``.0`` and keep the zeros of their format."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and _ZEROS_SHOWN.fullmatch(number_format):
        return str(value).zfill(len(number_format))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    return str(value)
