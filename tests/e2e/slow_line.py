"""``python slow_line.py [--even] SECONDS INTERFACE…``: connects Ethernet interfaces by a line that delays frames.

Written for kernels without the ``netem`` queue. Every frame goes to the interface its receiver was last heard on, or to
all others, after the delay. It also ill-treats frames: some are lost, some overtake those before them, some arrive
twice, and some with a bit flipped. With ``--even`` none of that happens, and each arrives once and in order.
"""

import contextlib
import heapq
import itertools
import random
import select
import socket
import sys
import time

LOST, OVERTAKING, DOUBLED, CORRUPTED = 0.01, 0.25, 0.01, 0.01
"""Share of the frames; one that overtakes is sent at once."""
ALL_PROTOCOLS = 3
OUTGOING = 4
"""The kernel also shows a raw socket what it sends itself (``linux/if_packet.h``)."""
FRAME_BYTES = 65_536
LONGEST_WITHOUT_CHECKSUM_BYTES = 60
"""Shorter frames look for addresses (ARP), and nothing but Ethernet's own check would notice a flipped bit in them."""
HEADERS_BYTES = 34
"""Ethernet and IPv4; what follows is covered by TCP's checksum, as is all of IPv6 that matters here."""


def happens(share: float) -> bool:
    """Say whether something befalls a frame that befalls this share of them."""
    return random.random() < share  # noqa: S311 - a line's mishaps are no secret


def with_flipped_bit(frame: bytes) -> bytes:
    """Return the frame as noise on the line leaves it."""
    if len(frame) <= LONGEST_WITHOUT_CHECKSUM_BYTES:
        return frame
    noisy = bytearray(frame)
    noisy[random.randrange(HEADERS_BYTES, len(frame))] ^= 1 << random.randrange(8)  # noqa: S311
    return bytes(noisy)


def copies(frame: bytes, delay_seconds: float) -> list[tuple[float, bytes]]:
    """Return what arrives of a frame, and how many seconds later."""
    if happens(LOST):
        return []
    arriving = with_flipped_bit(frame) if happens(CORRUPTED) else frame
    return [(0.0 if happens(OVERTAKING) else delay_seconds, arriving) for _ in range(2 if happens(DOUBLED) else 1)]


def one_copy(frame: bytes, delay_seconds: float) -> list[tuple[float, bytes]]:
    """Return the frame, as an even line carries it."""
    return [(delay_seconds, frame)]


def carry(delay_seconds: float, interfaces: list[str], *, even: bool) -> None:
    """Carry frames until the process is ended."""
    arrivals = one_copy if even else copies
    lines = []
    for interface in interfaces:
        line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
        line.bind((interface, 0))
        lines.append(line)
    order = itertools.count()
    due: list[tuple[float, int, socket.socket, bytes]] = []
    heard: dict[bytes, socket.socket] = {}
    while True:
        wait = max(0.0, due[0][0] - time.monotonic()) if due else None
        for line in select.select(lines, [], [], wait)[0]:
            try:
                frame, address = line.recvfrom(FRAME_BYTES)
            except OSError:  # The interface was taken down: the line is cut, and may be mended.
                continue
            if address[2] != OUTGOING:
                heard[frame[6:12]] = line
                for later, arriving in arrivals(frame, delay_seconds):
                    heapq.heappush(due, (time.monotonic() + later, next(order), line, arriving))
        while due and due[0][0] <= time.monotonic():
            _, _, source, frame = heapq.heappop(due)
            receiver = heard.get(frame[:6])
            for line in lines if receiver is None else [receiver]:
                if line is not source:
                    with contextlib.suppress(OSError):
                        line.send(frame)


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--even"]
    carry(float(words[0]), words[1:], even=len(words) < len(sys.argv) - 1)
