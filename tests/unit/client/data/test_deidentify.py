import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from client.data.deidentify import deidentify
from client.data.readers.dicom import PERSONAL_KEYWORDS, quiet, read_dicom
from client.data.readers.dicom_clean import KEPT_KEYWORDS
from common.errors import DataError
from tests.support.hospital_folder import CONTRACT, Hospital, dicom, encoded, healthy, packaged
from tests.support.planted_mistakes import (
    a_header_that_admits_text,
    a_jpeg_with_an_author,
    a_name_written_into_the_pixels,
    another_chest,
)

PROFILE: dict[str, str] = json.loads(
    (Path(__file__).parents[3] / "vectors" / "dicom_basic_profile.json").read_text(encoding="utf-8")
)["actions"]

CANARY_TEXT, CANARY_DATE, CANARY_UID, CANARY_NUMBER = "CANARY", "19640812", "1.2.826.0.1.999", "47114711"
CANARIES = tuple(word.encode() for word in (CANARY_TEXT, CANARY_DATE, CANARY_UID, CANARY_NUMBER))

VALUES: dict[str, object] = {
    "DA": CANARY_DATE, "TM": "111213", "DT": f"{CANARY_DATE}111213", "AS": "061Y", "UI": f"{CANARY_UID}.1",
    "DS": CANARY_NUMBER, "IS": CANARY_NUMBER, "UR": f"https://{CANARY_TEXT}.example",
    "OB": CANARY_TEXT.encode(), "OW": CANARY_TEXT.encode(), "UN": CANARY_TEXT.encode(),
    "FD": 4711.4711, "FL": 4711.0, "US": 4711, "UL": 4711, "SS": 4711, "SL": 4711, "AT": 0x00100010,
}  # fmt: skip


def tags_of_the_profile() -> list[int]:
    """Return every tag of table E.1-1 that belongs into a data set, a few of those that stand for many included."""
    tags = [int(tag, 16) for tag in PROFILE if "X" not in tag]
    return [tag for tag in tags if tag >> 16 > 2] + [0x50000010, 0x60003000, 0x60004000]


def loaded_file() -> bytes:
    """Return an X-ray whose header has all the profile removes, at the top, nested and private."""
    with quiet():
        dataset = pydicom.dcmread(io.BytesIO(dicom(another_chest())))
        nested = pydicom.Dataset()
        for tag in tags_of_the_profile():
            vr = dictionary_VR(tag).partition(" or ")[0] if keyword_for_tag(tag) else "OB"
            value = VALUES.get(vr, CANARY_TEXT)
            for target in (dataset, nested):
                target.add_new(tag, vr, Sequence([_item()]) if vr == "SQ" else value)
        dataset.ProcedureCodeSequence = Sequence([nested])
        block = dataset.private_block(0x0011, CANARY_TEXT, create=True)
        block.add_new(0x01, "LO", CANARY_TEXT)
        dataset.PatientID = f"{CANARY_TEXT}-4711"
        return encoded(dataset)


def _item() -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.PatientName, item.StudyDate = CANARY_TEXT, CANARY_DATE
    return item


def clean(hospital: Hospital, tmp_path: Path) -> tuple[dict[str, dict[str, str]], Path]:
    """Return the manifest's rows by file, and the folder of the copies."""
    out = tmp_path / "clean"
    deidentify(hospital.folder, CONTRACT, hospital.check(tmp_path / "cache"), out)
    rows = csv.DictReader((out / "manifest.csv").read_text(encoding="utf-8").splitlines())
    return {row["file"]: row for row in rows}, out


def only_dicom(out: Path) -> pydicom.FileDataset:
    (path,) = out.rglob("*.dcm")
    return pydicom.dcmread(path)


def test_no_attribute_of_the_basic_profile_survives_but_emptied_or_replaced(tmp_path: Path) -> None:
    hospital = healthy(tmp_path / "data")
    hospital.add("loaded.dcm", loaded_file(), ("normal", "", "train"))
    copy = only_dicom(clean(hospital, tmp_path)[1])
    for tag in tags_of_the_profile():
        if Tag(tag) not in copy:
            continue
        action, value = PROFILE[f"{tag:08X}"], copy[tag].value
        is_new_uid = str(value).startswith("2.25.") and "U" in action
        is_pseudonym = str(value).startswith("patient-") and {"Z", "D"} & set(action.split("/"))
        assert value in ("", None) or is_new_uid or is_pseudonym, keyword_for_tag(tag)


def test_no_byte_of_a_loaded_header_reaches_the_copy(tmp_path: Path) -> None:
    hospital = healthy(tmp_path / "data")
    content = loaded_file()
    assert all(word in content for word in CANARIES)
    hospital.add("loaded.dcm", content, ("normal", "", "train"))
    for path in clean(hospital, tmp_path)[1].rglob("*"):
        written = path.read_bytes() if path.is_file() else path.name.encode()
        assert not any(word in written for word in CANARIES), path


def test_what_is_kept_is_not_in_the_profile_and_what_is_called_personal_is() -> None:
    named = {keyword_for_tag(int(tag, 16)) for tag in PROFILE if "X" not in tag}
    assert not named & set(KEPT_KEYWORDS)
    assert set(PERSONAL_KEYWORDS) <= named


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_copy_shows_the_very_same_pixels(tmp_path: Path, bits: int) -> None:
    hospital = healthy(tmp_path / "data")
    stored = another_chest().astype(np.uint16) * np.uint16(2 ** (bits - 8))
    content = dicom(stored, bits, WindowCenter=900, WindowWidth=1500, RescaleSlope=1, RescaleIntercept=0)
    hospital.add("one.dcm", content)
    _, out = clean(hospital, tmp_path)
    (path,) = out.rglob("*.dcm")
    with quiet():
        assert np.array_equal(read_dicom(path.read_bytes(), 1).pixels, read_dicom(content, 1).pixels)


def test_a_copy_says_what_was_done_to_it(tmp_path: Path) -> None:
    hospital = healthy(tmp_path / "data")
    hospital.add("one.dcm", dicom(another_chest(), PatientName="Canary^Carla"))
    copy = only_dicom(clean(hospital, tmp_path)[1])
    assert copy.PatientIdentityRemoved == "YES"
    assert copy.LongitudinalTemporalInformationModified == "REMOVED"
    assert copy.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
    assert copy.StudyDate == copy.StudyTime == copy.PatientBirthDate == ""
    with quiet():
        assert read_dicom(encoded(copy), 1).header.personal == ()


def test_uids_are_replaced_alike_where_they_were_alike(tmp_path: Path) -> None:
    hospital = healthy(tmp_path / "data")
    for number, study in enumerate(("1.2.3.1", "1.2.3.1", "1.2.3.2")):
        content = dicom(another_chest(seed=60 + number), StudyInstanceUID=study, SOPInstanceUID=f"1.2.3.9.{number}")
        hospital.add(f"{number}.dcm", content, ("normal", f"p-{800 + number // 2}", "train"))
    _, out = clean(hospital, tmp_path)
    copies = [pydicom.dcmread(path) for path in out.rglob("*.dcm")]
    assert sorted(sum(c.StudyInstanceUID == other.StudyInstanceUID for other in copies) for c in copies) == [1, 2, 2]
    assert len({copy.SOPInstanceUID for copy in copies}) == 3
    assert all(re.fullmatch(r"2\.25\.[0-9]{1,39}", copy.SOPInstanceUID) for copy in copies)
    assert all(copy.file_meta.MediaStorageSOPInstanceUID == copy.SOPInstanceUID for copy in copies)


def test_files_without_an_instance_uid_get_one_each(tmp_path: Path) -> None:
    hospital = healthy(tmp_path / "data")
    for number in range(2):
        content = dicom(another_chest(seed=60 + number), SOPInstanceUID="")
        hospital.add(f"{number}.dcm", content, ("normal", "p-800", "train"))
    _, out = clean(hospital, tmp_path)
    assert len({pydicom.dcmread(path).SOPInstanceUID for path in out.rglob("*.dcm")}) == 2


def test_patients_keep_their_images_together_under_new_names(tmp_path: Path) -> None:
    hospital = healthy(tmp_path / "data")
    rows, _ = clean(hospital, tmp_path)
    assert len(rows) == 60
    names = [row["patient_id"] for row in rows.values()]
    assert len(set(names)) == 30
    assert all(names.count(name) == 2 for name in names)
    assert all(re.fullmatch(r"patient-\d{6}", name) for name in names)
    assert all(re.fullmatch(r"images/\d{6}\.png", name) for name in rows)
    counted = [(row["label"], row["split"]) for row in rows.values()]
    assert sorted(counted) == sorted((row[1], row[3]) for row in hospital.rows)


def test_two_copies_of_one_folder_have_nothing_in_common(tmp_path: Path) -> None:
    hospital = healthy(tmp_path / "data")
    first, _ = clean(hospital, tmp_path / "a")
    second, _ = clean(hospital, tmp_path / "b")
    assert [row["patient_id"] for row in first.values()] != [row["patient_id"] for row in second.values()] or [
        row["label"] for row in first.values()
    ] != [row["label"] for row in second.values()]


def test_images_with_text_in_the_pixels_are_left_out(tmp_path: Path) -> None:
    hospital = healthy(tmp_path / "data")
    a_name_written_into_the_pixels(hospital)
    a_header_that_admits_text(hospital)
    rows, out = clean(hospital, tmp_path)
    assert len(rows) == 61 - 2
    assert not list(out.rglob("*.dcm"))


def test_a_jpegs_author_does_not_reach_the_copy(tmp_path: Path) -> None:
    hospital = healthy(tmp_path / "data")
    a_jpeg_with_an_author(hospital)
    _, out = clean(hospital, tmp_path)
    for path in out.rglob("*.png"):
        with Image.open(path) as image:
            assert not image.getexif()
            assert not image.info
        assert b"Mustermann" not in path.read_bytes()


def test_an_npz_or_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    hospital = healthy(tmp_path / "data")
    report = hospital.check(tmp_path / "cache")
    used = tmp_path / "used"
    used.mkdir()
    (used / "letter.txt").write_text("to keep")
    with pytest.raises(DataError, match="new or empty"):
        deidentify(hospital.folder, CONTRACT, report, used)
    with pytest.raises(DataError, match="outside the data"):
        deidentify(hospital.folder, CONTRACT, report, hospital.folder / "clean")
    np.savez(tmp_path / "shard.npz", allow_pickle=False)
    with pytest.raises(DataError, match="nothing to clean"):
        deidentify(tmp_path / "shard.npz", CONTRACT, report, tmp_path / "clean")


def test_a_compressed_file_stays_compressed_and_readable(tmp_path: Path) -> None:
    hospital = healthy(tmp_path / "data")
    source = pydicom.dcmread(packaged("MR_small_RLE.dcm"))
    source.Modality = "DX"
    hospital.add("rle.dcm", encoded(source))
    (hospital.folder / "accepted.csv").write_text("file,mistake\nrle.dcm,inverted_image\n")
    copy = only_dicom(clean(hospital, tmp_path)[1])
    assert copy.file_meta.TransferSyntaxUID == source.file_meta.TransferSyntaxUID
    assert copy.PixelData == source.PixelData
