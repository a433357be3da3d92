"""Reads images inside zip archives, one at a time; nothing is unpacked to disk.

A file in an archive is called by the archive's path and its own: ``export.zip/IMAGES/IM1``. An archive is read whole or
not at all: one with a password, an unknown compression, a name that is no path of its own, or of a size that no
radiographs have (a bomb) is refused with its reason.
"""

import contextlib
import errno
import os
import threading
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

ARCHIVE_MARK = b"PK\x03\x04"
MOST_FILES = 200_000
MOST_INFLATION = 100
"""How much larger an archive may become. Radiographs become 2 to 10 times as large, and a bomb 1,000 times."""

_ALWAYS_BYTES = 2**20
_PIECE_BYTES = 2**20
_ENCRYPTED = 0x1
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_OFFICE = frozenset({"[Content_Types].xml", "mimetype"})
"""What documents of office programs hold, which are zip archives without radiographs."""

_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, KeyError)


class UnusableArchiveError(Exception):
    """An archive is not read; the message is the reason in words."""


class Archives:
    """The archives below a folder, each opened once; a context that closes them. Several threads may read."""

    def __init__(self, root: Path) -> None:
        """Open nothing yet."""
        self._root = root
        self._open: dict[str, zipfile.ZipFile | UnusableArchiveError] = {}
        self._lock = threading.Lock()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all."""
        self._stack.close()

    def names(self, archive: str) -> tuple[str, ...]:
        """Return the names of the files in an archive, in its order.

        Args:
            archive: its path below the root.

        Raises:
            UnusableArchiveError: it is not read.
            OSError: the file cannot be opened.
        """
        with self._lock:
            return tuple(member.filename for member in self._opened(archive).infolist() if not member.is_dir())

    def has(self, archive: str, name: str) -> bool:
        """Tell whether an archive that is read has a file of this name.

        Raises:
            OSError: the file cannot be opened.
        """
        try:
            with self._lock:
                return not self._opened(archive).getinfo(name).is_dir()
        except (UnusableArchiveError, KeyError):
            return False

    def read(self, archive: str, name: str, most: int) -> bytes:
        """Return at most so many bytes of a file in an archive.

        Raises:
            UnusableArchiveError: the archive is not read, or this file of it is damaged.
            OSError: the archive cannot be opened.
        """
        with self._lock:
            opened = self._opened(archive)
            content = bytearray()
            try:
                with opened.open(name) as file:
                    while len(content) < most and (piece := file.read(min(_PIECE_BYTES, most - len(content)))):
                        content += piece
            except (OSError, *_ERRORS):
                raise UnusableArchiveError("damaged") from None
            return bytes(content)

    def content(self, file: str, most: int) -> bytes:
        """Return at most so many bytes of a file below the root, be it in a folder or in an archive.

        Raises:
            UnusableArchiveError: its archive is not read, or damaged there.
            OSError: it is not there, or the disk refuses.
        """
        try:
            with (self._root / file).open("rb") as opened:
                # No more than the file has: a read allocates all that it is asked for.
                return opened.read(min(most, os.fstat(opened.fileno()).st_size + 1))
        except NotADirectoryError:
            inside = split_path(self._root, file)
            if inside is None or not self.has(*inside):
                raise FileNotFoundError(errno.ENOENT, "no such file") from None
            return self.read(*inside, most)

    def _opened(self, archive: str) -> zipfile.ZipFile:
        known = self._open.get(archive)
        if known is None:
            file = self._stack.enter_context((self._root / archive).open("rb"))
            try:
                known = self._stack.enter_context(zipfile.ZipFile(file))
                _check(known, os.fstat(file.fileno()).st_size)
            except UnusableArchiveError as refused:
                known = refused
            except (OSError, *_ERRORS):  # a damaged archive points to places before its beginning
                known = UnusableArchiveError("damaged")
            self._open[archive] = known
        if isinstance(known, UnusableArchiveError):
            raise known
        return known


def is_document(path: Path) -> bool:
    """Tell whether a file that begins as a zip archive is a document of an office program."""
    try:
        with zipfile.ZipFile(path) as archive:
            return not _OFFICE.isdisjoint(archive.namelist())
    except (OSError, *_ERRORS):
        return False


def split_path(root: Path, file: str) -> tuple[str, str] | None:
    """Return the archive and the name in it, where a path leads through a file; None where it does not.

    >>> split_path(Path("/nowhere"), "a/b.dcm") is None
    True
    """
    path = PurePosixPath(file)
    for parent in list(path.parents)[-2::-1]:
        if (root / parent).is_file():
            return str(parent), str(path.relative_to(parent))
        if not (root / parent).is_dir():
            return None
    return None


def _check(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse an archive that cannot be read whole.

    Raises:
        UnusableArchiveError: says why.
    """
    members = [member for member in archive.infolist() if not member.is_dir()]
    names = {member.filename for member in members}
    if len(members) > MOST_FILES:
        raise UnusableArchiveError(f"more than {MOST_FILES} files")
    if sum(member.file_size for member in members) > max(_ALWAYS_BYTES, MOST_INFLATION * size):
        raise UnusableArchiveError(f"it unpacks to more than {MOST_INFLATION} times its size")
    if len(names) < len(members):
        raise UnusableArchiveError("two files in it have one name")
    if any(member.flag_bits & _ENCRYPTED for member in members):
        raise UnusableArchiveError("it has a password")
    if any(member.compress_type not in _COMPRESSIONS for member in members):
        raise UnusableArchiveError("its compression is not known")
    if not all(map(_is_plain, names)):
        raise UnusableArchiveError("a name in it leads elsewhere")


def _is_plain(name: str) -> bool:
    path = PurePosixPath(name)
    return str(path) == name and not path.is_absolute() and ".." not in path.parts and "\\" not in name
