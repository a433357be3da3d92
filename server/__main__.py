"""``python -m server --state DIR``: the consortium's server, one supervisor over Flower's processes and ours.

Starts the SuperLink, lets the enrolled SuperNodes in, and carries one run after the other that hospitals have agreed
to: starts Flower's executor and submits the run. When any of them dies, the run is submitted again and continues from
its last checkpoint.
"""

import argparse
import datetime
import logging
import math
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import httpx

from common.errors import ConfideError, RunError
from common.files import write_private
from common.flower.waits import FLOWER_ENVIRONMENT
from common.identity.certificates import (
    certificate_pem,
    make_local_tls,
    private_key_pem,
)
from common.identity.invitation import join_host_port
from common.processes import (
    EXIT_REFUSED,
    PRIVATE_UMASK,
    ProcessCommand,
    Stopping,
    Supervisor,
    children_of,
    python_module,
    raise_on_signals,
)
from common.run.proposal import RunState
from common.settings import (
    READY_FILE,
    SECRET_BYTES,
    SERVER_SETTINGS_FILE,
    ServerSettings,
    check_port_free,
)
from common.telemetry.events import (
    COMPLETED,
    EVENTS_FILE,
    STOPPED,
    EventFile,
    HospitalLost,
    RoundDone,
    RunFinished,
    RunStarted,
)
from common.telemetry.logs import begin_logging, with_facts
from server.events import EventLog
from server.flower.control import Control
from server.members.admission import Admission
from server.members.roster import Membership
from server.only_one import only_server
from server.operator_socket import Operator, OperatorSocket
from server.run_queue import CONFIG_FILE, FOLDER_DIGITS, KeptRun, RunQueue

_LOG = logging.getLogger("confide.server")

STATE_VARIABLE = "CONFIDE_SERVER_STATE"
"""The environment variable that gives the ServerApp, which Flower starts, its state folder."""

_LOCAL_CERTIFICATE, _LOCAL_KEY = "runtime.pem", "runtime.key"
"""Files of the Runtime and Control API, which never leave this machine; hospitals see the authority's ``tls.pem``."""
_POLL_SECONDS = 0.2
_STATUS_SECONDS = 1.0
"""The time between two polls of the SuperLink; the end of a run is seen sooner, in its events."""
_EXECUTOR_POLL_SECONDS = 0.5
"""The time between two polls of Flower's executor for a ServerApp to start, which happens once a submission."""
_SUPERLINK_SECONDS = 60.0
_PREDECESSOR_SECONDS = 10.0
"""A server that was killed has this long to end before another takes up its state."""
_SPARING: Mapping[str, str] = MappingProxyType(
    {
        "FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PULLS": "1",
        "MALLOC_ARENA_MAX": "2",
        "MALLOC_MMAP_THRESHOLD_": str(128 * 1024),
    }
)
"""The ServerApp's environment: one piece of an array is under way, and its memory returns to the system at once. By
itself glibc keeps, for each thread, what is smaller than the largest piece yet."""
_SPARING_PIECES: Mapping[str, str] = MappingProxyType({"MALLOC_MMAP_THRESHOLD_": str(256 * 1024)})
"""The SuperLink's environment: the pieces of arrays likewise. Smaller objects, nearly all it handles, cost no more."""
_LONGEST_PAUSE_SECONDS = 5.0
"""The longest pause before the run is submitted again; the pause grows with each submission."""
_MOST_SUBMISSIONS = 20
"""The most submissions in a row without a finished round; then the run is given up."""
_MOST_FAILED_STARTS = 4
"""The most failed starts in a row: a ServerApp that never reported its start will not do so the next time either."""


def main() -> int:
    """Run the server until its run is finished (``--once``) or it is stopped."""
    parser = argparse.ArgumentParser(prog="python -m server", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="folder with server.json, keys and roster")
    parser.add_argument("--once", action="store_true", help="end when the run is finished")
    arguments = parser.parse_args()
    begin_logging()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # It would write a line for every poll of the SuperLink.
    raise_on_signals()
    os.umask(PRIVATE_UMASK)
    try:
        return _Server(arguments.state).run(once=arguments.once)
    except Stopping:
        return 0
    except ConfideError as error:
        print(f"confide: {error}", file=sys.stderr)  # noqa: T201 - the supervisor's own last word
        return EXIT_REFUSED


class _Server:
    """The processes of one server and the runs they carry."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._settings = ServerSettings.read(state / SERVER_SETTINGS_FILE)
        self._queue = RunQueue(state)
        self._events = EventFile(self._settings.run / EVENTS_FILE)
        self._last: RunFinished | None = None
        self._steps = 0
        self._rounds = 0
        self._began = time.time()
        self._failed_starts = 0
        self._last_words = ""
        self._supervisor = Supervisor()
        self._services = Supervisor()
        self._runtime = f"127.0.0.1:{self._settings.runtime_port}"
        self._link: tuple[Control, Admission] | None = None

    def run(self, *, once: bool) -> int:
        with only_server(self._state, _PREDECESSOR_SECONDS):
            return self._run_alone(once=once)

    def _run_alone(self, *, once: bool) -> int:
        check_port_free(self._settings.fleet_host, self._settings.fleet_port, "the Fleet API")
        check_port_free("127.0.0.1", self._settings.runtime_port, "the Runtime API")
        write_private(self._state / "superexec.secret", secrets.token_bytes(SECRET_BYTES))
        certificate, key = make_local_tls(("127.0.0.1", "localhost"), datetime.datetime.now(datetime.UTC))
        write_private(self._state / _LOCAL_CERTIFICATE, certificate_pem(certificate))
        write_private(self._state / _LOCAL_KEY, private_key_pem(key))
        (self._state / READY_FILE).unlink(missing_ok=True)  # Of a server that was killed.
        try:
            self._start_services()
            if not self._settings.enrolment_port:
                return self._carry_the_only_run(once=once)
            with OperatorSocket(self._state, Operator(self._state)):
                return self._carry_the_queue(once=once)
        finally:
            self._disconnect()
            self._supervisor.stop()
            self._services.stop()

    def _start_services(self) -> None:
        """Start what lives as long as the server, whatever becomes of a run: enrolment and the exporter."""
        settings = self._settings
        if settings.enrolment_port:
            check_port_free(settings.fleet_host, settings.enrolment_port, "enrolment")
            command = python_module("server.members.enrolment", "--state", str(self._state))
            self._services.start(ProcessCommand("enrolment", command, settings.logs / "enrolment.log"))
        if settings.metrics_port:
            check_port_free(settings.metrics_host, settings.metrics_port, "the metrics")
            self._start_exporter()

    def _start_exporter(self) -> None:
        settings = self._settings
        where = ("--port", str(settings.metrics_port), "--host", settings.metrics_host)
        command = python_module("server.metrics", "--run", str(settings.run), "--state", str(self._state), *where)
        self._services.start(ProcessCommand("metrics", command, settings.logs / "metrics.log"))

    def _carry_the_only_run(self, *, once: bool) -> int:
        """Carry the run of a server whose hospitals were all enrolled beforehand: nobody is asked about it."""
        settings = self._settings
        run = self._queue.adopt(settings.run_id, settings.data_set, settings.classes, settings.channels)
        last = self._finished()
        if run.state is not RunState.FINISHED and (last is None or last.reason != COMPLETED):
            self._last = None  # A person who starts the server again has corrected what ended the run.
        self._queue.begin(run.run_id)
        ended = self._conclude(run, self._carry_to_the_end(run))
        if once:
            return 0 if ended.state is RunState.FINISHED else EXIT_REFUSED
        while True:
            self._services.revive()
            time.sleep(_POLL_SECONDS)

    def _carry_the_queue(self, *, once: bool) -> int:
        """Carry the runs that hospitals have agreed to, one after the other, until this process is stopped."""
        while True:
            run = self._await_turn()
            self._take_up(run)
            last = self._finished()
            if run.state is RunState.RUNNING and last is not None and last.reason == COMPLETED:
                ended = self._conclude(run, last)  # It ended while no supervisor was there to note it.
            else:
                self._last = None
                self._queue.begin(run.run_id)
                _LOG.info("run %s begins", _named(run))
                ended = self._conclude(run, self._carry_or_give_up(run))
            if once:
                return 0 if ended.state is RunState.FINISHED else EXIT_REFUSED

    def _await_turn(self) -> KeptRun:
        """Return the next run that is due; hospitals can connect meanwhile."""
        while True:
            try:
                with self._talking():
                    _, admission = self._connected()
                    while (due := self._next_due()) is None:
                        admission.keep_in_step()
                        self._services.revive()
                        self._require_superlink()
                        time.sleep(_STATUS_SECONDS)
                    return due
            except RunError as error:
                self._say_again(error)
                self._disconnect()
                time.sleep(_LONGEST_PAUSE_SECONDS)

    def _next_due(self) -> KeptRun | None:
        for run in self._queue.settle(datetime.datetime.now(datetime.UTC)):
            _LOG.info(
                "run %s is %s%s", _named(run), run.state, f": {run.reason}" if run.reason else "",
                extra=with_facts(run=run.run_id[:FOLDER_DIGITS], state=run.state.value, reason=run.reason),
            )  # fmt: skip
        return self._queue.due()

    def _take_up(self, run: KeptRun) -> None:
        """Make a run the one that the ServerApp and the exporter read."""
        folder = self._queue.folder(run.run_id)
        settings = self._settings.model_copy(
            update={
                "run": folder,
                "run_id": run.run_id,
                "run_config": folder / CONFIG_FILE,
                "data_set": run.data_set,
                "classes": run.classes,
                "channels": run.channels,
            }
        )
        is_new = settings.run != self._settings.run
        self._settings = settings
        settings.write(self._state / SERVER_SETTINGS_FILE)
        self._events, self._last, self._steps = EventFile(folder / EVENTS_FILE), None, 0
        self._began = time.time()
        self._failed_starts = 0
        if is_new and settings.metrics_port:
            self._services.stop(("metrics",))
            self._start_exporter()

    def _carry_or_give_up(self, run: KeptRun) -> RunFinished:
        """Carry a run; one that cannot go on ends with its reason, and the server stays for the next."""
        try:
            return self._carry_to_the_end(run)
        except RunError as error:
            _LOG.error("%s", error)
            return self._ended_here(str(error))

    def _ended_here(self, reason: str) -> RunFinished:
        """Report the end of a run whose ServerApp is not there to report it."""
        finished = RunFinished(time=time.time(), reason=reason, rounds_done=self._steps)
        with EventLog(self._settings.run) as events:
            events.append(finished)
        return finished

    def _conclude(self, run: KeptRun, finished: RunFinished) -> KeptRun:
        states = {COMPLETED: RunState.FINISHED, STOPPED: RunState.STOPPED}
        ended = self._queue.end(run.run_id, states.get(finished.reason, RunState.FAILED), finished.reason)
        _LOG.log(
            logging.ERROR if ended.state is RunState.FAILED else logging.INFO,
            "run %s is %s after %d rounds: %s",
            _named(ended), ended.state, self._steps, ended.reason,
            extra=with_facts(
                run=run.run_id[:FOLDER_DIGITS], state=ended.state, rounds=self._steps, reason=ended.reason
            ),
        )  # fmt: skip
        return ended

    def _carry_to_the_end(self, run: KeptRun) -> RunFinished:
        fruitless = 0
        while (finished := self._finished()) is None:
            if self._queue.must_stop(run.run_id) and not self._has_begun():
                return self._ended_here(STOPPED)
            steps = self._steps
            time.sleep(min(fruitless * _POLL_SECONDS, _LONGEST_PAUSE_SECONDS))
            self._failed_starts += 1
            self._carry_run(run)
            fruitless = 0 if self._finished() or self._steps > steps else fruitless + 1
            if self._failed_starts == _MOST_FAILED_STARTS:
                raise RunError(f"the ServerApp must start: {self._last_words}")
            if fruitless == _MOST_SUBMISSIONS:
                raise RunError(
                    f"the run ended {_MOST_SUBMISSIONS} times without a finished round; see {self._settings.logs}"
                )
        return finished

    def _carry_run(self, run: KeptRun) -> None:
        """Start Flower's missing processes, submit the run, and return when it has ended, for any reason."""
        is_sound = False
        try:
            with self._talking():
                control, admission = self._connected()
                if self._gathered(run, admission):
                    self._supervisor.start(self._superexec())
                    flower_run = control.start_run(self._state)
                    self._last_words = self._watch(control, admission, flower_run)
                    is_sound = control.is_up() and not self._failed_starts
                    if is_sound:
                        control.end_run(flower_run)
                else:
                    is_sound, self._failed_starts = True, 0
        except RunError as error:
            self._last_words = str(error)
            self._say_again(error)
        finally:
            # An executor outlives its ServerApp and its SuperLink, and has nothing to hand over. A working SuperLink
            # stays: the hospitals' nodes are connected to it, and take up the resubmitted run at once.
            self._supervisor.stop(("superexec",), at_once=True)
            if not is_sound:
                self._disconnect()

    def _say_again(self, error: RunError) -> None:
        _LOG.warning("%s; it is tried again", error)

    def _gathered(self, run: KeptRun, admission: Admission) -> bool:
        """Wait for the hospitals that a run names; where all are enrolled beforehand the ServerApp does.

        Returns:
            False when the run is to stop before they are there.
        """
        if not run.hospitals or not self._settings.enrolment_port:
            return True
        config = self._queue.config(run.run_id)
        least, named = config.aggregation.min_hospitals, frozenset(run.hospitals)
        said: frozenset[str] | None = None
        for online in admission.gather(least, named, config.transport.start_deadline_seconds):
            if self._queue.must_stop(run.run_id):
                return False
            if online != said:
                said = online
                missing = ", ".join(sorted(named - online))
                _LOG.info("run %s waits for %s; %d are online", _named(run), missing, len(online))
            self._require_superlink()
            self._services.revive()
        return True

    def _require_superlink(self) -> None:
        if not self._supervisor.is_running("superlink"):
            raise RunError(f"the SuperLink must run; see {self._settings.logs / 'superlink.log'}")

    def _watch(self, control: Control, admission: Admission, flower_run: int) -> str:
        """Wait for the end of the run, and return what Flower says about it."""
        next_question, serverapp_seen = 0.0, False
        while self._finished() is None and not self._supervisor.ended():
            if time.monotonic() >= next_question:
                # Flower misses a ServerApp that was killed only after a minute without its heartbeat.
                serverapp_runs = bool(children_of(self._supervisor.pid("superexec") or 0))
                status, details = control.run_status(flower_run)
                if status == "finished" or (serverapp_seen and not serverapp_runs):
                    return details
                serverapp_seen = serverapp_seen or serverapp_runs
                admission.keep_in_step()
                self._queue.settle(datetime.datetime.now(datetime.UTC))
                next_question = time.monotonic() + _STATUS_SECONDS
            self._services.revive()
            time.sleep(_POLL_SECONDS)
        return f"ended: {', '.join(self._supervisor.ended())}"

    def _finished(self) -> RunFinished | None:
        for event in self._events.read_new():
            if isinstance(event, RunFinished):
                self._last = event
            elif isinstance(event, RunStarted):
                self._failed_starts = 0
                self._last = None  # It went on after that end.
                self._rounds = event.rounds
            elif isinstance(event, HospitalLost) and event.time >= self._began:
                _LOG.log(
                    logging.INFO if event.left else logging.WARNING, "%s %s", event.hospital, event.why,
                    extra=with_facts(
                        run=self._settings.run_id[:FOLDER_DIGITS], hospital=event.hospital, left=event.left
                    ),
                )  # fmt: skip
            elif isinstance(event, RoundDone):
                self._steps = max(self._steps, event.step)
                if event.time >= self._began:  # The others were told when they were new.
                    self._tell(event)
        return self._last

    def _tell(self, done: RoundDone) -> None:
        """Log one line for a round, by the number that hospitals' logs give it; one that failed gives no step."""
        run = self._settings.run_id[:FOLDER_DIGITS]
        figures = {name: getattr(done, name) for name in ("auc", "accuracy", "epsilon")}
        known = {name: round(value, 4) for name, value in figures.items() if math.isfinite(value)}
        measured = "".join(f", {name} {value:g}" for name, value in known.items())
        _LOG.info(
            "run %s, round %d gave step %d of %d: %d hospitals, %.1f s%s",
            run, done.round, done.step, self._rounds, done.hospitals, done.seconds, measured,
            extra=with_facts(
                run=run, round=done.round, step=done.step, hospitals=done.hospitals, seconds=done.seconds, **known
            ),
        )  # fmt: skip

    def _has_begun(self) -> bool:
        """Return whether a ServerApp is there to end the run itself."""
        return self._supervisor.is_running("superexec")

    def _connected(self) -> tuple[Control, Admission]:
        """Return the way to a working SuperLink; a new one knows no members, and gets them all."""
        if self._link is None or not self._supervisor.is_running("superlink"):
            self._disconnect()
            control = Control(self._runtime, (self._state / _LOCAL_CERTIFICATE).read_bytes())
            self._link = control, Admission(Membership(self._state), control)
            self._supervisor.start(self._superlink())
            self._await_superlink(control)
        self._link[1].keep_in_step()
        (self._state / READY_FILE).touch(mode=0o600)
        return self._link

    def _disconnect(self) -> None:
        (self._state / READY_FILE).unlink(missing_ok=True)
        if self._link is not None:
            self._link[0].close()
            self._link = None
        self._supervisor.stop(("superlink",), at_once=True)

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """Turn a SuperLink that does not answer into a :class:`RunError`."""
        try:
            yield
        except httpx.HTTPError as error:
            raise RunError(f"the SuperLink must answer, got {type(error).__name__}; see superlink.log") from None

    def _await_superlink(self, control: Control) -> None:
        give_up = time.monotonic() + _SUPERLINK_SECONDS
        while not control.is_up():
            if not self._supervisor.is_running("superlink") or time.monotonic() > give_up:
                raise RunError(f"the SuperLink must start; see {self._settings.logs / 'superlink.log'}")
            time.sleep(_POLL_SECONDS / 2)

    def _superlink(self) -> ProcessCommand:
        """Return Flower's SuperLink, its state in memory: what must outlive it stands in our checkpoints.

        Its database file cost 0.9 s an exchange (``docs/decisions/002-superlink-in-memory.md``).
        """
        return ProcessCommand(
            "superlink",
            (
                *python_module("server.flower.superlink", str(self._state)),
                "--host", "127.0.0.1",
                "--port", str(self._settings.runtime_port),
                "--fleet-api-address", join_host_port(self._settings.fleet_host, self._settings.fleet_port),
                "--ssl-certfile", str(self._state / _LOCAL_CERTIFICATE),
                "--ssl-keyfile", str(self._state / _LOCAL_KEY),
                "--ssl-ca-certfile", str(self._state / _LOCAL_CERTIFICATE),
                "--enable-supernode-auth",
                "--isolation", "process",
                "--disable-runtime-dependency-installation",
                "--superexec-auth-secret-file", str(self._state / "superexec.secret"),
            ),
            self._settings.logs / "superlink.log",
            {**self._environment("superlink"), **_SPARING_PIECES},
        )  # fmt: skip

    def _superexec(self) -> ProcessCommand:
        return ProcessCommand(
            "superexec",
            (
                *python_module("server.flower.superexec"),
                "--runtime-api-address", self._runtime,
                "--root-certificates", str(self._state / _LOCAL_CERTIFICATE),
                "--superexec-auth-secret-file", str(self._state / "superexec.secret"),
            ),
            self._settings.logs / "serverapp.log",
            {**self._environment("superexec"), **_SPARING},
        )  # fmt: skip

    def _environment(self, process: str) -> dict[str, str]:
        return {
            **FLOWER_ENVIRONMENT,
            "FLWR_HOME": str(self._state / "flower" / process),
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(_EXECUTOR_POLL_SECONDS),
            STATE_VARIABLE: str(self._state),
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }


def _named(run: KeptRun) -> str:
    return f"{run.number} ({run.run_id[:FOLDER_DIGITS]})"


if __name__ == "__main__":
    sys.exit(main())
