"""The server's TLS certificate as gRPC uses it: a renewed one serves the next connection, without a restart."""

from pathlib import Path

import grpc

TLS_CERTIFICATE_FILE = "tls.pem"
TLS_KEY_FILE = "tls.key"
_AUTHORITY_FILE = "ca.pem"


class _Reloading:
    """Gives gRPC the certificate again whenever its file has changed."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._seen = self._changed()

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        # The authority's certificate goes along, so that a hospital can compare its fingerprint with its invitation's.
        chain = self._read(TLS_CERTIFICATE_FILE) + self._read(_AUTHORITY_FILE)
        return grpc.ssl_server_certificate_configuration([(self._read(TLS_KEY_FILE), chain)])

    def newer(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the configuration if it has changed, as gRPC asks before each handshake."""
        changed = self._changed()
        if changed == self._seen:
            return None
        self._seen = changed
        return self.configuration()

    def _changed(self) -> tuple[int, int]:
        found = (self._state / TLS_CERTIFICATE_FILE).stat()
        return found.st_mtime_ns, found.st_ino

    def _read(self, name: str) -> bytes:
        return (self._state / name).read_bytes()


def reloading_credentials(state: Path) -> grpc.ServerCredentials:
    """Return credentials of the server whose certificate lies in ``state``, which follow its renewal."""
    source = _Reloading(state)
    return grpc.dynamic_ssl_server_credentials(source.configuration(), source.newer)
