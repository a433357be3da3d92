"""The phantom: procedural images to try Confide on where no real data can be had.

Two kinds, both made from a seed: chest images with or without opacities, and five grades of a fundus with lesions.
They are learnable but not trivial: where an opacity lies, how large and how faint it is vary more than the body around
it, and healthy images carry distractors (vessels at the hilum, a large heart, soft shadows), so a linear model on raw
pixels gets little and a small convolutional one most. They have nothing to do with any patient, and no result on them
says anything about a disease.

All coordinates are relative: x and y run from -1 to 1 over the image, so any image size shows the same picture.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.shards import Records

_Batch = npt.NDArray[np.float32]
_Place = npt.NDArray[np.float32] | float

CHEST_CLASSES = ("normal", "pneumonia")
RETINA_CLASSES = ("0", "1", "2", "3", "4")

PNEUMONIA_SHARE = 0.62
"""The share of images with pneumonia, as in the test part of PneumoniaMNIST."""

GRADE_SHARES = (0.45, 0.12, 0.19, 0.18, 0.06)
"""The shares of the five grades, as in RetinaMNIST."""

MOST_IMAGES = 3
"""The most images of one patient, all with one label, so that splitting and privacy by patient are exercised."""

_BATCH_IMAGES = 256
"""The images rendered at once, which bounds memory to about 50 float32 planes of 256 images."""


@dataclass(frozen=True)
class _Canvas:
    """The random numbers of a batch, and the coordinates of its pixels: x and y have shape (b, s, s)."""

    random: np.random.Generator
    x: _Batch
    y: _Batch

    def uniform(self, low: float, high: float) -> _Batch:
        """Return one number for each image, shape (b, 1, 1)."""
        return self.random.uniform(low, high, (len(self.x), 1, 1)).astype(np.float32)

    def side(self) -> _Batch:
        """Return -1 or 1 for each image, shape (b, 1, 1)."""
        return self.random.choice((-1.0, 1.0), (len(self.x), 1, 1)).astype(np.float32)

    def ellipse(self, x: _Place, y: _Place, width: _Place, height: _Place, softness: float) -> _Batch:
        """Return 1 inside an ellipse and 0 outside, with an edge of ``softness``, shape (b, s, s)."""
        radius = np.sqrt(((self.x - x) / width) ** 2 + ((self.y - y) / height) ** 2)
        return np.asarray(1.0 / (1.0 + np.exp((radius - 1.0) / softness)), np.float32)

    def blob(self, x: _Place, y: _Place, width: _Place, height: _Place) -> _Batch:
        """Return a Gaussian bump of height 1, shape (b, s, s)."""
        return np.asarray(np.exp(-0.5 * (((self.x - x) / width) ** 2 + ((self.y - y) / height) ** 2)), np.float32)

    def clouds(self, cells: int) -> _Batch:
        """Return smooth noise of unit variance at the grid points with ``cells`` cells a side, shape (b, s, s)."""
        side = self.x.shape[1]
        grid = self.random.standard_normal((len(self.x), cells + 1, cells + 1), np.float32)
        place = np.linspace(0.0, cells, side, dtype=np.float32)
        weights = np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(cells + 1, dtype=np.float32)))
        return np.asarray(weights @ grid @ weights.T, np.float32)


def chest(records: int, image_size: int, seed: int) -> Records:
    """Make chest images: class 0 without, class 1 with one to three opacities in the lungs.

    Args:
        records: how many.
        image_size: pixels on a side.
        seed: the same seed and size give the same images.

    Returns:
        uint8 images of shape (records, 1, image_size, image_size), int64 labels, and the patients.
    """
    random = np.random.default_rng([seed, 1])
    patients = _patients(random, records)
    labels = (random.random(records) < PNEUMONIA_SHARE).astype(np.int64)[patients]
    images = np.empty((records, 1, image_size, image_size), np.uint8)
    for start in range(0, records, _BATCH_IMAGES):
        ill = labels[start : start + _BATCH_IMAGES]
        images[start : start + len(ill), 0] = _to_bytes(_chest_batch(_canvas(random, len(ill), image_size), ill))
    return Records(images, labels, _names("chest", patients))


def retina(records: int, image_size: int, seed: int) -> Records:
    """Make fundus images of five grades: more, larger and brighter lesions with each grade.

    Args:
        records: how many.
        image_size: pixels on a side.
        seed: the same seed and size give the same images.

    Returns:
        uint8 images of shape (records, 3, image_size, image_size), int64 labels, and the patients.
    """
    random = np.random.default_rng([seed, 2])
    patients = _patients(random, records)
    labels = random.choice(len(GRADE_SHARES), records, p=GRADE_SHARES).astype(np.int64)[patients]
    images = np.empty((records, 3, image_size, image_size), np.uint8)
    for start in range(0, records, _BATCH_IMAGES):
        grades = labels[start : start + _BATCH_IMAGES]
        batch = _retina_batch(_canvas(random, len(grades), image_size), grades)
        images[start : start + len(grades)] = _to_bytes(batch)
    return Records(images, labels, _names("retina", patients))


def _canvas(random: np.random.Generator, batch: int, image_size: int) -> _Canvas:
    """Turn, scale and shift the coordinates a little, because no two patients stand alike."""
    axis = np.linspace(-1.0, 1.0, image_size, dtype=np.float32)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    angle = random.normal(0.0, 0.06, (batch, 1, 1)).astype(np.float32)
    scale = random.uniform(0.8, 1.0, (batch, 1, 1)).astype(np.float32)
    across, down = random.normal(0.0, 0.06, (2, batch, 1, 1)).astype(np.float32)
    turned_x = scale * (np.cos(angle) * x - np.sin(angle) * y) + across
    turned_y = scale * (np.sin(angle) * x + np.cos(angle) * y) + down
    return _Canvas(random, turned_x, turned_y)


def _chest_batch(canvas: _Canvas, ill: npt.NDArray[np.int64]) -> _Batch:
    """Render in the order the beam goes through: body, lungs, bones, heart, then what is ill or looks like it."""
    lungs = _lungs(canvas)
    image = 0.62 * canvas.ellipse(0, 0.15, canvas.uniform(0.9, 1.1), canvas.uniform(1.15, 1.4), 0.05)
    image -= lungs * canvas.uniform(0.3, 0.42)
    image += _ribs(canvas) * (0.35 + 0.65 * lungs)
    image += 0.10 * canvas.blob(0, 0, 0.10, 1.5)  # the spine
    heart = canvas.ellipse(
        canvas.uniform(0.08, 0.2),
        canvas.uniform(0.22, 0.4),
        canvas.uniform(0.22, 0.38),
        canvas.uniform(0.25, 0.36),
        0.12,
    )
    image += heart * canvas.uniform(0.16, 0.30)
    image += _hilum(canvas) * lungs
    image += _opacities(canvas, ill) * (0.15 + 0.85 * lungs)
    image += 0.035 * canvas.clouds(4) + 0.03 * canvas.clouds(12)
    image += 0.02 * canvas.random.standard_normal(image.shape, np.float32)
    return np.asarray((image - 0.4) * canvas.uniform(0.8, 1.25) + 0.42 + canvas.uniform(-0.09, 0.09), np.float32)


def _lungs(canvas: _Canvas) -> _Batch:
    top, height = canvas.uniform(-0.14, 0.02), canvas.uniform(0.56, 0.72)
    right = canvas.ellipse(canvas.uniform(-0.50, -0.40), top, canvas.uniform(0.29, 0.37), height, 0.07)
    left = canvas.ellipse(canvas.uniform(0.40, 0.50), top, canvas.uniform(0.26, 0.34), height, 0.07)
    dome = canvas.uniform(0.48, 0.64) + 0.25 * (np.abs(canvas.x) - 0.45) ** 2
    above_diaphragm = 1.0 / (1.0 + np.exp((canvas.y - dome) / 0.04))
    return np.asarray((right + left) * above_diaphragm, np.float32)


def _ribs(canvas: _Canvas) -> _Batch:
    """Bright bands that fall from the spine outwards."""
    along = canvas.y - canvas.uniform(0.15, 0.4) * np.abs(canvas.x) - 0.3 * canvas.x**2
    bands = np.sin(canvas.uniform(15.0, 21.0) * along + canvas.uniform(0.0, 6.28))
    return np.asarray(canvas.uniform(0.02, 0.06) * np.maximum(bands, 0.0), np.float32)


def _hilum(canvas: _Canvas) -> _Batch:
    """Vessels beside the heart and one soft shadow anywhere: in both classes, so that brightness alone says little."""
    image = np.zeros_like(canvas.x)
    for side in (-1.0, 1.0):
        where = side * canvas.uniform(0.18, 0.30), canvas.uniform(-0.15, 0.10)
        image += canvas.uniform(0.05, 0.22) * canvas.blob(*where, canvas.uniform(0.05, 0.1), canvas.uniform(0.08, 0.18))
    shadow = canvas.blob(
        canvas.uniform(-0.6, 0.6), canvas.uniform(-0.5, 0.5), canvas.uniform(0.3, 0.5), canvas.uniform(0.3, 0.5)
    )
    return np.asarray(image + canvas.uniform(0.0, 0.16) * shadow, np.float32)


def _opacities(canvas: _Canvas, ill: npt.NDArray[np.int64]) -> _Batch:
    """One to three patches with ragged edges somewhere in the lungs of those who are ill; some are faint."""
    image = np.zeros_like(canvas.x)
    ragged = 1.0 + 0.45 * canvas.clouds(14)
    for patch in range(3):
        present = ill[:, None, None] * (canvas.uniform(0.0, 1.0) < (1.0, 0.6, 0.3)[patch])
        side = canvas.side()
        where = side * canvas.uniform(0.28, 0.62), canvas.uniform(-0.5, 0.45)
        size = canvas.uniform(0.11, 0.26), canvas.uniform(0.11, 0.26)
        image += present * canvas.uniform(0.16, 0.40) * canvas.blob(*where, *size)
    return np.asarray(image * ragged, np.float32)


def _retina_batch(canvas: _Canvas, grades: npt.NDArray[np.int64]) -> _Batch:
    """Render a fundus: disc, vessels, then dark lesions (bleeding) and bright ones (exudates)."""
    eye = canvas.ellipse(0, 0, 0.95, 0.95, 0.02)
    glow = canvas.uniform(0.5, 0.75) * (1.0 - 0.3 * (canvas.x**2 + canvas.y**2)) + 0.04 * canvas.clouds(5)
    side = canvas.side()
    disc = canvas.blob(side * 0.55, canvas.uniform(-0.1, 0.1), 0.13, 0.15)
    vessels = _vessels(canvas, side)
    dark = _lesions(canvas, np.array([0.0, 2.0, 5.0, 9.0, 13.0])[grades], 0.03, 0.075)
    bright = _lesions(canvas, np.array([0.0, 0.0, 2.0, 4.0, 8.0])[grades], 0.025, 0.06)
    red = glow + 0.35 * disc - 0.12 * vessels - 0.25 * dark + 0.25 * bright
    green = 0.55 * glow + 0.45 * disc - 0.2 * vessels - 0.3 * dark + 0.35 * bright
    blue = 0.25 * glow + 0.3 * disc - 0.08 * vessels - 0.1 * dark + 0.05 * bright
    image = np.stack([red, green, blue], 1) * eye[:, None]
    image += 0.02 * canvas.random.standard_normal(image.shape, np.float32)
    return np.asarray(image * canvas.uniform(0.85, 1.15)[:, None], np.float32)


def _vessels(canvas: _Canvas, side: _Batch) -> _Batch:
    """Four dark arcs that leave the disc towards the other side."""
    image = np.zeros_like(canvas.x)
    along = (side * 0.55 - canvas.x) * side
    for direction in (-1.0, -0.45, 0.45, 1.0):
        bend = direction * canvas.uniform(0.5, 0.8) * np.sqrt(np.maximum(along, 0.0))
        wiggle = 0.03 * np.sin(canvas.uniform(5.0, 9.0) * along)
        image += np.exp(-0.5 * ((canvas.y - bend - wiggle) / 0.03) ** 2) * (along > 0)
    return np.asarray(np.minimum(image, 1.0), np.float32)


def _lesions(canvas: _Canvas, expected: npt.NDArray[np.float64], smallest: float, largest: float) -> _Batch:
    """Spots anywhere on the fundus, a Poisson number with the mean ``expected``, shape (b,), in each image."""
    counts = canvas.random.poisson(expected)[:, None, None]
    image = np.zeros_like(canvas.x)
    for spot in range(int(counts.max(initial=0))):
        angle, radius = canvas.uniform(0.0, 6.28), np.sqrt(canvas.uniform(0.0, 0.72))
        size = canvas.uniform(smallest, largest), canvas.uniform(smallest, largest)
        shape = canvas.blob(radius * np.cos(angle), radius * np.sin(angle), *size)
        image += (spot < counts) * canvas.uniform(0.4, 1.0) * shape
    return np.asarray(np.minimum(image, 1.0), np.float32)


def _to_bytes(batch: _Batch) -> npt.NDArray[np.uint8]:
    return np.asarray(np.clip(batch * 255.0, 0.0, 255.0), np.uint8)


def _patients(random: np.random.Generator, records: int) -> npt.NDArray[np.int64]:
    """Return the number of each record's patient; each has one to ``MOST_IMAGES`` images, one after the other."""
    images = random.integers(1, MOST_IMAGES + 1, records)
    return np.repeat(np.arange(records), images)[:records]


def _names(kind: str, patients: npt.NDArray[np.int64]) -> tuple[str, ...]:
    return tuple(f"phantom-{kind}-{number:06d}" for number in patients)
