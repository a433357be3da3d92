"""How far hospitals' own AUC of the run's last model lie apart: quartiles over hospitals, which name nobody.

Each hospital knows its AUC a, of one score and one label for each unit, and the number m of its units of the rarer
class. It counts with weight w, which rises from 0 at ``least`` cases to 1 at ``full`` ones, and nobody sees with which.
With the knots g it adds to the sum

    w · (a cut to [g_k, g_k+1], less that piece's middle), for each piece, and w · :data:`PER_HOSPITAL`

in units of ``scale``, as whole numbers. **Guarantee.** Whatever the model, the scores and the labels are, replacing a
unit by an empty one changes that vector by at most S in the L2 norm: ``docs/proofs/site-spread.md``.

Over the hospitals, the sum of the pieces is the area below the curve that says how many have an AUC above x, piece by
piece. The curve falls, so areas bound where it passes a share of its height.
"""

import math
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from common.evaluation import intervals
from common.evaluation.layout import NORM_BOUND

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

KNOTS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
"""Where pieces begin and end: closer where models that are of use lie. The noise of a piece's area does not depend on
how many there are, but twice as many gave worse quartiles of 16 and of 64 hospitals. An AUC below the first counts as
that."""

PER_HOSPITAL = 0.1
"""What a hospital of full weight adds to the last number. More would tell the number of hospitals better, and their
AUC worse."""

SHARES = (0.25, 0.5, 0.75)
"""The shares of hospitals below the quartiles."""

WIDEST = 0.25
"""Quartiles are not told where noise would give that of hospitals which are all alike a wider interval: half of the
range from chance to perfect."""

MOST_NEEDED = 1 << 16
"""The search for how many hospitals would be enough ends here."""

_STEPS = 200
"""Places at which quartiles are looked for, which all knots are among: a step is 0.0025."""

_PIECES = tuple(after - before for before, after in pairwise(KNOTS))

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Cases:
    """How many units of its rarer class a hospital must have.

    Attributes:
        least: with so many, or fewer, it does not count at all.
        full: from so many on it counts in full.
    """

    least: int
    full: int

    def weight(self, rarer: int) -> float:
        """Return w, from 0 to 1."""
        return min(max((rarer - self.least) / (self.full - self.least), 0.0), 1.0)

    @property
    def sensitivity(self) -> float:
        """Return by how much one unit changes a hospital's vector at most, before scale and rounding."""
        rise = 1 / (self.full - self.least)
        longest = math.hypot(0.5 * math.sqrt(sum(piece**2 for piece in _PIECES)), PER_HOSPITAL)
        return max(1 / (self.full + 1), self.weight(self.full - 1) / self.full + rise * longest)

    @property
    def scale(self) -> int:
        """Return how many units of the whole numbers are 1: one less than rounding of two vectors leaves room for."""
        return int((NORM_BOUND - math.sqrt(length_of())) / self.sensitivity) - 1


CASES = Cases(least=25, full=50)
"""With 25 cases of one class, chance moves an AUC of 0.9 by some 0.03 to 0.05, and a single one of these cases moves it
by up to 0.04, which noise must hide."""


@dataclass(frozen=True)
class SiteSpread:
    """The quartiles of hospitals' own AUC, as far as noise lets them be told.

    Attributes:
        hospitals: whose vectors are in the sum, also those that do not count.
        counted: how many have enough cases, by their weights.
        counted_ends: its 95 % interval over privacy noise.
        quartiles: lower, median, upper; NaN where fewer hospitals count than ``needed``.
        ends: of the 95 % interval of each, over privacy noise; of all AUC where nothing is known.
        needed: from how many hospitals of full weight on this noise lets quartiles be told.
    """

    hospitals: int
    counted: float
    counted_ends: tuple[float, float]
    quartiles: tuple[float, ...]
    ends: tuple[tuple[float, float], ...] = field(repr=False)
    needed: int


def length_of() -> int:
    """Return how many entries a hospital's vector has."""
    return len(KNOTS)


def vector_of(scores: Floats, labels: Integers, units: Integers) -> Integers:
    """Return what a hospital adds, (length_of(),).

    A unit of several records has the mean of their scores, and is sick where one of them is. A score that is undefined
    is below all others.

    Args:
        scores: (records,) in log-odds, of any values.
        labels: (records,) 0 or 1; records of other labels do not count.
        units: (records,) which unit each record is of.
    """
    healthy, sick = _of_units(scores, labels, units)
    weight = CASES.weight(min(len(healthy), len(sick)))
    if not weight:
        return np.zeros(length_of(), np.int64)
    return np.rint(_exact(_auc(healthy, sick), weight) * CASES.scale).astype(np.int64)


def _exact(auc: float, weight: float) -> Floats:
    starts, pieces = np.array(KNOTS[:-1]), np.array(_PIECES)
    return weight * np.append(np.clip(auc - starts, 0.0, pieces) - pieces / 2, PER_HOSPITAL)


def _of_units(scores: Floats, labels: Integers, units: Integers) -> tuple[Floats, Floats]:
    """Return the sorted scores of units without and with the positive class."""
    known = (labels == 0) | (labels == 1)
    _, unit = np.unique(units[known], return_inverse=True)
    records = np.bincount(unit)
    with np.errstate(all="ignore"):
        mean = np.bincount(unit, weights=scores[known]) / records
    mean = np.where(np.isnan(mean), -np.inf, mean)
    sick = np.bincount(unit, weights=labels[known]) > 0
    return np.sort(mean[~sick]), np.sort(mean[sick])


def _auc(healthy: Floats, sick: Floats) -> float:
    """Return the share of pairs in which the sick one has the higher score; equal ones count half."""
    below, upto = (int(np.searchsorted(healthy, sick, side).sum()) for side in ("left", "right"))
    return (below + upto) / (2 * len(healthy) * len(sick))


def read_spread(summed: Integers, hospitals: int, variance: float) -> SiteSpread:
    """Return what a noisy sum says.

    Args:
        summed: (length_of(),) or longer.
        hospitals: whose vectors are in the sum.
        variance: of the noise in each entry.
    """
    deviation = math.sqrt(variance) / CASES.scale
    found, needed = _quartiles(summed[: length_of()] / CASES.scale, deviation), hospitals_needed(deviation)
    counted, reach = float(summed[length_of() - 1]) / CASES.scale / PER_HOSPITAL, intervals.Z * deviation / PER_HOSPITAL
    low, high = (min(max(end, 0.0), float(hospitals)) for end in (counted - reach, counted + reach))
    return SiteSpread(
        hospitals=hospitals,
        counted=min(max(counted, 0.0), float(hospitals)),
        counted_ends=(low, high),
        quartiles=tuple(value if counted >= needed else math.nan for value, _ in found),
        ends=tuple(ends for _, ends in found),
        needed=needed,
    )


def hospitals_needed(deviation: float) -> int:
    """Return from how many hospitals of full weight on quartiles are told: at most ``MOST_NEEDED``.

    It is judged by hospitals that all have one AUC, of 0.9, and a sum in which the noise happens to be 0. So whether
    quartiles are told depends on the noise and on the noisy number of hospitals, not on how they differ.

    Args:
        deviation: of the noise in each entry, over the scale.
    """

    def enough(hospitals: int) -> bool:
        expected = hospitals * _exact(0.9, 1.0)
        return all(end - start <= WIDEST for _, (start, end) in _quartiles(expected, deviation))

    low, high = 0, 1
    while high < MOST_NEEDED and not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _quartiles(summed: Floats, deviation: float) -> list[tuple[float, tuple[float, float]]]:
    """Return each quartile, the middle of where it can be without noise, with its interval; NaN if nobody counts."""
    everything = (KNOTS[0], KNOTS[-1])
    fitted = _falling(summed)
    found = []
    for share in SHARES:
        if fitted[0] <= 0:
            found.append((math.nan, everything))
            continue
        tests, of_noise = _tests(1 - share)
        slack = tests @ fitted
        ends = _ends_of(slack >= -intervals.Z * deviation * of_noise - _ROUNDING * fitted[0])
        likeliest = _ends_of(slack >= -_ROUNDING * fitted[0])
        found.append((sum(likeliest) / 2, ends))
    return found


def _ends_of(holds: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the first and the last place at which every test holds."""
    places = _places()[holds.all(axis=1)]
    return float(places[0]), float(places[-1])


def _places() -> Floats:
    return np.linspace(KNOTS[0], KNOTS[-1], _STEPS + 1)


@cache
def _areas_from_sums() -> Floats:
    """Return the matrix that gives the number of hospitals and the areas of all pieces, (1 + pieces, length_of())."""
    pieces = np.array(_PIECES)
    matrix: Floats = np.eye(length_of())[[-1, *range(len(pieces))]]
    matrix[0] /= PER_HOSPITAL
    matrix[1:] += pieces[:, None] / 2 * matrix[0]
    return matrix


def _falling(summed: Floats) -> Floats:
    """Return the number of hospitals and the areas of all pieces, as a falling curve has them, (1 + pieces,).

    It is fitted by least squares to the curve's mean height in each piece, which pools neighbours that do not fall.
    """
    areas, widths = _areas_from_sums(), np.append(1.0, _PIECES)
    heights = areas @ summed / widths
    weights = 1 / np.square(np.linalg.norm(areas, axis=1) / widths)
    blocks: list[tuple[float, float, int]] = []
    for height, weight in zip(heights, weights, strict=True):
        mean, mass, size = float(height), float(weight), 1
        while blocks and blocks[-1][0] < mean:
            other, heavy, several = blocks.pop()
            mean, mass, size = (mean * mass + other * heavy) / (mass + heavy), mass + heavy, size + several
        blocks.append((mean, mass, size))
    fitted: Floats = np.concatenate([np.full(size, max(mean, 0.0)) for mean, _, size in blocks]) * widths
    return fitted


@cache
def _tests(height: float) -> tuple[Floats, Floats]:
    """Return what must not be negative where a falling curve passes ``height`` of its largest: (places, tests, 1 + n).

    With n pieces and the curve H: before a place x the area from any knot g on is at least height · H(0) · (x - g), and
    after x it is at most as much. Within x's own piece the mean height of the next piece bounds the part of the area
    behind x from below, and that of the piece before bounds the part before x from above. The second result,
    (places, tests), is the deviation of each test where each number of a sum has noise of deviation 1.
    """
    pieces = len(_PIECES)
    tests = np.zeros((_STEPS + 1, 2 * pieces, pieces + 1))
    for place, x in enumerate(_places()):
        own = min(int(np.searchsorted(KNOTS, x + _ROUNDING, "right")) - 1, pieces - 1)
        before = np.zeros(pieces + 1)
        before[own] = (x - KNOTS[own]) / (_PIECES[own - 1] if own else 1.0)
        after = np.zeros(pieces + 1)
        if own + 1 < pieces:
            after[own + 2] = (KNOTS[own + 1] - x) / _PIECES[own + 1]
        for knot in range(pieces + 1):
            if knot <= own:
                area = np.zeros(pieces + 1)
                area[knot + 1 : own + 2] = 1.0
                test = area - after
                test[0] -= height * (x - KNOTS[knot])
                tests[place, knot] = test
            else:
                area = np.zeros(pieces + 1)
                area[own + 1 : knot + 1] = 1.0
                test = before - area
                test[0] += height * (KNOTS[knot] - x)
                tests[place, pieces + knot - 1] = test
    return tests, np.linalg.norm(tests @ _areas_from_sums(), axis=2)
