"""Whether the images that a run trains on are still in the hospital's folder as they were when they were read.

A run trains on prepared copies of the images (:mod:`client.data.cache`), so an image that is removed, damaged or closed
to Confide cannot stop it. It must not be trained on any longer either: a patient may have asked for that. So before
each round a look at every file's size and times finds those that changed, and only these are read again. A record takes
part only while its file holds what it held at the start. One that does not counts as an empty record; the operator is
told, and nothing that leaves the hospital depends on it but the masked vector.
"""

import csv
import errno
import hashlib
import io
import json
import logging
import os
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.data.archives import Archives, UnusableArchiveError, split_path
from client.data.readers import npz
from common.errors import DataError
from common.files import write_private
from common.shards import MAX_FILE_BYTES, Split

_LOG = logging.getLogger("confide.hospital")

PATIENCE_SECONDS = 2.0
"""The longest that a round waits for a look: a disk that hangs must not hold up an answer. A later round asks again."""

_PACE = 20
"""A look begins only when this many times the duration of the last one has passed: it costs a round 5 % at most."""

_STAMP = struct.Struct("<qqq")
DIGEST_BYTES = hashlib.sha256().digest_size
STAMP_BYTES = _STAMP.size
NO_STAMP = bytes(STAMP_BYTES)
"""The stamp of no file: of one that was gone when its stamp was asked for."""
_BETWEEN = b"\0"
"""What stands between two names; no file's name holds it."""

GONE_FILE = "images-gone.csv"
"""The file in the hospital's state folder that names the images which no longer count, for its operator alone."""

HELD_FILE = "held.json"
"""The file in the hospital's state folder that says with which prepared images each of its newest runs began."""

MOST_HELD = 8
"""How many runs are remembered: a hospital joins a second while the first is interrupted, and seldom many."""


@dataclass(frozen=True)
class Origin:
    """Where one record came from: its file as listed, the SHA-256 of what was read, and the stamp of the file."""

    file: str = field(repr=False)
    digest: bytes = field(repr=False)
    stamp: bytes = field(repr=False)


@dataclass(frozen=True)
class Origins:
    """The origins of one part's records, in their order, packed: there may be a million."""

    files: bytes = field(repr=False)
    digests: bytes = field(repr=False)
    stamps: bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse what is cut short.

        Raises:
            ValueError: the three are not of equally many records.
        """
        records = len(self)
        named = self.files.count(_BETWEEN)
        if (len(self.stamps), named) != (records * STAMP_BYTES, records) or len(self.digests) % DIGEST_BYTES:
            raise ValueError("cut short")

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.digests) // DIGEST_BYTES

    def __iter__(self) -> Iterator[Origin]:
        """Yield each record's origin."""
        start = 0
        for row in range(len(self)):
            end = self.files.index(_BETWEEN, start)
            yield Origin(
                os.fsdecode(self.files[start:end]),
                self.digests[row * DIGEST_BYTES : (row + 1) * DIGEST_BYTES],
                self.stamps[row * STAMP_BYTES : (row + 1) * STAMP_BYTES],
            )
            start = end + 1


@dataclass
class OriginsWriter:
    """Packs origins one after the other."""

    files: bytearray = field(default_factory=bytearray, repr=False)
    digests: bytearray = field(default_factory=bytearray, repr=False)
    stamps: bytearray = field(default_factory=bytearray, repr=False)

    def add(self, origin: Origin) -> None:
        """Append one."""
        self.files += os.fsencode(origin.file) + _BETWEEN
        self.digests += origin.digest
        self.stamps += origin.stamp


def stamp_of(root: Path, file: str) -> bytes:
    """Return the size and the times of a listed file, or of the archive or npz file that holds it.

    Raises:
        OSError: it is not there, or cannot be reached.
    """
    status = _status(root, file)
    return _STAMP.pack(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _status(root: Path, file: str) -> os.stat_result:
    try:
        return os.stat(f"{root}/{file}")  # noqa: PTH116 - a Path for each of a million files takes longer than the look
    except NotADirectoryError:
        if root.is_file():  # An npz file, whose images have no file of their own.
            return root.stat()
        inside = split_path(root, file)
        if inside is None:
            raise FileNotFoundError(errno.ENOENT, "no such file") from None
        return (root / inside[0]).stat()


@dataclass(frozen=True, eq=False)
class Gone:
    """The records whose images are not as they were.

    Attributes:
        rows: for each part (n,) bool, True for those records.
        files: the path of each image from the data folder, and what happened to it; they may identify a patient.
    """

    rows: Mapping[Split, npt.NDArray[np.bool_]] = field(repr=False)
    files: tuple[tuple[str, str], ...] = field(repr=False)


class Watch:
    """Looks after the images of one data set, for as long as its prepared copies are trained on."""

    def __init__(self, root: Path, parts: Mapping[Split, Origins], patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Watch over ``parts``, whose files lie below ``root``, or in it where it is an npz file."""
        self._root, self._parts, self._patience = root, parts, patience_seconds
        self._gone = Gone({split: np.zeros(len(origins), np.bool_) for split, origins in parts.items()}, ())
        self._verdicts: dict[tuple[Split, int], tuple[bytes, str]] = {}
        self._looking: threading.Thread | None = None
        self._next = 0.0

    def gone(self) -> Gone:
        """Return which records' images are not as they were; the same object for as long as nothing changes.

        It looks anew, and waits for that a short time at most. What a slow look finds counts from the next call on.
        """
        if self._looking is not None and self._looking.is_alive():
            return self._gone
        if time.monotonic() >= self._next:
            # A daemon, so that a disk that hangs does not keep the agent from ending.
            self._looking = threading.Thread(target=self._look, name="watch", daemon=True)
            self._looking.start()
            self._looking.join(self._patience)
        return self._gone

    def _look(self) -> None:
        began = time.monotonic()
        try:
            found = self._found()
            if found.files != self._gone.files:
                self._gone = found
        except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on with what is known
            _LOG.error("the images could not be looked after (%s); those known as gone stay so", type(error).__name__)
        self._next = time.monotonic() + _PACE * (time.monotonic() - began)

    def _found(self) -> Gone:
        rows = {split: np.zeros(len(origins), np.bool_) for split, origins in self._parts.items()}
        files = []
        with Archives(self._root) as archives:
            for split, origins in self._parts.items():
                pixels = _PixelDigests(self._root, split)
                for row, origin in enumerate(origins):
                    happened = self._happened((split, row), origin, archives, pixels)
                    if happened:
                        rows[split][row] = True
                        files.append((origin.file, happened))
        return Gone(rows, tuple(files))

    def _happened(self, record: tuple[Split, int], origin: Origin, archives: Archives, pixels: "_PixelDigests") -> str:
        """Return what happened to a record's image, '' where nothing did."""
        try:
            stamp = stamp_of(self._root, origin.file)
        except FileNotFoundError:
            return "removed"
        except OSError:
            return "cannot be reached"
        if stamp == origin.stamp:
            return ""
        known, happened = self._verdicts.get(record, (b"", ""))
        if known != stamp:
            happened = _compared(origin, archives, pixels)
            self._verdicts[record] = stamp, happened
        return happened


class _PixelDigests:
    """The digests of one part's images in an npz file as it is now, computed when the first is asked for."""

    def __init__(self, root: Path, split: Split) -> None:
        self._root, self._split = root, split
        self._found: set[bytes] | None = None

    @property
    def are_asked_for(self) -> bool:
        return self._root.is_file()

    def __contains__(self, digest: bytes) -> bool:
        if self._found is None:
            blocks = npz.image_blocks(self._root, self._split)
            self._found = {hashlib.sha256(pixels.tobytes()).digest() for block in blocks for pixels in block}
        return digest in self._found


def _compared(origin: Origin, archives: Archives, pixels: _PixelDigests) -> str:
    """Read an image again whose file has another stamp, and return how it differs, '' where it does not."""
    try:
        if pixels.are_asked_for:
            return "" if origin.digest in pixels else "changed"
        content = archives.content(origin.file, MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return "not in its archive"  # Which may be damaged.
    except (OSError, UnusableArchiveError, DataError):
        return "cannot be read"
    return "" if hashlib.sha256(content).digest() == origin.digest else "changed"


def hold(state: Path, run_id: str, key: str) -> None:
    """Write down with which prepared images a run began, so that it goes on with them after a restart."""
    known = _held(state)
    if list(known.items())[-1:] == [(run_id, key)]:
        return
    others = [(other, its) for other, its in known.items() if other != run_id]
    runs = dict([*others, (run_id, key)][-MOST_HELD:])
    try:
        write_private(state / HELD_FILE, json.dumps({"runs": runs}).encode())
    except OSError as error:
        _LOG.warning("%s must be writable, or a restart reads the images anew: %s", HELD_FILE, error.strerror)


def held(state: Path, run_id: str) -> str:
    """Return the key of the prepared images that a run began with, '' where none is known."""
    return _held(state).get(run_id, "")


def _held(state: Path) -> dict[str, str]:
    """Return the key of each run that is remembered, the newest last; nothing where that cannot be read."""
    try:
        runs = json.loads((state / HELD_FILE).read_bytes())["runs"]
        return {run_id: key for run_id, key in runs.items() if isinstance(key, str)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def name_gone(state: Path, gone: tuple[tuple[str, str], ...]) -> None:
    """Write :data:`GONE_FILE`, readable by its owner alone, or remove it where no image is gone.

    Raises:
        OSError: the folder cannot be written.
    """
    if not gone:
        (state / GONE_FILE).unlink(missing_ok=True)
        return
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(("file", "what"))
    writer.writerows((os.fsencode(file).decode("utf-8", "backslashreplace"), what) for file, what in gone)
    write_private(state / GONE_FILE, table.getvalue().encode())
