import os
import stat
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.data import open_data
from client.data import watch as watching
from client.data.archives import Archives
from client.data.hospital_data import HospitalData
from client.data.watch import GONE_FILE, NO_STAMP, Gone, Origin, Origins, OriginsWriter, Watch, held, hold, name_gone
from common.errors import DataError
from deploy.datasets import phantom
from tests.support.hospital_folder import CONTRACT, Hospital, healthy

RUN = "ab" * 32


@pytest.fixture(autouse=True)
def looks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_PACE", 0)


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return healthy(tmp_path / "data")


def opened(hospital: Hospital, tmp_path: Path, run_id: str = "") -> HospitalData:
    return open_data(hospital.folder, CONTRACT, tmp_path / "cache", held(tmp_path, run_id))


def gone(data: HospitalData) -> Gone:
    assert data.watch is not None
    return data.watch.gone()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def swapped(path: Path) -> None:
    """Put another image of the same size and time in the place of one."""
    content, status = bytearray(path.read_bytes()), path.stat()
    content[-20] ^= 255
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


HAPPENED: dict[str, tuple[Callable[[Path], object], str]] = {
    "removed": (Path.unlink, "removed"),
    "cut short": (cut_short, "changed"),
    "emptied": (lambda path: path.write_bytes(b""), "changed"),
    "swapped": (swapped, "changed"),
    "a folder": (folder_instead, "cannot be read"),
    "a link to itself": (link_to_itself, "cannot be reached"),
}


@pytest.mark.parametrize("name", HAPPENED)
def test_an_image_that_is_no_longer_what_was_read_is_found_and_named(
    name: str, hospital: Hospital, tmp_path: Path
) -> None:
    data = opened(hospital, tmp_path)
    nothing = gone(data)
    assert nothing.files == ()
    assert not any(rows.any() for rows in nothing.rows.values())
    assert gone(data) is nothing
    damage, happened = HAPPENED[name]
    damage(hospital.file(3))
    found = gone(data)
    assert found.files == (("image-003.png", happened),)
    assert np.flatnonzero(found.rows["train"]).tolist() == [3]
    assert not found.rows["val"].any()
    assert not found.rows["test"].any()
    assert gone(data) is found


def test_an_image_that_was_put_back_counts_again(hospital: Hospital, tmp_path: Path) -> None:
    data = opened(hospital, tmp_path)
    path = hospital.file(0)
    content = path.read_bytes()
    path.unlink()
    assert len(gone(data).files) == 1
    path.write_bytes(content)
    assert gone(data).files == ()


def test_a_file_that_was_touched_is_read_again_once_and_counts(
    hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = opened(hospital, tmp_path)
    hospital.file(0).touch()
    read: list[str] = []
    content = Archives.content

    def counted(archives: Archives, file: str, most: int) -> bytes:
        read.append(file)
        return content(archives, file, most)

    monkeypatch.setattr(Archives, "content", counted)
    assert gone(data).files == gone(data).files == ()
    assert len(read) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_file_that_is_closed_to_confide_is_found(hospital: Hospital, tmp_path: Path) -> None:
    data = opened(hospital, tmp_path)
    path = hospital.file(0)
    path.chmod(0)
    assert [happened for _, happened in gone(data).files] == ["cannot be read"]


def test_a_file_that_refuses_to_be_read_is_found(
    hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = opened(hospital, tmp_path)
    hospital.file(0).touch()

    def refuses(_archives: Archives, _file: str, _most: int) -> bytes:
        raise PermissionError

    monkeypatch.setattr(Archives, "content", refuses)
    assert [happened for _, happened in gone(data).files] == ["cannot be read"]


def test_a_folder_that_is_gone_takes_all_its_records(hospital: Hospital, tmp_path: Path) -> None:
    data = opened(hospital, tmp_path)
    hospital.folder.rename(tmp_path / "elsewhere")
    assert all(rows.all() for rows in gone(data).rows.values())
    (tmp_path / "elsewhere").rename(hospital.folder)
    assert gone(data).files == ()


def test_images_in_an_archive_are_looked_after_by_the_archive(hospital: Hospital, tmp_path: Path) -> None:
    contents = {row[0]: hospital.file(number).read_bytes() for number, row in enumerate(hospital.rows)}
    path = hospital.folder / "export.zip"

    def write(*left_out: str) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                if name not in left_out:
                    archive.writestr(name, content)

    write()
    for name in contents:
        (hospital.folder / name).unlink()
    hospital.rows = [(f"export.zip/{name}", *cells) for name, *cells in hospital.rows]
    hospital.write_manifest()
    data = opened(hospital, tmp_path)
    assert gone(data).files == ()
    write()
    assert gone(data).files == ()
    write("image-003.png")
    assert gone(data).files == (("export.zip/image-003.png", "not in its archive"),)
    cut_short(path)
    found = gone(data)
    assert {happened for _, happened in found.files} == {"not in its archive"}
    assert all(rows.all() for rows in found.rows.values())


def test_images_of_an_npz_file_are_looked_after_by_their_pixels(tmp_path: Path) -> None:
    records, arrays = phantom.chest(56, CONTRACT.image_size, 8), {}
    for split, rows in (("train", slice(0, 40)), ("val", slice(40, 48)), ("test", slice(48, 56))):
        arrays[f"{split}_images"] = records.images[rows, 0].copy()
        arrays[f"{split}_labels"] = records.labels[rows, None].astype(np.uint8)
    path = tmp_path / "data.npz"
    np.savez(path, allow_pickle=False, **arrays)
    data = open_data(path, CONTRACT, tmp_path / "cache")
    assert gone(data).files == ()
    arrays["train_images"][5, 0, 0] ^= 255
    np.savez(path, allow_pickle=False, **arrays)
    assert gone(data).files == (("train_images[5]", "changed"),)
    cut_short(path)
    assert {happened for _, happened in gone(data).files} == {"cannot be read"}
    path.unlink()
    found = gone(data)
    assert {happened for _, happened in found.files} == {"removed"}
    assert len(found.files) == 56


def test_a_disk_that_hangs_holds_up_one_round_for_a_moment_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = OriginsWriter()
    writer.add(Origin("a.png", bytes(32), NO_STAMP))
    watch = Watch(tmp_path, {"train": Origins(bytes(writer.files), bytes(writer.digests), bytes(writer.stamps))}, 0.01)
    goes_on, looks = threading.Event(), []

    def hangs(_root: Path, file: str) -> bytes:
        looks.append(file)
        assert goes_on.wait(30)
        raise FileNotFoundError

    monkeypatch.setattr(watching, "stamp_of", hangs)
    first = watch.gone()
    assert watch.gone() is first
    assert first.files == ()
    assert looks == ["a.png"]
    goes_on.set()
    assert watch._looking is not None
    watch._looking.join(30)
    assert watch.gone().files == (("a.png", "removed"),)


def test_a_look_that_fails_leaves_what_is_known(
    hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = opened(hospital, tmp_path)
    hospital.file(0).unlink()
    known = gone(data)

    def fails(_root: Path, file: str) -> bytes:
        raise RuntimeError(file)

    monkeypatch.setattr(watching, "stamp_of", fails)
    assert gone(data) is known
    assert "RuntimeError" in caplog.text
    assert ".png" not in caplog.text


def test_looks_keep_a_pace(hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_PACE", 10**9)
    data = opened(hospital, tmp_path)
    gone(data)
    hospital.file(0).unlink()
    assert gone(data).files == ()


def test_a_run_goes_on_with_the_data_it_began_with_whatever_the_folder_holds(
    hospital: Hospital, tmp_path: Path
) -> None:
    data = opened(hospital, tmp_path, RUN)
    hold(tmp_path, RUN, data.key)
    cut_short(hospital.file(0))  # refuses the data
    hospital.file(1).unlink()
    with pytest.raises(DataError):
        opened(hospital, tmp_path, "another run")
    again = opened(hospital, tmp_path, RUN)
    assert again.fingerprint == data.fingerprint
    assert np.array_equal(again.train.images, data.train.images)
    assert sorted(happened for _, happened in gone(again).files) == ["changed", "removed"]


def test_data_held_for_one_contract_is_not_taken_for_another(hospital: Hospital, tmp_path: Path) -> None:
    hold(tmp_path, RUN, opened(hospital, tmp_path).key)
    other = replace(CONTRACT, image_size=32)
    assert open_data(hospital.folder, other, tmp_path / "cache", held(tmp_path, RUN)).train.images.shape[2:] == (32, 32)


def test_without_its_prepared_images_a_run_reads_the_folder(hospital: Hospital, tmp_path: Path) -> None:
    data = opened(hospital, tmp_path, RUN)
    hold(tmp_path, RUN, data.key)
    next((tmp_path / "cache").glob("prepared-*/index.json")).unlink()
    assert opened(hospital, tmp_path, RUN).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"[" * 100_000, b'{"runs": [3]}', b'{"runs": {"x": 3}}', b"\xff"]
)
def test_a_damaged_note_of_the_run_is_no_note(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "held.json").write_bytes(content)
    assert held(tmp_path, RUN) == ""


def test_a_second_run_does_not_make_a_hospital_forget_the_first_and_the_oldest_go(tmp_path: Path) -> None:
    runs = [f"{number:032x}" for number in range(watching.MOST_HELD + 1)]
    for run_id in runs[:2]:
        hold(tmp_path, run_id, f"images of {run_id}")
    assert held(tmp_path, runs[0]) == f"images of {runs[0]}"
    hold(tmp_path, runs[0], "again")
    for run_id in runs[2:]:
        hold(tmp_path, run_id, f"images of {run_id}")
    assert held(tmp_path, runs[1]) == ""
    assert held(tmp_path, runs[0]) == "again"
    assert all(held(tmp_path, run_id) == f"images of {run_id}" for run_id in runs[2:])


@pytest.mark.usefixtures("open_umask")
def test_what_names_images_is_for_its_owner_alone_and_is_removed_with_its_reason(tmp_path: Path) -> None:
    name_gone(tmp_path, (("normal/f\udcfcr, eins.png", "removed"),))
    path = tmp_path / GONE_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == 'file,what\n"normal/f\\xfcr, eins.png",removed\n'
    name_gone(tmp_path, ())
    assert not path.exists()
    name_gone(tmp_path, ())


def test_origins_that_are_cut_short_are_refused() -> None:
    writer = OriginsWriter()
    for number in range(3):
        writer.add(Origin(f"IM{number}", bytes(32), NO_STAMP))
    whole = Origins(bytes(writer.files), bytes(writer.digests), bytes(writer.stamps))
    assert [origin.file for origin in whole] == ["IM0", "IM1", "IM2"]
    for name in ("files", "digests", "stamps"):
        with pytest.raises(ValueError, match="cut short"):
            replace(whole, **{name: getattr(whole, name)[:-1]})
