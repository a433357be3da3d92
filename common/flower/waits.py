"""Flower's environment and waits, in one place for both sides; imports nothing of Flower itself."""

from collections.abc import Mapping
from types import MappingProxyType

PIECE_BYTES = 2**20
"""The bytes of an array in one of Flower's objects. Whoever sends or receives an object holds it some five times over
(decrypted, joined, parsed, copied), and a SuperLink does so for each hospital that it serves at the same time. With
Flower's own 5 MiB, one hospital alone would take more than a whole masked vector of ResNet-18."""

FLOWER_ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": str(PIECE_BYTES),
        "PYTHONUNBUFFERED": "1",
    }
)
"""The environment of every Flower process: nothing leaves this machine that we did not send."""


_SHARE_OF_WAIT = 0.1
_LONGEST_POLL_SECONDS = 0.5
"""The share and the limit that slower polling adds to a long wait; an idle hospital's cores stay free."""


def poll_pause(waited_seconds: float, shortest_seconds: float) -> float:
    """Return how many seconds to sleep before the next poll for a message, after waiting for it this long.

    >>> poll_pause(0.0, 0.05), poll_pause(2.0, 0.05), poll_pause(60.0, 0.05)
    (0.05, 0.2, 0.5)
    """
    return max(shortest_seconds, min(_SHARE_OF_WAIT * waited_seconds, _LONGEST_POLL_SECONDS))
