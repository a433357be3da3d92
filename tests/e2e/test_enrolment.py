"""A consortium as its operator and its hospitals run it: invite, join, renew, revoke, on real processes."""

import contextlib
import select
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from common.identity.certificates import load_certificate
from common.settings import free_port
from tests.support.consortium import Consortium
from tests.support.listener import Listener

pytestmark = pytest.mark.e2e

LOOPBACK = "127.0.0.1"
SERVER = "127.0.0.2"
"""An address of this machine too, but not among the addresses that Confide keeps from going to a proxy."""


class ConnectProxy:
    """An HTTP proxy that knows CONNECT alone, and counts where it was asked to go."""

    def __init__(self) -> None:
        self.targets: list[str] = []
        self._listener = Listener(LOOPBACK, self._carry)
        self.port = self._listener.port
        self.close = self._listener.close

    def _carry(self, near: socket.socket) -> None:
        with near:
            head = b""
            while b"\r\n\r\n" not in head:
                head += near.recv(4096)
            target = head.split(b" ", 2)[1].decode()
            self.targets.append(target)
            host, _, port = target.rpartition(":")
            # What the hospital sees of a server that is not there, or of a line that breaks, is a closed connection.
            with contextlib.suppress(OSError), socket.create_connection((host, int(port))) as far:
                near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                pump(near, far)


def pump(near: socket.socket, far: socket.socket) -> None:
    """Carry bytes both ways until one side closes."""
    while True:
        for ready in select.select([near, far], [], [])[0]:
            content = ready.recv(65_536)
            if not content:
                return
            (far if ready is near else near).sendall(content)


@pytest.fixture
def proxy() -> Iterator[ConnectProxy]:
    listening = ConnectProxy()
    yield listening
    listening.close()


@pytest.mark.timeout(600)
def test_hospitals_join_renew_and_are_revoked_while_a_run_goes_on(tmp_path: Path, proxy: ConnectProxy) -> None:
    # Certificates that live for half a minute expire several times during this run.
    short = ("enrolment.hospital_certificate_hours=0.012", "enrolment.server_certificate_hours=0.012")
    consortium = Consortium(tmp_path, 4, short)
    fleet, enrolment = free_port(), free_port()
    ports = ("--fleet-port", str(fleet), "--enrolment-port", str(enrolment), "--runtime-port", str(free_port()))
    try:
        consortium.start_server([SERVER], (*ports, "--listen", SERVER))
        group = consortium.invite("hospital", "--group", "3")
        for number in (1, 2, 3):
            consortium.join(f"hospital-{number}", group, ("--runtime-port", str(free_port())))
        through = {"https_proxy": f"http://{LOOPBACK}:{proxy.port}", "no_proxy": ""}
        invitation = consortium.invite("st-mary")
        consortium.join("st-mary", invitation, ("--runtime-port", str(free_port())), environment=through)
        consortium.wait_for_rounds(2, 4, 240)
        assert {f"{SERVER}:{fleet}", f"{SERVER}:{enrolment}"} <= set(proxy.targets)

        first = load_certificate(consortium.hospital_state("st-mary") / "identity.pem")
        server_first = load_certificate(consortium.state / "tls.pem")
        consortium.wait_for(lambda: is_renewed(consortium, first.serial_number, server_first.serial_number), 120)
        consortium.wait_for_rounds(2, 4, 120)
        assert served_serial(fleet) != server_first.serial_number

        consortium.revoke("st-mary")
        consortium.wait_for(lambda: consortium.ended("st-mary") == 2, 30)
        consortium.wait_for_rounds(2, 3, 60)
        assert "has been revoked" in (tmp_path / "st-mary.out").read_text()
    finally:
        consortium.stop()


def served_serial(port: int) -> int:
    """Return the serial number of the certificate that whoever connects to a port now is shown."""
    served = ssl.get_server_certificate((SERVER, port), timeout=10)
    return x509.load_pem_x509_certificate(served.encode()).serial_number


def is_renewed(consortium: Consortium, hospital_serial: int, server_serial: int) -> bool:
    hospital = load_certificate(consortium.hospital_state("st-mary") / "identity.pem")
    server = load_certificate(consortium.state / "tls.pem")
    return hospital.serial_number != hospital_serial and server.serial_number != server_serial
