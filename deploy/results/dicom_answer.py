"""A model's answer as a clinic's archive takes it: a Structured Report (TID 1500) and a picture of the saliency.

Both belong to the study of the image that was asked about, with series of their own. The report is PARTIAL,
PRELIMINARY and UNVERIFIED (PS3.3, C.17.2), and report and picture say that this is research software. Objects are made
by highdicom; names of classes are SNOMED CT where there is one, else of the private scheme 99CONFIDE.
"""

import copy
import io
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import highdicom as hd
import numpy as np
import pydicom
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr.coding import CodedConcept
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom.sr.codedict import codes
from pydicom.uid import UID, generate_uid

from client.data.readers.dicom import parse_dicom, quiet
from common.errors import DataError
from common.task import TaskKind
from deploy.results.classifier import thresholds_of
from deploy.results.model_file import ModelCard
from deploy.results.saliency import METHOD

MANUFACTURER = "Confide"
RESEARCH = "Research software, not a medical device: no decision about a patient may rest on this."

_SCHEME = "99CONFIDE"
_LEAST_SIDE = 448
"""Pixels of the saliency picture: a multiple of the model's own, so that a person sees it without a magnifier."""

_BAND = 26
"""Rows above the picture with the words that it must not be read without."""

_STRONGEST = 0.6
"""How much of a pixel the colour takes where the saliency is largest."""

_REPORT_SERIES, _PICTURE_SERIES = 9701, 9702

_SNOMED = {"normal": ("17621005", "Normal"), "pneumonia": ("233604007", "Pneumonia")}

_PRESENT, _ABSENT = ("52101004", "SCT", "Present"), ("2667000", "SCT", "Absent")

_LATIN_1, _UTF_8 = "ISO_IR 100", "ISO_IR 192"
"""Old archives read the first; the second writes every name."""

_IDENTIFIERS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_PATIENT_AND_STUDY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName", "StudyDescription", "IssuerOfPatientID",
)  # fmt: skip
_MUST_STAND = frozenset(_PATIENT_AND_STUDY) - {"StudyDescription", "IssuerOfPatientID"}
"""Type 2: there, if only empty."""

_FORMATS = {
    "PatientBirthDate": r"\d{8}",
    "StudyDate": r"\d{8}",
    "StudyTime": r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?",
    "PatientSex": r"[MFO]",
}
"""What does not fit stays empty: an archive would refuse the whole object."""


@dataclass(frozen=True)
class ImageAnswer:
    """What the model says about one image.

    Attributes:
        predicted: the class decided for; of a model of labels, those that are said to be there, in words.
        explained: the class that the saliency speaks of.
        probabilities: by class.
        saliency: (size, size), from :func:`deploy.results.saliency.occlusion`.
        image: (channels, size, size) uint8, as the model saw it.
        remarks: what a check says of the image that does not forbid an answer.
    """

    predicted: str
    explained: str
    probabilities: Mapping[str, float]
    saliency: NDArray[np.float64] = field(repr=False)
    image: NDArray[np.uint8] = field(repr=False)
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Filed:
    """The two objects, each a whole DICOM file; both name the patient."""

    report: bytes = field(repr=False)
    picture: bytes = field(repr=False)


def file_answer(content: bytes, answer: ImageAnswer, card: ModelCard) -> Filed:
    """Make the objects for one image.

    Args:
        content: the DICOM file that was asked about.
        answer: what the model says.
        card: of the model.

    Raises:
        DataError: the image's header lacks a unique identifier, without which no archive can file an answer.
    """
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # highdicom's would quote names from the header
        source = _source(parse_dicom(content))
        picture = _picture(source, answer, card)
        report = _report(source, picture, answer, card)
        for made in (report, picture):
            _identify(made, source)
        return Filed(_encoded(report), _encoded(picture))


def overlay(answer: ImageAnswer, words: str) -> NDArray[np.uint8]:
    """Return the image as the model saw it, red where it speaks for the answer and blue against; uint8 (h, w, 3)."""
    size = answer.image.shape[-1]
    side = size * -(-_LEAST_SIDE // size)
    pixels = answer.image[0] if len(answer.image) == 1 else np.moveaxis(answer.image, 0, 2)
    base = np.asarray(Image.fromarray(pixels).convert("RGB").resize((side, side), Image.Resampling.BICUBIC), np.float64)
    strongest = float(np.abs(answer.saliency).max()) or 1.0
    share = Image.fromarray((answer.saliency / strongest).astype(np.float32))
    strength = np.asarray(share.resize((side, side), Image.Resampling.BILINEAR), np.float64)[..., None]
    colour = np.where(strength > 0, np.array([255.0, 0.0, 0.0]), np.array([0.0, 64.0, 255.0]))
    weight = _STRONGEST * np.abs(strength)
    shown = np.zeros((side + _BAND, side, 3), np.uint8)
    shown[_BAND:] = np.clip((1 - weight) * base + weight * colour, 0, 255).astype(np.uint8)
    band = Image.fromarray(shown)
    draw = ImageDraw.Draw(band)
    draw.text((4, 2), "RESEARCH ONLY, NOT FOR DIAGNOSIS", fill=(255, 255, 255))
    draw.text((4, 13), words, fill=(255, 255, 255))
    return np.asarray(band, np.uint8)


def _source(dataset: pydicom.Dataset) -> pydicom.Dataset:
    """Return what of an image's header its answer repeats; nothing else of it is copied."""
    missing = [name for name in _IDENTIFIERS if not UID(str(dataset.get(name, "") or "")).is_valid]
    if missing:
        raise DataError(
            f"the image's header must have {', '.join(missing)} for an answer to be filed with it; "
            "ask the archive for the original image"
        )
    source = pydicom.Dataset()
    for name in _IDENTIFIERS:
        setattr(source, name, str(dataset.get(name)))
    for name in _PATIENT_AND_STUDY:
        text = str(dataset.get(name, "") or "").strip()
        if name in _FORMATS and not re.fullmatch(_FORMATS[name], text):
            text = ""
        if text or name in _MUST_STAND:
            setattr(source, name, text)
    for name in ("Rows", "Columns", "Modality"):
        if name in dataset:
            setattr(source, name, dataset.get(name))
    return source


def _identify(made: pydicom.Dataset, source: pydicom.Dataset) -> None:
    """Give an object the patient and study of its source, in Latin 1 where that can write them, else in UTF-8."""
    values = {name: str(source.get(name)) for name in _PATIENT_AND_STUDY if name in source}
    words = "".join([*values.values(), *map(str, made.iterall())])
    made.SpecificCharacterSet = _LATIN_1 if _is_latin_1(words) else _UTF_8
    for name, value in values.items():
        setattr(made, name, value)


def _is_latin_1(text: str) -> bool:
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return True


def _picture(source: pydicom.Dataset, answer: ImageAnswer, card: ModelCard) -> hd.sc.SCImage:
    words = f"{answer.explained}  {answer.probabilities[answer.explained]:.2f}   red: for it   blue: against it"
    picture = hd.sc.SCImage(
        pixel_array=overlay(answer, words),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),
        study_instance_uid=source.StudyInstanceUID,
        series_instance_uid=generate_uid(),
        series_number=_PICTURE_SERIES,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=_short_name(card),
        software_versions=card.sha256,
        series_description="Confide saliency, research only",
    )
    picture.PatientOrientation = []  # Unknown: the square is cut from an image whose header may not say it.
    picture.BurnedInAnnotation = "NO"  # What is written in it names no patient (PS3.3, C.7.6.1.1.1).
    picture.DerivationDescription = METHOD[:1024]
    picture.ImageComments = RESEARCH
    reference = pydicom.Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    picture.SourceImageSequence = [reference]
    return picture


def _report(
    source: pydicom.Dataset, picture: pydicom.Dataset, answer: ImageAnswer, card: ModelCard
) -> hd.sr.ComprehensiveSR:
    device = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=_model_uid(card), name="Confide", manufacturer_name=MANUFACTURER, model_name=_short_name(card)
        ),
    )
    algorithm = hd.sr.AlgorithmIdentification(
        name=f"Confide {_short_name(card)}",
        version=card.sha256,
        parameters=[
            RESEARCH,
            f"run {card.run_id}, task {card.task}, data set {card.data_set}",
            f"decision: {_rule(card)}",
            f"saliency: {METHOD}; it speaks of {answer.explained}",
            *answer.remarks,
        ],
    )
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=generate_uid(), identifier="whole image"),
        algorithm_id=algorithm,
        measurements=[
            hd.sr.Measurement(
                name=CodedConcept(f"P{number}", _SCHEME, f"Probability of {name}"[:64]),
                value=round(answer.probabilities[name], 6),
                unit=codes.UCUM.NoUnits,
            )
            for number, name in enumerate(card.classes)
        ],
        qualitative_evaluations=_evaluations(answer, card),
        source_images=[
            hd.sr.SourceImageForMeasurementGroup(
                referenced_sop_class_uid=source.SOPClassUID, referenced_sop_instance_uid=source.SOPInstanceUID
            )
        ],
    )
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=device),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=[group],
        title=codes.DCM.ImagingMeasurementReport,
    )
    unnamed = copy.deepcopy(source)
    unnamed.PatientName = unnamed.ReferringPhysicianName = None  # highdicom wants names in parts; _identify adds them
    return hd.sr.ComprehensiveSR(
        evidence=[unnamed, picture],
        content=content,
        series_instance_uid=generate_uid(),
        series_number=_REPORT_SERIES,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=_short_name(card),
        software_versions=card.sha256,
        is_complete=False,
        is_final=False,
        is_verified=False,
        series_description="Confide answer, research only",
        coding_schemes=[
            CodingSchemeIdentificationItem(
                designator=_SCHEME, name="Confide's own codes", responsible_organization=MANUFACTURER
            )
        ],
    )


def _evaluations(answer: ImageAnswer, card: ModelCard) -> list[hd.sr.QualitativeEvaluation]:
    """Return what is decided: the class or, of a model of labels, of each whether it is there."""
    if card.kind is not TaskKind.MULTILABEL:
        decided = _concept(answer.predicted, card)
        return [hd.sr.QualitativeEvaluation(CodedConcept("CLASS", _SCHEME, "Class predicted by the model"), decided)]
    return [
        hd.sr.QualitativeEvaluation(
            _concept(name, card), CodedConcept(*(_PRESENT if answer.probabilities[name] >= least else _ABSENT))
        )
        for name, least in zip(card.classes, thresholds_of(card), strict=True)
    ]


def _rule(card: ModelCard) -> str:
    if card.kind is TaskKind.MULTILABEL:
        each = zip(card.classes, thresholds_of(card), strict=True)
        return "each label from its own probability on: " + ", ".join(f"{name} {least:.6f}" for name, least in each)
    if card.threshold is None:
        return "most probable class"
    return f"{card.classes[1]} from probability {card.threshold:.6f} on"


def _concept(name: str, card: ModelCard) -> CodedConcept:
    if name in _SNOMED:
        value, meaning = _SNOMED[name]
        return CodedConcept(value, "SCT", meaning)
    return CodedConcept(f"C{card.classes.index(name)}", _SCHEME, name[:64])


def _short_name(card: ModelCard) -> str:
    """Return the model's name without the hash of a package or a file: DICOM takes 64 letters."""
    return card.architecture.partition("@")[0][:56]


def _model_uid(card: ModelCard) -> str:
    """Return a UID that names the model, the same for everyone who has it (PS3.5, B.2)."""
    return f"2.25.{int(card.sha256[:32], 16)}"


def _encoded(dataset: pydicom.Dataset) -> bytes:
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    return content.getvalue()
