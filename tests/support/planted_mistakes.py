"""One function for each way to spoil a healthy hospital folder; each returns the place that a check must name."""

import io
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image, ImageDraw, PngImagePlugin
from pydicom.uid import MPEG2MPML, DeflatedExplicitVRLittleEndian

from client.data.catalogue import ACCEPTED_NAME
from client.data.mistakes import Mistake
from common.config import PrivacyUnit
from common.shards import MANIFEST_NAME
from deploy.datasets import phantom
from tests.support.hospital_folder import SIZE, Hospital, chest_images, dicom, encoded, packaged, png, workbook

Plant = Callable[[Hospital], str]

PLANTS: list[tuple[Mistake, Plant]] = []
"""Every one, with what it must be found as."""


def _found_as(mistake: Mistake) -> Callable[[Plant], Plant]:
    def register(plant: Plant) -> Plant:
        PLANTS.append((mistake, plant))
        return plant

    return register


def another_chest(size: int = SIZE, seed: int = 77) -> npt.NDArray[np.uint8]:
    """Return a chest image that is in no healthy folder."""
    return np.asarray(phantom.chest(1, size, seed).images[0, 0])


@_found_as(Mistake.EMPTY_FOLDER)
def no_image_at_all(hospital: Hospital) -> str:
    for file in hospital.folder.iterdir():
        file.unlink()
    return ""


@_found_as(Mistake.EMPTY_FOLDER)
def a_manifest_without_rows(hospital: Hospital) -> str:
    for number in range(len(hospital.rows)):
        hospital.file(number).unlink()
    hospital.rows.clear()
    hospital.write_manifest()
    return ""


@_found_as(Mistake.UNREADABLE)
def an_image_without_read_permission(hospital: Hospital) -> str:
    hospital.needs_permissions = True
    hospital.file(3).chmod(0o000)
    return hospital.rows[3][0]


@_found_as(Mistake.UNREADABLE)
def a_manifest_without_read_permission(hospital: Hospital) -> str:
    hospital.needs_permissions = True
    (hospital.folder / MANIFEST_NAME).chmod(0o000)
    return MANIFEST_NAME


@_found_as(Mistake.OUTSIDE_FOLDER)
def a_row_with_dots(hospital: Hospital) -> str:
    (hospital.folder.parent / "other.png").write_bytes(png(another_chest()))
    hospital.change(2, "file", "../other.png")
    return "row 4: ../other.png"


@_found_as(Mistake.OUTSIDE_FOLDER)
def an_absolute_row(hospital: Hospital) -> str:
    hospital.change(2, "file", "/etc/hostname")
    return "row 4: /etc/hostname"


@_found_as(Mistake.OUTSIDE_FOLDER)
def a_link_to_elsewhere(hospital: Hospital) -> str:
    outside = hospital.folder.parent / "outside.png"
    hospital.file(2).rename(outside)
    hospital.file(2).symlink_to(outside)
    return f"row 4: {hospital.rows[2][0]}"


@_found_as(Mistake.MANIFEST_NOT_UTF8)
def a_manifest_in_two_encodings(hospital: Hospital) -> str:
    hospital.rows[4] = (*hospital.rows[4][:2], "Müller", "train")
    hospital.write_manifest()
    path = hospital.folder / MANIFEST_NAME
    path.write_bytes(path.read_bytes() + "image-é.png,normal,p-900,train\n".encode("latin-1"))
    return MANIFEST_NAME


@_found_as(Mistake.MANIFEST_MALFORMED)
def a_row_with_a_cell_too_many(hospital: Hospital) -> str:
    hospital.rows[4] = (*hospital.rows[4], "later")
    hospital.write_manifest()
    return f"{MANIFEST_NAME} row 6"


@_found_as(Mistake.MANIFEST_MALFORMED)
def an_open_quotation_mark(hospital: Hospital) -> str:
    path = hospital.folder / MANIFEST_NAME
    path.write_text(path.read_text() + '"image-000.png,normal,p-000,train\n')
    return f"{MANIFEST_NAME} row 62"


@_found_as(Mistake.MANIFEST_MALFORMED)
def a_manifest_with_two_columns_of_labels(hospital: Hospital) -> str:
    hospital.columns = ("file", "label", "Label ", "split")
    hospital.write_manifest()
    return MANIFEST_NAME


@_found_as(Mistake.MANIFEST_MALFORMED)
def two_manifests(hospital: Hospital) -> str:
    (hospital.folder / "manifest.xlsx").write_bytes(workbook({"Sheet": [hospital.columns, *hospital.rows]}))
    return "manifest.xlsx"


@_found_as(Mistake.TABLE_REMARK)
def a_manifest_in_a_workbook_of_two_sheets(hospital: Hospital) -> str:
    (hospital.folder / MANIFEST_NAME).unlink()
    sheets: dict[str, Sequence[Sequence[object]]] = {
        "Sheet": [hospital.columns, *hospital.rows],
        "Notes": [("look", "here"), ("a", "b")],
    }
    (hospital.folder / "manifest.xlsx").write_bytes(workbook(sheets))
    return "manifest.xlsx"


@_found_as(Mistake.FILE_KIND_NOT_READ)
def a_tiff_beside_the_images(hospital: Hospital) -> str:
    content = io.BytesIO()
    Image.fromarray(another_chest()).save(content, "TIFF")
    (hospital.folder / "scan.tif").write_bytes(content.getvalue())
    return "scan.tif"


@_found_as(Mistake.FILE_KIND_NOT_READ)
def a_bomb_of_an_archive(hospital: Hospital) -> str:
    with zipfile.ZipFile(hospital.folder / "export.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(2**24))
    return "export.zip"


@_found_as(Mistake.FILE_EXTRA)
def an_image_in_an_archive_that_no_row_names(hospital: Hospital) -> str:
    with zipfile.ZipFile(hospital.folder / "export.zip", "w") as archive:
        archive.writestr("a.dcm", dicom(another_chest()))
    return "export.zip/a.dcm"


@_found_as(Mistake.IMAGE_DAMAGED)
def an_archive_with_a_bad_sector(hospital: Hospital) -> str:
    name, path = hospital.rows[4][0], hospital.folder / "export.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, hospital.file(4).read_bytes())
    content = bytearray(path.read_bytes())
    content[100] ^= 0xFF
    path.write_bytes(content)
    hospital.change(4, "file", f"export.zip/{name}")
    return f"export.zip/{name}"


@_found_as(Mistake.FILE_KIND_NOT_READ)
def programs_of_a_viewer(hospital: Hospital) -> str:
    (hospital.folder / "VIEWER.EXE").write_bytes(b"MZ" + bytes(200))
    return ""


@_found_as(Mistake.NAME_NOT_UTF8)
def a_name_in_latin_1(hospital: Hospital) -> str:
    Path(os.fsdecode(os.fsencode(hospital.folder) + b"/f\xfcr.png")).write_bytes(png(another_chest()))
    return "f\\xfcr.png"


@_found_as(Mistake.MANIFEST_COLUMN_MISSING)
def a_manifest_without_labels(hospital: Hospital) -> str:
    hospital.columns = ("file", "diagnosis", "patient_id", "split")
    hospital.write_manifest()
    return MANIFEST_NAME


@_found_as(Mistake.MANIFEST_ROW_REPEATED)
def a_row_twice(hospital: Hospital) -> str:
    hospital.rows.append(hospital.rows[5])
    hospital.write_manifest()
    return f"row 62: {hospital.rows[5][0]}"


@_found_as(Mistake.MANIFEST_ROW_REPEATED)
def a_file_twice_under_two_names(hospital: Hospital) -> str:
    hospital.rows.append((f"./{hospital.rows[5][0]}", "pneumonia", "p-900", "train"))
    hospital.write_manifest()
    return f"row 62: ./{hospital.rows[5][0]}"


@_found_as(Mistake.FILE_MISSING)
def a_missing_file(hospital: Hospital) -> str:
    hospital.file(7).unlink()
    return f"row 9: {hospital.rows[7][0]}"


@_found_as(Mistake.FILE_MISSING)
def a_folder_in_place_of_a_file(hospital: Hospital) -> str:
    hospital.file(7).unlink()
    hospital.file(7).mkdir()
    return f"row 9: {hospital.rows[7][0]}"


@_found_as(Mistake.FILE_EXTRA)
def a_file_that_no_row_names(hospital: Hospital) -> str:
    (hospital.folder / "forgotten.png").write_bytes(png(another_chest()))
    return "forgotten.png"


@_found_as(Mistake.LABEL_MISSING)
def an_empty_label(hospital: Hospital) -> str:
    hospital.change(1, "label", " ")
    return f"row 3: {hospital.rows[1][0]}"


@_found_as(Mistake.LABEL_UNKNOWN)
def a_label_outside_the_classes(hospital: Hospital) -> str:
    hospital.change(1, "label", "tuberculosis")
    return f"row 3: {hospital.rows[1][0]}"


@_found_as(Mistake.LABEL_UNKNOWN)
def a_class_folder_of_another_name(hospital: Hospital) -> str:
    (hospital.folder / MANIFEST_NAME).unlink()
    for folder in ("normal", "pneumonia", "tuberculosis"):
        (hospital.folder / "train" / folder).mkdir(parents=True)
    for number, row in enumerate(hospital.rows):
        label = "tuberculosis" if number == 9 else row[1]
        hospital.file(number).rename(hospital.folder / "train" / label / row[0])
    return "train/tuberculosis"


@_found_as(Mistake.SPLIT_UNKNOWN)
def a_split_of_another_name(hospital: Hospital) -> str:
    hospital.change(1, "split", "holdout")
    return f"row 3: {hospital.rows[1][0]}"


@_found_as(Mistake.NPZ_MALFORMED)
def an_npz_with_fewer_labels_than_images(hospital: Hospital) -> str:
    for file in hospital.folder.iterdir():
        file.unlink()
    images = np.stack(chest_images())
    parts = {f"{split}_images": images[:20] for split in ("train", "val", "test")}
    labels = {f"{split}_labels": np.zeros((19, 1), np.uint8) for split in ("train", "val", "test")}
    np.savez(hospital.folder / "shard.npz", allow_pickle=False, **parts, **labels)
    return "shard.npz"


@_found_as(Mistake.NOT_AN_IMAGE)
def a_text_with_an_images_name(hospital: Hospital) -> str:
    hospital.file(8).write_text("to be exported")
    return hospital.rows[8][0]


@_found_as(Mistake.NOT_AN_IMAGE)
def a_web_page_with_a_dicom_name(hospital: Hospital) -> str:
    hospital.add("image.dcm", b"<html>404 not found</html>")
    return "image.dcm"


@_found_as(Mistake.IMAGE_DAMAGED)
def a_truncated_png(hospital: Hospital) -> str:
    content = hospital.file(8).read_bytes()
    hospital.file(8).write_bytes(content[: len(content) // 2])
    return hospital.rows[8][0]


@_found_as(Mistake.IMAGE_DAMAGED)
def a_truncated_jpeg(hospital: Hospital) -> str:
    content = io.BytesIO()
    Image.fromarray(another_chest(64)).save(content, "JPEG")
    hospital.add("cut.jpg", content.getvalue()[: len(content.getvalue()) // 2])
    return "cut.jpg"


@_found_as(Mistake.IMAGE_DAMAGED)
def a_truncated_dicom(hospital: Hospital) -> str:
    hospital.add("cut.dcm", dicom(another_chest())[:-200])
    return "cut.dcm"


@_found_as(Mistake.NOT_AN_IMAGE)
def a_png_cut_after_its_header(hospital: Hospital) -> str:
    hospital.file(8).write_bytes(png(another_chest())[:33])
    return hospital.rows[8][0]


def _claiming(width: int, height: int) -> bytes:
    """Return a whole PNG whose header claims more pixels than it holds."""
    content = bytearray(png(another_chest()))
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@_found_as(Mistake.IMAGE_TOO_LARGE)
def a_png_that_claims_a_billion_pixels(hospital: Hospital) -> str:
    hospital.file(8).write_bytes(_claiming(40_000, 40_000))
    return hospital.rows[8][0]


@_found_as(Mistake.IMAGE_TOO_LARGE)
def a_dicom_that_claims_four_billion_pixels(hospital: Hospital) -> str:
    hospital.add("vast.dcm", dicom(another_chest(), Rows=65_535, Columns=65_535))
    return "vast.dcm"


@_found_as(Mistake.IMAGE_TOO_LARGE)
def a_zip_bomb_in_a_deflated_dicom(hospital: Hospital) -> str:
    dataset = pydicom.dcmread(io.BytesIO(dicom(another_chest())))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.PixelData = bytes(16 * 2**20)
    bomb = encoded(dataset)
    if len(bomb) > 2**16:
        raise AssertionError("the bomb must be small before it goes off")
    hospital.add("bomb.dcm", bomb)
    return "bomb.dcm"


@_found_as(Mistake.IMAGE_DAMAGED)
def a_zip_bomb_in_the_text_of_a_png(hospital: Hospital) -> str:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "0" * (16 * 2**20), zip=True)
    content = io.BytesIO()
    Image.fromarray(another_chest()).save(content, "PNG", pnginfo=text)
    hospital.file(8).write_bytes(content.getvalue())
    return hospital.rows[8][0]


@_found_as(Mistake.IMAGE_TOO_SMALL)
def a_thumbnail(hospital: Hospital) -> str:
    hospital.file(8).write_bytes(png(another_chest(20)))
    return hospital.rows[8][0]


@_found_as(Mistake.IMAGE_STRETCHED)
def a_strip(hospital: Hospital) -> str:
    hospital.file(8).write_bytes(png(np.tile(another_chest(), (1, 3))))
    return hospital.rows[8][0]


@_found_as(Mistake.NARROW_RANGE)
def twelve_bits_in_a_png_of_16(hospital: Hospital) -> str:
    """A PNG's samples span its whole depth, so that these are shown nearly black."""
    hospital.file(8).write_bytes(png(another_chest().astype(np.uint16) * 16))
    return hospital.rows[8][0]


@_found_as(Mistake.WRONG_DEPTH)
def a_32_bit_dicom(hospital: Hospital) -> str:
    hospital.add("deep.dcm", dicom(another_chest(), BitsAllocated=32, BitsStored=32))
    return "deep.dcm"


@_found_as(Mistake.WRONG_COLOUR)
def a_colour_picture_among_grey_ones(hospital: Hospital) -> str:
    picture = np.stack([another_chest(), another_chest() // 2, another_chest() // 3], axis=2)
    hospital.file(8).write_bytes(png(picture))
    return hospital.rows[8][0]


@_found_as(Mistake.WRONG_COLOUR)
def a_colour_dicom_among_grey_ones(hospital: Hospital) -> str:
    picture = np.stack([another_chest(), another_chest() // 2, another_chest() // 3], axis=2)
    hospital.add("colour.dcm", dicom(picture))
    return "colour.dcm"


@_found_as(Mistake.WRONG_PHOTOMETRIC)
def a_palette_without_its_colours(hospital: Hospital) -> str:
    hospital.add("palette.dcm", dicom(another_chest(), PhotometricInterpretation="PALETTE COLOR"))
    return "palette.dcm"


@_found_as(Mistake.WRONG_PHOTOMETRIC)
def a_dicom_without_photometric_interpretation(hospital: Hospital) -> str:
    hospital.add("plain.dcm", dicom(another_chest(), PhotometricInterpretation=None))
    return "plain.dcm"


@_found_as(Mistake.COMPRESSION_UNKNOWN)
def a_video_compression(hospital: Hospital) -> str:
    dataset = pydicom.dcmread(packaged("MR_small_RLE.dcm"))
    dataset.file_meta.TransferSyntaxUID = MPEG2MPML
    dataset.Modality = "DX"
    hospital.add("video.dcm", encoded(dataset))
    return "video.dcm"


@_found_as(Mistake.NO_PIXELS)
def a_dicom_report(hospital: Hospital) -> str:
    hospital.add("report.dcm", dicom(another_chest(), PixelData=None))
    return "report.dcm"


@_found_as(Mistake.MULTI_FRAME)
def a_film_of_two_frames(hospital: Hospital) -> str:
    dataset = pydicom.dcmread(io.BytesIO(dicom(another_chest())))
    dataset.NumberOfFrames, dataset.PixelData = 2, dataset.PixelData * 2
    hospital.add("film.dcm", encoded(dataset))
    return "film.dcm"


@_found_as(Mistake.CONSTANT_IMAGE)
def a_black_image(hospital: Hospital) -> str:
    hospital.file(8).write_bytes(png(np.zeros((SIZE, SIZE), np.uint8)))
    return hospital.rows[8][0]


@_found_as(Mistake.NARROW_RANGE)
def twelve_bits_cut_to_the_upper_eight(hospital: Hospital) -> str:
    hospital.file(8).write_bytes(png((another_chest().astype(np.uint16) * 16 >> 8).astype(np.uint8)))
    return hospital.rows[8][0]


@_found_as(Mistake.INVERTED_IMAGE)
def a_negative(hospital: Hospital) -> str:
    hospital.file(8).write_bytes(png(255 - another_chest()))
    return hospital.rows[8][0]


@_found_as(Mistake.INVERTED_IMAGE)
def a_dicom_that_names_the_wrong_monochrome(hospital: Hospital) -> str:
    hospital.add("negative.dcm", dicom(another_chest(), PhotometricInterpretation="MONOCHROME1"))
    return "negative.dcm"


@_found_as(Mistake.WRONG_MODALITY)
def a_ct_slice(hospital: Hospital) -> str:
    hospital.add("ct.dcm", dicom(another_chest(), Modality="CT"))
    return "ct.dcm"


@_found_as(Mistake.MIXED_MODALITIES)
def a_task_without_known_modalities_that_mixes_them(hospital: Hospital) -> str:
    hospital.contract = replace(hospital.contract, task="organsmnist")
    for number, modality in enumerate(("DX", "DX", "MR")):
        hospital.add(f"{modality}-{number}.dcm", dicom(another_chest(seed=80 + number), Modality=modality))
    return "MR-2.dcm"


@_found_as(Mistake.WRONG_BODY_PART)
def a_knee(hospital: Hospital) -> str:
    hospital.add("knee.dcm", dicom(another_chest(), BodyPartExamined="KNEE"))
    return "knee.dcm"


@_found_as(Mistake.WRONG_VIEW)
def a_lateral_film(hospital: Hospital) -> str:
    hospital.add("lateral.dcm", dicom(another_chest(), BodyPartExamined="CHEST", ViewPosition="LL"))
    return "lateral.dcm"


@_found_as(Mistake.UNLIKE_TASK)
def a_chest_on_its_side(hospital: Hospital) -> str:
    hospital.file(8).write_bytes(png(np.rot90(another_chest()).copy()))
    return hospital.rows[8][0]


@_found_as(Mistake.HEADER_FIELD_IGNORED)
def a_window_of_nothing(hospital: Hospital) -> str:
    hospital.add("window.dcm", dicom(another_chest(), WindowCenter=[0, 0], WindowWidth=[0, 0]))
    return "window.dcm"


@_found_as(Mistake.ONE_PATIENT_FOR_MANY)
def an_anonymiser_that_calls_everyone_the_same(hospital: Hospital) -> str:
    for number in range(len(hospital.rows)):
        hospital.change(number, "patient_id", "ANON")
    return ""


@_found_as(Mistake.SHORTCUT)
def a_border_around_one_class(hospital: Hospital) -> str:
    for number, row in enumerate(hospital.rows):
        if row[1] == "pneumonia":
            hospital.file(number).write_bytes(png(np.pad(chest_images()[number], 3)))
    return ""


@_found_as(Mistake.FUTURE_STUDY)
def a_study_of_the_next_year(hospital: Hospital) -> str:
    hospital.add("later.dcm", dicom(another_chest(), StudyDate="20270301"))
    return "later.dcm"


@_found_as(Mistake.BURNED_IN_TEXT)
def a_header_that_admits_text(hospital: Hospital) -> str:
    hospital.add("text.dcm", dicom(another_chest(), BurnedInAnnotation="YES"))
    return "text.dcm"


@_found_as(Mistake.BURNED_IN_TEXT_SUSPECTED)
def a_name_written_into_the_pixels(hospital: Hospital) -> str:
    image = Image.fromarray(another_chest(224))
    ImageDraw.Draw(image).text((8, 8), "MUSTERMANN ERIKA 12.08.1964 KH NORD", fill=255)
    hospital.file(8).write_bytes(png(np.asarray(image)))
    return hospital.rows[8][0]


@_found_as(Mistake.PERSONAL_DATA)
def a_dicom_with_a_patients_name(hospital: Hospital) -> str:
    hospital.add("named.dcm", dicom(another_chest(), PatientName="Mustermann^Erika"))
    return "named.dcm"


@_found_as(Mistake.PERSONAL_DATA)
def a_jpeg_with_an_author(hospital: Hospital) -> str:
    content, tags = io.BytesIO(), Image.Exif()
    tags[0x013B] = "Dr. Mustermann"
    Image.fromarray(another_chest()).save(content, "JPEG", quality=95, exif=tags)
    hospital.add("named.jpg", content.getvalue())
    return "named.jpg"


@_found_as(Mistake.DUPLICATE_IMAGE)
def the_same_file_under_another_name(hospital: Hospital) -> str:
    hospital.add("copy.png", hospital.file(0).read_bytes())
    return "copy.png"


@_found_as(Mistake.DUPLICATE_IMAGE)
def the_same_pixels_as_dicom(hospital: Hospital) -> str:
    hospital.add("copy.dcm", dicom(chest_images()[0], WindowCenter=128, WindowWidth=256))
    return "copy.dcm"


@_found_as(Mistake.DUPLICATE_REENCODED)
def the_same_picture_as_jpeg(hospital: Hospital) -> str:
    content = io.BytesIO()
    Image.fromarray(chest_images()[0]).save(content, "JPEG", quality=80)
    hospital.add("copy.jpg", content.getvalue())
    return "copy.jpg"


@_found_as(Mistake.DUPLICATE_REENCODED)
def the_same_picture_larger(hospital: Hospital) -> str:
    hospital.add("large.png", png(np.asarray(Image.fromarray(chest_images()[0]).resize((80, 80)))))
    return "large.png"


@_found_as(Mistake.DUPLICATE_IN_TEST)
def the_same_test_image_twice(hospital: Hospital) -> str:
    number = next(number for number, row in enumerate(hospital.rows) if row[3] == "test")
    hospital.add("twice.png", hospital.file(number).read_bytes(), hospital.rows[number][1:])
    return "twice.png"


@_found_as(Mistake.PATIENT_ON_BOTH_SIDES)
def a_patient_in_train_and_test(hospital: Hospital) -> str:
    hospital.change(1, "split", "test")
    return hospital.rows[1][0]


@_found_as(Mistake.PATIENT_ON_BOTH_SIDES)
def a_patient_whom_only_the_dicom_headers_name(hospital: Hospital) -> str:
    for number, split in enumerate(("train", "val")):
        content = dicom(another_chest(seed=90 + number), PatientID="KH-4711")
        hospital.add(f"{split}.dcm", content, ("normal", "", split))
    return "val.dcm"


@_found_as(Mistake.PATIENT_CONTRADICTING_LABELS)
def a_patient_with_two_labels(hospital: Hospital) -> str:
    hospital.change(1, "label", "pneumonia")
    return hospital.rows[1][0]


@_found_as(Mistake.PATIENT_UNKNOWN)
def an_unknown_patient_where_patients_are_the_unit(hospital: Hospital) -> str:
    hospital.contract = replace(hospital.contract, unit=PrivacyUnit.PATIENT)
    hospital.change(4, "patient_id", "")
    return hospital.rows[4][0]


@_found_as(Mistake.SINGLE_CLASS)
def one_class_alone(hospital: Hospital) -> str:
    for number in range(len(hospital.rows)):
        hospital.change(number, "label", "pneumonia")
    return ""


@_found_as(Mistake.TOO_FEW_IN_CLASS)
def fewer_of_a_class_than_the_run_asks(hospital: Hospital) -> str:
    hospital.contract = replace(hospital.contract, min_records_per_class=21)
    return ""


@_found_as(Mistake.TOO_FEW_FOR_BATCH)
def fewer_records_than_a_batch(hospital: Hospital) -> str:
    hospital.contract = replace(hospital.contract, batch_size=64)
    return ""


@_found_as(Mistake.DELTA_TOO_LARGE)
def a_delta_that_allows_publishing_a_record(hospital: Hospital) -> str:
    hospital.contract = replace(hospital.contract, delta=0.03)
    return ""


@_found_as(Mistake.PART_EMPTY)
def no_test_part(hospital: Hospital) -> str:
    hospital.rows = [row for row in hospital.rows if row[3] != "test"]
    hospital.write_manifest()
    return ""


@_found_as(Mistake.MANIFEST_COLUMN_MISSING)
def a_list_of_accepted_mistakes_without_a_column(hospital: Hospital) -> str:
    (hospital.folder / ACCEPTED_NAME).write_text("file\nimage-001.png\n")
    return ACCEPTED_NAME
