"""The operator's guide as it is written: the authority's key stays on the organiser's machine, files are carried."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.identity.certificates import held_by_server, load_certificate
from common.identity.members import MEMBERS_FILE, KeptMembers
from common.identity.revocation import REVOCATIONS_FILE
from common.settings import free_port
from server.members.certificates import REQUESTS_FOLDER
from tests.support.consortium import ENVIRONMENT, ROOT, Consortium

pytestmark = pytest.mark.e2e

LOOPBACK = "127.0.0.1"
NAMES = ("st-mary", "st-john", "st-anne", "st-luke")
FLOWER_TOKEN = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64,}(?![0-9a-f])")
"""What Flower's task tokens look like."""


class Organiser:
    """The organiser's machine: an authority's folder, and files that are carried to the server and back."""

    def __init__(self, folder: Path, requests: Path) -> None:
        self.folder = folder
        self._requests = requests
        self._carried = folder / "carried"
        self._carried.mkdir(parents=True)

    def ca(self, *arguments: str) -> str:
        command = (sys.executable, "-m", "deploy", "ca", "--ca", str(self.folder / "certs"), *arguments)
        done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, check=True, capture_output=True, text=True)
        return done.stdout

    def sign_what_waits(self) -> list[str]:
        """Sign every request, and bring back what was written beside them; returns the names of the requests."""
        waiting = sorted(self._requests.glob("*.csr"))
        for path in waiting:
            (self._carried / path.name).write_bytes(path.read_bytes())
        if waiting:
            self.ca("sign", *(str(self._carried / path.name) for path in waiting))
            self.bring()
        return [path.stem for path in waiting]

    def bring(self) -> None:
        for path in [*self._carried.glob("*.pem"), self._carried / REVOCATIONS_FILE, self._carried / MEMBERS_FILE]:
            if path.exists():
                (self._requests / path.name).write_bytes(path.read_bytes())
                path.unlink()

    def revoke(self, name: str) -> None:
        self.ca("revoke", name, "--out", str(self._carried))
        self.bring()


def command_lines() -> dict[int, bytes]:
    """Return what any user of this machine reads in the list of processes."""
    lines = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines[int(path.parent.name)] = path.read_bytes()
        except OSError:  # It has ended meanwhile.
            continue
    return lines


@pytest.mark.timeout(600)
def test_a_consortium_whose_authority_is_elsewhere_admits_trains_and_revokes(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path, hospitals=4)
    organiser = Organiser(tmp_path / "organiser", consortium.state / REQUESTS_FOLDER)
    organiser.ca("make")
    ports = [word for option in ("fleet", "enrolment", "runtime") for word in (f"--{option}-port", str(free_port()))]
    try:
        authority = organiser.folder / "certs" / "ca.pem"
        consortium.start_server((LOOPBACK,), ("--authority", str(authority), *ports))
        consortium.wait_for(lambda: organiser.sign_what_waits() == ["server.members.tls"], 60)
        for name in NAMES:
            invitation = tmp_path / f"{name}.invitation"
            invitation.write_text(consortium.invite(name))
            ports = ["--runtime-port", str(free_port())]
            consortium.join(name, str(invitation), ports)
        signed: set[str] = set()

        def all_signed() -> bool:
            signed.update(organiser.sign_what_waits())
            return signed >= set(NAMES)

        consortium.wait_for(all_signed, 120)
        consortium.wait_for_rounds(2, hospitals=4, seconds=240)
        _nothing_secret_is_on_a_command_line()
        root = load_certificate(consortium.state / "ca.pem")
        assert not held_by_server(root)
        assert not list(consortium.state.rglob("ca.key"))
        before = KeptMembers(consortium.hospital_state("st-john"), root).newest()
        assert before is not None
        assert set(before.members) == set(NAMES)

        consortium.revoke("st-luke")
        organiser.revoke("st-luke")
        # The server cuts it off at once; the hospitals know of it when they ask for the authority's next list.
        kept, number = KeptMembers(consortium.hospital_state("st-john"), root), before.number
        consortium.wait_for(lambda: (newest := kept.newest()) is not None and newest.number > number, 120)
        after = kept.newest()
        assert after is not None
        assert (after.number, set(after.members)) == (before.number + 1, set(NAMES) - {"st-luke"})
        consortium.wait_for_rounds(2, hospitals=3, seconds=120)
    finally:
        consortium.stop()


def _nothing_secret_is_on_a_command_line() -> None:
    give_up = time.monotonic() + 30
    while not any(b"flwr-serverapp" in line for line in command_lines().values()) and time.monotonic() < give_up:
        time.sleep(0.1)
    lines = command_lines().values()
    assert any(b"flwr-serverapp" in line for line in lines)
    for line in lines:
        words = line.split(b"\0")
        assert b"--token" not in words
        assert not any(word.startswith(b"confide1-") for word in words)
        if b"flwr" in line or b"-m\0server" in line or b"-m\0client" in line:
            assert not FLOWER_TOKEN.search(line), words
