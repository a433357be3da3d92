import datetime
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.data import DataContract, open_data
from client.data import hospital_data as module
from client.data.catalogue import Catalogue, Layout
from client.data.examine import Examined, examine_all
from client.data.hospital_data import Report, check_data
from client.data.mistakes import Mistake
from common import shards
from common.config import PrivacyUnit
from common.errors import DataError
from deploy.data import phantom
from tests.unit.client.data.hospital_folder import CLASSES, CONTRACT, TODAY, Hospital, chest_images, dicom, healthy, png
from tests.unit.client.data.planted_mistakes import another_chest

Maker = Callable[[int, int, int], shards.Records]

RETINA = DataContract("retina", phantom.RETINA_CLASSES, channels=3, image_size=28, batch_size=8, delta=1e-4)


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return healthy(tmp_path / "data")


def spy(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count how often images are opened anew."""
    calls: list[int] = []

    def counting(catalogue: Catalogue, contract: DataContract, today: datetime.date) -> Iterator[Examined]:
        calls.append(1)
        return examine_all(catalogue, contract, today)

    monkeypatch.setattr(module, "examine_all", counting)
    return calls


def test_images_labels_and_patients_come_back_in_their_parts(hospital: Hospital, tmp_path: Path) -> None:
    data = open_data(hospital.folder, replace(CONTRACT, image_size=32), tmp_path / "cache")
    expected = [number for number, row in enumerate(hospital.rows) if row[3] == "train"]
    assert np.array_equal(data.train.images[:, 0], np.stack(chest_images())[expected])
    assert data.train.labels.tolist() == [CLASSES.index(hospital.rows[number][1]) for number in expected]
    assert len(data.train) == 40
    groups = data.train.patients
    assert all((groups[i] == groups[j]) == (expected[i] // 2 == expected[j] // 2) for i in range(40) for j in range(40))
    assert "p-0" not in repr(data)


def test_the_second_start_opens_no_image(hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch)
    first = open_data(hospital.folder, CONTRACT, tmp_path / "cache")
    second = open_data(hospital.folder, CONTRACT, tmp_path / "cache")
    assert len(calls) == 1
    assert first.fingerprint == second.fingerprint
    assert np.array_equal(first.test.images, second.test.images)


@pytest.mark.parametrize("change", ["image", "label", "added", "size", "accepted"])
def test_any_change_makes_the_images_be_opened_again(
    hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    calls = spy(monkeypatch)
    contract = CONTRACT
    before = open_data(hospital.folder, contract, tmp_path / "cache").fingerprint
    match change:
        case "image":
            hospital.file(0).write_bytes(png(another_chest()))
        case "label":
            for number in (0, 1):
                hospital.change(number, "label", "pneumonia")
        case "added":
            hospital.add("more.png", png(another_chest()))
        case "size":
            contract = replace(contract, image_size=32)
        case "accepted":
            (hospital.folder / "accepted.csv").write_text("file,mistake\nimage-000.png,inverted_image\n")
    after = open_data(hospital.folder, contract, tmp_path / "cache").fingerprint
    assert len(calls) == 2
    assert (before == after) == (change in ("size", "accepted"))


def test_a_damaged_cache_is_rebuilt(hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch)
    open_data(hospital.folder, CONTRACT, tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*/train.images")
    path.write_bytes(b"")
    assert len(open_data(hospital.folder, CONTRACT, tmp_path / "cache").train) == 40
    assert len(calls) == 2


def test_a_stricter_contract_refuses_prepared_images_too(hospital: Hospital, tmp_path: Path) -> None:
    open_data(hospital.folder, CONTRACT, tmp_path / "cache")
    with pytest.raises(DataError, match="too_few_for_batch"):
        open_data(hospital.folder, replace(CONTRACT, batch_size=50), tmp_path / "cache")


def test_a_refusal_names_kinds_to_the_server_and_remedies_to_the_operator_and_places_to_neither(
    hospital: Hospital, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hospital.file(1).write_bytes(b"broken")
    hospital.change(7, "split", "test")
    with caplog.at_level(logging.INFO), pytest.raises(DataError) as caught:
        open_data(hospital.folder, CONTRACT, tmp_path / "cache")
    assert "(not_an_image, patient_on_both_sides)" in str(caught.value)
    assert "put all images of a patient into one part" in caplog.text
    for told in (str(caught.value), caplog.text):
        assert "image-0" not in told
        assert "p-0" not in told


def test_an_accepted_mistake_no_longer_blocks_but_a_refused_one_still_does(hospital: Hospital, tmp_path: Path) -> None:
    hospital.file(3).write_bytes(png(255 - chest_images()[3]))
    assert not hospital.check(tmp_path / "cache").is_usable
    (hospital.folder / "accepted.csv").write_text("file,mistake\nimage-003.png,inverted_image\n")
    report = hospital.check(tmp_path / "cache")
    assert report.is_usable
    assert [(finding.mistake, finding.accepted) for finding in report.findings] == [(Mistake.INVERTED_IMAGE, True)]
    hospital.file(3).write_bytes(b"broken")
    (hospital.folder / "accepted.csv").write_text("file,mistake\nimage-003.png,not_an_image\n")
    assert not hospital.check(tmp_path / "cache").is_usable


def test_class_folders_with_parts_and_patients_read_like_a_manifest(hospital: Hospital, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for file, label, patient, split in hospital.rows:
        folder = tree / {"train": "Train", "val": "validation", "test": "testing"}[split] / label.upper() / patient
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes((hospital.folder / file).read_bytes())
    report = check_data(tree, CONTRACT, tmp_path / "cache", today=TODAY)
    assert report.findings == ()
    assert report.layout is Layout.CLASS_FOLDERS
    assert report.patients == 30
    assert report.counts == hospital.check(tmp_path / "other").counts


def test_parts_left_open_are_chosen_by_patient(hospital: Hospital, tmp_path: Path) -> None:
    hospital.rows = [(*row[:3], "") for row in hospital.rows]
    hospital.write_manifest()
    report = hospital.check(tmp_path / "cache")
    assert not {finding.mistake for finding in report.findings} & {Mistake.PATIENT_ON_BOTH_SIDES}
    assert sum(map(sum, report.counts.values())) == 60
    assert all(count % 2 == 0 for counts in report.counts.values() for count in counts)


def test_the_patient_of_a_dicom_header_counts_where_the_manifest_names_none(hospital: Hospital, tmp_path: Path) -> None:
    for number in range(2):
        content = dicom(another_chest(seed=60 + number), PatientID="KH-1")
        hospital.add(f"{number}.dcm", content, ("normal", "", "train"))
    contract = replace(CONTRACT, unit=PrivacyUnit.PATIENT)
    patients = open_data(hospital.folder, contract, tmp_path / "cache").train.patients
    assert len(patients) == 42
    assert len(set(patients.tolist())) == 21


@pytest.mark.parametrize(("maker", "contract"), [(phantom.chest, CONTRACT), (phantom.retina, RETINA)])
def test_npz_files_of_grey_and_colour_images_are_read(tmp_path: Path, maker: Maker, contract: DataContract) -> None:
    records = maker(90, 28, 8)
    arrays = {}
    for split, rows in (("train", slice(0, 60)), ("val", slice(60, 75)), ("test", slice(75, 90))):
        arrays[f"{split}_images"] = np.moveaxis(records.images[rows], 1, 3).squeeze()
        arrays[f"{split}_labels"] = records.labels[rows, None].astype(np.uint8)
    np.savez(tmp_path / "shard.npz", allow_pickle=False, **arrays)
    data = open_data(tmp_path / "shard.npz", contract, tmp_path / "cache")
    assert np.array_equal(data.test.images, records.images[75:])
    assert len(set(data.train.patients.tolist())) == 60


def test_the_fingerprint_is_that_of_the_shard_format(hospital: Hospital, tmp_path: Path) -> None:
    assert open_data(hospital.folder, CONTRACT, tmp_path / "cache").fingerprint == shards.fingerprint(hospital.folder)


def test_data_that_changes_while_it_is_read_is_not_kept(
    hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = module.check_data

    def changing(folder: Path, contract: DataContract, cache_dir: Path) -> Report:
        hospital.file(0).write_bytes(png(another_chest()))
        return original(folder, contract, cache_dir)

    monkeypatch.setattr(module, "check_data", changing)
    with pytest.raises(DataError, match="changed while it was read"):
        open_data(hospital.folder, CONTRACT, tmp_path / "cache")


def test_a_missing_folder_is_refused_without_its_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist") as caught:
        open_data(tmp_path / "missing", CONTRACT, tmp_path / "cache")
    assert "missing" not in str(caught.value)


def test_a_medium_of_a_pacs_with_its_table_of_contents_and_files_without_endings_is_read(
    hospital: Hospital, tmp_path: Path
) -> None:
    (hospital.folder / "manifest.csv").unlink()
    tree = tmp_path / "export"
    for number, (_, label, patient, _) in enumerate(hospital.rows):
        folder = tree / label / patient
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"IM{number:04d}").write_bytes(dicom(chest_images()[number], PatientID=patient))
    (tree / "DICOMDIR").write_bytes(dicom(another_chest()))
    (tree / "README.TXT").write_text("viewer")
    report = check_data(tree, CONTRACT, tmp_path / "cache", today=TODAY)
    assert report.findings == ()
    assert report.images == 60
