"""What a hospital keeps of finished runs: the model, signed by the server, with the record it was verified against.

::

    runs/RUN/            the files that the server signed, ca.pem, and received.json, which says what was checked
    runs/.RUNID.part/    one on its way; a kill or a broken line costs the piece in hand
    runs/refused.json    what was offered and did not verify, with the reason; not fetched again

RUN is the first twelve digits of a run's identifier, which the server chose. A run whose digits are taken by another
that is kept is refused: it neither replaces that nor passes for it.

A hospital fetches runs that its own audit chain says it joined, and no others: that bounds what a server can store on
its disk. A request names a run, a file and an offset, all of them the server's own words; nothing in it, and nothing in
when it is sent, depends on the hospital's data.
"""

import datetime
import logging
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final, Literal

from cryptography import x509
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.enrolment import EnrolmentService
from client.received_run import Checked, check_received
from common.audit.chain import AUDIT_FILE, Chain, read_chain
from common.audit.entries import Hash, JoinedRun
from common.complaints import complaint
from common.config import RunId
from common.errors import AuditError, ConfideError, IdentityError, RunError
from common.files import make_private_folder, sync_folder, write_private
from common.identity.certificates import HospitalIdentity, certificate_pem
from common.run.delivery import (
    AUTHORITY_FILE,
    DELIVERY_FILE,
    MAXIMUM_DELIVERY_BYTES,
    Delivery,
    file_fact,
    read_delivery,
)

VERSION: Final = 1
RUNS_FOLDER = "runs"
"""A folder in a hospital's state folder."""
RECEIVED_FILE = "received.json"
REFUSED_FILE = "refused.json"

_NAME_DIGITS = 12
_DISK_RESERVE_BYTES = 256 * 2**20
"""What a run that is received must leave free: the ledger and the audit chain must stay writable."""

_LOG = logging.getLogger("confide.standing")


class ReceivedRun(BaseModel):
    """``received.json``: what was received, and what was found to hold of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = VERSION
    run_id: RunId
    delivery: Hash
    """The SHA-256 of the delivery."""
    time: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """When it was received, Unix seconds."""
    task: str
    steps: Annotated[int, Field(ge=0)]
    rounds: Annotated[int, Field(ge=0)]
    """Sums with this hospital's vector, each compared with its own chain."""
    last_step_seen: Annotated[int, Field(ge=0)]
    """The newest step whose model the hospital was given in a round."""

    @property
    def has_seen_model(self) -> bool:
        """Whether the hospital itself was given the final model in a round, to measure it."""
        return self.last_step_seen == self.steps


class RefusedRun(BaseModel):
    """A run that was offered and did not verify."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    delivery: Hash
    reason: str


class _RefusedRuns(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = VERSION
    runs: dict[RunId, RefusedRun] = Field(default_factory=dict)


def folder_of(state: Path, run_id: str) -> Path:
    """Return where a run is kept."""
    return state / RUNS_FOLDER / run_id[:_NAME_DIGITS]


def kept_runs(state: Path) -> tuple[ReceivedRun, ...]:
    """Return the runs that this hospital keeps, the oldest first.

    Raises:
        RunError: a ``received.json`` cannot be read.
    """
    # Names that begin with a dot are of exchanges that a kill cut short.
    found = [read_received(path.parent) for path in (state / RUNS_FOLDER).glob(f"[!.]*/{RECEIVED_FILE}")]
    return tuple(sorted(found, key=lambda received: received.time))


def read_received(folder: Path) -> ReceivedRun:
    """Return what stands in a kept run's ``received.json``.

    Raises:
        RunError: it cannot be read.
    """
    try:
        return ReceivedRun.model_validate_json((folder / RECEIVED_FILE).read_bytes())
    except OSError as error:
        raise RunError(f"{RECEIVED_FILE} must be readable: {error.strerror}") from None
    except ValidationError as error:
        raise RunError(f"{RECEIVED_FILE} must be of this version; {complaint(error, 'the file')}") from None


def refused_runs(state: Path) -> dict[str, RefusedRun]:
    """Return what was offered and did not verify, by run; nothing where that cannot be read."""
    with suppress(OSError, ValidationError):
        return _RefusedRuns.model_validate_json((state / RUNS_FOLDER / REFUSED_FILE).read_bytes()).runs
    return {}


class RunReceiver:
    """Receives finished runs, a few pieces at a time.

    Args:
        state: the hospital's state folder.
        authority: the consortium's.
        service: the server's enrolment service.
    """

    def __init__(self, state: Path, authority: x509.Certificate, service: EnrolmentService) -> None:
        self._state = state
        self._authority = authority
        self._service = service
        self._joined: tuple[int, frozenset[str]] = (-1, frozenset())
        self._put_back()

    def advance(self, identity: HospitalIdentity, seconds: float) -> None:
        """Fetch what the server offers and this hospital lacks, for about this long; the rest follows at the next call.

        Raises:
            ConfideError: the server cannot be reached or refuses, or the disk is full.
            OSError: the disk refuses.
        """
        give_up = time.monotonic() + seconds
        for run_id, digest in sorted(self._service.results(identity).items()):
            if digest.hex() == self._kept(run_id):
                self._forget_refusal(run_id)  # Of another delivery, which the server no longer offers.
                continue
            if digest.hex() == self._refused(run_id) or run_id not in self._runs_joined():
                continue
            if (taken := self._taken_by(run_id)) is not None:
                self._refuse(
                    run_id,
                    digest.hex(),
                    f"a run's first {_NAME_DIGITS} digits must be its own, got those of run {taken}, which is kept "
                    f"here; move its folder elsewhere to have this one, and remove it from {REFUSED_FILE}",
                )
                continue
            if not self._fetch(identity, run_id, digest.hex(), give_up):
                return
            self._settle(identity, run_id, digest.hex())

    def _kept(self, run_id: str) -> str | None:
        with suppress(RunError):
            kept = read_received(folder_of(self._state, run_id))
            return kept.delivery if kept.run_id == run_id else None
        return None

    def _taken_by(self, run_id: str) -> str | None:
        """Return which other run is kept under the digits of this one, None where there is none."""
        with suppress(RunError):
            kept = read_received(folder_of(self._state, run_id)).run_id
            return None if kept == run_id else kept
        return None

    def _refused(self, run_id: str) -> str | None:
        refused = refused_runs(self._state).get(run_id)
        return None if refused is None else refused.delivery

    def _runs_joined(self) -> frozenset[str]:
        """Return the runs that this hospital's own chain says it joined."""
        path = self._state / AUDIT_FILE
        size = path.stat().st_size if path.exists() else 0
        if self._joined[0] != size:
            chain = self._own_chain()
            joined = () if chain is None else (entry.body for entry in chain.entries)
            self._joined = size, frozenset(body.run_id for body in joined if isinstance(body, JoinedRun))
        return self._joined[1]

    def _own_chain(self) -> Chain | None:
        """Return this hospital's chain without a line that is being written, None where it has none."""
        try:
            content = (self._state / AUDIT_FILE).read_bytes()
        except FileNotFoundError:
            return None
        whole = content[: content.rfind(b"\n") + 1]
        return read_chain(whole, f"this hospital's {AUDIT_FILE}", self._authority) if whole else None

    def _fetch(self, identity: HospitalIdentity, run_id: str, digest: str, give_up: float) -> bool:
        """Bring a run's files, from where the last call left off; returns whether they are all here."""
        part = self._part(run_id)
        if not (part / DELIVERY_FILE).exists() or file_fact(part / DELIVERY_FILE).sha256 != digest:
            shutil.rmtree(part, ignore_errors=True)
            make_private_folder(part)
            content = self._service.piece(identity, run_id, DELIVERY_FILE, 0)
            write_private(part / DELIVERY_FILE, content[:MAXIMUM_DELIVERY_BYTES])
        try:
            delivery = self._delivery(part)
        except (RunError, IdentityError) as error:
            self._refuse(run_id, digest, str(error))
            return False
        self._require_room(part, delivery)
        for name, fact in delivery.files.items():
            while (done := self._length(part / name)) < fact.length_bytes:
                if time.monotonic() > give_up:
                    return False
                # A chain may have grown since it was signed.
                content = self._service.piece(identity, run_id, name, done)[: fact.length_bytes - done]
                if not content:
                    shutil.rmtree(part, ignore_errors=True)  # It was written anew meanwhile; another delivery follows.
                    return False
                _append(part / name, content)
        return True

    def _settle(self, identity: HospitalIdentity, run_id: str, digest: str) -> None:
        """Verify a run whose files are here, and keep it or say why not."""
        part = self._part(run_id)
        own = self._own_chain()
        try:
            delivery = self._delivery(part)
            if own is None or own.party != identity.name or delivery.run_id != run_id:
                raise AuditError("the run must be one that this hospital's own chain records")
            self._require_extension(run_id, part)
            checked = check_received(part, delivery, own, self._authority)
        except ConfideError as error:
            self._refuse(run_id, digest, str(error))
            return
        self._keep(run_id, digest, checked)

    def _require_extension(self, run_id: str, part: Path) -> None:
        """Refuse another past of a run that is kept: the server's chain may only have grown."""
        kept = folder_of(self._state, run_id) / AUDIT_FILE
        if kept.exists() and not (part / AUDIT_FILE).read_bytes().startswith(kept.read_bytes()):
            raise AuditError("the server's chain must go on from the one that this hospital keeps of the run")

    def _keep(self, run_id: str, digest: str, checked: Checked) -> None:
        part, place = self._part(run_id), folder_of(self._state, run_id)
        received = ReceivedRun(
            run_id=run_id,
            delivery=digest,
            time=datetime.datetime.now(datetime.UTC).timestamp(),
            task=checked.task,
            steps=checked.steps,
            rounds=checked.rounds,
            last_step_seen=checked.last_step_seen,
        )
        write_private(part / AUTHORITY_FILE, certificate_pem(self._authority))
        write_private(part / RECEIVED_FILE, received.model_dump_json(indent=2).encode())
        self._forget_refusal(run_id)
        old = self._old(run_id)
        shutil.rmtree(old, ignore_errors=True)
        if place.exists():
            place.rename(old)
        part.rename(place)
        sync_folder(place.parent)
        shutil.rmtree(old, ignore_errors=True)
        _LOG.info("the model of run %s is here and verified: confide hospital model show %s", run_id, place.name)

    def _refuse(self, run_id: str, digest: str, reason: str) -> None:
        _LOG.error("what the server hands over of run %s is refused: %s", run_id, reason)
        self._write_refused({**refused_runs(self._state), run_id: RefusedRun(delivery=digest, reason=reason)})
        shutil.rmtree(self._part(run_id), ignore_errors=True)

    def _forget_refusal(self, run_id: str) -> None:
        """Take a run off the list of what was refused: what the server offers now holds. The log has the reason."""
        runs = refused_runs(self._state)
        if runs.pop(run_id, None) is not None:
            self._write_refused(runs)

    def _write_refused(self, runs: dict[str, RefusedRun]) -> None:
        write_private(self._state / RUNS_FOLDER / REFUSED_FILE, _RefusedRuns(runs=runs).model_dump_json().encode())

    def _require_room(self, part: Path, delivery: Delivery) -> None:
        missing = sum(fact.length_bytes - self._length(part / name) for name, fact in delivery.files.items())
        free = shutil.disk_usage(part).free
        if free < missing + _DISK_RESERVE_BYTES:
            needed = (missing + _DISK_RESERVE_BYTES) // 2**20
            raise RunError(f"a finished run needs {needed} MiB of disk, {free // 2**20} MiB are free; free space")

    def _put_back(self) -> None:
        """Undo an exchange of two folders that a kill cut short."""
        for old in (self._state / RUNS_FOLDER).glob(".*.old"):
            place = old.with_name(old.name[1:].removesuffix(".old")[:_NAME_DIGITS])
            if place.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.rename(place)

    def _delivery(self, part: Path) -> Delivery:
        return read_delivery((part / DELIVERY_FILE).read_bytes(), self._authority)

    def _length(self, path: Path) -> int:
        return path.stat().st_size if path.exists() else 0

    def _part(self, run_id: str) -> Path:
        return self._state / RUNS_FOLDER / f".{run_id}.part"

    def _old(self, run_id: str) -> Path:
        return self._state / RUNS_FOLDER / f".{run_id}.old"


def _append(path: Path, content: bytes) -> None:
    path.touch(0o600)
    with path.open("ab") as file:
        file.write(content)
