"""A demo hospital's side of the deal: asks the dealer for its shard and puts it on its own disk."""

import http.client
import os
import ssl
import tempfile
import time
import zipfile
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from shutil import copyfileobj
from typing import IO

from common.errors import DataError, RunError
from common.shards import MANIFEST_NAME
from deploy.containers.between import SHARD_PATH

_ASK_AGAIN_SECONDS = 1.0
_ANSWER_SECONDS = 60.0

_NO_ARCHIVE = (zipfile.BadZipFile, EOFError, NotImplementedError, OverflowError, RuntimeError, ValueError)
"""What ``zipfile`` raises for bytes that are no archive, or of a kind it does not read."""


@dataclass(frozen=True)
class Dealer:
    """Where the dealer is and how to know it.

    Attributes:
        host: its DNS name, which its certificate carries.
        port: of its service.
        certificate: PEM, the only one that is trusted.
    """

    host: str
    port: int
    certificate: Path


def has_shard(folder: Path) -> bool:
    """Return whether a whole shard lies in ``folder``; its manifest is written last."""
    return (folder / MANIFEST_NAME).exists()


def fetch(dealer: Dealer, state: Path, folder: Path, deadline_seconds: float) -> None:
    """Put this hospital's shard into ``folder``, waiting until there is one.

    Args:
        dealer: of the demo.
        state: the hospital's state folder, with its identity.
        folder: for the shard, which must not hold one.
        deadline_seconds: for all of it.

    Raises:
        DataError: all records were dealt before, or this hospital has had its shard.
        RunError: the dealer did not answer, or nothing was dealt, by the deadline.
    """
    give_up = time.monotonic() + deadline_seconds
    problem = "nothing was dealt"
    while time.monotonic() < give_up:
        try:
            if _fetched(dealer, state, folder):
                return
        except (OSError, http.client.HTTPException, RunError) as error:
            problem = f"the last try ended with {type(error).__name__}"
        time.sleep(_ASK_AGAIN_SECONDS)
    raise RunError(f"the dealer must deal within {deadline_seconds:g} s; {problem}; see its log")


def unpack(archive: IO[bytes], folder: Path) -> None:
    """Lay a shard out, all of it below ``folder``; a file of it is never longer than what came for it.

    Raises:
        RunError: the archive is damaged, or not one of files as they are.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            files = packed.infolist()
            there = archive.seek(0, os.SEEK_END)
            if any(file.compress_type != zipfile.ZIP_STORED for file in files) or there < sum(
                file.file_size for file in files
            ):
                raise RunError("a shard's archive must hold files as they are")
            packed.extractall(folder)
    except (*_NO_ARCHIVE, OSError):
        raise RunError("a shard's archive must be whole") from None


def _fetched(dealer: Dealer, state: Path, folder: Path) -> bool:
    """Ask once; False when there is nothing yet. The dealer may only just be making its certificate."""
    context = ssl.create_default_context(cafile=str(dealer.certificate))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(state / "identity.pem", state / "identity.key")
    connection = http.client.HTTPSConnection(dealer.host, dealer.port, context=context, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", SHARD_PATH)
        answer = connection.getresponse()
        if answer.status == HTTPStatus.SERVICE_UNAVAILABLE:
            return False
        if answer.status != HTTPStatus.OK:
            raise DataError(f"the dealer must have a shard for this hospital: {answer.reason}; start the demo again")
        with tempfile.TemporaryFile(dir=folder) as archive:
            copyfileobj(answer, archive)
            unpack(archive, folder)
        os.sync()
        connection.request("DELETE", SHARD_PATH)
        connection.getresponse().read()
    finally:
        connection.close()
    return True
