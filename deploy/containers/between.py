"""What the containers of one demo tell each other, in volumes and over DNS."""

import json
import socket
from pathlib import Path

from cryptography import x509

from common.errors import DataError
from common.identity.certificates import fingerprint

CERTIFICATE_FILE = "dealer.pem"
DATA_SET_FILE = "data-set.json"
"""What was dealt, in the volume that the dealer writes: the data set's name, and the authority whose demo it is."""
SHARD_PATH = "/shard"
DEALER_PORT = 9095


def count_addresses(name: str) -> int:
    """Return how many IPv4 addresses a DNS name has, 0 when it has none."""
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except socket.gaierror:
        return 0
    return len({address[0] for *_, address in found})


def publish(path: Path, content: bytes) -> None:
    """Write a file that other containers read, whole or not at all."""
    partial_path = path.with_name(path.name + ".new")
    partial_path.write_bytes(content)
    partial_path.chmod(0o644)
    partial_path.replace(path)


def announce_deal(public: Path, data_set: str, authority: x509.Certificate) -> None:
    """Leave the name of the data set that was dealt."""
    facts = {"authority": fingerprint(authority), "data_set": data_set}
    publish(public / DATA_SET_FILE, json.dumps(facts).encode())


def dealt_data_set(public: Path, authority: x509.Certificate) -> str | None:
    """Return the name of the data set that was dealt in this authority's demo; None before that."""
    try:
        facts = json.loads((public / DATA_SET_FILE).read_bytes())
        return str(facts["data_set"]) if facts["authority"] == fingerprint(authority) else None
    except FileNotFoundError:
        return None
    except (OSError, LookupError, RecursionError, TypeError, ValueError):
        raise DataError(f"{DATA_SET_FILE} must be what the dealer wrote; start the demo again") from None
