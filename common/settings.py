"""What one role is started with: addresses, ports and folders, kept as JSON beside its keys."""

import socket
import time
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.complaints import complaint
from common.config import RunId
from common.errors import ConfigError
from common.files import write_private

SERVER_SETTINGS_FILE = "server.json"
HOSPITAL_SETTINGS_FILE = "hospital.json"
ROSTER_FILE = "roster.yaml"
"""Hospital name to PEM identity certificate, in the server's state folder."""
SUPERNODES_FOLDER = "supernodes"
"""A folder in the server's state folder: one OpenSSH public key for each hospital, ``NAME.pub``."""
READY_FILE = "ready"
"""A file in the server's state folder while hospitals can connect."""
RELAY_FOLDER = "relay"
"""What a hospital's relay may read in the state folder: its own key, the authority's certificate, and a socket."""
CHECKPOINTS_FOLDER = "checkpoints"
"""The name of the folder in a run's folder."""
CACHE_FOLDER = "cache"
"""The name of the folder in a hospital's state folder, of prepared images and their features."""
SECRET_BYTES = 32
"""The length of a secret that opens a Runtime API to the process beside it."""

PORT_PATIENCE_SECONDS = 3.0
"""When a supervisor was killed, the kernel needs a moment to end its processes and free their ports."""
_POLL_SECONDS = 0.1

Port = Annotated[int, Field(ge=1, le=65_535)]
OptionalPort = Annotated[int, Field(ge=0, le=65_535)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1

    def write(self, path: Path) -> None:
        """Write the settings to ``path``, readable by their owner alone."""
        write_private(path, self.model_dump_json(indent=2).encode())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the settings in ``path``, or raise :class:`ConfigError`."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{path} must be readable: {error.strerror}; set this role up first") from None
        except ValidationError as error:
            raise ConfigError(f"{path}: {complaint(error, 'the file')}; set this role up again") from None


class ServerSettings(_Settings):
    """``server.json`` in the server's state folder."""

    config: Path
    """The consortium's ``config.yaml``, complete."""
    run_config: Path | None = None
    """The configuration of the run, as it was proposed; None where it is the consortium's."""
    run: Path
    """Where the run's events, checkpoints and results go."""
    logs: Path
    run_id: RunId
    data_set: str
    """The data set's name, for every output."""
    classes: tuple[str, ...]
    channels: int
    fleet_host: str = "0.0.0.0"  # noqa: S104 - the Fleet API is what hospitals connect to; it asks for TLS and a key
    fleet_port: Port = 9092
    runtime_port: Port = 8000
    metrics_port: OptionalPort = 9400
    """0 serves no metrics."""
    metrics_host: str = "127.0.0.1"
    hosts: tuple[str, ...] = ("localhost",)
    """What hospitals call the server, for its certificate; the first is what invitations name."""
    enrolment_port: OptionalPort = 0
    """The port of the enrolment service, which listens on ``fleet_host``; 0 for no service."""
    authority: Path | None = None
    """The authority's folder; None when that is kept elsewhere and signs files (``confide ca sign``)."""


class HospitalSettings(_Settings):
    """``hospital.json`` in a hospital's state folder."""

    fleet_address: str
    """Host and port of the server's Fleet API."""
    enrolment_address: str | None = None
    """Host and port of its enrolment service; None where hospitals were enrolled without one."""
    logs: Path
    data: Path
    """The shard: this hospital's own images."""
    config: Path
    """The hospital's own ``config.yaml``; only its sections ``hospital``, ``transport`` and ``monitoring`` count."""
    runtime_port: Port = 9094
    """Nobody listens there any more; files of earlier versions name it."""
    metrics_port: OptionalPort = 9401
    """0 serves no metrics."""
    metrics_host: str = "127.0.0.1"


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port_free(host: str, port: int, what: str, patience_seconds: float = PORT_PATIENCE_SECONDS) -> None:
    """Wait until nobody listens on ``port``; ``what`` says what it is for.

    Raises:
        ConfigError: another process still listens there after ``patience_seconds``.
    """
    deadline = time.monotonic() + patience_seconds
    while (fault := _taken(host, port)) is not None:
        if time.monotonic() > deadline:
            raise ConfigError(
                f"port {port} on {host} must be free for {what}: {fault}; "
                "stop what listens there or choose another port"
            )
        time.sleep(_POLL_SECONDS)


def _taken(host: str, port: int) -> str | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror
    return None
