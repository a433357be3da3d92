import hashlib
import socket
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from common.errors import DataError
from deploy.datasets import download as download_module
from deploy.datasets.download import NoAnswerError, PublishedFile, check_md5, download

CONTENT = bytes(range(256)) * 4096
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One page for each thing that can go wrong."""

    bodies: ClassVar = {
        "/good": (len(CONTENT), CONTENT),
        "/truncated": (len(CONTENT), CONTENT[:1000]),
        "/stalled": (len(CONTENT), CONTENT[:1000]),
        "/login": (5, b"<html"),
        "/empty": (0, b""),
    }

    def do_GET(self) -> None:
        if isinstance(self.server, Site):
            self.server.asked.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
        elif self.path == "/garbage":
            self.wfile.write(b"\0\1\2 not http\r\n\r\n")
        elif self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/good")
            self.end_headers()
        elif self.path in self.bodies:
            length, body = self.bodies[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()
        if self.path in ("/silent", "/stalled") and isinstance(self.server, Site):
            self.server.test_is_over.wait(30)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


class Site(ThreadingHTTPServer):
    """A web server on loopback; pages that hang end with the test."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.test_is_over = threading.Event()
        self.asked: list[str] = []
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def file(self, page: str, md5: str = MD5) -> PublishedFile:
        return PublishedFile("example.npz", f"http://127.0.0.1:{self.server_port}/{page}", md5)

    def close(self) -> None:
        self.test_is_over.set()
        self.shutdown()
        self.server_close()
        self.thread.join()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Site()
    yield running
    running.close()


def test_a_file_arrives_whole_and_private(site: Site, tmp_path: Path) -> None:
    path = download(site.file("good"), tmp_path / "cache", 5.0)
    assert path == tmp_path / "cache" / "example.npz"
    assert path.read_bytes() == CONTENT
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_file_that_was_moved_is_followed(site: Site, tmp_path: Path) -> None:
    assert download(site.file("moved"), tmp_path, 5.0).read_bytes() == CONTENT


def test_a_proxy_of_the_environment_is_asked(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The site stands in for a proxy, which gets the whole address for a path: it has no such page."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{site.server_port}")
    with pytest.raises(NoAnswerError, match=r"example\.npz could not be downloaded"):
        download(PublishedFile("example.npz", "http://name.invalid/good", MD5), tmp_path, 5.0)
    assert site.asked == ["http://name.invalid/good"]


def test_a_truncated_body_is_refused_and_leaves_nothing(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"broke off after 1000 of 1048576 bytes") as caught:
        download(site.file("truncated"), tmp_path, 5.0)
    assert not isinstance(caught.value, NoAnswerError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("page", ["good", "login", "empty"])
def test_a_wrong_checksum_is_refused_and_leaves_nothing(site: Site, tmp_path: Path, page: str) -> None:
    with pytest.raises(DataError, match=r"example\.npz must be the published file .*corrupt") as caught:
        download(site.file(page, "0" * 32), tmp_path, 5.0)
    assert not isinstance(caught.value, NoAnswerError)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_never_answers_is_no_answer(site: Site, tmp_path: Path) -> None:
    with pytest.raises(NoAnswerError, match=r"no answer within 0\.2 seconds|timed out"):
        download(site.file("silent"), tmp_path, 0.2)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_stalls_midway_is_told_from_one_that_never_answers(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="broke off after 1000 of") as caught:
        download(site.file("stalled"), tmp_path, 0.2)
    assert not isinstance(caught.value, NoAnswerError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("page", ["missing", "garbage"])
def test_a_refusal_or_garbage_is_no_answer(site: Site, tmp_path: Path, page: str) -> None:
    with pytest.raises(NoAnswerError, match=r"example\.npz could not be downloaded"):
        download(site.file(page), tmp_path, 5.0)


def test_a_closed_port_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        port = server.server_port
    with pytest.raises(NoAnswerError, match="refused"):
        download(PublishedFile("example.npz", f"http://127.0.0.1:{port}/", MD5), tmp_path, 5.0)


def test_a_name_that_can_not_be_looked_up_in_time_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_is_over = threading.Event()

    def look_up_for_ever(*_: object, **__: object) -> None:
        test_is_over.wait(30)
        raise OSError("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", look_up_for_ever)
    with pytest.raises(NoAnswerError, match=r"no answer within 0\.05 seconds"):
        download(PublishedFile("example.npz", "http://name.invalid/", MD5), tmp_path, 0.05)
    test_is_over.set()


def test_an_endless_body_is_given_up(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "MAX_DOWNLOAD_BYTES", 100_000)
    with pytest.raises(DataError, match="larger than any published file"):
        download(site.file("good"), tmp_path, 5.0)


def test_a_cache_that_can_not_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="must be a writable folder"):
        download(PublishedFile("example.npz", "http://name.invalid/", MD5), tmp_path / "file" / "cache", 1.0)


def test_a_corrupt_file_is_named_with_both_checksums_and_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "example.npz"
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match=rf"{MD5}.*got md5 [0-9a-f]{{32}}.*remove it"):
        check_md5(path, PublishedFile("example.npz", "", MD5))
