"""Prometheus and Alertmanager themselves, by the files of a hospital's own monitoring: the message that a person gets.

Only addresses, intervals and the mail server's encryption are filled in.
"""

import email.policy
import os
import shutil
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from email.message import EmailMessage
from pathlib import Path
from queue import Empty, Queue

import msgspec
import pytest

from client.last_standing import STANDING_FILE, LastStanding
from client.metrics import serve
from client.status import STATUS_FILE, HospitalStatus
from common.config import PROTOCOL_VERSION
from common.settings import free_port

ROOT = Path(__file__).parents[2]
PROMETHEUS = os.environ.get("CONFIDE_PROMETHEUS") or shutil.which("prometheus")
ALERTMANAGER = os.environ.get("CONFIDE_ALERTMANAGER_PROGRAM") or shutil.which("prometheus-alertmanager")
LIMIT_SECONDS = 90.0

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        PROMETHEUS is None or ALERTMANAGER is None,
        reason="prometheus and prometheus-alertmanager are not installed (or set CONFIDE_PROMETHEUS and "
        "CONFIDE_ALERTMANAGER_PROGRAM)",
    ),
]


class _MailServer(socketserver.ThreadingTCPServer):
    """Takes what is sent to it by SMTP, RFC 5321, and delivers nothing."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Session)
        self.received: Queue[tuple[str, EmailMessage]] = Queue()
        self.port = int(self.server_address[1])


class _Session(socketserver.StreamRequestHandler):
    server: _MailServer

    def handle(self) -> None:
        to = ""
        self.wfile.write(b"220 here\r\n")
        for line in self.rfile:
            word = line[:4].upper()
            if word == b"RCPT":
                to = line.decode().partition("<")[2].partition(">")[0]
            if word == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                content = b"".join(iter(self.rfile.readline, b".\r\n"))
                message = email.message_from_bytes(content, policy=email.policy.default)
                assert isinstance(message, EmailMessage)
                self.server.received.put((to, message))
            self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 yes\r\n")


@pytest.fixture
def mail() -> Iterator[_MailServer]:
    with _MailServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@contextmanager
def _running(*command: str) -> Iterator[None]:
    with subprocess.Popen(command) as process:
        try:
            yield
        finally:
            process.terminate()


def _filled(file: Path, places: dict[str, str], into: Path) -> Path:
    text = file.read_text()
    for written, place in places.items():
        assert written in text, written
        text = text.replace(written, place)
    path = into / file.name
    path.write_text(text)
    return path


def test_an_alert_of_a_hospitals_own_prometheus_reaches_the_person_on_call(mail: _MailServer, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    HospitalStatus(hospital="st-mary", time=time.time(), epsilon_budget=10.0).write(state / STATUS_FILE)
    newer = LastStanding(answered=None, problem=None, protocol=PROTOCOL_VERSION + 1, oldest=PROTOCOL_VERSION + 1)
    (state / STANDING_FILE).write_bytes(msgspec.json.encode(newer))
    prometheus_port, alertmanager_port = free_port(), free_port()
    shutil.copy(ROOT / "deploy" / "prometheus" / "alerts.yml", tmp_path)
    route = _filled(
        ROOT / "deploy" / "prometheus" / "alertmanager.yml",
        {"mail.example.org:587": f"127.0.0.1:{mail.port}", "smtp_require_tls: true": "smtp_require_tls: false"},
        tmp_path,
    )
    with ExitStack() as running:
        exporter = running.enter_context(serve(state / STATUS_FILE, 0))
        configuration = _filled(
            ROOT / "deploy" / "hospital" / "prometheus.yml",
            {"15s": "1s", "hospital:9401": f"127.0.0.1:{exporter.port}",
             "alertmanager:9093": f"127.0.0.1:{alertmanager_port}"},
            tmp_path,
        )  # fmt: skip
        running.enter_context(_running(
            str(ALERTMANAGER), f"--config.file={route}", f"--storage.path={tmp_path / 'alertmanager'}",
            f"--web.listen-address=127.0.0.1:{alertmanager_port}", "--cluster.listen-address=", "--log.level=error",
        ))  # fmt: skip
        running.enter_context(_running(
            str(PROMETHEUS), f"--config.file={configuration}", f"--storage.tsdb.path={tmp_path / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{prometheus_port}", "--log.level=error",
        ))  # fmt: skip
        try:
            to, message = mail.received.get(timeout=LIMIT_SECONDS)
        except Empty:
            pytest.fail("a message must arrive")
    assert to == "on-call@example.org"
    assert "ServerOfAnotherVersion" in message["Subject"]
    body = message.get_body(("html",))
    assert body is not None
    assert "The server speaks no version of the protocol that st-mary speaks" in body.get_content()
    assert "runbooks.md#serverofanotherversion" in body.get_content()
