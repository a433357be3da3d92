import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from client.training import logits
from common.errors import DataError, RunError
from common.models import registry
from common.models.flat import flat_parameters, share_parameters
from common.run.model_facts import ModelFacts
from common.task import TaskKind
from deploy.datasets import phantom
from deploy.results.model_file import save_model
from deploy.results.predict import main
from tests.support.hospital_folder import dicom, png

NETWORK = registry.build("cnn", 2, 1, 28, seed=3)


def _facts(threshold: float | None) -> ModelFacts:
    return ModelFacts(
        architecture="cnn", classes=("normal", "pneumonia"), channels=1, image_size=28, threshold=threshold,
        run_id="0" * 32, task="pneumonia", data_set="phantom", privacy={"mode": "none"},
        caveats=("Data set phantom: procedural images.",),
    )  # fmt: skip


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    torch.set_num_threads(1)
    return np.random.default_rng(5).integers(0, 256, (28, 28), np.uint8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(tmp_path, flat_parameters(NETWORK), _facts(0.5))
    return tmp_path


def _probability(pixels: NDArray[np.uint8]) -> float:
    return float(torch.softmax(logits(NETWORK, torch.from_numpy(pixels[None, None])).double(), 1)[0, 1])


def _asked(capsys: pytest.CaptureFixture[str], *arguments: Path | str) -> list[dict[str, object]]:
    assert main(["predict", *map(str, arguments), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_an_image_gets_the_probabilities_the_network_gives_it_in_training(
    model: Path, pixels: NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(pixels).save(model / "x.png")
    (answer,) = _asked(capsys, model, model / "x.png")
    assert answer["probabilities"] == {
        "normal": pytest.approx(1 - _probability(pixels)), "pneumonia": pytest.approx(_probability(pixels)),
    }  # fmt: skip


def test_the_calibrated_threshold_decides(
    tmp_path: Path, pixels: NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(pixels).save(tmp_path / "x.png")
    for threshold, expected in ((_probability(pixels) - 0.01, "pneumonia"), (_probability(pixels) + 0.01, "normal")):
        save_model(tmp_path, flat_parameters(NETWORK), _facts(threshold))
        assert _asked(capsys, tmp_path, tmp_path / "x.png")[0]["predicted"] == expected


def test_a_model_on_frozen_features_is_given_those_of_the_image(
    tmp_path: Path, pixels: NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
) -> None:
    name = "scattering_mlp"
    network, features = registry.build(name, 2, 1, 28, seed=3), registry.frozen_features(name)
    assert features is not None
    flat = np.random.default_rng(2).normal(0, 0.1, flat_parameters(network).shape).astype(np.float32)
    save_model(tmp_path, flat, _facts(0.5).model_copy(update={"architecture": name}))
    share_parameters(network, torch.from_numpy(flat))
    Image.fromarray(pixels).save(tmp_path / "x.png")
    (answer,) = _asked(capsys, tmp_path, tmp_path / "x.png")
    expected = torch.softmax(logits(network, features(torch.from_numpy(pixels[None, None]))).double(), 1)[0, 1]
    assert answer["probabilities"]["pneumonia"] == pytest.approx(float(expected))  # type: ignore[index]
    assert abs(float(expected) - 0.5) > 0.01


def test_a_dicom_image_is_read_like_a_png(
    model: Path, pixels: NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(pixels).save(model / "x.png")
    _write_dicom(model / "x.dcm", pixels)
    raster, dicom = _asked(capsys, model, model / "x.png", model / "x.dcm")
    assert dicom["probabilities"] == raster["probabilities"]


def test_a_model_can_be_named_by_its_folder_or_either_of_its_files(
    model: Path, pixels: NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(pixels).save(model / "x.png")
    answers = [
        _asked(capsys, named, model / "x.png") for named in (model, model / "model.json", model / "model.safetensors")
    ]
    assert answers[0] == answers[1] == answers[2]


def test_the_table_says_what_the_model_was_trained_on_and_that_it_is_no_medical_device(
    model: Path, pixels: NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(pixels).save(model / "x.png")
    assert main(["predict", str(model), str(model / "x.png")]) == 0
    shown = capsys.readouterr().out
    assert "trained on phantom" in shown
    assert "procedural images" in shown
    assert "not a medical device" in shown


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused_by_name_with_a_remedy(model: Path, content: bytes) -> None:
    (model / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.png cannot be used: .+; .+"):
        main(["predict", str(model), str(model / "bad.png")])


def test_an_image_that_does_not_exist_is_refused_by_name(model: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png must be a readable image"):
        main(["predict", str(model), str(model / "gone.png")])


def test_a_folder_is_answered_past_its_bad_files_in_a_table_and_as_json(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model / "x-rays"
    (folder / "deeper").mkdir(parents=True)
    (folder / "a.dcm").write_bytes(_chest())
    (folder / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "deeper" / "c.png").write_bytes(png(np.zeros((64, 64), np.uint8)))
    (folder / "letter.txt").write_text("no image")
    table = model / "answers.csv"
    with pytest.raises(DataError, match=r"1 images got no answer, 2 did\n.*b\.png cannot be used"):
        main(["predict", str(model), str(folder), "--csv", str(table), "--json"])
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(each["file"]).name for each in said] == ["a.dcm", "c.png", "b.png"]
    assert said[1]["remarks"][0].startswith("constant_image")
    assert "cannot be used" in said[2]["error"]
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["predicted"] for row in rows] == [said[0]["predicted"], said[1]["predicted"], ""]
    assert float(rows[0]["pneumonia"]) == pytest.approx(said[0]["probabilities"]["pneumonia"], abs=1e-6)
    assert rows[1]["remarks"].startswith("constant_image")
    assert "cannot be used" in rows[2]["error"]


def test_a_folder_without_an_image_is_refused(model: Path) -> None:
    (model / "empty").mkdir()
    (model / "empty" / "letter.txt").write_text("no image")
    with pytest.raises(DataError, match="there must be an image to ask about, got folders with 1 other files"):
        main(["predict", str(model), str(model / "empty")])


def test_a_model_of_labels_says_each_that_reaches_its_threshold(
    tmp_path: Path, pixels: NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(pixels).save(tmp_path / "x.png")
    scores = logits(NETWORK, torch.from_numpy(pixels[None, None])).double()[0]
    expected = torch.sigmoid(scores / 2).tolist()
    facts = _facts(None).model_copy(update={
        "kind": TaskKind.MULTILABEL, "classes": ("edema", "mass"), "temperature": 2.0,
        "thresholds": (expected[0] - 0.01, expected[1] + 0.01),
    })  # fmt: skip
    save_model(tmp_path, flat_parameters(NETWORK), facts)
    (answer,) = _asked(capsys, tmp_path, tmp_path / "x.png")
    assert answer["predicted"] == "edema"
    assert answer["probabilities"] == {"edema": pytest.approx(expected[0]), "mass": pytest.approx(expected[1])}
    assert sum(expected) != pytest.approx(1)
    with pytest.raises(DataError, match="models that give one class an image"):
        main(["predict", str(tmp_path), str(tmp_path / "x.png"), "--store", str(tmp_path / "kept")])


def test_the_temperature_divides_the_scores(
    tmp_path: Path, pixels: NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(pixels).save(tmp_path / "x.png")
    save_model(tmp_path, flat_parameters(NETWORK), _facts(0.5).model_copy(update={"temperature": 4.0}))
    (answer,) = _asked(capsys, tmp_path, tmp_path / "x.png")
    plain = _probability(pixels)
    tempered = 1 / (1 + ((1 - plain) / plain) ** (1 / 4))
    assert answer["probabilities"]["pneumonia"] == pytest.approx(tempered)  # type: ignore[index]
    assert abs(tempered - 0.5) < abs(plain - 0.5)


def test_probabilities_are_given_for_the_readers_own_prevalence_and_the_answer_stays(
    tmp_path: Path, pixels: NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(pixels).save(tmp_path / "x.png")
    plain = _probability(pixels)
    threshold = plain - 0.01
    save_model(tmp_path, flat_parameters(NETWORK), _facts(threshold).model_copy(update={"prevalence": 0.75}))
    image = tmp_path / "x.png"
    (answer,) = _asked(capsys, tmp_path, image, "--prevalence", "0.1")
    odds = plain / (1 - plain) * (0.1 / 0.9) / (0.75 / 0.25)  # Bayes' rule.
    assert answer["probabilities"] == {
        "normal": pytest.approx(1 / (1 + odds)), "pneumonia": pytest.approx(odds / (1 + odds)),
    }  # fmt: skip
    assert answer["predicted"] == "pneumonia"
    assert answer["prevalence"] == 0.1
    table = tmp_path / "answers.csv"
    assert main(["predict", str(tmp_path), str(image), "--prevalence", "0.1", "--csv", str(table)]) == 0
    header, row = (line.split(",") for line in table.read_text().splitlines())
    assert header == ["file", "predicted", "normal", "pneumonia", "prevalence", "remarks", "error"]
    assert row[3:5] == [f"{odds / (1 + odds):.6f}", "0.1"]
    capsys.readouterr()
    (same,) = _asked(capsys, tmp_path, image, "--prevalence", "0.75")
    assert same["probabilities"]["pneumonia"] == pytest.approx(plain)  # type: ignore[index]
    assert main(["predict", str(tmp_path), str(image), "--prevalence", "0.1"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    of_threshold = threshold / (1 - threshold) * (0.1 / 0.9) / (0.75 / 0.25)
    assert f"pneumonia from {of_threshold / (1 + of_threshold):.3f} on" in shown
    assert "for a place where 10.0% are pneumonia; of the validation records that fixed them 75.0% were" in shown


def test_a_model_that_says_no_prevalence_and_answers_that_are_kept_refuse_another_one(
    model: Path, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    Image.fromarray(pixels).save(tmp_path / "x.png")
    asked = ["predict", str(model), str(tmp_path / "x.png"), "--prevalence", "0.1"]
    with pytest.raises(DataError, match="needs a model of two classes whose"):
        main(asked)
    save_model(model, flat_parameters(NETWORK), _facts(0.5).model_copy(update={"prevalence": 0.75}))
    for kept in ("--store", "--dicom-sr"):
        with pytest.raises(DataError, match="must be left out with --store and --dicom-sr"):
            main([*asked, kept, str(tmp_path / "kept")])
    assert not (tmp_path / "kept").exists()


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="a model is a folder with"):
        main(["predict", str(tmp_path), "x.png"])


def _write_dicom(path: Path, pixels: NDArray[np.uint8]) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 8, 8, 7
    dataset.PixelRepresentation, dataset.PhotometricInterpretation = 0, "MONOCHROME2"
    dataset.WindowCenter, dataset.WindowWidth = 128, 256
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path)


def _chest(**fields: object) -> bytes:
    usual: dict[str, Any] = {"BodyPartExamined": "CHEST", "ViewPosition": "PA"}
    return dicom(phantom.chest(1, 64, 3).images[0, 0], **{**usual, **fields})


@pytest.mark.parametrize(
    ("content", "remarks"),
    [
        (_chest(), []),
        (_chest(Modality="MR", BodyPartExamined="HEAD"), ["wrong_modality", "wrong_body_part"]),
        (_chest(BodyPartExamined="LEG"), ["wrong_body_part"]),
        (_chest(ViewPosition="LL"), ["wrong_view"]),
        (_chest(PhotometricInterpretation="MONOCHROME1"), ["inverted_image"]),
        (_chest(WindowCenter=0, WindowWidth=0), ["header_field_ignored"]),
        (png(np.zeros((64, 64), np.uint8)), ["constant_image"]),
        (png(np.rot90(phantom.chest(1, 64, 3).images[0, 0], 2).copy()), ["unlike_task"]),
        (png(phantom.chest(1, 20, 3).images[0, 0]), ["image_too_small"]),
    ],
)
def test_an_image_that_the_model_was_not_trained_for_gets_a_remark(
    model: Path, capsys: pytest.CaptureFixture[str], content: bytes, remarks: list[str]
) -> None:
    (model / "x").write_bytes(content)
    (answer,) = _asked(capsys, model, model / "x")
    said = answer["remarks"]
    assert isinstance(said, list)
    assert [remark.partition(":")[0] for remark in said] == remarks
    assert main(["predict", str(model), str(model / "x")]) == 0
    printed = capsys.readouterr().out
    assert ("(!)" in printed) == bool(remarks)
    assert all(remark in printed for remark in remarks)
