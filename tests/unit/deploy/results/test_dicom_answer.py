"""Reports and pictures are read back by dcmtk, which is not what made them."""

import io
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from client.data.readers import quiet
from common.errors import DataError
from common.task import TaskKind
from deploy.datasets import phantom
from deploy.results.model_file import load_model
from deploy.results.predict import PICTURE_ENDING, REPORT_ENDING, main, predict
from tests.support.answered_images import HEADER, SERIES, STUDY, small_model
from tests.support.exported_model import model_of
from tests.support.hospital_folder import dicom, png

needs_dcmtk = pytest.mark.skipif(
    shutil.which("dsrdump") is None, reason="dcmtk is not installed (Debian: apt-get install dcmtk)"
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_model(tmp_path)


def _chest(**fields: object) -> bytes:
    return dicom(phantom.chest(1, 64, 3).images[0, 0], **{**HEADER, **fields})


def _ask(model: Path, content: bytes, name: str = "x.dcm") -> tuple[Path, Path]:
    (model / name).write_bytes(content)
    out = model / "answers"
    assert main(["predict", str(model), str(model / name), "--dicom-sr", str(out)]) == 0
    stem = Path(name).stem
    return out / (stem + REPORT_ENDING), out / (stem + PICTURE_ENDING)


def _dcmtk(program: str, *arguments: object) -> str:
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, check=False)
    said = done.stdout.decode("utf-8", "replace") + done.stderr.decode("utf-8", "replace")
    assert done.returncode == 0, said
    assert not [line for line in said.splitlines() if line.startswith(("E:", "F:", "W:"))], said
    return said


@needs_dcmtk
def test_the_report_is_one_that_dcmtk_reads_and_says_what_predict_says(model: Path) -> None:
    report, _ = _ask(model, _chest())
    shown = _dcmtk("dsrdump", "+Pl", "+Pc", report)
    flat, card = load_model(model)
    (answer,) = predict(flat, card, [model / "x.dcm"])
    assert "Comprehensive SR Document" in shown
    assert "PRELIMINARY" in shown
    assert "UNVERIFIED" in shown
    assert "Research software, not a medical device" in shown
    assert card.sha256 in shown
    for name in card.classes:
        assert f'"Probability of {name}")="{round(answer.probabilities[name], 6)}"' in shown
    code = {"pneumonia": "(233604007,SCT", "normal": "(17621005,SCT"}[answer.predicted]
    assert f'"Class predicted by the model")={code}' in shown


@needs_dcmtk
@pytest.mark.parametrize(("thresholds", "count"), [((0.0, 1.0, 0.0), 2), ((1.0, 1.0, 1.0), 0)])
def test_of_a_model_of_labels_each_is_said_to_be_there_or_not(
    tmp_path: Path, thresholds: tuple[float, ...], count: int
) -> None:
    labels = ("edema", "pneumonia", "mass")
    said = {"kind": TaskKind.MULTILABEL, "classes": labels, "thresholds": thresholds}
    model_of(tmp_path, "cnn", threshold=None, changed=said)
    report, picture = _ask(tmp_path, _chest())
    shown = _dcmtk("dsrdump", "+Pl", "+Pc", report)
    codes = ("(C0,99CONFIDE", "(233604007,SCT", "(C2,99CONFIDE")
    for code, name, least in zip(codes, labels, thresholds, strict=True):
        found = '(52101004,SCT,"Present")' if least == 0 else '(2667000,SCT,"Absent")'
        (line,) = (line for line in shown.splitlines() if code in line and "CODE" in line)
        assert found in line, line
        assert f'"Probability of {name}"' in shown
    assert shown.count("(52101004,SCT") == count
    assert "mass 0.000000" in shown or "mass 1.000000" in shown
    assert "it speaks of" in shown
    assert pydicom.dcmread(picture).Rows > 0


def test_a_name_in_any_script_is_written_whole(model: Path) -> None:
    for path in _ask(model, _chest(SpecificCharacterSet="ISO_IR 192", PatientName="Yamada^Tarou=山田^太郎")):
        made = pydicom.dcmread(path)
        assert made.SpecificCharacterSet == "ISO_IR 192"
        assert str(made.PatientName) == "Yamada^Tarou=山田^太郎"


@pytest.mark.long
@needs_dcmtk
def test_report_and_picture_belong_to_the_images_study_and_patient(model: Path) -> None:
    content = _chest()
    source = pydicom.dcmread(io.BytesIO(content))
    for made in map(pydicom.dcmread, _ask(model, content)):
        assert str(made.PatientName) == "Müller^Jörg"
        assert str(made.ReferringPhysicianName) == "Dr Weiß"
        for keyword in ("PatientID", "PatientSex", "PatientBirthDate", "AccessionNumber", "StudyDate", "StudyTime"):
            assert made[keyword].value == source[keyword].value
        assert made.StudyInstanceUID == STUDY
        assert made.SeriesInstanceUID != SERIES
        assert "InstitutionName" not in made
        assert "OperatorsName" not in made
    report, picture = (pydicom.dcmread(path) for path in _ask(model, content))
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    named = {
        item.ReferencedSOPInstanceUID
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert named == {source.SOPInstanceUID, picture.SOPInstanceUID}
    assert picture.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID


@needs_dcmtk
def test_the_picture_is_what_dcmtk_shows_and_is_coloured_where_the_model_looked(model: Path) -> None:
    _, picture = _ask(model, _chest())
    _dcmtk("dcmdump", picture)
    _dcmtk("dcmj2pnm", "--write-raw-pnm", picture, model / "x.ppm")
    shown = np.asarray(Image.open(model / "x.ppm"), np.int16)
    assert (shown == pydicom.dcmread(picture).pixel_array).all()
    assert shown[26:].shape == (448, 448, 3)
    band, image = shown[:26], shown[26:]
    assert band.max() > 200  # the words above the picture
    assert np.abs(image[..., 0] - image[..., 2]).max() > 60


@pytest.mark.long
@needs_dcmtk
@pytest.mark.parametrize(
    ("fields", "keyword"),
    [
        ({"PatientSex": "X"}, "PatientSex"),
        ({"StudyDate": "2026.01.02"}, "StudyDate"),
        ({"StudyTime": "noon"}, "StudyTime"),
        ({"PatientBirthDate": "unknown"}, "PatientBirthDate"),
        ({"PatientName": None}, "PatientName"),
        ({"AccessionNumber": None}, "AccessionNumber"),
    ],
)
def test_a_field_that_no_archive_takes_stays_empty(model: Path, fields: dict[str, object], keyword: str) -> None:
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = _without(keyword) if None in fields.values() else _chest(**fields)
    for path in _ask(model, content):
        assert not pydicom.dcmread(path)[keyword].value
        _dcmtk("dcmdump", path)


def _without(keyword: str) -> bytes:
    header = {key: value for key, value in HEADER.items() if key != keyword}
    return dicom(phantom.chest(1, 64, 3).images[0, 0], **header)


@pytest.mark.parametrize(
    ("content", "flag"),
    [
        (_chest(Modality="MR"), "wrong_modality"),
        (_chest(BodyPartExamined="LEG"), "wrong_body_part"),
        (_chest(ViewPosition="LL"), "wrong_view"),
        (_chest(PhotometricInterpretation="MONOCHROME1"), "inverted_image"),
        (dicom(np.zeros((64, 64), np.uint8), **HEADER), "constant_image"),
        (dicom(np.rot90(phantom.chest(1, 64, 3).images[0, 0], 2).copy(), **HEADER), "unlike_task"),
        (_chest(WindowCenter=0, WindowWidth=0), "header_field_ignored"),
    ],
)
def test_no_report_is_filed_for_an_image_that_a_check_flags_nor_for_those_beside_it(
    model: Path, content: bytes, flag: str
) -> None:
    (model / "good.dcm").write_bytes(_chest())
    (model / "bad.dcm").write_bytes(content)
    with pytest.raises(DataError, match=rf"no report may be filed(.|\n)+bad\.dcm: .*{flag}"):
        main(["predict", str(model), str(model / "good.dcm"), str(model / "bad.dcm"), "--dicom-sr", str(model / "out")])
    assert not (model / "out").exists()


def test_what_a_check_says_of_clock_and_privacy_forbids_no_report_and_stands_in_it(model: Path) -> None:
    report, _ = _ask(model, _chest(BurnedInAnnotation="YES"))
    assert b"burned_in_text" in report.read_bytes()


def test_a_png_has_no_study_to_file_a_report_with(model: Path) -> None:
    (model / "x.png").write_bytes(png(phantom.chest(1, 64, 3).images[0, 0]))
    with pytest.raises(DataError, match=r"x\.png must be DICOM"):
        main(["predict", str(model), str(model / "x.png"), "--dicom-sr", str(model / "out")])


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_an_image_without_its_identifiers_is_refused_by_field(model: Path, keyword: str) -> None:
    (model / "x.dcm").write_bytes(_without(keyword))
    with pytest.raises(DataError, match=rf"header must have {keyword}.*original image"):
        main(["predict", str(model), str(model / "x.dcm"), "--dicom-sr", str(model / "out")])


def test_two_images_of_one_name_are_refused(model: Path) -> None:
    (model / "x.dcm").write_bytes(_chest())
    (model / "x.ima").write_bytes(_chest())
    with pytest.raises(DataError, match="two images are called x"):
        main(["predict", str(model), str(model / "x.dcm"), str(model / "x.ima"), "--dicom-sr", str(model / "out")])


def test_the_files_are_for_their_owner_alone(model: Path) -> None:
    for path in _ask(model, _chest()):
        assert path.stat().st_mode & 0o777 == 0o600
    assert (model / "answers").stat().st_mode & 0o777 == 0o700
