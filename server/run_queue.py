"""A consortium's runs, from their proposal to their end, as files in the server's state folder.

::

    propose ──> proposed ──> agreed ──> running ──> finished
                   │            ^          ├─────> stopped ──┐
                   │            │          └─────> failed ───┤
                   │            └──────── resume ────────────┘
                   └──> declined, lapsed

A run has a folder of its own. What describes it, ``config.yaml`` and ``proposal.json``, is written once and never
changed: a changed run is another one. The supervisor, the service of enrolment and the ServerApp read and write under
one lock.
"""

import datetime
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec

from common.config import Config, RunDescription, load_config
from common.errors import ConfigError, RunError
from common.files import hold, make_private_folder, write_private
from common.identity.certificates import read_certificate
from common.models.first_model import FIRST_MODEL_FILE
from common.run.proposal import MOST_OPEN, OPEN, Proposal, RunAnswer, RunState, terms_hash

RUNS_FOLDER = "runs"
PROPOSAL_FILE, CONFIG_FILE = "proposal.json", "config.yaml"
_RECORD_FILE, _ANSWERS_FOLDER = "run.json", "answers"
_LOCK_FILE = "runs.lock"

FOLDER_DIGITS = 12
"""So many digits of a run's identifier name its folder, and name it in commands."""


class KeptRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is remembered of a run beside its description."""

    run_id: str
    number: int
    """Counts the consortium's runs from 1; the order of the queue."""
    state: RunState
    proposed: float
    data_set: str
    classes: tuple[str, ...]
    channels: int
    hospitals: tuple[str, ...] = ()
    """Who must agree; empty where nobody is asked, because all are enrolled beforehand."""
    until: int | None = None
    held: bool = False
    """It waits for ``confide run start`` once all have agreed."""
    stop: bool = False
    """It ends after its round."""
    reason: str = ""
    """Why it ended, or cannot begin."""
    terms: str = ""
    """The hash of its terms; empty before a run that nobody proposed has begun."""
    version: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1


@dataclass(frozen=True)
class RunProposal:
    """What a person proposes.

    Attributes:
        config: of the run.
        description: what hospitals agree to.
        data_set: what outputs call their data.
        hospitals: who must agree, in order.
        until: Unix seconds, when the agreement ends.
        held: it waits for a person to start it.
        first_model: the file of the model that it begins with, which the queue takes; None where it is made at the
            run's start.
    """

    config: Config = field(repr=False)
    description: RunDescription = field(repr=False)
    data_set: str
    hospitals: tuple[str, ...]
    until: int
    held: bool = False
    first_model: Path | None = None


class RunQueue:
    """The runs of one server."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._folder = state / RUNS_FOLDER

    def propose(self, asked: RunProposal, now: datetime.datetime) -> KeptRun:
        """Enter a new run.

        Raises:
            RunError: too many are open, or it names fewer hospitals than may train, or one that is no member.
            ConfigError: its identifier is another run's.
        """
        try:
            proposal = Proposal(
                description=asked.description, data_set=asked.data_set, hospitals=asked.hospitals, until=asked.until
            )
        except ValueError as error:
            raise RunError(str(error).splitlines()[-1].strip()) from None
        with self._locked():
            runs = self._all()
            if sum(run.state in OPEN for run in runs) >= MOST_OPEN:
                raise RunError(f"at most {MOST_OPEN} runs may be open at once; `confide run stop` or wait")
            kept = KeptRun(
                run_id=proposal.run_id,
                number=1 + max((run.number for run in runs), default=0),
                state=RunState.PROPOSED,
                proposed=now.timestamp(),
                data_set=asked.data_set,
                classes=asked.description.classes,
                channels=asked.description.channels,
                hospitals=proposal.hospitals,
                until=proposal.until,
                held=asked.held,
                terms=terms_hash(asked.description),
            )
            folder = self.folder(kept.run_id)
            if (folder / _RECORD_FILE).exists():
                raise ConfigError(f"run {kept.run_id[:FOLDER_DIGITS]} is there already; propose another one")
            write_private(folder / CONFIG_FILE, asked.config.as_yaml())
            write_private(folder / PROPOSAL_FILE, proposal.encode())
            if asked.first_model is not None:
                asked.first_model.replace(folder / FIRST_MODEL_FILE)
            self._write(kept)
            return kept

    def adopt(self, run_id: str, data_set: str, classes: tuple[str, ...], channels: int) -> KeptRun:
        """Return a run that nobody is asked about, because all hospitals were enrolled beforehand; it is due at once.

        One that is not finished goes on: a person who starts the server again has corrected what ended it.
        """
        with self._locked():
            if (self.folder(run_id) / _RECORD_FILE).exists():
                kept = self._read(run_id)
                if kept.state in {RunState.FAILED, RunState.STOPPED, RunState.RUNNING}:
                    kept = msgspec.structs.replace(kept, state=RunState.AGREED, stop=False, reason="")
            else:
                kept = KeptRun(
                    run_id=run_id, number=1, state=RunState.AGREED, proposed=0.0, data_set=data_set, classes=classes,
                    channels=channels,
                )  # fmt: skip
            self._write(kept)
            return kept

    def all(self) -> tuple[KeptRun, ...]:
        """Return all runs in the order in which they were proposed."""
        with self._locked():
            return self._all()

    def find(self, name: str) -> KeptRun:
        """Return the run of which ``name`` is the number, or the beginning of its identifier.

        Raises:
            RunError: there is none, or more than one.
        """
        runs = self.all()
        found = [run for run in runs if str(run.number) == name]
        found = found or [run for run in runs if name and run.run_id.startswith(name)]
        if len(found) != 1:
            raise RunError(
                f"a run must be named by its number or the beginning of its identifier; {len(found)} runs are called "
                f"{name!r}; see `confide run list`"
            )
        return found[0]

    def get(self, run_id: str) -> KeptRun:
        """Return a run by its whole identifier, or raise :class:`RunError`."""
        with self._locked():
            return self._read(run_id)

    def folder(self, run_id: str) -> Path:
        """Return a run's own folder."""
        return self._folder / run_id[:FOLDER_DIGITS]

    def config(self, run_id: str) -> Config:
        """Return the configuration that a run was proposed with."""
        return load_config(self.folder(run_id) / CONFIG_FILE)

    def proposal(self, run_id: str) -> Proposal | None:
        """Return what hospitals were asked, None where nobody was."""
        path = self.folder(run_id) / PROPOSAL_FILE
        return Proposal.decode(path.read_bytes()) if path.exists() else None

    def notice(self, run_id: str, hospital: str) -> tuple[str, bool] | None:
        """Return the hash of a run's proposal and whether a hospital has answered it; None where nobody was asked."""
        try:
            encoded = (self.folder(run_id) / PROPOSAL_FILE).read_bytes()
        except FileNotFoundError:
            return None
        return hashlib.sha256(encoded).hexdigest(), self._answer(run_id, hospital).exists()

    def answers(self, run_id: str) -> dict[str, RunAnswer]:
        """Return what hospitals have answered, by their names."""
        paths = sorted((self.folder(run_id) / _ANSWERS_FOLDER).glob("*.json"))
        return {path.stem: RunAnswer.decode(path.read_bytes()) for path in paths}

    def agreed(self, run_id: str) -> frozenset[str] | None:
        """Return who may take part in a run; None where nobody was asked, and all may."""
        if not (self.folder(run_id) / PROPOSAL_FILE).exists():
            return None
        return frozenset(name for name, answer in self.answers(run_id).items() if answer.agreed)

    def take_answer(self, answer: RunAnswer, certificate: bytes) -> None:
        """Keep a member's answer; the first one counts.

        Args:
            answer: as it came.
            certificate: of the member, PEM, from the roster.

        Raises:
            IdentityError: it is not signed by the member.
            RunError: it is not an answer to this server's proposal, or another one than before.
        """
        answer.verify(read_certificate(certificate).public_key())  # type: ignore[arg-type]  # the roster's are Ed25519
        with self._locked():
            self._read(answer.run_id)
            proposal = self.proposal(answer.run_id)
            if proposal is None or proposal.hash() != answer.proposal:
                raise RunError(f"{answer.hospital} must answer what this server proposed, got an answer to another run")
            path = self._answer(answer.run_id, answer.hospital)
            if path.exists() and path.read_bytes() != answer.encode():
                raise RunError(f"{answer.hospital} must answer once, got a second answer that differs")
            write_private(path, answer.encode())

    def settle(self, now: datetime.datetime) -> tuple[KeptRun, ...]:
        """Take note of the answers and of the time; returns the runs that changed their state."""
        with self._locked():
            changed = []
            for run in self._all():
                settled = self._settled(run, now)
                if settled != run:
                    self._write(settled)
                    changed.append(settled)
            return tuple(changed)

    def due(self) -> KeptRun | None:
        """Return the run whose turn it is: one that was going on, or else the first that all have agreed to."""
        runs = self.all()
        going_on = [run for run in runs if run.state is RunState.RUNNING]
        waiting = [run for run in runs if run.state is RunState.AGREED and not run.held]
        return next(iter((*going_on, *waiting)), None)

    def begin(self, run_id: str) -> KeptRun:
        """Note that a run is going on."""
        return self._change(run_id, state=RunState.RUNNING, reason="")

    def end(self, run_id: str, state: RunState, reason: str) -> KeptRun:
        """Note that a run has ended, for good or for now."""
        return self._change(run_id, state=state, reason=reason, stop=False)

    def start(self, run_id: str) -> KeptRun:
        """Let a run begin that was held back.

        Raises:
            RunError: not all that it names have agreed, or it does not wait.
        """
        run = self.get(run_id)
        if run.state is RunState.PROPOSED:
            missing = sorted(set(run.hospitals) - (self.agreed(run_id) or frozenset()))
            raise RunError(
                f"a run starts when all that it names have agreed; {', '.join(missing)} have not; to do without them, "
                "propose a run that does not name them"
            )
        if run.state is not RunState.AGREED:
            raise RunError(f"a run must wait for its start, this one is {run.state}{_because(run)}")
        return self._change(run_id, held=False)

    def stop(self, run_id: str) -> KeptRun:
        """Let a run end after its round, or take one that has not begun from the queue.

        Raises:
            RunError: it has ended.
        """
        run = self.get(run_id)
        match run.state:
            case RunState.RUNNING:
                return self._change(run_id, stop=True)
            case RunState.PROPOSED | RunState.AGREED:
                return self._change(run_id, state=RunState.STOPPED, reason="stopped before it began")
            case _:
                raise RunError(f"a run must be going on or wait to be stopped, this one is {run.state}{_because(run)}")

    def resume(self, run_id: str) -> KeptRun:
        """Let a run go on that was stopped or has failed, when its turn comes.

        Raises:
            RunError: it is neither.
        """
        run = self.get(run_id)
        if run.state is RunState.RUNNING and run.stop:
            return self._change(run_id, stop=False)
        if run.state is RunState.FINISHED:
            raise RunError("a finished run is not changed any more; propose another one")
        if run.state not in {RunState.STOPPED, RunState.FAILED}:
            raise RunError(f"a run must be stopped or have failed to go on, this one is {run.state}{_because(run)}")
        state = RunState.AGREED if self._all_agree(run) else RunState.PROPOSED
        return self._change(run_id, state=state, stop=False, held=False, reason="")

    def must_stop(self, run_id: str) -> bool:
        """Return whether a run is to end after its round."""
        return self.get(run_id).stop

    def hold_terms(self, run_id: str, description: RunDescription) -> None:
        """Refuse to go on with a run under other terms than it was proposed with, or has begun with.

        Raises:
            RunError: its configuration was changed.
        """
        terms = terms_hash(description)
        with self._locked():
            run = self._read(run_id)
            if run.terms and run.terms != terms:
                raise RunError(
                    "a run must go on with the configuration that it was proposed with, got a changed one; put the "
                    "old one back, or propose another run"
                )
            if not run.terms:
                self._write(msgspec.structs.replace(run, terms=terms))

    def _answer(self, run_id: str, hospital: str) -> Path:
        return self.folder(run_id) / _ANSWERS_FOLDER / f"{hospital}.json"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock, which lies beside the folder: that holds runs alone."""
        make_private_folder(self._state)
        with hold(self._state / _LOCK_FILE):
            yield

    def _settled(self, run: KeptRun, now: datetime.datetime) -> KeptRun:
        if run.state in {RunState.PROPOSED, RunState.AGREED} and run.until is not None and now.timestamp() > run.until:
            return msgspec.structs.replace(run, state=RunState.LAPSED, reason="not begun before the agreement's end")
        if run.state is not RunState.PROPOSED:
            return run
        declined = [answer for answer in self.answers(run.run_id).values() if not answer.agreed]
        against = [f"{answer.hospital}: {answer.reason}" for answer in declined if answer.hospital in run.hospitals]
        if against:
            return msgspec.structs.replace(run, state=RunState.DECLINED, reason="; ".join(against))
        return msgspec.structs.replace(run, state=RunState.AGREED) if self._all_agree(run) else run

    def _all_agree(self, run: KeptRun) -> bool:
        agreed = self.agreed(run.run_id)
        return agreed is None or set(run.hospitals) <= agreed

    def _change(self, run_id: str, **changes: object) -> KeptRun:
        with self._locked():
            run = msgspec.structs.replace(self._read(run_id), **changes)
            self._write(run)
            return run

    def _all(self) -> tuple[KeptRun, ...]:
        records = sorted(self._folder.glob(f"*/{_RECORD_FILE}"))
        return tuple(sorted((_decoded(path) for path in records), key=lambda run: run.number))

    def _read(self, run_id: str) -> KeptRun:
        return _decoded(self.folder(run_id) / _RECORD_FILE)

    def _write(self, run: KeptRun) -> None:
        write_private(self.folder(run.run_id) / _RECORD_FILE, msgspec.json.encode(run))


def _because(run: KeptRun) -> str:
    return f": {run.reason}" if run.reason else ""


def _decoded(path: Path) -> KeptRun:
    try:
        return msgspec.json.decode(path.read_bytes(), type=KeptRun)
    except FileNotFoundError:
        raise RunError("the server must know the run; see `confide run list`") from None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RunError(f"the record of run {path.parent.name} cannot be read: {error}; restore a backup") from None
