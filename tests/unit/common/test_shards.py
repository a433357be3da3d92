import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common import shards
from common.errors import DataError
from common.shards import Records, ShardDescription

CLASSES = ("normal", "pneumonia")
CANARY = "Zebedee-Canary-4711"


def some_records(count: int, channels: int = 1, size: int = 28, seed: int = 0) -> Records:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, channels, size, size)).astype(np.uint8)
    labels = random.integers(0, len(CLASSES), count)
    return Records(images, labels, tuple(f"{CANARY}-{number // 2}" for number in range(count)))


def write_shard(folder: Path, channels: int = 1) -> dict[shards.Split, Records]:
    parts: dict[shards.Split, Records] = {
        "train": some_records(6, channels, seed=1),
        "val": some_records(3, channels, seed=2),
        "test": some_records(4, channels, seed=3),
    }
    shards.write(folder, ShardDescription("Example", "pneumonia", CLASSES, channels, 28), parts)
    return parts


def write_manifest(folder: Path, text: str | bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.csv").write_bytes(text.encode() if isinstance(text, str) else text)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path, channels: int) -> None:
    parts = write_shard(tmp_path / "shard", channels)
    for split, written in parts.items():
        read = shards.load(tmp_path / "shard", split, 28, channels)
        assert np.array_equal(read.images, written.images)
        assert np.array_equal(read.labels, written.labels)
        assert read.patients == written.patients


def test_a_shard_says_what_it_holds(tmp_path: Path) -> None:
    write_shard(tmp_path)
    assert shards.read_description(tmp_path) == ShardDescription("Example", "pneumonia", CLASSES, 1, 28)


def test_a_shard_of_another_version_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path)
    description = tmp_path / "shard.json"
    description.write_text(description.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(DataError, match="version 1"):
        shards.load(tmp_path, "train", 28, 1)


@pytest.mark.parametrize("damage", ["{", "[]", "{}", "null", "[" * 100_000])
def test_a_damaged_description_is_refused(tmp_path: Path, damage: str) -> None:
    write_shard(tmp_path)
    (tmp_path / "shard.json").write_text(damage)
    with pytest.raises(DataError, match=r"shard\.json"):
        shards.read_description(tmp_path)


@pytest.mark.usefixtures("open_umask")
def test_only_the_owner_can_read_a_shard_whatever_the_umask(tmp_path: Path) -> None:
    write_shard(tmp_path / "new" / "shard")
    for path in (tmp_path / "new").rglob("*"):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_a_folder_that_holds_a_shard_is_never_overwritten(tmp_path: Path) -> None:
    write_shard(tmp_path)
    with pytest.raises(DataError, match="holds one already"):
        write_shard(tmp_path)


def test_a_shard_whose_writing_was_cut_short_has_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "_write_images", full_disk)
    with pytest.raises(DataError, match="No space left on device"):
        write_shard(tmp_path)
    with pytest.raises(DataError, match=r"must hold a readable manifest\.csv"):
        shards.load(tmp_path, "train", 28, 1)


def test_labels_outside_the_classes_are_not_written(tmp_path: Path) -> None:
    records = Records(np.zeros((1, 1, 28, 28), np.uint8), np.array([2]), ("",))
    with pytest.raises(DataError, match="labels must lie in 0 … 1"):
        shards.write(tmp_path, ShardDescription("Example", "pneumonia", CLASSES, 1, 28), {"train": records})


def test_a_label_may_be_a_class_name_in_any_case_or_an_index(tmp_path: Path) -> None:
    write_shard(tmp_path)
    write_manifest(
        tmp_path,
        "file,label,patient_id,split\ntrain/000000.png,Pneumonia,,train\n"
        "train/000001.png,0,,train\ntrain/000002.png, 1 ,,train\n",
    )
    assert shards.load(tmp_path, "train", 28, 1).labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("label", ["", "2", "-1", "measles", "9" * 5000, "²"])
def test_a_label_outside_the_classes_is_refused_by_row(tmp_path: Path, label: str) -> None:
    write_shard(tmp_path)
    write_manifest(tmp_path, f"file,label,patient_id,split\ntrain/000000.png,{label},,train\n")
    with pytest.raises(DataError, match=r"row 2: the label must be one of normal, pneumonia or 0 … 1"):
        shards.load(tmp_path, "train", 28, 1)


def test_a_hospital_without_shard_json_is_read_with_the_classes_of_the_run(tmp_path: Path) -> None:
    write_shard(tmp_path)
    (tmp_path / "shard.json").unlink()
    assert len(shards.load(tmp_path, "val", 28, 1, CLASSES)) == 3
    with pytest.raises(DataError, match="only with the run's classes"):
        shards.load(tmp_path, "val", 28, 1)


def test_a_manifest_may_have_a_byte_order_mark_and_more_columns(tmp_path: Path) -> None:
    write_shard(tmp_path)
    write_manifest(tmp_path, "\ufeffsplit,age,file,label,patient_id\ntest,61,test/000000.png,normal,7\n")
    assert shards.load(tmp_path, "test", 28, 1).patients == ("7",)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "columns"),
        ("file,label,split\n", "missing: patient_id"),
        (b"file,label,patient_id,split\n\xff\xfe,normal,1,train\n", "UTF-8; byte 28"),
        ("file,label,patient_id,split\na.png,normal,1\n", "row 2: must have as many cells"),
        ("file,label,patient_id,split\na.png,normal,1,train,5\n", "row 2: must have as many cells"),
        ("file,label,patient_id,split\na.png,normal,1,all\n", "row 2: split must be train, val or test"),
        ('file,label,patient_id,split\n"a.png,normal,1,train\n', "open quotation mark"),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused(tmp_path: Path, text: str | bytes, complaint: str) -> None:
    write_manifest(tmp_path, text)
    with pytest.raises(DataError, match=complaint):
        shards.read_manifest(tmp_path)


@settings(max_examples=200)
@given(
    st.one_of(
        st.binary(max_size=200), st.binary(max_size=200).map(lambda tail: b"file,label,patient_id,split\n" + tail)
    )
)
def test_any_bytes_are_a_manifest_or_a_data_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("manifest")
    write_manifest(folder, content)
    try:
        rows = shards.read_manifest(folder)
    except DataError:
        return
    assert all(row.split in shards.SPLITS for row in rows)


@pytest.mark.parametrize("where", ["../outside.png", "/etc/hostname", "link.png", "linked/outside.png", "a\0b"])
def test_a_file_outside_the_folder_is_refused(tmp_path: Path, where: str) -> None:
    folder = tmp_path / "shard"
    write_shard(folder)
    Image.new("L", (28, 28)).save(tmp_path / "outside.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "linked").symlink_to(tmp_path)
    write_manifest(folder, f"file,label,patient_id,split\n{where},normal,1,train\n")
    with pytest.raises(DataError, match=r"row 2: the file (must lie inside|is missing)"):
        shards.load(folder, "train", 28, 1)
    with pytest.raises(DataError, match="row 2"):
        shards.fingerprint(folder)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "must be a PNG or JPEG"),
        (b"MZ\x90\x00 an executable", "must be a PNG or JPEG"),
        (b"GIF89a\x01\x00\x01\x00\x80\x00\x00", "must be a PNG or JPEG"),
        ("truncated", "damaged or cut short"),
        ("bomb", "at most 67108864 pixels"),
    ],
)
def test_an_image_that_can_not_be_used_is_refused_by_row(tmp_path: Path, content: bytes | str, complaint: str) -> None:
    write_shard(tmp_path)
    path = tmp_path / "train" / "000000.png"
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif content == "bomb":
        Image.new("1", (9000, 9000)).save(path, "PNG")
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"row 2: .*{complaint}"):
        shards.load(tmp_path, "train", 28, 1)


def test_a_grey_png_of_16_bits_is_scaled_to_8(tmp_path: Path) -> None:
    write_shard(tmp_path)
    pixels = np.linspace(0, 65_535, 28 * 28).astype(np.uint16).reshape(28, 28)
    Image.fromarray(pixels).save(tmp_path / "train" / "000000.png")
    read = shards.load(tmp_path, "train", 28, 1).images[0, 0]
    assert np.array_equal(read, np.rint(pixels / 257).astype(np.uint8))


def test_an_oblong_image_keeps_its_middle_square() -> None:
    pixels = np.zeros((10, 30), np.uint8)
    pixels[:, 10:20] = 200
    assert (shards.fit(Image.fromarray(pixels), 5) == 200).all()


def test_a_fingerprint_ignores_order_and_names_and_nothing_else(tmp_path: Path) -> None:
    write_shard(tmp_path)
    before = shards.fingerprint(tmp_path)
    assert len(before) == 32
    manifest = tmp_path / "manifest.csv"
    header, *rows = manifest.read_text().splitlines()
    manifest.write_text("\n".join([header, *reversed(rows)]))
    (tmp_path / "train" / "000000.png").rename(tmp_path / "renamed.png")
    manifest.write_text(manifest.read_text().replace("train/000000.png", "renamed.png"))
    assert shards.fingerprint(tmp_path) == before
    whole = manifest.read_text()
    edits = [whole.rsplit("\n", 1)[0], whole.replace(",train", ",val", 1), whole.replace("normal", "pneumonia", 1)]
    edits.append(whole.replace(f"{CANARY}-0", "someone-else", 1))
    for edit in edits:
        manifest.write_text(edit)
        assert shards.fingerprint(tmp_path) != before
    manifest.write_text(whole)
    image = tmp_path / "renamed.png"
    image.write_bytes(image.read_bytes() + b"\0")
    assert shards.fingerprint(tmp_path) != before


def test_neither_a_patient_nor_a_file_name_is_in_an_error_or_a_repr(tmp_path: Path) -> None:
    folder = tmp_path / "shard"
    folder.mkdir()
    write_manifest(folder, f"file,label,patient_id,split\n{CANARY}.png,normal,{CANARY},train\n")
    with pytest.raises(DataError) as caught:
        shards.load(folder, "train", 28, 1, CLASSES)
    assert CANARY not in str(caught.value)
    assert CANARY not in repr(shards.read_manifest(folder))
    assert CANARY not in repr(some_records(2))


def test_an_unreadable_file_is_refused_by_row(tmp_path: Path) -> None:
    write_shard(tmp_path)
    path = tmp_path / "train" / "000000.png"
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="row 2: the file is missing or cannot be read"):
        shards.load(tmp_path, "train", 28, 1)


@pytest.mark.parametrize(
    ("images", "labels", "patients"),
    [
        (np.zeros((1, 28, 28), np.uint8), np.zeros(1, np.int64), ("",)),
        (np.zeros((1, 1, 28, 28), np.float32), np.zeros(1, np.int64), ("",)),
        (np.zeros((1, 1, 28, 28), np.uint8), np.zeros((1, 1), np.int64), ("",)),
        (np.zeros((2, 1, 28, 28), np.uint8), np.zeros(1, np.int64), ("",)),
        (np.zeros((1, 1, 28, 28), np.uint8), np.zeros(1, np.int64), ()),
    ],
)
def test_parts_that_do_not_belong_together_are_no_records(
    images: np.ndarray, labels: np.ndarray, patients: tuple[str, ...]
) -> None:
    with pytest.raises(DataError, match="must"):
        Records(images, labels, patients)


def test_the_manifest_has_a_size_limit(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    path.touch()
    os.truncate(path, shards.MAX_MANIFEST_BYTES + 1)
    with pytest.raises(DataError, match="at most"):
        shards.read_manifest(tmp_path)
