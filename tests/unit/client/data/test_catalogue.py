"""What is read, what is named and what is counted of a folder, whatever its files are called."""

import io
import os
import unicodedata
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image

from client.data.catalogue import printable, read_catalogue, scan_images
from client.data.known_tables import Said
from client.data.mistakes import Finding, Mistake
from client.data.readers import HEAD_BYTES, READERS, read_picture
from common.task import implied
from tests.support.hospital_folder import CLASSES, chest_images, dicom, png

TASK = implied("pneumonia", CLASSES)


def dicom_file() -> bytes:
    return dicom(chest_images()[0])


def raster(kind: str) -> bytes:
    content = io.BytesIO()
    Image.fromarray(chest_images()[0]).save(content, kind)
    return content.getvalue()


def not_read(folder: Path) -> dict[str, str]:
    return {finding.where: finding.detail for finding in scan_images(folder).findings}


@pytest.mark.parametrize(
    "name", ["IM1.IMA", "IM1.ima", "1.CR", "1.2.840.1", "IM1", "film.DX", "x.dcm.bak", "IM1.DCM", "x.img"]
)
def test_a_dicom_file_is_read_whatever_its_ending(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(dicom_file())
    scan = scan_images(tmp_path)
    assert scan.images == (name,)
    assert scan.findings == ()


@pytest.mark.parametrize("name", ["IM1.IMA", "IM1", "film.CR"])
def test_a_dicom_file_without_preamble_is_read_whatever_its_ending(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(dicom_file()[132:])
    assert scan_images(tmp_path).images == (name,)


@pytest.mark.parametrize(
    ("name", "kind"), [("a.jfif", "JPEG"), ("a.JPG_large", "JPEG"), ("a", "PNG"), ("a.tmp", "PNG")]
)
def test_a_picture_is_read_whatever_its_ending(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_bytes(raster(kind))
    assert scan_images(tmp_path).images == (name,)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.tif", raster("TIFF"), "TIFF image"),
        ("a.TIFF", raster("TIFF"), "TIFF image"),
        ("a", raster("TIFF"), "TIFF image"),
        ("a.bmp", raster("BMP"), "BMP image"),
        ("a.gif", raster("GIF"), "GIF image"),
        ("a.webp", raster("WEBP"), "WebP image"),
        ("a.nii", bytes(400), "NIfTI image"),
        ("a.nii.gz", b"\x1f\x8b" + bytes(50), "gzip archive"),
        ("study.7z", b"7z\xbc\xaf" + bytes(50), "7z archive"),
        ("study.tar", bytes(512), "tar archive"),
        ("film.jp2", bytes(50), "JPEG 2000"),
        ("study.zip", b"PK\x03\x04 cut short", "zip archive that is not read: damaged"),
    ],
)
def test_a_kind_that_is_not_read_is_named_file_by_file(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert scan_images(tmp_path).images == ()
    assert not_read(tmp_path) == {name: kind}


def zipped(path: Path, files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("name", ["export.zip", "export", "export.ZIP"])
def test_the_images_in_a_zip_archive_are_listed_and_its_other_files_counted(tmp_path: Path, name: str) -> None:
    zipped(tmp_path / name, {f"images/IM{number}": dicom_file() for number in range(3)} | {"VIEWER.EXE": b"MZ" * 90})
    scan = scan_images(tmp_path)
    assert scan.images == tuple(f"{name}/images/IM{number}" for number in range(3))
    assert [finding.detail for finding in scan.findings] == ["files that are no images: 1 .exe"]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"bomb.dcm": bytes(2**24)}, "it unpacks to more than 100 times its size"),
        ({"../outside.dcm": b"x"}, "a name in it leads elsewhere"),
        ({"/etc/passwd.dcm": b"x"}, "a name in it leads elsewhere"),
        ({"a//b.dcm": b"x"}, "a name in it leads elsewhere"),
        ({"dir\\b.dcm": b"x"}, "a name in it leads elsewhere"),
    ],
)
def test_an_archive_that_could_harm_is_named_and_none_of_it_read(
    tmp_path: Path, files: dict[str, bytes], reason: str
) -> None:
    zipped(tmp_path / "a.zip", {"good.dcm": dicom_file(), **files})
    assert scan_images(tmp_path).images == ()
    assert not_read(tmp_path) == {"a.zip": f"zip archive that is not read: {reason}"}


def test_an_archive_with_a_password_or_another_compression_is_named(tmp_path: Path) -> None:
    zipped(tmp_path / "lzma.zip", {"a.dcm": dicom_file()}, zipfile.ZIP_LZMA)
    zipped(tmp_path / "locked.zip", {"a.dcm": dicom_file()})
    content = bytearray((tmp_path / "locked.zip").read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(content)
    assert not_read(tmp_path) == {
        "locked.zip": "zip archive that is not read: it has a password",
        "lzma.zip": "zip archive that is not read: its compression is not known",
    }


def test_an_archive_in_an_archive_and_one_without_images_are_named(tmp_path: Path) -> None:
    zipped(tmp_path / "inner.zip", {"a.dcm": dicom_file()})
    inner = (tmp_path / "inner.zip").read_bytes()
    (tmp_path / "inner.zip").unlink()
    zipped(tmp_path / "outer.zip", {"inner.zip": inner})
    assert scan_images(tmp_path).images == ()
    assert not_read(tmp_path) == {
        "outer.zip/inner.zip": "zip archive in an archive",
        "outer.zip": "zip archive without an image, 1 files",
    }


def test_programs_and_papers_are_counted_by_ending(tmp_path: Path) -> None:
    for name in ("VIEWER.EXE", "a.dll", "b.dll", "README", "notes.docx"):
        (tmp_path / name).write_bytes(b"MZ" + bytes(200))
    with zipfile.ZipFile(tmp_path / "letter.docx", "w") as archive:
        archive.writestr("[Content_Types].xml", "")
    (finding,) = scan_images(tmp_path).findings
    assert finding.where == ""
    assert finding.mistake is Mistake.FILE_KIND_NOT_READ
    assert set(finding.detail.removeprefix("files that are no images: ").split(", ")) == {
        "2 .dll", "2 .docx", "1 .exe", "1 no ending",
    }  # fmt: skip


def test_of_many_endings_the_rarer_are_counted_together(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"a.x{number}").write_bytes(bytes(9))
    (finding,) = scan_images(tmp_path).findings
    assert finding.detail.endswith("4 with other endings")


def test_hidden_files_are_no_images_but_one_that_a_reader_knows_is_named(tmp_path: Path) -> None:
    (tmp_path / "._IM1.dcm").write_bytes(b"\0\5\x16\7" + bytes(300))  # what macOS leaves beside each file it copies
    (tmp_path / ".IM2.dcm").write_bytes(dicom_file())
    scan = scan_images(tmp_path)
    assert scan.images == ()
    assert not_read(tmp_path) == {".IM2.dcm": "a hidden file"}


@pytest.mark.parametrize("name", [b"f\xfcr.dcm", b"\xe9tude/IM1", b"\xff\xfe.png", b"gut/\xc3.IMA"])
def test_a_name_that_is_not_utf8_is_refused_by_name(tmp_path: Path, name: bytes) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(dicom_file())
    (tmp_path / "whole.dcm").write_bytes(dicom_file())
    scan = scan_images(tmp_path)
    assert scan.images == ("whole.dcm",)
    assert scan.findings == (Finding(Mistake.NAME_NOT_UTF8, name.decode("utf-8", "backslashreplace")),)
    assert scan.findings[0].where.encode("ascii")


@pytest.mark.parametrize("name", ["für.dcm", "Aufnahme 1.dcm", "画像.dcm", "a'b\"c.dcm"])
def test_any_other_name_is_listed_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(dicom_file())
    assert scan_images(tmp_path).images == (name,)
    assert printable(name) == name


@pytest.mark.parametrize(("written", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_whose_accents_are_written_in_another_way_is_named_twice_and_never_guessed(
    tmp_path: Path, written: Literal["NFC", "NFD"], stored: Literal["NFC", "NFD"]
) -> None:
    row, file = unicodedata.normalize(written, "für.png"), unicodedata.normalize(stored, "für.png")
    (tmp_path / file).write_bytes(png(chest_images()[0]))
    (tmp_path / "manifest.csv").write_text(f"file,label\n{row},normal\n", encoding="utf-8")
    found = {finding.mistake for finding in read_catalogue(tmp_path, TASK).findings}
    assert found == {Mistake.FILE_MISSING, Mistake.FILE_EXTRA}


@pytest.mark.parametrize("label", ["1", "1.0", "1,0", "pneumonia", "Pneumonia", " PNEUMONIA "])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_label_is_a_class_in_any_case_or_its_index_as_a_spreadsheet_writes_it(
    tmp_path: Path, label: str, separator: str
) -> None:
    (tmp_path / "a.png").write_bytes(png(chest_images()[0]))
    (tmp_path / "manifest.csv").write_text(f'File{separator}Label\na.png{separator}"{label}"\n', encoding="utf-8")
    catalogue = read_catalogue(tmp_path, TASK)
    assert catalogue.findings == ()
    assert [entry.label for entry in catalogue.entries] == [1]


@pytest.mark.parametrize("label", ["2", "1.5", "-2", "0.1", "x"])
def test_another_label_is_none(tmp_path: Path, label: str) -> None:
    (tmp_path / "a.png").write_bytes(png(chest_images()[0]))
    (tmp_path / "manifest.csv").write_text(f"file,label\na.png,{label}\n", encoding="utf-8")
    (finding,) = read_catalogue(tmp_path, TASK).findings
    assert (finding.mistake, finding.detail) == (Mistake.LABEL_UNKNOWN, label)


def test_a_manifest_says_of_view_sex_and_age_what_an_image_does_not(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(raster("PNG"))
    (tmp_path / "manifest.csv").write_text(
        "file,label,Sex,age,view\na.png,normal,female,63,PA\nb.png,normal,?,old,LAT\nc.png,normal,,,somewhere\n"
    )
    catalogue = read_catalogue(tmp_path, TASK)
    said = {entry.file: entry.said for entry in catalogue.entries}
    assert said == {"a.png": Said("PA", "F", "063Y"), "b.png": Said("LAT", "", ""), "c.png": Said()}
    remarks = [finding.detail for finding in catalogue.findings if finding.mistake is Mistake.TABLE_REMARK]
    assert sorted(remarks) == [
        "column age must have a number of years; cells that do not, and count as not known: 1",
        "column sex must have F, M or O; cells that do not, and count as not known: 1",
        "column view must have a view such as PA, AP or lateral; cells that do not, and count as not known: 1",
    ]


@pytest.mark.parametrize("word", ["missing", "Fallnummer", "don't know", "0"])
def test_no_word_is_taken_for_a_sex_by_how_it_begins(tmp_path: Path, word: str) -> None:
    (tmp_path / "a.png").write_bytes(raster("PNG"))
    (tmp_path / "manifest.csv").write_text(f"file,label,sex\na.png,normal,{word}\n")
    catalogue = read_catalogue(tmp_path, TASK)
    assert [entry.said for entry in catalogue.entries] == [Said()]
    assert [finding.mistake for finding in catalogue.findings] == [Mistake.TABLE_REMARK]


def test_a_manifest_without_such_columns_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(raster("PNG"))
    (tmp_path / "manifest.csv").write_text("file,label\na.png,normal\n")
    assert [entry.said for entry in read_catalogue(tmp_path, TASK).entries] == [None]


def test_each_file_is_known_to_its_own_reader_alone() -> None:
    own = {"DICOM": [dicom_file(), dicom_file()[132:]], "PNG or JPEG": [raster("PNG"), raster("JPEG")]}
    assert set(own) == {reader.name for reader in READERS}
    for name, contents in own.items():
        for content in contents:
            assert [reader.name for reader in READERS if reader.recognises(content[:HEAD_BYTES])] == [name]
            assert read_picture(content, 1).pixels.shape == (32, 32)
