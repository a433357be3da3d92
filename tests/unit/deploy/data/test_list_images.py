import csv
from pathlib import Path

import pytest

from common.errors import DataError
from deploy import cli
from deploy.data.list_images import Key, list_images, read_labels
from tests.unit.client.data.hospital_folder import CLASSES, chest_images, dicom, png
from tests.unit.deploy.data.test_check_data import CONFIG


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
    contract = ("--config", str(CONFIG), "--set", "training.batch_size=8")
    assert cli.main(["hospital", "check-data", str(export), *contract]) == 0
    listed = rows(export)
    assert len(listed) == 60
    assert {row["patient_id"] for row in listed} == {f"KH-{n}" for n in range(30)}
    assert all(row["label"] == CLASSES[int(row["accession_number"][1:]) // 2 % 2] for row in listed)
    assert {row["split"] for row in listed} == {""}


def test_an_image_without_a_label_is_listed_without_one(export: Path) -> None:
    listed = list_images(export, {"KH-3": "normal"}, Key.PATIENT_ID)
    assert (listed.images, listed.labelled) == (60, 2)
    assert [row["patient_id"] for row in rows(export) if row["label"]] == ["KH-3", "KH-3"]


def test_pictures_and_damaged_files_are_listed_by_their_name_alone(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(chest_images()[0]))
    (tmp_path / "b.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"broken")
    list_images(tmp_path, {"a.png": "normal"}, Key.FILE)
    assert [(row["file"], row["label"], row["patient_id"]) for row in rows(tmp_path)] == [
        ("a.png", "normal", ""),
        ("b.dcm", "", ""),
    ]


def test_a_manifest_is_never_overwritten(export: Path) -> None:
    (export / "manifest.csv").write_text("mine")
    with pytest.raises(DataError, match="is there already"):
        list_images(export, {}, Key.FILE)
    assert (export / "manifest.csv").read_text() == "mine"


def test_a_folder_without_images_or_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no PNG, JPEG or DICOM"):
        list_images(tmp_path, {}, Key.FILE)
    with pytest.raises(DataError, match="must be a folder"):
        list_images(tmp_path / "missing", {}, Key.FILE)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"accession,label\nA1,normal\n", "missing: accession_number"),
        (b"accession_number;label\nA1;normal\n", "must have the columns"),
        (b"accession_number,label\nA1,normal\nA1,pneumonia\n", "line 3: this accession_number has another label"),
        (b"accession_number,label\nA1,\xe4\n", "CSV UTF-8"),
        (b'accession_number,label\n"A1,normal\n', "with commas"),
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
