"""Every kind of mistake that a hospital's data is checked for, with its reason and its remedy, in one table."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class Mistake(StrEnum):
    """What can be wrong; the value is the code that tables, refusals and ``accepted.csv`` use."""

    EMPTY_FOLDER = "empty_folder"
    UNREADABLE = "unreadable"
    OUTSIDE_FOLDER = "outside_folder"
    MANIFEST_NOT_UTF8 = "manifest_not_utf8"
    MANIFEST_MALFORMED = "manifest_malformed"
    MANIFEST_COLUMN_MISSING = "manifest_column_missing"
    MANIFEST_ROW_REPEATED = "manifest_row_repeated"
    TABLE_REMARK = "table_remark"
    FILE_MISSING = "file_missing"
    FILE_EXTRA = "file_extra"
    FILE_KIND_NOT_READ = "file_kind_not_read"
    NAME_NOT_UTF8 = "name_not_utf8"
    VANISHED = "vanished"
    LABEL_MISSING = "label_missing"
    LABEL_UNKNOWN = "label_unknown"
    SPLIT_UNKNOWN = "split_unknown"
    NPZ_MALFORMED = "npz_malformed"
    NOT_AN_IMAGE = "not_an_image"
    IMAGE_DAMAGED = "image_damaged"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_TOO_SMALL = "image_too_small"
    IMAGE_STRETCHED = "image_stretched"
    WRONG_DEPTH = "wrong_depth"
    WRONG_COLOUR = "wrong_colour"
    WRONG_PHOTOMETRIC = "wrong_photometric"
    COMPRESSION_UNKNOWN = "compression_unknown"
    NO_PIXELS = "no_pixels"
    MULTI_FRAME = "multi_frame"
    HEADER_FIELD_IGNORED = "header_field_ignored"
    CONSTANT_IMAGE = "constant_image"
    NARROW_RANGE = "narrow_range"
    INVERTED_IMAGE = "inverted_image"
    WRONG_MODALITY = "wrong_modality"
    MIXED_MODALITIES = "mixed_modalities"
    WRONG_BODY_PART = "wrong_body_part"
    WRONG_VIEW = "wrong_view"
    UNLIKE_TASK = "unlike_task"
    FUTURE_STUDY = "future_study"
    BURNED_IN_TEXT = "burned_in_text"
    BURNED_IN_TEXT_SUSPECTED = "burned_in_text_suspected"
    PERSONAL_DATA = "personal_data"
    DUPLICATE_IMAGE = "duplicate_image"
    DUPLICATE_REENCODED = "duplicate_reencoded"
    DUPLICATE_IN_TEST = "duplicate_in_test"
    PATIENT_ON_BOTH_SIDES = "patient_on_both_sides"
    PATIENT_CONTRADICTING_LABELS = "patient_contradicting_labels"
    PATIENT_UNKNOWN = "patient_unknown"
    ONE_PATIENT_FOR_MANY = "one_patient_for_many"
    SHORTCUT = "shortcut"
    SINGLE_CLASS = "single_class"
    TOO_FEW_IN_CLASS = "too_few_in_class"
    TOO_FEW_FOR_BATCH = "too_few_for_batch"
    DELTA_TOO_LARGE = "delta_too_large"
    PART_EMPTY = "part_empty"


class Weight(StrEnum):
    """How much a mistake matters."""

    REFUSED = "refused"
    """A run refuses this data."""
    ACCEPTABLE = "acceptable"
    """A run refuses it until the data manager has checked it and listed it in ``accepted.csv``."""
    WARNING = "warning"
    """A warning: it is shown, and refuses nothing."""


DEPENDS_ON_TERMS = frozenset(
    {
        Mistake.IMAGE_TOO_SMALL,
        Mistake.WRONG_COLOUR,
        Mistake.WRONG_PHOTOMETRIC,
        Mistake.NARROW_RANGE,
        Mistake.INVERTED_IMAGE,
        Mistake.WRONG_MODALITY,
        Mistake.MIXED_MODALITIES,
        Mistake.WRONG_BODY_PART,
        Mistake.WRONG_VIEW,
        Mistake.DUPLICATE_IMAGE,
        Mistake.DUPLICATE_REENCODED,
        Mistake.PATIENT_CONTRADICTING_LABELS,
        Mistake.PATIENT_UNKNOWN,
        Mistake.PART_EMPTY,
        Mistake.SINGLE_CLASS,
        Mistake.TOO_FEW_IN_CLASS,
        Mistake.TOO_FEW_FOR_BATCH,
        Mistake.DELTA_TOO_LARGE,
        Mistake.LABEL_MISSING,
        Mistake.LABEL_UNKNOWN,
    }
)
"""What is a mistake only by the terms of a run: its label map, image size, colours, kind of image, unit or numbers. No
run may refuse for it.

A server chooses the terms, so it could ask again and again, and learn from who refuses: a number; or whether any record
has one rare label, by a map that names that label alone and a size that no image has. ``check-data`` refuses for them,
so that the hospital's staff corrects it. A run that meets them leaves out the image in question where it is that
image's own fault, and keeps it where only several images together are at fault; it informs the operator in both cases.

All other mistakes are the same whatever a run asks, since images that its map leaves out are opened too.
"""


class Advice(NamedTuple):
    """What a data manager reads beside the place: why it matters and what to do."""

    weight: Weight
    reason: str
    remedy: str


@dataclass(frozen=True)
class Finding:
    """One mistake at one place.

    Attributes:
        mistake: which.
        where: a file, a row, or '' for the data as a whole; may identify a patient, so it is only ever shown to the
            hospital's own staff, and a repr hides it.
        detail: what was got; of the same kind as ``where``.
        accepted: listed in ``accepted.csv``.
    """

    mistake: Mistake
    where: str = field(default="", repr=False)
    detail: str = field(default="", repr=False)
    accepted: bool = False

    @property
    def advice(self) -> Advice:
        """Reason and remedy."""
        return ADVICE[self.mistake]

    @property
    def blocks(self) -> bool:
        """Whether a run refuses the data until this is corrected or accepted."""
        return self.advice.weight is not Weight.WARNING and not self.accepted


ADVICE: dict[Mistake, Advice] = {
    Mistake.EMPTY_FOLDER: Advice(
        Weight.REFUSED,
        "there is no image here",
        "give the folder that holds manifest.csv, one folder for each class, or an npz file",
    ),
    Mistake.UNREADABLE: Advice(
        Weight.REFUSED, "it cannot be read", "let the user that runs Confide read it (chown, chmod), or mount the disk"
    ),
    Mistake.OUTSIDE_FOLDER: Advice(
        Weight.REFUSED,
        "it lies outside the data folder, by '..', an absolute path or a link",
        "copy the file into the folder and give its path from there",
    ),
    Mistake.MANIFEST_NOT_UTF8: Advice(
        Weight.REFUSED,
        "the table is neither UTF-8 nor UTF-16, nor all of it Windows-1252",
        "save it again as 'CSV UTF-8' or as .xlsx",
    ),
    Mistake.MANIFEST_MALFORMED: Advice(
        Weight.REFUSED,
        "the table cannot be read without a guess (CSV with commas, semicolons or tabs, or one sheet of an .xlsx)",
        "correct the line, or save it again; put a cell that holds the mark between columns in double quotes",
    ),
    Mistake.MANIFEST_COLUMN_MISSING: Advice(
        Weight.REFUSED,
        "the first line of the table must name its columns (a manifest: file and label, also patient_id, split)",
        "add the column, or correct its name",
    ),
    Mistake.TABLE_REMARK: Advice(
        Weight.WARNING,
        "not all of the table was read, or its letters had to be guessed",
        "check whether that was meant",
    ),
    Mistake.MANIFEST_ROW_REPEATED: Advice(
        Weight.REFUSED, "the manifest lists this file more than once", "keep one row for each file"
    ),
    Mistake.FILE_MISSING: Advice(
        Weight.REFUSED,
        "the manifest lists a file that is not there",
        "copy the file, correct its path (forward slashes, exact case), or delete the row",
    ),
    Mistake.FILE_EXTRA: Advice(
        Weight.WARNING, "the manifest does not list this file, so it is not used", "add a row, or remove the file"
    ),
    Mistake.FILE_KIND_NOT_READ: Advice(
        Weight.WARNING,
        "files of this kind are not read, so whatever images they hold are not used",
        "unpack the archive, export images as DICOM, PNG or JPEG, or remove the file",
    ),
    Mistake.NAME_NOT_UTF8: Advice(
        Weight.REFUSED,
        "the name of the file or a folder is not UTF-8, so no table can name it",
        "rename it, with convmv for example; the byte shown after the backslash is the odd one",
    ),
    Mistake.VANISHED: Advice(
        Weight.WARNING,
        "it was there when the images were listed and gone when its turn came, so it is not used",
        "nothing if it was removed on purpose; else put it back and check again when nobody writes to the folder",
    ),
    Mistake.LABEL_MISSING: Advice(
        Weight.REFUSED,
        "the label is empty or uncertain (-1), and the task does not say what that counts as",
        "fill in the class, delete the row, or agree on task.empty and task.uncertain",
    ),
    Mistake.LABEL_UNKNOWN: Advice(
        Weight.REFUSED,
        "the label (or class folder) is not one of the run's classes, and its label map does not name it",
        "use one of the classes listed above, or agree on a task.labels that names this label",
    ),
    Mistake.SPLIT_UNKNOWN: Advice(
        Weight.REFUSED, "split must be train, val, test or empty", "correct it; where it is empty Confide chooses"
    ),
    Mistake.NPZ_MALFORMED: Advice(
        Weight.REFUSED,
        "the npz file is damaged or not in MedMNIST's layout",
        "store train_images, train_labels, val_… and test_… as uint8 (n, h, w) or (n, h, w, 3) and labels (n, 1)",
    ),
    Mistake.NOT_AN_IMAGE: Advice(
        Weight.REFUSED,
        "it is no PNG, JPEG or DICOM file, whatever its name says",
        "export the image again, or remove it",
    ),
    Mistake.IMAGE_DAMAGED: Advice(Weight.REFUSED, "the image is damaged or cut short", "export or copy it again"),
    Mistake.IMAGE_TOO_LARGE: Advice(
        Weight.REFUSED,
        "it claims more pixels or bytes than any radiograph has",
        "export it again at the detector's own size",
    ),
    Mistake.IMAGE_TOO_SMALL: Advice(
        Weight.REFUSED,
        "it has fewer pixels on its short side than the model takes",
        "export it at full size, not as a thumbnail",
    ),
    Mistake.IMAGE_STRETCHED: Advice(
        Weight.WARNING,
        "it is more than twice as long as wide, and only its middle square is used",
        "check that it is the right image, or crop it to what matters",
    ),
    Mistake.WRONG_DEPTH: Advice(
        Weight.REFUSED,
        "its bits for each pixel cannot be read safely (DICOM: 8 to 16 stored; PNG: 8 or 16; JPEG: 8)",
        "export DICOM, or 8-bit PNG with the window applied",
    ),
    Mistake.WRONG_COLOUR: Advice(
        Weight.REFUSED,
        "the run wants grey images and this one is coloured, or the other way round",
        "export the original image without colour map or annotations, or remove it",
    ),
    Mistake.WRONG_PHOTOMETRIC: Advice(
        Weight.REFUSED,
        "this run cannot use its photometric interpretation (grey: MONOCHROME1 or 2; colour: RGB or YBR)",
        "correct the header's Photometric Interpretation, or export the image again",
    ),
    Mistake.COMPRESSION_UNKNOWN: Advice(
        Weight.REFUSED,
        "its transfer syntax cannot be decoded here",
        "let the PACS export uncompressed, deflated, JPEG, JPEG-LS, JPEG 2000 or RLE",
    ),
    Mistake.NO_PIXELS: Advice(
        Weight.REFUSED,
        "this DICOM object holds no image (a report, plan or waveform)",
        "remove it, or export images only",
    ),
    Mistake.MULTI_FRAME: Advice(
        Weight.REFUSED, "it holds more than one frame", "export the one frame that the label speaks of"
    ),
    Mistake.HEADER_FIELD_IGNORED: Advice(
        Weight.WARNING,
        "a field of the header makes no sense, and the image is shown as viewers show it, without that field",
        "look at the image; correct the field at its source if the picture is too dark or too bright",
    ),
    Mistake.CONSTANT_IMAGE: Advice(Weight.REFUSED, "all its pixels are alike", "export it again, or remove it"),
    Mistake.NARROW_RANGE: Advice(
        Weight.REFUSED,
        "its grey values fill less than a sixteenth of the range, as after a wrong conversion from 12 or 16 bits",
        "export DICOM, or apply the window before saving 8 bits",
    ),
    Mistake.INVERTED_IMAGE: Advice(
        Weight.ACCEPTABLE,
        "black and white seem exchanged",
        "export it again (DICOM: Photometric Interpretation MONOCHROME1 or 2 must be right), or accept it",
    ),
    Mistake.WRONG_MODALITY: Advice(
        Weight.ACCEPTABLE,
        "the header names a modality that does not belong to this task",
        "remove it, or accept it if the header is wrong",
    ),
    Mistake.MIXED_MODALITIES: Advice(
        Weight.ACCEPTABLE,
        "it comes from another modality than most images here",
        "keep one modality, or accept it if the header is wrong",
    ),
    Mistake.WRONG_BODY_PART: Advice(
        Weight.ACCEPTABLE,
        "the header names another part of the body than the task is about",
        "remove it, or accept it if the header is wrong",
    ),
    Mistake.WRONG_VIEW: Advice(
        Weight.ACCEPTABLE,
        "the header names a lateral or oblique view, and the task is about frontal ones",
        "remove it, or accept it if the header is wrong",
    ),
    Mistake.UNLIKE_TASK: Advice(
        Weight.WARNING,
        "it does not look like the images of this task; see docs/data-manager.md for how often that is wrong",
        "look at it; remove it if it shows something else or lies on its side",
    ),
    Mistake.FUTURE_STUDY: Advice(
        Weight.ACCEPTABLE,
        "the study is dated in the future",
        "correct the scanner's or this machine's clock, or accept it",
    ),
    Mistake.BURNED_IN_TEXT: Advice(
        Weight.ACCEPTABLE,
        "the header says that text is burned into the pixels (Burned In Annotation YES)",
        "export without annotations, or accept it after looking at it",
    ),
    Mistake.BURNED_IN_TEXT_SUSPECTED: Advice(
        Weight.WARNING,
        "there seems to be text in the pixels",
        "look at it; export without annotations if it names anyone",
    ),
    Mistake.PERSONAL_DATA: Advice(
        Weight.WARNING,
        "its header holds personal data; Confide reads past it, and none of it leaves or is logged",
        "nothing, or make clean copies with check-data --deidentify OUT",
    ),
    Mistake.DUPLICATE_IMAGE: Advice(
        Weight.ACCEPTABLE,
        "the same image is there twice, so one person counts twice or is trained and tested on",
        "keep one of the two, or accept both",
    ),
    Mistake.DUPLICATE_REENCODED: Advice(
        Weight.ACCEPTABLE,
        "the same picture is there twice, saved in another way, so one person counts twice or is trained and tested on",
        "keep one of the two, or accept both if they are different exposures",
    ),
    Mistake.DUPLICATE_IN_TEST: Advice(
        Weight.WARNING,
        "the same image is in the test part twice and counts twice in the results",
        "keep one of the two",
    ),
    Mistake.PATIENT_ON_BOTH_SIDES: Advice(
        Weight.REFUSED,
        "a patient has images in more than one of train, val and test",
        "put all images of a patient into one part, or leave split empty and Confide does",
    ),
    Mistake.PATIENT_CONTRADICTING_LABELS: Advice(
        Weight.ACCEPTABLE,
        "images of one patient have different labels",
        "correct the label or the patient_id, or accept it if the diagnosis changed or the two eyes differ",
    ),
    Mistake.PATIENT_UNKNOWN: Advice(
        Weight.REFUSED,
        "the run protects whole patients, and this image has no patient_id",
        "fill in patient_id (any pseudonym, one for each person)",
    ),
    Mistake.ONE_PATIENT_FOR_MANY: Advice(
        Weight.ACCEPTABLE,
        "half of the images or more have one patient_id, as after an anonymiser that gives everyone the same",
        "give every person a pseudonym of their own in the manifest's patient_id, or accept it if it is one person",
    ),
    Mistake.SHORTCUT: Advice(
        Weight.WARNING,
        "how the images were made gives the label away, not what they show; a model learns such a shortcut",
        "crop borders, export all images the same way, or add images of the other class made alike",
    ),
    Mistake.SINGLE_CLASS: Advice(Weight.REFUSED, "all training images are of one class", "add images of another class"),
    Mistake.TOO_FEW_IN_CLASS: Advice(
        Weight.REFUSED,
        "a class has fewer training images than the run asks for",
        "add images, or agree on a lower experiment.min_records_per_class",
    ),
    Mistake.TOO_FEW_FOR_BATCH: Advice(
        Weight.REFUSED,
        "there are fewer training images than one batch has",
        "add images, or agree on a smaller training.batch_size",
    ),
    Mistake.DELTA_TOO_LARGE: Advice(
        Weight.REFUSED,
        "privacy.delta must stay below 1 / training images, or it allows publishing one of them",
        "agree on a smaller privacy.delta",
    ),
    Mistake.PART_EMPTY: Advice(
        Weight.REFUSED, "train, val and test must each hold an image", "add images or correct the split column"
    ),
}
