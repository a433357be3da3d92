"""A shortcut within a hospital is found, and chance is not taken for one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import roc_auc_score

from client.data.mistakes import Mistake
from client.data.pixels import Header, Picture
from client.data.shortcuts import CHANCE, NAMES, Traces, find_shortcuts, rank_test, traces_of
from deploy.datasets import phantom
from tests.support.hospital_folder import CLASSES, Hospital, chest_images, dicom, healthy, png

TRIALS = 2000


def traces(numbers: npt.NDArray[np.generic], sources: list[str] | None = None) -> list[Traces]:
    rows = np.asarray(numbers, np.float32)
    return [Traces(row, source, "") for row, source in zip(rows, sources or ["PNG"] * len(rows), strict=True)]


def shortcuts(hospital: Hospital, tmp_path: Path) -> list[str]:
    found = hospital.check(tmp_path / "cache").findings
    return [finding.detail for finding in found if finding.mistake is Mistake.SHORTCUT]


@pytest.mark.parametrize("ties", [1, 10, 1000])
def test_the_auc_is_that_of_scikit_learn(ties: int) -> None:
    random = np.random.default_rng(ties)
    chosen = random.random(300) < 0.3
    values = np.floor(random.normal(chosen * 0.5, 1.0) * ties)
    assert rank_test(values, chosen)[0] == pytest.approx(roc_auc_score(chosen, values), abs=1e-12)


def test_the_probability_of_chance_is_that_of_permutations() -> None:
    random = np.random.default_rng(7)
    chosen = np.arange(80) < 30
    values = np.floor(random.normal(chosen * 0.45, 1.0) * 2)
    auc, chance = rank_test(values, chosen)
    permuted = np.array([rank_test(values, random.permutation(chosen))[0] for _ in range(TRIALS)])
    assert chance == pytest.approx((np.abs(permuted - 0.5) >= abs(auc - 0.5)).mean(), abs=0.02)


@pytest.mark.long
def test_without_a_shortcut_hardly_one_hospital_in_a_thousand_is_warned() -> None:
    """Labels drawn anew for every hospital; what is tested together counts together."""
    random = np.random.default_rng(3)
    alarms = 0
    for _ in range(TRIALS):
        hospital = traces(random.normal(size=(60, len(NAMES))), random.choice(["DICOM DX", "DICOM CR"], 60).tolist())
        alarms += bool(list(find_shortcuts(hospital, random.integers(0, 2, 60), CLASSES)))
    assert alarms <= max(2, 10 * CHANCE * TRIALS)


@pytest.mark.parametrize("shift", [1.5, 2.0, -2.0])
def test_a_shift_between_classes_is_found_among_sixty_images(shift: float) -> None:
    random = np.random.default_rng(5)
    labels = np.arange(60) % 2
    numbers = random.normal(size=(60, len(NAMES)))
    numbers[:, 2] += shift * labels
    (found,) = find_shortcuts(traces(numbers), labels, CLASSES)
    assert found.trace == NAMES[2]
    assert found.auc > 0.8


def test_a_class_of_several_is_named() -> None:
    random = np.random.default_rng(6)
    labels = np.arange(150) % 3
    numbers = random.normal(size=(150, len(NAMES)))
    numbers[:, 0] += 5.0 * (labels == 2)
    assert "c" in {found.name for found in find_shortcuts(traces(numbers), labels, ("a", "b", "c"))}


@pytest.mark.parametrize("few", [0, 1, 9])
def test_too_few_images_of_a_class_tell_nothing(few: int) -> None:
    labels = (np.arange(100) < few).astype(np.int64)
    numbers = np.repeat(labels[:, None], len(NAMES), axis=1)
    assert list(find_shortcuts(traces(numbers), labels, CLASSES)) == []


def framed(pixels: npt.NDArray[np.uint8]) -> bytes:
    return png(np.pad(pixels, 2))


def white_framed(pixels: npt.NDArray[np.uint8]) -> bytes:
    return png(np.pad(pixels, 2, constant_values=255))


def marked(pixels: npt.NDArray[np.uint8]) -> bytes:
    with_mark = pixels.copy()
    with_mark[1:6, 1:4] = 255
    return png(with_mark)


def wider(pixels: npt.NDArray[np.uint8]) -> bytes:
    return png(np.concatenate([pixels, pixels[:, -3:]], axis=1))


def from_another_device(pixels: npt.NDArray[np.uint8]) -> bytes:
    return dicom(pixels, Modality="CR", WindowCenter=128, WindowWidth=256)


def taken_in_bed(pixels: npt.NDArray[np.uint8]) -> bytes:
    return dicom(pixels, ViewPosition="AP", WindowCenter=128, WindowWidth=256)


@pytest.mark.long
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (framed, "border"),
        (white_framed, "border"),
        (marked, "bright marks in the corners"),
        (wider, "the shape of the image"),
        (wider, "the number of pixels"),
        (from_another_device, "the kind of file (DICOM CR)"),
        (taken_in_bed, "the view (AP)"),
    ],
)
def test_what_one_class_alone_has_is_found_as_a_shortcut(
    tmp_path: Path, change: Callable[[npt.NDArray[np.uint8]], bytes], named: str
) -> None:
    hospital = healthy(tmp_path / "data")
    for number, row in enumerate(hospital.rows):
        if row[1] == "pneumonia":
            hospital.file(number).write_bytes(change(chest_images()[number]))
    # One image of each of thirty patients is too few for so rare a chance; each image is a patient's here.
    hospital.rows = [(row[0], row[1], f"p-{number}", row[3]) for number, row in enumerate(hospital.rows)]
    hospital.write_manifest()
    found = shortcuts(hospital, tmp_path)
    assert any(named in detail for detail in found), found
    assert all("AUC of" in detail for detail in found)


def test_what_both_classes_have_alike_is_no_shortcut(tmp_path: Path) -> None:
    hospital = healthy(tmp_path / "data")
    for number in range(0, len(hospital.rows), 2):
        hospital.file(number).write_bytes(framed(chest_images()[number]))
    assert shortcuts(hospital, tmp_path) == []


def test_a_patient_with_many_films_counts_once(tmp_path: Path) -> None:
    hospital = healthy(tmp_path / "data")
    for number, row in enumerate(hospital.rows):
        if row[1] == "pneumonia":
            hospital.file(number).write_bytes(framed(chest_images()[number]))
    hospital.rows = [(row[0], row[1], f"p-{row[1]}-{row[3]}", row[3]) for row in hospital.rows]
    hospital.write_manifest()
    assert shortcuts(hospital, tmp_path) == []


@pytest.mark.long
@pytest.mark.parametrize("size", [32, 224])
def test_phantoms_have_no_shortcut_though_their_classes_differ(size: int) -> None:
    records = phantom.chest(200, size, 9)
    measured = [traces_of(Picture(image[0], Header())) for image in records.images]
    assert list(find_shortcuts(measured, records.labels, CLASSES)) == []
