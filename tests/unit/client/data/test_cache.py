import json
import os
import stat
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from client.data.cache import CACHE_VERSION, PreparedCache
from client.data.watch import NO_STAMP, Origin
from common.errors import DataError

FINGERPRINT = bytes(range(32))
IMAGES = np.random.default_rng(3).integers(0, 256, (6, 1, 8, 8)).astype(np.uint8)
BYTES = IMAGES.nbytes
ROOT = Path("/data")


def fill(cache: PreparedCache, key: str, images: npt.NDArray[np.uint8] = IMAGES, *, commit: bool = True) -> None:
    with cache.build(key, len(images), (1, 8, 8)) as writer:
        for number, pixels in enumerate(images):
            origin = Origin(f"IM{number}", bytes([number]) * 32, NO_STAMP)
            traits = np.full(6, number, np.uint8)
            writer.add("train" if number < 4 else "test", pixels, number % 2, number // 2, traits, origin)
        if commit:
            writer.commit(FINGERPRINT, ROOT)


def test_what_was_committed_is_found_as_it_was(tmp_path: Path) -> None:
    fill(PreparedCache(tmp_path), "a")
    found = PreparedCache(tmp_path).find("a")
    assert found is not None
    assert found.fingerprint == FINGERPRINT
    assert np.array_equal(found.parts["train"].images, IMAGES[:4])
    assert np.array_equal(found.parts["test"].images, IMAGES[4:])
    assert found.parts["train"].labels.tolist() == [0, 1, 0, 1]
    assert found.parts["train"].patients.tolist() == [0, 0, 1, 1]
    assert found.parts["test"].traits.tolist() == [[4] * 6, [5] * 6]
    assert found.parts["val"].images.shape == (0, 1, 8, 8)
    assert found.parts["val"].traits.shape == (0, 6)
    assert (found.root, found.key) == (ROOT, "a")
    assert [origin.file for origin in found.parts["train"].origins] == ["IM0", "IM1", "IM2", "IM3"]
    assert list(found.parts["test"].origins) == [Origin(f"IM{n}", bytes([n]) * 32, NO_STAMP) for n in (4, 5)]


def test_nothing_is_found_under_another_key_or_before_a_commit(tmp_path: Path) -> None:
    cache = PreparedCache(tmp_path)
    fill(cache, "a", commit=False)
    assert cache.find("a") is None
    fill(cache, "a")
    assert cache.find("b") is None
    assert not list(tmp_path.glob("building-*"))


@pytest.mark.usefixtures("open_umask")
def test_everything_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    cache = PreparedCache(tmp_path / "state" / "cache")
    fill(cache, "a")
    for path in (tmp_path / "state").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_writing_into_a_batch_changes_memory_and_never_the_cache(tmp_path: Path) -> None:
    cache = PreparedCache(tmp_path)
    fill(cache, "a")
    found = cache.find("a")
    assert found is not None
    found.parts["train"].images[0] = 0
    again = cache.find("a")
    assert again is not None
    assert np.array_equal(again.parts["train"].images, IMAGES[:4])


@pytest.mark.parametrize(
    "name", ["train.images", "train.labels", "test.patients", "index.json", "train.files", "test.stamps"]
)
def test_a_file_cut_short_makes_the_whole_unusable(tmp_path: Path, name: str) -> None:
    fill(PreparedCache(tmp_path), "a")
    path = tmp_path / "prepared-a" / name
    path.write_bytes(path.read_bytes()[:-1])
    assert PreparedCache(tmp_path).find("a") is None
    path.unlink()
    assert PreparedCache(tmp_path).find("a") is None


def test_another_version_is_not_read(tmp_path: Path) -> None:
    fill(PreparedCache(tmp_path), "a")
    index = tmp_path / "prepared-a" / "index.json"
    other = {**json.loads(index.read_text()), "version": CACHE_VERSION - 1}
    index.write_text(json.dumps(other))
    assert PreparedCache(tmp_path).find("a") is None


def test_what_was_cut_short_is_removed_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "building-x").mkdir()
    (tmp_path / "building-x" / "train.images").write_bytes(bytes(100))
    PreparedCache(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_least_recently_used_gives_way_when_room_is_needed(tmp_path: Path) -> None:
    cache = PreparedCache(tmp_path, limit_bytes=6 * BYTES)
    fill(cache, "a")
    fill(cache, "b")
    (tmp_path / "prepared-b").touch()
    older = (tmp_path / "prepared-b").stat().st_mtime - 100
    os.utime(tmp_path / "prepared-a", (older, older))
    assert cache.find("a") is not None  # found, so used: now "b" is the older
    os.utime(tmp_path / "prepared-b", (older, older))
    fill(cache, "c")
    assert cache.find("a") is not None
    assert cache.find("b") is None


def test_data_larger_than_the_cache_may_be_is_refused_without_its_size(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="larger than the hospital's cache may be") as caught:
        fill(PreparedCache(tmp_path, limit_bytes=BYTES - 1), "a")
    assert str(BYTES) not in str(caught.value)


def test_a_disk_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.data.cache.shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(DataError, match="no room"):
        fill(PreparedCache(tmp_path), "a")


def test_a_disk_that_fills_up_is_a_data_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("client.data.cache.os.fsync", full)
    with pytest.raises(DataError, match="No space left"):
        fill(PreparedCache(tmp_path), "a")
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="writable folder"):
        PreparedCache(tmp_path / "file" / "cache")
