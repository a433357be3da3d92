"""Inputs that once went wrong in silence, or were refused for no reason, each with its right outcome.

Eight small X-rays in class folders, changed as one hospital's systems change them. Further inputs of each kind stand in
the tests of what they go through: ``client/data/test_dicom.py``, ``test_tables.py``, ``test_catalogue.py`` and others.
"""

import csv
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.sequence import Sequence

from client.data.hospital_data import Report, check_data
from client.data.mistakes import Mistake
from client.data.readers import read_picture
from deploy import cli
from tests.support.hospital_folder import CONTRACT, chest_images, dicom

Pixels = npt.NDArray[np.uint16]
Make = Callable[[Pixels, int], bytes]

OF_SO_FEW = {Mistake.PART_EMPTY, Mistake.TOO_FEW_FOR_BATCH, Mistake.PERSONAL_DATA}
"""What eight images with accession numbers have in any case."""

WHOLE_WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}


@dataclass
class Case:
    """Eight X-rays of eight patients with 12 bits, as one system writes them."""

    folder: Path
    make: Make
    endings: tuple[str, str] = (".dcm", ".dcm")

    def write(self) -> None:
        for number, name in enumerate(self.files()):
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.make(self.pixels(number), number))

    def files(self) -> list[str]:
        classes = ("normal", "pneumonia")
        return [f"{classes[number // 4]}/IM{number:04d}{self.endings[number % 2]}" for number in range(8)]

    @staticmethod
    def pixels(number: int) -> Pixels:
        """Return an X-ray over the whole range of 12 bits."""
        image = chest_images()[number].astype(np.uint16)
        return np.asarray((image - image.min()) * (4095 / (image.max() - image.min())), np.uint16)

    def shown(self) -> list[npt.NDArray[np.uint8]]:
        return [read_picture((self.folder / name).read_bytes(), 1).pixels for name in self.files()]

    def check(self) -> Report:
        return check_data(self.folder, CONTRACT, self.folder.parent / "cache")


def radiograph(pixels: Pixels, number: int, **fields: object) -> bytes:
    usual: dict[str, object] = {
        "PatientID": f"P{number:04d}",
        "AccessionNumber": f"A{number:05d}",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
    }
    return dicom(pixels, int(fields.pop("BitsStored", 12)), **{**usual, **fields})  # type: ignore[call-overload]


def found(report: Report) -> set[Mistake]:
    """Return what was found beside what is no matter here."""
    return {finding.mistake for finding in report.findings} - OF_SO_FEW


@pytest.fixture
def plain(tmp_path: Path) -> list[npt.NDArray[np.uint8]]:
    case = Case(tmp_path / "plain", radiograph)
    case.write()
    return case.shown()


def table(entries: npt.NDArray[np.generic], first: int, bits: int = 12) -> Sequence:
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first % 65536, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return Sequence([item])


def padded(pixels: Pixels, number: int) -> bytes:
    framed = np.pad(pixels, 6, constant_values=65535).astype(np.uint16)
    return radiograph(framed, number, BitsStored=16, PixelPaddingValue=65535)


def signed_table(pixels: Pixels, number: int) -> bytes:
    signed = (pixels.astype(np.int32) - 2048).astype(np.int16).view(np.uint16)
    lut = table(np.arange(4096), -2048)
    return radiograph(signed, number, BitsStored=12, PixelRepresentation=1, VOILUTSequence=lut)


def falling_table(pixels: Pixels, number: int) -> bytes:
    return radiograph(4095 - pixels, number, VOILUTSequence=table(np.arange(4095, -1, -1), 0))


def coloured(pixels: Pixels, number: int) -> bytes:
    grey = (pixels // 16).astype(np.uint8)
    return dicom(np.stack([grey] * 3, axis=2), PatientID=f"P{number:04d}", Modality="SC", BodyPartExamined="CHEST")


SAME_PICTURE: dict[str, tuple[Make, set[Mistake]]] = {
    "rescale-empty": (
        lambda pixels, number: radiograph(pixels, number, RescaleSlope="", RescaleIntercept="", **WHOLE_WINDOW),
        {Mistake.HEADER_FIELD_IGNORED},
    ),
    "rgb-grey-dicom": (coloured, set()),
    "voi-function-odd": (
        lambda pixels, number: radiograph(pixels, number, VOILUTFunction="STANDARD", **WHOLE_WINDOW),
        {Mistake.HEADER_FIELD_IGNORED},
    ),
    "voi-lut-decreasing": (falling_table, set()),
    "voi-lut-signed-first": (signed_table, set()),
    "window-0-0": (
        lambda pixels, number: radiograph(pixels, number, WindowCenter=[0, 0], WindowWidth=[0, 0]),
        {Mistake.HEADER_FIELD_IGNORED},
    ),
}


@pytest.mark.parametrize("name", SAME_PICTURE)
def test_a_picture_that_viewers_show_is_read_as_they_show_it(
    name: str, tmp_path: Path, plain: list[npt.NDArray[np.uint8]]
) -> None:
    make, findings = SAME_PICTURE[name]
    case = Case(tmp_path / "data", make)
    case.write()
    assert found(case.check()) == findings
    for number, shown in enumerate(case.shown()):
        grey = shown if shown.ndim == 2 else shown[..., 0]
        expected = plain[number] if name == "window-0-0" else case.pixels(number) * (255 / 4095)
        assert np.abs(grey - expected).mean() < 1


def test_pixel_padding(tmp_path: Path, plain: list[npt.NDArray[np.uint8]]) -> None:
    case = Case(tmp_path / "data", padded)
    case.write()
    assert found(case.check()) == set()
    for shown, expected in zip(case.shown(), plain, strict=True):
        assert np.array_equal(shown[6:-6, 6:-6], expected)
        assert not shown[:6].any()


@pytest.mark.parametrize("endings", [(".IMA", ".dcm"), (".IMA", ".IMA"), (".CR", ""), ("", ".1")])
def test_other_endings(tmp_path: Path, endings: tuple[str, str]) -> None:
    case = Case(tmp_path / "data", radiograph, endings)
    case.write()
    (case.folder / "normal" / "extra.tif").write_bytes(b"II*\0" + bytes(100))
    report = case.check()
    assert report.images == 8
    assert found(report) == {Mistake.FILE_KIND_NOT_READ}
    assert ("normal/extra.tif", "TIFF image") in [(finding.where, finding.detail) for finding in report.findings]


def listed(case: Case, findings: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, list[str]]:
    """Run list-images and return what it says and the labels in the order of the files."""
    path = case.folder.parent / "findings.csv"
    path.write_text(findings, encoding="utf-8", newline="")
    assert cli.main(["hospital", "list-images", str(case.folder), "--labels", str(path)]) == 0
    with (case.folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return capsys.readouterr().out, [row["label"] for row in csv.DictReader(file)]


def test_labels_blank_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without = {"AccessionNumber": ""}
    case = Case(tmp_path / "data", lambda pixels, number: radiograph(pixels, number, **(without if number > 1 else {})))
    case.write()
    table_text = "accession_number,label\r\nA00000,normal\r\nA00001,normal\r\n,normal\r\n"
    text, labels = listed(case, table_text, capsys)
    assert labels == ["normal", "normal", "", "", "", "", "", ""]
    assert "1 row of the table without accession_number, not used: line 4" in text
    assert "6 images without accession_number" in text


def test_labels_leading_zeros(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = Case(tmp_path / "data", lambda pixels, number: radiograph(pixels, number, AccessionNumber=f"{number:07d}"))
    case.write()
    rows = "".join(f"{number},{'normal' if number < 4 else 'pneumonia'}\r\n" for number in range(8))
    text, labels = listed(case, f"accession_number,label\r\n{rows}", capsys)
    assert not any(labels)
    assert "8 rows of the table match no image (leading zeros? without them 8 would match" in text


def test_labels_semicolon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = Case(tmp_path / "data", radiograph)
    case.write()
    rows = "".join(f"A{number:05d};{'normal' if number < 4 else 'pneumonia'}\r\n" for number in range(8))
    _, labels = listed(case, f"accession_number;label\r\n{rows}", capsys)
    assert labels == ["normal"] * 4 + ["pneumonia"] * 4


def test_name_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = Case(tmp_path / "data", radiograph)
    case.write()
    odd = Path(os.fsdecode(os.fsencode(case.folder) + b"/normal/Aufnahme_f\xfcr.dcm"))
    (case.folder / "normal" / "IM0000.dcm").rename(odd)
    assert {finding.where for finding in case.check().findings if finding.mistake is Mistake.NAME_NOT_UTF8} == {
        "normal/Aufnahme_f\\xfcr.dcm"
    }
    findings = tmp_path / "findings.csv"
    arguments = ["--set", "training.batch_size=2", "--set", "model.image_size=28", "--findings", str(findings)]
    assert cli.main(["hospital", "check-data", str(case.folder), *arguments]) == 1
    assert "Aufnahme_f\\xfcr.dcm,name_not_utf8" in findings.read_text(encoding="utf-8")
    assert cli.main(["hospital", "list-images", str(case.folder)]) == 0
    assert "name_not_utf8: normal/Aufnahme_f\\xfcr.dcm" in capsys.readouterr().out
    assert cli.main(["hospital", "list-images", str(case.folder)]) == 2
    assert "is there already" in capsys.readouterr().err
