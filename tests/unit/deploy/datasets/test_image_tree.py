import io
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import DataError
from deploy.datasets.image_tree import read_tree

CLASSES = ("normal", "pneumonia")


def make_tree(folder: Path) -> Path:
    """Two splits of two classes, with the litter that real archives carry."""
    for number, place in enumerate(["train/NORMAL", "train/PNEUMONIA", "test/NORMAL", "validation/pneumonia"]):
        (folder / place).mkdir(parents=True)
        Image.new("RGB", (40, 60), (number * 10,) * 3).save(folder / place / f"image-{number}.png")
    (folder / "SHA256SUMS").write_text("…")
    (folder / "train" / "NORMAL" / ".DS_Store").touch()
    (folder / "train" / "NORMAL" / "._image.png").touch()
    return folder


def tar_of(folder: Path, target: Path, mode: str = "w") -> Path:
    with tarfile.open(target, mode) as archive:  # type: ignore[call-overload]
        archive.add(folder, "some_prefix")
    return target


@pytest.mark.parametrize("packing", [None, "w", "w:gz"])
def test_a_folder_and_a_tar_of_it_give_the_same_pictures(tmp_path: Path, packing: str | None) -> None:
    path = make_tree(tmp_path / "tree")
    if packing is not None:
        path = tar_of(path, tmp_path / "tree.tar", packing)
    pictures = sorted(read_tree(path, CLASSES, 28, 1), key=lambda picture: picture.name)
    found = [(picture.split, picture.label, picture.name) for picture in pictures]
    assert found == [
        ("train", 0, "image-0.png"),
        ("train", 1, "image-1.png"),
        ("test", 0, "image-2.png"),
        ("val", 1, "image-3.png"),
    ]
    assert all(np.array_equal(picture.pixels, np.full((1, 28, 28), 10 * n)) for n, picture in enumerate(pictures))


def test_a_class_folder_of_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="class folders must be healthy, ill; got NORMAL"):
        list(read_tree(make_tree(tmp_path), ("healthy", "ill"), 28, 1))


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    (tmp_path / "tree" / "train" / "NORMAL" / "broken.jpeg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError, match=r"tree: broken\.jpeg"):
        list(read_tree(tmp_path / "tree", CLASSES, 28, 1))


def test_a_tar_cut_short_or_something_else_is_refused(tmp_path: Path) -> None:
    whole = tar_of(make_tree(tmp_path / "tree"), tmp_path / "tree.tar.gz", "w:gz")
    (tmp_path / "cut.tar.gz").write_bytes(whole.read_bytes()[:-300])
    (tmp_path / "text.tar").write_text("hello")
    for name in ("cut.tar.gz", "text.tar"):
        with pytest.raises(DataError, match="damaged or something else"):
            list(read_tree(tmp_path / name, CLASSES, 28, 1))


def test_links_in_a_tar_are_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        link = tarfile.TarInfo("train/NORMAL/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        content = io.BytesIO()
        Image.new("L", (28, 28)).save(content, "PNG")
        real = tarfile.TarInfo("../../train/NORMAL/real.png")
        real.size = len(content.getvalue())
        content.seek(0)
        archive.addfile(real, content)
    assert [picture.name for picture in read_tree(tmp_path / "links.tar", CLASSES, 28, 1)] == ["real.png"]


@pytest.mark.long
def test_a_small_archive_of_large_files_is_never_in_memory_whole(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for number in range(4):
            member = tarfile.TarInfo(f"train/normal/{number}.png")
            member.size = 64 * 2**20
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="PNG or JPEG"):
            list(read_tree(path, CLASSES, 28, 1))
        assert tracemalloc.get_traced_memory()[1] < 3 * 64 * 2**20
    finally:
        tracemalloc.stop()
