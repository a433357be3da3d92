"""Which hospitals this one has found to have cheated, on its own disk: it takes part in no round with them any more."""

import json
import logging
from collections.abc import Collection, Iterable
from pathlib import Path

from common.errors import RunError
from common.files import write_private
from common.secagg.errors import NamedHospitalError, Place

NAMED_FILE = "named-hospitals.json"

VERSION = 1

_LOG = logging.getLogger("confide.hospital")


class NamedHospitals:
    """The durable list of one hospital, of (run id, hospital)."""

    def __init__(self, path: Path, hospital: str) -> None:
        """Read the list, or begin one where there is none.

        Raises:
            RunError: the file is there and is not such a list.
        """
        self._path = path
        self._hospital = hospital
        self._named = _read(path)

    def check(self, run_id: str, cohort: Iterable[str], place: Place) -> None:
        """Raise :class:`NamedHospitalError` for a cohort with a hospital that has cheated in this run."""
        for member in cohort:
            if (run_id, member) in self._named:
                raise NamedHospitalError(
                    place, "a hospital that was found to have cheated must be in no later round of the run", member
                )

    def knows(self, run_id: str, hospital: str) -> bool:
        """Say whether a hospital is on the list for a run."""
        return (run_id, hospital) in self._named

    def add(self, run_id: str, hospitals: Collection[str]) -> None:
        """Note, durably, who has cheated in a run.

        Raises:
            RunError: the disk refuses.
        """
        named = self._named | {(run_id, hospital) for hospital in hospitals}
        try:
            rows = [list(each) for each in sorted(named)]
            write_private(self._path, json.dumps({"version": VERSION, "named": rows}).encode())
        except OSError as error:
            # Why is for this hospital's own operator.
            _LOG.error("%s must be writable: %s; free space", self._path.name, error.strerror)
            raise RunError(f"{self._hospital} could not note on disk who has cheated; it does not answer") from error
        self._named = named


def _read(path: Path) -> frozenset[tuple[str, str]]:
    try:
        record = json.loads(path.read_bytes())
        if record["version"] != VERSION:
            raise RunError(f"{path.name} must be of version {VERSION}; it was written by another version of Confide")
        return frozenset((str(run), str(hospital)) for run, hospital in record["named"])
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise RunError(
            f"{path.name} must be this hospital's list of hospitals that have cheated and cannot be read; "
            "restore it, or remove it once no run of this consortium is under way"
        ) from None
