"""Flower's environment and waits, in one place for both sides; imports nothing of Flower itself."""

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any

from common.flower.seam import set_default

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


class PollingTime:
    """Stands in for the module :mod:`time` inside Flower's SuperNode, with shorter sleeps.

    Flower 1.39 hard-codes ``time.sleep(3)`` where the SuperNode waits for a message and ``time.sleep(0.5)`` where it
    waits for the reply; an exchange of the protocol would spend most of its time there. A poll for a message crosses
    the network; a poll for the reply is one in memory. As the two take turns, a change of the length asked for says
    that something has happened.

    Args:
        shortest_seconds: between two polls.
        wait: sleeps for this many seconds, or until there may be something to find.
    """

    def __init__(self, shortest_seconds: float, wait: Callable[[float], None] = time.sleep) -> None:
        self._shortest_seconds = shortest_seconds
        self._wait = wait
        self._asked_seconds = 0.0
        self._waited_seconds = 0.0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the module time has
        """Return what the module :mod:`time` has under this name."""
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        """Sleep for ``seconds`` at most."""
        if seconds != self._asked_seconds:
            self._asked_seconds, self._waited_seconds = seconds, 0.0
        pause = min(seconds, poll_pause(self._waited_seconds, self._shortest_seconds))
        self._wait(pause)
        self._waited_seconds += pause


def shorten_backoff(inflatable: ModuleType, first_seconds: float) -> None:
    """Shorten Flower's back-off when a message is visible before its objects: by itself up to ten seconds.

    Args:
        inflatable: ``flwr.supercore.inflatable.inflatable_utils``; given, because this package knows no Flower.
        first_seconds: instead of Flower's 1 s, doubling from there to half a second.

    Raises:
        AttributeError: Flower is not the release this was written for.
    """
    for name in ("pull_objects", "pull_and_inflate_object_from_tree"):
        set_default(getattr(inflatable, name), "initial_backoff", first_seconds)
        set_default(getattr(inflatable, name), "backoff_cap", _LONGEST_POLL_SECONDS)


def limit_pulls(inflatable: ModuleType, longest_seconds: float) -> None:
    """Limit how long Flower waits for the objects of a message: by itself two hours, while nothing else is answered.

    Args:
        inflatable: ``flwr.supercore.inflatable.inflatable_utils``.
        longest_seconds: from the first poll for an object to the last.

    Raises:
        AttributeError: Flower is not the release this was written for.
    """
    for name in ("pull_objects", "pull_and_inflate_object_from_tree"):
        set_default(getattr(inflatable, name), "max_time", longest_seconds)
