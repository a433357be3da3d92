"""Hands finished runs to the hospitals that were on their rosters, as ``deploy/results/run_folder.py`` signed them."""

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from common.errors import ConfideError, EnrolmentError
from common.identity.enrolment import PIECE_BYTES
from common.run.delivery import DELIVERY_FILE, Delivery, read_delivery

_RUNS_FOLDER = "runs"


@dataclass(frozen=True)
class _Signed:
    """A delivery as it was read, and when its file was written."""

    written: int
    delivery: Delivery | None


class FinishedRuns:
    """The runs in a server's state folder that have ended.

    Args:
        state: the server's state folder.
        authority: the consortium's.
    """

    def __init__(self, state: Path, authority: x509.Certificate) -> None:
        self._folder = state / _RUNS_FOLDER
        self._authority = authority
        self._known: dict[Path, _Signed] = {}

    def of(self, hospital: str) -> dict[str, bytes]:
        """Return the runs that a hospital may have, each with the SHA-256 of its delivery."""
        deliveries = (self._read(path) for path in sorted(self._folder.glob(f"*/{DELIVERY_FILE}")))
        return {
            delivery.run_id: bytes.fromhex(delivery.digest())
            for delivery in deliveries
            if delivery is not None and hospital in delivery.hospitals
        }

    def piece(self, hospital: str, run_id: str, name: str, offset: int) -> bytes:
        """Return a stretch of a file of a run.

        Raises:
            EnrolmentError: there is no such run for this hospital, or no such file of it.
        """
        path = self._folder / run_id[:12] / DELIVERY_FILE
        delivery = self._read(path)
        if delivery is None or delivery.run_id != run_id or hospital not in delivery.hospitals:
            raise EnrolmentError("the server must have a finished run with this identifier for this hospital")
        if name != DELIVERY_FILE and name not in delivery.files:
            raise EnrolmentError("the file must be one that the run's delivery names")
        try:
            with (path.parent / name).open("rb") as file:
                file.seek(offset)
                return file.read(PIECE_BYTES)
        except OSError as error:
            raise EnrolmentError(f"a file of the run must be readable at the server: {error.strerror}") from None

    def _read(self, path: Path) -> Delivery | None:
        """Return what is signed in a file, None where it is not this consortium's; read again when it has changed."""
        try:
            written = path.stat().st_mtime_ns
        except OSError:
            return None
        known = self._known.get(path)
        if known is None or known.written != written:
            try:
                known = _Signed(written, read_delivery(path.read_bytes(), self._authority))
            except (ConfideError, OSError):
                known = _Signed(written, None)
            self._known[path] = known
        return known.delivery
