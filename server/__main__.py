"""``python -m server --state DIR``: the consortium's server, one supervisor over Flower's processes and ours.

Starts the SuperLink, lets the enrolled SuperNodes in, starts Flower's executor and submits the run. When any of
them dies, the run is submitted again and continues from its last checkpoint.
"""

import argparse
import datetime
import logging
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

import httpx

from common.config import load_config
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
from common.settings import (
    READY_FILE,
    SECRET_BYTES,
    SERVER_SETTINGS_FILE,
    ServerSettings,
    check_port_free,
)
from common.telemetry.events import COMPLETED, EVENTS_FILE, EventFile, RoundDone, RunFinished, RunStarted
from server.flower.control import Control
from server.members.admission import Admission
from server.members.roster import Membership

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
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
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
    """The processes of one server and the run they carry."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._settings = ServerSettings.read(state / SERVER_SETTINGS_FILE)
        self._config = load_config(self._settings.config)
        self._events = EventFile(self._settings.run / EVENTS_FILE)
        self._last: RunFinished | None = None
        self._steps = 0
        self._failed_starts = 0
        self._last_words = ""
        self._supervisor = Supervisor()
        self._services = Supervisor()
        self._runtime = f"127.0.0.1:{self._settings.runtime_port}"

    def run(self, *, once: bool) -> int:
        check_port_free(self._settings.fleet_host, self._settings.fleet_port, "the Fleet API")
        check_port_free("127.0.0.1", self._settings.runtime_port, "the Runtime API")
        write_private(self._state / "superexec.secret", secrets.token_bytes(SECRET_BYTES))
        certificate, key = make_local_tls(("127.0.0.1", "localhost"), datetime.datetime.now(datetime.UTC))
        write_private(self._state / _LOCAL_CERTIFICATE, certificate_pem(certificate))
        write_private(self._state / _LOCAL_KEY, private_key_pem(key))
        try:
            self._start_services()
            if (last := self._finished()) is not None and last.reason != COMPLETED:
                self._last = None  # A person who starts the server again has corrected what ended the run.
            finished = self._carry_to_the_end()
            if once:
                return 0 if finished.reason == COMPLETED else EXIT_REFUSED
            self._idle()
        finally:
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
            where = ("--port", str(settings.metrics_port), "--host", settings.metrics_host)
            command = python_module("server.metrics", "--run", str(settings.run), *where)
            self._services.start(ProcessCommand("metrics", command, settings.logs / "metrics.log"))

    def _carry_to_the_end(self) -> RunFinished:
        fruitless = 0
        while (finished := self._finished()) is None:
            steps = self._steps
            time.sleep(min(fruitless * _POLL_SECONDS, _LONGEST_PAUSE_SECONDS))
            self._failed_starts += 1
            self._carry_run()
            fruitless = 0 if self._finished() or self._steps > steps else fruitless + 1
            if self._failed_starts == _MOST_FAILED_STARTS:
                raise RunError(f"the ServerApp must start: {self._last_words}")
            if fruitless == _MOST_SUBMISSIONS:
                raise RunError(
                    f"the run ended {_MOST_SUBMISSIONS} times without a finished round; see {self._settings.logs}"
                )
        return finished

    def _carry_run(self) -> None:
        """Start Flower's missing processes, submit the run, and return when it has ended, for any reason."""
        (self._state / READY_FILE).unlink(missing_ok=True)
        is_sound = False
        try:
            with self._control() as control:
                if not self._supervisor.is_running("superlink"):
                    self._supervisor.start(self._superlink())
                    self._await_superlink(control)
                admission = Admission(Membership(self._state), control)
                admission.keep_in_step()
                (self._state / READY_FILE).touch(mode=0o600)
                self._gather(admission)
                self._supervisor.start(self._superexec())
                flower_run = control.start_run(self._state)
                self._last_words = self._watch(control, admission, flower_run)
                is_sound = control.is_up() and not self._failed_starts
                if is_sound:
                    control.end_run(flower_run)
        except RunError as error:
            self._last_words = str(error)
            print(f"confide: {error}; the run is submitted again", file=sys.stderr, flush=True)  # noqa: T201 - its log
        finally:
            (self._state / READY_FILE).unlink(missing_ok=True)
            # An executor outlives its ServerApp and its SuperLink, and has nothing to hand over. A working SuperLink
            # stays: the hospitals' nodes are connected to it, and take up the resubmitted run at once.
            self._supervisor.stop(("superexec",) if is_sound else ("superlink", "superexec"), at_once=True)

    def _gather(self, admission: Admission) -> None:
        """Wait until enough hospitals have joined and connected; where all are enrolled beforehand the run does."""
        if not self._settings.enrolment_port:
            return
        least, expected = self._config.aggregation.min_hospitals, self._config.experiment.num_clients
        said: frozenset[str] | None = None
        for online in admission.gather(least, expected, self._config.transport):
            if online != said:
                said = online
                names = ", ".join(sorted(online)) or "none"
                _LOG.info("waiting for hospitals: %d must be online, %d are (%s)", least, len(online), names)
            if not self._supervisor.is_running("superlink"):
                raise RunError(f"the SuperLink must run; see {self._settings.logs / 'superlink.log'}")
            self._services.revive()

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
            elif isinstance(event, RoundDone):
                self._steps = max(self._steps, event.step)
        return self._last

    def _idle(self) -> NoReturn:
        while True:
            self._services.revive()
            time.sleep(_POLL_SECONDS)

    @contextmanager
    def _control(self) -> Iterator[Control]:
        control = Control(self._runtime, (self._state / _LOCAL_CERTIFICATE).read_bytes())
        try:
            yield control
        except httpx.HTTPError as error:
            raise RunError(f"the SuperLink must answer, got {type(error).__name__}; see superlink.log") from None
        finally:
            control.close()

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


if __name__ == "__main__":
    sys.exit(main())
