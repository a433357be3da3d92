import codecs
import datetime
import io
import re
import zipfile

import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.mistakes import Mistake
from client.data.tables import UnusableTableError, read_table, without_point_zero
from tests.support.hospital_folder import workbook

WANTED = ("file", "label", "patient_id")
REQUIRED = ("file", "label")
EXPECTED = [(2, {"file": "a.png", "label": "normal"}), (3, {"file": "b.png", "label": "pneumonia"})]

TEXT = "file,label\r\na.png,normal\r\nb.png,pneumonia\r\n"


def rows(content: bytes) -> list[tuple[int, dict[str, str] | None]]:
    return list(read_table(content, WANTED, REQUIRED).rows())


def refused(content: bytes) -> UnusableTableError:
    with pytest.raises(UnusableTableError) as caught:
        rows(content)
    return caught.value


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.replace("\r\n", "\n").encode(),
        TEXT.replace(",", ";").encode(),  # "CSV UTF-8" of a German, French or Spanish Excel
        TEXT.replace(",", "\t").encode(),
        TEXT.replace(",", "|").encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.replace(",", ";").encode(),
        TEXT.encode("utf-16"),  # "Unicode text", with its mark
        TEXT.replace(",", "\t").encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-16-be"),
        TEXT.replace("file,label", "File, LABEL ").encode(),
        TEXT.replace("file,label", '"File";"Label"').replace(",", ";").encode(),
        TEXT.replace("\r\n", ",,\r\n").encode(),  # columns that a spreadsheet once had
        TEXT.replace("\r\n", ";;;\r\n").replace(",", ";").encode(),
        (TEXT + ",\r\n\r\n , \r\n").encode(),  # blank rows at the end
        TEXT.replace("a.png", '"a.png"').replace("normal", " normal ").encode(),
        workbook({"Findings": [("file", "label"), ("a.png", "normal"), ("b.png", "pneumonia")]}),
        workbook({"Findings": [("File ", "Label", None), ("a.png", "normal"), ("b.png", "pneumonia"), (None, None)]}),
        workbook({"Empty": [], "Findings": [("file", "label"), ("a.png", "normal"), ("b.png", "pneumonia")]}),
    ],
)
def test_a_table_is_read_however_it_was_saved(content: bytes) -> None:
    assert rows(content) == EXPECTED


@pytest.mark.parametrize("said", ["sep=;\r\n", "sep=;\n", '"sep=;"\r\n', "SEP=;\r\n"])
def test_a_first_line_that_says_the_separator_is_believed_and_counted(said: str) -> None:
    text = said + TEXT.replace(",", ";")
    assert rows(text.encode()) == [(line + 1, cells) for line, cells in EXPECTED]
    assert rows(codecs.BOM_UTF8 + text.encode()) == [(line + 1, cells) for line, cells in EXPECTED]


@pytest.mark.parametrize("name", ["Patient ID", "PatientID", "patient-id", " PATIENT_ID ", "Patient_Id"])
def test_names_of_columns_count_without_case_blanks_and_marks(name: str) -> None:
    content = f"file,label,{name}\na.png,normal,P1\n".encode()
    assert rows(content) == [(2, {"file": "a.png", "label": "normal", "patient_id": "P1"})]


def test_a_cell_may_hold_the_separator_in_quotes_and_a_comma_as_decimal_mark() -> None:
    assert rows(b'file;label;note\n"a;b.png";normal;1,5\n') == [(2, {"file": "a;b.png", "label": "normal"})]


@pytest.mark.parametrize(
    ("content", "mistake", "detail", "line"),
    [
        (b"file,label,label\na,x,y\n", Mistake.MANIFEST_MALFORMED, "two columns are called label", 0),
        (b"file,label,Label \na,x,y\n", Mistake.MANIFEST_MALFORMED, "two columns are called label", 0),
        (b"file;label;Patient ID;patient_id\n", Mistake.MANIFEST_MALFORMED, "called patient_id", 0),
        (b"file,diagnosis\na,x\n", Mistake.MANIFEST_COLUMN_MISSING, "missing: label", 0),
        (b"", Mistake.MANIFEST_COLUMN_MISSING, "missing: file, label", 0),
        (b"a.png,normal\n", Mistake.MANIFEST_COLUMN_MISSING, "missing: file, label", 0),
        (f"{TEXT}é".encode() + b"\n\xe4,normal\n", Mistake.MANIFEST_NOT_UTF8, "line 5", 5),
        (TEXT.encode() + b"\x81.png,normal\n", Mistake.MANIFEST_NOT_UTF8, "line 4", 4),
        (b"\xef\xbb\xbf" + TEXT.encode() + b"\xe4.png,normal\n", Mistake.MANIFEST_NOT_UTF8, "line 4", 4),
        (b'file,label\n"a.png,normal\n', Mistake.MANIFEST_MALFORMED, "open quotation mark", 2),
        (b"\xd0\xcf\x11\xe0" + bytes(600), Mistake.MANIFEST_MALFORMED, r"\.xls", 0),
        (b"PK\x03\x04" + bytes(100), Mistake.MANIFEST_MALFORMED, "Excel workbook", 0),
        (
            workbook({"A": [("file", "label")], "B": [("file", "label")]}),
            Mistake.MANIFEST_MALFORMED,
            "2 sheets have these columns",
            0,
        ),
        (workbook({"A": [("file", "x")]}), Mistake.MANIFEST_COLUMN_MISSING, "missing: label", 0),
        (workbook({"A": [("file", "label", "label")]}), Mistake.MANIFEST_MALFORMED, "two columns are called label", 0),
    ],
)
def test_what_only_a_guess_could_read_is_refused(content: bytes, mistake: Mistake, detail: str, line: int) -> None:
    problem = refused(content)
    assert problem.mistake is mistake
    assert re.search(detail, problem.detail)
    assert problem.line == line


@pytest.mark.parametrize(
    ("name", "encoding"), [("Müller", "latin-1"), ("Señor Ibáñez", "cp1252"), ("Œuvre – “7”", "cp1252")]
)
def test_a_table_in_a_single_byte_encoding_is_read_and_said_so(name: str, encoding: str) -> None:
    table = read_table(f"file,label,patient_id\na.png,normal,{name}\n".encode(encoding), WANTED, REQUIRED)
    assert list(table.rows()) == [(2, {"file": "a.png", "label": "normal", "patient_id": name})]
    assert table.remarks == (
        "neither UTF-8 nor UTF-16 from line 2 on: read as Windows-1252; save it as 'CSV UTF-8' if letters are wrong",
    )


@pytest.mark.parametrize("row", ["a.png", "a.png,normal,more"])
def test_a_row_with_cells_too_few_or_too_many_is_no_row(row: str) -> None:
    assert rows(f"file,label\n{row}\n".encode()) == [(2, None)]


def test_numbers_of_a_workbook_are_read_as_they_are_shown() -> None:
    sheet = [("file", "label", "patient_id"), (7, 1.0, 12.0), (8, 0, 1.5), (True, 1, datetime.date(2026, 1, 2))]
    content = workbook({"A": sheet}, {"A2": "0000000"})
    assert [cells and tuple(cells.values()) for _, cells in rows(content)] == [
        ("0000007", "1", "12"),
        ("8", "0", "1.5"),
        ("True", "1", "2026-01-02"),
    ]


def test_a_formula_without_its_result_and_a_merged_cell_hold_nothing_that_could_be_taken_for_a_label() -> None:
    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    for row in (("file", "label"), ("a.png", '=IF(1,"normal",0)'), ("b.png", "pneumonia"), ("c.png", None)):
        sheet.append(row)
    sheet.merge_cells("B3:B4")
    content = io.BytesIO()
    book.save(content)
    found = [(cells["file"], cells["label"]) for _, cells in rows(content.getvalue()) if cells is not None]
    assert found == [("a.png", ""), ("b.png", "pneumonia"), ("c.png", "")]


def test_a_workbook_says_which_sheets_it_left_out() -> None:
    content = workbook({"A": [("file", "label"), ("a.png", "x")], "Notes": [("hello",)]})
    table = read_table(content, WANTED, REQUIRED)
    assert table.remarks == ("1 further sheets of the workbook are not read",)


def test_a_workbook_that_unpacks_to_more_than_a_table_may_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.data.tables.MAX_MANIFEST_BYTES", 1000)
    assert "when unpacked" in refused(workbook({"A": [("file", "label")]})).detail


def test_a_zip_archive_that_is_no_workbook_is_refused() -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a.dcm", b"")
    assert "Excel workbook" in refused(content.getvalue()).detail


@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_or_refused(content: bytes) -> None:
    try:
        rows(content)
    except UnusableTableError:
        return


@given(st.binary(max_size=60), st.integers(0, 4000), st.integers(0, 200))
def test_a_damaged_workbook_is_read_or_refused(change: bytes, place: int, cut: int) -> None:
    content = bytearray(workbook({"A": [("file", "label"), ("a.png", "normal")]}))
    content[place : place + len(change)] = change
    try:
        rows(bytes(content[: len(content) - cut]))
    except UnusableTableError:
        return


@pytest.mark.parametrize(
    ("text", "plain"), [("1.0", "1"), ("1,00", "1"), ("007.0", "007"), ("1.5", "1.5"), ("A.0", "A.0")]
)
def test_the_point_and_zero_of_a_whole_number_go(text: str, plain: str) -> None:
    assert without_point_zero(text) == plain
