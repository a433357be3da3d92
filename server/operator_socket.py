"""How the server's own operator speaks to a running server: one request and one reply over a Unix socket.

The socket lies in the state folder with mode 0600. The kernel says which user connects; only the server's own user and
root are answered. Whoever is that user can change the state folder anyway, so nothing else is asked for.
"""

import datetime
import hashlib
import os
import secrets
import socket
import socketserver
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import msgspec
from pydantic import ValidationError

from common.complaints import complaint
from common.config import Config, RunDescription, replace
from common.errors import ConfideError, ConfigError, RunError
from common.files import make_private_folder, socket_name
from common.identity.certificates import load_certificate
from common.models.first_model import FirstModel
from common.run.proposal import LONGEST_PROPOSAL_BYTES, RunAnswer, RunState
from common.run.terms import claims_of, describe
from common.run.versions import SPOKEN, version_for_run
from common.settings import SERVER_SETTINGS_FILE, ServerSettings
from common.telemetry.events import EVENTS_FILE, EventFile, RoundDone
from server.members.roster import Members, Membership
from server.run import new_run_id
from server.run_queue import KeptRun, RunProposal, RunQueue

SOCKET_FILE = "operator.sock"

_FIRST_MODELS = "first-models"
"""The folder of the state folder in which a proposal's first model lies until the proposal has arrived."""

_LONGEST_BYTES = 8 * LONGEST_PROPOSAL_BYTES
_SECONDS = 30.0
"""How long either side waits for the other; a description is made within seconds."""
_DAY_SECONDS = 24 * 3600
_CREDENTIALS = struct.Struct("3i")
"""Linux's ``struct ucred``: process, user, group."""


class Propose(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="propose"):
    """Propose a run to all members."""

    config: dict[str, Any]
    data_set: str
    classes: tuple[str, ...]
    channels: int
    first_model: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    """The SHA-256 of the file that :func:`leave_first_model` has left: the server itself does without PyTorch."""
    days: Annotated[float, msgspec.Meta(gt=0, le=3660)]
    hospitals: tuple[str, ...] = ()
    """Who must agree; all members where it is empty."""
    held: bool = False


class ShowRuns(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="list"):
    """Tell of all runs, or of one."""

    name: str | None = None


class ChangeRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="change"):
    """Start, stop or resume a run."""

    name: str
    change: Annotated[str, msgspec.Meta(pattern="^(start|stop|resume)$")]


OperatorRequest = Propose | ShowRuns | ChangeRun


class RunView(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run as a person sees it."""

    run_id: str
    number: int
    state: str
    reason: str
    task: str
    model: str
    mode: str
    rounds: int
    done: int
    """Finished rounds."""
    epsilon: float
    """That a whole run may cost a training unit at most."""
    evaluation_epsilon: float
    claims: tuple[str, ...]
    hospitals: tuple[str, ...]
    until: int | None
    held: bool
    stopping: bool
    proposed: float
    answers: dict[str, dict[str, Any]]
    """Hospital to its answer."""


class OperatorReply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the server says."""

    error: str | None = None
    runs: tuple[RunView, ...] = ()


class Operator:
    """What the server does for its operator, without the socket."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._queue = RunQueue(state)

    def answer(self, asked: OperatorRequest, now: datetime.datetime) -> OperatorReply:
        """Do what was asked; an error is part of the reply."""
        try:
            return OperatorReply(runs=tuple(self._view(run) for run in self._do(asked, now)))
        except ConfideError as error:
            return OperatorReply(error=str(error))

    def _do(self, asked: OperatorRequest, now: datetime.datetime) -> tuple[KeptRun, ...]:
        queue = self._queue
        match asked:
            case Propose():
                return (self._propose(asked, now),)
            case ShowRuns():
                return queue.all() if asked.name is None else (queue.find(asked.name),)
            case ChangeRun():
                changes = {"start": queue.start, "stop": queue.stop, "resume": queue.resume}
                return (changes[asked.change](queue.find(asked.name).run_id),)

    def _propose(self, asked: Propose, now: datetime.datetime) -> KeptRun:
        members = Membership(self._state).all_members(load_certificate(self._state / "ca.pem"), now)
        strangers = sorted(set(asked.hospitals) - members.roster.keys())
        if strangers:
            raise RunError(f"a run can name members only; {', '.join(strangers)} are not on the authority's list")
        named = tuple(sorted(set(asked.hospitals) or members.roster))
        config = replace(_config(asked.config), experiment={"num_clients": len(named)})
        first_model = _left(self._state, asked.first_model)
        try:
            return self._propose_with(asked, config, first_model, members, named, now)
        finally:
            first_model.unlink(missing_ok=True)  # A run that was proposed has taken it.

    def _propose_with(
        self,
        asked: Propose,
        config: Config,
        first_model: Path,
        members: Members,
        named: tuple[str, ...],
        now: datetime.datetime,
    ) -> KeptRun:
        first = FirstModel.read(first_model)
        model = config.model
        first.require(
            model.architecture, len(asked.classes), asked.channels, model.image_size, config.experiment.seed
        )  # fmt: skip
        versions = Membership(self._state).versions
        others = members.roster.keys() - set(named)
        description = describe(
            config, self._identifier(), asked.classes, asked.channels, members.roster, len(first.flat),
            members.member_list, version_for_run(SPOKEN, versions.windows(named), versions.windows(others)),
        )  # fmt: skip
        until = int(now.timestamp() + asked.days * _DAY_SECONDS)
        return self._queue.propose(
            RunProposal(config, description, asked.data_set, named, until, asked.held, first_model), now
        )

    def _identifier(self) -> str:
        """Return the identifier that the settings name for the first run, and a new one for each later run."""
        first = ServerSettings.read(self._state / SERVER_SETTINGS_FILE).run_id
        return new_run_id() if any(run.run_id == first for run in self._queue.all()) else first

    def _view(self, run: KeptRun) -> RunView:
        proposal = self._queue.proposal(run.run_id)
        settings = ServerSettings.read(self._state / SERVER_SETTINGS_FILE)
        folder = settings.run if settings.run_id == run.run_id else self._queue.folder(run.run_id)
        if proposal is None:
            raise RunError("this server carries one run that nobody was asked about; see its folder")
        return _view(run, proposal.description, self._queue.answers(run.run_id), rounds_done(folder))


def leave_first_model(state: Path, first: FirstModel) -> str:
    """Leave a first model in the state folder, for the proposal that names it; returns the SHA-256 of the file.

    Raises:
        ConfigError: the folder cannot be written.
    """
    folder = state / _FIRST_MODELS
    try:
        make_private_folder(folder)
        draft = folder / f".{secrets.token_hex(8)}"
        first.write(draft)
        with draft.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        draft.replace(folder / f"{digest}.safetensors")
    except OSError as error:
        raise ConfigError(f"{folder} must be writable, as the server's own user: {error.strerror}") from None
    return digest


def _left(state: Path, digest: str) -> Path:
    path = state / _FIRST_MODELS / f"{digest}.safetensors"
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RunError(f"the run's first model must lie in {path.parent.name}: {error.strerror}") from None
    if found != digest:
        path.unlink(missing_ok=True)
        raise RunError("the run's first model must be the file that was left with the proposal; propose the run again")
    return path


def _config(sections: dict[str, Any]) -> Config:
    try:
        return Config.model_validate_json(msgspec.json.encode(sections))
    except ValidationError as error:
        raise ConfigError(f"the configuration of a run must be one of this version; {complaint(error, 'it')}") from None


def _view(run: KeptRun, description: RunDescription, answers: dict[str, RunAnswer], done: int) -> RunView:
    return RunView(
        run_id=run.run_id,
        number=run.number,
        state=run.state,
        reason=run.reason,
        task=description.experiment.task,
        model=description.model.name,
        mode=description.privacy.mode.value,
        rounds=description.experiment.rounds,
        done=done,
        epsilon=description.privacy.target_epsilon,
        evaluation_epsilon=description.evaluation.target_epsilon,
        claims=tuple(map(str, claims_of(description))),
        hospitals=run.hospitals,
        until=run.until,
        held=run.held,
        stopping=run.stop and run.state is RunState.RUNNING,
        proposed=run.proposed,
        answers={name: answer.model_dump(mode="json") for name, answer in answers.items()},
    )


def rounds_done(folder: Path) -> int:
    """Return how many rounds the events in a run's folder tell of."""
    steps = (event.step for event in EventFile(folder / EVENTS_FILE).read_new() if isinstance(event, RoundDone))
    return max(steps, default=0)


class OperatorSocket:
    """Listens in the state folder until it is closed, in a thread of its own."""

    def __init__(self, state: Path, operator: Operator) -> None:
        path = state / SOCKET_FILE
        path.unlink(missing_ok=True)  # Only the one server that holds the state folder's lock gets here.
        with socket_name(path) as address:
            self._server = _Listener(address, operator)
        path.chmod(0o600)
        self._path = path
        self._thread = threading.Thread(target=self._server.serve_forever, name="operator", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        """Return the socket itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it, and remove it from the folder."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._path.unlink(missing_ok=True)


def ask_server(state: Path, request: OperatorRequest) -> tuple[RunView, ...]:
    """Ask the server that runs on a state folder.

    Raises:
        ConfigError: none runs there, or this user may not ask.
        RunError: it refuses; in its words.
    """
    path = state / SOCKET_FILE
    try:
        with socket_name(path) as address, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_SECONDS)
            connection.connect(address)
            connection.sendall(msgspec.json.encode(request))
            connection.shutdown(socket.SHUT_WR)
            content = _read(connection)
    except OSError as error:
        raise ConfigError(
            f"a server must run on this state folder, as this user: {error.strerror or 'no answer'}; start "
            "`confide server`"
        ) from None
    reply = msgspec.json.decode(content, type=OperatorReply)
    if reply.error is not None:
        raise RunError(reply.error)
    return reply.runs


def read_request(encoded: bytes) -> OperatorRequest:
    """Read what a command sent, or raise :class:`RunError`."""
    try:
        asked: OperatorRequest = msgspec.json.decode(encoded, type=OperatorRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RunError(f"the server and this command must be of one version: {error}") from None
    return asked


class _Listener(socketserver.UnixStreamServer):
    def __init__(self, address: str, operator: Operator) -> None:
        self.operator = operator
        super().__init__(address, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Pass over a caller that hung up; the next one is served."""


class _Handler(socketserver.BaseRequestHandler):
    server: _Listener

    def handle(self) -> None:
        connection: socket.socket = self.request
        connection.settimeout(_SECONDS)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, user, _ = _CREDENTIALS.unpack(credentials)
        if user not in {0, os.getuid()}:
            return
        try:
            asked = read_request(_read(connection))
        except RunError as error:
            reply = OperatorReply(error=str(error))
        else:
            reply = self.server.operator.answer(asked, datetime.datetime.now(datetime.UTC))
        connection.sendall(msgspec.json.encode(reply))


def _read(connection: socket.socket) -> bytes:
    content = bytearray()
    while piece := connection.recv(65_536):
        content += piece
        if len(content) > _LONGEST_BYTES:
            raise OSError("too long")
    return bytes(content)
