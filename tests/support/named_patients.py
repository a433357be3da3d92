"""Hospitals' data full of people's names, to look for afterwards in everything that a run has written."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from common.shards import COLUMNS, MANIFEST_NAME, SPLITS
from deploy.datasets import phantom
from tests.support.hospital_folder import dicom

NAME, BIRTH_DATE = "zeisig", "19640812"
"""In every file name, patient number and header below, and nowhere else."""

RECORDS = 96


def write(folder: Path, seed: int) -> None:
    """Write a hospital's X-rays, half of whose patients only the DICOM header names."""
    folder.mkdir(parents=True, exist_ok=True)
    made = phantom.chest(RECORDS, 32, seed)
    rows = []
    people = {patient: number for number, patient in enumerate(dict.fromkeys(made.patients))}
    for number, (pixels, label, patient) in enumerate(zip(made.images, made.labels, made.patients, strict=True)):
        person = people[patient]
        file = f"{NAME}-erika-{number:03d}.dcm"
        header: dict[str, Any] = {
            "PatientName": f"{NAME.title()}^Erika^{person}",
            "PatientID": f"{NAME.upper()}-{person}",
            "PatientBirthDate": BIRTH_DATE,
            "StudyDate": BIRTH_DATE,
            "ReferringPhysicianName": f"Dr {NAME}",
            "InstitutionName": f"{NAME} clinic",
        }
        (folder / file).write_bytes(dicom(np.asarray(pixels[0]), **header))
        known = f"{NAME.upper()}-{person}" if person % 2 else ""
        rows.append((file, phantom.CHEST_CLASSES[label], known, SPLITS[min(2, max(0, person % 5 - 2))]))
    with (folder / MANIFEST_NAME).open("w", encoding="utf-8", newline="") as file_:
        csv.writer(file_).writerows([COLUMNS, *rows])


def break_one(folder: Path) -> None:
    """Cut one image short so that the hospital must refuse."""
    image = min(folder.glob("*.dcm"))
    image.write_bytes(image.read_bytes()[:900])


def is_named_in(content: bytes) -> bool:
    """Say whether any of the people can be recognised in what was written."""
    lowered = content.lower()
    return any(word.encode(encoding) in lowered for word in (NAME, BIRTH_DATE) for encoding in ("utf-8", "utf-16-le"))


def named_below(folder: Path, besides: tuple[Path, ...]) -> list[Path]:
    """Return the files below a folder that name somebody, by content or by name, besides the hospitals' own data."""
    return [
        path
        for path in folder.rglob("*")
        if not any(path.is_relative_to(own) for own in besides)
        and (is_named_in(str(path.relative_to(folder)).encode()) or (path.is_file() and is_named_in(path.read_bytes())))
    ]
