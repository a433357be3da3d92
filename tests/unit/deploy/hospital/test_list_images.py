import csv
import os
from pathlib import Path

import pytest

from common.errors import DataError
from deploy import cli
from deploy.hospital.list_images import Key, LabelTable, list_images, read_labels
from deploy.source_tree import ROOT
from tests.support.hospital_folder import CLASSES, chest_images, dicom, png, workbook


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Return a folder as a PACS writes it: numbered folders, files without endings, a table of contents."""
    folder = tmp_path / "export"
    for number, pixels in enumerate(chest_images()):
        person = number // 2
        path = folder / f"PA{person:06d}" / "ST000001" / f"IM{number:06d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dicom(pixels, PatientID=f"KH-{person}", AccessionNumber=f"A{person:04d}"))
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (folder / "VIEWER.EXE").write_bytes(b"MZ")
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "manifest.csv").read_text(encoding="utf-8").splitlines()))


def test_an_export_and_a_table_of_findings_become_data_that_keeps_the_contract(export: Path, tmp_path: Path) -> None:
    labels = tmp_path / "findings.csv"
    labels.write_text("accession_number,label\n" + "".join(f"A{n:04d},{CLASSES[n // 2 % 2]}\n" for n in range(30)))
    assert cli.main(["hospital", "list-images", str(export), "--labels", str(labels)]) == 0
    contract = ("--config", str(ROOT / "config.yaml"), "--set", "training.batch_size=8")
    assert cli.main(["hospital", "check-data", str(export), *contract]) == 0
    listed = rows(export)
    assert len(listed) == 60
    assert {row["patient_id"] for row in listed} == {f"KH-{n}" for n in range(30)}
    assert all(row["label"] == CLASSES[int(row["accession_number"][1:]) // 2 % 2] for row in listed)
    assert {row["split"] for row in listed} == {""}


def table(**labels: str) -> LabelTable:
    return LabelTable(labels, {name: line for line, name in enumerate(labels, start=2)})


def said(folder: Path, findings: bytes, capsys: pytest.CaptureFixture[str], *options: str, name: str = "f.csv") -> str:
    """Run the command with a table of findings and return what it says."""
    path = folder.parent / name
    path.write_bytes(findings)
    assert cli.main(["hospital", "list-images", str(folder), "--labels", str(path), *options]) == 0
    return capsys.readouterr().out


def labels_of(folder: Path) -> dict[str, str]:
    return {row["accession_number"]: row["label"] for row in rows(folder)}


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Return a folder of four images with accession numbers of seven digits, and one without any."""
    folder = tmp_path / "few"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.dcm").write_bytes(dicom(chest_images()[number], AccessionNumber=f"{number:07d}"))
    (folder / "4.dcm").write_bytes(dicom(chest_images()[4]))
    return folder


def test_an_image_without_a_label_is_listed_without_one(export: Path) -> None:
    listed = list_images(export, table(**{"KH-3": "normal"}), Key.PATIENT_ID)
    assert (listed.images, listed.labelled) == (60, 2)
    assert len(listed.unnamed) == 58
    assert [row["patient_id"] for row in rows(export) if row["label"]] == ["KH-3", "KH-3"]


def test_pictures_and_damaged_files_are_listed_by_their_name_alone(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(chest_images()[0]))
    (tmp_path / "b.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"broken")
    list_images(tmp_path, table(**{"a.png": "normal"}), Key.FILE)
    assert [(row["file"], row["label"], row["patient_id"]) for row in rows(tmp_path)] == [
        ("a.png", "normal", ""),
        ("b.dcm", "", ""),
    ]


@pytest.mark.parametrize("blank", [b",normal", b"  ,normal", b'"",normal', b",normal,"])
def test_a_row_without_a_key_labels_nothing_and_is_reported(
    few: Path, capsys: pytest.CaptureFixture[str], blank: bytes
) -> None:
    text = said(few, b"accession_number,label\n0000000,pneumonia\n" + blank + b"\n", capsys)
    assert labels_of(few) == {"0000000": "pneumonia", "0000001": "", "0000002": "", "0000003": "", "": ""}
    assert "1 row of the table without accession_number, not used: line 3" in text
    assert "1 image without accession_number, so without a label: 4.dcm" in text
    assert "3 images that no row of the table names: 1.dcm, 2.dcm, 3.dcm" in text


def test_a_row_without_a_label_is_reported(few: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(few, b"accession_number,label\n0000000,normal\n0000001,\n", capsys)
    assert "1 row of the table without label: line 3" in text
    assert "labels: normal 1" in text


@pytest.mark.parametrize("key", ["1", "01", "1.0", "000001"])
def test_a_key_that_lost_its_zeros_matches_nothing_and_says_why(
    few: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    text = said(few, f"accession_number,label\n{key},normal\n".encode(), capsys)
    assert "1 row of the table match no image (leading zeros? without them 1 would match" in text
    assert "line 2" in text
    assert not any(labels_of(few).values())


def test_a_key_of_another_study_is_not_blamed_on_zeros(few: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(few, b"accession_number,label\n0000001,normal\n77,normal\n", capsys)
    assert "1 row of the table match no image: line 3" in text


@pytest.mark.parametrize("written", ["0000002.0", "0000002.00", "0000002,0"])
def test_a_key_that_became_a_decimal_number_matches_and_is_counted(
    few: Path, capsys: pytest.CaptureFixture[str], written: str
) -> None:
    text = said(few, f"accession_number;label\n{written};normal\n".encode(), capsys)
    assert labels_of(few)["0000002"] == "normal"
    assert "1 row matched without the '.0' of a number: line 2" in text


def test_two_spellings_of_a_key_may_not_disagree(few: Path) -> None:
    with pytest.raises(DataError, match="line 3: this key has another label"):
        list_images(few, table(**{"0000002": "normal", "0000002.0": "pneumonia"}), Key.ACCESSION_NUMBER)


def test_a_workbook_keeps_the_zeros_that_its_format_shows(few: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = [("Accession Number", "Label"), *((number, "normal") for number in range(4))]
    content = workbook({"Findings": sheet}, {f"A{row}": "0000000" for row in range(2, 6)})
    assert "labels: normal 4" in said(few, content, capsys, name="f.xlsx")


@pytest.mark.parametrize("separator", [";", "\t", "|", ","])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_table_is_read_however_a_spreadsheet_saved_it(
    few: Path, capsys: pytest.CaptureFixture[str], separator: str, encoding: str
) -> None:
    text = "sep=,\nAccession Number,LABEL,,\n0000000,normal,,\n0000001,pneumonia,,\n".replace(",", separator)
    assert "labels: normal 1, pneumonia 1" in said(few, text.encode(encoding), capsys)


def test_labels_may_be_renamed(few: Path, capsys: pytest.CaptureFixture[str]) -> None:
    findings = b"accession_number,label\n0000000,o.B.\n0000001,PNEUMONIE\n"
    text = said(few, findings, capsys, "--rename", "o.B.=normal", "--rename", "Pneumonie=pneumonia")
    assert "labels: normal 1, pneumonia 1" in text
    assert cli.main(["hospital", "list-images", str(few), "--rename", "normal"]) == 2


def test_files_that_are_not_listed_are_named(few: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (few / "scan.tif").write_bytes(b"II*\0" + bytes(200))
    (few / "viewer.exe").write_bytes(b"MZ" + bytes(200))
    Path(os.fsdecode(os.fsencode(few) + b"/f\xfcr.dcm")).write_bytes(dicom(chest_images()[9]))
    for _ in range(2):
        assert cli.main(["hospital", "list-images", str(few)]) == 0
        text = capsys.readouterr().out
        assert "5 images are listed" in text
        assert "not listed, name_not_utf8: f\\xfcr.dcm" in text
        assert "scan.tif: TIFF image" in text
        assert "1 .exe" in text
        (few / "manifest.csv").unlink()


def test_a_folder_of_other_files_says_which(tmp_path: Path) -> None:
    (tmp_path / "scan.tif").write_bytes(b"II*\0" + bytes(200))
    with pytest.raises(DataError, match=r"no PNG, JPEG or DICOM[\s\S]*scan.tif: TIFF image"):
        list_images(tmp_path, LabelTable(), Key.FILE)


def test_a_manifest_is_written_whole_or_not_at_all(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_self: Path, _target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DataError, match="No space left"):
        list_images(few, LabelTable(), Key.FILE)
    assert not (few / "manifest.csv").exists()


def test_a_manifest_is_never_overwritten(export: Path) -> None:
    (export / "manifest.csv").write_text("mine")
    with pytest.raises(DataError, match="is there already"):
        list_images(export, LabelTable(), Key.FILE)
    assert (export / "manifest.csv").read_text() == "mine"


def test_a_folder_without_images_or_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no PNG, JPEG or DICOM"):
        list_images(tmp_path, LabelTable(), Key.FILE)
    with pytest.raises(DataError, match="must be a folder"):
        list_images(tmp_path / "missing", LabelTable(), Key.FILE)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"accession,label\nA1,normal\n", "missing: accession_number"),
        (b"accession_number;finding\nA1;normal\n", "must name the columns accession_number, label; missing: label"),
        (b"accession_number,label,Label\nA1,normal,pneumonia\n", "two columns are called label"),
        (b"accession_number,label\nA1,normal,more\n", "line 2: it must have as many cells"),
        (b"accession_number,label\nA1,normal\nA1,pneumonia\n", "line 3: this accession_number has another label"),
        (b"accession_number,label\nA1,\x81\n", "CSV UTF-8"),
        (b'accession_number,label\n"A1,normal\n', "line 2: the table cannot be read"),
    ],
)
def test_a_table_of_labels_that_is_none_is_refused_without_what_stands_in_it(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=complaint) as caught:
        read_labels(path, Key.ACCESSION_NUMBER)
    assert "A1" not in str(caught.value)
    with pytest.raises(DataError, match="readable file"):
        read_labels(tmp_path / "missing.csv", Key.FILE)
