"""The kinds of image file that are read, each at one place: how it is recognised, read, and cleaned.

A further kind is a further :class:`Reader` in :data:`READERS`; listing, checking, cleaning and prediction ask here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from client.data.archives import ARCHIVE_MARK, is_document
from client.data.clean import Clean, clean_dicom, clean_raster
from client.data.dicom import read_dicom
from client.data.mistakes import Mistake
from client.data.pixels import DICOM_MARK_END, Picture, UnusableImageError, is_dicom, is_raster, read_raster

HEAD_BYTES = DICOM_MARK_END
"""The bytes of a file's head that every reader needs to recognise its own files."""


@dataclass(frozen=True)
class Reader:
    """One kind of file.

    Attributes:
        name: as a person says it.
        endings: of file names, in small letters; a file that has one is an image or damaged.
        recognises: decides by the first ``HEAD_BYTES`` of a file, whatever its name.
        read: decodes a whole file for a run with this many channels; raises UnusableImageError.
        clean: makes a copy without personal data; raises UnusableImageError or what its decoder raises.
    """

    name: str
    endings: frozenset[str]
    recognises: Callable[[bytes], bool]
    read: Callable[[bytes, int], Picture]
    clean: Clean


DICOM = Reader("DICOM", frozenset({".dcm", ".dicom"}), is_dicom, read_dicom, clean_dicom)
RASTER = Reader(
    "PNG or JPEG",
    frozenset({".png", ".jpg", ".jpeg"}),
    is_raster,
    lambda encoded, _channels: read_raster(encoded),
    clean_raster,
)
READERS = (DICOM, RASTER)

IMAGE_ENDINGS = frozenset().union(*(reader.endings for reader in READERS))

_NOT_READ = {
    ".7z": "7z archive", ".avif": "AVIF image", ".bmp": "BMP image", ".bz2": "bzip2 archive", ".gif": "GIF image",
    ".gz": "gzip archive", ".heic": "HEIC image", ".hdr": "Analyze image", ".iso": "disk image", ".j2k": "JPEG 2000",
    ".jp2": "JPEG 2000", ".jls": "JPEG-LS", ".mha": "MetaImage", ".mhd": "MetaImage", ".nii": "NIfTI image",
    ".nrrd": "NRRD image", ".pdf": "PDF", ".pgm": "PGM image", ".rar": "rar archive", ".svs": "slide image",
    ".tar": "tar archive", ".tgz": "tar archive", ".tif": "TIFF image", ".tiff": "TIFF image", ".webp": "WebP image",
    ".xz": "xz archive", ".zip": "zip archive",
}  # fmt: skip
_MARKS_NOT_READ = (
    (b"II*\0", "TIFF image"),
    (b"MM\0*", "TIFF image"),
    (b"GIF8", "GIF image"),
    (b"Rar!", "rar archive"),
    (b"7z\xbc\xaf", "7z archive"),
    (b"\x1f\x8b", "gzip archive"),
)
ARCHIVE_ENDING = ".zip"
_DOCUMENTS = frozenset({".docx", ".xlsx", ".pptx", ".odt", ".ods", ".odp"})
_NESTED = "zip archive in an archive"


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


def kind_not_read(path: PurePosixPath, head: bytes) -> str:
    """Name a kind of file that may hold images and is not read, by its content or ending; '' for other kinds."""
    kind = next((kind for mark, kind in _MARKS_NOT_READ if head.startswith(mark)), "")
    ending = path.suffix.lower()
    if not kind and head.startswith(ARCHIVE_MARK) and ending not in _DOCUMENTS:
        return _NESTED if ending in ("", ARCHIVE_ENDING) else ""
    return kind or _NOT_READ.get(ending, "")


def is_read_archive(path: Path, read_head: Callable[[], bytes]) -> bool:
    """Tell a zip archive whose files are looked at from other files, documents of office programs among them.

    Raises:
        OSError: it cannot be opened.
    """
    if path.suffix.lower() in IMAGE_ENDINGS:
        return False
    return read_head().startswith(ARCHIVE_MARK) and not is_document(path)
