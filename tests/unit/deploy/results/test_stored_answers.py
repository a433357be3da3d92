from pathlib import Path

import pytest
from pydicom.uid import generate_uid

from common.errors import DataError, RunError
from deploy.datasets import phantom
from deploy.results.predict import main
from deploy.results.stored_answers import read, store
from tests.support.answered_images import HEADER, answer, small_model
from tests.support.hospital_folder import dicom, png

CHESTS = phantom.chest(3, 64, 3).images[:, 0]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_model(tmp_path)


def test_an_image_is_stored_once_however_often_the_command_runs(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = model / "trial.jsonl"
    names = []
    for number, pixels in enumerate(CHESTS):
        names.append(str(model / f"{number}.dcm"))
        Path(names[-1]).write_bytes(dicom(pixels, **HEADER))
    assert main(["predict", str(model), *names[:2], "--store", str(kept)]) == 0
    assert main(["predict", str(model), *names, "--store", str(kept)]) == 0
    assert "1 answers were stored, 2 were stored before" in capsys.readouterr().out
    assert [answer.file for answer in read(kept)] == ["0.dcm", "1.dcm", "2.dcm"]
    assert {answer.accession_number for answer in read(kept)} == {"A-1"}
    assert kept.stat().st_mode & 0o777 == 0o600


def test_a_flagged_image_is_counted_without_an_answer(model: Path) -> None:
    (model / "mr.dcm").write_bytes(dicom(CHESTS[0], **{**HEADER, "Modality": "MR"}))
    assert main(["predict", str(model), str(model / "mr.dcm"), "--store", str(model / "s")]) == 0
    (stored,) = read(model / "s")
    assert not stored.stands
    assert stored.score is None
    assert stored.probabilities == {}
    assert stored.remarks[0].startswith("wrong_modality")


def test_one_file_that_cannot_be_read_is_named_and_the_others_are_stored(model: Path) -> None:
    (model / "good.png").write_bytes(png(CHESTS[0]))
    (model / "bad.png").write_bytes(b"no image")
    names = [str(model / name) for name in ("bad.png", "good.png", "gone.png")]
    with pytest.raises(DataError, match=r"2 images got no answer, 1 did(.|\n)+bad\.png(.|\n)+gone\.png"):
        main(["predict", str(model), *names, "--store", str(model / "s")])
    assert [answer.file for answer in read(model / "s")] == ["good.png"]


def test_no_name_and_no_patient_identifier_is_stored(model: Path) -> None:
    (model / "x.dcm").write_bytes(dicom(CHESTS[0], **{**HEADER, "StudyInstanceUID": generate_uid()}))
    assert main(["predict", str(model), str(model / "x.dcm"), "--store", str(model / "s")]) == 0
    text = (model / "s").read_text()
    for secret in ("4711", "Jörg", "J\\u00f6rg", "Wei", "1950", "Elsewhere"):
        assert secret not in text


def test_a_line_cut_short_is_made_again_and_harms_no_other(tmp_path: Path) -> None:
    path = tmp_path / "s"
    assert store(path, [answer(1), answer(2)]) == 2
    path.write_text(path.read_text()[:-20])
    assert [each.file for each in read(path)] == ["1.dcm"]
    assert store(path, [answer(2), answer(3)]) == 2
    assert [each.file for each in read(path)] == ["1.dcm", "2.dcm", "3.dcm"]


@pytest.mark.parametrize(
    "line", ["{}", "[]", "nonsense", answer(1).model_dump_json().replace('"version":1', '"version":2')]
)
def test_a_line_that_is_no_answer_is_refused_by_number_and_not_repeated(tmp_path: Path, line: str) -> None:
    path = tmp_path / "s"
    path.write_text(answer(1).model_dump_json() + "\n" + line + "\n")
    with pytest.raises(RunError, match="line 2, must be an answer") as caught:
        read(path)
    assert line not in str(caught.value)


def test_a_repr_hides_what_names_an_image() -> None:
    assert "A7" not in repr(answer(7))
    assert "7.dcm" not in repr(answer(7))
