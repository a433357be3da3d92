"""Finds what predicts the label although it says nothing about the patient: borders, marks, shape, kind of file, view.

A network learns such a shortcut before it learns a disease (Zech et al. 2018; DeGrave et al. 2021), and does well at
the hospital that has it and badly elsewhere. So each of the :class:`Traces` of an image is tested alone: how well does
it rank the classes (AUC), and could chance do as well (Mann and Whitney's U, corrected for ties)? One image of each
patient counts, so that a patient with many films is not taken for many patients.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import erfc, sqrt

import numpy as np
import numpy.typing as npt

from client.data.pixels import Picture

TELLING_AUC = 0.7
"""A trace that ranks less well than this is not reported: age and position shift such things a little everywhere."""

CHANCE = 1e-4
"""Greatest probability that chance alone gives a trace so telling, after correction for all that are tested."""

FEWEST_OF_A_CLASS = 10
"""The fewest images; with fewer no trace can be distinguished from chance."""

_DARK_OR_BRIGHT = (8, 247)
"""A border is a frame that is all about black or all about white."""
_MARK_LEVEL = 250
_CORNER_PART, _FRAME_PART = 4, 50
_RARE = 0.02
"""A view or kind of file that fewer images have is too rare to be learned from."""


@dataclass(frozen=True, slots=True)
class Traces:
    """What an image shows of how it was made.

    Attributes:
        numbers: float32 of shape (len(NAMES),).
        source: kind of file and modality.
        view: as the header names it.
    """

    numbers: npt.NDArray[np.float32]
    source: str
    view: str


NAMES = (
    "the shape of the image (width to height)",
    "the number of pixels",
    "the width of the border",
    "the brightness of the outermost pixels",
    "bright marks in the corners",
)


def traces_of(picture: Picture) -> Traces:
    """Measure one image, at the size and shape it came in."""
    pixels = picture.pixels
    grey = pixels if pixels.ndim == 2 else pixels[..., 1]  # noqa: PLR2004 - grey has no third axis
    height, width = grey.shape
    depth = max(1, min(height, width) // _FRAME_PART)
    frame = [grey[:depth], grey[-depth:], grey[:, :depth], grey[:, -depth:]]
    numbers = (
        np.log(width / height),
        np.log(width * height),
        _border(grey),
        sum(int(part.sum(dtype=np.int64)) for part in frame) / sum(part.size for part in frame),
        _marks(grey),
    )
    return Traces(np.array(numbers, np.float32), picture.header.source, picture.header.position)


def _border(grey: npt.NDArray[np.uint8]) -> float:
    """Return which share of both sides the rows and columns at the edges have that are about black or about white."""
    dark, bright = _DARK_OR_BRIGHT
    shares = []
    for axis in (0, 1):
        low, high = grey.min(axis=1 - axis), grey.max(axis=1 - axis)
        inside = np.flatnonzero((high > dark) & (low < bright))
        shares.append(1 - (inside[-1] - inside[0] + 1) / len(low) if len(inside) else 1)
    return float(sum(shares))


def _marks(grey: npt.NDArray[np.uint8]) -> float:
    """Return the share of the four corners that is nearly white."""
    height, width = (max(1, side // _CORNER_PART) for side in grey.shape)
    corners = [
        rows[:, part] for rows in (grey[:height], grey[-height:]) for part in (slice(width), slice(-width, None))
    ]
    return float(np.mean([np.count_nonzero(corner >= _MARK_LEVEL) / corner.size for corner in corners]))


@dataclass(frozen=True)
class Shortcut:
    """A trace that predicts a class.

    Attributes:
        trace: which, in words.
        auc: how often a random image of the class ranks above (or below) a random other one.
        chance: the probability that chance alone gives as much, corrected for all traces tested.
        name: of the class.
    """

    trace: str
    auc: float
    chance: float
    name: str


def find_shortcuts(
    traces: Sequence[Traces], labels: npt.NDArray[np.int64], classes: Sequence[str], *, tasks: int = 1
) -> Iterator[Shortcut]:
    """Yield the traces that predict a class against the others.

    Args:
        traces: of one image of each patient.
        labels: int64 of shape (n,).
        classes: names in the order of their indices.
        tasks: how many sets of labels of these images are tested, for which chance is corrected too.
    """
    if not len(traces):
        return
    columns = dict(zip(NAMES, np.stack([trace.numbers for trace in traces]).T, strict=True))
    columns.update(_told_apart([trace.source for trace in traces], "the kind of file"))
    columns.update(_told_apart([trace.view for trace in traces], "the view"))
    wanted = [0] if len(classes) == 2 else range(len(classes))  # noqa: PLR2004 - of two, one gives the other
    tests = max(1, len(columns) * len(wanted) * tasks)
    for trace, values in columns.items():
        for label in wanted:
            auc, chance = rank_test(values, labels == label)
            if max(auc, 1 - auc) >= TELLING_AUC and chance * tests <= CHANCE:
                yield Shortcut(trace, max(auc, 1 - auc), min(1.0, chance * tests), classes[label])


def _told_apart(values: Sequence[str], what: str) -> dict[str, npt.NDArray[np.float32]]:
    """Return a column of 0 and 1 for each value that is neither rare nor everywhere."""
    present = sorted({value for value in values if value})
    columns = {f"{what} ({value})": np.array([one == value for one in values], np.float32) for value in present}
    return {name: column for name, column in columns.items() if _RARE <= column.mean() < 1}


def rank_test(values: npt.NDArray[np.floating], chosen: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return Mann and Whitney's AUC of the chosen against the others, and the two-sided probability of chance.

    The normal approximation with the correction for ties; (0.5, 1.0) where it does not hold because a side has fewer
    than ``FEWEST_OF_A_CLASS``.

    >>> rank_test(np.arange(40.0), np.arange(40) >= 20)[0]
    1.0
    """
    ones, all_of_them = int(chosen.sum()), len(chosen)
    zeros = all_of_them - ones
    if min(ones, zeros) < FEWEST_OF_A_CLASS:
        return 0.5, 1.0
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[group]
    u = float(ranks[chosen].sum()) - ones * (ones + 1) / 2
    ties = float((counts.astype(np.float64) ** 3 - counts).sum()) / (all_of_them * (all_of_them - 1))
    variance = ones * zeros / 12 * (all_of_them + 1 - ties)
    auc = u / (ones * zeros)
    if variance <= 0:
        return auc, 1.0
    return auc, erfc(abs(u - ones * zeros / 2) / sqrt(2 * variance))
