import datetime
import itertools
import logging
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.data import DataContract, open_data
from client.data import hospital_data as module
from client.data.catalogue import Catalogue, DataLayout
from client.data.examine import Examined, examine_all
from client.data.hospital_data import UNUSABLE_DATA, Report, check_data
from client.data.mistakes import Mistake
from common import shards
from common.config import PrivacyUnit
from common.errors import DataError
from deploy.datasets import phantom
from tests.support.hospital_folder import CLASSES, CONTRACT, TODAY, Hospital, chest_images, dicom, healthy, png
from tests.support.planted_mistakes import another_chest

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


@pytest.mark.long
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


@pytest.mark.parametrize("change", [{"batch_size": 50}, {"delta": 0.5}, {"min_records_per_class": 50}], ids=str)
def test_how_many_images_there_are_refuses_no_run_and_is_told_to_the_operator(
    hospital: Hospital, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any]
) -> None:
    """A refusal would tell the server how many: it could ask again with other bounds (rule 2 of the promise)."""
    for _ in ("examined", "kept"):
        caplog.clear()
        assert len(open_data(hospital.folder, replace(CONTRACT, **change), tmp_path / "cache").train) == 40
        assert ("too_few" in caplog.text) or ("delta_too_large" in caplog.text)


def test_a_refusal_tells_the_server_nothing_and_the_operator_kinds_and_remedies_and_places_to_neither(
    hospital: Hospital, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hospital.file(1).write_bytes(b"broken")
    hospital.change(7, "split", "test")
    with caplog.at_level(logging.INFO), pytest.raises(DataError) as caught:
        open_data(hospital.folder, CONTRACT, tmp_path / "cache")
    assert str(caught.value) == UNUSABLE_DATA
    assert "(not_an_image, patient_on_both_sides)" in caplog.text
    assert "put all images of a patient into one part" in caplog.text
    assert "image-0" not in caplog.text
    assert "p-0" not in caplog.text


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.chmod(0)])
def test_an_image_that_becomes_unreadable_once_the_data_is_open_cannot_reach_the_run(
    hospital: Hospital, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    data = open_data(hospital.folder, CONTRACT, tmp_path / "cache")
    before = data.train.images.copy()
    for number in range(len(hospital.rows)):
        damage(hospital.file(number))
    assert np.array_equal(data.train.images, before)


def test_data_in_use_outlives_its_removal_from_the_cache(hospital: Hospital, tmp_path: Path) -> None:
    data = open_data(hospital.folder, CONTRACT, tmp_path / "cache")
    before = data.train.images.copy()
    shutil.rmtree(tmp_path / "cache")
    assert np.array_equal(data.train.images, before)


def test_an_image_that_vanishes_while_the_others_are_read_costs_that_record_and_is_told_to_the_operator(
    hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tree = in_class_folders(hospital, tmp_path / "tree")
    original = examine_all

    def vanishing(catalogue: Catalogue, contract: DataContract, today: datetime.date) -> Iterator[Examined]:
        min(tree.rglob("*.png")).unlink()
        monkeypatch.setattr(module, "examine_all", original)
        return original(catalogue, contract, today)

    monkeypatch.setattr(module, "examine_all", vanishing)
    data = open_data(tree, CONTRACT, tmp_path / "cache")
    assert len(data.train) + len(data.validation) + len(data.test) == 59
    assert "vanished in 1 places" in caplog.text


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


def in_class_folders(hospital: Hospital, tree: Path) -> Path:
    for file, label, patient, split in hospital.rows:
        folder = tree / {"train": "Train", "val": "validation", "test": "testing"}[split] / label.upper() / patient
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes((hospital.folder / file).read_bytes())
    return tree


def test_class_folders_with_parts_and_patients_read_like_a_manifest(hospital: Hospital, tmp_path: Path) -> None:
    tree = in_class_folders(hospital, tmp_path / "tree")
    report = check_data(tree, CONTRACT, tmp_path / "cache", today=TODAY)
    assert report.findings == ()
    assert report.layout is DataLayout.CLASS_FOLDERS
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


def test_a_record_of_an_npz_file_keeps_its_label_where_the_one_before_is_left_out(tmp_path: Path) -> None:
    records = phantom.chest(90, 28, 8)
    arrays = {}
    for split, rows in (("train", slice(0, 60)), ("val", slice(60, 75)), ("test", slice(75, 90))):
        arrays[f"{split}_images"] = records.images[rows, 0]
        arrays[f"{split}_labels"] = (np.arange(rows.start, rows.stop)[:, None] % 3).astype(np.uint8)
    np.savez(tmp_path / "shard.npz", allow_pickle=False, **arrays)
    data = open_data(tmp_path / "shard.npz", replace(CONTRACT, task="own"), tmp_path / "cache")  # 2 is not named
    used = np.arange(60) % 3 != 2
    assert np.array_equal(data.train.images, records.images[:60][used])
    assert np.array_equal(data.train.labels, (np.arange(60) % 3)[used])
    assert [len(data.validation), len(data.test)] == [10, 10]


def test_an_image_that_the_terms_of_a_run_exclude_is_left_out_and_told_to_the_operator(
    hospital: Hospital, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hospital.file(3).write_bytes(png(chest_images()[3][:20]))
    hospital.file(4).write_bytes(png(255 - chest_images()[4]))
    assert len(open_data(hospital.folder, CONTRACT, tmp_path / "cache").train) == 38
    assert "image_too_small in 1 places" in caplog.text
    assert "inverted_image in 1 places" in caplog.text
    (hospital.folder / "accepted.csv").write_text("file,mistake\nimage-004.png,inverted_image\n")
    assert len(open_data(hospital.folder, CONTRACT, tmp_path / "cache").train) == 39


def test_the_fingerprint_is_that_of_the_shard_format(hospital: Hospital, tmp_path: Path) -> None:
    assert open_data(hospital.folder, CONTRACT, tmp_path / "cache").fingerprint == shards.fingerprint(hospital.folder)


def test_data_that_changes_each_time_it_is_read_is_not_kept(
    hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = module.check_data
    seeds = itertools.count()

    def changing(folder: Path, contract: DataContract, cache_dir: Path) -> Report:
        report = original(folder, contract, cache_dir)
        hospital.file(0).write_bytes(png(another_chest(seed=next(seeds))))
        return report

    monkeypatch.setattr(module, "check_data", changing)
    with pytest.raises(DataError, match="cannot be used"):
        open_data(hospital.folder, CONTRACT, tmp_path / "cache")
    assert "changed while it was read" in caplog.text


def test_a_missing_folder_is_refused_without_its_path(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DataError) as caught:
        open_data(tmp_path / "missing", CONTRACT, tmp_path / "cache")
    assert str(caught.value) == UNUSABLE_DATA
    assert "does not exist" in caplog.text
    assert str(tmp_path) not in caplog.text


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
    assert [(finding.mistake, finding.detail) for finding in report.findings] == [
        (Mistake.FILE_KIND_NOT_READ, "files that are no images: 1 .txt")
    ]
    assert report.images == 60


def zip_folder(folder: Path, archive: Path, names: Sequence[str]) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in names:
            packed.write(folder / name, name)
            (folder / name).unlink()


def test_images_in_an_archive_are_the_same_data(hospital: Hospital, tmp_path: Path) -> None:
    plain = open_data(hospital.folder, CONTRACT, tmp_path / "cache")
    names = [row[0] for row in hospital.rows[::2]]
    zip_folder(hospital.folder, hospital.folder / "half.zip", names)
    hospital.rows = [(f"half.zip/{row[0]}" if row[0] in names else row[0], *row[1:]) for row in hospital.rows]
    hospital.write_manifest()
    assert hospital.check(tmp_path / "other").findings == ()
    zipped = open_data(hospital.folder, CONTRACT, tmp_path / "cache")
    assert zipped.fingerprint == plain.fingerprint
    assert np.array_equal(zipped.train.images, plain.train.images)


def test_class_folders_in_an_archive_name_the_class(hospital: Hospital, tmp_path: Path) -> None:
    tree = in_class_folders(hospital, tmp_path / "tree")
    plain = open_data(tree, CONTRACT, tmp_path / "cache")
    names = [str(path.relative_to(tree)) for path in sorted(tree.rglob("*.png"))]
    zip_folder(tree, tree / "all.zip", names)
    zipped = open_data(tree, CONTRACT, tmp_path / "cache")
    assert len(zipped.train) == len(plain.train)
    assert sorted(zipped.train.labels.tolist()) == sorted(plain.train.labels.tolist())


def test_a_row_that_names_a_file_which_its_archive_lacks_is_found(hospital: Hospital, tmp_path: Path) -> None:
    name = hospital.rows[3][0]
    zip_folder(hospital.folder, hospital.folder / "one.zip", [name])
    hospital.rows[3] = (f"one.zip/another-{name}", *hospital.rows[3][1:])
    hospital.write_manifest()
    kinds = {finding.mistake: finding.where for finding in hospital.check(tmp_path / "cache").findings}
    assert kinds[Mistake.FILE_MISSING].startswith("row 5: one.zip/another-")
    assert kinds[Mistake.FILE_EXTRA] == f"one.zip/{name}"


@pytest.mark.parametrize(
    ("named", "is_told"), [(60, True), (30, True), (29, False)], ids=["everyone", "half of all", "fewer than half"]
)
def test_one_patient_id_for_many_is_told_from_half_of_all_images_on(
    hospital: Hospital, tmp_path: Path, named: int, is_told: bool
) -> None:
    hospital.rows = [
        (row[0], row[1], "ANON" if number < named else f"q-{number}", "") for number, row in enumerate(hospital.rows)
    ]
    hospital.write_manifest()
    found = {finding.mistake: finding.detail for finding in hospital.check(tmp_path / "cache").findings}
    assert (Mistake.ONE_PATIENT_FOR_MANY in found) == is_told
    if is_told:
        assert found[Mistake.ONE_PATIENT_FOR_MANY] == f"{named} of 60 images"
