import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.readers import npz
from common.errors import DataError


def write_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, allow_pickle=True, **arrays)
    return path


def grey(count: int = 5) -> np.ndarray:
    return np.arange(count * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(count, 28, 28)


@pytest.mark.parametrize("shape", [(5, 28, 28), (5, 28, 28, 1), (5, 30, 20, 3)])
def test_images_come_back_block_by_block_with_channels_first(
    tmp_path: Path, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    path = write_npz(tmp_path / "a.npz", train_images=images, train_labels=np.zeros((5, 1), np.uint8))
    monkeypatch.setattr(npz, "BLOCK_BYTES", 2 * images[0].nbytes)
    blocks = list(npz.image_blocks(path, "train"))
    assert [len(block) for block in blocks] == [2, 2, 1]
    channels_last = images if images.ndim == 4 else images[..., None]
    assert np.array_equal(np.concatenate(blocks), np.moveaxis(channels_last, 3, 1))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.int32])
def test_labels_of_any_whole_number_type_are_read(tmp_path: Path, dtype: type[np.integer]) -> None:
    path = write_npz(tmp_path / "a.npz", val_labels=np.array([[0], [1], [4]], dtype))
    assert npz.labels(path, "val").tolist() == [0, 1, 4]


def test_a_file_describes_itself_without_being_read(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", test_images=np.zeros((7, 30, 20, 3), np.uint8))
    assert npz.describe(path, "test") == npz.NpzSplit(7, 30, 20, 3)


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (np.zeros((3, 28, 28), np.float32), "must be uint8"),
        (np.zeros((3, 28), np.uint8), "must be uint8 of shape"),
        (np.zeros((3, 28, 28, 4), np.uint8), "must be uint8 of shape"),
        (np.zeros((3, 0, 28), np.uint8), "pixels an image"),
        (np.asfortranarray(np.zeros((3, 28, 28), np.uint8)), "C order"),
    ],
)
def test_images_of_another_kind_are_refused(tmp_path: Path, array: np.ndarray, complaint: str) -> None:
    path = write_npz(tmp_path / "a.npz", train_images=array)
    with pytest.raises(DataError, match=complaint):
        list(npz.image_blocks(path, "train"))


@pytest.mark.parametrize("array", [np.zeros((3, 14), np.uint8), np.zeros(3, np.float32), np.zeros((3, 1, 1), np.uint8)])
def test_labels_of_another_kind_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    path = write_npz(tmp_path / "a.npz", train_labels=array)
    with pytest.raises(DataError, match="one whole number a record"):
        npz.labels(path, "train")


def test_a_pickle_in_an_npz_is_never_loaded(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", train_images=np.array([{"a": 1}], object))
    with pytest.raises(DataError, match="plain array of numbers"):
        list(npz.image_blocks(path, "train"))


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must hold the array val_images"):
        npz.describe(write_npz(tmp_path / "a.npz", train_images=grey()), "val")


def test_a_header_that_claims_more_than_there_is_costs_no_memory(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 28, 28)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("train_images.npy", header.getvalue() + bytes(28 * 28))
        archive.writestr("train_labels.npy", header.getvalue().replace(b", 28, 28)", b",)        "))
    with pytest.raises(DataError, match="cut short"):
        list(npz.image_blocks(tmp_path / "a.npz", "train"))
    with pytest.raises(DataError, match="cut short"):
        npz.labels(tmp_path / "a.npz", "train")


@given(cut=st.integers(0, 2000))
def test_a_truncated_file_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = write_npz(tmp_path_factory.mktemp("npz") / "a.npz", train_images=grey())
    content = path.read_bytes()
    path.write_bytes(content[: min(cut, len(content) - 1)])
    with pytest.raises(DataError):
        list(npz.image_blocks(path, "train"))


@given(place=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
def test_a_flipped_byte_gives_the_same_images_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, place: float, bits: int
) -> None:
    path = write_npz(tmp_path_factory.mktemp("npz") / "a.npz", train_images=grey())
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= bits
    path.write_bytes(content)
    try:
        blocks = list(npz.image_blocks(path, "train"))
    except DataError:
        return
    assert np.array_equal(np.concatenate(blocks)[:, 0], grey())
