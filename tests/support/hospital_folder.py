"""Builds a small hospital's data that breaks no rule, for tests to break one rule at a time."""

import csv
import datetime
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openpyxl
import pydicom
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from client.data import DataContract
from client.data.hospital_data import Report, check_data
from common.shards import MANIFEST_NAME, SPLITS
from deploy.datasets import phantom

CLASSES = phantom.CHEST_CLASSES
SIZE = 32
CONTRACT = DataContract("pneumonia", CLASSES, channels=1, image_size=28, batch_size=8, delta=1e-4)
TODAY = datetime.date(2026, 1, 15)
RECORDS = 60

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
Row = tuple[str, ...]


@cache
def chest_images() -> tuple[npt.NDArray[np.uint8], ...]:
    """Return phantom chest images, uint8 of shape (32, 32), no two of them alike."""
    return tuple(phantom.chest(RECORDS, SIZE, 5).images[:, 0])


@cache
def _chest_files() -> tuple[bytes, ...]:
    return tuple(png(pixels) for pixels in chest_images())


@dataclass
class Hospital:
    """A folder with a manifest whose rows a test may change before it checks."""

    folder: Path
    rows: list[Row]
    columns: Row = ("file", "label", "patient_id", "split")
    contract: DataContract = CONTRACT
    needs_permissions: bool = False
    """Whether it must be looked at by a user whom permissions bind, which they don't the superuser."""

    def write_manifest(self) -> None:
        """Write the rows as they are now."""
        table = io.StringIO(newline="")
        csv.writer(table).writerows([self.columns, *self.rows])
        (self.folder / MANIFEST_NAME).write_text(table.getvalue(), encoding="utf-8")

    def file(self, number: int) -> Path:
        """Return the path of one row's image."""
        return self.folder / self.rows[number][0]

    def change(self, number: int, column: str, value: str) -> None:
        """Change one cell and write the manifest."""
        cells = list(self.rows[number])
        cells[self.columns.index(column)] = value
        self.rows[number] = tuple(cells)
        self.write_manifest()

    def add(self, name: str, content: bytes, cells: Sequence[str] = ("normal", "p-new", "train")) -> None:
        """Add one image and its row."""
        (self.folder / name).write_bytes(content)
        self.rows.append((name, *cells))
        self.write_manifest()

    def check(self, cache_dir: Path) -> Report:
        """Check it as the command does."""
        return check_data(self.folder, self.contract, cache_dir, today=TODAY)


def healthy(folder: Path) -> Hospital:
    """Write sixty chest images of thirty patients, all parts and classes among them, that break no rule."""
    folder.mkdir()
    rows: list[Row] = []
    for number, image in enumerate(_chest_files()):
        person = number // 2
        name = f"image-{number:03d}.png"
        (folder / name).write_bytes(image)
        split = SPLITS[0 if person < 20 else 1 + person % 2]
        rows.append((name, CLASSES[person // 2 % 2], f"p-{person:03d}", split))
    hospital = Hospital(folder, rows)
    hospital.write_manifest()
    return hospital


def png(pixels: Pixels) -> bytes:
    """Encode pixels of shape (h, w) or (h, w, 3) as a PNG."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def dicom(pixels: Pixels, bits: int = 8, **fields: object) -> bytes:
    """Encode pixels as an uncompressed digital X-ray, with further or other header fields by keyword."""
    dataset = pydicom.Dataset()
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = generate_uid()
    dataset.Modality = "DX"
    dataset.PatientID = ""
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, 0
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    for keyword, value in fields.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    return encoded(dataset)


def encoded(dataset: pydicom.Dataset) -> bytes:
    """Write a data set as a DICOM file, uncompressed unless its file meta says otherwise."""
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    return content.getvalue()


def workbook(sheets: Mapping[str, Sequence[Sequence[object]]], formats: Mapping[str, str] | None = None) -> bytes:
    """Return an Excel workbook with these sheets; ``formats`` gives cells of the first one a number format."""
    book = openpyxl.Workbook()
    book.remove(book.worksheets[0])
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(list(row))
    for cell, number_format in (formats or {}).items():
        book.worksheets[0][cell].number_format = number_format
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()


def packaged(name: str) -> Path:
    """Return the path of one of the DICOM files that the package pydicom ships for tests."""
    path = Path(pydicom.__file__).parent / "data" / "test_files" / name
    if not path.is_file():
        raise FileNotFoundError(f"pydicom {pydicom.__version__} ships no {name}")
    return path
