"""Which replica of ``docker compose up --scale`` this container is, by the engine's own DNS.

The engine answers a reverse look-up of a container's address with its name, such as ``confide-hospital-3.confide_net``.
``socket.gethostbyaddr`` does not ask for it: ``/etc/hosts`` has the container's identifier for that address.
"""

import re
import secrets
import socket
import struct
from pathlib import Path

_RESOLVERS = Path("/etc/resolv.conf")
_PORT = 53
_SECONDS = 2.0
_TRIES = 3
_LONGEST_ANSWER = 4096
_POINTER_TYPE, _INTERNET = 12, 1
_HEAD, _FIXED = struct.Struct(">HHHHHH"), struct.Struct(">HHIH")
"""RFC 1035: the head of a message, and what of a resource record follows its name."""
_COMPRESSED = 0xC0
_MOST_LABELS = 128


def replica_number(service: str) -> int | None:
    """Return this container's number among a service's replicas; None where nobody says."""
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        return None
    return number_in(name_of(address) or "", service)


def number_in(container: str, service: str) -> int | None:
    """Return the number at the end of a container's name.

    >>> number_in("confide-hospital-3.confide_consortium", "hospital"), number_in("c4f3d1", "hospital")
    (3, None)
    """
    found = re.search(rf"(?:^|[-_]){re.escape(service)}[-_]([1-9][0-9]*)$", container.partition(".")[0])
    return None if found is None else int(found[1])


def name_of(address: str, resolver: tuple[str, int] | None = None) -> str | None:
    """Return the name that a resolver has for an IPv4 address, None where it has none or does not answer.

    Args:
        address: in dotted form.
        resolver: whom to ask; the first one of this machine by default.
    """
    asked = resolver or _resolver()
    if asked is None:
        return None
    number = secrets.randbelow(2**16)
    labels = (*address.split(".")[::-1], "in-addr", "arpa")
    name = b"".join(bytes((len(label),)) + label.encode("ascii") for label in labels) + b"\0"
    question = _HEAD.pack(number, 0x0100, 1, 0, 0, 0) + name + struct.pack(">HH", _POINTER_TYPE, _INTERNET)
    for _ in range(_TRIES):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
            line.settimeout(_SECONDS)
            try:
                line.connect(asked)
                line.send(question)
                answer = line.recv(_LONGEST_ANSWER)
            except OSError:
                continue
        return _pointer(answer, number, len(question))
    return None


def _resolver() -> tuple[str, int] | None:
    try:
        lines = _RESOLVERS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    named = (line.split() for line in lines if line.startswith("nameserver "))
    return next(((words[1], _PORT) for words in named if len(words) > 1), None)


def _pointer(answer: bytes, number: int, start: int) -> str | None:
    """Return the name in the first answer of a message, whose answers begin where the question ended."""
    try:
        told, _flags, _questions, answers, _authorities, _others = _HEAD.unpack_from(answer)
        if told != number or not answers:
            return None
        _, place = _name(answer, start)
        kind, *_ = _FIXED.unpack_from(answer, place)
        return _name(answer, place + _FIXED.size)[0] if kind == _POINTER_TYPE else None
    except (struct.error, IndexError, UnicodeDecodeError):
        return None


def _name(message: bytes, place: int) -> tuple[str, int]:
    """Return a name in a message, and where what follows it begins; the rest of a name may stand elsewhere."""
    labels: list[str] = []
    after: int | None = None
    for _ in range(_MOST_LABELS):
        length = message[place]
        if length & _COMPRESSED == _COMPRESSED:
            after = place + 2 if after is None else after
            place = (length & ~_COMPRESSED) << 8 | message[place + 1]
        elif length:
            labels.append(message[place + 1 : place + 1 + length].decode("ascii"))
            place += 1 + length
        else:
            return ".".join(labels), place + 1 if after is None else after
    raise IndexError("a name of too many labels")
