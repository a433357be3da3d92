"""Large objects of a SuperLink lie in files without a name, and come back as they were."""

import errno
import importlib
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from flwr.app.message.arraychunk import ArrayChunk
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore

from server.flower.object_files import FiledEntry, keep_objects_in_files

in_memory = importlib.import_module("flwr.supercore.object_store.in_memory_object_store")

RUN = 1
LARGE, SMALL = os.urandom(300_000), b"a seed"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryObjectStore]:
    monkeypatch.setattr(in_memory, "ObjectEntry", in_memory.ObjectEntry)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    keep_objects_in_files(tmp_path)
    yield InMemoryObjectStore()
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def keep(store: InMemoryObjectStore, content: bytes) -> tuple[str, bytes]:
    """Put an object into the store; returns its number and its bytes."""
    item = ArrayChunk(memoryview(content))
    store.preregister(RUN, get_object_tree(item))
    store.put(item.object_id, item.deflate())
    return item.object_id, item.deflate()


def files_open_in(folder: Path) -> int:
    return len(descriptors_in(folder))


def descriptors_in(folder: Path) -> list[int]:
    links = (link for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    return [int(link.name) for link in links if folder in link.readlink().parents]


def test_an_object_comes_back_whatever_its_size(store: InMemoryObjectStore) -> None:
    for content in (LARGE, SMALL):
        name, whole = keep(store, content)
        assert store.get(name) == whole


def test_only_large_objects_have_a_file_and_it_has_no_name(store: InMemoryObjectStore, tmp_path: Path) -> None:
    keep(store, SMALL)
    assert files_open_in(tmp_path) == 0
    keep(store, LARGE)
    assert files_open_in(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_gone_with_its_object(store: InMemoryObjectStore, tmp_path: Path) -> None:
    name, _ = keep(store, LARGE)
    store.delete(name)
    assert store.get(name) is None
    assert files_open_in(tmp_path) == 0


def test_an_object_that_was_announced_and_has_not_come_is_empty_as_in_flowers_store(
    store: InMemoryObjectStore,
) -> None:
    item = ArrayChunk(memoryview(LARGE))
    store.preregister(RUN, get_object_tree(item))
    assert store.get(item.object_id) == b""


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE])
def test_an_object_stays_in_memory_when_no_file_can_be_had(
    store: InMemoryObjectStore,
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(**_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    name, whole = keep(store, LARGE)
    assert store.get(name) == whole
    assert files_open_in(tmp_path) == 0
    assert os.strerror(number) in caplog.text


def test_a_file_that_has_lost_bytes_is_an_error_and_no_short_object(tmp_path: Path) -> None:
    entry = FiledEntry(tmp_path, content=LARGE, is_available=True, child_object_ids=[], ref_count=0, runs={RUN})
    (descriptor,) = descriptors_in(tmp_path)
    os.ftruncate(descriptor, 10)
    with pytest.raises(OSError, match="300000 bytes must be read back, got 10"):
        entry.content  # noqa: B018 - reading it is what is tried


def test_many_objects_may_have_a_file_at_once(store: InMemoryObjectStore) -> None:
    assert store is not None
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert allowed >= min(most, 65_536)
