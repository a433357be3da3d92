"""How long certificates and the revocation list still hold, and how much disk is free, for both sides' metrics."""

import datetime
import shutil
from pathlib import Path

from common.errors import ConfideError
from common.identity.certificates import load_certificate
from common.identity.revocation import Revocations
from common.telemetry import metric_names as names
from common.telemetry.exporter import Values

REVOCATIONS = "revocations"
"""The label of the revocation list; a certificate has its file's name without the ending."""


def show_lifetimes(values: Values, state: Path, certificate: str, now: datetime.datetime) -> None:
    """Set what is left of a role's own certificate and of its revocation list; what is not there is not shown.

    Args:
        values: to set them in.
        state: the role's state folder.
        certificate: the name of its own certificate's file there.
        now: the current time.
    """
    try:
        own = load_certificate(state / certificate)
        _show(values, Path(certificate).stem, own.not_valid_before_utc, own.not_valid_after_utc, now)
        newest = Revocations(state, load_certificate(state / "ca.pem")).newest()
    except (ConfideError, OSError):
        return
    if newest is not None:
        _show(values, REVOCATIONS, newest.issued, newest.next_update, now)


def show_disk(values: Values, state: Path) -> None:
    """Set how much of the disk with the state folder is free; nothing where the system does not say."""
    try:
        usage = shutil.disk_usage(state)
    except OSError:
        return
    values.set(names.DISK_FREE, usage.free / usage.total)


def _show(values: Values, of: str, begins: datetime.datetime, ends: datetime.datetime, now: datetime.datetime) -> None:
    values.set(names.CERTIFICATE_LEFT, max(0.0, (ends - now) / (ends - begins)), of)
    values.set(names.CERTIFICATE_EXPIRES, ends.timestamp(), of)
