"""Which bin of each statistics table a record lies in; see :mod:`common.evaluation.statistics`.

A trait is a coarse bin, not a value: the cache of prepared images holds these few bytes a record and no age or sex as
written. Nothing here fails for what a header holds; what cannot be read is not known.
"""

import re

import numpy as np
import numpy.typing as npt

from client.data.pixels import Header, Picture
from client.data.views import FRONTAL
from common.evaluation.statistics import TRAITS

_SEXES = {"F": 1, "M": 2, "O": 3}
_AGE_ENDS = (2, 18, 40, 65)
_SIDE_ENDS = (512, 1024, 2048)
_GREY_ENDS = (51, 102, 153, 204)
_YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_AGE = re.compile(r"(\d{1,3})([DWMY])")
_DATE = re.compile(r"(\d{4})(\d{2})(\d{2})")


def traits_of(picture: Picture) -> npt.NDArray[np.uint8]:
    """Return a record's traits, (len(TRAITS),) uint8, from its header and its pixels as they came in."""
    header, pixels = picture.header, picture.pixels
    shares = np.cumsum(np.bincount(pixels.ravel(), minlength=256)) / pixels.size
    low, middle, high = (int(np.searchsorted(shares, share)) for share in (0.01, 0.5, 0.99))
    bins = (
        _view(header),
        _SEXES.get(header.sex, 0),
        _bin(_AGE_ENDS, age_in_years(header.age, header.birth_date, header.study_date)),
        _bin(_SIDE_ENDS, min(pixels.shape[:2])),
        _bin(_GREY_ENDS, middle),
        _bin(_GREY_ENDS, high - low),
    )
    assert len(bins) == len(TRAITS)  # noqa: S101 - one for each table
    return np.array(bins, np.uint8)


def age_in_years(age: str, birth_date: str, study_date: str) -> float | None:
    """Return Patient's Age (0010,1010), or what birth and study date give; None where neither can be read.

    >>> age_in_years("018M", "", ""), age_in_years("", "19500102", "20260101"), age_in_years("old", "", "")
    (1.5, 75.0, None)
    """
    said = _AGE.fullmatch(age)
    if said:
        return int(said[1]) * _YEARS[said[2]]
    born, studied = _DATE.fullmatch(birth_date), _DATE.fullmatch(study_date)
    if born is None or studied is None:
        return None
    had_birthday = (studied[2], studied[3]) >= (born[2], born[3])
    years = int(studied[1]) - int(born[1]) - (0 if had_birthday else 1)
    return float(years) if years >= 0 else None


def _view(header: Header) -> int:
    if not header.view:
        return 0
    return 1 if header.view == FRONTAL else 2


def _bin(ends: tuple[int, ...], value: float | None) -> int:
    """Return 0 for what is not known, else 1 and one more for each end that is reached."""
    return 0 if value is None else 1 + sum(value >= end for end in ends)
