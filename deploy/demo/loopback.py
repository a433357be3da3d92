"""A server and its hospitals as processes on this machine, over loopback: the parts that run in production."""

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from common.config import Config, load_config
from common.errors import RunError
from common.processes import ProcessCommand, Supervisor, last_line, python_module, python_path
from common.settings import (
    CACHE_FOLDER,
    HOSPITAL_SETTINGS_FILE,
    READY_FILE,
    SERVER_SETTINGS_FILE,
    HospitalSettings,
    ServerSettings,
    free_port,
)
from deploy.datasets.datasets import DataSet
from deploy.demo.consortium import ConsortiumOnThisMachine, Member
from deploy.source_tree import ROOT

SERVER = "server"
"""The supervisor's name for the server; a hospital has its own."""

CONSORTIUM_FOLDER = "consortium"
"""The folder of the states of the server and the hospitals, in the run's."""

_CONFIG_FILE = "config.yaml"

_POLL_SECONDS = 0.1


class LoopbackDeployment:
    """The folders, keys and processes of one server and N hospitals on this machine.

    Args:
        config: of the consortium and of each hospital.
        folder: for the run's outputs, its logs, and each role's state.
        run_id: 32 hexadecimal digits.
    """

    def __init__(self, config: Config, folder: Path, run_id: str) -> None:
        self.config = config
        self.folder = folder
        self.run_id = run_id
        self.supervisor = Supervisor()
        self.consortium = ConsortiumOnThisMachine(folder / CONSORTIUM_FOLDER, config)
        names = tuple(f"hospital-{number}" for number in range(1, config.experiment.num_clients + 1))
        self.members: tuple[Member, ...] = self.consortium.members(names, folder / "logs")

    def set_up(self, data: DataSet) -> dict[str, tuple[int, ...]]:
        """Make every key and certificate, choose free ports, and return those of the exporters, by role."""
        settings = ServerSettings(
            config=self.consortium.server_state / _CONFIG_FILE,
            run=self.folder,
            logs=self.folder / "logs" / SERVER,
            run_id=self.run_id,
            data_set=data.name,
            classes=data.classes,
            channels=data.channels,
            fleet_host="127.0.0.1",
            fleet_port=free_port(),
            runtime_port=free_port(),
            metrics_port=free_port(),
        )
        self.consortium.set_up(settings, self.members, [free_port() for _ in self.members])
        own = [HospitalSettings.read(member.state / HOSPITAL_SETTINGS_FILE) for member in self.members]
        return {"server": (settings.metrics_port,), "hospital": tuple(hospital.metrics_port for hospital in own)}

    @classmethod
    def found_in(cls, folder: Path) -> Self:
        """Return the deployment whose states lie in a run's folder, under its own configuration.

        Raises:
            ConfigError: none lies there, or not all of it.
        """
        state = folder / CONSORTIUM_FOLDER / "server"
        settings = ServerSettings.read(state / SERVER_SETTINGS_FILE)
        return cls(load_config(state / _CONFIG_FILE), folder, settings.run_id)

    def take_up(self) -> dict[str, tuple[int, ...]]:
        """Choose ports anew for a deployment that was stopped, and name its folders as they are called now.

        Returns:
            The ports of the exporters, by role.

        Raises:
            ConfigError: a role's settings cannot be read.
        """
        state = self.consortium.server_state
        settings = ServerSettings.read(state / SERVER_SETTINGS_FILE).model_copy(
            update={
                "config": state / _CONFIG_FILE,
                "run": self.folder,
                "logs": self.folder / "logs" / SERVER,
                "fleet_port": free_port(),
                "runtime_port": free_port(),
                "metrics_port": free_port(),
            }
        )
        settings.write(state / SERVER_SETTINGS_FILE)
        (state / READY_FILE).unlink(missing_ok=True)
        exporters = []
        for member in self.members:
            path = member.state / HOSPITAL_SETTINGS_FILE
            exporters.append(free_port())
            HospitalSettings.read(path).model_copy(
                update={
                    "fleet_address": f"127.0.0.1:{settings.fleet_port}",
                    "logs": member.logs,
                    "data": member.data,
                    "config": member.state / _CONFIG_FILE,
                    "runtime_port": free_port(),
                    "metrics_port": exporters[-1],
                }
            ).write(path)
        return {"server": (settings.metrics_port,), "hospital": tuple(exporters)}

    def remove_keys_and_images(self) -> None:
        """Remove what only a run that goes on needs: private keys, and each hospital's images and what is made of them.

        Ledgers, audit chains, certificates, results and logs stay.

        Raises:
            RunError: something cannot be removed.
        """
        folders = [folder for member in self.members for folder in (member.data, member.state / CACHE_FOLDER)]
        try:
            for folder in filter(Path.exists, folders):
                shutil.rmtree(folder)
            for pattern in ("*.key", "*.secret"):
                for path in self.consortium.folder.rglob(pattern):
                    path.unlink()
        except OSError as error:
            raise RunError(
                f"keys and images in {self.consortium.folder} must be removable: {error.strerror}; remove them by hand"
            ) from None

    def start_server(self, environment: Mapping[str, str] | None = None, module: str = SERVER) -> None:
        """Start the server's supervisor; it ends when the run is finished."""
        arguments = python_module(module, "--state", str(self.consortium.server_state), "--once")
        environment = environment or {"PYTHONPATH": python_path(ROOT)}
        self.supervisor.start(ProcessCommand(SERVER, arguments, self._log(SERVER), environment))

    def await_server(self) -> None:
        """Wait until hospitals can connect: a SuperNode that comes before its key is registered is turned away.

        Raises:
            RunError: the server has ended; carries the last line of its log.
        """
        while not (self.consortium.server_state / READY_FILE).exists():
            self.check_server(self.supervisor.ended())
            time.sleep(_POLL_SECONDS)

    def check_server(self, ended: Sequence[str]) -> None:
        """Raise :class:`RunError` if the server is among ``ended``."""
        if SERVER in ended:
            raise RunError(f"the server must run: {self.last_words(SERVER)}")

    def start_hospitals(self) -> None:
        """Start each hospital's supervisor."""
        # The hospitals share this machine's cores; each would otherwise start as many threads as there are cores.
        threads = str(max(1, (os.cpu_count() or 1) // len(self.members)))
        environment = {"PYTHONPATH": python_path(ROOT), "OMP_NUM_THREADS": threads}
        for member in self.members:
            command = python_module("client", "--state", str(member.state))
            self.supervisor.start(ProcessCommand(member.name, command, self._log(member.name), environment))

    def last_words(self, name: str) -> str:
        """Return the last line that the server's or a hospital's supervisor wrote."""
        return last_line(self._log(name))

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"
