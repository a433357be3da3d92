import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from client.features import model_inputs
from common.errors import DataError
from common.models import registry
from common.models.frozen import FrozenFeatures, extract


def images(seed: int = 0, n: int = 4) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (n, 1, 28, 28), dtype=np.uint8)


def arrays(folder: Path) -> list[Path]:
    return list(folder.glob("*.npy"))


def scattering() -> FrozenFeatures:
    features = registry.frozen_features("scattering_linear")
    assert features is not None
    return features


def test_a_model_on_images_gets_the_images_themselves_and_nothing_is_kept(tmp_path: Path) -> None:
    some = images()
    assert model_inputs("cnn", some, tmp_path) is some
    assert not list(tmp_path.iterdir())


def test_features_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = model_inputs("scattering_linear", images(), tmp_path / "cache")
    assert np.array_equal(first, np.concatenate(list(extract(scattering(), images()))))

    def refuse(*_: object) -> None:
        raise AssertionError("extracted again")

    monkeypatch.setattr("client.features.extract", refuse)
    assert np.array_equal(model_inputs("scattering_linear", images(), tmp_path / "cache"), first)


def test_other_images_and_another_version_get_their_own_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = model_inputs("scattering_linear", images(1), tmp_path)
    assert not np.array_equal(model_inputs("scattering_linear", images(2), tmp_path), first)
    monkeypatch.setattr(type(scattering()), "version", "scattering-0")
    model_inputs("scattering_linear", images(1), tmp_path)
    assert len(arrays(tmp_path)) == 3


@pytest.mark.parametrize("damage", [b"", b"not an array", None])
def test_a_damaged_cache_is_made_again(tmp_path: Path, damage: bytes | None) -> None:
    first = model_inputs("scattering_linear", images(), tmp_path)
    (path,) = arrays(tmp_path)
    whole = path.read_bytes()
    path.unlink()  # what is mapped still needs the old file
    path.write_bytes(whole[:-100] if damage is None else damage)
    assert np.array_equal(model_inputs("scattering_linear", images(), tmp_path), first)
    assert np.load(path).shape == first.shape


def test_an_object_array_in_the_cache_is_never_unpickled(tmp_path: Path) -> None:
    first = model_inputs("scattering_linear", images(), tmp_path)
    (path,) = arrays(tmp_path)
    path.unlink()
    with path.open("wb") as file:
        np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert np.array_equal(model_inputs("scattering_linear", images(), tmp_path), first)


def test_the_cache_is_for_the_hospitals_eyes_only(tmp_path: Path) -> None:
    model_inputs("scattering_linear", images(), tmp_path / "cache")
    for path in (tmp_path / "cache").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700


def test_a_cache_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="writable"):
        model_inputs("scattering_linear", images(), tmp_path / "file")


def test_no_images_have_no_features(tmp_path: Path) -> None:
    assert model_inputs("scattering_linear", images(n=0), tmp_path).shape == (0, 3472)


def test_the_least_recently_used_features_go_when_the_cache_is_full(tmp_path: Path) -> None:
    one = model_inputs("scattering_linear", images(1), tmp_path).nbytes + 1024
    (oldest,) = arrays(tmp_path)
    os.utime(oldest, (1, 1))
    model_inputs("scattering_linear", images(2), tmp_path, 2 * one)
    assert len(arrays(tmp_path)) == 2
    model_inputs("scattering_linear", images(3), tmp_path, 2 * one)
    assert len(arrays(tmp_path)) == 2
    assert not oldest.exists()
    model_inputs("scattering_linear", images(4), tmp_path, 1)
    assert len(list(tmp_path.iterdir())) == 2  # one set: its rows and its images' names


def test_only_new_images_are_computed_when_the_data_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = images(1, n=5), images(2, n=2)
    first = model_inputs("scattering_linear", old, tmp_path)
    asked = []

    def note(features: FrozenFeatures, some: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
        asked.append(len(some))
        return extract(features, some)

    monkeypatch.setattr("client.features.extract", note)
    mixed = np.concatenate([new[:1], old[3:], new[1:], old[:1]])
    rows = model_inputs("scattering_linear", mixed, tmp_path)
    assert sum(asked) == 2
    assert np.array_equal(rows[[1, 2, 4]], first[[3, 4, 0]])
    assert np.allclose(rows, np.concatenate(list(extract(scattering(), mixed))), atol=1e-5)


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / "features-halfway.npy.new").write_bytes(b"half")
    model_inputs("scattering_linear", images(), tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".images", ".npy"]


def test_who_writes_into_a_batch_does_not_change_the_cache(tmp_path: Path) -> None:
    first = model_inputs("scattering_linear", images(), tmp_path)
    first[:] = 0
    assert model_inputs("scattering_linear", images(), tmp_path).any()
