"""The tables of five public sets are read as they are published; the heads here are theirs."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.data.catalogue import Catalogue, DataLayout, read_catalogue
from client.data.contract import DataContract
from client.data.hospital_data import check_data
from client.data.known_tables import CHEXPERT_LABELS, NIH_LABELS, find_known_table
from client.data.mistakes import Mistake
from common.task import Counts, ImageKindName, TaskConfig, TaskKind, held_by, unknown_in
from tests.support.hospital_folder import chest_images

NIH = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
    "00000001_000.png,Cardiomegaly|Edema,0,1,058Y,M,PA,2682,2749,0.143,0.143,\n"
    "00000001_001.png,No Finding,1,1,058Y,M,AP,2894,2729,0.143,0.143,\n"
    "00000002_000.png,Hernia,0,2,81,F,PA,2500,2048,0.171,0.171,\n"
)
CHEXPERT = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices\n"
    "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0\n"
    "CheXpert-v1.0-small/train/patient00002/study2/view1_frontal.jpg,Female,87,Frontal,AP,,,-1.0,1.0,,-1.0,,,,,,,1.0,\n"
    "CheXpert-v1.0-small/train/patient00002/study1/view2_lateral.jpg,Female,83,Lateral,,,,,1.0,,,-1.0,,,,,,1.0,\n"
)
RSNA = (
    "patientId,x,y,width,height,Target\n"
    "0004cfab,,,,,0\n"
    "00436515,264.0,152.0,213.0,379.0,1\n"
    "00436515,562.0,152.0,256.0,453.0,1\n"
)
RSNA_DETAILED = "patientId,class\n0004cfab,No Lung Opacity / Not Normal\n" + 2 * "00436515,Lung Opacity\n"
PADCHEST = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,"
    "MethodProjection,Pediatric,Report,Labels\n"
    "0,20536686_a.png,0,20140915,2053,839860,1930.0,F,,PA,Manual,No,sin hallazgos,\"['pneumonia', 'nodule']\"\n"
    "1,20536686_b.png,0,20140915,2053,839860,1930.0,F,,L,Manual,No,sin hallazgos,\"['pneumonia']\"\n"
    "2,135803415_c.png,0,20150914,1358,313572,1998.0,M,,AP_horizontal,Manual,No,normal,['normal']\n"
)
MIMIC = (
    "subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,"
    "Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices\n"
    "10000032,50414267,,,,,,,,,1.0,,,,,\n"
    "10000764,57375967,,,1.0,,,,,,,,,-1.0,,\n"
)
MIMIC_METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns\n"
    "02aa804e,10000032,50414267,CHEST (PA AND LAT),PA,3056,2544\n"
    "174413ec,10000032,50414267,CHEST (PA AND LAT),LATERAL,3056,2544\n"
    "096052b7,10000764,57375967,CHEST (PA AND LAT),AP,2539,2705\n"
)
PADCHEST_TASK = TaskConfig(
    kind=TaskKind.MULTILABEL, classes=("nodule", "pneumonia"), labels={"normal": ""}, empty=Counts.NEGATIVE
)


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 40), np.uint8)).save(path)


def lay_out(folder: Path, tables: dict[str, str], images: tuple[str, ...]) -> Path:
    for number, name in enumerate(images):
        picture(folder / name, number)
    for name, text in tables.items():
        content = text.encode()
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder


SETS: dict[str, tuple[dict[str, str], tuple[str, ...], dict[str, tuple[str, ...]]]] = {
    "NIH ChestX-ray14": (
        {"Data_Entry_2017.csv": NIH, "BBox_List_2017.csv": "Image Index,Finding Label,Bbox [x,y,w,h]\n"},
        ("images_001/images/00000001_000.png", "images_001/images/00000001_001.png", "images_002/00000002_000.png"),
        {"00000001_000": ("Cardiomegaly", "Edema"), "00000001_001": (), "00000002_000": ("Hernia",)},
    ),
    "CheXpert": (
        {"train.csv": CHEXPERT},
        (
            "train/patient00001/study1/view1_frontal.jpg",
            "train/patient00002/study2/view1_frontal.jpg",
            "train/patient00002/study1/view2_lateral.jpg",
        ),
        {"patient00001/study1": ("Support Devices",), "patient00002/study2": ("Fracture", "Lung Opacity")},
    ),
    "RSNA Pneumonia": (
        {"stage_2_train_labels.csv": RSNA},
        ("stage_2_train_images/0004cfab.png", "stage_2_train_images/00436515.png"),
        {"0004cfab": ("no pneumonia",), "00436515": ("pneumonia",)},
    ),
    "RSNA Pneumonia, detailed classes": (
        {"stage_2_detailed_class_info.csv": RSNA_DETAILED},
        ("stage_2_train_images/0004cfab.png", "stage_2_train_images/00436515.png"),
        {"0004cfab": ("No Lung Opacity / Not Normal",), "00436515": ("Lung Opacity",)},
    ),
    "PadChest": (
        {"PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz": PADCHEST},
        ("0/20536686_a.png", "0/20536686_b.png", "0/135803415_c.png"),
        {"20536686_a": ("nodule", "pneumonia"), "135803415_c": ()},
    ),
    "MIMIC-CXR": (
        {
            "mimic-cxr-2.0.0-chexpert.csv.gz": MIMIC,
            "mimic-cxr-2.0.0-metadata.csv.gz": MIMIC_METADATA,
            "mimic-cxr-2.0.0-negbio.csv.gz": MIMIC.replace("1.0", "0.0"),
            "mimic-cxr-2.0.0-split.csv.gz": "dicom_id,study_id,subject_id,split\n02aa804e,50414267,10000032,train\n",
        },
        (
            "files/p10/p10000032/s50414267/02aa804e.jpg",
            "files/p10/p10000032/s50414267/174413ec.jpg",
            "files/p10/p10000764/s57375967/096052b7.jpg",
        ),
        {"02aa804e": (), "096052b7": ("Consolidation",)},
    ),
}


def names(catalogue: Catalogue, terms: TaskConfig) -> dict[str, tuple[str, ...]]:
    return {
        entry.file: tuple(terms.classes[place] for place in held_by(terms, entry.label))
        for entry in catalogue.entries
        if entry.label is not None
    }


@pytest.mark.parametrize("name", list(SETS))
def test_a_published_table_is_read_as_it_is(tmp_path: Path, name: str) -> None:
    tables, images, expected = SETS[name]
    lay_out(tmp_path, tables, images)
    known = find_known_table(tmp_path)
    assert known is not None
    assert known.name == name
    terms = known.task or PADCHEST_TASK
    catalogue = read_catalogue(tmp_path, terms)
    assert catalogue.layout is DataLayout.KNOWN_TABLE
    assert {finding.mistake for finding in catalogue.findings} <= {Mistake.TABLE_REMARK, Mistake.FILE_EXTRA}
    read = names(catalogue, terms)
    assert len(read) == len(expected)
    for part, labels in expected.items():
        (file,) = (file for file in read if part in file)
        assert read[file] == labels


def test_of_both_tables_of_rsna_the_one_with_targets_is_read(tmp_path: Path) -> None:
    tables, images, _ = SETS["RSNA Pneumonia"]
    lay_out(tmp_path, {**tables, "stage_2_detailed_class_info.csv": RSNA_DETAILED}, images)
    known = find_known_table(tmp_path)
    assert known is not None
    assert (known.name, known.files) == ("RSNA Pneumonia", ("stage_2_train_labels.csv",))


def test_views_that_are_not_frontal_are_left_out_and_counted_by_their_names(tmp_path: Path) -> None:
    tables, images, _ = SETS["CheXpert"]
    known = find_known_table(lay_out(tmp_path, tables, images))
    assert known is not None
    assert known.task is not None
    findings = read_catalogue(tmp_path, known.task).findings
    assert [finding.detail for finding in findings] == [
        "1 images are left out, because the table gives their view as LATERAL"
    ]


def test_what_padchest_excludes_is_counted_as_what_it_is(tmp_path: Path) -> None:
    tables, images, _ = SETS["PadChest"]
    ((name, table),) = tables.items()
    more = [f"{number},{number}.png,0,2015,1,1,1990,F,,{view},Manual,No,x,['normal']\n"
            for number, view in enumerate(("EXCLUDE", "EXCLUDE", "COSTAL", "PA"), start=3)]  # fmt: skip
    lay_out(tmp_path, {name: table + "".join(more)}, (*images, *(f"0/{number}.png" for number in range(3, 7))))
    findings = read_catalogue(tmp_path, PADCHEST_TASK).findings
    assert [finding.detail for finding in findings] == [
        f"{count} images are left out, because the table gives their view as {view}"
        for count, view in ((1, "L"), (2, "EXCLUDE"), (1, "COSTAL"))
    ]


def test_the_16_bit_files_of_padchest_are_read(tmp_path: Path) -> None:
    """PadChest's PNG files have 16 bits; MIMIC-CXR-JPG, CheXpert and NIH have 8."""
    tables, images, _ = SETS["PadChest"]
    lay_out(tmp_path, tables, images)
    for number, name in enumerate(images):
        grey = chest_images()[number].astype(np.uint16) * 257
        Image.fromarray(grey).save(tmp_path / name)
    contract = DataContract("padchest", PADCHEST_TASK.classes, 1, 28, 1, 0.0, terms=PADCHEST_TASK)
    report = check_data(tmp_path, contract, tmp_path.parent / "cache")
    assert Mistake.WRONG_DEPTH not in {finding.mistake for finding in report.findings}
    assert sum(map(sum, report.counts.values())) == 2


def test_patient_view_age_and_sex_come_from_the_table(tmp_path: Path) -> None:
    tables, images, _ = SETS["NIH ChestX-ray14"]
    known = find_known_table(lay_out(tmp_path, tables, images))
    assert known is not None
    assert known.task is not None
    entries = {Path(entry.file).stem: entry for entry in read_catalogue(tmp_path, known.task).entries}
    first, third = entries["00000001_000"], entries["00000002_000"]
    assert (first.patient, third.patient) == ("1", "2")
    assert first.said is not None
    assert third.said is not None
    assert (first.said.position, first.said.sex, first.said.age) == ("PA", "M", "058Y")
    assert (third.said.sex, third.said.age) == ("F", "081Y")


def test_an_uncertain_label_counts_as_the_task_says(tmp_path: Path) -> None:
    tables, images, _ = SETS["CheXpert"]
    known = find_known_table(lay_out(tmp_path, tables, images))
    assert known is not None
    assert known.task is not None
    held = {}
    for counts in (Counts.POSITIVE, Counts.LEAVE_OUT, Counts.REFUSE):
        terms = known.task.model_copy(update={"uncertain": counts})
        catalogue = read_catalogue(tmp_path, terms)
        held[counts] = {Path(file).parts[1]: labels for file, labels in names(catalogue, terms).items()}
        refused = [finding for finding in catalogue.findings if finding.mistake is Mistake.LABEL_MISSING]
        assert bool(refused) == (counts is Counts.REFUSE)
    assert held[Counts.POSITIVE]["patient00002"] == ("Cardiomegaly", "Edema", "Fracture", "Lung Opacity")
    assert held[Counts.LEAVE_OUT]["patient00002"] == ("Fracture", "Lung Opacity")
    terms = known.task.model_copy(update={"uncertain": Counts.LEAVE_OUT})
    entries = {Path(entry.file).parts[1]: entry for entry in read_catalogue(tmp_path, terms).entries}
    label = entries["patient00002"].label
    assert label is not None
    assert [terms.classes[place] for place in unknown_in(terms, label)] == ["Cardiomegaly", "Edema"]


def test_a_label_that_the_task_does_not_name_is_found_with_its_row(tmp_path: Path) -> None:
    tables, images, _ = SETS["NIH ChestX-ray14"]
    lay_out(tmp_path, tables, images)
    terms = TaskConfig(kind=TaskKind.MULTILABEL, classes=("Edema", "Hernia"), labels={"No Finding": ""})
    (finding,) = read_catalogue(tmp_path, terms).findings
    assert finding.mistake is Mistake.LABEL_UNKNOWN
    assert finding.where.startswith("row 2")
    assert "Cardiomegaly" in finding.detail


def test_rows_whose_image_is_elsewhere_are_counted_and_images_without_a_row_are_named(tmp_path: Path) -> None:
    lay_out(tmp_path, {"Data_Entry_2017.csv": NIH}, ("a/00000001_000.png", "a/00000009_000.png"))
    known = find_known_table(tmp_path)
    assert known is not None
    assert known.task is not None
    catalogue = read_catalogue(tmp_path, known.task)
    said = {finding.mistake: finding for finding in catalogue.findings}
    assert said[Mistake.TABLE_REMARK].detail.startswith("2 rows of the table of NIH")
    assert said[Mistake.FILE_EXTRA].where == "a/00000009_000.png"


@pytest.mark.parametrize("damage", [b"\x1f\x8b\x08\x00", gzip.compress(NIH.encode())[:-9]])
def test_a_damaged_table_is_refused_and_never_read_in_part(tmp_path: Path, damage: bytes) -> None:
    lay_out(tmp_path, {}, ("00000001_000.png",))
    (tmp_path / "Data_Entry_2017.csv.gz").write_bytes(damage)
    terms = TaskConfig(kind=TaskKind.MULTILABEL, classes=NIH_LABELS, labels={"No Finding": ""})
    catalogue = read_catalogue(tmp_path, terms)
    assert catalogue.labelled == ()
    assert any(finding.blocks for finding in catalogue.findings)


def test_the_check_counts_images_of_each_label_and_finds_a_view_that_gives_the_label_away(tmp_path: Path) -> None:
    head, rows = NIH.splitlines()[0], []
    for number in range(200):
        picture(tmp_path / "images" / f"{number:08}_000.png", number)
        sick = number % 2
        rows.append(
            f"{number:08}_000.png,{('No Finding', 'Edema')[sick]},0,{number},40,M,{('PA', 'AP')[sick]},1,1,1,1,"
        )
    (tmp_path / "Data_Entry_2017.csv").write_text("\n".join([head, *rows]) + "\n")
    known = find_known_table(tmp_path)
    assert known is not None
    assert known.task is not None
    terms = known.task.model_copy(update={"images": ImageKindName.ANY})
    report = check_data(
        tmp_path, DataContract("own", terms.classes, 1, 28, 1, 0.0, terms=terms), tmp_path.parent / "cache"
    )
    edema = NIH_LABELS.index("Edema")
    assert sum(report.counts[split][edema] for split in report.counts) == 100
    assert any(
        finding.mistake is Mistake.SHORTCUT and "the view" in finding.detail and "Edema" in finding.detail
        for finding in report.findings
    )


def test_the_labels_of_chexpert_and_nih_are_as_published() -> None:
    assert (len(NIH_LABELS), len(CHEXPERT_LABELS)) == (14, 13)
