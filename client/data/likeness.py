"""Says whether an image resembles those of a task at all: a Gaussian on the task's thumbnails, in every orientation.

A thumbnail is a point in 64 dimensions (:func:`client.data.picture_checks.thumbnail`). Its distance from the reference
is Mahalanobis's, with the variance along the first axes of the reference and one variance for all others. An image is
unlike the task if it is further away than nearly all images of the reference, or lies much nearer when turned.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

FURTHEST = 235.0
"""The squared distance beyond which an image is unlike the task."""

TURNED_NEARER = 0.8
"""An image whose squared distance shrinks to less than this share when it is turned lies on its side or its head."""

_QUARTER_TURNS = (1, 2, 3)
_SIDE = 8
_TURNS = np.stack(
    [np.rot90(np.arange(_SIDE**2).reshape(_SIDE, _SIDE), quarter).ravel() for quarter in (0, *_QUARTER_TURNS)]
)
"""Places in a thumbnail: upright, then turned by each number of quarters."""


@dataclass(frozen=True)
class LikenessReference:
    """What the thumbnails of a task's images are like.

    Attributes:
        mean: 64 numbers, row by row.
        axes: directions in which images differ most, of length 1.
        variances: along each of them.
        rest: the variance along every other direction.
    """

    mean: tuple[float, ...] = field(repr=False)
    axes: tuple[tuple[float, ...], ...] = field(repr=False)
    variances: tuple[float, ...] = field(repr=False)
    rest: float

    @cached_property
    def _arrays(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        weights = 1.0 / np.array(self.variances, np.float32) - 1.0 / self.rest
        return np.array(self.mean, np.float32), np.array(self.axes, np.float32), np.asarray(weights, np.float32)

    def distances(self, thumbnails: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the squared distance of each row, shape (n, 64), from the reference, shape (n,)."""
        mean, axes, weights = self._arrays
        apart = thumbnails - mean
        along = apart @ axes.T
        return np.asarray((apart**2).sum(axis=1) / self.rest + (along**2) @ weights)

    def why_unlike(self, thumbnail: npt.NDArray[np.float32]) -> str:
        """Say in what an image is unlike the reference; '' if it is not.

        Args:
            thumbnail: of one image, float32 of shape (64,).
        """
        upright, *others = self.distances(thumbnail[_TURNS]).tolist()
        best = min(others)
        if best < TURNED_NEARER * upright:
            return f"it fits better when turned by {90 * _QUARTER_TURNS[others.index(best)]} degrees"
        return f"{upright / FURTHEST:.1f} times as far as nearly all" if upright > FURTHEST else ""


CHEST = LikenessReference(
    mean=(
        -0.200, -0.141, -0.067, +0.045, +0.046, -0.063, -0.132, -0.190,
        -0.095, -0.021, -0.023, +0.035, +0.039, -0.022, -0.020, -0.090,
        -0.054, -0.000, -0.062, +0.022, +0.038, -0.059, -0.004, -0.054,
        -0.061, -0.009, -0.066, +0.047, +0.077, -0.042, -0.011, -0.062,
        -0.077, -0.018, -0.039, +0.090, +0.128, +0.016, -0.014, -0.077,
        -0.088, -0.008, +0.007, +0.125, +0.158, +0.068, -0.003, -0.088,
        -0.099, +0.046, +0.103, +0.159, +0.172, +0.114, +0.033, -0.103,
        -0.110, +0.091, +0.153, +0.177, +0.175, +0.143, +0.076, -0.115,
    ),
    axes=(
        (
            +0.189, +0.226, +0.195, +0.115, +0.111, +0.181, +0.197, +0.142,
            -0.022, +0.083, +0.119, +0.110, +0.102, +0.122, +0.064, -0.055,
            -0.173, +0.038, +0.099, +0.125, +0.121, +0.120, +0.035, -0.184,
            -0.216, +0.017, +0.083, +0.120, +0.116, +0.119, +0.023, -0.223,
            -0.225, -0.028, +0.034, +0.078, +0.068, +0.079, -0.019, -0.234,
            -0.224, -0.098, -0.051, +0.015, +0.018, +0.009, -0.082, -0.233,
            -0.201, -0.100, -0.034, -0.004, -0.011, -0.039, -0.119, -0.214,
            -0.154, -0.036, -0.004, -0.003, -0.013, -0.030, -0.068, -0.177,
        ),
        (
            -0.026, +0.129, +0.173, +0.119, +0.155, +0.224, +0.173, +0.032,
            -0.176, -0.134, -0.056, +0.074, +0.125, -0.027, -0.101, -0.065,
            -0.182, -0.202, -0.062, +0.024, +0.104, -0.037, -0.177, -0.060,
            -0.108, -0.192, -0.054, -0.017, +0.071, -0.003, -0.168, +0.018,
            -0.011, -0.196, -0.108, -0.013, +0.112, +0.019, -0.147, +0.123,
            +0.084, -0.183, -0.175, +0.010, +0.126, +0.004, -0.096, +0.230,
            +0.151, -0.082, -0.134, -0.026, +0.065, -0.003, +0.025, +0.319,
            +0.121, -0.017, -0.077, -0.053, -0.021, -0.020, +0.093, +0.311,
        ),
        (
            +0.098, +0.130, +0.182, +0.104, -0.033, -0.044, -0.046, -0.156,
            +0.107, -0.012, -0.006, +0.113, -0.041, -0.050, -0.102, -0.229,
            +0.083, -0.083, -0.032, +0.170, -0.093, -0.028, -0.079, -0.177,
            +0.109, -0.077, +0.022, +0.177, -0.101, -0.069, -0.066, -0.134,
            +0.168, -0.044, +0.058, +0.179, -0.057, -0.120, -0.087, -0.115,
            +0.250, +0.014, +0.055, +0.154, -0.026, -0.143, -0.111, -0.112,
            +0.336, +0.121, +0.052, +0.068, -0.027, -0.106, -0.113, -0.131,
            +0.352, +0.162, +0.037, +0.010, -0.047, -0.080, -0.139, -0.191,
        ),
        (
            -0.148, -0.148, -0.091, -0.087, -0.102, -0.092, -0.145, -0.155,
            -0.342, -0.170, +0.024, +0.008, -0.002, +0.051, -0.145, -0.320,
            -0.256, -0.026, +0.167, +0.051, +0.043, +0.206, -0.005, -0.243,
            -0.151, +0.046, +0.167, +0.036, +0.024, +0.211, +0.075, -0.155,
            -0.041, +0.113, +0.179, +0.026, -0.003, +0.195, +0.145, -0.056,
            +0.042, +0.143, +0.158, +0.015, -0.011, +0.140, +0.183, +0.028,
            +0.087, +0.068, +0.031, -0.016, -0.019, +0.069, +0.123, +0.088,
            +0.068, -0.020, -0.044, -0.050, -0.048, -0.025, +0.008, +0.100,
        ),
        (
            +0.282, +0.149, -0.046, -0.155, -0.148, -0.049, +0.150, +0.303,
            +0.077, -0.063, -0.164, -0.210, -0.184, -0.178, -0.082, +0.080,
            -0.103, -0.095, -0.132, -0.144, -0.109, -0.116, -0.095, -0.088,
            -0.168, -0.073, -0.067, -0.046, -0.025, -0.008, -0.074, -0.148,
            -0.172, -0.016, +0.033, -0.013, -0.037, +0.072, -0.027, -0.136,
            -0.111, +0.092, +0.175, +0.015, -0.047, +0.100, +0.043, -0.066,
            -0.004, +0.149, +0.192, +0.065, -0.000, +0.083, +0.066, +0.024,
            +0.193, +0.212, +0.170, +0.124, +0.102, +0.123, +0.145, +0.178,
        ),
        (
            -0.004, -0.045, +0.014, +0.077, +0.048, -0.031, -0.024, +0.021,
            -0.114, +0.081, +0.166, +0.030, -0.006, +0.164, +0.098, -0.116,
            -0.099, +0.200, +0.098, -0.028, -0.084, +0.084, +0.215, -0.138,
            -0.041, +0.164, -0.070, -0.090, -0.139, -0.109, +0.175, -0.093,
            -0.009, +0.061, -0.150, -0.133, -0.194, -0.212, +0.054, -0.049,
            -0.012, -0.090, -0.241, -0.183, -0.166, -0.170, -0.071, -0.026,
            +0.061, -0.067, -0.100, -0.076, -0.072, -0.075, -0.069, +0.063,
            +0.227, +0.212, +0.169, +0.147, +0.149, +0.167, +0.211, +0.241,
        ),
    ),
    variances=(0.15338, 0.05382, 0.04349, 0.03488, 0.02728, 0.02024),
    rest=0.002333,
)  # fmt: skip
"""Miniatures of frontal chest X-rays: half of the patients of Kermany et al. 2018 (children) and of NIH ChestX-ray14
(Wang et al. 2017, adults), and phantoms. ``tests/unit/client/data/test_likeness.py`` counts errors on the others."""
