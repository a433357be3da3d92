"""Kermany's chest X-rays, written as the kinds of DICOM file that hospitals have; without $CONFIDE_DATA skipped."""

import csv
import io
import itertools
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from client.data.hospital_data import Report, check_data
from client.data.mistakes import Mistake
from common.shards import COLUMNS, MANIFEST_NAME
from deploy.datasets.datasets import DATA_VARIABLE, kermany_patient
from tests.support.hospital_folder import CONTRACT, TODAY, dicom

ARCHIVE = Path(os.environ.get(DATA_VARIABLE, "/nowhere")) / "kermany_cxr_224.tar"

pytestmark = pytest.mark.skipif(
    not ARCHIVE.exists(), reason=f"the X-rays are not here: ${DATA_VARIABLE} names no folder with {ARCHIVE.name}"
)

AT_224 = replace(CONTRACT, image_size=224)
ALL = 5856


@dataclass(frozen=True)
class Xray:
    file: str
    label: str
    split: str
    pixels: npt.NDArray[np.uint8]


def xrays(every: int = 1) -> Iterator[Xray]:
    """Yield every so-manyth X-ray of the archive."""
    with tarfile.open(ARCHIVE) as archive:
        images = (member for member in archive if member.name.endswith(".jpeg"))
        for member in itertools.islice(images, 0, None, every):
            opened = archive.extractfile(member)
            name = PurePosixPath(member.name)
            if opened is not None:
                pixels = np.asarray(Image.open(io.BytesIO(opened.read())).convert("L"))
                yield Xray(name.name, name.parts[-2].lower(), name.parts[-3], pixels)


def as_dicom(pixels: npt.NDArray[np.uint8], number: int) -> bytes:
    """Return an X-ray as one of six kinds of file: 8, 12 or 16 bits, either MONOCHROME, windowed where it has more."""
    bits = (8, 12, 16)[number % 3]
    step = 2 ** (bits - 8)
    values = pixels.astype(np.int64) * step
    kind = "MONOCHROME2"
    if number % 2:
        values, kind = 255 * step - values, "MONOCHROME1"
    if bits == 8:
        return dicom(values.astype(np.uint8), bits, PhotometricInterpretation=kind)
    window = {"WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits}
    return dicom(values.astype(np.uint16), bits, PhotometricInterpretation=kind, **window)


def write(folder: Path, every: int = 1, *, inverted: bool = False) -> int:
    """Write X-rays with a manifest, and return how many there are."""
    folder.mkdir()
    rows = []
    for number, xray in enumerate(xrays(every)):
        name = f"{number:05d}.dcm"
        (folder / name).write_bytes(as_dicom(255 - xray.pixels if inverted else xray.pixels, number))
        rows.append((name, xray.label, kermany_patient(xray.file), xray.split))
    with (folder / MANIFEST_NAME).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return len(rows)


def found(report: Report) -> Counter[Mistake]:
    return Counter(finding.mistake for finding in report.findings)


def test_a_sample_of_xrays_is_read_the_same_from_every_kind_of_file(tmp_path: Path) -> None:
    count = write(tmp_path / "data", every=60)
    report = check_data(tmp_path / "data", AT_224, tmp_path / "cache", today=TODAY)
    assert report.images == count == ALL // 60 + 1
    assert found(report).keys() <= {Mistake.PART_EMPTY}  # a sample may miss the small validation part


def test_negatives_of_xrays_are_found_inverted(tmp_path: Path) -> None:
    count = write(tmp_path / "data", every=60, inverted=True)
    report = check_data(tmp_path / "data", AT_224, tmp_path / "cache", today=TODAY)
    assert found(report)[Mistake.INVERTED_IMAGE] >= 0.95 * count


@pytest.mark.slow
def test_all_xrays_as_dicom_have_the_known_flaws_of_the_data_set_and_no_other(tmp_path: Path) -> None:
    count = write(tmp_path / "data")
    report = check_data(tmp_path / "data", AT_224, tmp_path / "cache", today=TODAY)
    assert report.images == count == ALL
    assert sum(map(sum, report.counts.values())) == ALL
    mistakes = found(report)
    assert set(mistakes) <= {
        Mistake.DUPLICATE_IMAGE,
        Mistake.DUPLICATE_REENCODED,
        Mistake.DUPLICATE_IN_TEST,
        Mistake.PATIENT_ON_BOTH_SIDES,
        Mistake.BURNED_IN_TEXT_SUSPECTED,
    }
    # Copies, not pairs: of three files with one picture in different encodings each pair is found.
    kinds = (Mistake.DUPLICATE_IMAGE, Mistake.DUPLICATE_REENCODED)
    assert len({finding.where for finding in report.findings if finding.mistake in kinds}) == 26
    # One as they are; files without a window are stretched over the whole range, and a few letters more look like text.
    assert 1 <= mistakes[Mistake.BURNED_IN_TEXT_SUSPECTED] <= 10
