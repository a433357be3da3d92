"""``python -m deploy.demo.dealer_service``: splits the demo's data and sends each hospital its shard over TLS, once.

It belongs to the demo in containers alone: hospitals with data of their own never meet a dealer. It counts the running
hospitals by their DNS records, waits until each has asked and their number is stable, deals, and forgets each shard
once its hospital has it. A hospital proves by its certificate who it is; the dealer is known by a certificate of its
own, which it leaves in a volume that the hospitals read.
"""

import argparse
import datetime
import http.server
import logging
import os
import shutil
import ssl
import sys
import tempfile
import threading
import time
import zipfile
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import cast

from cryptography import x509

from common.config import Config, load_config
from common.errors import ConfideError, IdentityError
from common.files import write_private
from common.identity.certificates import (
    certificate_pem,
    check_hospital_name,
    load_certificate,
    make_local_tls,
    private_key_pem,
    verify_hospital_certificate,
)
from common.privacy.mechanism import mechanism_of
from common.processes import EXIT_REFUSED, Stopping, raise_on_signals
from common.shards import MANIFEST_NAME
from deploy.containers.between import (
    CERTIFICATE_FILE,
    DEALER_PORT,
    SHARD_PATH,
    announce_deal,
    count_addresses,
    publish,
)
from deploy.datasets.datasets import DataSet, obtain
from deploy.demo.dealer import deal
from deploy.demo.dealing import Deal, Standing

_STABLE_SECONDS = 5.0
"""How long the number must be stable: containers of one service start within a second or two of each other."""
_POLL_SECONDS = 0.5
_CONNECTION_SECONDS = 30.0

_LOG = logging.getLogger("confide.dealer")


def main() -> int:
    """Serve until it is stopped."""
    parser = argparse.ArgumentParser(prog="python -m deploy.demo.dealer_service", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="the dealer's own folder")
    parser.add_argument("--public", type=Path, required=True, help="folder that hospitals and server read")
    parser.add_argument("--authority", type=Path, required=True, help="certificate of the consortium's authority")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--seats", type=int, default=0, help="shards made at least, for hospitals to come")
    parser.add_argument("--hospitals", default="hospital", help="DNS name with one address a running hospital")
    parser.add_argument("--name", default="dealer", help="the dealer's own DNS name")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    os.umask(0o077)
    raise_on_signals()
    try:
        return _serve(arguments)
    except Stopping:
        return 0
    except ConfideError as error:
        print(f"confide: {error}", file=sys.stderr, flush=True)
        return EXIT_REFUSED


def _serve(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config)
    authority = load_certificate(arguments.authority)
    _make_certificate(arguments.state, arguments.public, arguments.name)
    dealing = Deal(
        arguments.state,
        config.aggregation.min_hospitals,
        arguments.seats,
        _STABLE_SECONDS,
        partial(_write_shards, config, arguments.state / "shards", arguments.public, authority),
    )
    with HandingOut(("", DEALER_PORT), dealing, authority, arguments.state) as server:
        threading.Thread(target=server.serve_forever, name="handing-out", daemon=True).start()
        _LOG.info("waiting for hospitals")
        while True:
            dealing.look(count_addresses(arguments.hospitals), time.monotonic())
            time.sleep(_POLL_SECONDS)


def _make_certificate(state: Path, public: Path, name: str) -> None:
    """Make the dealer's key, once, and leave its certificate where hospitals read it."""
    certificate = state / CERTIFICATE_FILE
    if not certificate.exists():
        made, key = make_local_tls((name,), datetime.datetime.now(datetime.UTC))
        write_private(state / "dealer.key", private_key_pem(key))
        write_private(certificate, certificate_pem(made))
    publish(public / CERTIFICATE_FILE, certificate.read_bytes())


def _announce(public: Path, data: DataSet, authority: x509.Certificate) -> None:
    announce_deal(public, data.name, authority)
    _LOG.info("dealt %s", data.name)


def _write_shards(
    config: Config, folder: Path, public: Path, authority: x509.Certificate, number: int
) -> tuple[Path, ...]:
    """Get the data, split it, pack the shards, and tell the server what was dealt; no copy of the data stays."""
    with tempfile.TemporaryDirectory() as cache:
        data = obtain(
            config.data,
            config.experiment.task,
            config.model.image_size,
            Path(cache),
            terms=None if config.task.is_preset else config.task.normal(),
        )
    if data.banner:
        _LOG.warning(data.banner)
    shutil.rmtree(folder, ignore_errors=True)
    shards = [folder / str(position) for position in range(number)]
    deal(data, shards, config.data, config.experiment.seed, mechanism_of(config).fewest_records(config.training))
    archives = tuple(_pack(shard) for shard in shards)
    _announce(public, data, authority)
    return archives


def _pack(shard: Path) -> Path:
    """Move a shard into one archive, its manifest last: a folder without one is known to be cut short."""
    archive, manifest = shard.with_suffix(".zip"), shard / MANIFEST_NAME
    files = sorted(path for path in shard.rglob("*") if path.is_file() and path != manifest)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
        for file in (*files, manifest):
            packed.write(file, file.relative_to(shard))
    shutil.rmtree(shard)
    return archive


class HandingOut(http.server.ThreadingHTTPServer):
    """``GET /shard`` brings a hospital its own shard, ``DELETE /shard`` says that it is safely on its disk."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], dealing: Deal, authority: x509.Certificate, state: Path) -> None:
        super().__init__(address, _Handler)
        self.dealing = dealing
        self.authority = authority
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(state / CERTIFICATE_FILE, state / "dealer.key")
        context.load_verify_locations(cadata=certificate_pem(authority).decode())
        context.verify_mode = ssl.CERT_REQUIRED
        # The connection's own thread does the handshake, so a caller that stalls delays nobody else.
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)


class _Handler(http.server.BaseHTTPRequestHandler):
    timeout = _CONNECTION_SECONDS
    server: HandingOut

    def do_GET(self) -> None:
        """Send a hospital its shard, or say why not."""
        hospital = self._hospital()
        if hospital is None or self.path != SHARD_PATH:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        match self.server.dealing.ask(hospital):
            case Standing.WAIT:
                self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, "nothing is dealt yet; ask again")
            case Standing.SENT:
                self.send_error(HTTPStatus.GONE, f"{hospital} has had its shard")
            case Standing.LATE:
                self.send_error(HTTPStatus.CONFLICT, "all records were dealt before this hospital came")
            case Standing.READY:
                self._send(self.server.dealing.archive(hospital))

    def do_DELETE(self) -> None:
        """Forget the shard of a hospital that has it."""
        hospital = self._hospital()
        if hospital is None or self.path != SHARD_PATH:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.server.dealing.taken(hospital)
        _LOG.info("%s has its shard", hospital)
        self.send_response(HTTPStatus.NO_CONTENT)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Write no line for a request; what matters is logged where it happens."""

    def _send(self, archive: Path) -> None:
        with archive.open("rb") as file:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "application/zip")
            self.send_header("Content-Length", str(archive.stat().st_size))
            self.end_headers()
            shutil.copyfileobj(file, self.wfile)

    def _hospital(self) -> str | None:
        """Return the name in the certificate that opened this connection; None where that is not a hospital's."""
        connection = cast("ssl.SSLSocket", self.connection)
        der, verified = connection.getpeercert(binary_form=True), connection.getpeercert()
        if der is None or not verified:
            return None
        name = dict(part[0] for part in cast("tuple[tuple[tuple[str, str]]]", verified["subject"])).get(
            "commonName", ""
        )
        now = datetime.datetime.now(datetime.UTC)
        try:
            pem = ssl.DER_cert_to_PEM_cert(der).encode()
            verify_hospital_certificate(pem, check_hospital_name(name), self.server.authority, now)
        except IdentityError as error:
            _LOG.warning("refused: %s", error)
            return None
        return name


if __name__ == "__main__":
    sys.exit(main())
