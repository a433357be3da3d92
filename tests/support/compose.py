"""The demo's consortium in containers, as a test drives it and looks into it."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import docker
from docker.errors import NotFound
from docker.models.containers import Container

from common.settings import free_port
from common.telemetry.events import Event, parse_event

ROOT = Path(__file__).parents[2]
SERVICES = ("server", "dealer", "hospital", "prometheus")
"""Without Grafana, whose image cannot be had everywhere."""

ONCE = ("runs", "first-model")
"""What does one thing and ends: it prepares the folder of results, or makes the model that a run begins with."""

LIMIT_SECONDS = 600.0
_POLL_SECONDS = 1.0
_PROGRAMS = r"\( -path /proc -o -path /sys -o -path /venv -o -path /usr -o -path /confide \)"
_PORTS = ("CONFIDE_FLEET_PORT", "CONFIDE_ENROLMENT_PORT", "CONFIDE_PROMETHEUS_PORT", "CONFIDE_GRAFANA_PORT")


@cache
def engine_answers() -> bool:
    """Say whether there is a Docker engine to test with.

    Asked of the command line: the package leaves a socket behind where no engine answers, and whichever test runs when
    it is collected would fail for it.
    """
    try:
        return subprocess.run(("docker", "version"), check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


class Consortium:
    """One project of ``docker compose``, on ports of its own."""

    def __init__(self, project: str, settings: Mapping[str, str]) -> None:
        self.project = project
        self.client = docker.from_env()
        self.ports = {name: free_port() for name in _PORTS}
        ports = {name: str(port) for name, port in self.ports.items()}
        self._had_volumes: set[str] = set()
        # Without its profile Prometheus would be left running by stop and down.
        own = {"COMPOSE_PROJECT_NAME": project, "COMPOSE_PROFILES": "monitoring"}
        self._environment = {**os.environ, **own, **ports, **settings}

    def compose(self, *arguments: str, **settings: str) -> str:
        """Run one command of ``docker compose`` and return what it printed."""
        environment = {**self._environment, **settings}
        done = subprocess.run(
            ("docker", "compose", *arguments), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    def up(self, hospitals: int, **settings: str) -> None:
        self.compose("up", "--detach", "--no-build", "--scale", f"hospital={hospitals}", *SERVICES, **settings)
        self._had_volumes |= self.volumes()

    def down(self) -> None:
        """End the consortium, and remove the volumes that compose leaves: of containers it replaced or scaled away."""
        self.compose("down", "--volumes", "--timeout", "10")
        for name in self._had_volumes:
            with suppress(NotFound):
                self.client.volumes.get(name).remove()

    def volumes(self) -> set[str]:
        """Return the names of the volumes that the containers of now have."""
        mounts = [mount for container in self.containers() for mount in container.attrs["Mounts"]]
        return {str(mount["Name"]) for mount in mounts if mount["Type"] == "volume"}

    def containers(self, service: str | None = None) -> list[Container]:
        # An image that compose built hands its project's label on to whatever is run from it, but not this one.
        labels = [f"com.docker.compose.project={self.project}", "com.docker.compose.oneoff=False"]
        if service is not None:
            labels.append(f"com.docker.compose.service={service}")
        found = self.client.containers.list(all=True, filters={"label": labels})
        found = [item for item in found if item.labels.get("com.docker.compose.service") not in ONCE]
        return sorted(found, key=lambda container: str(container.name))

    def events(self) -> list[Event]:
        """Return the events of the newest run, none while there is none."""
        (server,) = self.containers("server")
        newest = "ls -t /state/runs/*/events.jsonl 2>/dev/null | head -1 | xargs -r cat"
        if server.status != "running":
            return []
        lines = shell(server, newest, user="server").splitlines()
        return [event for line in lines if (event := parse_event(line)) is not None]

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        give_up = time.monotonic() + LIMIT_SECONDS
        while not condition():
            assert time.monotonic() < give_up, f"waited {LIMIT_SECONDS:g} s for {what}\n{self.last_words()}"
            time.sleep(_POLL_SECONDS)

    def last_words(self) -> str:
        return "\n".join(f"{item.name}: {item.logs(tail=8).decode(errors='replace')}" for item in self.containers())


def hashes(container: Container, criteria: str) -> set[str]:
    """Return the hash of every file outside a container's programs that fits ``find``'s criteria, wherever it lies."""
    found = f"find / {_PROGRAMS} -prune -o -type f {criteria} -print0 | xargs -0 -r sha256sum"
    return {line.split()[0] for line in shell(container, found).splitlines()}


def shell(container: Container, command: str, user: str = "root") -> str:
    """Return what a command prints in a container; as root it may read everything, whatever the container may."""
    code, output = _run(container, ["sh", "-c", command], user)
    assert code == 0, output
    return output


def is_denied(container: Container, user: str, *command: str) -> bool:
    """Say whether a user of a container is not allowed what ``command`` does."""
    code, output = _run(container, list(command), user)
    return code != 0 and "Permission denied" in output


def _run(container: Container, command: list[str], user: str) -> tuple[int, str]:
    told: Any = container.exec_run(command, user=user, privileged=user == "root")
    return told.exit_code, told.output.decode(errors="replace")


def processes(container: Container) -> list[dict[str, str]]:
    """Return every process of a container: its user's number and its command line, seen from outside."""
    told: Any = container.top(ps_args="-eo pid,uid,args")
    return [dict(zip(("pid", "uid", "command"), row, strict=True)) for row in told["Processes"]]
