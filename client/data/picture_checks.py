"""What can be wrong with the pixels of one image, whatever file they came from."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from client.data.contract import DataContract
from client.data.mistakes import Mistake
from common.shards import to_image

_Pixels = npt.NDArray[np.uint8]

THUMBNAIL_SIDE = 8

INVERTED_BELOW = -0.3
"""The least correlation with the upright mean picture. Real chest X-rays have 0.05 or more, their negatives -0.05 or
less; nearly all negatives (99.8 % at 28 pixels, all at 224) are below this."""

_FLAT_LEVELS = 2
"""How many of 256 levels compression may add to an image of one colour."""

_COLOUR_LEVELS, _COLOUR_SHARE = 24, 0.01
"""Colour: an image is coloured if more than this share of its pixels has channels that differ by more than this; the
noise that JPEG puts into the colour of grey images stays well below."""

_LONGEST_TO_SHORTEST = 2.0

_BARE_SIDE, _BARE_LEVEL = 64, 0.1
"""How many pixels of the shorter side are looked at for bare film, and which part of the grey range counts as bare."""

_TEXT_STEP, _TEXT_EDGES, _TEXT_ROWS = 70, 8, 5
"""Text is five rows in which a quarter of the width has eight or more steps of 70 levels from one pixel to the next. Of
5,856 chest X-rays with their L and R marks this finds one; of a line of text written into them, 98 %."""


def check_picture(
    pixels: _Pixels, small: npt.NDArray[np.float32], contract: DataContract
) -> Iterator[tuple[Mistake, str]]:
    """Yield the mistakes of one image as (mistake, what was got).

    Args:
        pixels: uint8 of shape (h, w) or (h, w, 3), at the size it came in.
        small: its :func:`thumbnail`.
        contract: what the run asks.
    """
    height, width = pixels.shape[:2]
    if min(height, width) < contract.image_size:
        yield Mistake.IMAGE_TOO_SMALL, f"{width} x {height} for a model of {contract.image_size}"
    if max(height, width) > _LONGEST_TO_SHORTEST * min(height, width):
        yield Mistake.IMAGE_STRETCHED, f"{width} x {height}"
    if is_coloured(pixels) if contract.channels == 1 else pixels.ndim == 2:  # noqa: PLR2004 - grey has no third axis
        yield Mistake.WRONG_COLOUR, "coloured" if contract.channels == 1 else "grey"
    grey = pixels if pixels.ndim == 2 else pixels[..., 1]  # noqa: PLR2004 - grey has no third axis
    if int(pixels.max()) - int(pixels.min()) <= _FLAT_LEVELS:
        yield Mistake.CONSTANT_IMAGE, f"all about {int(grey[0, 0])} of 255"
        return
    levels = _range(grey)
    if levels < contract.kind.least_range:
        yield Mistake.NARROW_RANGE, f"{levels} of 256 levels"
    kind = contract.kind
    if kind.upright and _likeness(small, kind.upright) < INVERTED_BELOW:
        yield Mistake.INVERTED_IMAGE, ""
    elif kind.reference is not None and (why := kind.reference.why_unlike(small)):
        yield Mistake.UNLIKE_TASK, why
    elif kind.most_bare < 1 and (share := bare_share(grey)) > kind.most_bare:
        yield Mistake.UNLIKE_TASK, f"{share:.0%} of it is bare, as around a limb"
    if has_text(grey):
        yield Mistake.BURNED_IN_TEXT_SUSPECTED, ""


def thumbnail(pixels: _Pixels) -> npt.NDArray[np.float32]:
    """Return the mean of all channels on an 8 x 8 grid, centred and scaled to length 1, float32 of shape (64,).

    The inner product of two is their correlation, which neither brightness nor contrast changes.
    """
    grey = pixels.mean(axis=0, dtype=np.float32).astype(np.uint8)
    small = np.asarray(
        to_image(grey[np.newaxis]).resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX), np.float32
    ).ravel()
    return np.asarray(centred(small[np.newaxis])[0])


def centred(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return rows, shape (n, k), each less its mean and scaled to length 1; a constant row becomes zero."""
    differences = rows - rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(differences, axis=1, keepdims=True)
    return np.asarray(differences / np.where(lengths > 0, lengths, 1), np.float32)


def is_coloured(pixels: _Pixels) -> bool:
    """Return whether an image of shape (h, w, 3) has colours; one of shape (h, w) has none."""
    if pixels.ndim == 2:  # noqa: PLR2004 - grey has no third axis
        return False
    red, green, blue = (pixels[..., channel] for channel in range(3))  # ten times faster than along the last axis
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    return bool(np.mean(spread > _COLOUR_LEVELS) > _COLOUR_SHARE)


def bare_share(grey: _Pixels) -> float:
    """Return the share of an image that is darker than a tenth of the way from its 1st to its 99th percentile.

    A frame of one colour, such as padding, is left out.
    """
    inside = grey[_varied(grey, axis=1)][:, _varied(grey, axis=0)]
    step = max(1, min(inside.shape) // _BARE_SIDE)
    some = inside[::step, ::step].astype(np.float32)
    black, white = np.percentile(some, (1, 99))
    return float(np.mean(some < black + _BARE_LEVEL * (white - black)))


def _varied(grey: _Pixels, axis: int) -> slice:
    """Return the rows (axis 1) or columns (axis 0) from the first to the last that is not all of one colour."""
    (varied,) = np.nonzero(grey.max(axis=axis) > grey.min(axis=axis))
    return slice(int(varied[0]), int(varied[-1]) + 1) if len(varied) else slice(0, grey.shape[1 - axis])


def has_text(grey: _Pixels) -> bool:
    """Return whether somewhere several rows in a line have as many sharp edges as a line of text."""
    steps = np.abs(np.diff(grey.astype(np.int16), axis=1)) >= _TEXT_STEP
    if np.count_nonzero(steps) < _TEXT_EDGES * _TEXT_ROWS:
        return False
    window = max(16, grey.shape[1] // 4)
    if steps.shape[1] <= window or len(steps) < _TEXT_ROWS:
        return False
    edges = np.pad(np.cumsum(steps, axis=1, dtype=np.int32), ((0, 0), (1, 0)))
    dense = (edges[:, window:] - edges[:, :-window]) >= _TEXT_EDGES
    rows = np.pad(np.cumsum(dense, axis=0, dtype=np.int32), ((1, 0), (0, 0)))
    return bool(np.any(rows[_TEXT_ROWS:] - rows[:-_TEXT_ROWS] >= _TEXT_ROWS))


def _range(grey: _Pixels) -> int:
    """Return how many levels lie between the 1st and the 99th percentile."""
    filled = np.cumsum(np.bincount(grey.ravel(), minlength=256)) / grey.size
    return int(np.searchsorted(filled, 0.99) - np.searchsorted(filled, 0.01))


def _likeness(small: npt.NDArray[np.float32], upright: Sequence[float]) -> float:
    return float(small @ centred(np.array([upright], np.float32))[0])
