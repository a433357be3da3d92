"""What a DICOM header says of a radiograph's view, in the four places where modalities write it."""

import re

import pydicom

FRONTAL = "frontal"
_LATERAL, _OBLIQUE = "lateral", "oblique"

_POSITIONS = {
    "AP": FRONTAL, "PA": FRONTAL, "LLD": FRONTAL, "RLD": FRONTAL,
    "LL": _LATERAL, "RL": _LATERAL, "LAT": _LATERAL, "LLAT": _LATERAL, "RLAT": _LATERAL, "LATERAL": _LATERAL,
    "RLO": _OBLIQUE, "LLO": _OBLIQUE, "LAO": _OBLIQUE, "RAO": _OBLIQUE, "LPO": _OBLIQUE, "RPO": _OBLIQUE,
    "OBL": _OBLIQUE, "OBLIQUE": _OBLIQUE,
}  # fmt: skip
"""Values of View Position (0018,5101). A decubitus film (LLD, RLD) shows a patient on the side, from the front."""

_WORDS = {
    "LAT": _LATERAL, "LATERAL": _LATERAL, "LATERALE": _LATERAL, "SEITLICH": _LATERAL, "PROFIL": _LATERAL,
    "OBLIQUE": _OBLIQUE, "SCHRÄG": _OBLIQUE,
}  # fmt: skip
_DESCRIPTIONS = ("SeriesDescription", "ProtocolName", "AcquisitionDeviceProcessingDescription")

_SIDEWAYS = ("A", "P")
"""First letter of Patient Orientation (0020,0020) where the rows of a picture run between back and front."""


def view_of(dataset: pydicom.Dataset) -> str:
    """Return ``frontal``, or a word for another view, or '' where the header does not say.

    View Position goes before the words of View Code Sequence, Patient Orientation, and the words of a description.
    """
    position = _words(str(dataset.get("ViewPosition", "") or ""))
    if position:
        return _first(position, _POSITIONS)
    codes = dataset.get("ViewCodeSequence") or ()
    coded = _words(" ".join(str(item.get("CodeMeaning", "")) for item in codes))
    if coded:
        return _first(coded, _WORDS) or FRONTAL
    if _rows_run_to(dataset) in _SIDEWAYS:
        return _LATERAL
    return _first(_words(" ".join(str(dataset.get(keyword, "") or "") for keyword in _DESCRIPTIONS)), _WORDS)


def view_written(text: str) -> str:
    """Return what a table's words for a view mean, as :func:`view_of` does; '' where they mean none.

    >>> view_written("PA"), view_written("frontal"), view_written("AP LAT"), view_written("?")
    ('frontal', 'frontal', 'lateral', '')
    """
    return _first(_words(text), {**_WORDS, **_POSITIONS, "FRONTAL": FRONTAL})


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\W\d_]+", text.upper()) if word]


def _first(words: list[str], meanings: dict[str, str]) -> str:
    """Return what the words mean; a view beside the frontal one goes first, as in ``PA LAT``."""
    found = [meanings[word] for word in words if word in meanings]
    return next((meaning for meaning in found if meaning != FRONTAL), found[0] if found else "")


def _rows_run_to(dataset: pydicom.Dataset) -> str:
    """Return the first letter of the direction in which the rows of a picture run, '' if unknown."""
    orientation = str(dataset.get("PatientOrientation", "") or "")
    return re.sub(r"[^A-Z]", "", orientation.upper())[:1]
