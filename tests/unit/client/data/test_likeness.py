"""How often the warning that an image is unlike the task is wrong, on patients that the reference was not made from."""

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from client.data.likeness import CHEST
from client.data.picture_checks import thumbnail
from common.shards import fit
from deploy.datasets import phantom
from deploy.datasets.datasets import DATA_VARIABLE

DATA = Path(os.environ.get(DATA_VARIABLE, "/nowhere"))
needs_data = pytest.mark.skipif(
    not (DATA / "nih_cxr_224.tar").exists(),
    reason=f"${DATA_VARIABLE} names no folder with the X-rays",
)

Thumbnails = npt.NDArray[np.float32]


def held_out(archive: str, patient: str, every: int) -> Iterator[Image.Image]:
    """Yield every so-manyth X-ray of the patients whose hash left them out of the reference."""
    with tarfile.open(DATA / archive) as opened:
        members = [member for member in opened if member.name.endswith((".jpeg", ".jpg"))]
        others = [member for member in members if not _is_in_reference(member.name, patient)]
        for member in others[::every]:
            file = opened.extractfile(member)
            if file is not None:
                yield Image.open(io.BytesIO(file.read())).convert("L")


def _is_in_reference(name: str, patient: str) -> bool:
    found = re.search(patient, name)
    key = found[1] if found else name
    return hashlib.sha256(key.encode()).digest()[0] < 128


def small(image: Image.Image) -> Thumbnails:
    return thumbnail(fit(image, 224))


def share_unlike(thumbnails: list[Thumbnails]) -> float:
    return float(np.mean([bool(CHEST.why_unlike(one)) for one in thumbnails]))


@pytest.fixture(scope="module")
def children() -> list[Thumbnails]:
    return [small(image) for image in held_out("kermany_cxr_224.tar", r"(person\d+|IM-\d+)", 3)]


@pytest.fixture(scope="module")
def adults() -> list[Thumbnails]:
    return [small(image) for image in held_out("nih_cxr_224.tar", r"/(\d+)_", 1)]


def turned(thumbnails: list[Thumbnails], quarters: int) -> list[Thumbnails]:
    return [np.rot90(one.reshape(8, 8), quarters).ravel() for one in thumbnails]


@needs_data
def test_at_most_one_chest_xray_in_a_hundred_is_taken_for_something_else(
    children: list[Thumbnails], adults: list[Thumbnails]
) -> None:
    assert len(children) > 800
    assert len(adults) > 400
    assert share_unlike(children) <= 0.01
    assert share_unlike(adults) <= 0.015


@needs_data
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_nearly_every_chest_xray_on_its_side_or_head_is_found(
    children: list[Thumbnails], adults: list[Thumbnails], quarters: int
) -> None:
    assert share_unlike(turned(children, quarters)) >= 0.95
    assert share_unlike(turned(adults, quarters)) >= 0.98


@pytest.mark.parametrize("size", [28, 32, 64, 224])
def test_a_phantom_is_like_a_chest(size: int) -> None:
    records = phantom.chest(200, size, 31)
    assert share_unlike([thumbnail(image) for image in records.images]) <= 0.01


def leg(random: np.random.Generator) -> Image.Image:
    """Draw one or two bright bones in soft tissue on black: an arm, a thigh, or two knees."""
    rows, columns = np.mgrid[0:224, 0:224] / 223.0
    picture = np.zeros((224, 224))
    width = random.uniform(0.15, 0.3)
    for middle in (0.5,) if random.random() < 0.5 else (0.27, 0.73):
        across = np.abs(columns - middle - random.uniform(-0.05, 0.05) * (rows - 0.5))
        picture = np.maximum(picture, 0.45 * (across < width) + 0.5 * (across < width / 3))
    return Image.fromarray((255 * np.clip(picture + random.normal(0, 0.02, picture.shape), 0, 1)).astype(np.uint8))


def test_most_drawn_limbs_are_unlike_a_chest() -> None:
    """Real ones were not at hand to measure; a limb in the middle of a film has much of the shape of a mediastinum."""
    random = np.random.default_rng(1)
    assert share_unlike([small(leg(random)) for _ in range(200)]) >= 0.5


def test_noise_is_unlike_a_chest() -> None:
    random = np.random.default_rng(2)
    noise = [thumbnail(random.integers(0, 256, (1, 64, 64), np.uint8)) for _ in range(100)]
    assert share_unlike(noise) >= 0.95
