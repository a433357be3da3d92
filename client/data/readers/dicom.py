"""Reads one DICOM radiograph or photograph: header and pixels, shown as :mod:`client.data.display` says.

Decoding is pydicom's, with pylibjpeg for JPEG, JPEG-LS and JPEG 2000. It keeps of the header only what
:class:`~client.data.pixels.Header` names.
"""

import contextlib
import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import config as pydicom_config
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_file_meta_info
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from client.data.display import as_displayed
from client.data.mistakes import Mistake
from client.data.picture_checks import is_coloured
from client.data.pixels import Header, Picture, UnusableImageError
from client.data.readers.reader import CleanCopy, Pseudonyms
from client.data.views import view_of
from common.shards import MAX_FILE_BYTES, MAX_PIXELS

_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_PALETTE = "PALETTE COLOR"
_FEWEST_BITS, _MOST_BITS = 8, 16
_PREAMBLE_BYTES = 128
_META_GROUP, _GROUP_LENGTH_BYTES = 0x0002, 12
"""The group of the file meta information (PS3.10, 7.1), and its first element, which gives the length of the rest."""

_MOST_INFLATION, _ALWAYS_INFLATED_BYTES = 100, 2**20
"""How much larger a deflated data set may become. Radiographs become 2 to 10 times as large, and a bomb 1,000 times."""

DICOM_MARK = b"DICM"
_MARK_END = 132
_VALUE_REPRESENTATIONS = frozenset({b"AE", b"CS", b"DA", b"LO", b"OB", b"PN", b"SH", b"ST", b"TM", b"UI", b"UL", b"US"})
_FIRST_GROUPS = (2, 8)
_LAST_ELEMENT, _LONGEST_FIRST_VALUE = 0x0100, 64
"""The beginning of a file without preamble: the file meta information, or a short field that identifies the image."""

_JPEG_START, _J2K_START = b"\xff\xd8", b"\xff\x4f\xff\x51"
_J2K_BOX_BYTES = 512
"""How far a JPEG 2000 codestream in boxes (JP2) may begin after the start."""

_SIZ = struct.Struct(">4xIIII")
"""What follows the marker SIZ: length, capabilities, width, height and the image's offsets (ISO 15444-1, A.5.1)."""

_SOF = struct.Struct(">HHxHH")
"""A marker, its length, the bits of a sample, rows and columns (ISO 10918-1, B.2.2; ISO 14495-1, C.2.2)."""

_SOF_MARKERS = frozenset(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC} | {0xFFF7}
_SCAN_START, _FILL, _MARKER_BYTE = 0xFFDA, 0xFFFF, 0xFF

PERSONAL_KEYWORDS = (
    "AccessionNumber", "AdditionalPatientHistory", "AdmissionID", "AdmittingDiagnosesDescription", "CountryOfResidence",
    "CurrentPatientLocation", "DeviceSerialNumber", "EthnicGroup", "ImageComments", "InstitutionAddress",
    "InstitutionName", "InstitutionalDepartmentName", "InsurancePlanIdentification", "IssuerOfPatientID",
    "MedicalRecordLocator", "MilitaryRank", "NameOfPhysiciansReadingStudy", "Occupation", "OperatorsName",
    "OtherPatientIDs", "OtherPatientIDsSequence", "OtherPatientNames", "PatientAddress", "PatientAge",
    "PatientBirthDate", "PatientBirthName", "PatientBirthTime", "PatientComments", "PatientInsurancePlanCodeSequence",
    "PatientMotherBirthName", "PatientName", "PatientReligiousPreference", "PatientSize", "PatientTelecomInformation",
    "PatientTelephoneNumbers", "PatientWeight", "PerformingPhysicianName", "PersonAddress", "PersonTelephoneNumbers",
    "PhysiciansOfRecord", "ReasonForStudy", "ReasonForTheRequestedProcedure", "ReferencedPatientPhotoSequence",
    "ReferringPhysicianAddress", "ReferringPhysicianName", "ReferringPhysicianTelephoneNumbers", "RegionOfResidence",
    "RequestingPhysician", "ResponsibleOrganization", "ResponsiblePerson", "StationName", "StudyComments",
)  # fmt: skip
"""Fields of PS3.15 table E.1-1 that name a person, an institution or a stay, in the modules of radiographs."""

DECODER_ERRORS = (
    BytesLengthException, InvalidDicomError, AttributeError, EOFError, IndexError, KeyError, NotImplementedError,
    OSError, OverflowError, RuntimeError, TypeError, ValueError, struct.error,
)  # fmt: skip
"""The errors that pydicom and its decoders were seen to raise on damaged files; a test feeds them many."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom from warning and logging, which would quote what stands in a header.

    Warnings filters are global, so this is entered once, by the thread that starts the readers.
    """
    logger = logging.getLogger("pydicom")
    before, validation = logger.level, pydicom_config.settings.reading_validation_mode
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL + 1)
        pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE
        try:
            yield
        finally:
            logger.setLevel(before)
            pydicom_config.settings.reading_validation_mode = validation


def is_dicom(head: bytes) -> bool:
    """Recognise DICOM by the first 132 bytes: by the mark, or where that is missing by a first field.

    Older archives and some modalities write the data set alone (PS3.10, 7.1 asks for more).
    """
    return has_dicom_preamble(head) or head.startswith(DICOM_MARK) or _begins_with_field(head)


def has_dicom_preamble(encoded: bytes) -> bool:
    """Return whether the mark follows a preamble (PS3.10, 7.1)."""
    return encoded[_PREAMBLE_BYTES:_MARK_END] == DICOM_MARK


def _begins_with_field(head: bytes) -> bool:
    """Return whether a file begins with a field of group 2 or 8, in any of the three encodings (PS3.5, 7)."""
    if len(head) < _MARK_END:
        return False
    for order in ("little", "big"):
        group, element = (int.from_bytes(head[at : at + 2], order) for at in (0, 2))
        if group in _FIRST_GROUPS and element <= _LAST_ELEMENT:
            length = int.from_bytes(head[4:8], "little")
            is_implicit = order == "little" and length % 2 == 0 and 0 < length <= _LONGEST_FIRST_VALUE
            return head[4:6] in _VALUE_REPRESENTATIONS or is_implicit
    return False


def read_dicom(encoded: bytes, channels: int) -> Picture:
    """Decode a single-frame DICOM image to 8 bits, as a radiologist would first see it.

    Args:
        encoded: the whole file.
        channels: what the run wants: 1 reads MONOCHROME1 and 2, and colour images whose channels are equal; 3 reads
            RGB, the YBR family and palettes.

    Raises:
        UnusableImageError: it holds no image, several frames, or one that is damaged or of a kind not read here.
    """
    dataset = parse_dicom(encoded)
    header = _header(dataset)
    _check_shape(dataset)
    is_grey = _check_kind(dataset, channels)
    _check_codestream(dataset)
    passed_over = tuple(_fill_in(dataset))
    try:
        if is_grey:
            shown = as_displayed(dataset, _stored(dataset))
            return Picture(shown.pixels, header, (*passed_over, *shown.passed_over))
        pixels = _in_colour(dataset)
    except DECODER_ERRORS as error:
        raise UnusableImageError(_why_undecodable(dataset), _what_is_damaged(dataset, error)) from None
    if channels == 1 and is_coloured(pixels):
        raise UnusableImageError(Mistake.WRONG_COLOUR, "coloured")
    return Picture(pixels, header, passed_over)


def parse_dicom(encoded: bytes) -> pydicom.Dataset:
    """Read the data set of a DICOM file that holds pixels, which stay encoded; its preamble may be missing.

    Raises:
        UnusableImageError: it is damaged or holds no pixels.
    """
    try:
        # Looking for the name anywhere leaves nothing to how a header is read: pydicom never gets a deflated file.
        plain = _inflated(encoded) if DeflatedExplicitVRLittleEndian.encode() in encoded else encoded
        dataset = _data_set(plain)
        has_pixels = "PixelData" in dataset
    except DECODER_ERRORS as error:
        raise UnusableImageError(Mistake.IMAGE_DAMAGED, type(error).__name__) from None
    if not has_pixels:
        raise UnusableImageError(Mistake.NO_PIXELS)
    return dataset


def _data_set(encoded: bytes) -> pydicom.Dataset:
    if has_dicom_preamble(encoded):
        return pydicom.dcmread(io.BytesIO(encoded))
    if encoded.startswith(DICOM_MARK):
        return pydicom.dcmread(io.BytesIO(bytes(_PREAMBLE_BYTES) + encoded))
    dataset = pydicom.dcmread(io.BytesIO(encoded), force=True)
    if not dataset.file_meta.get("TransferSyntaxUID"):
        is_implicit, is_little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit
    return dataset


def _inflated(encoded: bytes) -> bytes:
    """Return a file whose deflated data set (PS3.5, A.5) is inflated, and whose meta information says so.

    pydicom would inflate all of it in memory, and a megabyte can stand for a gigabyte; here the size is bounded.

    Raises:
        UnusableImageError: it stands for too much, or is damaged.
    """
    is_marked = has_dicom_preamble(encoded)
    start = _PREAMBLE_BYTES + len(DICOM_MARK) if is_marked else len(DICOM_MARK) * encoded.startswith(DICOM_MARK)
    source = io.BytesIO(encoded[start:])
    meta = read_dataset(source, False, True, stop_when=lambda tag, _vr, _length: tag.group != _META_GROUP)
    if "TransferSyntaxUID" not in meta:
        return encoded  # the data set alone, which nothing says to be deflated
    length = meta.get("FileMetaInformationGroupLength")
    end = source.tell() if length is None else _GROUP_LENGTH_BYTES + int(length)
    body = encoded[start + end :]
    if meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
        body = _inflate(body)
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
    whole = DicomBytesIO()
    whole.write(bytes(_PREAMBLE_BYTES) + DICOM_MARK)
    write_file_meta_info(whole, FileMetaDataset(meta), enforce_standard=False)
    whole.write(body)
    return whole.getvalue()


def _inflate(deflated: bytes) -> bytes:
    most = min(MAX_FILE_BYTES, max(_ALWAYS_INFLATED_BYTES, _MOST_INFLATION * len(deflated)))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(deflated, most)
    except zlib.error:
        raise UnusableImageError(Mistake.IMAGE_DAMAGED, "its deflated part") from None
    if not inflater.eof:
        if len(plain) >= most:
            raise UnusableImageError(Mistake.IMAGE_TOO_LARGE, f"its deflated part stands for more than {most} bytes")
        raise UnusableImageError(Mistake.IMAGE_DAMAGED, "its deflated part is cut short")
    return plain


def _fill_in(dataset: pydicom.Dataset) -> Iterator[str]:
    """Give the fields that decoding needs the values which viewers assume, and name those that were missing."""
    assumed = {"SamplesPerPixel": 1, "BitsStored": dataset.BitsAllocated, "PixelRepresentation": 0}
    for keyword, value in assumed.items():
        if dataset.get(keyword) in (None, ""):
            setattr(dataset, keyword, value)
            yield f"{keyword} is empty or missing: taken as {value}"


def _stored(dataset: pydicom.Dataset) -> npt.NDArray[np.integer]:
    """Decode a grey image; bits beside those stored (PS3.5 8.1.1), which overlays used to lie in, do not count."""
    bits = int(dataset.BitsStored)
    unused_below = _number(dataset, "HighBit", bits - 1) + 1 - bits
    if unused_below <= 0 or dataset.file_meta.TransferSyntaxUID.is_compressed:
        return np.asarray(pixel_array(dataset))
    dataset.BitsStored = bits + unused_below  # pydicom takes the lowest bits whatever High Bit says
    try:
        return np.asarray(pixel_array(dataset)) >> unused_below
    finally:
        dataset.BitsStored = bits


def _in_colour(dataset: pydicom.Dataset) -> npt.NDArray[np.uint8]:
    """Decode a colour image or palette to uint8 of shape (h, w, 3)."""
    stored = pixel_array(dataset)
    if _text(dataset, "PhotometricInterpretation") != _PALETTE:
        return np.asarray(stored, np.uint8)
    entries = apply_color_lut(stored, dataset)
    return np.asarray(entries >> (8 * entries.dtype.itemsize - _FEWEST_BITS), np.uint8)[..., :3]


def _what_is_damaged(dataset: pydicom.Dataset, error: Exception) -> str:
    """Name what stands in the way, where it is known."""
    if not dataset.file_meta.TransferSyntaxUID.is_compressed:
        samples = dataset.Rows * dataset.Columns * _number(dataset, "SamplesPerPixel", 1)
        there, needed = len(dataset.PixelData), samples * dataset.BitsAllocated // 8
        if there < needed:
            return f"PixelData has {there} of {needed} bytes"
    return type(error).__name__


def _header(dataset: pydicom.Dataset) -> Header:
    try:
        removed = str(dataset.get("PatientIdentityRemoved", "")).upper() == "YES"
        personal = () if removed else tuple(name for name in PERSONAL_KEYWORDS if dataset.get(name))
        return Header(
            str(dataset.get("Modality", "") or ""),
            str(dataset.get("PatientID", "") or "").strip(),
            str(dataset.get("StudyDate", "") or ""),
            str(dataset.get("BurnedInAnnotation", "")).upper() == "YES",
            personal,
            str(dataset.get("BodyPartExamined", "") or "").strip(),
            view_of(dataset),
            str(dataset.get("ViewPosition", "") or "").strip().upper(),
            f"DICOM {dataset.get('Modality', '') or ''}".strip(),
            str(dataset.get("PatientSex", "") or "").strip().upper(),
            str(dataset.get("PatientAge", "") or "").strip().upper(),
            str(dataset.get("PatientBirthDate", "") or "").strip(),
        )
    except DECODER_ERRORS as error:
        raise UnusableImageError(Mistake.IMAGE_DAMAGED, type(error).__name__) from None


def _number(dataset: pydicom.Dataset, keyword: str, default: int) -> int:
    try:
        value = dataset.get(keyword)
        return default if value in (None, "") else int(value)
    except DECODER_ERRORS:
        raise UnusableImageError(Mistake.IMAGE_DAMAGED, keyword) from None


def _text(dataset: pydicom.Dataset, keyword: str) -> str:
    try:
        return str(dataset.get(keyword, "") or "").strip()
    except DECODER_ERRORS:
        raise UnusableImageError(Mistake.IMAGE_DAMAGED, keyword) from None


def _check_shape(dataset: pydicom.Dataset) -> None:
    """Check what the header claims before any memory is taken for it."""
    frames, rows, columns = (_number(dataset, *field) for field in (("NumberOfFrames", 1), ("Rows", 0), ("Columns", 0)))
    if frames > 1:
        raise UnusableImageError(Mistake.MULTI_FRAME, f"{frames} frames")
    if rows * columns > MAX_PIXELS:
        raise UnusableImageError(Mistake.IMAGE_TOO_LARGE, f"{columns} x {rows} pixels")
    if rows < 1 or columns < 1:
        raise UnusableImageError(Mistake.IMAGE_DAMAGED, "no rows or columns")


def _check_kind(dataset: pydicom.Dataset, channels: int) -> bool:
    """Refuse what is not read here, and return whether the image is grey by its header."""
    photometric = _text(dataset, "PhotometricInterpretation") or "missing"
    samples = _number(dataset, "SamplesPerPixel", 1)
    is_grey = photometric in _GREY
    if is_grey and channels != 1:
        raise UnusableImageError(Mistake.WRONG_COLOUR, photometric)
    if not is_grey and photometric not in (*_COLOUR, _PALETTE):
        raise UnusableImageError(Mistake.WRONG_PHOTOMETRIC, photometric)
    if samples != (3 if photometric in _COLOUR else 1):
        raise UnusableImageError(Mistake.WRONG_PHOTOMETRIC, f"{photometric} with {samples} samples a pixel")
    if photometric == _PALETTE and not dataset.get("RedPaletteColorLookupTableDescriptor"):
        raise UnusableImageError(Mistake.WRONG_PHOTOMETRIC, "PALETTE COLOR without its tables")
    allocated = _number(dataset, "BitsAllocated", 0)
    stored = _number(dataset, "BitsStored", allocated)
    widest = _FEWEST_BITS if photometric in _COLOUR else _MOST_BITS
    if allocated not in (_FEWEST_BITS, _MOST_BITS) or not _FEWEST_BITS <= stored <= min(allocated, widest):
        raise UnusableImageError(Mistake.WRONG_DEPTH, f"{stored} of {allocated} bits")
    return is_grey


def _check_codestream(dataset: pydicom.Dataset) -> None:
    """Refuse a compressed image whose own header claims another size than the DICOM header.

    The decoders take memory for what the codestream claims: a few bytes can claim billions of pixels.
    """
    try:
        if not dataset.file_meta.TransferSyntaxUID.is_compressed:
            return
        frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    except DECODER_ERRORS as error:
        raise UnusableImageError(Mistake.IMAGE_DAMAGED, type(error).__name__) from None
    for rows, columns in _claimed_sizes(frame):
        if rows * columns > MAX_PIXELS:
            raise UnusableImageError(Mistake.IMAGE_TOO_LARGE, f"{columns} x {rows} pixels")
        if (rows, columns) != (dataset.Rows, dataset.Columns):
            raise UnusableImageError(Mistake.IMAGE_DAMAGED, "its compressed part has another size")


def _claimed_sizes(frame: bytes) -> Iterator[tuple[int, int]]:
    """Yield (rows, columns) of each frame header in a JPEG, JPEG-LS or JPEG 2000 codestream; nothing for others."""
    at = frame.find(_J2K_START) if _J2K_START in frame[:_J2K_BOX_BYTES] else -1
    if at >= 0 and len(frame) >= at + len(_J2K_START) + _SIZ.size:
        width, height, left, top = _SIZ.unpack_from(frame, at + len(_J2K_START))
        yield height - top, width - left
        return
    place = 2  # after the mark that starts the image
    while frame.startswith(_JPEG_START) and place + _SOF.size <= len(frame):
        marker, length, rows, columns = _SOF.unpack_from(frame, place)
        if marker in _SOF_MARKERS:
            yield rows, columns
        if marker == _FILL:
            place += 1
        elif marker == _SCAN_START or marker >> 8 != _MARKER_BYTE:
            return
        else:
            place += 2 + length


def _why_undecodable(dataset: pydicom.Dataset) -> Mistake:
    """Distinguish a damaged image from a compression that nothing here decodes."""
    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    if syntax is None:
        return Mistake.IMAGE_DAMAGED
    try:
        get_decoder(syntax)
    except DECODER_ERRORS:
        return Mistake.COMPRESSION_UNKNOWN
    return Mistake.IMAGE_DAMAGED


class DicomReader:
    """DICOM: see :class:`client.data.readers.reader.Reader`."""

    name = "DICOM"
    endings = frozenset({".dcm", ".dicom"})

    def recognises(self, head: bytes) -> bool:
        """See :class:`~client.data.readers.reader.Reader`."""
        return is_dicom(head)

    def read(self, encoded: bytes, channels: int) -> Picture:
        """See :class:`~client.data.readers.reader.Reader`."""
        return read_dicom(encoded, channels)

    def clean(self, encoded: bytes, patient: str, pseudonyms: Pseudonyms) -> CleanCopy:
        """See :class:`~client.data.readers.reader.Reader`."""
        from client.data.readers.dicom_clean import clean_dicom  # It parses with what stands above.

        return clean_dicom(encoded, patient, pseudonyms)
