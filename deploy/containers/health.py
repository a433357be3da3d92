"""``python -m deploy.containers.health HOST:PORT|PATH …``: do a container's services accept connections?"""

import socket
import sys
from collections.abc import Sequence

_SECONDS = 2.0


def unreachable(addresses: Sequence[str]) -> tuple[str, ...]:
    """Return the addresses (``host:port``, or the path of a Unix socket) on which nobody accepts a connection."""
    return tuple(address for address in addresses if not _accepts(address))


def _accepts(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        if address.startswith("/"):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_SECONDS)
                connection.connect(address)
            return True
        with socket.create_connection((host, int(port)), timeout=_SECONDS):
            return True
    except OSError:
        return False


def main() -> int:
    """Return 1, and say which, when an address is unreachable."""
    missing = unreachable(sys.argv[1:])
    if missing:
        print(f"nobody listens on {', '.join(missing)}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
