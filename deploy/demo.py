"""``confide demo``: the whole system on this machine, as the processes that run in production, on loopback."""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from common.config import Config, load_config
from common.errors import ConfideError, ConfigError, RunError
from common.events import COMPLETED, EVENTS_FILE, EventFile, RunFinished
from common.processes import Command, Stopping, Supervisor, last_line, python_module, raise_on_signals
from common.run_terms import require_supported
from common.settings import (
    CHECKPOINTS_FOLDER,
    HOSPITAL_SETTINGS_FILE,
    READY_FILE,
    HospitalSettings,
    ServerSettings,
    free_port,
)
from deploy.consortium import ConsortiumOnThisMachine, Member, new_run_id
from deploy.datasets import DataSet, obtain, task_named
from deploy.dealer import deal
from deploy.live_table import LiveTable
from deploy.monitoring import write_configuration
from deploy.outputs import RunOutputs, model_facts
from server.checkpoints import Checkpoint, CheckpointStore

ROOT = Path(__file__).resolve().parent.parent
EXIT_INTERRUPTED = 130

_FREE_BYTES_NEEDED = 64 * 2**20
"""Logs, checkpoints, plots and shards of small images."""

_BYTES_PER_RECORD = 4096
"""A small PNG and the block it lies in."""

_LOOK_SECONDS = 0.1


def main(argv: Sequence[str]) -> int:
    """Run the demo; returns 0 when every round was trained."""
    arguments = _parser().parse_args(argv[1:])
    config = _config(arguments)
    task_named(config.experiment.task)
    require_supported(config.privacy)
    run_id = new_run_id()
    folder = _prepare_folder(arguments.out or ROOT / "runs" / run_id[:12])
    raise_on_signals()
    console = Console()
    try:
        with LiveTable(console) as table:
            return _Demo(config, run_id, folder, table).run()
    except Stopping:
        console.print(f"stopped; what was finished lies in {folder}", highlight=False)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="confide demo", description=__doc__)
    parser.add_argument("--hospitals", type=int, metavar="N", help="as --set experiment.num_clients=N")
    parser.add_argument("--rounds", type=int, metavar="R", help="as --set experiment.rounds=R")
    parser.add_argument("--task", metavar="NAME", help="pneumonia, retina or another MedMNIST 2D task")
    parser.add_argument("--data", metavar="SOURCE", help="auto, phantom, or the path of an npz, a folder or a tar")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new or empty folder (default: runs/<run id>)")
    parser.add_argument("--config", type=Path, default=ROOT / "config.yaml", metavar="FILE")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides")
    return parser


def _config(arguments: argparse.Namespace) -> Config:
    short = {
        "experiment.num_clients": arguments.hospitals,
        "experiment.rounds": arguments.rounds,
        "experiment.task": arguments.task,
        "data.source": arguments.data,
    }
    overrides = [f"{key}={value}" for key, value in short.items() if value is not None]
    return load_config(arguments.config, (*overrides, *arguments.overrides))


def _prepare_folder(folder: Path) -> Path:
    """Make the output folder, or say in one line why it cannot be used."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"--out must be a new or empty folder, {folder} is not empty; nothing was changed")
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise ConfigError(f"--out must be a folder that can be written, got {folder}: {error.strerror}") from None
    if free < _FREE_BYTES_NEEDED:
        raise ConfigError(
            f"--out needs {_FREE_BYTES_NEEDED // 2**20} MiB of disk, {free // 2**20} MiB are free in {folder}; "
            "free space or choose another folder"
        )
    return folder.resolve()


class _Demo:
    """One run of the demo: set up, start, show, finish, and stop whatever happens."""

    def __init__(self, config: Config, run_id: str, folder: Path, table: LiveTable) -> None:
        self._config = config
        self._run_id = run_id
        self._folder = folder
        self._table = table
        self._supervisor = Supervisor()
        self._names = tuple(f"hospital-{number}" for number in range(1, config.experiment.num_clients + 1))
        self._warned: set[str] = set()
        self._server_state = folder

    def run(self) -> int:
        outputs = RunOutputs(self._folder)
        finished: RunFinished | None = None
        data: DataSet | None = None
        try:
            data = self._obtain()
            members = self._set_up(data)
            self._start_server()
            self._deal(data, members)
            self._await_server()
            self._start_hospitals(members)
            finished = self._follow(outputs)
            return 0 if finished.reason == COMPLETED else 1
        finally:
            self._table.starting("stopping every process")
            self._supervisor.stop()
            self._finish(outputs, data, finished)

    def _obtain(self) -> DataSet:
        self._table.starting("getting the data")
        data = obtain(self._config.data, self._config.experiment.task, self._config.model.image_size)
        if data.banner:
            self._table.starting(data.banner)
        return data

    def _set_up(self, data: DataSet) -> tuple[Member, ...]:
        """Make every key and certificate, and choose free ports."""
        consortium = ConsortiumOnThisMachine(self._folder / "consortium", self._config)
        members = consortium.members(self._names, self._folder / "logs")
        settings = ServerSettings(
            config=consortium.server_state / "config.yaml",
            run=self._folder,
            logs=self._folder / "logs" / "server",
            run_id=self._run_id,
            data_set=data.name,
            classes=data.classes,
            channels=data.channels,
            fleet_host="127.0.0.1",
            fleet_port=free_port(),
            runtime_port=free_port(),
            metrics_port=free_port(),
        )
        consortium.set_up(settings, members, [free_port() for _ in members])
        self._server_state = consortium.server_state
        own = [HospitalSettings.read(member.state / HOSPITAL_SETTINGS_FILE) for member in members]
        ports = {"server": (settings.metrics_port,), "hospital": tuple(hospital.metrics_port for hospital in own)}
        configuration = write_configuration(self._folder, ports)
        self._table.starting(f"metrics: prometheus --config.file={configuration}")
        return members

    def _deal(self, data: DataSet, members: Sequence[Member]) -> None:
        config = self._config
        self._table.starting(f"dealing {data.name} to {len(members)} hospitals")
        needed = sum(map(len, data.parts.values())) * max(_BYTES_PER_RECORD, data.channels * data.image_size**2)
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise ConfigError(
                f"--out needs {needed // 2**20} MiB of disk for the shards, {free // 2**20} MiB are free; "
                "free space or choose another folder"
            )
        deal(data, [member.data for member in members], config.data, config.experiment.seed, config.training.batch_size)

    def _start_server(self) -> None:
        self._table.starting("starting the server")
        arguments = python_module("server", "--state", str(self._server_state), "--once")
        log = self._folder / "logs" / "server.log"
        self._supervisor.start(Command("server", arguments, log, {"PYTHONPATH": str(ROOT)}))

    def _await_server(self) -> None:
        """Wait until hospitals can connect: a SuperNode that comes before its key is registered is turned away."""
        self._table.starting("waiting for the server")
        while not (self._server_state / READY_FILE).exists():
            self._check_server(self._supervisor.ended())
            time.sleep(_LOOK_SECONDS)

    def _check_server(self, ended: Sequence[str]) -> None:
        if "server" in ended:
            raise RunError(f"the server must run: {last_line(self._folder / 'logs' / 'server.log')}")

    def _start_hospitals(self, members: Sequence[Member]) -> None:
        self._table.starting(f"starting {len(members)} hospitals")
        # The hospitals share this machine's cores; each would otherwise start as many threads as there are cores.
        threads = str(max(1, (os.cpu_count() or 1) // len(members)))
        environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads}
        for member in members:
            command = python_module("client", "--state", str(member.state))
            log = self._folder / "logs" / f"{member.name}.log"
            self._supervisor.start(Command(member.name, command, log, environment))

    def _follow(self, outputs: RunOutputs) -> RunFinished:
        events = EventFile(self._folder / EVENTS_FILE)
        while True:
            ended = self._supervisor.ended()  # looked at before the events, so that none of the last is missed
            for event in events.read_new():
                outputs.add(event)
                self._table.show(event)
                if isinstance(event, RunFinished):
                    return event
            self._check_server(ended)
            self._warn_about(ended)
            time.sleep(_LOOK_SECONDS)

    def _warn_about(self, ended: Sequence[str]) -> None:
        """Say once why a hospital has ended by itself; the run goes on with the others."""
        for name in ended:
            if name not in self._warned:
                self._warned.add(name)
                self._table.starting(f"{name} has ended: {last_line(self._folder / 'logs' / f'{name}.log')}")
        if len(self._warned) > len(self._names) - self._config.aggregation.min_hospitals:
            raise RunError(f"too few hospitals are left: {last_line(self._folder / 'logs' / f'{ended[0]}.log')}")

    def _finish(self, outputs: RunOutputs, data: DataSet | None, finished: RunFinished | None) -> None:
        checkpoint = self._checkpoint()
        if data is None or checkpoint is None:
            return
        try:
            history = outputs.history()
        except RunError:  # Stopped before the run's first event was read: there is nothing to write.
            return
        threshold = checkpoint.numbers.get("threshold")
        facts = model_facts(history, data.classes, data.channels, threshold)
        model = checkpoint.model if checkpoint.step else None
        files = outputs.finish(np.asarray(model, np.float32) if model is not None else None, facts)
        self._table.finish(files, state=finished.reason if finished else "stopped")

    def _checkpoint(self) -> Checkpoint | None:
        try:
            return CheckpointStore(self._folder / CHECKPOINTS_FOLDER).latest(self._run_id)
        except ConfideError as error:
            print(f"confide: {error}", file=sys.stderr)
            return None
