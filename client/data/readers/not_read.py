"""Names the kinds of file that may hold images and that nothing here reads."""

import zipfile
from pathlib import Path, PurePosixPath

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
_ZIP_MARK, _ZIP = b"PK\x03\x04", "zip archive"


def kind_not_read(path: Path, head: bytes) -> str:
    """Name a kind of file that may hold images and is not read, by its content or ending; '' if it is none."""
    kind = next((kind for mark, kind in _MARKS_NOT_READ if head.startswith(mark)), "")
    kind = kind or _NOT_READ.get(PurePosixPath(path.name.lower()).suffix, "")
    if head.startswith(_ZIP_MARK) and kind in ("", _ZIP):
        return _zip_archive(path)
    return kind


def _zip_archive(path: Path) -> str:
    """Say how many files a zip archive holds; office documents are zip archives too, and hold no radiographs."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return f"{_ZIP} (damaged)"
    if "[Content_Types].xml" in names or "mimetype" in names:
        return ""
    return f"{_ZIP} with {sum(not name.endswith('/') for name in names)} files"
