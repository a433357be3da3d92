"""Makes a clean copy of one file: DICOM PS3.15, Basic Application Level Confidentiality Profile.

The profile's table E.1-1 lists what to remove, empty or replace. This module works the other way round and is stricter:
a short list of fields is kept, those that say what the pixels are and how to show them, and everything else goes,
private fields, overlays, curves and whole sequences included. UIDs become new random ones, equal where they were; dates
and times are emptied. Options of the profile that keep more (device, institution, dates, characteristics) are not
offered.
"""

import io

import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence

from client.data.mistakes import Mistake
from client.data.pixels import UnusableImageError
from client.data.readers.dicom import DECODER_ERRORS, parse_dicom
from client.data.readers.reader import CleanCopy, Pseudonyms

KEPT_KEYWORDS = (
    "SOPClassUID", "Modality", "ConversionType", "PresentationIntentType", "BodyPartExamined", "ViewPosition",
    "ImageLaterality", "Laterality", "PatientOrientation", "SamplesPerPixel", "PhotometricInterpretation",
    "PlanarConfiguration", "Rows", "Columns", "PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "SmallestImagePixelValue", "LargestImagePixelValue",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "BurnedInAnnotation", "PixelIntensityRelationship",
    "PixelIntensityRelationshipSign",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "RescaleIntercept", "RescaleSlope", "RescaleType",
    "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod", "PresentationLUTShape",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData", "PixelData",
)  # fmt: skip
"""The fields that are kept; none of them is in table E.1-1."""

_KEPT_LUTS = ("VOILUTSequence", "ModalityLUTSequence")
_KEPT_IN_LUTS = ("LUTDescriptor", "LUTData")

_REPLACED_UIDS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")

_EMPTIED_KEYWORDS = (
    "AccessionNumber", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "PatientBirthDate", "PatientSex",
    "SeriesNumber", "InstanceNumber",
)  # fmt: skip
"""Fields that any image object must have (PS3.3, type 2), and that may be empty."""

_METHOD_CODE = ("113100", "DCM", "Basic Application Confidentiality Profile")


def clean_dicom(encoded: bytes, patient: str, pseudonyms: Pseudonyms) -> CleanCopy:
    """Write the kept fields into a new file, and nothing that stood beside them.

    Raises:
        UnusableImageError: it holds no image, or is damaged.
    """
    source = parse_dicom(encoded)
    try:
        return _cleaned(source, patient, pseudonyms)
    except DECODER_ERRORS as error:
        raise UnusableImageError(Mistake.IMAGE_DAMAGED, type(error).__name__) from None


def _cleaned(source: pydicom.Dataset, patient: str, pseudonyms: Pseudonyms) -> CleanCopy:
    original = patient or str(source.get("PatientID", "") or "").strip()
    clean = pydicom.Dataset()
    for keyword in KEPT_KEYWORDS:
        if keyword in source:
            clean.add(source[keyword])
    for keyword in _KEPT_LUTS:
        if keyword in source:
            setattr(clean, keyword, Sequence([_only(item, _KEPT_IN_LUTS) for item in source[keyword].value]))
    for keyword in _REPLACED_UIDS:
        setattr(clean, keyword, pseudonyms.uid(str(source.get(keyword, ""))))
    for keyword in _EMPTIED_KEYWORDS:
        setattr(clean, keyword, None if keyword.endswith("Number") else "")
    clean.PatientName = clean.PatientID = pseudonyms.patient(original) or "unknown"
    clean.PatientIdentityRemoved = "YES"
    clean.LongitudinalTemporalInformationModified = "REMOVED"
    clean.DeidentificationMethod = "Confide: PS3.15 basic profile, by a list of kept fields"
    clean.DeidentificationMethodCodeSequence = Sequence([_method_code()])
    clean.file_meta = FileMetaDataset()
    clean.file_meta.TransferSyntaxUID = source.file_meta.TransferSyntaxUID
    clean.file_meta.MediaStorageSOPClassUID = clean.get("SOPClassUID", pydicom.uid.SecondaryCaptureImageStorage)
    clean.file_meta.MediaStorageSOPInstanceUID = clean.SOPInstanceUID
    content = io.BytesIO()
    clean.save_as(content, enforce_file_format=True)
    return CleanCopy(".dcm", content.getvalue(), original)


def _only(item: pydicom.Dataset, keywords: tuple[str, ...]) -> pydicom.Dataset:
    kept = pydicom.Dataset()
    for keyword in keywords:
        if keyword in item:
            kept.add(item[keyword])
    return kept


def _method_code() -> pydicom.Dataset:
    code = pydicom.Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = _METHOD_CODE
    return code
