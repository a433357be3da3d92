"""Whether a run's events are those its server recorded, and its figures what they say."""

import hashlib
import json
from pathlib import Path

from common.errors import AuditError, ConfideError
from common.run.told_run import Chained, check_told
from common.telemetry.events import EVENTS_FILE
from deploy.audit.record import RunRecord
from deploy.results.history import RunHistory
from deploy.results.outputs import METRICS_FILE, SUMMARY_FILE, metrics_table, summary


def check_figures(run: Path, record: RunRecord) -> None:
    """Check ``events.jsonl`` against the server's chain, and ``metrics.csv`` and ``summary.json`` against the events.

    What ``summary.json`` says of versions and the machine is not checked: it is the claim of its writer.

    Raises:
        AuditError: one of them was changed; the message names it.
    """
    try:
        _check_events((run / EVENTS_FILE).read_bytes(), record)
        check_told(run / EVENTS_FILE, chained(record))
        history = RunHistory.read(run)
        if (run / METRICS_FILE).exists():
            _check_metrics((run / METRICS_FILE).read_bytes(), history, record)
        if (run / SUMMARY_FILE).exists() and record.is_told_to_its_end:
            _check_summary((run / SUMMARY_FILE).read_bytes(), history)
    except OSError as error:
        raise AuditError(f"{error.filename} must be readable: {error.strerror}") from None
    except ConfideError as error:
        raise AuditError(str(error)) from None


def chained(record: RunRecord) -> Chained:
    """Return what the events of a run are compared with."""
    steps = None if record.finished is None else record.finished.steps
    return Chained(record.descriptions, record.data_set, record.sums, steps)


def _check_events(content: bytes, record: RunRecord) -> None:
    told = record.told[-1]
    if told.length_bytes > len(content) and not record.is_told_to_its_end and len(record.told) > 1:
        told = record.told[-2]  # A kill can come between the chain's entry and the line.
    is_whole = len(content) == told.length_bytes or not record.is_told_to_its_end
    if not is_whole or hashlib.sha256(content[: told.length_bytes]).hexdigest() != told.events_hash:
        raise AuditError(f"{EVENTS_FILE}: must hold what the server recorded; it was changed")


def _check_metrics(content: bytes, history: RunHistory, record: RunRecord) -> None:
    expected = metrics_table(history.rounds).encode()
    if content != expected and (record.is_told_to_its_end or not expected.startswith(content)):
        raise AuditError(f"{METRICS_FILE}: must hold the figures in {EVENTS_FILE}; it was changed")


def _check_summary(content: bytes, history: RunHistory) -> None:
    try:
        tree = json.loads(content)
        own = {key: tree[key] for key in ("versions", "machine")}
    except (LookupError, RecursionError, TypeError, ValueError):
        raise AuditError(f"{SUMMARY_FILE}: must be the summary of the run; it was changed") from None
    expected = json.dumps({**summary(history), **own}, indent=2) + "\n"
    if content != expected.encode():
        raise AuditError(f"{SUMMARY_FILE}: must say what {EVENTS_FILE} says; it was changed")
