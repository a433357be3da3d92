"""What every reader of a kind of image file offers, and what its clean copies are made with."""

from dataclasses import dataclass, field
from typing import Protocol

from pydicom.uid import generate_uid

from client.data.pixels import Picture

HEAD_BYTES = 132
"""The bytes of a file's head that every reader needs to recognise its own files: a DICOM file's mark ends there."""


@dataclass
class Pseudonyms:
    """New names for patients and UIDs, kept for one copy and then forgotten."""

    patients: dict[str, str] = field(default_factory=dict, repr=False)
    uids: dict[str, str] = field(default_factory=dict, repr=False)

    def patient(self, original: str) -> str:
        """Return a patient's pseudonym, or '' if the patient is unknown."""
        return self.patients.setdefault(original, f"patient-{len(self.patients) + 1:06d}") if original else ""

    def uid(self, original: str) -> str:
        """Return the new UID that stands for an original one; where there was none, one of its own."""
        new = generate_uid(prefix=None)  # of a random UUID (PS3.5, B.2)
        return self.uids.setdefault(original, new) if original else new


@dataclass(frozen=True)
class CleanCopy:
    """One file without personal data."""

    ending: str
    content: bytes = field(repr=False)
    original: str = field(repr=False)
    """The patient's identifier, which goes no further than the pseudonyms."""


class Reader(Protocol):
    """One kind of image file; listing, checking, cleaning and prediction ask it.

    Attributes:
        name: as a person says it.
        endings: of file names, in small letters; a file that has one is an image or damaged.
    """

    name: str
    endings: frozenset[str]

    def recognises(self, head: bytes) -> bool:
        """Decide by the first ``HEAD_BYTES`` of a file, whatever its name."""

    def read(self, encoded: bytes, channels: int) -> Picture:
        """Decode a whole file for a run with this many channels.

        Raises:
            UnusableImageError: it is damaged, or not what such a run can use.
        """

    def clean(self, encoded: bytes, patient: str, pseudonyms: Pseudonyms) -> CleanCopy:
        """Make a copy without personal data.

        Args:
            encoded: the whole file.
            patient: by the manifest, '' if unknown.
            pseudonyms: given so far.

        Raises:
            UnusableImageError: it is damaged, or holds no image.
        """
