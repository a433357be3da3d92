"""How a round's messages travel, whatever carries them: Flower in production, a function call in experiments."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from common.messages import Reply, Request


@dataclass(frozen=True)
class Outgoing:
    """A request and the array that goes with it."""

    request: Request
    array: npt.NDArray[Any] | None = None


@dataclass(frozen=True)
class Incoming:
    """A node's reply, or why there is none that can be read."""

    node: int
    reply: Reply | None
    array: npt.NDArray[Any] | None
    fault: str | None
    size_bytes: int


class Patience:
    """Decides how long one exchange waits for the hospitals that have not answered yet.

    Nobody waits longer than ``longest_seconds``. Once ``enough`` hospitals have answered, the others get
    ``straggler_factor`` times the time those took, and ``straggler_seconds`` at least: a hospital that was killed costs
    the round seconds and not the full deadline, and a slow one still gets its chance.
    """

    def __init__(
        self,
        longest_seconds: float,
        enough: int,
        straggler_factor: float,
        straggler_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.longest_seconds = longest_seconds
        self._enough = enough
        self._factor = straggler_factor
        self._least_seconds = straggler_seconds
        self._clock = clock
        self._started = clock()
        self._ends = self._started + longest_seconds
        self._answers = 0

    def start(self, expected: int) -> None:
        """Begin to wait for ``expected`` answers."""
        self._started = self._clock()
        self._ends = self._started + self.longest_seconds
        self._enough = min(self._enough, expected)
        self._answers = 0

    def answered(self) -> None:
        """Note one answer."""
        self._answers += 1
        if self._answers == self._enough:
            now = self._clock()
            grace = max(self._least_seconds, (self._factor - 1) * (now - self._started))
            self._ends = min(self._ends, now + grace)

    def is_over(self) -> bool:
        """Say whether the exchange ends without those who have not answered."""
        return self._clock() >= self._ends


class Transport(Protocol):
    """What a round needs of the network."""

    def online(self) -> frozenset[int]:
        """Return the nodes that are connected now."""

    def exchange(
        self, outgoing: Mapping[int, Outgoing], patience: Patience, reply_array_bytes: int
    ) -> Iterator[Incoming]:
        """Send one request to each node and yield the replies as they arrive, until all did or patience ends."""
