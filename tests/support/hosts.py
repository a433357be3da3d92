"""Hosts on this machine, each a network namespace with one interface, and the line between them; they need root."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SLOW_LINE = Path(__file__).parents[1] / "e2e" / "slow_line.py"


@dataclass(frozen=True)
class Host:
    """A network namespace with one interface."""

    name: str
    address: str
    address6: str

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name)

    @property
    def port(self) -> str:
        """The other end of its interface."""
        return f"to-{self.name.rpartition('-')[2]}"

    def run(self, *command: str) -> None:
        subprocess.run((*self.prefix, *command), check=True, capture_output=True)


def ip(*words: str) -> None:
    subprocess.run(("ip", *words), check=True, capture_output=True)


def connect(host: Host, switch: str) -> str:
    """Make a host with one interface, and return the name of that interface's other end."""
    ip("netns", "add", host.name)
    ip("-n", host.name, "link", "add", "eth0", "type", "veth", "peer", "name", host.port, "netns", switch)
    ip("-n", switch, "link", "set", host.port, "up")
    ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
    ip("-n", host.name, "address", "add", f"{host.address6}/64", "dev", "eth0", "nodad")
    ip("-n", host.name, "link", "set", "lo", "up")
    ip("-n", host.name, "link", "set", "eth0", "up")
    # A virtual interface leaves checksums and cutting to hardware that is not there; the line carries what is sent.
    host.run(sys.executable, "-c", WITHOUT_OFFLOAD)
    return host.port


WITHOUT_OFFLOAD = """
import fcntl, socket, struct
for command in (0x17, 0x1f, 0x24):  # ETHTOOL_STXCSUM, _STSO, _SGSO (linux/ethtool.h)
    value = bytearray(struct.pack("II", command, 0))
    where = (__import__("ctypes").c_char * 8).from_buffer(value)
    request = struct.pack("16sP", b"eth0", __import__("ctypes").addressof(where))
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8946, request)  # SIOCETHTOOL
"""


@contextlib.contextmanager
def connected(names: Sequence[str], delay_seconds: float, *options: str) -> Iterator[tuple[str, tuple[Host, ...]]]:
    """Make hosts and connect them by a line that belongs to none of them.

    Args:
        names: of the hosts, each of a few letters.
        delay_seconds: of a frame from one host to another.
        options: of ``slow_line.py``.

    Yields:
        the namespace of the line, and the hosts.
    """
    tag = f"c{os.getpid() % 100_000}"
    hosts = tuple(
        Host(f"{tag}-{name}", f"10.77.0.{number}", f"fd00:77::{number}") for number, name in enumerate(names, start=1)
    )
    ip("netns", "add", tag)
    try:
        ports = [connect(host, tag) for host in hosts]
        command = ("ip", "netns", "exec", tag, sys.executable, str(SLOW_LINE), *options, str(delay_seconds), *ports)
        with subprocess.Popen(command) as line:
            yield tag, hosts
            line.terminate()
    finally:
        for name in (tag, *(host.name for host in hosts)):
            subprocess.run(("ip", "netns", "delete", name), check=False, capture_output=True)
