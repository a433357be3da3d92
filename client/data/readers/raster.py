"""Reads PNG and JPEG files, with Pillow."""

import io

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from client.data.mistakes import Mistake
from client.data.pixels import Header, Picture, UnusableImageError
from client.data.readers.reader import CleanCopy, Pseudonyms
from common.shards import EIGHT_BIT_MODES, MAX_PIXELS, SIXTEEN_BIT_MODE, eight_bits

_PERSONAL_EXIF = (
    ExifTags.Base.Artist,
    ExifTags.Base.ImageDescription,
    ExifTags.Base.UserComment,
    ExifTags.Base.Copyright,
    ExifTags.Base.XPAuthor,
    ExifTags.Base.XPComment,
    ExifTags.Base.XPTitle,
    ExifTags.Base.GPSInfo,
)


def is_raster(head: bytes) -> bool:
    """Recognise a PNG or JPEG by its first bytes."""
    return head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"))


def read_raster(encoded: bytes) -> Picture:
    """Decode a PNG or JPEG.

    Raises:
        UnusableImageError: it is neither, is damaged, is too large, or has more than 16 bits a channel.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnusableImageError(Mistake.IMAGE_TOO_LARGE, f"{image.width} x {image.height} pixels")
            if image.mode not in (*EIGHT_BIT_MODES, SIXTEEN_BIT_MODE):
                raise UnusableImageError(Mistake.WRONG_DEPTH, f"mode {image.mode}")
            image.load()
            header = Header(personal=_personal_text(image), source=str(image.format))
            grey = image.mode in ("1", "L", "LA", SIXTEEN_BIT_MODE)
            return Picture(np.asarray(eight_bits(image).convert("L" if grey else "RGB"), np.uint8), header)
    except UnidentifiedImageError:
        raise UnusableImageError(Mistake.NOT_AN_IMAGE) from None
    except Image.DecompressionBombError:
        raise UnusableImageError(Mistake.IMAGE_TOO_LARGE) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UnusableImageError(Mistake.IMAGE_DAMAGED, type(error).__name__) from None


def _personal_text(image: Image.Image) -> tuple[str, ...]:
    """Name the places where a PNG or JPEG keeps free text, authors or positions."""
    texts = tuple(
        f"text {key}"
        for key, value in image.info.items()
        if isinstance(value, str) and value.strip() and key != "Software"
    )
    comment = ("comment",) if image.info.get("comment") else ()
    tags = image.getexif()
    return (*texts, *comment, *(f"EXIF {tag.name}" for tag in _PERSONAL_EXIF if tags.get(tag)))


class RasterReader:
    """PNG and JPEG: see :class:`client.data.readers.reader.Reader`."""

    name = "PNG or JPEG"
    endings = frozenset({".png", ".jpg", ".jpeg"})

    def recognises(self, head: bytes) -> bool:
        """See :class:`~client.data.readers.reader.Reader`."""
        return is_raster(head)

    def read(self, encoded: bytes, channels: int) -> Picture:  # noqa: ARG002 - any image converts to any channels
        """See :class:`~client.data.readers.reader.Reader`."""
        return read_raster(encoded)

    def clean(self, encoded: bytes, patient: str, pseudonyms: Pseudonyms) -> CleanCopy:  # noqa: ARG002 - no UIDs
        """Save the pixels again, as PNG, and nothing that stood beside them."""
        content = io.BytesIO()
        Image.fromarray(read_raster(encoded).pixels).save(content, "PNG")
        return CleanCopy(".png", content.getvalue(), patient)
