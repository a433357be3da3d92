"""Which rounds this hospital has answered, on its own disk: a restart must not make it answer one twice."""

import json
import logging
from pathlib import Path

from common.errors import RunError
from common.files import write_private
from common.secagg.answered_rounds import AnsweredRounds
from common.secagg.phases import Phase

VERSION = 1

_LOG = logging.getLogger("confide.hospital")


class AnsweredRoundsFile:
    """The durable :class:`~common.secagg.answered_rounds.AnsweredRounds` of one hospital."""

    def __init__(self, path: Path, hospital: str) -> None:
        """Read the record, or begin one where there is none.

        Raises:
            RunError: the file is there and is not such a record; answering on without it could reveal an input.
        """
        self._path = path
        self._hospital = hospital
        self._answered = _read(path)

    def check(self, run_id: str, round_number: int, phase: Phase) -> None:
        """Raise :class:`AlreadyAnsweredError` if this phase of this round has been answered before."""
        self._answered.check_and_advance(run_id, round_number, phase, self._hospital)

    def advance(self, run_id: str, round_number: int, phase: Phase) -> None:
        """Note, durably and before anything is computed, that this phase of this round is being answered.

        Raises:
            AlreadyAnsweredError: it has been answered before.
            RunError: the disk refuses; nothing may be answered then.
        """
        answered = self._answered.check_and_advance(run_id, round_number, phase, self._hospital)
        rows = [[run, name, number] for (run, name), number in sorted(answered.highest.items())]
        try:
            write_private(self._path, json.dumps({"version": VERSION, "answered": rows}).encode())
        except OSError as error:
            # Why is for this hospital's own operator.
            _LOG.error("%s must be writable: %s; free space", self._path.name, error.strerror)
            raise RunError(f"{self._hospital} could not note its answer on disk; it does not answer") from error
        self._answered = answered


def _read(path: Path) -> AnsweredRounds:
    try:
        record = json.loads(path.read_bytes())
        if record["version"] != VERSION:
            raise RunError(f"{path.name} must be of version {VERSION}; it was written by another version of Confide")
        return AnsweredRounds({(str(run), str(Phase(name))): int(number) for run, name, number in record["answered"]})
    except FileNotFoundError:
        return AnsweredRounds()
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise RunError(
            f"{path.name} must be this hospital's record of answered rounds and cannot be read; "
            "restore it, or remove it once no run of this consortium is under way"
        ) from None
