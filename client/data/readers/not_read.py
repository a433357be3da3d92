"""Names the kinds of file that may hold images and that nothing here reads."""

from pathlib import PurePosixPath

from client.data.archives import ARCHIVE_MARK

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


def kind_not_read(path: PurePosixPath, head: bytes) -> str:
    """Name a kind of file that may hold images and is not read, by its content or ending; '' for other kinds."""
    kind = next((kind for mark, kind in _MARKS_NOT_READ if head.startswith(mark)), "")
    ending = path.suffix.lower()
    if not kind and head.startswith(ARCHIVE_MARK) and ending not in _DOCUMENTS:
        return _NESTED if ending in ("", ARCHIVE_ENDING) else ""
    return kind or _NOT_READ.get(ending, "")
