"""Hospitals on other machines: three network namespaces as three hosts, on a bad line."""

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.telemetry.events import HospitalLost
from tests.support.consortium import Consortium
from tests.support.hosts import Host, connected, ip

pytestmark = [pytest.mark.e2e, pytest.mark.network, pytest.mark.timeout(900)]

DELAY_SECONDS = 0.1
"""The delay of a frame between two hosts, so that a packet and its answer take 200 ms."""
FLEET_PORT, ENROLMENT_PORT, RUNTIME_PORT = 9092, 9093, 8000
SUPERNODE_PORT = 9094
"""The port of a hospital's own Runtime API by default."""
CUT_SECONDS = 60.0
REVOKED_WITHIN_SECONDS = 30.0


@dataclass(frozen=True)
class Hosts:
    switch: str
    server: Host
    east: Host
    west: Host

    def cut(self, host: Host) -> None:
        """Take a host's line away at its far end: at the near one the host would lose its IPv6 address with it."""
        ip("-n", self.switch, "link", "set", host.port, "down")

    def mend(self, host: Host) -> None:
        ip("-n", self.switch, "link", "set", host.port, "up")


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Connect three hosts by a line that belongs to none of them."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with connected(("server", "east", "west"), DELAY_SECONDS) as (switch, everyone):
        yield Hosts(switch, *everyone)


def answers(host: Host, address: str, port: int) -> bool:
    """Say whether a TCP connection from ``host`` is accepted."""
    script = f"import socket; socket.create_connection(({address!r}, {port}), 10).close()"
    return subprocess.run((*host.prefix, "python3", "-c", script), check=False, capture_output=True).returncode == 0


def noticed(host: Host, what: str) -> int:
    """Return a counter of a host's TCP, such as ``TcpExt: TCPOFOQueue``, packets that came before those they follow."""
    table, name = what.split()
    for file in ("netstat", "snmp"):
        command = (*host.prefix, "cat", f"/proc/net/{file}")
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        lines = [line.split() for line in printed.splitlines() if line.startswith(f"{table} ")]
        if lines and name in lines[0]:
            return int(lines[1][lines[0].index(name)])
    raise AssertionError(f"the kernel counts no {what}")


def test_a_consortium_on_three_hosts_survives_a_cut_line_and_revokes_a_hospital(tmp_path: Path, hosts: Hosts) -> None:
    consortium = Consortium(tmp_path, 4)
    server, east, west = hosts.server, hosts.east, hosts.west
    try:
        consortium.start_server([server.address, server.address6], ("--listen", "::"), server.prefix)
        for number, name in enumerate(("st-anne", "st-john", "st-luke")):
            consortium.join(name, consortium.invite(name), ("--runtime-port", str(9094 + number)), east.prefix)
        over6 = consortium.invite("st-mary", "--address", server.address6)
        consortium.join("st-mary", over6, prefix=west.prefix)
        consortium.wait_for_rounds(2, 4, 240)

        # The line does what it is here for: packets out of order, received twice, garbled, and sent again.
        for what in ("TcpExt: TCPOFOQueue", "TcpExt: TCPDSACKOldSent", "Tcp: InCsumErrors", "Tcp: RetransSegs"):
            assert noticed(server, what) > 0, what

        for address in (server.address, server.address6):
            assert answers(east, address, FLEET_PORT)
            assert answers(east, address, ENROLMENT_PORT)
            assert not answers(east, address, RUNTIME_PORT)
        assert answers(server, "127.0.0.1", RUNTIME_PORT)
        # Where Flower's SuperNode had a port; a hospital of ours has none, not even for itself.
        assert not answers(server, west.address, SUPERNODE_PORT)
        assert not answers(west, "127.0.0.1", SUPERNODE_PORT)

        hosts.cut(west)
        cut = time.monotonic()
        consortium.wait_for_rounds(3, 3, 180)
        consortium.wait_for(lambda: time.monotonic() > cut + CUT_SECONDS, CUT_SECONDS + 1)
        hosts.mend(west)
        consortium.wait_for_rounds(2, 4, 180)

        revoked = time.monotonic()
        consortium.revoke("st-mary")
        consortium.wait_for(lambda: is_lost(consortium, "st-mary", revoked), REVOKED_WITHIN_SECONDS)
        consortium.wait_for(lambda: consortium.ended("st-mary") == 2, REVOKED_WITHIN_SECONDS)
        consortium.wait_for_rounds(2, 3, 120)
    finally:
        consortium.stop()


def is_lost(consortium: Consortium, name: str, since: float) -> bool:
    """Say whether the server has taken a hospital off its list since then."""
    began = time.time() - (time.monotonic() - since)
    return any(
        isinstance(event, HospitalLost) and event.hospital == name and event.time >= began
        for event in consortium.events()
    )
