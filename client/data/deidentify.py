"""Writes clean copies of a hospital's images: DICOM PS3.15, Basic Application Level Confidentiality Profile.

The profile's table E.1-1 lists what to remove, empty or replace. This goes the other way round and is stricter: a
short list of fields is kept, those that say what the pixels are and how to show them, and everything else goes, private
fields, overlays, curves and whole sequences included. UIDs become new random ones, equal where they were; patients
become ``patient-000001`` and so on, in an order drawn at random; dates and times are emptied. The key of the pseudonyms
is nowhere kept. Options of the profile that keep more (device, institution, dates, characteristics) are not offered.

What is burned into the pixels can't be cleaned: images with, or suspected of, burned-in text are left out.
"""

import csv
import io
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid

from client.data.catalogue import Entry, Layout, read_catalogue
from client.data.contract import DataContract
from client.data.dicom import DECODER_ERRORS, parse_dicom, quiet
from client.data.hospital_data import Report
from client.data.mistakes import Mistake
from client.data.pixels import UnusableImageError, is_dicom, read_raster
from client.data.survey import choose_split
from common.errors import DataError
from common.shards import COLUMNS, MANIFEST_NAME, make_private_folder

KEPT_KEYWORDS = (
    "SOPClassUID", "Modality", "ConversionType", "PresentationIntentType", "BodyPartExamined", "ViewPosition",
    "ImageLaterality", "Laterality", "PatientOrientation", "SamplesPerPixel", "PhotometricInterpretation",
    "PlanarConfiguration", "Rows", "Columns", "PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "SmallestImagePixelValue", "LargestImagePixelValue",
    "PixelPaddingValue", "BurnedInAnnotation", "PixelIntensityRelationship", "PixelIntensityRelationshipSign",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "RescaleIntercept", "RescaleSlope", "RescaleType",
    "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod", "PresentationLUTShape",
    "PixelData",
)  # fmt: skip
"""None of them is in table E.1-1."""

_KEPT_LUTS = ("VOILUTSequence", "ModalityLUTSequence")
_KEPT_IN_LUTS = ("LUTDescriptor", "LUTData")

_REPLACED_UIDS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")

_EMPTIED_KEYWORDS = (
    "AccessionNumber", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "PatientBirthDate", "PatientSex",
    "SeriesNumber", "InstanceNumber",
)  # fmt: skip
"""Must be there in any image object (PS3.3, type 2), and may be empty."""

_METHOD_CODE = ("113100", "DCM", "Basic Application Confidentiality Profile")

_LEFT_OUT = frozenset({Mistake.BURNED_IN_TEXT, Mistake.BURNED_IN_TEXT_SUSPECTED})


@dataclass
class _Pseudonyms:
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
class _Copy:
    ending: str
    content: bytes = field(repr=False)
    original: str = field(repr=False)
    """The patient's identifier, which goes no further than the pseudonyms."""


def deidentify(folder: Path, contract: DataContract, report: Report, out: Path) -> int:
    """Write clean copies of every usable image into a new folder, with a manifest.

    Args:
        folder: the hospital's data: a manifest with images, or class folders.
        contract: what the run asks.
        report: of the check; images with burned-in text are left out.
        out: made if missing; must be empty.

    Returns:
        How many copies were written.

    Raises:
        DataError: ``out`` holds something, lies inside the data, or cannot be written, or the data is an npz file.
    """
    catalogue = read_catalogue(folder, contract.classes)
    if catalogue.layout is Layout.NPZ:
        raise DataError("an npz file holds pixels alone; there is nothing to clean")
    if out.exists() and any(out.iterdir()):
        raise DataError("--deidentify must name a new or empty folder")
    if out.resolve().is_relative_to(catalogue.root):
        raise DataError("--deidentify must name a folder outside the data")
    left_out = {finding.where for finding in report.findings if finding.mistake in _LEFT_OUT and not finding.accepted}
    kept = [entry for entry in catalogue.entries if entry.file not in left_out]
    secrets.SystemRandom().shuffle(kept)
    try:
        make_private_folder(out / "images")
        with quiet(), (out / MANIFEST_NAME).open("w", encoding="utf-8", newline="") as file:
            rows = list(_clean_all(catalogue.root, kept, contract, out))
            csv.writer(file).writerows([COLUMNS, *rows])
    except OSError as error:
        raise DataError(f"the clean copies could not be written: {error.strerror}; see to space and rights") from None
    return len(rows)


def _clean_all(
    root: Path, entries: list[Entry], contract: DataContract, out: Path
) -> Iterator[tuple[str, str, str, str]]:
    """Write copies one by one and yield their rows of the manifest; what can't be read is left out."""
    pseudonyms = _Pseudonyms()
    for number, entry in enumerate(entries):
        encoded = (root / entry.file).read_bytes()
        try:
            copy = _clean_dicom(encoded, entry, pseudonyms) if is_dicom(encoded) else _clean_raster(encoded, entry)
        except (UnusableImageError, *DECODER_ERRORS):
            continue
        name = f"images/{number:06d}{copy.ending}"
        path = out / name
        path.touch(mode=0o600)
        path.write_bytes(copy.content)
        split = entry.split or (choose_split(copy.original.encode()) if copy.original else "")
        yield name, contract.classes[entry.label], pseudonyms.patient(copy.original), split


def _clean_raster(encoded: bytes, entry: Entry) -> _Copy:
    """Save the pixels anew, as PNG, and nothing that stood beside them."""
    content = io.BytesIO()
    Image.fromarray(read_raster(encoded).pixels).save(content, "PNG")
    return _Copy(".png", content.getvalue(), entry.patient)


def _clean_dicom(encoded: bytes, entry: Entry, pseudonyms: _Pseudonyms) -> _Copy:
    source = parse_dicom(encoded)
    original = entry.patient or str(source.get("PatientID", "") or "").strip()
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
    return _Copy(".dcm", content.getvalue(), original)


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
