"""What a reader makes of the bytes of one file: 8-bit pixels, or the mistake that stands in the way."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from client.data.mistakes import Mistake


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
