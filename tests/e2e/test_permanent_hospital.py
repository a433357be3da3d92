"""``deploy/hospital/docker-compose.yml`` for real: a hospital in a container joins a server that is not in one."""

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
import yaml

from common.settings import free_port
from tests.support.compose import engine_answers
from tests.support.consortium import ROOT, Consortium

NAME = "st-mary"
CONFIG = {"hospital": {"allow_no_privacy": True}, "enrolment": {"standing_seconds": 1.0}}
"""What the hospital in the container agrees to; the run is without noise, as everywhere in these tests."""

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not engine_answers(), reason="no Docker engine answers"),
]


class Container:
    """The project of ``deploy/hospital``, with images and a configuration of its own."""

    def __init__(self, images: Path, config: Path) -> None:
        self._environment = {
            **os.environ,
            "COMPOSE_PROJECT_NAME": f"confide-test-{uuid.uuid4().hex[:8]}",
            "CONFIDE_IMAGES": str(images),
            "CONFIDE_CONFIG": str(config),
            "CONFIDE_METRICS_PORT": str(free_port()),
        }

    def compose(self, *arguments: str, **settings: str) -> str:
        command = ("docker", "compose", "--file", "deploy/hospital/docker-compose.yml", *arguments)
        done = subprocess.run(
            command, cwd=ROOT, env={**self._environment, **settings}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def inside(self, *command: str) -> str:
        return self.compose("exec", "--no-TTY", "--user", "hospital", "hospital", *command)


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    images, config = tmp_path / "xrays", tmp_path / "hospital.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    config.chmod(0o644)  # Whatever the umask: the container's user reads it.
    made = Container(images, config)
    made.compose("build")
    try:
        yield made
    finally:
        made.compose("down", "--volumes", "--timeout", "10")


def test_a_hospital_in_a_container_joins_by_the_invitation_in_its_environment(
    tmp_path: Path, container: Container
) -> None:
    gateway = docker.from_env().networks.get("bridge").attrs["IPAM"]["Config"][0]["Gateway"]
    consortium = Consortium(tmp_path, 3)
    ports = ("--fleet-port", str(free_port()), "--enrolment-port", str(free_port()), "--runtime-port", str(free_port()))
    try:
        consortium.start_server([gateway], ports)
        for name in ("st-anne", "st-john"):
            consortium.join(name, consortium.invite(name), ("--runtime-port", str(free_port())))
        readable_by_others(consortium.shards[2]).rename(tmp_path / "xrays")
        container.compose("up", "--detach", CONFIDE_INVITATION=consortium.invite(NAME))
        consortium.wait_for_rounds(2, 3, 240)
        status = container.inside("python", "-m", "deploy", "hospital", "status", "--state", "/state")
        assert status.startswith(f"hospital        {NAME}\n")
        assert "needs you" not in status
        identity = container.inside("sha256sum", "/state/identity.key")

        # Its volume is all it needs: the invitation was for the first start alone.
        container.compose("down", "--timeout", "20")
        container.compose("up", "--detach")
        consortium.wait_for_rounds(2, 3, 240)
        assert container.inside("sha256sum", "/state/identity.key") == identity
    finally:
        consortium.stop()


def readable_by_others(images: Path) -> Path:
    """Let the container's user read a folder, as ``setfacl`` does in the guide."""
    for path in (images, *images.rglob("*")):
        path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
    return images
