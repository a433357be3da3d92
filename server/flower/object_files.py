"""Keeps the large objects that a SuperLink holds in files, so that its memory does not grow with the hospitals.

Flower's own store has each object in memory from its arrival until the ServerApp has fetched it: when hospitals answer
at the same time, the masked vectors of them all. ``keep_objects_in_files`` changes the SuperLink in whose process it is
called. What is small, nearly every object of the protocol, stays in memory.
"""

import importlib
import logging
import os
import resource
import tempfile
import weakref
from functools import partial
from pathlib import Path
from typing import Any

from flwr.supercore.object_store.in_memory_object_store import ObjectEntry

from common.flower.seam import replace_in

_LOG = logging.getLogger("confide.superlink")

_SMALL_BYTES = 64 * 1024
"""Objects up to this stay in memory: a file for each would cost more than it spares."""

_MOST_FILES = 65_536
"""The most files open at once, if the system allows it; a masked vector of 11 million parameters takes 22."""


class FiledEntry(ObjectEntry):
    """An entry of Flower's store whose content lies in a file when it is large.

    The file has no name: it is gone with the entry, and with the process however that ends. Where no file can be made,
    for lack of space or of open files, the content stays in memory.

    Args:
        folder: on the disk that is to hold the file.
        content: of the object; empty until it has arrived.
        entry: what else Flower notes of it.
    """

    def __init__(self, folder: Path, *, content: bytes, **entry: Any) -> None:  # noqa: ANN401 - Flower's fields
        self._folder = folder
        self._content: bytes | tuple[int, int] = b""
        super().__init__(content=content, **entry)

    @property
    def content(self) -> bytes:
        """The object, read from its file each time if it has one."""
        if isinstance(self._content, bytes):
            return self._content
        descriptor, length = self._content
        content = os.pread(descriptor, length, 0)
        if len(content) < length:
            raise OSError(f"{length} bytes must be read back, got {len(content)}")
        return content

    @content.setter
    def content(self, content: bytes) -> None:
        if len(content) <= _SMALL_BYTES:
            self._content = content
            return
        try:
            self._content = self._filed(content), len(content)
        except OSError as error:
            _LOG.warning("an object of %d bytes stays in memory: %s", len(content), error.strerror)
            self._content = content

    def _filed(self, content: bytes) -> int:
        with tempfile.TemporaryFile(dir=self._folder) as file:
            file.write(content)
            file.flush()
            descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, descriptor)
        return descriptor


def keep_objects_in_files(folder: Path) -> None:
    """Let the SuperLink of this process keep large objects in nameless files in ``folder``.

    Raises:
        AttributeError: Flower is not the release this was written for.
    """
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed < min(most, _MOST_FILES):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, _MOST_FILES), most))
    store = importlib.import_module("flwr.supercore.object_store.in_memory_object_store")
    replace_in(store, "ObjectEntry", partial(FiledEntry, folder), used_by=store.InMemoryObjectStore.preregister)
