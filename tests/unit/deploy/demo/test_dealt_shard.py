"""What a dealer sends is laid out below the shard's folder, whole, and takes no more room than came."""

import io
import zipfile
from pathlib import Path

import pytest

from common.errors import RunError
from deploy.demo.dealt_shard import unpack


def archive(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return out.getvalue()


def test_a_shard_is_laid_out(tmp_path: Path) -> None:
    unpack(io.BytesIO(archive({"manifest": b"file,label\n", "picture": b"pixels"})), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "manifest": b"file,label\n",
        "picture": b"pixels",
    }


def test_a_file_that_would_grow_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="as they are"):
        unpack(io.BytesIO(archive({"picture": bytes(2**20)}, zipfile.ZIP_DEFLATED)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_name_that_leads_out_of_the_folder_stays_inside(tmp_path: Path) -> None:
    unpack(io.BytesIO(archive({"../../outside": b"x"})), tmp_path / "shard")
    assert [path.name for path in tmp_path.iterdir()] == ["shard"]


@pytest.mark.parametrize(
    "content", [b"", b"noise", archive({"picture": b"pixels"})[:-30]], ids=["empty", "noise", "cut short"]
)
def test_what_is_no_whole_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="archive"):
        unpack(io.BytesIO(content), tmp_path)
