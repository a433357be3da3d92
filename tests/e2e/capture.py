"""A packet capture of one TCP port on the loopback interface, and what it proves about the bytes."""

import socket
import struct
import threading
from collections import defaultdict
from dataclasses import dataclass, field

_ETH_P_ALL = 3
_ETHERNET_BYTES = 14
_TCP = 6
_BUFFER_BYTES = 64 * 2**20
_TLS_RECORD_TYPES = frozenset((20, 21, 22, 23))
_TLS_HEADER_BYTES = 5
_LONGEST_TLS_RECORD = 2**14 + 256


@dataclass
class Stream:
    """One direction of one connection: the payloads seen, by sequence number."""

    segments: dict[int, bytes] = field(default_factory=dict)
    first: int | None = None

    def prefix(self) -> bytes:
        """Return the bytes from the connection's first one up to the first that the capture missed."""
        if self.first is None:
            return b""
        found, at = bytearray(), (self.first + 1) % 2**32
        while at in self.segments:
            found += self.segments[at]
            at = (at + len(self.segments[at])) % 2**32
        return bytes(found)


class Capture:
    """Reads every packet of a port from the kernel while it runs; needs root.

    Args:
        port: of the server.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: dict[tuple[int, int], Stream] = defaultdict(Stream)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, 33, _BUFFER_BYTES)  # SO_RCVBUFFORCE: no packet is to be missed
        self._socket.bind(("lo", 0))
        self._socket.settimeout(0.2)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> "Capture":
        """Begin to read."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop reading."""
        self._done.set()
        self._thread.join()
        self._socket.close()

    def streams(self) -> list[bytes]:
        """Return what was sent in each direction of each connection that was captured from its beginning."""
        return [sent for sent in (stream.prefix() for stream in self._streams.values()) if sent]

    def _read(self) -> None:
        while not self._done.is_set():
            try:
                self._take(self._socket.recv(2**17))
            except TimeoutError:
                continue

    def _take(self, frame: bytes) -> None:
        packet = frame[_ETHERNET_BYTES:]
        if len(packet) < 40 or packet[0] >> 4 != 4 or packet[9] != _TCP:
            return
        segment = packet[(packet[0] & 15) * 4 : struct.unpack("!H", packet[2:4])[0] or None]
        source, target, sequence = struct.unpack("!HHI", segment[:8])
        if self._port not in (source, target):
            return
        stream = self._streams[source, target]
        if segment[13] & 2:  # SYN
            stream.first = sequence
        payload = segment[(segment[12] >> 4) * 4 :]
        if len(payload) > len(stream.segments.get(sequence, b"")):
            stream.segments[sequence] = payload


def is_tls_only(sent: bytes) -> bool:
    """Say whether bytes are a sequence of TLS records and nothing else (RFC 8446, section 5.1)."""
    at = 0
    while at + _TLS_HEADER_BYTES <= len(sent):
        kind, version, length = struct.unpack("!BHH", sent[at : at + _TLS_HEADER_BYTES])
        if kind not in _TLS_RECORD_TYPES or version not in (0x0301, 0x0303) or length > _LONGEST_TLS_RECORD:
            return False
        at += _TLS_HEADER_BYTES + length
    return True
