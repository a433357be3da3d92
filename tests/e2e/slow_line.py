"""``python slow_line.py SECONDS LOSS INTERFACE…``: connects Ethernet interfaces by a line that delays and loses frames.

Written for kernels without the ``netem`` queue. Every frame goes to the interface its receiver was last heard on, or to
all others, after the delay; the given share of frames is lost.
"""

import contextlib
import heapq
import itertools
import random
import select
import socket
import sys
import time

ALL_PROTOCOLS = 3
OUTGOING = 4
"""The kernel also shows a raw socket what it sends itself (``linux/if_packet.h``)."""
FRAME_BYTES = 65_536


def carry(delay_seconds: float, loss: float, interfaces: list[str]) -> None:
    """Carry frames until the process is ended."""
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
            if address[2] != OUTGOING and random.random() >= loss:  # noqa: S311 - a line's losses are no secret
                heard[frame[6:12]] = line
                heapq.heappush(due, (time.monotonic() + delay_seconds, next(order), line, frame))
        while due and due[0][0] <= time.monotonic():
            _, _, source, frame = heapq.heappop(due)
            receiver = heard.get(frame[:6])
            for line in lines if receiver is None else [receiver]:
                if line is not source:
                    with contextlib.suppress(OSError):
                        line.send(frame)


if __name__ == "__main__":
    carry(float(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
