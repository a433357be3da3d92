"""A consortium of processes for tests: a server, and hospitals that join it by invitation, on one host or several."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from common.config import DataConfig
from common.settings import SERVER_SETTINGS_FILE, ServerSettings
from common.telemetry.events import EVENTS_FILE, Event, EventFile, RoundDone
from deploy.datasets.datasets import obtain
from deploy.demo.dealer import deal
from server.members.roster import Membership

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
SETTINGS = (
    "experiment.rounds=100000",
    "privacy.mode=none",
    "hospital.allow_no_privacy=true",
    "training.batch_size=64",
    "enrolment.standing_seconds=1",
    "monitoring.server_metrics_port=0",
    "monitoring.hospital_metrics_port=0",
)
"""A run that never ends by itself, without noise: what is tested here is who takes part."""

Prefix = Sequence[str]


class Consortium:
    """Starts processes, reads what the server reports, and ends what it started.

    Args:
        folder: for all that they write.
        hospitals: that have a shard each.
        settings: of server and hospitals, beyond :data:`SETTINGS`.
        root: the source tree whose code runs.
        environment: of all processes, beyond this one's.
        records: of the made-up images that are dealt.
    """

    def __init__(
        self,
        folder: Path,
        hospitals: int,
        settings: Sequence[str] = (),
        *,
        root: Path = ROOT,
        environment: Mapping[str, str] | None = None,
        records: int = 900,
    ) -> None:
        self.folder = folder
        self._root = root
        self.state = folder / "server"
        # A machine of its own, or its list of ledgers would know these images from another test.
        self._environment = {
            **ENVIRONMENT,
            "PYTHONPATH": str(root),
            "XDG_STATE_HOME": str(folder / "machine"),
            **(environment or {}),
        }
        self._settings = tuple(
            word for setting in (*SETTINGS, f"experiment.num_clients={hospitals}", *settings)
            for word in ("--set", setting)
        )  # fmt: skip
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stopped: set[str] = set()
        self._commands: dict[str, tuple[Sequence[str], Prefix, Mapping[str, str] | None]] = {}
        self._events: EventFile | None = None
        self._is_proposed = False
        self._seen: list[Event] = []
        source = DataConfig(source="phantom", phantom_records=records)
        data = obtain(source, "pneumonia", 28)
        self.shards = [folder / f"shard-{number}" for number in range(hospitals)]
        deal(data, self.shards, source, 1, min(64, records // (3 * hospitals)))

    def start_server(self, addresses: Sequence[str], arguments: Sequence[str] = (), prefix: Prefix = ()) -> None:
        named = [word for address in addresses for word in ("--address", address)]
        if "--authority" not in arguments:
            arguments = ("--hold-authority-key", *arguments)
        self.start("server", ("server", "--state", str(self.state), *named, *self._settings, *arguments), prefix)
        self.wait_for((self.state / SERVER_SETTINGS_FILE).exists, 180)
        self._events = EventFile(ServerSettings.read(self.state / SERVER_SETTINGS_FILE).run / EVENTS_FILE)

    def invite(self, name: str, *arguments: str) -> str:
        command = (sys.executable, "-m", "deploy", "invite", name, "--state", str(self.state), *arguments)
        return subprocess.run(
            command, env=self._environment, cwd=self._root, check=True, capture_output=True, text=True
        ).stdout.strip()

    def revoke(self, name: str) -> None:
        command = (sys.executable, "-m", "deploy", "revoke", name, "--state", str(self.state))
        subprocess.run(command, env=self._environment, cwd=self._root, check=True, capture_output=True)

    def deploy(self, *words: str) -> str:
        """Run a command, and return what it prints."""
        command = (sys.executable, "-m", "deploy", *words)
        done = subprocess.run(
            command, env=self._environment, cwd=self._root, check=False, capture_output=True, text=True
        )
        assert done.returncode in {0, 1}, done.stdout + done.stderr
        return done.stdout

    def run(self, action: str, *words: str) -> str:
        """Run ``confide run ACTION``."""
        return self.deploy("run", action, *words, "--state", str(self.state))

    def propose(self, members: int, *words: str) -> str:
        """Propose a run once so many hospitals have joined."""
        self.wait_for(lambda: len(Membership(self.state).roster()) >= members, 240)
        self._is_proposed = True
        return self.run("propose", *words)

    def hospital_state(self, name: str) -> Path:
        return self.folder / name

    def join(
        self,
        name: str,
        invitation: str,
        arguments: Sequence[str] = (),
        prefix: Prefix = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        shard = self.shards[len(self._processes) - 1]
        command = (
            "hospital", "join", invitation, "--data", str(shard), "--state", str(self.hospital_state(name)),
            *self._settings, *arguments,
        )  # fmt: skip
        self.start(name, command, prefix, environment)

    def stop_hospital(self, name: str) -> None:
        """Stop a hospital in good order; the others go on."""
        self._stopped.add(name)
        process = self._processes[name]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0

    def may_end(self, name: str) -> None:
        """Take it as right when a hospital's process ends by itself from now on."""
        self._stopped.add(name)

    def rejoin(self, name: str) -> None:
        """Start a hospital that was stopped again, by the command it joined with."""
        self.start(name, *self._commands[name])

    def restart_server(self) -> None:
        """Stop the server in good order, and start it again."""
        process = self._processes["server"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        self.start("server", *self._commands["server"])

    def processes(self) -> tuple[int, ...]:
        """Return the numbers of the processes that this has started; each has started others."""
        return tuple(process.pid for process in self._processes.values())

    def ended(self, name: str) -> int | None:
        return self._processes[name].poll()

    def events(self) -> list[Event]:
        if self._events is not None:
            self._seen.extend(self._events.read_new())
        return self._seen

    def rounds(self) -> list[RoundDone]:
        return [event for event in self.events() if isinstance(event, RoundDone)]

    def wait_for_rounds(self, more: int, hospitals: int, seconds: float) -> None:
        """Wait until ``more`` further rounds, each of ``hospitals`` hospitals, are finished; proposes the first run."""
        if not self._is_proposed:
            self.propose(hospitals)
        before = len(self.rounds())
        self.wait_for(lambda: sum(done.hospitals == hospitals for done in self.rounds()[before:]) >= more, seconds)

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> None:
        give_up = time.monotonic() + seconds
        while not condition():
            dead = [name for name, process in self._processes.items() if process.poll() not in (None, 2)]
            dead = [name for name in dead if name not in self._stopped]
            assert not dead, f"ended: {dead}\n{self.last_words()}"
            assert time.monotonic() < give_up, self.last_words()
            time.sleep(0.1)

    def last_words(self) -> str:
        """Return the end of every log, for a test that fails."""
        logs = sorted([*self.folder.glob("*.out"), *self.folder.glob("*/logs/*.log")])
        return "\n".join(f"== {path}\n{path.read_text(errors='replace')[-1500:]}" for path in logs)

    def stop(self) -> None:
        for process in reversed(self._processes.values()):
            process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            process.wait(60)

    def start(
        self, name: str, command: Sequence[str], prefix: Prefix = (), environment: Mapping[str, str] | None = None
    ) -> None:
        self._commands[name] = (command, prefix, environment)
        self._stopped.discard(name)
        with (self.folder / f"{name}.out").open("ab") as output:
            self._processes[name] = subprocess.Popen(
                (*prefix, sys.executable, "-m", "deploy", *command),
                cwd=self._root,
                env={**self._environment, **(environment or {})},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
