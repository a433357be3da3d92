"""Makes a clean copy of one file: DICOM PS3.15, Basic Application Level Confidentiality Profile.

The profile's table E.1-1 lists what to remove, empty or replace. This module works the other way round and is stricter:
a short list of fields is kept, those that say what the pixels are and how to show them, and everything else goes,
private fields, overlays, curves and whole sequences included. UIDs become new random ones, equal where they were; dates
and times are emptied. Options of the profile that keep more (device, institution, dates, characteristics) are not
offered.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import pydicom
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid

from client.data.dicom import parse_dicom
from client.data.pixels import read_raster

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


@dataclass
class Pseudonyms:
    """New names for patients and UIDs, kept for one copy and then forgotten."""

    patients: dict[str, str] = field(default_factory=dict, repr=False)
    uids: dict[str, str] = field(default_factory=dict, repr=False)

    def patient(self, original: str) -> str:
        """Return a patient's pseudonym, or '' if the patient is unknown."""
        return self.patients.setdefault(original, f"patient-{len(self.patients) + 1:06d}") if original else ""

    def uid(self, original: str) -> str:
        """Return the new UID that stands for an original one; where there was none, one of its own."""
        new = generate_uid(prefix=None)  # of a random UUID (PS3.5, B.2)
        return self.uids.setdefault(original, new) if original else new


@dataclass(frozen=True)
class CleanCopy:
    """One file without personal data."""

    ending: str
    content: bytes = field(repr=False)
    original: str = field(repr=False)
    """The patient's identifier, which goes no further than the pseudonyms."""


Clean: TypeAlias = Callable[[bytes, str, Pseudonyms], CleanCopy]
"""Makes a copy from a file's content, its patient by the manifest ('' if unknown) and the pseudonyms so far."""


def clean_raster(encoded: bytes, patient: str, _pseudonyms: Pseudonyms) -> CleanCopy:
    """Save the pixels again, as PNG, and nothing that stood beside them."""
    content = io.BytesIO()
    Image.fromarray(read_raster(encoded).pixels).save(content, "PNG")
    return CleanCopy(".png", content.getvalue(), patient)


def clean_dicom(encoded: bytes, patient: str, pseudonyms: Pseudonyms) -> CleanCopy:
    """Write the kept fields into a new file, and nothing that stood beside them.

    Raises:
        UnusableImageError: it holds no image; what else :data:`client.data.dicom.DECODER_ERRORS` lists may be raised.
    """
    source = parse_dicom(encoded)
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
