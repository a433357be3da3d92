"""Fetches a published file once: bounded in time, checked, and put in place only when whole."""

import hashlib
import os
import ssl
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx

from common.errors import DataError
from common.files import make_private_folder

SLOWEST_BYTES = 256 * 2**10
"""The slowest transfer: one that brings less than this in one time limit has stalled."""

MAX_DOWNLOAD_BYTES = 16 * 2**30
"""The largest file; the largest that MedMNIST published has 12.6 GB."""


class NoAnswerError(DataError):
    """Nothing of the file arrived: no network, no answer in time, or a refusal."""


@dataclass(frozen=True)
class PublishedFile:
    """A file that its authors published, with the checksum they published beside it."""

    name: str
    url: str
    md5: str


@dataclass
class _Transfer:
    """Shared by the thread that receives and the one that watches the clock."""

    received: int = 0
    expected: int | None = None
    failure: str | None = None
    finished: threading.Event = field(default_factory=threading.Event)
    abandoned: threading.Event = field(default_factory=threading.Event)


def download(published: PublishedFile, folder: Path, timeout_seconds: float) -> Path:
    """Fetch a file into ``folder``, where it appears whole and checked or not at all.

    The limit covers everything up to the first byte, name resolution included, which no socket timeout does; from
    then on each further span of that length must bring ``SLOWEST_BYTES``.

    Args:
        published: what to fetch.
        folder: made if missing, for its owner alone.
        timeout_seconds: above 0.

    Returns:
        The path of the file.

    Raises:
        NoAnswerError: nothing of it arrived.
        DataError: what arrived was cut short or has another checksum, or the disk refuses.
    """
    try:
        make_private_folder(folder)
        handle, name = tempfile.mkstemp(prefix=f".{published.name}.", suffix=".partial", dir=folder)
    except OSError as error:
        raise DataError(f"the cache {folder} must be a writable folder: {error.strerror}") from None
    partial = Path(name)
    try:
        _receive_in_time(published, os.fdopen(handle, "wb"), timeout_seconds)
        check_md5(partial, published)
        return partial.replace(folder / published.name)
    finally:
        partial.unlink(missing_ok=True)


def check_md5(path: Path, published: PublishedFile) -> None:
    """Refuse a file that is not the published one.

    Raises:
        DataError: its MD5 is another, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DataError(f"{published.name} must be readable: {error.strerror}") from None
    if found != published.md5:
        raise DataError(
            f"{published.name} must be the published file (md5 {published.md5}), got md5 {found}: "
            "it is corrupt; remove it, then try again or give --data another path"
        )


def _receive_in_time(published: PublishedFile, file: IO[bytes], timeout_seconds: float) -> None:
    transfer = _Transfer()
    # The machine's own certificates, among them those of a proxy that opens TLS; read before the clock begins.
    client = httpx.Client(verify=ssl.create_default_context(), timeout=timeout_seconds, follow_redirects=True)
    threading.Thread(target=_receive, args=(client, published.url, file, transfer), daemon=True).start()
    needed = 1
    while not transfer.finished.wait(timeout_seconds):
        if transfer.received < needed:
            transfer.abandoned.set()
            transfer.failure = f"no answer within {timeout_seconds:g} seconds"
            break
        needed = transfer.received + SLOWEST_BYTES
    if transfer.failure is None and transfer.expected is not None and transfer.received != transfer.expected:
        transfer.failure = "the connection was closed"
    if transfer.failure is None:
        return
    if transfer.received == 0:
        raise NoAnswerError(f"{published.name} could not be downloaded: {transfer.failure}")
    of = "" if transfer.expected is None else f" of {transfer.expected}"
    raise DataError(
        f"the download of {published.name} broke off after {transfer.received}{of} bytes ({transfer.failure}): "
        "try again, or give --data another path"
    )


def _receive(client: httpx.Client, url: str, file: IO[bytes], transfer: _Transfer) -> None:
    """Run in a thread of its own, because looking up a name can hang where nothing can interrupt it."""
    try:
        # Nothing is unpacked on the way, so that length and checksum are those of the published file.
        with file, client, client.stream("GET", url, headers={"Accept-Encoding": "identity"}) as answer:
            answer.raise_for_status()
            length = answer.headers.get("Content-Length", "")
            transfer.expected = int(length) if length.isascii() and length.isdigit() else None
            for chunk in answer.iter_raw():
                transfer.received += len(chunk)
                if transfer.abandoned.is_set() or transfer.received > MAX_DOWNLOAD_BYTES:
                    transfer.failure = transfer.failure or "it is larger than any published file"
                    break
                file.write(chunk)
    except httpx.HTTPStatusError as error:
        transfer.failure = f"the server answered {error.response.status_code}"
    except httpx.RemoteProtocolError as error:
        transfer.failure = "the connection was closed" if transfer.received else str(error)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        transfer.failure = str(error) or type(error).__name__
    finally:
        transfer.finished.set()
