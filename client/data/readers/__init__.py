"""The kinds of image file that are read, each a :class:`~client.data.readers.reader.Reader` in :data:`READERS`.

Listing, checking, cleaning and prediction ask here and know no kind by name. An npz file (:mod:`.npz`) is a whole data
set in one file: a layout, which has no header to clean.
"""

from collections.abc import Callable
from pathlib import Path

from client.data.archives import ARCHIVE_MARK, is_document
from client.data.mistakes import Mistake
from client.data.pixels import Picture, UnusableImageError
from client.data.readers.dicom import DicomReader, quiet
from client.data.readers.not_read import ARCHIVE_ENDING, kind_not_read
from client.data.readers.raster import RasterReader
from client.data.readers.reader import HEAD_BYTES, CleanCopy, Pseudonyms, Reader

__all__ = [
    "ARCHIVE_ENDING",
    "HEAD_BYTES",
    "IMAGE_ENDINGS",
    "READERS",
    "CleanCopy",
    "Pseudonyms",
    "Reader",
    "clean_copy",
    "is_read_archive",
    "kind_not_read",
    "quiet",
    "read_picture",
    "reader_of",
]

READERS: tuple[Reader, ...] = (DicomReader(), RasterReader())
"""The first that recognises a file reads it."""

IMAGE_ENDINGS = frozenset[str]().union(*(reader.endings for reader in READERS))


def reader_of(head: bytes) -> Reader | None:
    """Return the reader of a file that begins with ``head``, or None."""
    return next((reader for reader in READERS if reader.recognises(head)), None)


def read_picture(encoded: bytes, channels: int) -> Picture:
    """Decode a whole file of any kind that is read.

    Raises:
        UnusableImageError: it is of no such kind, damaged, or not what a run with this many channels can use.
    """
    reader = reader_of(encoded[:HEAD_BYTES])
    if reader is None:
        raise UnusableImageError(Mistake.NOT_AN_IMAGE)
    return reader.read(encoded, channels)


def clean_copy(encoded: bytes, patient: str, pseudonyms: Pseudonyms) -> CleanCopy:
    """Make a copy of a whole file of any kind that is read, without personal data.

    Raises:
        UnusableImageError: it is of no such kind, damaged, or holds no image.
    """
    reader = reader_of(encoded[:HEAD_BYTES])
    if reader is None:
        raise UnusableImageError(Mistake.NOT_AN_IMAGE)
    return reader.clean(encoded, patient, pseudonyms)


def is_read_archive(path: Path, read_head: Callable[[], bytes]) -> bool:
    """Tell a zip archive whose files are looked at from other files, documents of office programs among them.

    Raises:
        OSError: it cannot be opened.
    """
    if path.suffix.lower() in IMAGE_ENDINGS:
        return False
    return read_head().startswith(ARCHIVE_MARK) and not is_document(path)
