"""From the bytes of one PNG, JPEG or DICOM file to 8-bit pixels, or the mistake that stands in the way."""

import io
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from client.data.mistakes import Mistake
from common.shards import EIGHT_BIT_MODES, MAX_PIXELS


class UnusableImageError(Exception):
    """Carries a mistake from where it is met to where it is listed; never leaves this package."""

    def __init__(self, mistake: Mistake, detail: str = "") -> None:
        """Keep the mistake and what was got."""
        super().__init__(mistake.value)
        self.mistake = mistake
        self.detail = detail


@dataclass(frozen=True)
class Header:
    """What a file says about its image beside the pixels; identifiers are hidden from a repr.

    Attributes:
        modality: DICOM Modality, '' for PNG and JPEG.
        patient: DICOM Patient ID, '' if unknown.
        study_date: DICOM Study Date as YYYYMMDD, '' if unknown.
        burned_in: whether DICOM Burned In Annotation says YES.
        personal: names of the header's fields that hold personal data.
        body_part: DICOM Body Part Examined, '' if unknown.
        view: what DICOM says of the view: 'frontal', or a word for what it is instead; '' if unknown.
        position: DICOM View Position as written, such as PA or AP; '' if unknown.
        sex: DICOM Patient's Sex, '' if unknown.
        age: DICOM Patient's Age as written, '' if unknown.
        birth_date: DICOM Patient's Birth Date, '' if unknown.
        source: what made the image, such as 'DICOM CR' or 'PNG'; images of one hospital may differ in it.
    """

    modality: str = ""
    patient: str = field(default="", repr=False)
    study_date: str = field(default="", repr=False)
    burned_in: bool = False
    personal: tuple[str, ...] = ()
    body_part: str = ""
    view: str = ""
    position: str = ""
    source: str = ""
    sex: str = field(default="", repr=False)
    age: str = field(default="", repr=False)
    birth_date: str = field(default="", repr=False)


@dataclass(frozen=True)
class Picture:
    """A decoded image: uint8 of shape (h, w) or (h, w, 3), and what its header says.

    ``passed_over`` names the fields of the header that made no sense, with what was done instead.
    """

    pixels: npt.NDArray[np.uint8] = field(repr=False)
    header: Header
    passed_over: tuple[str, ...] = ()


DICOM_MARK = b"DICM"
_DICOM_PREAMBLE_BYTES, DICOM_MARK_END = 128, 132
_VALUE_REPRESENTATIONS = frozenset({b"AE", b"CS", b"DA", b"LO", b"OB", b"PN", b"SH", b"ST", b"TM", b"UI", b"UL", b"US"})
_FIRST_GROUPS = (2, 8)
_LAST_ELEMENT, _LONGEST_FIRST_VALUE = 0x0100, 64
"""The beginning of a file without preamble: the file meta information, or a short field that identifies the image."""

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


def is_dicom(head: bytes) -> bool:
    """Recognise DICOM by the first ``DICOM_MARK_END`` bytes: by the mark, or where that is missing by a first field.

    Older archives and some modalities write the data set alone (PS3.10, 7.1 asks for more).
    """
    return has_dicom_preamble(head) or head.startswith(DICOM_MARK) or _begins_with_field(head)


def is_raster(head: bytes) -> bool:
    """Recognise a PNG or JPEG by its first bytes."""
    return head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"))


def has_dicom_preamble(encoded: bytes) -> bool:
    """Return whether the mark follows a preamble (PS3.10, 7.1)."""
    return encoded[_DICOM_PREAMBLE_BYTES:DICOM_MARK_END] == DICOM_MARK


def _begins_with_field(head: bytes) -> bool:
    """Return whether a file begins with a field of group 2 or 8, in any of the three encodings (PS3.5, 7)."""
    if len(head) < DICOM_MARK_END:
        return False
    for order in ("little", "big"):
        group, element = (int.from_bytes(head[at : at + 2], order) for at in (0, 2))
        if group in _FIRST_GROUPS and element <= _LAST_ELEMENT:
            length = int.from_bytes(head[4:8], "little")
            is_implicit = order == "little" and length % 2 == 0 and 0 < length <= _LONGEST_FIRST_VALUE
            return head[4:6] in _VALUE_REPRESENTATIONS or is_implicit
    return False


def read_raster(encoded: bytes) -> Picture:
    """Decode a PNG or JPEG.

    Raises:
        UnusableImageError: it is neither, is damaged, is too large, or has more than 8 bits a channel.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnusableImageError(Mistake.IMAGE_TOO_LARGE, f"{image.width} x {image.height} pixels")
            if image.mode not in EIGHT_BIT_MODES:
                raise UnusableImageError(Mistake.WRONG_DEPTH, f"mode {image.mode}")
            image.load()
            header = Header(personal=_personal_text(image), source=str(image.format))
            grey = image.mode in ("1", "L", "LA")
            return Picture(np.asarray(image.convert("L" if grey else "RGB"), np.uint8), header)
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
