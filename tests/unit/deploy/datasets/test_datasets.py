import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.config import DataConfig
from common.errors import DataError
from common.shards import SPLITS
from deploy.datasets import datasets, tasks
from deploy.datasets.datasets import DataSet, obtain
from deploy.datasets.download import NoAnswerError, PublishedFile
from deploy.datasets.tasks import medmnist

COUNTS = {"train": 60, "val": 12, "test": 20}


def write_npz(path: Path, channels: int = 1, classes: int = 2, size: int = 28) -> Path:
    random = np.random.default_rng(1)
    arrays = {}
    for split, count in COUNTS.items():
        shape = (count, size, size) if channels == 1 else (count, size, size, channels)
        arrays[f"{split}_images"] = random.integers(0, 256, shape).astype(np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % classes).astype(np.uint8)[:, None]
    np.savez_compressed(path, allow_pickle=True, **arrays)
    return path


def publish(monkeypatch: pytest.MonkeyPatch, path: Path, size_ending: str = "") -> None:
    """Let medmnist's table name this file's checksum, as if it were the published one."""
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    listed = medmnist()
    monkeypatch.setitem(listed, "pneumoniamnist", {**listed["pneumoniamnist"], f"MD5{size_ending}": md5})


def no_network(published: PublishedFile, _folder: Path, timeout_seconds: float) -> Path:
    raise NoAnswerError(f"{published.name} could not be downloaded: no answer within {timeout_seconds:g} seconds")


def small(source: str = "auto") -> DataConfig:
    return DataConfig(source=source, phantom_records=400)


def counts(data: DataSet) -> dict[str, int]:
    return {split: len(data.parts[split]) for split in SPLITS}


def test_auto_takes_the_published_file_from_the_environments_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, write_npz(tmp_path / "pneumoniamnist.npz"))
    data = obtain(small(), "pneumonia", 28, tmp_path / "cache", {"CONFIDE_DATA": str(tmp_path)})
    assert (data.name, data.source, data.classes) == ("PneumoniaMNIST", "pneumoniamnist.npz", ("normal", "pneumonia"))
    assert counts(data) == COUNTS
    assert data.banner is None
    assert not data.is_phantom


def test_auto_takes_it_from_the_cache_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    publish(monkeypatch, write_npz(tmp_path / "pneumoniamnist.npz"))
    monkeypatch.setattr(datasets, "download", no_network)
    data = obtain(small(), "pneumonia", 28, tmp_path, {"CONFIDE_DATA": str(tmp_path / "empty")})
    assert data.name == "PneumoniaMNIST"


@pytest.mark.parametrize("where", ["given", "cache"])
def test_a_corrupt_file_is_refused_and_not_replaced_by_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    folder = tmp_path / where
    folder.mkdir()
    write_npz(folder / "pneumoniamnist.npz")
    monkeypatch.setattr(datasets, "download", no_network)
    with pytest.raises(DataError, match=r"pneumoniamnist\.npz must be the published file"):
        obtain(small(), "pneumonia", 28, tmp_path / "cache", {"CONFIDE_DATA": str(folder)} if where == "given" else {})


def test_auto_downloads_to_the_cache_when_the_file_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[PublishedFile, Path, float]] = []

    def fetch(published: PublishedFile, folder: Path, timeout_seconds: float) -> Path:
        asked.append((published, folder, timeout_seconds))
        folder.mkdir()
        return write_npz(folder / published.name)

    monkeypatch.setattr(datasets, "download", fetch)
    assert obtain(small(), "pneumonia", 28, tmp_path / "cache", {}).name == "PneumoniaMNIST"
    entry = medmnist()["pneumoniamnist"]
    assert asked == [
        (PublishedFile("pneumoniamnist.npz", entry["url"], entry["MD5"]), tmp_path / "cache", 10.0),
    ]


def test_auto_makes_the_phantom_where_nothing_answers_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "download", no_network)
    data = obtain(small(), "pneumonia", 28, tmp_path, {})
    assert data.is_phantom
    assert data.name == "phantom-pneumonia"
    assert data.banner is not None
    assert "PHANTOM DATA" in data.banner
    assert "no answer within 10 seconds" in data.banner
    assert data.banner in data.notes
    assert sum(counts(data).values()) == 400


def test_a_corrupt_download_is_an_error_and_never_the_phantom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def corrupt(*_: object) -> Path:
        raise DataError("pneumoniamnist.npz must be the published file")

    monkeypatch.setattr(datasets, "download", corrupt)
    with pytest.raises(DataError, match="must be the published file"):
        obtain(small(), "pneumonia", 28, tmp_path, {})


@pytest.mark.parametrize(
    ("task", "channels", "classes"), [("pneumonia", 1, 2), ("retina", 3, 5), ("retinamnist", 3, 5)]
)
def test_the_phantom_has_the_tasks_classes_and_keeps_patients_on_one_side(
    task: str, channels: int, classes: int
) -> None:
    data = obtain(small("phantom"), task, 28)
    assert (data.channels, len(data.classes)) == (channels, classes)
    sides = [set(data.parts[split].patients) for split in SPLITS]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]


def test_a_task_without_a_phantom_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "download", no_network)
    with pytest.raises(DataError, match=r"no phantom for blood .*give --data PATH"):
        obtain(small(), "blood", 28, tmp_path, {})


@pytest.mark.parametrize("task", ["organmnist3d", "measles"])
def test_a_task_that_is_no_2d_one_is_refused_with_the_list(task: str) -> None:
    with pytest.raises(DataError, match=rf"must be one of pneumonia, retina, pathmnist.*got '{task}'"):
        tasks.task_named(task)


@pytest.mark.parametrize(("size", "name"), [(28, ""), (32, "_64"), (64, "_64"), (200, "_224"), (512, "_224")])
def test_the_next_larger_published_size_is_taken(size: int, name: str) -> None:
    published = datasets.published_file(tasks.task_named("pneumonia"), size)
    assert published.name == f"pneumoniamnist{name}.npz"
    assert published.md5 == medmnist()["pneumoniamnist"][f"MD5{name}"]


def test_the_cache_follows_xdg() -> None:
    assert datasets.default_cache({"XDG_CACHE_HOME": "/x"}) == Path("/x/confide")
    assert datasets.default_cache({"XDG_CACHE_HOME": "relative"}) == Path.home() / ".cache" / "confide"
    assert datasets.default_cache({}) == Path.home() / ".cache" / "confide"


@pytest.mark.parametrize("home", ["/proc/no/such/home", "/dev/null"])
def test_a_user_whose_home_cannot_be_written_has_the_cache_among_temporary_files(
    monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setattr(os, "access", lambda path, _mode: not str(path).startswith(("/proc", "/dev")))
    monkeypatch.setenv("HOME", home)
    assert datasets.default_cache({}) == Path(tempfile.gettempdir()) / f"confide-{os.getuid()}"


def test_a_user_without_a_home_has_the_cache_among_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert datasets.default_cache({}) == Path(tempfile.gettempdir()) / f"confide-{os.getuid()}"


@pytest.mark.parametrize(
    ("environment", "source", "complaint"),
    [
        ({"CONFIDE_DATA": "/does/not/exist"}, "auto", r"\$CONFIDE_DATA must name a folder that exists"),
        ({}, "/does/not/exist.npz", r"there is no /does/not/exist\.npz"),
    ],
)
def test_a_missing_path_is_refused(environment: dict[str, str], source: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        obtain(small(source), "pneumonia", 28, None, environment)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_npz_of_ones_own_is_read_and_resized(tmp_path: Path, channels: int) -> None:
    path = write_npz(tmp_path / "ours.npz", channels, size=40)
    data = obtain(small(str(path)), "pneumonia" if channels == 1 else "retina", 28)
    assert data.name == "ours"
    assert data.parts["train"].images.shape == (60, channels, 28, 28)


@pytest.mark.parametrize(
    ("channels", "classes", "complaint"), [(3, 2, "must have 1 channels"), (1, 5, "labels 0 … 1; train has others")]
)
def test_an_npz_of_another_task_is_refused(tmp_path: Path, channels: int, classes: int, complaint: str) -> None:
    path = write_npz(tmp_path / "ours.npz", channels, classes)
    with pytest.raises(DataError, match=complaint):
        obtain(small(str(path)), "pneumonia", 28)


@pytest.mark.parametrize("images", [59, 61])
def test_an_npz_with_more_or_fewer_images_than_labels_is_refused(tmp_path: Path, images: int) -> None:
    path = write_npz(tmp_path / "ours.npz")
    with np.load(path) as whole:
        arrays = dict(whole)
    arrays["train_images"] = np.zeros((images, 28, 28), np.uint8)
    np.savez(path, allow_pickle=True, **arrays)
    with pytest.raises(DataError, match="as many images as labels"):
        obtain(small(str(path)), "pneumonia", 28)


def test_an_npz_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "ours.npz")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"ours\.npz must be a whole npz file"):
        obtain(small(str(path)), "pneumonia", 28)


def write_xrays(root: Path, names: dict[str, list[str]]) -> Path:
    """Write X-rays of noise under ``train/NORMAL`` and so on, each another one."""
    random = np.random.default_rng(1)
    for place, files in names.items():
        (root / place).mkdir(parents=True)
        for name in files:
            noise = np.repeat(random.integers(0, 256, (56, 56, 1)), 3, axis=2).astype(np.uint8)
            Image.fromarray(noise).save(root / place / name, "JPEG")
    return root


def test_xrays_by_folder_have_their_patients_and_a_validation_part_taken_by_patient(tmp_path: Path) -> None:
    write_xrays(
        tmp_path,
        {
            "train/NORMAL": [f"IM-{number // 3:04d}-{number % 3:04d}.jpeg" for number in range(60)],
            "train/PNEUMONIA": [f"person{number // 4}_virus_{number}.jpeg" for number in range(80)],
            "val/PNEUMONIA": ["person900_bacteria_1.jpeg"],
            "test/NORMAL": ["NORMAL2-IM-0001-0001.jpeg"],
            "test/PNEUMONIA": ["person3_bacteria_9.jpeg"],
        },
    )
    data = obtain(small(str(tmp_path)), "pneumonia", 28)
    assert counts(data)["test"] == 2
    assert counts(data)["train"] + counts(data)["val"] == 141
    assert 11 <= counts(data)["val"] <= 18
    assert "taken by patient" in data.notes[0]
    assert not set(data.parts["train"].patients) & set(data.parts["val"].patients)


def test_the_test_part_stays_official_when_a_patient_is_on_both_sides(tmp_path: Path) -> None:
    train = [f"IM-{number:04d}-0001.jpeg" for number in range(10)]
    write_xrays(
        tmp_path,
        {
            "train/NORMAL": train,
            "val/NORMAL": ["IM-0003-0002.jpeg"],
            "test/NORMAL": ["IM-0005-0002.jpeg", "IM-0100-0001.jpeg"],
        },
    )
    data = obtain(small(str(tmp_path)), "pneumonia", 28)
    assert counts(data) == {"train": 8, "val": 1, "test": 2}
    assert "2 of 10 records of train left out" in data.notes[0]
    assert "the patient is in a later split" in data.notes[0]


def test_an_image_that_is_there_twice_is_kept_once_and_in_the_later_split(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "ours.npz")
    with np.load(path) as whole:
        arrays = dict(whole)
    arrays["train_images"][1] = arrays["train_images"][0]
    arrays["train_images"][2] = arrays["val_images"][0]
    arrays["val_images"][1] = arrays["test_images"][0]
    arrays["test_images"][2] = arrays["test_images"][1]
    np.savez(path, allow_pickle=True, **arrays)
    data = obtain(small(str(path)), "pneumonia", 28)
    assert counts(data) == {"train": 58, "val": 11, "test": 20}
    assert len(data.notes) == 2


def test_a_tree_without_a_test_part_is_refused(tmp_path: Path) -> None:
    write_xrays(tmp_path, {"train/NORMAL": ["IM-0001-0001.jpeg"]})
    with pytest.raises(DataError, match=r"test/normal/image\.png; there are none in test"):
        obtain(small(str(tmp_path)), "pneumonia", 28)


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("person100_virus_184.jpeg", "person100-virus"),
        ("person100_bacteria_475.jpeg", "person100-bacteria"),
        ("IM-0023-0001-0002.jpeg", "IM-0023"),
        ("NORMAL2-IM-0381-0001.jpeg", "NORMAL2-IM-0381"),
        ("scan.jpeg", ""),
    ],
)
def test_the_patient_is_read_from_an_xrays_name(name: str, patient: str) -> None:
    assert datasets.kermany_patient(name) == patient
