"""Where in an image the model finds what it says: occlusion (Zeiler and Fergus 2014, arXiv:1311.2901, section 4.2).

A square of the image is painted over with the image's mean grey (of each channel), and what the answer's log-odds lose
is what the square said for the answer. Squares are an eighth of the image wide and lie side by side, so the model is
asked some 65 times; a pixel has the mean over the squares that cover it.

Occlusion is used, and not a gradient: frozen features hold moduli, logarithms and normalised means, whose gradient says
little about a change that an eye can see. Occlusion asks the whole model, features and head, that gave the answer. It
says where the model looked, and not that the model is right.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

SQUARES = 8
"""In a row, without overlap."""

_AT_ONCE = 32

METHOD = "occlusion: loss of the answer's log-odds when a square of an eighth of the width is painted mean grey"


def occlusion(
    margin: Callable[[NDArray[np.uint8]], NDArray[np.float64]], image: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Return what each pixel's surroundings say for the answer, shape (size, size); above 0 speaks for it.

    Args:
        margin: log-odds of the answer for images of shape (n, channels, size, size), shape (n,).
        image: (channels, size, size), size at least 8.
    """
    size = image.shape[-1]
    places = _places(size)
    grey = image.mean(axis=(1, 2)).round().astype(np.uint8)[:, None, None]
    (whole,) = margin(image[None].copy())  # PyTorch wants an array that it may write to.
    total, covered = np.zeros((size, size)), np.zeros((size, size))
    for first in range(0, len(places), _AT_ONCE):
        some = places[first : first + _AT_ONCE]
        painted = np.repeat(image[None], len(some), axis=0)
        for each, (rows, columns) in zip(painted, some, strict=True):
            each[:, rows, columns] = grey
        for (rows, columns), left in zip(some, margin(painted), strict=True):
            total[rows, columns] += whole - left
            covered[rows, columns] += 1
    return total / covered


def _places(size: int) -> list[tuple[slice, slice]]:
    """Return squares that cover every pixel, side by side, the last ones flush with the border."""
    width = max(1, size // SQUARES)
    starts = sorted({*range(0, size - width, width), size - width})
    spans = [slice(start, start + width) for start in starts]
    return [(rows, columns) for rows in spans for columns in spans]
