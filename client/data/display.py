"""From a radiograph's stored values to the 8-bit picture that a viewer shows first (PS3.3 C.11.1, C.11.2, C.7.5.1.1.2).

Every step is a function of one stored value, of which there are at most 65,536: the steps are applied to each value
that can occur, and the image is looked up in the result. Where a field makes no sense it is ignored, as viewers do,
and :attr:`Shown.passed_over` names it; nothing is ignored silently.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pydicom

_Values = npt.NDArray[np.float64]

_SPREAD_PERCENTILES = (0.5, 99.5)
"""The percentiles that become black and white without a window: a few hot or dead pixels must not decide."""

_WORD_VALUES = 2**16
_MOST_WORD = _WORD_VALUES - 1
_LEAST_SIGNED, _FIRST_NEGATIVE = -(2**15), 2**15
_MOST_BITS, _BYTE_BITS = 16, 8
_DESCRIPTOR_NUMBERS = 3
_NARROWEST_LINEAR = 1.0
"""The least width of a window of function LINEAR (PS3.3 C.11.2.1.2.1)."""


@dataclass(frozen=True)
class Shown:
    """A picture as a viewer shows it.

    Attributes:
        pixels: uint8, the shape of the stored values; more is brighter.
        passed_over: the fields that made no sense, each with what was done; holds no personal data.
    """

    pixels: npt.NDArray[np.uint8] = field(repr=False)
    passed_over: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Table:
    """A look-up table: what it maps its first value to, and the ones after it; ``bits`` is the range of its entries."""

    first: int
    entries: _Values = field(repr=False)
    bits: int

    def of(self, values: _Values) -> _Values:
        """Look up values, of which those before the first and after the last entry take that entry."""
        places = np.clip(np.floor(values) - self.first, 0, len(self.entries) - 1)
        return np.asarray(self.entries[places.astype(np.int64)])


class _UnusableFieldError(Exception):
    """A field makes no sense; says which and why, and stays in this module."""


def as_displayed(dataset: pydicom.Dataset, stored: npt.NDArray[np.integer]) -> Shown:
    """Show a grey image: modality, then the first usable VOI table or window, then MONOCHROME1 turned round.

    Without a usable one, the picture spans the 0.5th to the 99.5th percentile of what is no padding. Padding is black.

    Args:
        dataset: the header.
        stored: the values as decoded, of a type with at most 16 bits.
    """
    notes: list[str] = []
    least, most = _range(dataset, stored)
    values = np.arange(least, most + 1, dtype=np.float64)
    is_padding = _padding(dataset, values, notes)
    rescaled = _modality(dataset, values, notes)
    grey = _voi_table(dataset, rescaled, notes)
    if grey is None:
        grey = _window(dataset, rescaled, notes)
    if grey is None:
        counts = np.bincount((stored.ravel().astype(np.int64) - least), minlength=len(values))
        grey = _spread(rescaled, np.where(is_padding, 0, counts))
    if str(dataset.PhotometricInterpretation).strip() == "MONOCHROME1":
        grey = 255.0 - grey
    table = np.where(is_padding, 0, np.rint(grey)).astype(np.uint8)
    return Shown(table[stored.astype(np.int64) - least], tuple(dict.fromkeys(notes)))


def _range(dataset: pydicom.Dataset, stored: npt.NDArray[np.integer]) -> tuple[int, int]:
    """Return the least and the largest value that can occur, by the header and by what is there."""
    bits = int(dataset.get("BitsStored") or 8 * stored.dtype.itemsize)
    least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if _is_signed(stored) else (0, 2**bits - 1)
    return min(least, int(stored.min())), max(most, int(stored.max()))


def _is_signed(stored: npt.NDArray[np.integer]) -> bool:
    return stored.dtype.kind == "i"


def _padding(dataset: pydicom.Dataset, values: _Values, notes: list[str]) -> npt.NDArray[np.bool_]:
    """Return which values are padding (PS3.3 C.7.5.1.1.2), written in a signed type or not."""
    nothing = np.zeros(len(values), np.bool_)
    try:
        one = _first_number(dataset, "PixelPaddingValue")
        limit = _first_number(dataset, "PixelPaddingRangeLimit")
    except _UnusableFieldError as error:
        notes.append(f"{error}: no padding")
        return nothing
    if one is None:
        return nothing
    ends = [_as_stored(end, values) for end in (one, one if limit is None else limit)]
    return np.asarray((values >= min(ends)) & (values <= max(ends)))


def _as_stored(number: float, values: _Values) -> float:
    """Return a number of 16 bits with the sign that stored values have, whatever type the header wrote it in."""
    if values[0] < 0 and number > values[-1]:
        return number - _WORD_VALUES
    return number + _WORD_VALUES if values[0] >= 0 and number < 0 else number


def _modality(dataset: pydicom.Dataset, values: _Values, notes: list[str]) -> _Values:
    """Apply the modality table, or else slope and intercept, which both must be there."""
    if dataset.get("ModalityLUTSequence"):
        try:
            return _table(dataset, "ModalityLUTSequence", values).of(values)
        except _UnusableFieldError as error:
            notes.append(f"{error}: shown without it")
    try:
        slope, intercept = (_first_number(dataset, f"Rescale{name}") for name in ("Slope", "Intercept"))
    except _UnusableFieldError as error:
        notes.append(f"{error}: taken as 1 and 0")
        return values
    if slope is None or intercept is None:
        if "RescaleSlope" in dataset or "RescaleIntercept" in dataset:
            notes.append("RescaleSlope or RescaleIntercept is empty or missing: taken as 1 and 0")
        return values
    if slope == 0:
        notes.append("RescaleSlope is 0: taken as 1 and 0")
        return values
    return values * slope + intercept


def _voi_table(dataset: pydicom.Dataset, values: _Values, notes: list[str]) -> _Values | None:
    if not dataset.get("VOILUTSequence"):
        return None
    try:
        table = _table(dataset, "VOILUTSequence", values)
    except _UnusableFieldError as error:
        notes.append(f"{error}: shown without it")
        return None
    return np.asarray(table.of(values) * (255.0 / (2**table.bits - 1)))


def _table(dataset: pydicom.Dataset, keyword: str, values: _Values) -> _Table:
    """Read the first table of a sequence (PS3.3 C.11.1.1.1 and C.11.2.1.1), however its header types were chosen."""
    try:
        item = dataset[keyword].value[0]
        descriptor = [int(number) for number in item.LUTDescriptor]
        if len(descriptor) != _DESCRIPTOR_NUMBERS:
            raise _UnusableFieldError(f"{keyword}: LUTDescriptor must have three numbers, not {len(descriptor)}")
        count = descriptor[0] % _WORD_VALUES or _WORD_VALUES
        entries = _entries(item, count, descriptor[2], is_little=_is_little_endian(dataset))
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        raise _UnusableFieldError(f"{keyword}: LUTDescriptor or LUTData is missing or damaged") from None
    bits = min(max(descriptor[2], int(entries.max()).bit_length(), 1), _MOST_BITS)
    return _Table(_first_mapped(descriptor[1], values), entries, bits)


def _first_mapped(first: int, values: _Values) -> int:
    """Return the first value mapped: signed if the values can be, in whichever type the file holds its 16 bits.

    Its type follows Pixel Representation, and is written wrong often enough that only the values' range decides.
    """
    if values.min() < 0:
        return first - _WORD_VALUES if first >= _FIRST_NEGATIVE else first
    return first + _WORD_VALUES if first < 0 and first + _WORD_VALUES <= values.max() else first


def _entries(item: pydicom.Dataset, count: int, bits: int, *, is_little: bool) -> _Values:
    """Return a table's entries: 16-bit words, or bytes where there are half as many words as entries."""
    data = item.LUTData
    if isinstance(data, bytes):
        words = np.frombuffer(data[: len(data) // 2 * 2], "<u2" if is_little else ">u2")
        as_bytes = np.frombuffer(data, np.uint8)
        if not is_little and item["LUTData"].VR == "OW":
            as_bytes = words.astype("<u2").view(np.uint8)
    else:
        listed = np.atleast_1d(np.asarray(data, np.int64)) % _WORD_VALUES
        words = listed.astype(np.uint16)
        as_bytes = words.astype("<u2").view(np.uint8)
    if not len(words):
        raise ValueError("empty")
    # Two entries a word, the first in the low byte; a table of odd length has one byte more.
    packed = bits <= _BYTE_BITS and len(words) == (count + 1) // 2 < count
    return np.asarray((as_bytes if packed else words)[:count], np.float64)


def _is_little_endian(dataset: pydicom.Dataset) -> bool:
    return bool(dataset.file_meta.TransferSyntaxUID.is_little_endian)


def _window(dataset: pydicom.Dataset, values: _Values, notes: list[str]) -> _Values | None:
    """Apply the first usable window; returns None where the header has none."""
    try:
        centers, widths = _numbers(dataset, "WindowCenter"), _numbers(dataset, "WindowWidth")
    except _UnusableFieldError as error:
        notes.append(f"{error}: shown without a window")
        return None
    if len(centers) != len(widths):
        notes.append(f"{len(centers)} WindowCenter and {len(widths)} WindowWidth: only pairs are used")
    function = _function(dataset, notes) if centers and widths else "LINEAR"
    for center, width in zip(centers, widths, strict=False):
        if width >= _NARROWEST_LINEAR or (function != "LINEAR" and width > 0):
            return _through_window(values, center, width, function)
        notes.append(f"WindowWidth {width:g} is too narrow for {function}: this window is not used")
    return None


def _function(dataset: pydicom.Dataset, notes: list[str]) -> str:
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    if function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        return function
    notes.append("VOILUTFunction must be LINEAR, LINEAR_EXACT or SIGMOID: taken as LINEAR")
    return "LINEAR"


def _through_window(values: _Values, center: float, width: float, function: str) -> _Values:
    """Return grey levels 0 … 255 (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return np.asarray(255.0 / (1.0 + np.exp(-4.0 * (values - center) / width)))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1.0
    if width == 0.0:
        return np.where(values > center, 255.0, 0.0)
    return np.asarray(np.clip(((values - center) / width + 0.5) * 255.0, 0.0, 255.0))


def _spread(values: _Values, counts: npt.NDArray[np.int64]) -> _Values:
    """Return grey levels 0 … 255 from one percentile of the counted values to the other; all black if they are one."""
    order = np.argsort(values, kind="stable")
    filled = np.cumsum(counts[order])
    if not filled[-1]:
        return np.zeros(len(values))
    ends = (values[order[int(np.searchsorted(filled, part / 100 * filled[-1]))]] for part in _SPREAD_PERCENTILES)
    black, white = ends
    if white == black:
        return np.zeros(len(values))
    return np.asarray(np.clip((values - black) * (255.0 / (white - black)), 0.0, 255.0))


def _first_number(dataset: pydicom.Dataset, keyword: str) -> float | None:
    numbers = _numbers(dataset, keyword)
    return numbers[0] if numbers else None


def _numbers(dataset: pydicom.Dataset, keyword: str) -> list[float]:
    """Return a field's numbers; none where it is missing or empty."""
    try:
        value = dataset.get(keyword)
        if value is None or value == "":
            return []
        several = isinstance(value, list | tuple) or hasattr(value, "__iter__")
        numbers = [float(one) for one in (value if several and not isinstance(value, str | bytes) else [value])]
    except (AttributeError, TypeError, ValueError, OverflowError, NotImplementedError):
        raise _UnusableFieldError(f"{keyword} is not a number") from None
    if not all(map(math.isfinite, numbers)):
        raise _UnusableFieldError(f"{keyword} is not a finite number")
    return numbers
