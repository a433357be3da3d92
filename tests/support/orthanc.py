"""A real PACS for tests: Orthanc from Debian's packages, with small studies of which some are broken."""

import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom

from common.settings import free_port
from deploy.datasets import phantom
from tests.support.hospital_folder import dicom
from tests.support.listener import Listener

BINARY = shutil.which("Orthanc")
_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
HAS_ORTHANC = BINARY is not None and _PLUGIN.exists()
WHY_SKIPPED = "needs Orthanc: apt-get install orthanc orthanc-dicomweb"

TITLE, OUR_TITLE = "ORTHANC", "CONFIDE"
USER, PASSWORD = "confide", "not-to-be-logged-7f3a"  # pragma: allowlist secret
DAY = "20240105"
_HOST = "127.0.0.1"
_START_SECONDS = 30.0
_PHANTOMS = 40


@dataclass(frozen=True)
class Certificates:
    """Files in PEM: who signed all, and one party each for the PACS and for us."""

    authority: Path
    pacs: Path
    pacs_key: Path
    ours: Path
    our_key: Path


class TlsFront:
    """Ends TLS in front of an HTTP server and passes on what it gets."""

    def __init__(self, certificates: Certificates, behind: int) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificates.pacs, certificates.pacs_key)
        self._behind = behind
        self._listener = Listener(_HOST, self._serve)
        self.port = self._listener.port
        self.close = self._listener.close

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            near = self._context.wrap_socket(connection, server_side=True)
            with near, socket.create_connection((_HOST, self._behind)) as far:
                back = threading.Thread(target=self._carry, args=(far, near), daemon=True)
                back.start()
                self._carry(near, far)
                back.join()

    @staticmethod
    def _carry(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(65536):
                sink.sendall(content)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@dataclass
class Orthanc:
    """One running Orthanc.

    Attributes:
        folder: of its configuration and store.
        certificates: makes its lines encrypted: DICOM's by Orthanc itself, HTTP's by a front, as most sites have it
            (Debian 12's Orthanc 1.10.1 dies of a segmentation fault at the first HTTPS connection).
        move_port: where a C-MOVE delivers to.
    """

    folder: Path
    certificates: Certificates | None = None
    http_port: int = field(default_factory=free_port)
    dicom_port: int = field(default_factory=free_port)
    move_port: int = field(default_factory=free_port)
    _process: "subprocess.Popen[bytes] | None" = None
    _front: "TlsFront | None" = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.folder.mkdir(exist_ok=True)
        configuration = self.folder / "orthanc.json"
        configuration.write_text(json.dumps(self._configuration()))
        with (self.folder / "orthanc.log").open("ab") as log:
            self._process = subprocess.Popen((str(BINARY), str(configuration)), stdout=log, stderr=log)
        if self.certificates is not None:
            self._front = TlsFront(self.certificates, self.http_port)
        deadline = time.monotonic() + _START_SECONDS
        with self.client() as client:
            while True:
                with suppress(httpx.TransportError):
                    client.get("/system").raise_for_status()
                    return
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.folder / "orthanc.log").read_text()[-2000:])
                time.sleep(0.1)

    def stop(self) -> None:
        """End it."""
        if self._front is not None:
            self._front.close()
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def client(self) -> httpx.Client:
        """Return a client of its own interface, for tests that put studies in."""
        place = f"http://{_HOST}:{self.http_port}"
        return httpx.Client(base_url=place, auth=(USER, PASSWORD), trust_env=False, timeout=60)

    def put(self, studies: Sequence[bytes]) -> None:
        """Store objects."""
        with self.client() as client:
            for study in studies:
                client.post("/instances", content=study).raise_for_status()

    def spoil(self, numbers: Sequence[int], content: bytes | None) -> None:
        """Replace the stored objects of studies by other bytes, or remove them, behind Orthanc's back."""
        wanted = {study_uid(number) for number in numbers}
        for path in (self.folder / "store").glob("*/*/*"):
            if str(pydicom.dcmread(path, stop_before_pixels=True).StudyInstanceUID) in wanted:
                if content is None:
                    path.unlink()
                else:
                    path.write_bytes(content)

    def access(self, kind: str) -> str:
        """Return an access file for DICOMweb (``web``), C-GET (``get``) or C-MOVE (``move``)."""
        if kind == "web":
            server = (
                f"http://{_HOST}:{self.http_port}" if self._front is None else f"https://{_HOST}:{self._front.port}"
            )
            place = f"dicomweb:\n  url: {server}/dicom-web\n"
            place += f"  user: {USER}\n  password: {PASSWORD}\n"
        else:
            place = f"dicom:\n  host: {_HOST}\n  port: {self.dicom_port}\n  called: {TITLE}\n  calling: {OUR_TITLE}\n"
            place += f"  retrieve: {kind}\n  listen_host: {_HOST}\n  listen_port: {self.move_port}\n"
        if self.certificates is None:
            return place + "  unencrypted: yes\n"
        files = self.certificates
        place += f"  tls:\n    authority: {files.authority}\n"
        return place if kind == "web" else f"{place}    certificate: {files.ours}\n    key: {files.our_key}\n"

    def _configuration(self) -> dict[str, object]:
        ours = [OUR_TITLE, _HOST, self.move_port]
        settings: dict[str, object] = {
            "StorageDirectory": str(self.folder / "store"),
            "IndexDirectory": str(self.folder / "store"),
            "Plugins": [str(_PLUGIN)],
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": TITLE,
            "DicomCheckCalledAet": True,
            "DicomModalities": {"ours": {"AET": OUR_TITLE, "Host": _HOST, "Port": self.move_port}},
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: PASSWORD},
            "MaximumStorageCacheSize": 0,
            "TcpNoDelay": True,
            "KeepAlive": True,
        }
        if self.certificates is not None:
            files = self.certificates
            settings |= {
                "DicomTlsEnabled": True,
                "DicomTlsCertificate": str(files.pacs),
                "DicomTlsPrivateKey": str(files.pacs_key),
                "DicomTlsTrustedCertificates": str(files.authority),
                "DicomModalities": {"ours": {"AET": ours[0], "Host": ours[1], "Port": ours[2], "UseDicomTls": True}},
            }
        return settings


def study_uid(number: int) -> str:
    """Return the Study Instance UID of a study that was made here."""
    return f"1.2.826.0.1.3680043.8.498.77.{number}"


def accession(number: int) -> str:
    """Return its accession number."""
    return f"ACC{number:06d}"


def study(number: int, **fields: Any) -> bytes:  # noqa: ANN401 - values of DICOM fields
    """Make a study of one small chest X-ray."""
    pixels = np.ascontiguousarray(_CHESTS[number % _PHANTOMS]) ^ np.uint8(number % 5)
    named: dict[str, Any] = {
        "StudyInstanceUID": study_uid(number),
        "SeriesInstanceUID": f"{study_uid(number)}.1",
        "SOPInstanceUID": f"{study_uid(number)}.1.1",
        "AccessionNumber": accession(number),
        "PatientID": f"PATIENT-{number}",
        "PatientName": "Secret^Person",
        "StudyDate": DAY,
        "BodyPartExamined": "CHEST",
    }
    return dicom(pixels, **{**named, **fields})


_CHESTS = phantom.chest(_PHANTOMS, 32, 3).images[:, 0]
